// Groups and tags (`api.md` §5.5, §5.10). A change is decided here, on a snapshot of the account's groups, and written if
// nothing changed meanwhile; otherwise it is decided again.

import APIServer
import AccessControl
import FilterExpressions
import Segments
import TraceStore
import XRayAPI

extension QueryService {
    /// Decisions on groups that other changes made void, before a call gives up.
    private static let mostAttempts = 20

    // MARK: Groups

    func createGroup(
        body: [UInt8], account: AccountID, caller: Caller, in store: TraceStore
    ) async throws(APIError) -> QueryAnswer {
        let request = try CreateGroupRequest(body: body)
        if !request.tags.isEmpty {
            let arn = ResourceARN.text(region: region, account: account, resource: "group/\(request.name)/*")
            do {
                try caller.require("TagResource", on: arn)
            } catch {
                throw APIError(error)
            }
        }
        guard request.tags.count <= TraceStore.tagsPerResource else { throw Tag.tooMany(request.name) }
        let expression = try Self.expression(request.filter)
        let insights = try request.insights.merged(insightsEnabled: false, notificationsEnabled: false)
        let id = GroupID.random()
        let group = TraceGroup(
            name: request.name,
            arn: ResourceARN.text(region: region, account: account, resource: "group/\(request.name)/\(id)"),
            key: .random(in: 1 ... .max), filter: request.filter, insightsEnabled: insights.insightsEnabled,
            notificationsEnabled: insights.notificationsEnabled, createdAt: now())
        let tags = request.tags.map { ResourceTag(key: $0.key, value: $0.value) }
        try await changeGroups(of: account) { (set) throws(APIError) in
            guard !set.groups.contains(where: { ExactString($0.name) == ExactString(group.name) }) else {
                throw CreateGroupRequest.exists(group.name)
            }
            guard set.groups.count(where: { !$0.isDefault }) < CreateGroupRequest.maxGroups else {
                throw CreateGroupRequest.tooMany
            }
            try Self.refuseCircle(group, expression, in: set)
        } write: { set in
            try await store.putGroup(group, tags: tags, account: account, revision: set.revision)
        }
        return QueryAnswer(body: description(of: group, account).body, completeTo: nil)
    }

    func updateGroup(body: [UInt8], account: AccountID, in store: TraceStore) async throws(APIError) -> QueryAnswer {
        let request = try UpdateGroupRequest(body: body)
        let expression = try request.filter.map { (text) throws(APIError) in try Self.expression(text) }
        var updated = TraceGroup.defaultGroup
        try await changeGroups(of: account) { (set) throws(APIError) in
            updated = try Self.find(request.group, in: set, account)
            if let filter = request.filter, !filter.utf8.elementsEqual(updated.filter.utf8) {
                guard !updated.isDefault else { throw UpdateGroupRequest.defaultFilter }
                updated.filter = filter
                updated.version += 1
            }
            if let expression { try Self.refuseCircle(updated, expression, in: set) }
            if let insights = request.insights {
                (updated.insightsEnabled, updated.notificationsEnabled) = try insights.merged(
                    insightsEnabled: updated.insightsEnabled, notificationsEnabled: updated.notificationsEnabled)
            }
        } write: { set in
            try await store.putGroup(updated, account: account, revision: set.revision)
        }
        return QueryAnswer(body: description(of: updated, account).body, completeTo: nil)
    }

    func deleteGroup(body: [UInt8], account: AccountID, in store: TraceStore) async throws(APIError) -> QueryAnswer {
        let request = try GroupRequest(body: body)
        var group = TraceGroup.defaultGroup
        try await changeGroups(of: account) { (set) throws(APIError) in
            group = try Self.find(request.group, in: set, account)
            guard !group.isDefault else { throw GroupRequest.deleteDefault }
        } write: { set in
            try await store.deleteGroup(group, account: account, revision: set.revision)
        }
        return QueryAnswer(body: Array("{}".utf8), completeTo: nil)
    }

    func getGroup(body: [UInt8], account: AccountID) async throws(APIError) -> QueryAnswer {
        let request = try GroupRequest(body: body)
        let group = try await group(request.group, account: account)
        return QueryAnswer(body: description(of: group, account).body, completeTo: nil)
    }

    func getGroups(body: [UInt8], account: AccountID) async throws(APIError) -> QueryAnswer {
        _ = try GetGroupsRequest(body: body)
        let set = try await read("groups") { try await reading.groupSet(account: account) }
        let body = GroupDescription.body(of: set.groups.map { description(of: $0, account) })
        return QueryAnswer(body: body, completeTo: nil)
    }

    /// The group that a request means.
    /// - Throws: `Group not found.`
    func group(_ identifier: GroupIdentifier, account: AccountID) async throws(APIError) -> TraceGroup {
        let set = try await read("groups") { try await reading.groupSet(account: account) }
        return try Self.find(identifier, in: set, account)
    }

