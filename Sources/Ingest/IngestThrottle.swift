// How many documents an account may send per second: a token bucket per account, kept by this node
// (`api.md` §1.5; off by default, ruling 8). The clock comes in as a parameter.

import Segments
import Synchronization

public final class IngestThrottle: Sendable {
    private struct Bucket {
        var tokens: Double
        var filledAt: Micros
    }

    private let documentsPerSecond: Double
    private let buckets = Mutex<[AccountID: Bucket]>([:])

    /// - Parameter documentsPerSecond: 0 for no limit. The bucket holds two seconds' worth.
    public init(documentsPerSecond: Double) { self.documentsPerSecond = documentsPerSecond }

    /// Takes one token per document. A request may overdraw the bucket: otherwise one larger than the bucket would be
    /// refused for ever.
    /// - Returns: false when the account's bucket is empty.
    public func admit(_ documents: Int, of account: AccountID, at now: Micros) -> Bool {
        guard documentsPerSecond > 0 else { return true }
        return buckets.withLock { buckets in
            var bucket = buckets[account] ?? Bucket(tokens: 2 * documentsPerSecond, filledAt: now)
            let elapsed = Double(max(0, now - bucket.filledAt)) / 1e6
            bucket.tokens = min(2 * documentsPerSecond, bucket.tokens + elapsed * documentsPerSecond)
            bucket.filledAt = max(now, bucket.filledAt)
            defer { buckets[account] = bucket }
            guard bucket.tokens > 0 else { return false }
            bucket.tokens -= Double(documents)
            return true
        }
    }
}
