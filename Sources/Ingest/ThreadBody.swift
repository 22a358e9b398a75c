// A closure on a POSIX thread of its own, for loops that block in the kernel.

import Glibc

// The closure is handed to exactly one thread, which owns it from `start` on.
final class ThreadBody: @unchecked Sendable {
    private let body: @Sendable () -> Void

    init(_ body: @escaping @Sendable () -> Void) { self.body = body }

    func start(named name: String) {
        var thread = pthread_t()
        // The new thread takes back the reference retained here.
        let argument = Unmanaged.passRetained(self).toOpaque()
        let code = pthread_create(
            &thread, nil,
            { argument in
                guard let argument else { return nil }
                Unmanaged<ThreadBody>.fromOpaque(argument).takeRetainedValue().body()
                return nil
            }, argument)
        precondition(code == 0, "cannot create the thread \(name)")
        pthread_detach(thread)
    }
}
