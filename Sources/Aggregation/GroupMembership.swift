// Whether a trace is a member of a group (`service-graph.md` §7): the definitions in force, and the evaluation of their
// filters by FilterExpressions. Definitions are read with every batch, after its records: a document that is acknowledged
// after `CreateGroup` has answered is always evaluated with the new group, one acknowledged after `DeleteGroup` never.

import FilterExpressions
import Segments
import ServiceGraph
import TraceAssembly
import TraceStore

/// A trace's membership in a group, as the trace cache keeps it.
struct Membership {
    var groupKey: Int64
    /// Of the filter that matched.
    var version: Int
    /// Minutes since 1970: receipt of the document with which it matched.
    var minute: Int64
    /// Class of the root as it is counted; nil: not counted yet.
    var outcome: OutcomeClass?
    /// Facts of the links that resolve within the group (ruling R-28), as its contributions use them.
    var usedFacts: [Link: LinkFacts]
    /// Its row is to be written.
    var isChanged: Bool

    /// One that is about to begin.
    init(of group: TraceGroup, receivedAt: Micros) {
        groupKey = group.key
        version = group.version
        minute = Int64((Double(receivedAt) / 60_000_000).rounded(.down))
        usedFacts = [:]
        isChanged = true
    }

    init(_ stored: GroupMember) {
        groupKey = stored.groupKey
        version = stored.version
        minute = stored.minute
        outcome = OutcomeClass(rawValue: stored.outcome)
        usedFacts = GroupLinks.decode(stored.links)
        isChanged = false
    }
}

/// The groups of accounts as their filters see each other, made anew when they change. Owned by one worker.
final class GroupFilters {
    private static let capacity = 10_000
    private var known: [AccountID: (groups: [TraceGroup], filters: GroupResolver)] = [:]

    private func filters(of groups: [TraceGroup], _ account: AccountID) -> GroupResolver {
        if let found = known[account], found.groups == groups { return found.filters }
        if known.count >= Self.capacity { known.removeAll() }
        let filters = GroupResolver(of: groups)
        known[account] = (groups, filters)
        return filters
    }

    /// Which of an account's groups a trace matches.
    func matching(_ forest: Forest, among groups: [TraceGroup]) -> [TraceGroup] {
        let filters = filters(of: groups, forest.trace.account)
        let matching = filters.memberships(of: TraceFacts(forest: forest)).map { ExactString(filters.groups[$0].name) }
        return matching.isEmpty ? [] : groups.filter { matching.contains(ExactString($0.name)) }
    }
}

/// Bytes of the column `group_members.links`.
enum GroupLinks {
    /// Equal facts have equal bytes; nil for none.
    static func encode(_ facts: [Link: LinkFacts]) -> [UInt8]? {
        guard !facts.isEmpty else { return nil }
        var bytes: [UInt8] = []
        let sorted = facts.sorted { ($0.key.traceID, $0.key.entityID) < ($1.key.traceID, $1.key.entityID) }
        for (link, facts) in sorted {
            let encoded = facts.encoded
            for word in [link.traceID.high, link.traceID.low, link.entityID.rawValue, UInt64(encoded.count)] {
                withUnsafeBytes(of: word.bigEndian) { bytes.append(contentsOf: $0) }
            }
            bytes += encoded
        }
        return bytes
    }

    /// Of damaged bytes what comes before the damage.
    static func decode(_ bytes: [UInt8]?) -> [Link: LinkFacts] {
        guard let bytes else { return [:] }
        var result: [Link: LinkFacts] = [:]
        var rest = bytes[...]
        func word(_ place: Int) -> UInt64 {
            rest.dropFirst(place * 8).prefix(8).reduce(0) { $0 << 8 | UInt64($1) }
        }
        while rest.count >= 32, word(3) <= UInt64(rest.count - 32) {
            let link = Link(
                traceID: TraceID(high: word(0), low: word(1)), entityID: EntityID(rawValue: word(2)))
            let length = Int(word(3))
            result[link] = LinkFacts(decoding: Array(rest.dropFirst(32).prefix(length)))
            rest = rest.dropFirst(32 + length)
        }
        return result
    }
}
