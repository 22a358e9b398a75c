// The graph of given traces (`service-graph.md` §8): no window, no times, open entities are there with zero statistics
// (ruling R-17). GetTraceGraph and the console's trace page use it.

import Segments
import TraceAssembly

/// The service graph of the given traces only; links resolve among them (ruling R-28).
/// - Parameter account: the receiving account; its nodes are shown without `AccountId`.
public func traceGraph(of forests: [Forest], account: AccountID) -> ServiceGraphResult {
    var numberOf: [TraceID: Int] = [:]
    for (number, forest) in forests.enumerated() { numberOf[forest.trace.id] = number }
    func producer(of link: Link) -> Int? {
        guard let number = numberOf[link.traceID], let target = forests[number].trace.indexes[link.entityID],
            forests[number].isAttached(target)
        else { return nil }
        return number
    }
    let isRootLinked = forests.map { forest in rootIsLinked(forest) { producer(of: $0) != nil } }
    var contributions = Contributions()
    for forest in forests {
        var links: [Link: LinkFacts] = [:]
        for link in linksInUse(of: forest.trace) {
            guard let number = producer(of: link) else { continue }
            links[link] = linkFacts(of: link.entityID, in: forests[number], rootIsLinked: isRootLinked[number])
        }
        contributions.addWithOpenEntities(forest, links: links)
    }
    var builder = ServiceGraphBuilder(receivingAccount: account, window: nil, showsTimes: false)
    do {
        for block in contributions.blocks() { try builder.add(block.bytes) }
        return try builder.build()
    } catch {
        preconditionFailure("a block just written cannot be read: \(error)")
    }
}
