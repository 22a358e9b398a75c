// The thread on which all sessions live: an executor whose turn is "wait for sockets, run what was enqueued, let each
// session send everything that came in as one pipeline". libpq is only ever called on it, and never blocks it.

import CPostgreSQL
import Glibc
import Synchronization

/// What the loop calls, always on its thread.
protocol EventLoopMember: AnyObject {
    /// The member's socket is ready (epoll bits).
    func socketIsReady(_ events: UInt32)
    /// All jobs of this turn have run; the member had asked for it with `needsEndOfTurn`.
    func endTurn()
    /// Called about every 25 ms while it returns true; asked for with `needsTicks`.
    func tick() -> Bool
}

/// Unchecked: `members`, `turn` and `ticking` are touched on the loop's thread only (`checkIsolated` guards their use);
/// everything else is constant or behind the mutex.
public final class PostgresEventLoop: SerialExecutor, @unchecked Sendable {
    /// One thread serves all connections of a process (34–60 k queries/s were measured this way).
    public static let shared = PostgresEventLoop()

    private struct Queue {
        var jobs: [UnownedJob] = []
        /// The thread is awake, or its eventfd is set.
        var isAwake = false
    }

    private let queue = Mutex(Queue())
    private let epoll = epoll_create1(Int32(EPOLL_CLOEXEC))
    private let wake = eventfd(0, Int32(EFD_NONBLOCK | EFD_CLOEXEC))
    private let thread = Atomic<UInt>(0)

    private var members: [Int32: any EventLoopMember] = [:]
    private var turn: [any EventLoopMember] = []
    private var ticking: [any EventLoopMember] = []

    public init() {
        var event = epoll_event()
        event.events = EPOLLIN.rawValue
        event.data.fd = wake
        epoll_ctl(epoll, EPOLL_CTL_ADD, wake, &event)
        // The thread owns one reference to the loop and lives as long as the process.
        var handle = pthread_t()
        let context = Unmanaged.passRetained(self).toOpaque()
        let status = pthread_create(
            &handle, nil,
            { context in
                guard let context else { return nil }
                Unmanaged<PostgresEventLoop>.fromOpaque(context).takeRetainedValue().run()
                return nil
            }, context)
        precondition(status == 0 && epoll >= 0 && wake >= 0, "cannot start the PostgreSQL thread: errno \(errno)")
    }

    // MARK: Executor

    public func enqueue(_ job: consuming ExecutorJob) {
        let job = UnownedJob(job)
        let mustWake = queue.withLock { queue in
            queue.jobs.append(job)
            defer { queue.isAwake = true }
            return !queue.isAwake
        }
        if mustWake { eventfd_write(wake, 1) }
    }

    public func checkIsolated() {
        precondition(thread.load(ordering: .relaxed) == UInt(pthread_self()), "called outside the PostgreSQL thread")
    }

    // MARK: For sessions, on the thread

    /// Watches the socket for the given epoll bits, from now on.
    func watch(_ socket: Int32, _ events: UInt32, for member: any EventLoopMember) {
        members[socket] = member
        var event = epoll_event()
        event.events = events
        event.data.fd = socket
        // A descriptor that libpq closed and opened anew has left the set by itself.
        if epoll_ctl(epoll, EPOLL_CTL_MOD, socket, &event) != 0 { epoll_ctl(epoll, EPOLL_CTL_ADD, socket, &event) }
    }

    func unwatch(_ socket: Int32) {
        guard members.removeValue(forKey: socket) != nil else { return }
        var event = epoll_event()
        epoll_ctl(epoll, EPOLL_CTL_DEL, socket, &event)
    }

    func needsEndOfTurn(_ member: any EventLoopMember) { turn.append(member) }

    func needsTicks(_ member: any EventLoopMember) { ticking.append(member) }

    // MARK: The thread

    private func run() {
        thread.store(UInt(pthread_self()), ordering: .relaxed)
        var events = [epoll_event](repeating: epoll_event(), count: 64)
        let executor = asUnownedSerialExecutor()
        var jobs: [UnownedJob] = []
        while true {
            let count = epoll_wait(epoll, &events, Int32(events.count), ticking.isEmpty ? -1 : 25)
            for index in 0..<max(0, Int(count)) {
                let socket = events[index].data.fd
                if socket == wake {
                    var value: eventfd_t = 0
                    eventfd_read(wake, &value)
                } else {
                    members[socket]?.socketIsReady(events[index].events)
                }
            }
            // What jobs enqueue runs in the same turn; the eventfd is needed again only once the queue was seen empty.
            while true {
                queue.withLock {
                    swap(&$0.jobs, &jobs)
                    $0.isAwake = !jobs.isEmpty
                }
                guard !jobs.isEmpty else { break }
                for job in jobs { job.runSynchronously(on: executor) }
                jobs.removeAll(keepingCapacity: true)
            }
            while !turn.isEmpty {
                let members = turn
                turn.removeAll(keepingCapacity: true)
                for member in members { member.endTurn() }
            }
            if !ticking.isEmpty {
                let members = ticking
                ticking.removeAll(keepingCapacity: true)
                for member in members where member.tick() { ticking.append(member) }
            }
        }
    }
}
