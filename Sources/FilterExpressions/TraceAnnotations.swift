// Who carries which annotations of a trace. A trace has at most 50 indexed pairs (`segments.md` §11), so what an entity
// carries is a set of bits, and no test walks the trace again. In: a forest. Callers: annotation tests.

import Segments
import TraceAssembly

struct TraceAnnotations {
    /// The distinct pairs; bit n of a set stands for `pairs[n]`. There are no more than 50, so 64 bits are enough.
    private(set) var pairs: [(key: ExactString, value: IndexedValue)] = []
    /// Per entity, empty without pairs: what it carries itself, and what it carries with the subsegments below it (up
    /// to where another segment begins).
    private var ownSets: [UInt64] = []
    private var setsBelow: [UInt64] = []

    init(_ forest: Forest) {
        let carriers = forest.indexedAnnotations()
        guard !carriers.isEmpty else { return }
        struct Pair: Hashable {
            var key: ExactString
            var value: IndexedValue
        }
        var numbers: [Pair: Int] = [:]
        ownSets = [UInt64](repeating: 0, count: forest.count)
        for carrier in carriers {
            let pair = Pair(key: carrier.key, value: carrier.value)
            let number = numbers[pair] ?? pairs.count
            if number == pairs.count {
                numbers[pair] = number
                pairs.append((carrier.key, carrier.value))
            }
            ownSets[Int(carrier.entity)] |= 1 << UInt64(number)
        }
        setsBelow = ownSets
        // Parents before children, then backwards: every entity is complete before it is added to its parent.
        var order = (0..<Int32(forest.count)).filter { forest.owner[Int($0)] == $0 }
        var next = 0
        while next < order.count {
            order += forest.children(of: order[next]).filter { forest.owner[Int($0)] != $0 }
            next += 1
        }
        for index in order.reversed() where forest.owner[Int(index)] != index {
            setsBelow[Int(forest.parent[Int(index)])] |= setsBelow[Int(index)]
        }
    }

    func own(_ entity: Int32) -> UInt64 { ownSets.isEmpty ? 0 : ownSets[Int(entity)] }

    func below(_ entity: Int32) -> UInt64 { setsBelow.isEmpty ? 0 : setsBelow[Int(entity)] }

    /// What the segments of each node carry together; nothing for inferred and client nodes (ruling R-20).
    func perNode(_ nodes: TraceNodes) -> [UInt64] {
        var sets = [UInt64](repeating: 0, count: nodes.nodes.count)
        for occurrence in nodes.occurrences where occurrence.kind == .segment {
            sets[occurrence.node] |= below(occurrence.entity)
        }
        return sets
    }
}
