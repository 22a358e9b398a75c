// The number a trace is sampled by (`sampling.md` §10.2): the same on every node and for every retry, and independent of
// the bits of the id, so that it neither repeats nor cancels a sender's own sampling.

import Crypto
import Segments

extension TraceID {
    /// U(T) in [0, 1): first 8 bytes of SHA-256 of `xray-sampling-v1:` + 32 hex digits, divided by 2^64. Keep iff U(T) < p.
    public var samplingFraction: Double {
        var hash = SHA256()
        hash.update(data: Array("xray-sampling-v1:\(bareHex)".utf8))
        let first = hash.finalize().prefix(8).reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        // 53 bits are what a double holds; more would round up to 1.
        return Double(first >> 11) / 9_007_199_254_740_992
    }
}
