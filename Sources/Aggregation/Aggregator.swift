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
    /// How long a partition may give nothing before the log is asked why.
    public var silenceLimit: Duration = .seconds(1)
    /// Entities of growing traces kept in memory.
    public var cacheEntities = 100_000
    /// `max_trace_bytes`; 0 = no limit.
    public var maxTraceBytes = 512_000
    public var segmentLimits = SegmentLimits()

    public init() {}
}

/// One aggregator worker; owns the partitions it has leases for.
public actor Aggregator: Service {
    private nonisolated let thread = WorkerThread(name: "aggregator")
    public nonisolated var unownedExecutor: UnownedSerialExecutor { thread.asUnownedSerialExecutor() }

    /// A partition this worker has a lease for.
    private struct Owned {
        /// With the position that the next batch is read from.
        var state: PartitionState
        /// Committed, and the links re-checked, up to here.
        var committed: Int64
        var claimedAt: ContinuousClock.Instant
    }

    private struct CommitUnderWay {
        var task: Task<CommitOutcome, any Error>
        var moves: [PositionMove]
        /// Traces whose state in the cache counts on it.
        var touched: [TraceKey]
    }

    private let log: any SegmentLog
    private let store: TraceStore
    private let leases: LeaseKeeper
    private let options: AggregatorOptions
    private let metrics: Metrics
    private let logger: Logger
    private let clock: @Sendable () -> Micros
    private let recheck: LinkRecheck

    private let fold: BatchFold
    private var partitions: [Owned] = []
    private var commitUnderWay: CommitUnderWay?
    /// Folded on top of the commit under way, not yet being committed.
    private var foldedAhead: [TraceKey] = []
    /// Number of the last look at the cluster that was acted on.
    private var seenLook = 0
    private var seenPartitionCount = 0
    /// The leases are to be looked at even if nothing seems to have changed.
    private var mustLook = true
    /// Not everything that was due has been claimed.
    private var isWaitingForPartitions = false
    /// Partitions that had nothing at hand when they were last read, though their end was not reached.
    private var silentSince: [Int: ContinuousClock.Instant] = [:]
    /// Partitions that cannot be read, and why.
    private var troubles: [Int: SegmentLogError] = [:]
    /// When the batch before was begun.
    private var lastStart = ContinuousClock.now
    /// Bound of one batch now: smaller after a conflict, so that two workers with many traces in common get on.
    private var batchRecords: Int

    /// - Parameters:
    ///   - leases: of this process; runs beside the worker and ends after it.
    ///   - clock: microseconds since 1970.
    public init(
        log: any SegmentLog, store: TraceStore, leases: LeaseKeeper, options: AggregatorOptions = AggregatorOptions(),
        metrics: Metrics, logger: Logger, clock: @escaping @Sendable () -> Micros
    ) {
        self.log = log
        self.store = store
        self.leases = leases
        self.options = options
        self.metrics = metrics
        self.logger = logger
        self.clock = clock
        batchRecords = options.batchRecords
        recheck = LinkRecheck(log: log, store: store, clock: clock)
        fold = BatchFold(
            store: store, limits: TraceLimits(traceBytes: options.maxTraceBytes), segmentLimits: options.segmentLimits,
            cacheCapacity: options.cacheEntities)
    }

    /// Works until graceful shutdown, then commits what it has folded and gives its partitions free. Whatever fails is
    /// begun again from the stored positions, after a pause that grows to 5 s.
    public func run() async throws {
        await cancelWhenGracefulShutdown {
            await self.workUntilCancelled()
        }
        await leases.leave()
    }

    private func workUntilCancelled() async {
        var failures = 0
        while !Task.isCancelled {
            do {
                try await followLeases()
                // Folding alone is no progress: what cannot be committed is to be tried ever more slowly.
                if try await step() { failures = 0 }
            } catch is CancellationError {
                break
            } catch {
                failures += 1
                await recover(from: error, failures: failures)
            }
        }
        do {
            try await settle()
        } catch {
            logger.warning("the last batch was not committed", metadata: ["reason": "\(error)"])
        }
        own([])
    }

    // MARK: Partitions

    /// Brings what this worker works on in line with the leases: forgets what it has lost, gives up what others should
    /// have, claims what is due to it.
    private func followLeases() async throws {
        guard leases.isHeld else {
            if !partitions.isEmpty {
                logger.warning("PostgreSQL was out of reach for longer than a lease; the partitions are given up")
                await forgetEverything()
            }
            mustLook = true
            return
        }
        guard let look = leases.lastLook else { return }
        let partitionCount = log.partitionCount
        let isNews = look.number != seenLook || partitionCount != seenPartitionCount
        guard isNews || mustLook || isWaitingForPartitions else { return }
        forgetLost(look)

        var owners = [String?](repeating: nil, count: partitionCount)
        for lease in look.view.leases where lease.isLive && owners.indices.contains(lease.partition) {
            // Under our own name, but not in our hands: a left-over of an earlier failure.
            owners[lease.partition] = lease.owner == me ? nil : lease.owner
        }
        for owned in partitions where owners.indices.contains(owned.state.partition) {
            owners[owned.state.partition] = me
        }
        let decision = LeasePolicy.decide(me, workers: look.view.workers, owners: owners)
        if !decision.release.isEmpty { try await release(decision.release) }
        let claimed = decision.claimCount > 0 ? try await claim(decision.claimCount, partitionCount) : 0
        seenLook = look.number
        seenPartitionCount = partitionCount
        mustLook = false
        let rank = look.view.workers.firstIndex(of: me) ?? 0
        let share = LeasePolicy.share(
            rank: rank, workerCount: look.view.workers.count, partitionCount: partitionCount)
        isWaitingForPartitions = partitions.count < share
        leases.hurry(isWaitingForPartitions)
        if claimed < decision.claimCount, look.view.leases.contains(where: { !$0.owner.isEmpty && !$0.isLive }) {
            // A dead owner's transaction may still have them locked.
            let ended = try await leases.registry.endSessionsOfExpiredOwners()
            if ended > 0 {
                logger.notice("ended the sessions of workers whose lease expired", metadata: ["sessions": "\(ended)"])
            }
        }
    }

    private nonisolated var me: String { leases.registry.node.id }

    /// Forgets partitions that another worker has claimed.
    private func forgetLost(_ look: LeaseKeeper.Look) {
        var kept: [Owned] = []
        for owned in partitions {
            let lease = look.view.leases.first { $0.partition == owned.state.partition }
            let isOurs = lease?.owner == me && lease?.epoch == owned.state.ownerEpoch
            if isOurs || owned.claimedAt > look.askedAt { kept.append(owned) }
        }
        lose(allBut: kept)
    }

    private func lose(allBut kept: [Owned]) {
        let lost = partitions.count - kept.count
        guard lost > 0 else { return }
        logger.notice(
            "partitions are no longer held: another worker has taken them over, or a rebuild has exchanged the tables",
            metadata: ["partitions": "\(lost)"])
        metrics.leasesMoved(lost, .lost)
        own(kept)
    }

    /// Commits what is under way and gives the partitions to whoever wants them.
    private func release(_ numbers: [Int]) async throws {
        try await settle()
        let leaving = partitions.filter { numbers.contains($0.state.partition) }
        try await leases.registry.release(leaving.map(\.state))
        metrics.leasesMoved(leaving.count, .released)
        own(partitions.filter { !numbers.contains($0.state.partition) })
    }

    /// Claims partitions and finishes what a crash of their owner may have left.
    /// - Returns: how many were to be had.
    private func claim(_ limit: Int, _ partitionCount: Int) async throws -> Int {
        let states = try await leases.registry.claim(
            atMost: limit, partitionCount: partitionCount, held: partitions.map(\.state.partition))
        let claimedAt = ContinuousClock.now
        guard !states.isEmpty else { return 0 }
        metrics.leasesMoved(states.count, .claimed)
        for state in states where state.checkedPosition < state.position { try await recheck.resume(state) }
        let new = states.map { Owned(state: $0, committed: $0.position, claimedAt: claimedAt) }
        own((partitions + new).sorted { $0.state.partition < $1.state.partition })
        return states.count
    }

    /// From now on these are worked on. The cache lets go of the traces of the others.
    private func own(_ owned: [Owned]) {
        let before = Set(partitions.map(\.state.partition))
        let after = Set(owned.map(\.state.partition))
        partitions = owned
        silentSince = silentSince.filter { after.contains($0.key) }
        leases.own(after)
        guard !before.isSubset(of: after) else { return }
        let count = log.partitionCount
        fold.cache.removeAll { !after.contains(LogPartition.of($0.id, count: count)) }
    }

    // MARK: Failures

    private func recover(from error: any Error, failures: Int) async {
        switch error {
        case AggregationError.fenced, AggregationError.versionConflict:
            // Thrown by `settle`, which has seen to the cache.
            logger.info("a batch is folded again", metadata: ["reason": "\(error)"])
        default:
            logger.warning(
                "aggregation begins again from the stored positions",
                metadata: ["reason": "\(error)", "attempt": "\(failures)"])
            if let commit = commitUnderWay {
                commit.task.cancel()
                _ = await commit.task.result
                commitUnderWay = nil
            }
            foldedAhead = []
            fold.cache.removeAll()
        }
        let isReloaded = await reload()
        let pause: Duration
        switch error {
        case AggregationError.versionConflict where isReloaded:
            // Not in step with the worker it collides with.
            pause = .milliseconds(Int.random(in: 0...20))
        case AggregationError.fenced where isReloaded && failures < 4:
            return
        default:
            pause = min(.milliseconds(100) * (1 << min(failures, 6)), .seconds(5))
        }
        try? await Task.sleep(for: pause)
    }

    /// Goes back to the stored positions of the partitions that are still ours.
    /// - Returns: false when they cannot be read; nothing is owned then.
    private func reload() async -> Bool {
        do {
            let stored = try await store.positions()
            var kept: [Owned] = []
            for var owned in partitions {
                guard let state = stored.first(where: { $0.partition == owned.state.partition }),
                    state.ownerEpoch == owned.state.ownerEpoch
                else { continue }
                // A commit of ours whose outcome we did not learn: its links are not checked yet.
                if state.position != owned.committed { try await recheck.resume(state) }
                owned.state = state
                owned.committed = state.position
                kept.append(owned)
            }
            lose(allBut: kept)
            partitions = kept
            return true
        } catch {
            logger.warning("cannot go back to the stored positions", metadata: ["reason": "\(error)"])
            await forgetEverything()
            return false
        }
    }

    private func forgetEverything() async {
        commitUnderWay?.task.cancel()
        _ = await commitUnderWay?.task.result
        commitUnderWay = nil
        foldedAhead = []
        own([])
        fold.cache.removeAll()
        mustLook = true
    }

    private func forget(_ traces: [TraceKey]) {
        for key in traces { fold.cache.remove(key) }
    }

    // MARK: Batches

    /// One batch: read, fold while the one before is being committed, then commit.
    /// - Returns: whether the one before was committed.
    private func step() async throws -> Bool {
        let started = ContinuousClock.now
        let batches = try await read()
        guard !batches.isEmpty else {
            let isCommitted = try await settle()
            await waitForWork()
            return isCommitted
        }
        let moves = batches.map(move)
        var folded = try await fold.fold(batches, moves: moves)
        foldedAhead = folded.touched
        let foldTime = started.duration(to: .now)
        let cycle = started - lastStart
        lastStart = started
        folded.rows.hasTime = foldTime * 2 < cycle
        let isCommitted = try await settle()
        // A batch folded before a pause of this machine is worth nothing any more; the guard would refuse it, too.
        guard leases.isHeld else {
            forget(foldedAhead)
            foldedAhead = []
            return isCommitted
        }
        for move in moves { partitions[index(of: move.partition)].state.position = move.to }
        foldedAhead = []
        commit(folded, foldTime: foldTime)

        let isFull = folded.recordCount >= batchRecords / 2
        let pause = interval(after: folded, foldTime: foldTime, cycle: cycle) - started.duration(to: .now)
        if !isFull, pause > .zero { try await Task.sleep(for: pause) }
        return isCommitted
    }

    /// Until there is something to read, or the leases change.
    private func waitForWork() async {
        let isUnsettled = mustLook || isWaitingForPartitions
        let (log, leases, look) = (log, leases, mustLook ? leases.lastLook?.number ?? 0 : seenLook)
        let positions = partitions.filter { troubles[$0.state.partition] == nil }
            .map { LogPosition(partition: $0.state.partition, offset: $0.state.position) }
        let timeout = isUnsettled ? min(.milliseconds(50), options.idleWait) : options.idleWait
        await withTaskGroup(of: Void.self) { group in
            group.addTask { await log.waitForRecords(beyond: positions, timeout: timeout) }
            group.addTask { await leases.waitForChange(since: look, timeout: timeout) }
            await group.next()
            group.cancelAll()
        }
    }

    /// Time from the start of this batch to the start of the next. Every batch that touches a trace looks at all of it, so
    /// a large trace that comes in single documents would cost the square of its size: while that is most of the work,
    /// batches come less often, so that it takes a twentieth of the time, and nobody waits more than ten times as long.
    /// Also, a batch costs some milliseconds by itself: while a few hundred records come in one interval, it is doubled, unless
    /// that would fill half a batch.
    /// - Parameter cycle: time from the start of the batch before to the start of this one.
    private func interval(after folded: FoldedBatch, foldTime: Duration, cycle: Duration) -> Duration {
        let repeated = folded.knownEntityCount
        let share = Double(repeated) / Double(max(repeated + folded.newEntityCount, 1))
        let expected = Double(folded.recordCount) * (options.batchInterval * 2 / max(cycle, .milliseconds(1)))
        let isSteady = folded.recordCount >= options.batchRecords / 16 && expected < Double(options.batchRecords / 2)
        let interval = options.batchInterval * (isSteady ? 2 : 1)
        return min(max(interval, foldTime * share * 20), options.batchInterval * 10)
    }

    /// What the partitions have beyond their positions, within the bounds of a batch; each gets its share. One that cannot
    /// be read does not stop the others.
    private func read() async throws -> [LogBatch] {
        var result: [LogBatch] = []
        let share = max(batchRecords / max(partitions.count, 1), 1)
        let bytes = max(options.batchBytes / max(partitions.count, 1), 64 << 10)
        var troubles: [Int: SegmentLogError] = [:]
        for owned in partitions {
            let (partition, position) = (owned.state.partition, owned.state.position)
            do throws(SegmentLogError) {
                let batch = try await nextRecords(partition, from: position, maxRecords: share, maxBytes: bytes)
                if let batch, batch.nextOffset > position { result.append(batch) }
            } catch {
                switch error.code {
                case .trimmed(let first) where first > position:
                    // The log's own retention was faster than we: nothing can bring these back, so go on, and say so.
                    logger.error(
                        "records were removed from the log before they were folded",
                        metadata: ["partition": "\(partition)", "from": "\(position)", "to": "\(first)"])
                    metrics.recordsLost(Int(first - position))
                    result.append(
                        LogBatch(partition: partition, from: position, nextOffset: first, endOffset: first, entries: [])
                    )
                case .trimmed, .beyondEnd, .corrupt: troubles[partition] = error
                default: throw error
                }
            }
        }
        report(troubles)
        return result
    }

    /// What is at hand. Of a partition that has been silent for long, though it was not read to its end, the log is asked what
    /// is wrong.
    private func nextRecords(
        _ partition: Int, from position: Int64, maxRecords: Int, maxBytes: Int
    ) async throws(SegmentLogError) -> LogBatch? {
        if let batch = try await log.readAvailable(
            partition: partition, from: position, maxRecords: maxRecords, maxBytes: maxBytes)
        {
            silentSince[partition] = nil
            return batch
        }
        let now = ContinuousClock.now
        let since = silentSince[partition] ?? now
        silentSince[partition] = since
        guard now - since > options.silenceLimit else { return nil }
        silentSince[partition] = nil
        return try await log.read(partition: partition, from: position, maxRecords: maxRecords, maxBytes: maxBytes)
    }

    private func report(_ troubles: [Int: SegmentLogError]) {
        for (partition, error) in troubles where self.troubles[partition] != error {
            logger.error(
                "a partition of the log cannot be read; the others go on",
                metadata: ["partition": "\(partition)", "reason": "\(error)"])
        }
        guard troubles != self.troubles else { return }
        self.troubles = troubles
        metrics.unreadablePartitions(troubles.count)
    }

    private func move(of batch: LogBatch) -> PositionMove {
        let state = partitions[index(of: batch.partition)].state
        // Commits follow one another and each ends with its re-check, so all that precedes this batch is checked.
        return PositionMove(
            partition: batch.partition, from: state.position, to: batch.nextOffset, ownerEpoch: state.ownerEpoch,
            receivedThrough: batch.entries.map(\.receivedAt).max(), checkedPosition: state.position)
    }

    private func index(of partition: Int) -> Int { partitions.firstIndex { $0.state.partition == partition } ?? 0 }

    private func commit(_ folded: FoldedBatch, foldTime: Duration) {
        let (store, recheck, metrics) = (store, recheck, metrics)
        let task = Task {
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
        commitUnderWay = CommitUnderWay(task: task, moves: folded.rows.positions, touched: folded.touched)
    }

    /// Waits for the commit under way. When it was refused, the cache forgets what counted on it; the rest stays.
    /// - Returns: false when there is none.
    @discardableResult
    private func settle() async throws -> Bool {
        guard let commit = commitUnderWay else { return false }
        let outcome = try await commit.task.value
        commitUnderWay = nil
        if outcome == .committed {
            for move in commit.moves {
                guard let index = partitions.firstIndex(where: { $0.state.partition == move.partition }) else {
                    continue
                }
                partitions[index].committed = move.to
            }
            log.positionsCommitted(commit.moves.map { LogPosition(partition: $0.partition, offset: $0.to) })
            batchRecords = min(batchRecords * 2, options.batchRecords)
            return true
        }
        forget(commit.touched + foldedAhead)
        foldedAhead = []
        guard case .versionConflict(let keys) = outcome else { throw AggregationError.fenced }
        batchRecords = max(1, min(batchRecords, commit.touched.count) / 4)
        throw AggregationError.versionConflict(count: keys.count)
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
