// `GetServiceGraph`, the request (`service-graph.md` §1, `api.md` §5.2). The answer is written by `ServiceGraphJSON`.

import JSONText
import Segments

public struct GetServiceGraphRequest: Sendable, Equatable {
    public static let operation = "GetServiceGraph"
    /// Services of one page.
    public static let pageServices = 500

    /// Whole seconds since 1970, end excluded.
    public var window: Range<Int64>
    public var nextToken: String?
    /// What a page token is bound to: every member but the token.
    public var hash: [UInt8]

    /// - Parameter account: the target account; a group reference must mean its `Default` group, the only one there is.
    /// - Throws: `SerializationException`, `InvalidRequestException` (window, lengths, `Group not found.`).
    public init(body: [UInt8], account: AccountID) throws(APIError) {
        self = try RequestMembers.decode(body) { (members) throws(APIError) in try Self(members, account: account) }
    }

    private init(_ members: RequestMembers, account: AccountID) throws(APIError) {
        let startTime = try members.timestamp("StartTime")
        let endTime = try members.timestamp("EndTime")
        nextToken = try members.string("NextToken")
        let groupName = try members.string("GroupName", length: 1...32)
        let groupARN = try members.string("GroupARN", length: 1...400)

        window = try TimeWindow.read(members)
        if let groupName, !groupName.utf8.elementsEqual("Default".utf8) { throw Self.groupNotFound }
        if let groupARN, !Self.isDefaultGroup(groupARN, of: account) { throw Self.groupNotFound }

        var hash = RequestHash()
        hash.add(startTime ?? -1)
        hash.add(endTime ?? -1)
        hash.add(groupName)
        hash.add(groupARN)
        self.hash = hash.finalized()
    }

    /// Terraform takes this text for "already gone" (`api.md` §1.4).
    public static let groupNotFound = APIError.invalidRequest("Group not found.")

    /// `arn:aws:xray:{region}:{account}:group/Default`, in any region: the region is configuration, not part of the name.
    private static func isDefaultGroup(_ arn: String, of account: AccountID) -> Bool {
        let parts = arn.split(separator: ":", omittingEmptySubsequences: false)
        return parts.count == 6 && parts[0] == "arn" && parts[1] == "aws" && parts[2] == "xray" && !parts[3].isEmpty
            && parts[4] == account.description && parts[5] == "group/Default"
    }
}
