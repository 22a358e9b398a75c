// Hands the requests of one connection from its event loop to its task, one at a time.

import Synchronization

/// A slot for one request. The event loop delivers, the task takes; the connection delivers the next request only after
/// the answer to the previous one, so the slot cannot overflow.
final class Mailbox: Sendable {
    private enum State {
        case empty
        case full(IncomingRequest)
        case waiting(UnsafeContinuation<IncomingRequest?, Never>)
        case finished
    }

    /// Continuations are resumed outside the lock, exactly once: whoever takes one out of the state resumes it.
    private let state = Mutex<State>(.empty)

    func deliver(_ request: IncomingRequest) {
        let waiting: UnsafeContinuation<IncomingRequest?, Never>? = state.withLock { state in
            switch state {
            case .waiting(let continuation):
                state = .empty
                return continuation
            case .empty, .full:
                state = .full(request)
                return nil
            case .finished:
                return nil
            }
        }
        waiting?.resume(returning: request)
    }

    /// No more requests: the connection is closed.
    /// - Returns: whether a request that the task had not taken yet was thrown away.
    @discardableResult
    func finish() -> Bool {
        let (waiting, wasFull): (UnsafeContinuation<IncomingRequest?, Never>?, Bool) = state.withLock { state in
            defer { state = .finished }
            return switch state {
            case .waiting(let continuation): (continuation, false)
            case .full: (nil, true)
            case .empty, .finished: (nil, false)
            }
        }
        waiting?.resume(returning: nil)
        return wasFull
    }

    /// The next request, or nil when the connection is closed. Called by one task only.
    func next() async -> IncomingRequest? {
        await withUnsafeContinuation { continuation in
            let ready: IncomingRequest?? = state.withLock { state in
                switch state {
                case .empty, .waiting:
                    state = .waiting(continuation)
                    return nil
                case .full(let request):
                    state = .empty
                    return .some(request)
                case .finished:
                    return .some(nil)
                }
            }
            if let ready { continuation.resume(returning: ready) }
        }
    }
}
