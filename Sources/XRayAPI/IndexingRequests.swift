// The destination of segments and the indexing rule (`api.md` §5.9), requests and answers.

import JSONText
import Segments

public enum SegmentDestination: String, Sendable, CaseIterable {
    case xray = "XRay"
    case cloudWatchLogs = "CloudWatchLogs"

    /// A change is `PENDING` for this long.
    public static let pendingTime: Micros = 5_000_000

    /// The answer of both operations.
    public func body(isPending: Bool) -> [UInt8] {
        Array(#"{"Destination":"\#(rawValue)","Status":"\#(isPending ? "PENDING" : "ACTIVE")"}"#.utf8)
    }
}

public struct GetTraceSegmentDestinationRequest: Sendable, Equatable {
    public static let operation = "GetTraceSegmentDestination"

    public init(body: [UInt8]) throws(APIError) {
        _ = try RequestMembers.decode(body) { (_) throws(APIError) in true }
    }
}

public struct UpdateTraceSegmentDestinationRequest: Sendable, Equatable {
    public static let operation = "UpdateTraceSegmentDestination"

    public var destination: SegmentDestination

    public init(body: [UInt8]) throws(APIError) {
        destination = try RequestMembers.decode(body) { (members) throws(APIError) in
            guard let text = try members.string("Destination") else { throw RequestMembers.missing("Destination") }
            guard let found = SegmentDestination.allCases.first(where: { $0.rawValue.utf8.elementsEqual(text.utf8) })
            else { throw .invalidRequest("Destination must be one of [XRay, CloudWatchLogs]") }
            return found
        }
    }
}

public struct GetIndexingRulesRequest: Sendable, Equatable {
    public static let operation = "GetIndexingRules"

    /// - Throws: `Invalid NextToken {token}` for any: there is one rule.
    public init(body: [UInt8]) throws(APIError) {
        let token = try RequestMembers.decode(body) { (members) throws(APIError) in try members.string("NextToken") }
        if let token { throw PageToken.invalid(token) }
    }
}

public struct UpdateIndexingRuleRequest: Sendable, Equatable {
    public static let operation = "UpdateIndexingRule"
    public static let ruleName = "Default"

    /// 0...100.
    public var desiredSamplingPercentage: Double

    /// - Throws: `ResourceNotFoundException` for any other rule than `Default`.
    public init(body: [UInt8]) throws(APIError) {
        desiredSamplingPercentage = try RequestMembers.decode(body) { (members) throws(APIError) in
            let name = try members.string("Name")
            let rule = try members.object("Rule")
            let probabilistic = try rule?.object("Probabilistic")
            let percentage = try probabilistic?.double("DesiredSamplingPercentage")
            guard let name else { throw RequestMembers.missing("Name") }
            guard rule != nil else { throw RequestMembers.missing("Rule") }
            guard probabilistic != nil else {
                throw .invalidRequest("Rule must have exactly one member: Probabilistic")
            }
            guard let percentage else { throw RequestMembers.missing("DesiredSamplingPercentage") }
            guard (0...100).contains(percentage) else {
                throw .invalidRequest("DesiredSamplingPercentage must be between 0 and 100")
            }
            guard name.utf8.elementsEqual(Self.ruleName.utf8) else {
                throw .resourceNotFound("Indexing rule not found", resourceName: name.echoed())
            }
            return percentage
        }
    }
}

/// The one rule.
public struct IndexingRuleDescription: Sendable, Equatable {
    public var percentage: Double
    public var modifiedAt: Micros

    public init(percentage: Double, modifiedAt: Micros) {
        self.percentage = percentage
        self.modifiedAt = modifiedAt
    }

    /// The answer of `GetIndexingRules`.
    public var listBody: [UInt8] {
        var writer = JSONWriter()
        writer.beginObject()
        writer.key("IndexingRules")
        writer.beginArray()
        write(to: &writer)
        writer.endArray()
        writer.endObject()
        return writer.bytes
    }

    /// The answer of `UpdateIndexingRule`.
    public var body: [UInt8] {
        var writer = JSONWriter()
        writer.beginObject()
        writer.key("IndexingRule")
        write(to: &writer)
        writer.endObject()
        return writer.bytes
    }

    private func write(to writer: inout JSONWriter) {
        writer.beginObject()
        writer.key("Name")
        writer.string(UpdateIndexingRuleRequest.ruleName)
        writer.key("ModifiedAt")
        writer.seconds(micros: modifiedAt)
        writer.key("Rule")
        writer.beginObject()
        writer.key("Probabilistic")
        writer.beginObject()
        writer.key("DesiredSamplingPercentage")
        writer.double(percentage)
        writer.key("ActualSamplingPercentage")
        writer.double(percentage)
        writer.endObject()
        writer.endObject()
        writer.endObject()
    }
}
