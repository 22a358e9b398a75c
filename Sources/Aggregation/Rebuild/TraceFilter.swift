// Which traces a worker has seen, approximately: it never forgets one, and takes one in a hundred new ones for known. A new
// trace need not be looked for in tables that were empty when the worker began.

import Segments
import TraceStore

struct TraceFilter {
    private var words: [UInt64]
    private let mask: UInt64

    /// - Parameter recordCount: of the log that is to come; bounds the memory to 32 MiB.
    init(recordCount: Int) {
        // Four bits a record are some twenty a trace.
        var bits = 1 << 16
        while bits < recordCount * 4, bits < 1 << 28 { bits *= 2 }
        words = [UInt64](repeating: 0, count: bits / 64)
        mask = UInt64(bits / 64 - 1)
    }

    /// - Returns: false when the trace may have been inserted before.
    mutating func insert(_ key: TraceKey) -> Bool {
        var hash = (key.id.high ^ key.account.rawValue &* 0x9E37_79B9_7F4A_7C15) &* 0xFF51_AFD7_ED55_8CCD
        hash = (hash ^ hash >> 33 ^ key.id.low) &* 0xC4CE_B9FE_1A85_EC53
        hash = (hash ^ hash >> 33) &* 0x9E37_79B9_7F4A_7C15
        // Three bits of one word.
        let pattern: UInt64 = 1 << (hash & 63) | 1 << (hash >> 6 & 63) | 1 << (hash >> 12 & 63)
        let index = Int(hash >> 20 & mask)
        defer { words[index] |= pattern }
        return words[index] & pattern != pattern
    }
}
