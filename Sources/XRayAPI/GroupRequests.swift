// The operations on groups, requests and answers (`api.md` §5.5). Whether a filter parses and a group exists is decided by
// the service; lengths, patterns and the merge of insight settings here.

import JSONText
import Segments

/// `GroupName` and/or `GroupARN` of a request.
public struct GroupIdentifier: Sendable, Equatable {
    public var name: String?
    public var arn: String?

    public init(name: String?, arn: String?) {
        self.name = name
        self.arn = arn
    }

    /// Nil when neither is given.
    static func read(_ members: RequestMembers) throws(APIError) -> GroupIdentifier? {
        let name = try members.string("GroupName", length: 1...32)
        let arn = try members.string("GroupARN", length: 1...400)
        return name == nil && arn == nil ? nil : GroupIdentifier(name: name, arn: arn)
    }

    static func required(_ members: RequestMembers) throws(APIError) -> GroupIdentifier {
        guard let identifier = try read(members) else { throw .invalidRequest("GroupName or GroupARN is required") }
        return identifier
    }

    /// Terraform takes this text for "already gone" (`api.md` §1.4).
    public static let notFound = APIError.invalidRequest("Group not found.")
    public static let differ = APIError.invalidRequest("GroupName and GroupARN must denote the same group")
}

/// The members of an `InsightsConfiguration` that are given.
public struct InsightsConfiguration: Sendable, Equatable {
    public var insightsEnabled: Bool?
    public var notificationsEnabled: Bool?

    static func read(_ members: RequestMembers) throws(APIError) -> InsightsConfiguration? {
        guard let object = try members.object("InsightsConfiguration") else { return nil }
        return InsightsConfiguration(
            insightsEnabled: try object.bool("InsightsEnabled"),
            notificationsEnabled: try object.bool("NotificationsEnabled"))
    }

    /// The settings after taking over what is given.
    /// - Throws: notifications without insights.
    public func merged(
        insightsEnabled: Bool, notificationsEnabled: Bool
    ) throws(APIError) -> (insightsEnabled: Bool, notificationsEnabled: Bool) {
        let merged = (self.insightsEnabled ?? insightsEnabled, self.notificationsEnabled ?? notificationsEnabled)
        guard merged.0 || !merged.1 else {
            throw .invalidRequest("NotificationsEnabled requires InsightsEnabled")
        }
        return merged
    }
}

enum GroupFilter {
    static let maxCharacters = 2_000

    static func read(_ members: RequestMembers) throws(APIError) -> String? {
        guard let filter = try members.string("FilterExpression") else { return nil }
        guard filter.unicodeScalars.count <= maxCharacters else {
            throw .invalidRequest("FilterExpression must have at most \(maxCharacters) characters")
        }
        // PostgreSQL's text cannot hold it, and no trace that is searched for needs it.
        guard !filter.utf8.contains(0) else { throw .invalidRequest("FilterExpression must not contain U+0000") }
        return filter
    }
}

public struct CreateGroupRequest: Sendable, Equatable {
    public static let operation = "CreateGroup"
    /// Groups of an account beside `Default`.
    public static let maxGroups = 25

    public var name: String
    public var filter: String
    public var insights: InsightsConfiguration
    public var tags: [Tag]

    public init(body: [UInt8]) throws(APIError) {
        self = try RequestMembers.decode(body) { (members) throws(APIError) in
            let name = try members.string("GroupName")
            let filter = try GroupFilter.read(members) ?? ""
            let insights = try InsightsConfiguration.read(members) ?? InsightsConfiguration()
            let tags = try Tag.list("Tags", members)
            guard let name else { throw RequestMembers.missing("GroupName") }
            guard (1...32).contains(name.unicodeScalars.count) else {
                throw .invalidRequest("GroupName must have between 1 and 32 characters")
            }
            guard name.utf8.allSatisfy(Self.isNameByte) else {
                throw .invalidRequest("GroupName may consist of letters, digits, '_' and '-' only")
            }
            _ = try insights.merged(insightsEnabled: false, notificationsEnabled: false)
            return CreateGroupRequest(name: name, filter: filter, insights: insights, tags: tags ?? [])
        }
    }

