// The bytes of request bodies that all connections together may hold. A request that does not fit is answered 503,
// so that many or slow senders cannot make the process grow.

import Synchronization

final class ByteBudget: Sendable {
    private let limit: Int
    private let used = Atomic<Int>(0)

    init(limit: Int) { self.limit = limit }

    /// - Returns: false when the bytes do not fit; nothing is taken then.
    func take(_ count: Int) -> Bool {
        guard used.wrappingAdd(count, ordering: .relaxed).newValue <= limit else {
            used.wrappingSubtract(count, ordering: .relaxed)
            return false
        }
        return true
    }

    func giveBack(_ count: Int) {
        guard count > 0 else { return }
        used.wrappingSubtract(count, ordering: .relaxed)
    }

    var usedBytes: Int { used.load(ordering: .relaxed) }
}
