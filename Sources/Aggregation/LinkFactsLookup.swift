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
    static func storedFacts(
        of links: [Link], account: AccountID, in store: TraceStore, parser: SegmentParser
    ) async throws(TraceStoreError) -> [Link: LinkFacts] {
        guard !links.isEmpty else { return [:] }
        let targets = Dictionary(grouping: Set(links), by: \.traceID)
        let producers = try await store.storedTraces(account: account, ids: Array(targets.keys))
        let used = try await usedFacts(of: producers.map(\.id), account: account, in: store)
        var result: [Link: LinkFacts] = [:]
        for producer in producers {
            let trace = refold(producer, account: account, parser: parser)
            let entities = (targets[producer.id] ?? []).map(\.entityID)
            result.merge(facts(of: entities, in: trace, used: used[producer.id] ?? [:])) { $1 }
        }
        return result
    }
}
