// `GetTraceSummaries`, the request (`traces.md` §7, `api.md` §5.2). The answer is written by `TraceSummaryJSON`.

import FilterExpressions
import JSONText
import Segments

public struct GetTraceSummariesRequest: Sendable, Equatable {
    public static let operation = "GetTraceSummaries"

    /// Which time of a trace the window is compared with.
    public enum TimeRangeType: String, Sendable, CaseIterable {
        /// Start of the root.
        case traceID = "TraceId"
        /// Receipt of a document.
        case event = "Event"
        /// End of a segment or leaf remote call.
        case service = "Service"
    }

    public enum Sampling: Sendable, Equatable {
        /// Every matching trace.
        case all
        /// Scan a bounded number of traces over all pages, then stop.
        case partialScan
        /// Keep a trace when U(T) < rate (`sampling.md` §10.2).
        case fixedRate(Double)
    }

    /// Whole seconds since 1970, end excluded.
    public var window: Range<Int64>
    public var timeRangeType: TimeRangeType
    public var sampling: Sampling
    /// `.everything` without one.
    public var filter: FilterExpression
    public var nextToken: String?
    /// What a page token is bound to: every member but the token.
    public var hash: [UInt8]

    /// - Throws: `SerializationException`, `InvalidRequestException` with the texts of `traces.md` §7 and, for a
    ///   `FilterExpression` that cannot be read, what is wrong with it and where.
    public init(body: [UInt8]) throws(APIError) {
        self = try RequestMembers.decode(body) { (members) throws(APIError) in try Self(members) }
    }

    private init(_ members: RequestMembers) throws(APIError) {
        // Types first, all of them: a body that cannot be read is told so whatever else is wrong with it.
        let startTime = try members.timestamp("StartTime")
        let endTime = try members.timestamp("EndTime")
        let typeName = try members.string("TimeRangeType")
        let isSampled = try members.bool("Sampling") ?? false
        let strategy = try members.object("SamplingStrategy")
        let strategyName = try strategy?.string("Name")
        let strategyValue = try strategy?.double("Value")
        let filterText = try members.string("FilterExpression") ?? ""
        nextToken = try members.string("NextToken")

        window = try TimeWindow.read(members)
        timeRangeType = try Self.choice("TimeRangeType", typeName) ?? .traceID
        do {
            filter = try FilterExpression(parsing: filterText)
        } catch {
            throw .invalidRequest(error.description)
        }
        sampling = try Self.sampling(
            isSampled, strategy: try Self.choice("SamplingStrategy.Name", strategyName) ?? .partialScan,
            value: strategyValue,
            timeRangeType: timeRangeType)

        var hash = RequestHash()
        hash.add(startTime ?? -1)
        hash.add(endTime ?? -1)
        hash.add(timeRangeType.rawValue)
        hash.add(isSampled ? 1 : 0)
        hash.add(strategyName)
        hash.add(strategyValue)
        hash.add(filterText)
        self.hash = hash.finalized()
    }

    private enum Strategy: String, CaseIterable {
        case partialScan = "PartialScan"
        case fixedRate = "FixedRate"
    }

    private static func sampling(
        _ isSampled: Bool, strategy: Strategy, value: Double?, timeRangeType: TimeRangeType
    ) throws(APIError) -> Sampling {
        guard isSampled else { return .all }
        guard strategy == .fixedRate else { return .partialScan }
        guard timeRangeType == .event else {
            throw .invalidRequest(
                "Cannot use FixedRate with input time range type: \(timeRangeType.rawValue). Please try using time range type: Event"
            )
        }
        guard let value, (0...1).contains(value) else {
            throw .invalidRequest("sampling rate must be specified and its value must be between [0, 1]")
        }
        return .fixedRate(value)
    }

    private static func choice<Choice>(_ member: String, _ text: String?) throws(APIError) -> Choice?
    where Choice: RawRepresentable<String> & CaseIterable {
        guard let text else { return nil }
        // Compared by code point: `==` of String would also take canonical equivalents.
        guard let choice = Choice.allCases.first(where: { $0.rawValue.utf8.elementsEqual(text.utf8) }) else {
            throw .invalidRequest(
                "\(member) must be one of [\(Choice.allCases.map(\.rawValue).joined(separator: ", "))]")
        }
        return choice
    }
}
