// What a consumer's trace needs to know of the producer's trace to draw a link edge (`service-graph.md` §6).
// Made from the producer's forest, stored beside the link (so that the owner of the consumer's trace can retract exactly
// what it added), read when contributions are computed.

import Segments
import TraceAssembly

/// The target of one resolved link.
public struct LinkFacts: Hashable, Sendable {
    /// Source node of the edge.
    public var source: NodeIdentity
    /// Some segment of the producer's trace reports the source node.
    public var sourceIsActive: Bool
    /// The source node is that of the producer's root, and that root is not itself linked.
    public var sourceIsRoot: Bool
    /// Second in which the root of the producer's trace started: the time the source node takes from the link.
    public var rootStartSecond: Int64
    /// Nil while the target is open: the edge counts, the event age does not (ruling R-29).
    public var targetEnd: Micros?

    public init(
        source: NodeIdentity, sourceIsActive: Bool, sourceIsRoot: Bool, rootStartSecond: Int64, targetEnd: Micros?
    ) {
        self.source = source
        self.sourceIsActive = sourceIsActive
        self.sourceIsRoot = sourceIsRoot
        self.rootStartSecond = rootStartSecond
        self.targetEnd = targetEnd
    }
}

/// Links of one trace beyond this number are not indexed.
/// Source: X-Ray developer guide, "Segment documents", `links` (`segments.md` §13).
let linksPerTrace = 100

/// The links of a trace that count, distinct: at most 100, by first sight of their segments, then document order. These
/// are the ones whose facts `contributions(of:links:)` looks up.
public func linksInUse(of trace: Trace) -> [Link] {
    var seen: Set<Link> = []
    var result: [Link] = []
    forEachLinkInUse(of: trace) { _, link in
        if seen.insert(link).inserted { result.append(link) }
    }
    return result
}

/// Index of the segment and link, in order of first sight; stops at the limit of the trace.
func forEachLinkInUse(of trace: Trace, _ body: (Int, Link) -> Void) {
    var left = linksPerTrace
    for index in trace.entities.indices where !trace.entities[index].entity.links.isEmpty {
        guard trace.entities[index].entity.kind == .segment else { continue }
        for link in trace.entities[index].entity.links {
            guard left > 0 else { return }
            left -= 1
            body(index, link)
        }
    }
}

/// Whether the root of a trace has a link that resolved: then it has no client node and no `Root`.
/// - Parameter isResolved: whether the target of a link is stored and attached.
public func rootIsLinked(_ forest: Forest, isResolved: (Link) -> Bool) -> Bool {
    guard forest.root >= 0, !forest.trace.entities[Int(forest.root)].entity.links.isEmpty else { return false }
    var result = false
    forEachLinkInUse(of: forest.trace) { index, link in
        if index == Int(forest.root), !result { result = isResolved(link) }
    }
    return result
}

/// What a link to an entity of a (producer's) trace resolves to.
/// - Parameter rootIsLinked: `rootIsLinked(producer, …)`; the source node is `Root` only when it is false.
/// - Returns: nil when the entity is not stored or unattached (ruling R-30).
public func linkFacts(of target: EntityID, in producer: Forest, rootIsLinked: Bool) -> LinkFacts? {
    guard let found = producer.trace.indexes[target], producer.isAttached(found), producer.root >= 0 else { return nil }
    let receiving = producer.trace.account.description
    func identity(_ index: Int32) -> NodeIdentity {
        let entity = producer[index]
        let account = ExactString(entity.accountID ?? receiving)
        guard entity.kind == .subsegment else {
            return NodeIdentity(
                name: ExactString(entity.name), type: entity.origin.map { ExactString($0) }, account: account)
        }
        let service = InferredService(of: entity)
        return NodeIdentity(name: ExactString(service.name), type: ExactString(service.type), account: account)
    }
    let node: Int32
    if producer.isLeafCall(found) {
        node = found
    } else if producer.isResolvedCall(found), let callee = producer.callees(of: found).first {
        node = callee
    } else {
        node = producer.owner[Int(found)]
    }
    let source = identity(node)
    let isActive =
        producer[node].kind == .segment
        || (0..<Int32(producer.count)).contains { producer.isSegment($0) && identity($0) == source }
    return LinkFacts(
        source: source,
        sourceIsActive: isActive,
        sourceIsRoot: !rootIsLinked && identity(producer.root) == source,
        rootStartSecond: floorDivide(producer[producer.root].start, by: 1_000_000),
        targetEnd: producer[found].end)
}

// MARK: - Bytes

extension LinkFacts {
    /// Self-contained bytes for the column `links.facts`; equal facts have equal bytes.
    public var encoded: [UInt8] {
        var writer = ByteWriter()
        var flags: UInt8 = 0
        if sourceIsActive { flags |= 1 }
        if sourceIsRoot { flags |= 2 }
        if source.type != nil { flags |= 4 }
        if targetEnd != nil { flags |= 8 }
        writer.byte(flags)
        writer.signed(rootStartSecond)
        if let targetEnd { writer.signed(targetEnd) }
        writer.text(source.name.value)
        if let type = source.type { writer.text(type.value) }
        writer.text(source.account.value)
        return writer.bytes
    }

    /// Nil when the bytes are not those of `encoded`.
    public init?(decoding bytes: [UInt8]) {
        let decoded = try? bytes.withUnsafeBufferPointer { buffer throws(GraphBlockError) in
            var reader = ByteReader(UnsafeRawBufferPointer(buffer))
            let flags = try reader.byte()
            guard flags < 16 else { throw .corrupt }
            let rootStart = try reader.signed()
            let end = flags & 8 != 0 ? try reader.signed() : nil
            let name = try reader.text()
            let type = flags & 4 != 0 ? try reader.text() : nil
            let account = try reader.text()
            guard reader.isAtEnd else { throw .corrupt }
            return LinkFacts(
                source: NodeIdentity(
                    name: ExactString(name), type: type.map { ExactString($0) }, account: ExactString(account)),
                sourceIsActive: flags & 1 != 0, sourceIsRoot: flags & 2 != 0, rootStartSecond: rootStart, targetEnd: end
            )
        }
        guard let decoded else { return nil }
        self = decoded
    }
}