    private static func find(
        _ identifier: GroupIdentifier, in set: GroupSet, _ account: AccountID
    ) throws(APIError) -> TraceGroup {
        var found: [TraceGroup] = []
        if let name = identifier.name {
            guard let group = set.groups.first(where: { ExactString($0.name) == ExactString(name) }) else {
                throw GroupIdentifier.notFound
            }
            found.append(group)
        }
        if let arn = identifier.arn {
            guard let resource = ResourceARN(parsing: arn)?.resource(of: account),
                let group = set.groups.first(where: { ExactString($0.resource) == ExactString(resource) })
            else { throw GroupIdentifier.notFound }
            found.append(group)
        }
        guard let group = found.first else { throw GroupIdentifier.notFound }
        guard found.allSatisfy({ $0.key == group.key }) else { throw GroupIdentifier.differ }
        return group
    }

    private func changeGroups(
        of account: AccountID, decide: (GroupSet) throws(APIError) -> Void, write: (GroupSet) async throws -> Bool
    ) async throws(APIError) {
        for _ in 0..<Self.mostAttempts {
            let set = try await read("groups") { try await reading.groupSet(account: account) }
            try decide(set)
            if try await read("groups", { try await write(set) }) { return }
        }
        throw .serviceUnavailable("The account's groups are being changed by many calls at once")
    }

    private static func expression(_ text: String) throws(APIError) -> FilterExpression {
        do {
            return try FilterExpression(parsing: text, limits: .group)
        } catch {
            throw .invalidRequest(error.description)
        }
    }

    private static func refuseCircle(
        _ group: TraceGroup, _ expression: FilterExpression, in set: GroupSet
    ) throws(APIError) {
        let others = GroupResolver(of: set.groups.filter { $0.key != group.key })
        guard !others.wouldReferToItself(name: group.name, arn: group.arn, expression: expression) else {
            throw .invalidRequest(
                FilterExpressionError("group \(group.name) would refer to itself", at: 0).description)
        }
    }

    private func description(of group: TraceGroup, _ account: AccountID) -> GroupDescription {
        let arn =
            group.isDefault ? ResourceARN.text(region: region, account: account, resource: group.resource) : group.arn
        return GroupDescription(
            name: group.name, arn: arn, filter: group.filter, insightsEnabled: group.insightsEnabled,
            notificationsEnabled: group.notificationsEnabled)
    }

    // MARK: Tags

    func tagResource(body: [UInt8], account: AccountID, in store: TraceStore) async throws(APIError) -> QueryAnswer {
        let request = try TagResourceRequest(body: body)
        let resource = try await taggable(request.resource, account: account)
        let tags = request.tags.map { ResourceTag(key: $0.key, value: $0.value) }
        let isDone = try await read("tags") { try await store.setTags(tags, account: account, resource: resource) }
        guard isDone else {
            throw Tag.tooMany(ResourceARN.text(region: request.resource.region, account: account, resource: resource))
        }
        return QueryAnswer(body: TagResourceRequest.responseBody, completeTo: nil)
    }

    func untagResource(body: [UInt8], account: AccountID, in store: TraceStore) async throws(APIError) -> QueryAnswer {
        let request = try UntagResourceRequest(body: body)
        let resource = try await taggable(request.resource, account: account)
        try await read("tags") { try await store.removeTags(request.keys, account: account, resource: resource) }
        return QueryAnswer(body: UntagResourceRequest.responseBody, completeTo: nil)
    }

    func listTagsForResource(
        body: [UInt8], account: AccountID, in store: TraceStore
    ) async throws(APIError) -> QueryAnswer {
        let request = try ListTagsForResourceRequest(body: body)
        let resource = try await taggable(request.resource, account: account)
        let tags = try await read("tags") { try await store.tags(account: account, resource: resource) }
        let body = ListTagsForResourceRequest.responseBody(tags.map { Tag(key: $0.key, value: $0.value) })
        return QueryAnswer(body: body, completeTo: nil)
    }

    /// The name under which tags of a resource are kept: of a group or a sampling rule that exists.
    private func taggable(_ arn: ResourceARN, account: AccountID) async throws(APIError) -> String {
        guard let resource = arn.resource(of: account) else { throw arn.notFound }
        // The sampling rule that every account has.
        if resource.utf8.elementsEqual("sampling-rule/Default".utf8) { return resource }
        guard resource.utf8.starts(with: "group/".utf8) else { throw arn.notFound }
        let set = try await read("groups") { try await reading.groupSet(account: account) }
        guard set.groups.contains(where: { ExactString($0.resource) == ExactString(resource) }) else {
            throw arn.notFound
        }
        return resource
    }
}

/// The generated part of a group's ARN: 256 random bits.
enum GroupID {
    private static let alphabet = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567".utf8)

    /// 52 base32 characters (RFC 4648, without padding).
    static func random() -> String {
        var text: [UInt8] = []
        var bits: UInt64 = 0
        var count: UInt64 = 0
        for _ in 0..<32 {
            bits = bits << 8 | UInt64(UInt8.random(in: .min ... .max))
            count += 8
            while count >= 5 {
                count -= 5
                text.append(alphabet[Int(bits >> count & 31)])
            }
        }
        text.append(alphabet[Int(bits << (5 - count) & 31)])
        return String(decoding: text, as: UTF8.self)
    }
}
