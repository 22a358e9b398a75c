// The graph of retrieved traces: that of given traces, and per service which traces its link edges join
// (`GetRetrievedTracesGraph`, `api.md` §5.3).

import Segments
import TraceAssembly

/// A trace that other traces of the answer link to.
public struct GraphTraceLink: Sendable, Equatable {
    public var source: TraceID
    /// Consumers, ascending.
    public var destinations: [TraceID]

    public init(source: TraceID, destinations: [TraceID]) {
        self.source = source
        self.destinations = destinations
    }
}

/// Links among the given traces by the source node of their edge, as `traceGraph(of:account:)` resolves them.
/// - Returns: for each node its links in order of the source trace.
public func traceLinks(of forests: [Forest]) -> [NodeIdentity: [GraphTraceLink]] {
    let byID = Dictionary(forests.map { ($0.trace.id, $0) }, uniquingKeysWith: { first, _ in first })
    var found: [NodeIdentity: [TraceID: Set<TraceID>]] = [:]
    for forest in forests {
        for link in linksInUse(of: forest.trace) {
            guard let producer = byID[link.traceID],
                let facts = linkFacts(of: link.entityID, in: producer, rootIsLinked: false)
            else { continue }
            found[facts.source, default: [:]][producer.trace.id, default: []].insert(forest.trace.id)
        }
    }
    return found.mapValues { sources in
        sources.map { GraphTraceLink(source: $0.key, destinations: $0.value.sorted()) }.sorted { $0.source < $1.source }
    }
}

extension GraphService {
    /// The node's identity; an account that is not stated is the receiving one.
    public func identity(receivingAccount: AccountID) -> NodeIdentity {
        NodeIdentity(
            name: ExactString(name), type: type.map { ExactString($0) },
            account: ExactString(accountID ?? receivingAccount.description))
    }
}
