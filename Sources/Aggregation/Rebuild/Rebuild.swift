// `beamline rebuild` without its command line: everything that came from the log is folded again into a second set of tables
// while the first serves and grows; then the aggregators are held still for a moment, both are compared, and exchanged. Killed
// at any moment, it goes on where it was. Why it is done like this: `Aggregation.docc/Rebuild.md`.

import Logging
import PostgreSQL
import SegmentLog
import Segments
import TraceStore

public struct Rebuild: Sendable {
    private let log: any SegmentLog
    private let database: PostgresConfiguration
    private let options: RebuildOptions
    private let logger: Logger
    private let clock: @Sendable () -> Micros
    private let report: @Sendable (RebuildProgress) -> Void

    /// - Parameters:
    ///   - log: of the same cluster; its work (`run()`) is the caller's.
    ///   - clock: microseconds since 1970.
    ///   - report: is told how far the work is, from any thread.
    public init(
        log: any SegmentLog, database: PostgresConfiguration, options: RebuildOptions = RebuildOptions(),
        logger: Logger,
        clock: @escaping @Sendable () -> Micros, report: @escaping @Sendable (RebuildProgress) -> Void = { _ in }
    ) {
        self.log = log
        self.database = database
        self.options = options
        self.logger = logger
        self.clock = clock
        self.report = report
    }

    /// Rebuilds; returns when the new tables serve, or when they differ and that was not to be accepted. They are kept then:
    /// the next run has only to catch up.
    public func run() async throws -> RebuildOutcome {
        let tables = try await RebuildTables.open(database: database)
        let live = TraceStore(database: database, logger: logger)
        let new = TraceStore.rebuilding(tables, writerCount: options.workerCount + 1, logger: logger)
        let training = Task { await new.run() }
        func close() async {
            training.cancel()
            await training.value
            await new.close()
            await live.close()
            await tables.close()
        }
        do {
            try await live.checkSchema()
            let outcome = try await run(tables, live: live, new: new)
            await close()
            return outcome
        } catch {
            await close()
            throw error
        }
    }

    private func run(_ tables: RebuildTables, live: TraceStore, new: TraceStore) async throws -> RebuildOutcome {
        if options.isRestarting { try await tables.discard() }
        var outcome: RebuildOutcome
        if let plan = try await tables.begun() {
            outcome = RebuildOutcome(plan: plan)
            outcome.isContinued = true
        } else {
            let plan = try await makePlan(live)
            try await tables.begin(plan)
            outcome = RebuildOutcome(plan: plan)
        }
        let starts = outcome.plan.startOffsets
        let hasTables = outcome.isContinued || starts.values.contains { $0 > 0 }
        let expected = try await targets(live).values.reduce(0, +)
        var crew = try await hire(new, newRecords: hasTables ? nil : Int(expected))

        if !outcome.plan.hasDocuments {
            if starts.values.contains(where: { $0 > 0 }) {
                outcome.documentedTraceCount = try await foldDocuments(tables, live: live, starts: starts, crew: crew)
            }
            try await tables.documentsAreDone(outcome.plan)
        }

        let began = ContinuousClock.now
        let counter = Counter()
        // The log grows meanwhile: what came during a round is the next, shorter one.
        while true {
            let targets = try await targets(live)
            let left = crew.remaining(to: targets)
            counter.expect(left)
            if left == 0 { break }
            try await replay(&crew, to: targets, counter: counter, new: new, collectsKeys: false)
            if left < options.batchRecords { break }
        }
        outcome.replayTime = began.duration(to: .now)
        outcome.recordCount = counter.done

        if !outcome.plan.hasIndexes {
            report(RebuildProgress(.indexes))
            try await tables.createIndexes()
        }
        report(RebuildProgress(.links))
        try await crew.work.settleAllLinks()
        await crew.forget()
        try await new.removeDays(before: firstDay, isServing: false)
        try await tables.finishLoading(outcome.plan)

        report(RebuildProgress(.comparison))
        // From here on every trace that is touched is looked at again.
        var changed: Set<TraceKey> = []
        var documents = DocumentComparison(old: live, new: new)
        let compared = Counter()
        try await documents.compareAll { count in
            compared.add(count)
            report(RebuildProgress(.comparison, done: compared.done))
        }
        changed.formUnion(try await replay(&crew, to: try await targets(live), counter: counter, new: new))
        try await crew.work.settleLinks(of: changed)
        await crew.forget()

        try await finish(tables, live: live, new: new, crew: crew, changed: changed, documents: documents, &outcome)
        return outcome
    }

