// The part of a batch that is about groups and indexing rules. The fold calls it at four places: before a trace changes,
// after each document that changed it, when its links are evaluated, and when all is known. A group's contributions are
// the same signed sums as the account's, over member traces only, so a group graph equals the rules over its members.

import Segments
import ServiceGraph
import TraceAssembly
import TraceStore

struct GroupFold {
    private struct Slot: Hashable {
        var account: AccountID
        var groupKey: Int64
        var version: Int
    }

    private struct CountSlot: Hashable {
        var account: AccountID
        var groupKey: Int64
        var minute: Int64
    }

    private let rules: [AccountID: AccountRules]
    private let liveKeys: [AccountID: Set<Int64>]
    private let filters: GroupFilters
    private var contributions: [Slot: Contributions] = [:]
    private var counts: [CountSlot: GroupCounts] = [:]
    private var members: [GroupMember] = []

    init(rules: [AccountID: AccountRules], filters: GroupFilters) {
        self.rules = rules
        self.filters = filters
        liveKeys = rules.mapValues { Set($0.groups.map(\.key)) }
    }

    func hasGroups(_ account: AccountID) -> Bool { liveKeys[account]?.isEmpty == false }

    /// Whether a trace that is new gets a summary and contributions (`api.md` §5.9). Decided once, by the rule at the receipt
    /// of its first document: a later change applies to later traces, and a replay decides the same.
    func isIndexed(_ key: TraceKey, receivedAt: Micros) -> Bool {
        guard let percentage = rules[key.account]?.indexedPercentage(at: receivedAt) else { return true }
        return key.id.samplingFraction < percentage / 100
    }

    /// Takes note of what a trace contributed to its groups.
    mutating func before(
        _ forest: Forest, _ state: inout CachedTrace, account: AccountID
    ) -> [Int64: Contributions.Before] {
        guard !state.memberships.isEmpty else { return [:] }
        let live = liveKeys[account] ?? []
        state.memberships.removeAll { !live.contains($0.groupKey) }
        var result: [Int64: Contributions.Before] = [:]
        for membership in state.memberships {
            let slot = Slot(account: account, groupKey: membership.groupKey, version: membership.version)
            result[membership.groupKey] = contributions[slot, default: Contributions()].before(
                forest, links: membership.usedFacts)
        }
        return result
    }

    /// Tests a trace, after a document that changed it, against the groups it is not yet a member of (ruling R-39). Looks at
    /// the whole trace, so the cost of a trace grows with the square of its documents until it is a member of every group;
    /// `max_trace_bytes` bounds it.
    func admit(_ state: inout CachedTrace, receivedAt: Micros) {
        guard state.isIndexed, let groups = rules[state.trace.account]?.groups, !groups.isEmpty else { return }
        guard groups.contains(where: { group in !state.memberships.contains { $0.groupKey == group.key } }) else {
            return
        }
        for group in filters.matching(Forest(state.trace), among: groups)
        where !state.memberships.contains(where: { $0.groupKey == group.key }) {
            state.memberships.append(Membership(of: group, receivedAt: receivedAt))
        }
    }

    /// Takes over what the links of a consumer resolve to within its groups.
    func evaluateLinks(_ links: [Link], _ resolved: ResolvedLinks, _ state: inout CachedTrace) {
        for index in state.memberships.indices {
            let inGroup = resolved.groups[state.memberships[index].groupKey] ?? [:]
            let facts = Dictionary(links.compactMap { link in inGroup[link].map { (link, $0) } }) { $1 }
            guard facts != state.memberships[index].usedFacts else { continue }
            state.memberships[index].usedFacts = facts
            state.memberships[index].isChanged = true
        }
    }

    /// Replaces what a trace contributed to its groups by what it contributes now.
    mutating func replace(
        _ before: [Int64: Contributions.Before], by forest: Forest, _ state: inout CachedTrace, account: AccountID
    ) {
        guard !state.memberships.isEmpty, forest.root >= 0 else { return }
        let outcome = forest[forest.root].outcome.countedAs
        for index in state.memberships.indices {
            let membership = state.memberships[index]
            let slot = Slot(account: account, groupKey: membership.groupKey, version: membership.version)
            if let before = before[membership.groupKey] {
                _ = contributions[slot, default: Contributions()].replace(
                    before, by: forest, links: membership.usedFacts)
            } else {
                contributions[slot, default: Contributions()].add(forest, links: membership.usedFacts)
            }
            if membership.outcome != outcome {
                let slot = CountSlot(account: account, groupKey: membership.groupKey, minute: membership.minute)
                if let counted = membership.outcome { counts[slot, default: GroupCounts()].add(-1, counted) }
                counts[slot, default: GroupCounts()].add(1, outcome)
                state.memberships[index].outcome = outcome
                state.memberships[index].isChanged = true
            }
            guard state.memberships[index].isChanged else { continue }
            state.memberships[index].isChanged = false
            members.append(
                GroupMember(
                    account: account, trace: forest.trace.id, groupKey: membership.groupKey,
                    version: membership.version,
                    minute: membership.minute, outcome: outcome.rawValue, links: GroupLinks.encode(membership.usedFacts)
                ))
        }
    }

    /// The rows of the batch.
    /// - Parameter move: the partition that names them.
    func changes(_ move: PositionMove) -> GroupChanges {
        var changes = GroupChanges()
        changes.members = members
        for (slot, sum) in contributions {
            for block in sum.blocks() {
                let delta = GraphBlockDelta(
                    account: slot.account, minute: block.minute, partition: move.partition, lastOffset: move.to - 1,
                    bytes: block.bytes)
                changes.blocks.append(GroupBlockDelta(groupKey: slot.groupKey, version: slot.version, delta: delta))
            }
        }
        for (slot, count) in counts where count != GroupCounts() {
            changes.counts.append(
                GroupCountDelta(
                    account: slot.account, groupKey: slot.groupKey, minute: slot.minute, partition: move.partition,
                    counts: count))
        }
        return changes
    }
}

extension GroupCounts {
    fileprivate mutating func add(_ count: Int64, _ outcome: OutcomeClass) {
        switch outcome {
        case .ok: ok += count
        case .error: error += count
        case .fault: fault += count
        case .throttle: throttle += count
        }
    }
}
