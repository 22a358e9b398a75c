// Threads of their own for blocking clients. Dispatch would not do: on Linux Swift's tasks run on its threads, so
// waiting tests would keep the server from running.

import Glibc

struct Thread: @unchecked Sendable {
    // Unchecked: a pthread handle may be joined from any thread; every test joins once.
    private let handle: pthread_t

    init(_ work: @escaping @Sendable () -> Void) {
        final class Work {
            let run: () -> Void
            init(_ run: @escaping () -> Void) { self.run = run }
        }
        var handle = pthread_t()
        // The thread takes over the reference that is passed to it.
        pthread_create(
            &handle, nil,
            { argument in
                guard let argument else { return nil }
                Unmanaged<Work>.fromOpaque(argument).takeRetainedValue().run()
                return nil
            }, Unmanaged.passRetained(Work(work)).toOpaque())
        self.handle = handle
    }

    func join() { pthread_join(handle, nil) }

    func detach() { pthread_detach(handle) }
}

/// Runs blocking work on a thread of its own.
func onThread<Result: Sendable>(_ work: @escaping @Sendable () throws -> Result) async throws -> Result {
    try await withCheckedThrowingContinuation { continuation in
        Thread { continuation.resume(with: Swift.Result { try work() }) }.detach()
    }
}

/// Waits, on a thread of the caller's own, until a condition holds, at most 20 s.
func waitUntil(_ condition: () -> Bool) -> Bool {
    let deadline = ContinuousClock.now + .seconds(20)
    while !condition() {
        if ContinuousClock.now > deadline { return false }
        usleep(1000)
    }
    return true
}