    /// Retention keeps this day (since 1970) and later ones.
    private var firstDay: Int { Int(clock() / 86_400_000_000) - options.retentionDays }

    // MARK: The plan

    private func makePlan(_ live: TraceStore) async throws -> RebuildPlan {
        let positions = Dictionary(try await live.positions().map { ($0.partition, $0.position) }) { $1 }
        let (begins, ends) = (try await log.startOffsets(), try await log.endOffsets())
        var starts: [Int: Int64] = [:]
        for partition in 0..<min(begins.count, ends.count) {
            var start = begins[partition]
            if let from = options.from {
                start = try await first(receivedFrom: from, in: partition, from: start, to: ends[partition])
            }
            // Aggregation goes on from its position whatever the log still has.
            starts[partition] = min(start, positions[partition] ?? 0)
        }
        return RebuildPlan(begunAt: clock(), from: options.from, startOffsets: starts)
    }

    /// The first record received at or after a time, by halving: receipts grow with the offsets, but for the differences
    /// between the clocks of ingest nodes. Whatever comes out is a place where a replay may begin.
    private func first(receivedFrom time: Micros, in partition: Int, from start: Int64, to end: Int64) async throws
        -> Int64
    {
        var (low, high) = (start, end)
        while low < high {
            let middle = low + (high - low) / 2
            let batch: LogBatch
            do {
                batch = try await log.read(partition: partition, from: middle, maxRecords: 1, maxBytes: 1)
            } catch let error {
                guard case .trimmed(let first) = error.code, first > middle else { throw error }
                low = min(first, high)
                continue
            }
            guard let entry = batch.entries.first else { return middle }
            if entry.receivedAt < time { low = middle + 1 } else { high = middle }
        }
        return low
    }

    // MARK: Folding

    /// Who folds, and how far they are.
    private struct Crew {
        var work: RebuildWork
        var workers: [(worker: ReplayWorker, states: [PartitionState])]

        func remaining(to targets: [Int: Int64]) -> Int {
            workers.reduce(0) { sum, member in
                sum + member.states.reduce(0) { $0 + Int(max(0, (targets[$1.partition] ?? 0) - $1.position)) }
            }
        }

        func forget() async { for member in workers { await member.worker.forget() } }
    }

    /// Claims the partitions of the new tables: an earlier rebuild that still runs can commit nothing more.
    /// - Parameter newRecords: number of records to come into empty tables; nil: they are not empty.
    private func hire(_ new: TraceStore, workerCount: Int? = nil, newRecords: Int? = nil) async throws -> Crew {
        let work = RebuildTables.workPartition
        let states = try await new.claim(partitions: [work] + Array(0..<log.partitionCount), owner: "rebuild")
        guard let own = states.first(where: { $0.partition == work }) else { throw RebuildError.fenced }
        let partitions = states.filter { $0.partition >= 0 }
        let count = max(1, min(workerCount ?? options.workerCount, partitions.count))
        return Crew(
            work: RebuildWork(store: new, options: options, state: own),
            workers: (0..<count).map { number in
                (
                    ReplayWorker(log: log, store: new, options: options, newRecords: newRecords.map { $0 / count }),
                    partitions.enumerated().filter { $0.offset % count == number }.map(\.element)
                )
            })
    }

    /// How far the serving tables are: further the new ones must not go.
    private func targets(_ live: TraceStore) async throws -> [Int: Int64] {
        Dictionary(try await live.positions().map { ($0.partition, $0.position) }) { $1 }
    }

