// The aggregator: reads the log, folds it into traces and the service graph, and commits rows and positions together.
// Runs as one service; its work is on one thread of its own. A crash anywhere repeats a batch; a fence stops the worker
// before it can write a row it no longer owns.

import Logging
import Observability
import SegmentLog
import Segments
import ServiceLifecycle
import TraceAssembly
import TraceStore

public struct AggregatorOptions: Sendable {
    /// Bounds of one batch over all partitions; bytes are those of the documents.
    public var batchRecords = 4_000
    public var batchBytes = 4 << 20
    /// Shortest time between the starts of two batches while there is little to do: many small batches cost more than
    /// few larger ones, and nobody sees a trace later than this.
    public var batchInterval: Duration = .milliseconds(50)
    /// How long a worker with nothing to do sleeps before it looks again (news wake it at once).
    public var idleWait: Duration = .seconds(1)
    /// Entities of growing traces kept in memory.
    public var cacheEntities = 120_000
    /// `max_trace_bytes`; 0 = no limit.
    public var maxTraceBytes = 512_000
    public var segmentLimits = SegmentLimits()

    public init() {}
}

/// One aggregator worker, owner of all partitions it claims.
public actor Aggregator: Service {
    private nonisolated let thread = WorkerThread(name: "aggregator")
    public nonisolated var unownedExecutor: UnownedSerialExecutor { thread.asUnownedSerialExecutor() }

    private let log: any SegmentLog
    private let store: TraceStore
    private let options: AggregatorOptions
    private let metrics: Metrics
    private let logger: Logger
    private let clock: @Sendable () -> Micros
    private let owner: String
    private let recheck: LinkRecheck

    private let fold: BatchFold
    private var partitions: [PartitionState] = []
    private var commitUnderWay: Task<CommitOutcome, any Error>?

    /// - Parameters:
    ///   - owner: names the worker in `log_positions`.
    ///   - clock: microseconds since 1970.
    public init(
        log: any SegmentLog, store: TraceStore, owner: String, options: AggregatorOptions = AggregatorOptions(),
        metrics: Metrics, logger: Logger, clock: @escaping @Sendable () -> Micros
    ) {
        self.log = log
        self.store = store
        self.owner = owner
        self.options = options
        self.metrics = metrics
        self.logger = logger
        self.clock = clock
        recheck = LinkRecheck(log: log, store: store, clock: clock)
        fold = BatchFold(
            store: store, limits: TraceLimits(traceBytes: options.maxTraceBytes), segmentLimits: options.segmentLimits,
            cacheCapacity: options.cacheEntities)
    }

    /// Works until graceful shutdown, then commits what it has folded. Whatever fails is begun again from the stored
    /// positions, after a pause that grows to 5 s.
    public func run() async throws {
        await cancelWhenGracefulShutdown {
            await self.workUntilCancelled()
        }
    }

    private func workUntilCancelled() async {
        var failures = 0
        while !Task.isCancelled {
            do {
                try await begin()
                while !Task.isCancelled {
                    // Folding alone is no progress: what cannot be committed is to be tried ever more slowly.
                    if try await step() { failures = 0 }
                }
                try await settle()
            } catch is CancellationError {
                break
            } catch {
                await abandon()
                failures += 1
                logger.warning(
                    "aggregation begins again from the stored positions",
                    metadata: ["reason": "\(error)", "attempt": "\(failures)"])
                try? await Task.sleep(for: min(.milliseconds(100) * (1 << min(failures, 6)), .seconds(5)))
            }
        }
        _ = try? await settle()
    }

    /// Claims the partitions and finishes what a crash may have left.
    private func begin() async throws {
        fold.cache.removeAll()
        partitions = try await store.claim(partitions: Array(0..<log.partitionCount), owner: owner)
        for partition in partitions where partition.checkedPosition < partition.position {
            try await recheck.resume(partition)
        }
    }

    /// Forgets everything not committed.
    private func abandon() async {
        commitUnderWay?.cancel()
        _ = await commitUnderWay?.result
        commitUnderWay = nil
        partitions = []
    }

    /// One batch: read, fold while the one before is being committed, then commit.
    /// - Returns: whether the one before was committed.
    private func step() async throws -> Bool {
        let started = ContinuousClock.now
        let batches = try await read()
        guard !batches.isEmpty else {
            let isCommitted = try await settle()
            let positions = partitions.map { LogPosition(partition: $0.partition, offset: $0.position) }
            await log.waitForRecords(beyond: positions, timeout: options.idleWait)
            return isCommitted
        }
        let moves = batches.map(move)
        let folded = try await fold.fold(batches, moves: moves)
        let foldTime = started.duration(to: .now)
        let isCommitted = try await settle()
        for move in moves { partitions[index(of: move.partition)].position = move.to }
        commit(folded, foldTime: foldTime)

        let isFull = folded.recordCount >= options.batchRecords / 2
        let pause = interval(after: folded, foldTime: foldTime) - started.duration(to: .now)
        if !isFull, pause > .zero { try await Task.sleep(for: pause) }
        return isCommitted
    }

    /// Time from the start of this batch to the start of the next. Every batch that touches a trace looks at all of it, so
    /// a large trace that comes in single documents would cost the square of its size: while that is most of the work,
    /// batches come less often, so that it takes a twentieth of the time, and nobody waits more than ten times as long.
    private func interval(after folded: FoldedBatch, foldTime: Duration) -> Duration {
        let repeated = folded.knownEntityCount
        let share = Double(repeated) / Double(max(repeated + folded.newEntityCount, 1))
        return min(max(options.batchInterval, foldTime * share * 20), options.batchInterval * 10)
    }

    /// What the partitions have beyond their positions, within the bounds of a batch; each gets its share.
    private func read() async throws -> [LogBatch] {
        var result: [LogBatch] = []
        let share = max(options.batchRecords / max(partitions.count, 1), 1)
        let bytes = max(options.batchBytes / max(partitions.count, 1), 64 << 10)
        for partition in partitions {
            let batch = try await log.read(
                partition: partition.partition, from: partition.position, maxRecords: share, maxBytes: bytes)
            if batch.nextOffset > partition.position { result.append(batch) }
        }
        return result
    }

    private func move(of batch: LogBatch) -> PositionMove {
        let state = partitions[index(of: batch.partition)]
        // Commits follow one another and each ends with its re-check, so all that precedes this batch is checked.
        return PositionMove(
            partition: batch.partition, from: state.position, to: batch.nextOffset, ownerEpoch: state.ownerEpoch,
            receivedThrough: batch.entries.map(\.receivedAt).max(), checkedPosition: state.position)
    }

    private func index(of partition: Int) -> Int { partitions.firstIndex { $0.partition == partition } ?? 0 }

    private func commit(_ folded: FoldedBatch, foldTime: Duration) {
        let (store, recheck, metrics) = (store, recheck, metrics)
        commitUnderWay = Task {
            let started = ContinuousClock.now
            let outcome: CommitOutcome
            do {
                outcome = try await store.commit(folded.rows)
            } catch {
                metrics.batch(
                    records: folded.recordCount, fold: foldTime, commit: started.duration(to: .now), result: .failed)
                throw error
            }
            let commitTime = started.duration(to: .now)
            let result: Metrics.CommitResult =
                switch outcome {
                case .committed: .committed
                case .fenced: .fenced
                case .versionConflict: .conflict
                }
            metrics.batch(records: folded.recordCount, fold: foldTime, commit: commitTime, result: result)
            guard outcome == .committed else { return outcome }
            metrics.observationsRetracted(folded.retractionCount)
            for (code, entries) in Dictionary(grouping: folded.rows.inbox, by: \.code) {
                metrics.documentsInboxed(entries.count, reason: code)
            }
            try await recheck.run(changed: folded.changed, consumers: folded.consumers)
            return outcome
        }
    }

    /// Waits for the commit under way.
    /// - Returns: false when there is none.
    @discardableResult
    private func settle() async throws -> Bool {
        guard let task = commitUnderWay else { return false }
        commitUnderWay = nil
        switch try await task.value {
        case .committed: return true
        case .fenced: throw AggregationError.fenced
        case .versionConflict(let keys): throw AggregationError.versionConflict(count: keys.count)
        }
    }
}

enum AggregationError: Error, CustomStringConvertible {
    case fenced
    case versionConflict(count: Int)

    var description: String {
        switch self {
        case .fenced: "another worker owns a partition of the batch, or has moved its position"
        case .versionConflict(let count): "\(count) traces of the batch were changed by the owner of another partition"
        }
    }
}
