// What the query role reads: stored traces, the search index, graph blocks, and how far the aggregator has come.
// `QueryService` asks; `StoredTraceReading` answers from the store and the log, tests answer from memory.

import FilterExpressions
import SearchIndex
import SegmentLog
import Segments
import TraceStore

/// The reads of the query role. Every call names the account; nothing crosses accounts.
public protocol TraceReading: Sendable {
    /// Traces in the order of `ids`; unknown ids are absent.
    func storedTraces(account: AccountID, ids: [TraceID]) async throws -> [StoredTrace]

    /// Traces that have a root and whose clock lies in the window (seconds), newest clock first, tie by smaller id,
    /// those behind `after` in that order, at most `limit`.
    func summaryPage(
        account: AccountID, rangeType: TimeRangeType, window: Range<Int64>, after: SummaryCandidate?, limit: Int
    ) async throws -> [SummaryCandidate]

    /// Like `summaryPage`, less traces that cannot match a plan: the search index narrows the candidates.
    /// - Returns: nil when it does not; `summaryPage` then has them.
    func searchPage(
        account: AccountID, rangeType: TimeRangeType, window: Range<Int64>, plan: SearchPlan, after: SummaryCandidate?,
        limit: Int
    ) async throws -> SearchPage?

    /// Blocks of the minutes `wanted` (minutes since 1970), in order of minute, and for all `minutes` the names of their
    /// rows, of one snapshot of the store.
    /// - Parameter groupKey: of the members of this group; nil: of all traces.
    func graphBlocks(
        account: AccountID, groupKey: Int64?, minutes: Range<Int64>, reading wanted: [Range<Int64>]
    ) async throws -> NamedGraphBlocks

    /// The account's groups as they are now, `Default` among them.
    func groupSet(account: AccountID) async throws -> GroupSet

    /// The number of retention's newest removal of the account; later ones have greater numbers.
    func lastRemoval(account: AccountID) async throws -> Int64

    /// Whether retention has removed something of a time (seconds) since that removal.
    func hasRemoved(
        _ data: RetainedData, account: AccountID, seconds: Range<Int64>, since number: Int64
    ) async throws -> Bool

    /// The partition a trace lives in.
    func partition(of id: TraceID) -> Int

    /// Every partition that may hold documents of a trace. More than one after the log has got more partitions.
    func partitions(of id: TraceID) -> Set<Int>

    /// For each partition the offset the next record will get.
    func endOffsets() async throws -> [Int64]

    /// For each partition the offset up to which the aggregator has committed.
    func positions() async throws -> [LogPosition]

    /// Returns once the aggregator has committed up to the offsets, or after the time-out (false).
    func waitForPositions(_ offsets: [LogPosition], timeout: Duration) async throws -> Bool

    /// What the log holds beyond the positions.
    func backlog(beyond positions: [LogPosition]) async throws -> [LogBacklog]
}

extension TraceReading {
    public func partitions(of id: TraceID) -> Set<Int> { [partition(of: id)] }

    /// Of several traces.
    func partitions(of ids: [TraceID]) -> Set<Int> { ids.reduce(into: []) { $0.formUnion(partitions(of: $1)) } }

    /// What `group.name` and `group.arn` stand for at this moment.
    func groups(account: AccountID) async throws -> GroupResolver {
        GroupResolver(of: try await groupSet(account: account).groups)
    }
}