    private func foldDocuments(
        _ tables: RebuildTables, live: TraceStore, starts: [Int: Int64], crew: Crew
    ) async throws -> Int {
        let total = try await tables.storedTraceCount()
        let before = try await tables.rebuiltTraces()
        let counter = Counter(done: before.count)
        return try await crew.work.foldDocuments(of: live, before: starts, after: before.last) { [report] count in
            report(RebuildProgress(.documents, done: counter.add(count), total: total))
        }
    }

    /// Replays up to the targets; begins again from the stored positions when two partitions changed one trace (their number
    /// was raised while it was growing) or PostgreSQL was away.
    /// - Returns: the traces of all records.
    @discardableResult
    private func replay(
        _ crew: inout Crew, to targets: [Int: Int64], counter: Counter, new: TraceStore, collectsKeys: Bool = true
    ) async throws -> Set<TraceKey> {
        var keys: Set<TraceKey> = []
        var failures = 0
        // The log knows then that it reaches as far as the targets.
        _ = try await log.endOffsets()
        while true {
            do {
                let report = report
                let results = try await withThrowingTaskGroup(
                    of: (Int, [PartitionState], Set<TraceKey>).self
                ) { group in
                    for (number, member) in crew.workers.enumerated() {
                        group.addTask {
                            let result = try await member.worker.replay(
                                member.states, to: targets, collectsKeys: collectsKeys
                            ) { count in
                                let done = counter.add(count)
                                report(RebuildProgress(.log, done: done, total: counter.total))
                            }
                            return (number, result.states, result.keys)
                        }
                    }
                    var results: [(Int, [PartitionState], Set<TraceKey>)] = []
                    for try await result in group { results.append(result) }
                    return results
                }
                for (number, states, touched) in results {
                    crew.workers[number].states = states
                    keys.formUnion(touched)
                }
                return keys
            } catch {
                let isConflict = if case RebuildError.conflict = error { true } else { false }
                let isAway =
                    (error as? TraceStoreError)?.isRetriable ?? (error as? SegmentLogError)?.isRetriable ?? false
                failures += 1
                guard isConflict || isAway, failures < 20, !Task.isCancelled else { throw error }
                logger.warning("the rebuild begins again from its positions", metadata: ["reason": "\(error)"])
                if isAway { try await Task.sleep(for: .milliseconds(500)) }
                // The traces of what was committed before the failure are not known: too late to begin again.
                guard !collectsKeys else { throw error }
                crew = try await hire(new, workerCount: isConflict ? 1 : nil)
            }
        }
    }

    // MARK: The end

    /// What is done while the aggregators stand still.
    private func finish(
        _ tables: RebuildTables, live: TraceStore, new: TraceStore, crew: Crew, changed: Set<TraceKey>,
        documents: DocumentComparison, _ outcome: inout RebuildOutcome
    ) async throws {
        report(RebuildProgress(.exchange))
        var (crew, changed, documents) = (crew, changed, documents)
        let fence = try await tables.raiseFence(outcome.plan)
        let began = ContinuousClock.now
        do {
            let targets = Dictionary(fence.positions.map { ($0.partition, $0.position) }) { $1 }
            let last = try await replay(&crew, to: targets, counter: Counter(), new: new)
            try await crew.work.settleLinks(of: last)
            changed.formUnion(last)
            try await tables.alignInbox()

            var comparisons = try await tables.compareRows(firstDay: firstDay)
            comparisons.append(try await documents.compareAgain(changed, firstDay: firstDay))
            let pending = try await PendingLinks(
                try await tables.differingLinks(), fence: fence, log: log, old: live, new: new)
            comparisons.append(pending.comparison)
            comparisons.append(
                try await GraphComparer(old: live, new: new, corrections: pending.corrections).compare(
                    firstDay: firstDay))
            outcome.comparisons = comparisons
            if outcome.isIdentical || options.acceptsDifferences {
                try await tables.exchange(fence)
                outcome.isExchanged = true
            } else {
                await tables.lowerFence()
            }
            outcome.fencedTime = began.duration(to: .now)
        } catch {
            await tables.lowerFence()
            throw error
        }
    }
}
