// `GetServiceGraph`, the request (`service-graph.md` §1, `api.md` §5.2). The answer is written by `ServiceGraphJSON`.

import JSONText
import Segments

public struct GetServiceGraphRequest: Sendable, Equatable {
    public static let operation = "GetServiceGraph"
    /// Services of one page.
    public static let pageServices = 500

    /// Whole seconds since 1970, end excluded.
    public var window: Range<Int64>
    /// Nil: all traces.
    public var group: GroupIdentifier?
    public var nextToken: String?
    /// What a page token is bound to: every member but the token.
    public var hash: [UInt8]

    /// - Throws: `SerializationException`, `InvalidRequestException` (window, lengths). Whether the group exists is the
    ///   service's to say.
    public init(body: [UInt8]) throws(APIError) {
        self = try RequestMembers.decode(body) { (members) throws(APIError) in try Self(members) }
    }

    private init(_ members: RequestMembers) throws(APIError) {
        let startTime = try members.timestamp("StartTime")
        let endTime = try members.timestamp("EndTime")
        nextToken = try members.string("NextToken")
        group = try GroupIdentifier.read(members)

        window = try TimeWindow.read(members)

        var hash = RequestHash()
        hash.add(startTime ?? -1)
        hash.add(endTime ?? -1)
        hash.add(group?.name)
        hash.add(group?.arn)
        self.hash = hash.finalized()
    }
}

/// Binds a page token to the very group it was made for, so that one of a deleted group does not continue in another that
/// was made again with its name.
/// - Parameter hash: of the request.
public func requestHash(_ hash: [UInt8], groupKey: Int64) -> [UInt8] {
    var bound = RequestHash()
    for byte in hash { bound.add(Int64(byte)) }
    bound.add(groupKey)
    return bound.finalized()
}
