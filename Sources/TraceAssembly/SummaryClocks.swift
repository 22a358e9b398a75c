// The three clocks a trace is found by (`traces.md` §7). In: a forest. Out: what the trace's search row holds.
// Called by the aggregator for every changed trace.

import Segments

/// Windows are whole seconds, so one time per second is enough: the newest of each, which is also the sort key.
public struct SummaryClocks: Sendable, Equatable {
    /// `TraceId`: start of the root; nil when there is no root, and so no summary.
    public var rootStart: Micros?
    /// `Event`: receipts of the documents that changed the trace (ruling R-22), ascending, the newest of each second.
    public var receipts: [Micros]
    /// `Service`: ends of segments and leaf calls, also of a leaf call in an open segment (ruling R-22); as `receipts`.
    public var ends: [Micros]

    public init(forest: Forest) {
        rootStart = forest.root >= 0 ? forest[forest.root].start : nil
        receipts = SummaryClocks.newestPerSecond(forest.trace.receipts)
        var ends: [Micros] = []
        for index in 0..<Int32(forest.count) where forest.isSegment(index) || forest.isLeafCall(index) {
            if let end = forest[index].end { ends.append(end) }
        }
        self.ends = SummaryClocks.newestPerSecond(ends)
    }

    private static func newestPerSecond(_ times: [Micros]) -> [Micros] {
        var result: [Micros] = []
        for time in times.sorted() {
            if let last = result.last, second(of: last) == second(of: time) {
                result[result.count - 1] = time
            } else {
                result.append(time)
            }
        }
        return result
    }

    /// Floor: times before 1970 are legal input.
    private static func second(of time: Micros) -> Int64 {
        let (quotient, remainder) = time.quotientAndRemainder(dividingBy: 1_000_000)
        return remainder < 0 ? quotient - 1 : quotient
    }
}
