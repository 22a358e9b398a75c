// Token buckets per (account, operation class), kept by this process (`api.md` §1.5). A request takes one unit before
// it runs; what it really cost is only known afterwards and may put the bucket into debt, which later requests wait
// for.

import Segments
import Synchronization

final class RateLimiter: Sendable {
    private struct Key: Hashable {
        var account: AccountID
        var operationClass: OperationClass
    }

    private struct Bucket {
        var tokens: Double
        var refilledAt: Micros
    }

    private let limits: [OperationClass: APIServiceConfiguration.RateLimit]
    /// One bucket per account that ever called: bounded by the directory.
    private let buckets = Mutex<[Key: Bucket]>([:])

    init(_ limits: [OperationClass: APIServiceConfiguration.RateLimit]) {
        self.limits = limits.filter { $0.value.rate > 0 }
    }

    /// - Returns: nil when the request may run, else the whole seconds after which it may be tried again.
    func admit(_ account: AccountID, _ operationClass: OperationClass, now: Micros) -> Int? {
        guard let limit = limits[operationClass] else { return nil }
        return buckets.withLock { buckets in
            let key = Key(account: account, operationClass: operationClass)
            var bucket = buckets[key] ?? Bucket(tokens: max(limit.burst, 1), refilledAt: now)
            let elapsed = Double(max(0, now - bucket.refilledAt)) / 1_000_000
            bucket.tokens = min(max(limit.burst, 1), bucket.tokens + elapsed * limit.rate)
            bucket.refilledAt = max(now, bucket.refilledAt)
            defer { buckets[key] = bucket }
            guard bucket.tokens >= 1 else {
                return Int(min(3600, max(1, ((1 - bucket.tokens) / limit.rate).rounded(.up))))
            }
            bucket.tokens -= 1
            return nil
        }
    }

    /// Charges what a request cost beyond the unit it took on admission.
    func charge(_ account: AccountID, _ operationClass: OperationClass, cost: Int) {
        guard cost > 1, limits[operationClass] != nil else { return }
        buckets.withLock { $0[Key(account: account, operationClass: operationClass)]?.tokens -= Double(cost - 1) }
    }
}
