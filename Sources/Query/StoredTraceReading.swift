// The reads of the query role from the real store and log; made by the executable.

import SearchIndex
import SegmentLog
import Segments
import Synchronization
import TraceStore

/// The reads of a node with a trace store and a log.
public struct StoredTraceReading: TraceReading {
    private let store: TraceStore
    private let log: any SegmentLog
    private let counts = PartitionCounts()

    /// Numbers of partitions that the log has had since this node runs: nodes that have not heard of new partitions
    /// yet append by an older number, and what they have appended may still be waiting.
    private final class PartitionCounts: Sendable {
        private let seen = Mutex<[Int]>([])

        func all(with count: Int) -> [Int] {
            seen.withLock { seen in
                if seen.last != count { seen.append(count) }
                return seen
            }
        }
    }

    public init(store: TraceStore, log: any SegmentLog) {
        self.store = store
        self.log = log
        _ = counts.all(with: log.partitionCount)
    }

    public func storedTraces(account: AccountID, ids: [TraceID]) async throws -> [StoredTrace] {
        try await store.storedTraces(account: account, ids: ids)
    }

    public func summaryPage(
        account: AccountID, rangeType: TimeRangeType, window: Range<Int64>, after: SummaryCandidate?, limit: Int
    ) async throws -> [SummaryCandidate] {
        try await store.summaryPage(account: account, rangeType: rangeType, window: window, after: after, limit: limit)
    }

    public func searchPage(
        account: AccountID, rangeType: TimeRangeType, window: Range<Int64>, plan: SearchPlan, after: SummaryCandidate?,
        limit: Int
    ) async throws -> SearchPage? {
        try await store.searchPage(
            account: account, rangeType: rangeType, window: window, plan: plan, after: after, limit: limit)
    }

    public func graphBlocks(
        account: AccountID, groupKey: Int64?, minutes: Range<Int64>, reading wanted: [Range<Int64>]
    ) async throws -> NamedGraphBlocks {
        try await store.namedGraphBlocks(account: account, groupKey: groupKey, minutes: minutes, reading: wanted)
    }

    public func groupSet(account: AccountID) async throws -> GroupSet { try await store.groups(account: account) }

    public func lastRemoval(account: AccountID) async throws -> Int64 { try await store.lastRemoval(account: account) }

    public func hasRemoved(
        _ data: RetainedData, account: AccountID, seconds: Range<Int64>, since number: Int64
    ) async throws -> Bool {
        try await store.hasRemoved(data, account: account, seconds: seconds, since: number)
    }

    public func partition(of id: TraceID) -> Int { LogPartition.of(id, count: log.partitionCount) }

    public func partitions(of id: TraceID) -> Set<Int> {
        Set(counts.all(with: log.partitionCount).map { LogPartition.of(id, count: $0) })
    }

    public func endOffsets() async throws -> [Int64] { try await log.endOffsets() }

    /// A partition the aggregator has not touched yet is at the start of the log.
    public func positions() async throws -> [LogPosition] {
        let states = try await store.positions()
        var positions = (0..<log.partitionCount).map { LogPosition(partition: $0, offset: 0) }
        for state in states where positions.indices.contains(state.partition) {
            positions[state.partition].offset = state.position
        }
        return positions
    }

    public func waitForPositions(_ offsets: [LogPosition], timeout: Duration) async throws -> Bool {
        try await store.waitForPositions(offsets.map { ($0.partition, $0.offset) }, timeout: timeout)
    }

    public func backlog(beyond positions: [LogPosition]) async throws -> [LogBacklog] {
        try await log.backlog(beyond: positions)
    }
}
