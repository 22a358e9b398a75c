// What the aggregation tests share: a log and a store in a fresh schema, and aggregators that work on them.

@testable import Aggregation
import Logging
import Observability
import PostgreSQL
import SegmentLog
import Segments
import Synchronization
import Testing
import TraceStore

let account = AccountID(rawValue: 123_456_789_012)
let startSecond: Int64 = 1_700_000_040
let now: Micros = startSecond * 1_000_000

/// One log and one store in a schema of their own.
final class AggregationWorld: Sendable {
    let log: PostgresLog
    let store: TraceStore
    let configuration: PostgresConfiguration
    let metrics = Metrics()
    private let documentCount = Atomic<Int64>(0)
    private let workerCount = Atomic<Int>(0)

    fileprivate init(log: PostgresLog, store: TraceStore, configuration: PostgresConfiguration) {
        self.log = log
        self.store = store
        self.configuration = configuration
    }

    /// A record as ingest makes it; receipts are 0.25 s apart.
    func record(_ document: String, key: TraceID? = nil) throws -> LogRecord {
        let parser = SegmentParser(limits: SegmentLimits(documentBytes: .max))
        let id = try key ?? parser.validate(Array(document.utf8))
        let number = documentCount.wrappingAdd(1, ordering: .relaxed).newValue
        return LogRecord(
            traceID: id, account: account, receivedAt: now + number * 250_000, source: .http,
            value: Array(document.utf8))
    }

    /// Appends the documents as one request.
    func append(_ documents: [String]) async throws {
        try await log.append(LogRecordBatch(documents.map { try record($0) }))
    }

    func append(_ documents: String...) async throws { try await append(documents) }

    /// One worker of the cluster, with a name and leases of its own.
    /// - Parameter beforeBeat: holds up its heartbeats.
    func worker(
        _ options: AggregatorOptions = .quick, log: (any SegmentLog)? = nil, store: TraceStore? = nil,
        metrics: Metrics? = nil, lease: Duration = .seconds(3), beat: Duration = .milliseconds(100),
        beforeBeat: @escaping @Sendable () async -> Void = {}
    ) -> TestWorker {
        let number = workerCount.wrappingAdd(1, ordering: .relaxed).newValue
        let node = Node(
            id: "test-\(number)", role: .aggregate, name: "worker \(number)", host: "localhost", processID: 1,
            addresses: "", version: "test")
        let metrics = metrics ?? self.metrics
        let leases = LeaseKeeper(
            registry: NodeRegistry(node: node, leaseDuration: lease, database: configuration), interval: beat,
            metrics: metrics, logger: quietLogger, beforeBeat: beforeBeat)
        return TestWorker(
            leases: leases,
            aggregator: Aggregator(
                log: log ?? self.log, store: store ?? self.store, leases: leases, options: options, metrics: metrics,
                logger: quietLogger, clock: { now }))
    }

    func aggregator(
        _ options: AggregatorOptions = .quick, log: (any SegmentLog)? = nil, store: TraceStore? = nil
    ) -> TestWorker {
        worker(options, log: log, store: store)
    }

    /// Whether everything in the log is folded. A re-check may still be about to append a touch.
    func isCaughtUp() async throws -> Bool {
        let ends = try await log.endOffsets()
        let positions = try await store.positions()
        return ends.enumerated().allSatisfy { partition, end in
            end == 0 || positions.contains { $0.partition == partition && $0.position >= end }
        }
    }

    /// Has aggregators work, one after the other, until the last one found nothing left to do: every record is folded, and
    /// the links of every commit have been re-checked by a worker that began after it.
    func foldEverything(_ options: AggregatorOptions = .quick) async throws {
        var isSettled = false
        while !isSettled {
            let before = try await store.positions()
            try await whileRunning(aggregator(options)) { () async throws in
                let isDone = try await eventually {
                    let now = try await store.positions()
                    let hasBegun = before.allSatisfy { old in
                        now.contains {
                            $0.partition == old.partition && $0.ownerEpoch > old.ownerEpoch
                                && $0.checkedPosition >= old.position
                        }
                    }
                    let isCaughtUp = try await isCaughtUp()
                    return hasBegun && isCaughtUp
                }
                #expect(isDone)
            }
            let ends = try await log.endOffsets()
            isSettled = try await store.positions().allSatisfy {
                $0.checkedPosition == $0.position && $0.position == ends[$0.partition]
            }
        }
    }

    /// Every record of the log, partition by partition.
    func everything() async throws -> [LogBatch] {
        var batches: [LogBatch] = []
        for (partition, end) in try await log.endOffsets().enumerated() {
            var offset: Int64 = 0
            while offset < end {
                let batch = try await log.read(
                    partition: partition, from: offset, maxRecords: 2_000, maxBytes: 64 << 20)
                try #require(batch.nextOffset > offset)
                offset = batch.nextOffset
                batches.append(batch)
            }
        }
        return batches
    }
}

extension AggregatorOptions {
    /// Does not wait for larger batches.
    static let quick: AggregatorOptions = {
        var options = AggregatorOptions()
        options.batchInterval = .zero
        options.idleWait = .milliseconds(50)
        return options
    }()
}

/// An aggregator with its leases, as a process runs them.
struct TestWorker: Sendable {
    let leases: LeaseKeeper
    let aggregator: Aggregator

    var id: String { leases.registry.node.id }
    var owned: Set<Int> { leases.ownedPartitions }

    /// Works until cancelled, then leaves in order.
    func run() async throws {
        let beating = Task { try await leases.run() }
        try await aggregator.run()
        beating.cancel()
        try await beating.value
    }
}

/// Runs the body while an aggregator works; returns when the aggregator has ended.
func whileRunning<T>(_ worker: TestWorker, _ body: () async throws -> T) async throws -> T {
    let running = Task { try await worker.run() }
    do {
        let result = try await body()
        running.cancel()
        try await running.value
        return result
    } catch {
        running.cancel()
        try? await running.value
        throw error
    }
}

/// A fresh log of `partitionCount` partitions and a fresh store.
func withWorld(
    partitionCount: Int = 4, on connectionString: String? = nil, _ body: (AggregationWorld) async throws -> Void
) async throws {
    try await withDatabase(on: connectionString) { (configuration) async throws in
        var impatient = configuration
        impatient.queueTimeout = .milliseconds(500)
        try await PostgresLog.migrate(database: configuration)
        try await TraceStore.migrate(database: configuration)
        var options = PostgresLogOptions()
        options.partitionCount = partitionCount
        options.pollInterval = .milliseconds(20)
        let log = try await PostgresLog.open(database: impatient, options: options, logger: quietLogger)
        let store = TraceStore(database: impatient, logger: quietLogger)
        let running = Task {
            await withTaskGroup(of: Void.self) { group in
                group.addTask { await log.run() }
                group.addTask { await store.run() }
            }
        }
        func close() async {
            running.cancel()
            await running.value
            await log.close()
            await store.close()
        }
        do {
            try await body(AggregationWorld(log: log, store: store, configuration: impatient))
        } catch {
            await close()
            throw error
        }
        await close()
    }
}
