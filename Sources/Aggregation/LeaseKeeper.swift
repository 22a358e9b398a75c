// Keeps a process known in its cluster: registers it, beats about twice a second, remembers what the last beat saw. The
// aggregator of the process acts on that; other roles only want to be seen. Runs as a service that outlives the
// aggregator; a process that leaves in order gives its partitions free at once.

import Logging
import Observability
import PostgreSQL
import ServiceLifecycle
import Synchronization
import TraceStore

public final class LeaseKeeper: Service {
    /// What a beat saw.
    struct Look: Sendable {
        var view: ClusterView
        /// When the beat was sent: whatever happened later may be missing.
        var askedAt: ContinuousClock.Instant
        /// Grows when the view changes.
        var number: Int
    }

    private struct State {
        var look: Look?
        var heldUntil: ContinuousClock.Instant?
        var isHurried = false
        var hasLeft = false
        var owned: Set<Int> = []
    }

    let registry: NodeRegistry
    private let interval: Duration
    private let beforeBeat: @Sendable () async -> Void
    private let metrics: Metrics
    private let logger: Logger
    private let state = Mutex(State())
    /// Its only number is that of the newest look.
    private let looks = OffsetWatch()
    private let clock = ContinuousClock()

    /// - Parameters:
    ///   - interval: from one beat to the next; several must fit into the registry's lease.
    ///   - beforeBeat: awaited before each beat; a test holds up a worker with it.
    public init(
        registry: NodeRegistry, interval: Duration = .milliseconds(400), metrics: Metrics, logger: Logger,
        beforeBeat: @escaping @Sendable () async -> Void = {}
    ) {
        self.registry = registry
        self.interval = interval
        self.beforeBeat = beforeBeat
        self.metrics = metrics
        self.logger = logger
    }

    public func run() async throws {
        await cancelWhenGracefulShutdown {
            var isKnown = false
            var isFailing = false
            while !Task.isCancelled {
                await self.beforeBeat()
                do {
                    isKnown = try await self.beat(isKnown: isKnown)
                    isFailing = false
                } catch {
                    if !isFailing {
                        self.logger.warning("PostgreSQL does not take the heartbeat", metadata: ["reason": "\(error)"])
                    }
                    isFailing = true
                }
                let isHurried = self.state.withLock { $0.isHurried } || !isKnown
                try? await Task.sleep(for: isHurried ? self.interval / 5 : self.interval)
            }
        }
        await leave()
        await registry.close()
    }

    /// Of a keeper that never ran.
    public func close() async { await registry.close() }

    /// - Returns: whether the node is registered.
    private func beat(isKnown: Bool) async throws(TraceStoreError) -> Bool {
        guard !state.withLock({ $0.hasLeft }) else { return true }
        if !isKnown { try await registry.register() }
        let askedAt = clock.now
        guard let view = try await registry.beat() else { return false }
        let number = state.withLock { state in
            state.heldUntil = askedAt + registry.leaseDuration
            let last = state.look?.number ?? 0
            let number = view == state.look?.view ? last : last + 1
            state.look = Look(view: view, askedAt: askedAt, number: number)
            return number
        }
        metrics.liveWorkers(view.workers.count)
        looks.report([(0, Int64(number))])
        return true
    }

    /// Gives the partitions free and takes the node from the list. There are no more beats after it.
    public func leave() async {
        let isFirst = state.withLock { state in
            defer { state.hasLeft = true }
            return !state.hasLeft
        }
        guard isFirst else { return }
        do {
            try await registry.leave()
        } catch {
            logger.warning(
                "the node could not leave in order; its leases expire", metadata: ["reason": "\(error)"])
        }
    }

    /// Ends the beats without a word, as a process that is killed.
    func vanish() { state.withLock { $0.hasLeft = true } }

    // MARK: What others ask

    /// PostgreSQL has heard of this node within the duration of a lease. By our own clock, counted from before the beat:
    /// when this turns false, the others have not begun to claim yet.
    public var isHeld: Bool { state.withLock { $0.heldUntil.map { clock.now < $0 } ?? false } }

    /// Whether this node does what only one in the cluster should do. Two may think so for a moment.
    public var isFirstWorker: Bool {
        isHeld && state.withLock { $0.look?.view.workers.first == registry.node.id }
    }

    /// Partitions the aggregator of this process works on.
    public var ownedPartitions: Set<Int> { state.withLock { $0.owned } }

    func own(_ partitions: Set<Int>) {
        state.withLock { $0.owned = partitions }
        metrics.ownedPartitions(partitions.count)
    }

    var lastLook: Look? { state.withLock { $0.look } }

    /// Beats follow one another more quickly while something is to move.
    func hurry(_ isHurried: Bool) { state.withLock { $0.isHurried = isHurried } }

    /// Waits until something has changed since a look.
    func waitForChange(since number: Int, timeout: Duration) async {
        _ = await looks.wait(for: [(0, Int64(number) + 1)], all: true, timeout: timeout)
    }
}
