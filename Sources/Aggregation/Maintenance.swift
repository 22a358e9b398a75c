// The slow work around the fold: merging graph blocks of quiet minutes, day partitions and retention, lag metrics.
// Every step is a transaction of its own and may be repeated or interrupted. Of several workers one does it; if for a
// moment two do, it does no harm. Each worker reports the lag of its own partitions.

import Logging
import Observability
import SegmentLog
import Segments
import ServiceGraph
import ServiceLifecycle
import TraceStore

public struct MaintenanceOptions: Sendable {
    public var retentionDays = 30
    /// Days that the log is kept, for rebuilding; what is not folded yet stays in any case.
    public var logRetentionDays = 30
    /// How often blocks are merged and metrics of the log refreshed.
    public var interval: Duration = .seconds(5)
    /// A minute is merged when it ended this long ago; late documents add deltas that the next rounds merge.
    public var quietMinutes: Int64 = 2
    public init() {}
}

public struct Maintenance: Service {
    let log: any SegmentLog
    let store: TraceStore
    let leases: LeaseKeeper?
    let options: MaintenanceOptions
    let metrics: Metrics
    let logger: Logger
    let clock: @Sendable () -> Micros

    /// - Parameter leases: of this process; nil: there is no other worker.
    public init(
        log: any SegmentLog, store: TraceStore, leases: LeaseKeeper? = nil, options: MaintenanceOptions,
        metrics: Metrics, logger: Logger, clock: @escaping @Sendable () -> Micros
    ) {
        self.log = log
        self.store = store
        self.leases = leases
        self.options = options
        self.metrics = metrics
        self.logger = logger
        self.clock = clock
    }

    public func run() async throws {
        await cancelWhenGracefulShutdown {
            var preparedDay: Int?
            var round = 0
            while !Task.isCancelled {
                do {
                    try await measure()
                    let day = Int(clock() / 86_400_000_000)
                    if preparedDay != day, isInCharge {
                        try await store.prepareDays(around: day)
                        try await store.removeDays(before: day - options.retentionDays)
                        try await removeRecords()
                        preparedDay = day
                    }
                    if isInCharge { _ = try await store.mergeSearchSegments(now: clock() / 3_600_000_000) }
                    if round % 6 == 0, isInCharge {
                        try await compact()
                        try await store.removeDeletedGroups()
                    }
                } catch is CancellationError {
                    break
                } catch {
                    logger.warning("maintenance did not finish; it is tried again", metadata: ["reason": "\(error)"])
                }
                round += 1
                try? await Task.sleep(for: options.interval)
            }
        }
    }

    private var isInCharge: Bool { leases?.isFirstWorker ?? true }

    /// What the partitions have beyond their positions.
    /// - Parameter owned: only of these; nil: of all.
    private func backlog(of owned: Set<Int>?) async throws -> [LogBacklog] {
        let positions = try await store.positions().filter { owned?.contains($0.partition) ?? true }
            .map { LogPosition(partition: $0.partition, offset: $0.position) }
        return positions.isEmpty ? [] : try await log.backlog(beyond: positions)
    }

    /// Lag of this worker's partitions and size of the inbox, as metrics.
    private func measure() async throws {
        let now = clock()
        let lags = try await backlog(of: leases?.ownedPartitions).map { backlog in
            (
                partition: backlog.partition, records: Int(backlog.recordCount),
                age: backlog.oldestReceipt.map { Duration.microseconds(max(0, now - $0)) } ?? .zero
            )
        }
        metrics.lag(lags)
        metrics.inboxSize(try await store.inboxCount())
        if isInCharge { try await measureGroups() } else { metrics.groupTraces([]) }
    }

    /// What joined each group in the last whole minute.
    private func measureGroups() async throws {
        let counts = try await store.groupCounts(minute: clock() / 60_000_000 - 1).map { entry in
            (
                account: entry.account.description, group: entry.group, total: Int(entry.counts.total),
                ok: Int(entry.counts.ok), error: Int(entry.counts.error), fault: Int(entry.counts.fault),
                throttle: Int(entry.counts.throttle)
            )
        }
        metrics.groupTraces(counts)
    }

    /// Removes whole old days of the log, none that holds a record not folded yet.
    private func removeRecords() async throws {
        let unfolded = try await backlog(of: nil).compactMap(\.oldestReceipt).min() ?? .max
        try await log.removeRecords(
            receivedBefore: min(clock() - Micros(options.logRetentionDays) * 86_400_000_000, unfolded))
    }

    /// Merges what has gathered in minutes that are over, of the last retention period: late documents land anywhere.
    private func compact() async throws {
        let now = clock() / 60_000_000
        let minutes = (now - Int64(options.retentionDays) * 1440)..<(now - options.quietMinutes)
        for partition in 0..<log.partitionCount {
            var removed = 0
            repeat {
                removed = try await store.compactGraphBlocks(partition: partition, minutes: minutes) { blocks in
                    try GraphBlock.merge(blocks)?.bytes
                }
            } while removed > 0 && !Task.isCancelled
        }
    }
}
