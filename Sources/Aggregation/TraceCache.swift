// Traces that are still growing, kept folded so that their next document needs no read. Bounded by weight (entities),
// least recently used first out. A trace that was evicted is rebuilt from its stored documents: the cache decides
// how fast an answer comes, never what it is.

import Segments
import ServiceGraph
import TraceAssembly
import TraceStore

/// A trace with what its last contributions were computed from.
struct CachedTrace {
    var trace: Trace
    /// Version of its row in `traces`; 0 = no row yet.
    var version: Int
    /// Facts about link targets that the stored contributions used.
    var usedFacts: [Link: LinkFacts]
    /// False: the indexing rule left the trace out, so it has no summary and contributes nothing.
    var isIndexed = true
    var memberships: [Membership] = []
}

struct TraceCache {
    private final class Node {
        let key: TraceKey
        let value: CachedTrace
        let weight: Int
        var newer: Node?
        unowned(unsafe) var older: Node?

        init(key: TraceKey, value: CachedTrace) {
            self.key = key
            self.value = value
            weight = TraceCache.weight(of: value)
        }
    }

    /// Sum of the weights at which eviction starts; a trace weighs 1 + its entities.
    private let capacity: Int
    private var nodes: [TraceKey: Node] = [:]
    private var newest: Node?
    /// Owner of the chain: oldest → newest by `newer`.
    private var oldest: Node?
    private(set) var weight = 0

    init(capacity: Int) {
        self.capacity = capacity
        nodes.reserveCapacity(min(capacity / 8, 1 << 16))
    }

    var count: Int { nodes.count }

    func contains(_ key: TraceKey) -> Bool { nodes[key] != nil }

    /// The trace, taken out to be changed without a copy; `put` gives it back.
    mutating func take(_ key: TraceKey) -> CachedTrace? {
        guard let node = nodes.removeValue(forKey: key) else { return nil }
        unlink(node)
        weight -= node.weight
        return node.value
    }

    mutating func put(_ value: CachedTrace, for key: TraceKey) {
        let node = Node(key: key, value: value)
        nodes[key] = node
        if let newest {
            newest.newer = node
            node.older = newest
        } else {
            oldest = node
        }
        newest = node
        weight += node.weight
    }

    /// Drops the least recently used traces until `room` more fits into the capacity, or nothing is left.
    mutating func evict(room: Int) {
        while weight > capacity - room, let victim = oldest {
            nodes[victim.key] = nil
            unlink(victim)
            weight -= victim.weight
        }
    }

    /// Drops one trace, if it is there.
    mutating func remove(_ key: TraceKey) { _ = take(key) }

    /// Drops the traces that a condition holds for.
    mutating func removeAll(where isGone: (TraceKey) -> Bool) {
        for key in nodes.keys.filter(isGone) { remove(key) }
    }

    mutating func removeAll() {
        // Unchained one by one: releasing a long chain at once would recurse once per node.
        while let victim = oldest { unlink(victim) }
        nodes.removeAll(keepingCapacity: true)
        weight = 0
    }

    private mutating func unlink(_ node: Node) {
        let older = node.older
        let newer = node.newer
        newer?.older = older
        if let older { older.newer = newer } else { oldest = newer }
        if newer == nil { newest = older }
        node.newer = nil
        node.older = nil
    }

    static func weight(of value: CachedTrace) -> Int { 1 + value.trace.entities.count }
}
