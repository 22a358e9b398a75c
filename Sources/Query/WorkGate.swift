// Bounds the memory of the query role: a trace may be half a megabyte of documents, so requests take units for the traces
// they hold in memory and wait their turn, first come, first served. A queue that is full refuses (503).

import Synchronization
import XRayAPI

/// A fair counting semaphore with a bounded queue.
final class WorkGate: Sendable {
    private struct Waiter {
        var id: Int
        var units: Int
        var continuation: CheckedContinuation<Bool, Never>
    }

    private struct State {
        var freeUnits: Int
        var waiters: [Waiter] = []
        var nextID = 0

        /// Waiters at the head of the queue that fit now.
        mutating func admit() -> [Waiter] {
            var admitted: [Waiter] = []
            while let first = waiters.first, first.units <= freeUnits {
                freeUnits -= first.units
                admitted.append(waiters.removeFirst())
            }
            return admitted
        }
    }

    private let state: Mutex<State>
    private let capacity: Int
    private let maxWaiters: Int

    init(capacity: Int, maxWaiters: Int) {
        self.capacity = capacity
        self.maxWaiters = maxWaiters
        state = Mutex(State(freeUnits: capacity))
    }

    /// Runs `body` holding `units` (more than there are count as all of them).
    /// - Throws: `ServiceUnavailable` when too many wait already or the task is cancelled.
    func withUnits<Value>(
        _ units: Int, _ body: () async throws(APIError) -> Value
    ) async throws(APIError) -> Value {
        let taken = min(max(units, 1), capacity)
        guard await acquire(taken) else { throw .serviceUnavailable("Too many queries are running") }
        defer { release(taken) }
        return try await body()
    }

    /// Requests waiting now.
    var waiterCount: Int { state.withLock { $0.waiters.count } }

    private func acquire(_ units: Int) async -> Bool {
        let id = state.withLock { state in
            state.nextID += 1
            return state.nextID
        }
        return await withTaskCancellationHandler {
            await withCheckedContinuation { continuation in
                // Cancelled before it queues: the handler below found nothing to take out.
                let isCancelled = Task.isCancelled
                let verdict: Bool? = state.withLock { state in
                    if isCancelled { return false }
                    if state.waiters.isEmpty, units <= state.freeUnits {
                        state.freeUnits -= units
                        return true
                    }
                    guard state.waiters.count < maxWaiters else { return false }
                    state.waiters.append(Waiter(id: id, units: units, continuation: continuation))
                    return nil
                }
                if let verdict { continuation.resume(returning: verdict) }
            }
        } onCancel: {
            let (waiter, admitted) = state.withLock { state -> (Waiter?, [Waiter]) in
                guard let index = state.waiters.firstIndex(where: { $0.id == id }) else { return (nil, []) }
                let waiter = state.waiters.remove(at: index)
                return (waiter, state.admit())
            }
            waiter?.continuation.resume(returning: false)
            for other in admitted { other.continuation.resume(returning: true) }
        }
    }

    private func release(_ units: Int) {
        let admitted = state.withLock { state in
            state.freeUnits += units
            return state.admit()
        }
        for waiter in admitted { waiter.continuation.resume(returning: true) }
    }
}
