// The time window of a query: `[StartTime, EndTime)` in whole seconds (`traces.md` §7, `service-graph.md` §1, ruling 5, 11).

import Segments

public enum TimeWindow {
    /// Longest window of the trace and graph queries.
    public static let maxSeconds: Int64 = 24 * 3600

    /// Reads `StartTime` and `EndTime`, cut to whole seconds.
    /// - Throws: missing or bad members, `End time cannot be earlier than start time`, `Time range cannot be longer than 24 hours`.
    static func read(_ members: RequestMembers) throws(APIError) -> Range<Int64> {
        let start = try members.requiredTimestamp("StartTime")
        let end = try members.requiredTimestamp("EndTime")
        guard end >= start else { throw .invalidRequest("End time cannot be earlier than start time") }
        let window = floorDivide(start, 1_000_000)..<floorDivide(end, 1_000_000)
        guard window.upperBound - window.lowerBound <= maxSeconds else {
            throw .invalidRequest("Time range cannot be longer than 24 hours")
        }
        return window
    }
}
