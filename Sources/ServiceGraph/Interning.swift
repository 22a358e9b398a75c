// Strings, nodes and edges as small integers, so that the observations of a batch or a window are summed by integer keys.
// Used by the accumulator (one per batch), the block codec and the builder (one per query); never shared between them.

import Segments

/// Floor division: the second of a time, the minute of a second; correct before 1970 too.
@inline(__always)
func floorDivide(_ value: Int64, by divisor: Int64) -> Int64 {
    let quotient = value / divisor
    return value % divisor < 0 ? quotient - 1 : quotient
}

/// Distinct byte strings, numbered in order of first sight.
struct StringTable {
    private(set) var strings: [String] = []
    private var hashes: [UInt64] = []
    private var slots = [Int32](repeating: -1, count: 64)
    // Names come from documents: without a random seed one could craft names that all collide.
    private let seed = UInt64.random(in: .min ... .max)

    mutating func intern(_ text: String) -> Int32 {
        var text = text
        let hash = text.withUTF8 { Self.hash($0, seed: seed) }
        let mask = slots.count &- 1
        var slot = Int(truncatingIfNeeded: hash) & mask
        while true {
            let found = slots[slot]
            if found < 0 { break }
            if hashes[Int(found)] == hash, Self.equalBytes(&text, strings[Int(found)]) { return found }
            slot = (slot &+ 1) & mask
        }
        let number = Int32(strings.count)
        strings.append(text)
        hashes.append(hash)
        slots[slot] = number
        if strings.count * 2 > slots.count { grow() }
        return number
    }

    private mutating func grow() {
        slots = [Int32](repeating: -1, count: slots.count * 2)
        let mask = slots.count &- 1
        for (number, hash) in hashes.enumerated() {
            var slot = Int(truncatingIfNeeded: hash) & mask
            while slots[slot] >= 0 { slot = (slot &+ 1) & mask }
            slots[slot] = Int32(number)
        }
    }

    private static func equalBytes(_ a: inout String, _ b: String) -> Bool {
        var b = b
        return a.withUTF8 { left in
            b.withUTF8 { right in
                guard left.count == right.count else { return false }
                let left = UnsafeRawBufferPointer(left)
                let right = UnsafeRawBufferPointer(right)
                var offset = 0
                while offset &+ 8 <= left.count {
                    let a = left.loadUnaligned(fromByteOffset: offset, as: UInt64.self)
                    if a != right.loadUnaligned(fromByteOffset: offset, as: UInt64.self) { return false }
                    offset &+= 8
                }
                while offset < left.count {
                    if left[offset] != right[offset] { return false }
                    offset &+= 1
                }
                return true
            }
        }
    }

    private static func hash(_ bytes: UnsafeBufferPointer<UInt8>, seed: UInt64) -> UInt64 {
        let raw = UnsafeRawBufferPointer(bytes)
        var state = seed ^ UInt64(truncatingIfNeeded: raw.count)
        var offset = 0
        while offset &+ 8 <= raw.count {
            state = mix(state ^ raw.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
            offset &+= 8
        }
        var tail: UInt64 = 0
        while offset < raw.count {
            tail = tail << 8 | UInt64(raw[offset])
            offset &+= 1
        }
        return mix(state ^ tail)
    }

    @inline(__always)
    private static func mix(_ value: UInt64) -> UInt64 {
        let (high, low) = (value ^ 0x9e37_79b9_7f4a_7c15).multipliedFullWidth(by: 0xe703_7ed1_a0b4_28db)
        return high ^ low
    }
}

/// 64-bit keys, numbered in order of first sight.
struct KeyTable {
    private(set) var keys: [UInt64] = []
    private var slots = [Int32](repeating: -1, count: 64)

    mutating func intern(_ key: UInt64) -> Int32 {
        let mask = slots.count &- 1
        var slot = Self.hash(key) & mask
        while true {
            let found = slots[slot]
            if found < 0 { break }
            if keys[Int(found)] == key { return found }
            slot = (slot &+ 1) & mask
        }
        let number = Int32(keys.count)
        keys.append(key)
        slots[slot] = number
        if keys.count * 2 > slots.count { grow() }
        return number
    }

    private mutating func grow() {
        slots = [Int32](repeating: -1, count: slots.count * 2)
        let mask = slots.count &- 1
        for (number, key) in keys.enumerated() {
            var slot = Self.hash(key) & mask
            while slots[slot] >= 0 { slot = (slot &+ 1) & mask }
            slots[slot] = Int32(number)
        }
    }

