// A store and a log in memory: documents are "appended" to partitions and become visible when they are "committed".
// What it answers is computed from the documents by the rules of `traces.md` §7, not by any index.

import Query
import SearchIndex
import SegmentLog
import Segments
import ServiceGraph
import Synchronization
import TraceAssembly
import TraceStore

final class InMemoryTraces: TraceReading {
    struct Record {
        var account: AccountID
        var traceID: TraceID
        var receivedAt: Micros
        var bytes: [UInt8]
    }

    /// A row of the graph's tables. Another content is another row, so it has another name.
    struct BlockRow {
        var name: Int
        var version: Int
        var minute: Int64
        var bytes: [UInt8]

        var bytesOfName: [UInt8] { Array("\(name)/\(version)/\(minute);".utf8) }
    }

    struct State {
        var log: [[Record]]
        var committed: [Int]
        /// Offsets of the records of each trace.
        var offsets: [TraceKey: [Int]] = [:]
        /// Ids whose rows cannot be read.
        var corrupt: Set<TraceID> = []
        /// What every read throws.
        var failure: TraceStoreError?
        /// Calls of `storedTraces` and `summaryPage`.
        var largestRead = 0
        var largestScan = 0
        var graphReads = 0
        /// What the graph is made from, if anything is here.
        var blockRows: [BlockRow] = []
        /// The rows of the last read, and what happens to them right after each.
        var lastRows: [BlockRow] = []
        var afterGraphRead: (@Sendable (inout [BlockRow]) -> Void)?
        /// Minutes of the blocks that were read.
        var minutesRead: [Int64] = []
        /// Commits everything as soon as somebody waits for it.
        var commitsOnWait = false
        var groups: [TraceGroup] = []
        var waits = 0
        /// Ids whose rows are still there, but not their documents.
        var withoutDocuments: Set<TraceID> = []
        /// What retention has removed, by the number of the removal.
        var removals: [(data: RetainedData, seconds: ClosedRange<Int64>)] = []
    }

    static let partitions = 4
    let state = Mutex(
        State(log: Array(repeating: [], count: partitions), committed: Array(repeating: 0, count: partitions)))

    /// Appends a document; `commit()` makes it visible.
    func append(_ text: String, account: AccountID, receivedAt: Micros) throws {
        let bytes = Array(text.utf8)
        let id = try SegmentParser().validate(bytes)
        let partition = partition(of: id)
        state.withLock { state in
            state.offsets[TraceKey(account: account, id: id), default: []].append(state.log[partition].count)
            state.log[partition].append(Record(account: account, traceID: id, receivedAt: receivedAt, bytes: bytes))
        }
    }

    func commit() { state.withLock { state in state.committed = state.log.map(\.count) } }

    func add(_ text: String, account: AccountID, receivedAt: Micros = 1_700_000_000_000_000) throws {
        try append(text, account: account, receivedAt: receivedAt)
        commit()
    }

    // MARK: - TraceReading

    func storedTraces(account: AccountID, ids: [TraceID]) async throws -> [StoredTrace] {
        try state.withLock { state in
            if let failure = state.failure { throw failure }
            state.largestRead = max(state.largestRead, ids.count)
            if ids.contains(where: state.corrupt.contains) { throw TraceStoreError(.corrupt, "bad row") }
            return ids.compactMap { id in
                guard var trace = stored(account: account, id: id, state) else { return nil }
                if state.withoutDocuments.contains(id) { trace.documents = [] }
                return trace
            }
        }
    }

    private func stored(account: AccountID, id: TraceID, _ state: State) -> StoredTrace? {
        let partition = partition(of: id)
        let offsets = state.offsets[TraceKey(account: account, id: id)] ?? []
        let documents = offsets.filter { $0 < state.committed[partition] }.map { offset in
            let record = state.log[partition][offset]
            return StoredDocument(
                receivedAt: record.receivedAt, partition: partition, offset: Int64(offset), bytes: record.bytes[...])
        }
        guard !documents.isEmpty else { return nil }
        return StoredTrace(
            id: id, version: 1, revision: documents.count, limitExceeded: false, day: 0, documents: documents)
    }

    private func forests(account: AccountID, _ state: State) -> [Forest] {
        let parser = SegmentParser()
        return state.offsets.keys.filter { $0.account == account }.map(\.id).sorted().compactMap { id in
            guard let stored = stored(account: account, id: id, state) else { return nil }
            var trace = Trace(id: id, account: account)
            for document in stored.documents {
                _ = document.bytes.withUnsafeBytes { bytes in
                    (try? parser.parse(bytes)).map { trace.fold($0, bytes: bytes, receivedAt: document.receivedAt) }
                }
            }
            return Forest(trace)
        }
    }

