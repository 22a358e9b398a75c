// Records done of records expected, counted by several threads.

import Synchronization

final class Counter: Sendable {
    private let state: Mutex<(done: Int, total: Int)>

    init(done: Int = 0) { state = Mutex((done, done)) }

    var done: Int { state.withLock { $0.done } }
    var total: Int { state.withLock { $0.total } }

    /// So many more are to come.
    func expect(_ count: Int) { state.withLock { $0.total = $0.done + count } }

    /// - Returns: how many are done.
    @discardableResult
    func add(_ count: Int) -> Int {
        state.withLock { state in
            state.done += count
            state.total = max(state.total, state.done)
            return state.done
        }
    }
}
