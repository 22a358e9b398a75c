// The parts of a rebuild that do not come from a partition of the log: folding stored documents of before the replay, and
// evaluating links until they come to rest. Their commits move a pseudo-partition, whose position numbers them; so they, too,
// happen once or not at all, and their graph blocks have names of their own.

import SegmentLog
import Segments
import TraceAssembly
import TraceStore

/// Owned by one task at a time; folds on a thread of its own.
actor RebuildWork {
    private nonisolated let thread = WorkerThread(name: "rebuild-work")
    nonisolated var unownedExecutor: UnownedSerialExecutor { thread.asUnownedSerialExecutor() }

    /// Documents of a page of traces, about.
    private static let pageBytes = 8 << 20
    private static let touchesPerCommit = 500

    private let store: TraceStore
    private let options: RebuildOptions
    private var state: PartitionState

    /// - Parameter state: of `RebuildTables.workPartition`, claimed.
    init(store: TraceStore, options: RebuildOptions, state: PartitionState) {
        self.store = store
        self.options = options
        self.state = state
    }

    private func commit(_ fold: BatchFold, _ batches: [LogBatch], count: Int) async throws -> FoldedBatch {
        let move = PositionMove(
            partition: state.partition, from: state.position, to: state.position + Int64(max(count, 1)),
            ownerEpoch: state.ownerEpoch)
        let folded = try await fold.fold(batches, moves: [move])
        try await store.commitRebuilt(folded.rows)
        state.position = move.to
        return folded
    }

    // MARK: Stored documents

    /// Folds the documents that the serving tables have of records before the replay, trace by trace in order of account and id.
    /// - Parameters:
    ///   - last: the last trace that is there already.
    ///   - progress: is told how many traces were folded.
    func foldDocuments(
        of source: TraceStore, before starts: [Int: Int64], after last: TraceKey?,
        progress: @escaping @Sendable (Int) -> Void
    ) async throws -> Int {
        var limits = options.segmentLimits
        limits.documentBytes = .max
        // They were accepted once and count whatever the limits are today.
        let fold = BatchFold(store: store, limits: .unlimited, segmentLimits: limits, cacheCapacity: 0)
        var traceCount = 0
        for account in try await source.accountsWithDocuments() {
            if let last, account.rawValue < last.account.rawValue { continue }
            var next: TraceID? = TraceID(high: 0, low: 0)
            if let last, account == last.account { next = last.id.next }
            var limit = 100
            while let first = next {
                try Task.checkCancellation()
                let page = try await source.documentedTraces(account: account, from: first, limit: limit)
                guard let end = page.last?.id else { break }
                next = end.next
                let bytes = page.reduce(0) { $0 + $1.documents.reduce(0) { $0 + $1.bytes.count } }
                limit = min(max(Self.pageBytes / max(bytes / page.count, 1), 10), 2_000)

                let batches = Self.batches(of: page, account: account, before: starts)
                fold.exceeded = Set(page.filter(\.limitExceeded).map { TraceKey(account: account, id: $0.id) })
                if !batches.isEmpty { _ = try await commit(fold, batches, count: page.count) }
                traceCount += page.count
                progress(page.count)
            }
        }
        return traceCount
    }

    /// The documents as records, in their order; a new batch where the partition changes.
    private static func batches(of page: [StoredTrace], account: AccountID, before starts: [Int: Int64]) -> [LogBatch] {
        var batches: [LogBatch] = []
        for trace in page {
            for document in trace.documents where document.offset < starts[document.partition] ?? 0 {
                if batches.last?.partition != document.partition {
                    batches.append(
                        LogBatch(partition: document.partition, from: 0, nextOffset: 0, endOffset: 0, entries: []))
                }
                batches[batches.count - 1].entries.append(
                    LogEntry(
                        offset: document.offset, kind: .document, traceID: trace.id, account: account,
                        receivedAt: document.receivedAt, source: .aggregator, value: document.bytes))
            }
        }
        return batches
    }

    // MARK: Links

    /// Looks at all links, and evaluates every consumer again whose facts are not those of its targets now.
    func settleAllLinks() async throws {
        var last: (account: AccountID, link: StoredLink)?
        while true {
            try Task.checkCancellation()
            let page = try await store.linkPage(after: last, limit: 1_000)
            guard let end = page.last else { return }
            last = end
            var outdated: [TraceKey] = []
            for (account, rows) in Dictionary(grouping: page, by: \.account) {
                outdated += try await LinkRecheck.outdated(Set(rows.map(\.link)), account: account, in: store)
                    .map { TraceKey(account: account, id: $0) }
            }
            try await settleLinks(evaluating: outdated)
        }
    }

    /// The same after changes of these traces.
    func settleLinks(of changed: Set<TraceKey>) async throws {
        var rest = Array(changed)[...]
        while !rest.isEmpty {
            let keys = Array(rest.prefix(2_000))
            rest = rest.dropFirst(2_000)
            try await settleLinks(evaluating: try await LinkRecheck.outdated(changed: keys, consumers: keys, in: store))
        }
    }

    private func settleLinks(evaluating consumers: [TraceKey]) async throws {
        var outdated = consumers
        var rounds = 0
        // A chain of linked roots takes a round for each of its traces.
        while !outdated.isEmpty {
            rounds += 1
            guard rounds < 10_000 else { throw RebuildError.linksDoNotSettle }
            var changed: [TraceKey] = []
            var rest = outdated[...]
            while !rest.isEmpty {
                let keys = rest.prefix(Self.touchesPerCommit)
                rest = rest.dropFirst(Self.touchesPerCommit)
                let touches = keys.map {
                    LogEntry(
                        offset: 0, kind: .touch, traceID: $0.id, account: $0.account, receivedAt: 0,
                        source: .aggregator,
                        hasValue: false)
                }
                let batch = LogBatch(
                    partition: state.partition, from: 0, nextOffset: 0, endOffset: 0, entries: touches)
                let fold = BatchFold(
                    store: store, limits: .unlimited, segmentLimits: options.segmentLimits, cacheCapacity: 0)
                changed += try await commit(fold, [batch], count: touches.count).changed
            }
            outdated = try await LinkRecheck.outdated(changed: changed, consumers: changed, in: store)
        }
    }
}

extension TraceID {
    /// The next one in the order of the tables; nil after the last.
    var next: TraceID? {
        guard low == .max else { return TraceID(high: high, low: low + 1) }
        return high == .max ? nil : TraceID(high: high + 1, low: 0)
    }
}
