// What links resolve to, as the tables have it now (`service-graph.md` §6). In: links of consumer traces. Out: facts of
// those whose target is stored and attached. Used while a batch is folded and when links are re-checked after a commit.

import Segments
import ServiceGraph
import TraceAssembly
import TraceStore

enum LinkFactsLookup {
    /// A parser of stored documents. They were accepted once and count whatever the limits are today: what is taken back
    /// must be what was added, and the re-check must see what the fold saw.
    static func makeParser() -> SegmentParser { SegmentParser(limits: SegmentLimits(documentBytes: .max)) }

    /// Folds stored documents again. Documents that cannot be read (they were accepted by an older, laxer release)
    /// are left out.
    /// - Parameter parser: from `makeParser`.
    static func refold(_ stored: StoredTrace, account: AccountID, parser: SegmentParser) -> Trace {
        var trace = Trace(id: stored.id, account: account, limitExceeded: stored.limitExceeded)
        for document in stored.documents {
            document.bytes.withUnsafeBytes { bytes in
                guard let parsed = try? parser.parse(bytes) else { return }
                _ = trace.fold(parsed, bytes: bytes, receivedAt: document.receivedAt, limits: .unlimited)
            }
        }
        return trace
    }

    /// Facts that the stored links of consumer traces carry, by consumer.
    static func usedFacts(
        of consumers: [TraceID], account: AccountID, in store: TraceStore
    ) async throws(TraceStoreError) -> [TraceID: [Link: LinkFacts]] {
        guard !consumers.isEmpty else { return [:] }
        var result: [TraceID: [Link: LinkFacts]] = [:]
        for row in try await store.links(account: account, ofConsumers: consumers) {
            guard let bytes = row.facts, let facts = LinkFacts(decoding: bytes) else { continue }
            result[row.consumer, default: [:]][Link(traceID: row.target, entityID: row.entity)] = facts
        }
        return result
    }

    /// Facts of one producer's entities.
    /// - Parameter used: the producer's own resolved links: a producer whose root is linked has no `Root` node.
    static func facts(
        of targets: [EntityID], in producer: Trace, used: [Link: LinkFacts]
    ) -> [Link: LinkFacts] {
        let forest = Forest(producer)
        let isLinked = rootIsLinked(forest) { used[$0] != nil }
        var result: [Link: LinkFacts] = [:]
        for target in targets {
            guard let facts = linkFacts(of: target, in: forest, rootIsLinked: isLinked) else { continue }
            result[Link(traceID: producer.id, entityID: target)] = facts
        }
        return result
    }

    /// Facts of links whose targets are read from the store.
    /// - Parameter hasGroups: false: not asked for facts within groups.
    static func storedFacts(
        of links: [Link], account: AccountID, hasGroups: Bool, in store: TraceStore, parser: SegmentParser
    ) async throws(TraceStoreError) -> ResolvedLinks {
        var result = ResolvedLinks()
        guard !links.isEmpty else { return result }
        let targets = Dictionary(grouping: Set(links), by: \.traceID)
        let producers = try await store.storedTraces(account: account, ids: Array(targets.keys))
        let used = try await usedFacts(of: producers.map(\.id), account: account, in: store)
        let members = hasGroups ? try await store.groupMembers(account: account, traces: producers.map(\.id)) : []
        let memberships = Dictionary(grouping: members, by: \.trace).mapValues { $0.map { Membership($0) } }
        for producer in producers {
            let trace = refold(producer, account: account, parser: parser)
            let entities = (targets[producer.id] ?? []).map(\.entityID)
            result.add(
                entities, of: trace, used: used[producer.id] ?? [:], memberships: memberships[producer.id] ?? [])
        }
        return result
    }
}

/// What links resolve to, and what they resolve to within each group (ruling R-28).
struct ResolvedLinks {
    var all: [Link: LinkFacts] = [:]
    /// By the group's key; only links to members are there.
    var groups: [Int64: [Link: LinkFacts]] = [:]

    /// Adds what links to entities of one producer resolve to.
    mutating func add(
        _ entities: [EntityID], of producer: Trace, used: [Link: LinkFacts], memberships: [Membership]
    ) {
        all.merge(LinkFactsLookup.facts(of: entities, in: producer, used: used)) { $1 }
        for membership in memberships {
            let facts = LinkFactsLookup.facts(of: entities, in: producer, used: membership.usedFacts)
            groups[membership.groupKey, default: [:]].merge(facts) { $1 }
        }
    }

    mutating func merge(_ other: ResolvedLinks) {
        all.merge(other.all) { $1 }
        groups.merge(other.groups) { $0.merging($1) { $1 } }
    }
}
