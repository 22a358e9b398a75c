// From documents to values, as the rest of the system does it, for tests of what is rendered.

import Segments
import ServiceGraph
import Testing
import TraceAssembly

/// Documents in order of receipt, one per second from `receivedAt`.
func traces(
    _ documents: [String], account: AccountID, receivedAt: Micros = 1_700_000_000_000_000
) throws -> [(forest: Forest, documents: [[UInt8]])] {
    let parser = SegmentParser()
    var order: [TraceID] = []
    var folded: [TraceID: (trace: Trace, documents: [[UInt8]])] = [:]
    for (index, text) in documents.enumerated() {
        let bytes = Array(text.utf8)
        let document = try parser.parse(bytes)
        if folded[document.traceID] == nil {
            order.append(document.traceID)
            folded[document.traceID] = (Trace(id: document.traceID, account: account), [])
        }
        let result = bytes.withUnsafeBytes {
            folded[document.traceID]?.trace.fold(
                document, bytes: $0, receivedAt: receivedAt + Micros(index) * 1_000_000)
        }
        if result == .changed { folded[document.traceID]?.documents.append(bytes) }
    }
    return try order.map { id in
        let (trace, documents) = try #require(folded[id])
        return (Forest(trace), documents)
    }
}

/// The graph of a window as stored blocks give it.
func serviceGraph(of forests: [Forest], account: AccountID, window: Range<Int64>) throws -> ServiceGraphResult {
    let byID = Dictionary(forests.map { ($0.trace.id, $0) }, uniquingKeysWith: { first, _ in first })
    func isStored(_ link: Link) -> Bool {
        guard let target = byID[link.traceID], let index = target.trace.indexes[link.entityID] else { return false }
        return target.isAttached(index)
    }
    var total = Contributions()
    for forest in forests {
        var links: [Link: LinkFacts] = [:]
        for link in linksInUse(of: forest.trace) {
            guard let target = byID[link.traceID] else { continue }
            let isLinked = rootIsLinked(target, isResolved: isStored)
            links[link] = linkFacts(of: link.entityID, in: target, rootIsLinked: isLinked)
        }
        total.add(forest, links: links)
    }
    var builder = ServiceGraphBuilder(receivingAccount: account, window: window)
    for block in total.blocks() { try builder.add(block.bytes) }
    return try builder.build()
}
