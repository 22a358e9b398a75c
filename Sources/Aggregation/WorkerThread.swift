// One thread as an actor's executor. Folding is seconds of pure computation per minute of load; on the cooperative pool
// it would hold up the requests of clients, on a thread of its own the kernel shares the cores fairly.

import Foundation

/// A serial executor that runs its jobs on one thread of its own. The thread lives as long as the process.
final class WorkerThread: SerialExecutor, @unchecked Sendable {
    // `jobs` is guarded by `condition`; the thread holds the lock only to take what is queued.
    private let condition = NSCondition()
    private var jobs: [UnownedJob] = []

    init(name: String) {
        let thread = Thread { [self] in
            // Given before the start, Foundation for Linux would not tell the kernel.
            Thread.current.name = name
            run()
        }
        // A parse of 512 nested levels and a fold are iterative, but a roomy stack costs nothing until used.
        thread.stackSize = 4 << 20
        thread.start()
    }

    func enqueue(_ job: consuming ExecutorJob) {
        let job = UnownedJob(job)
        condition.lock()
        jobs.append(job)
        condition.signal()
        condition.unlock()
    }

    private func run() {
        var taken: [UnownedJob] = []
        while true {
            condition.lock()
            while jobs.isEmpty { condition.wait() }
            swap(&taken, &jobs)
            condition.unlock()
            for job in taken { job.runSynchronously(on: asUnownedSerialExecutor()) }
            taken.removeAll(keepingCapacity: true)
        }
    }

    func asUnownedSerialExecutor() -> UnownedSerialExecutor { UnownedSerialExecutor(ordinary: self) }
}