    private init(name: String, filter: String, insights: InsightsConfiguration, tags: [Tag]) {
        self.name = name
        self.filter = filter
        self.insights = insights
        self.tags = tags
    }

    private static func isNameByte(_ byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
            UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "_"), UInt8(ascii: "-"):
            true
        default: false
        }
    }

    public static func exists(_ name: String) -> APIError { .invalidRequest("Group \(name) already exists") }
    public static let tooMany = APIError.invalidRequest("An account cannot have more than \(maxGroups) groups")
}

public struct UpdateGroupRequest: Sendable, Equatable {
    public static let operation = "UpdateGroup"

    public var group: GroupIdentifier
    /// Nil: stays as it is. Empty: every trace.
    public var filter: String?
    public var insights: InsightsConfiguration?

    public init(body: [UInt8]) throws(APIError) {
        (group, filter, insights) = try RequestMembers.decode(body) { (members) throws(APIError) in
            let filter = try GroupFilter.read(members)
            let insights = try InsightsConfiguration.read(members)
            return (try GroupIdentifier.required(members), filter, insights)
        }
    }

    public static let defaultFilter = APIError.invalidRequest(
        "The filter expression of group Default cannot be changed")
}

/// `GetGroup` and `DeleteGroup`.
public struct GroupRequest: Sendable, Equatable {
    public static let getOperation = "GetGroup"
    public static let deleteOperation = "DeleteGroup"

    public var group: GroupIdentifier

    public init(body: [UInt8]) throws(APIError) {
        group = try RequestMembers.decode(body) { (members) throws(APIError) in try GroupIdentifier.required(members) }
    }

    public static let deleteDefault = APIError.invalidRequest("Group Default cannot be deleted")
}

public struct GetGroupsRequest: Sendable, Equatable {
    public static let operation = "GetGroups"

    /// - Throws: `Invalid NextToken {token}` for any: all groups are one page, so none was ever given out.
    public init(body: [UInt8]) throws(APIError) {
        let token = try RequestMembers.decode(body) { (members) throws(APIError) in
            try members.string("NextToken", length: 1...100)
        }
        if let token { throw PageToken.invalid(token) }
    }
}

/// A group as the API shows it.
public struct GroupDescription: Sendable, Equatable {
    public var name: String
    public var arn: String
    public var filter: String
    public var insightsEnabled: Bool
    public var notificationsEnabled: Bool

    public init(name: String, arn: String, filter: String, insightsEnabled: Bool, notificationsEnabled: Bool) {
        self.name = name
        self.arn = arn
        self.filter = filter
        self.insightsEnabled = insightsEnabled
        self.notificationsEnabled = notificationsEnabled
    }

    /// The answer of `CreateGroup`, `UpdateGroup` and `GetGroup`.
    public var body: [UInt8] {
        var writer = JSONWriter()
        writer.beginObject()
        writer.key("Group")
        write(to: &writer)
        writer.endObject()
        return writer.bytes
    }

    /// The answer of `GetGroups`.
    public static func body(of groups: [GroupDescription]) -> [UInt8] {
        var writer = JSONWriter(reservingCapacity: 64 + groups.count * 512)
        writer.beginObject()
        writer.key("Groups")
        writer.beginArray()
        for group in groups { group.write(to: &writer) }
        writer.endArray()
        writer.endObject()
        return writer.bytes
    }

    private func write(to writer: inout JSONWriter) {
        writer.beginObject()
        writer.key("GroupName")
        writer.string(name)
        writer.key("GroupARN")
        writer.string(arn)
        writer.key("FilterExpression")
        writer.string(filter)
        writer.key("InsightsConfiguration")
        writer.beginObject()
        writer.key("InsightsEnabled")
        writer.bool(insightsEnabled)
        writer.key("NotificationsEnabled")
        writer.bool(notificationsEnabled)
        writer.endObject()
        writer.endObject()
    }
}
