// Numbers per partition that only grow, and tasks that wait for them: ends of the log, positions of the aggregator.
// Whoever learns of a new number reports it here; a waiter is resumed once, outside the lock.

import Synchronization

public final class OffsetWatch: Sendable {
    private struct Waiter {
        var thresholds: [(partition: Int, offset: Int64)]
        var needsAll: Bool
        var continuation: UnsafeContinuation<Bool, Never>
    }

    private struct State {
        var offsets: [Int: Int64] = [:]
        var waiters: [Int: Waiter] = [:]
        /// Waits whose time ran out before they were entered.
        var expired: Set<Int> = []
        var nextID = 0
    }

    private let state = Mutex(State())

    public init() {}

    public var hasWaiters: Bool { state.withLock { !$0.waiters.isEmpty } }

    /// The highest number reported for a partition.
    public func offset(of partition: Int) -> Int64? { state.withLock { $0.offsets[partition] } }

    /// Reports numbers; lower ones than known are ignored.
    public func report(_ offsets: [(partition: Int, offset: Int64)]) {
        let due = state.withLock { state in
            for (partition, offset) in offsets {
                state.offsets[partition] = max(offset, state.offsets[partition] ?? .min)
            }
            let ids = state.waiters.filter { Self.isMet($0.value, state.offsets) }.map(\.key)
            return ids.compactMap { state.waiters.removeValue(forKey: $0)?.continuation }
        }
        for continuation in due { continuation.resume(returning: true) }
    }

    private static func isMet(_ waiter: Waiter, _ offsets: [Int: Int64]) -> Bool {
        func isReached(_ threshold: (partition: Int, offset: Int64)) -> Bool {
            (offsets[threshold.partition] ?? .min) >= threshold.offset
        }
        return waiter.needsAll ? waiter.thresholds.allSatisfy(isReached) : waiter.thresholds.contains(where: isReached)
    }

    /// Waits until one (or each) of the partitions has reached its threshold.
    /// - Returns: false after the time-out or on cancellation.
    public func wait(
        for thresholds: [(partition: Int, offset: Int64)], all: Bool, timeout: Duration
    ) async -> Bool {
        let id = state.withLock { state in
            state.nextID += 1
            return state.nextID
        }
        // The timer is a child that ends with the wait; sleeping costs nothing but a timer.
        defer { state.withLock { _ = $0.expired.remove(id) } }
        return await withTaskGroup(of: Void.self) { group in
            group.addTask {
                try? await Task.sleep(for: timeout)
                let waiter = self.state.withLock { state in
                    let waiter = state.waiters.removeValue(forKey: id)
                    if waiter == nil { state.expired.insert(id) }
                    return waiter
                }
                waiter?.continuation.resume(returning: false)
            }
            let isMet = await withUnsafeContinuation { continuation in
                let waiter = Waiter(thresholds: thresholds, needsAll: all, continuation: continuation)
                let known: Bool? = state.withLock { state in
                    if Self.isMet(waiter, state.offsets) { return true }
                    if timeout <= .zero || state.expired.contains(id) { return false }
                    state.waiters[id] = waiter
                    return nil
                }
                if let known { continuation.resume(returning: known) }
            }
            group.cancelAll()
            return isMet
        }
    }
}
