// A set of the traces of one search segment, by their ordinals: one bit a trace.

public struct TraceSet: Sendable, Hashable {
    public internal(set) var words: [UInt64]
    public let capacity: Int

    public init(capacity: Int) {
        self.capacity = capacity
        words = [UInt64](repeating: 0, count: (capacity + 63) / 64)
    }

    public static func full(_ capacity: Int) -> TraceSet {
        var set = TraceSet(capacity: capacity)
        for index in set.words.indices { set.words[index] = .max }
        set.trim()
        return set
    }

    private mutating func trim() {
        let rest = capacity & 63
        if rest > 0, let last = words.indices.last { words[last] &= (1 << UInt64(rest)) - 1 }
    }

    @inline(__always)
    mutating func insert(_ ordinal: Int) { words[ordinal >> 6] |= 1 << UInt64(ordinal & 63) }

    public func contains(_ ordinal: Int) -> Bool { words[ordinal >> 6] >> UInt64(ordinal & 63) & 1 == 1 }

    public var count: Int { words.reduce(0) { $0 + $1.nonzeroBitCount } }
    public var isEmpty: Bool { words.allSatisfy { $0 == 0 } }

    /// Number of members among the ordinals of a block (`SearchSegment.blockTraces`).
    public func count(inBlock block: Int) -> Int {
        let start = block * SearchSegment.blockTraces / 64
        return words[start..<min(start + SearchSegment.blockTraces / 64, words.count)].reduce(0) {
            $0 + $1.nonzeroBitCount
        }
    }

    /// Members among the ordinals of a block, ascending.
    public func members(inBlock block: Int) -> [Int] {
        let start = block * SearchSegment.blockTraces / 64
        var members: [Int] = []
        for index in start..<min(start + SearchSegment.blockTraces / 64, words.count) {
            var word = words[index]
            while word != 0 {
                members.append(index << 6 | word.trailingZeroBitCount)
                word &= word - 1
            }
        }
        return members
    }

    public mutating func formUnion(_ other: TraceSet) {
        for index in words.indices { words[index] |= other.words[index] }
    }

    public mutating func formIntersection(_ other: TraceSet) {
        for index in words.indices { words[index] &= other.words[index] }
    }

    mutating func complement() {
        for index in words.indices { words[index] = ~words[index] }
        trim()
    }

    /// From the little-endian words of a stored bitmap; nil when it has another size.
    init?(bitmap: ArraySlice<UInt8>, capacity: Int) {
        self.init(capacity: capacity)
        guard bitmap.count == words.count * 8 else { return nil }
        bitmap.withUnsafeBytes { source in
            for index in words.indices {
                words[index] = UInt64(littleEndian: source.loadUnaligned(fromByteOffset: index * 8, as: UInt64.self))
            }
        }
    }
}