    func summaryPage(
        account: AccountID, rangeType: TimeRangeType, window: Range<Int64>, after: SummaryCandidate?, limit: Int
    ) async throws -> [SummaryCandidate] {
        try state.withLock { state in
            if let failure = state.failure { throw failure }
            state.largestScan = max(state.largestScan, limit)
            let all = forests(account: account, state).compactMap { forest -> SummaryCandidate? in
                guard forest.root >= 0 else { return nil }
                let clocks = SummaryClocks(forest: forest)
                let times =
                    switch rangeType {
                    case .traceID: clocks.rootStart.map { [$0] } ?? []
                    case .event: clocks.receipts
                    case .service: clocks.ends
                    }
                return times.filter { window.contains($0 / 1_000_000) }.max().map {
                    SummaryCandidate(id: forest.trace.id, clock: $0)
                }
            }
            let sorted = all.sorted { ($1.clock, $0.id) < ($0.clock, $1.id) }
            guard let after else { return Array(sorted.prefix(limit)) }
            return Array(sorted.drop { ($0.clock, after.id) > (after.clock, $0.id) || $0 == after }.prefix(limit))
        }
    }

    /// An index that knows nothing: every trace is a candidate.
    func searchPage(
        account: AccountID, rangeType: TimeRangeType, window: Range<Int64>, plan: SearchPlan, after: SummaryCandidate?,
        limit: Int
    ) async throws -> SearchPage? { nil }

    /// The rows of `blockRows`, or one per minute with the sum of all traces, admitted to every group by version 1.
    func graphBlocks(
        account: AccountID, groupKey: Int64?, minutes: Range<Int64>, reading wanted: [Range<Int64>]
    ) async throws -> NamedGraphBlocks {
        try state.withLock { state in
            if let failure = state.failure { throw failure }
            state.graphReads += 1
            var rows = state.blockRows
            if rows.isEmpty {
                var sum = Contributions()
                for forest in forests(account: account, state) { sum.add(forest, links: [:]) }
                for (number, block) in sum.blocks().enumerated() {
                    rows.append(BlockRow(name: number, version: 1, minute: block.minute, bytes: block.bytes))
                }
            }
            var result = NamedGraphBlocks(minutesRead: wanted)
            for row in rows.sorted(by: { ($0.minute, $0.name) < ($1.minute, $1.name) }) {
                if minutes.contains(row.minute) { result.names[row.minute, default: []] += row.bytesOfName }
                guard wanted.contains(where: { $0.contains(row.minute) }) else { continue }
                result.rows.append(
                    GroupBlockRow(version: groupKey == nil ? 0 : row.version, minute: row.minute, bytes: row.bytes))
            }
            state.minutesRead += result.rows.map(\.minute)
            state.lastRows = rows
            state.afterGraphRead?(&state.blockRows)
            return result
        }
    }

    func groupSet(account: AccountID) async throws -> GroupSet {
        let groups = state.withLock { $0.groups } + [.defaultGroup]
        return GroupSet(revision: 1, groups: groups)
    }

    func lastRemoval(account: AccountID) async throws -> Int64 { state.withLock { Int64($0.removals.count) } }

    func hasRemoved(
        _ data: RetainedData, account: AccountID, seconds: Range<Int64>, since number: Int64
    ) async throws -> Bool {
        state.withLock { state in
            state.removals.dropFirst(Int(number)).contains { $0.data == data && seconds.overlaps($0.seconds) }
        }
    }

    func partition(of id: TraceID) -> Int { LogPartition.of(id, count: Self.partitions) }

    func endOffsets() async throws -> [Int64] { state.withLock { $0.log.map { Int64($0.count) } } }

    func positions() async throws -> [LogPosition] {
        state.withLock {
            $0.committed.enumerated().map { LogPosition(partition: $0.offset, offset: Int64($0.element)) }
        }
    }

    /// Never waits: either everything is committed by now (or at once), or the time is taken to have passed.
    func waitForPositions(_ offsets: [LogPosition], timeout: Duration) async throws -> Bool {
        state.withLock { state in
            state.waits += 1
            if state.commitsOnWait { state.committed = state.log.map(\.count) }
            return offsets.allSatisfy { Int64(state.committed[$0.partition]) >= $0.offset }
        }
    }

    func backlog(beyond positions: [LogPosition]) async throws -> [LogBacklog] {
        state.withLock { state in
            positions.map { position in
                let waiting = state.log[position.partition].dropFirst(Int(position.offset))
                return LogBacklog(
                    partition: position.partition, endOffset: Int64(state.log[position.partition].count),
                    recordCount: Int64(waiting.count),
                    oldestReceipt: waiting.map(\.receivedAt).min())
            }
        }
    }
}