    @inline(__always)
    private static func hash(_ key: UInt64) -> Int {
        let product = (key ^ (key >> 32)) &* 0x9e37_79b9_7f4a_7c15
        return Int(truncatingIfNeeded: product >> 20)
    }
}

/// The nodes, edges and aliases that observations speak of.
struct GraphTables {
    var strings = StringTable()
    /// (name, type + 1 or 0) → number; also what an alias is (it has no account on the wire).
    private(set) var labels = KeyTable()
    /// (label, account) → node.
    private(set) var nodes = KeyTable()
    /// (source, destination, is link) → edge.
    private(set) var edges = KeyTable()

    mutating func label(name: String, type: String?) -> Int32 {
        let name = strings.intern(name)
        guard let type else { return label(nameNumber: name, typeNumber: -1) }
        return label(nameNumber: name, typeNumber: strings.intern(type))
    }

    mutating func label(nameNumber: Int32, typeNumber: Int32) -> Int32 {
        labels.intern(UInt64(UInt32(bitPattern: nameNumber)) << 32 | UInt64(UInt32(bitPattern: typeNumber &+ 1)))
    }

    mutating func node(label: Int32, account: Int32) -> Int32 {
        nodes.intern(UInt64(UInt32(bitPattern: label)) << 32 | UInt64(UInt32(bitPattern: account)))
    }

    mutating func edge(from source: Int32, to destination: Int32, isLink: Bool) -> Int32 {
        edges.intern(
            UInt64(UInt32(bitPattern: source)) << 32 | UInt64(UInt32(bitPattern: destination)) << 1 | (isLink ? 1 : 0))
    }

    func labelParts(_ label: Int32) -> (name: Int32, type: Int32) {
        let key = labels.keys[Int(label)]
        return (Int32(truncatingIfNeeded: key >> 32), Int32(truncatingIfNeeded: key & 0xffff_ffff) &- 1)
    }

    func nodeParts(_ node: Int32) -> (label: Int32, account: Int32) {
        let key = nodes.keys[Int(node)]
        return (Int32(truncatingIfNeeded: key >> 32), Int32(truncatingIfNeeded: key & 0xffff_ffff))
    }

    func edgeParts(_ edge: Int32) -> (source: Int32, destination: Int32, isLink: Bool) {
        let key = edges.keys[Int(edge)]
        return (Int32(truncatingIfNeeded: key >> 32), Int32(truncatingIfNeeded: (key & 0xffff_ffff) >> 1), key & 1 == 1)
    }
}

/// Places of the entries of a `GraphTables` in canonical order: strings by code point (UTF-8 bytes), labels by name then
/// type (absent first), nodes by label then account, edges by source, destination, synchronous first.
struct CanonicalOrder {
    var strings: [Int32]
    var labels: [Int32]
    var nodes: [Int32]
    var edges: [Int32]

    init(_ tables: GraphTables) {
        let texts = tables.strings.strings
        strings = Self.ranks(count: texts.count) { ExactString(texts[$0]) < ExactString(texts[$1]) }
        let stringRanks = strings
        func packed(_ high: Int32, _ low: Int32) -> UInt64 {
            UInt64(UInt32(bitPattern: high)) << 32 | UInt64(UInt32(bitPattern: low))
        }
        let labelKeys = tables.labels.keys.indices.map { index in
            let parts = tables.labelParts(Int32(index))
            return packed(stringRanks[Int(parts.name)], parts.type < 0 ? 0 : stringRanks[Int(parts.type)] + 1)
        }
        labels = Self.ranks(count: labelKeys.count) { labelKeys[$0] < labelKeys[$1] }
        let labelRanks = labels
        let nodeKeys = tables.nodes.keys.indices.map { index in
            let parts = tables.nodeParts(Int32(index))
            return packed(labelRanks[Int(parts.label)], stringRanks[Int(parts.account)])
        }
        nodes = Self.ranks(count: nodeKeys.count) { nodeKeys[$0] < nodeKeys[$1] }
        let nodeRanks = nodes
        let edgeKeys = tables.edges.keys.indices.map { index in
            let parts = tables.edgeParts(Int32(index))
            return packed(nodeRanks[Int(parts.source)], nodeRanks[Int(parts.destination)] << 1 | (parts.isLink ? 1 : 0))
        }
        edges = Self.ranks(count: edgeKeys.count) { edgeKeys[$0] < edgeKeys[$1] }
    }

    private static func ranks(count: Int, by precedes: (Int, Int) -> Bool) -> [Int32] {
        var ranks = [Int32](repeating: 0, count: count)
        for (rank, index) in (0..<count).sorted(by: precedes).enumerated() { ranks[index] = Int32(rank) }
        return ranks
    }
}
