import Aggregation
import Fixtures
import Glibc
import Logging
import Observability
import PrivatePostgreSQL
import SegmentLog
import Segments
import ServiceGraph
import Synchronization
import Testing
import TraceStore

extension AggregationTests {
    // If this fails, a crash of PostgreSQL makes the map count requests twice, or not at all.
    @Test func `kill -9 of PostgreSQL in the middle of the work folds everything exactly once`() async throws {
        let random = SeededGenerator(printingSeedFor: "outage")
        var generator = TraceGenerator(random: random, oddities: .init(percent: 8, orderMatters: true))
        let traces = generator.traces(200, startSecond: startSecond)
        let documents = generator.interleavedLog(of: traces)
        let server = try await PrivateServer.start()
        try await withWorld(on: server.connectionString) { (world) async throws in
            var options = AggregatorOptions.quick
            options.batchRecords = 20
            try await whileRunning(world.aggregator(options)) { () async throws in
                var kills = 0
                for (number, document) in documents.enumerated() {
                    if number == documents.count / 3 || number == documents.count * 2 / 3 {
                        #expect(try await eventually { server.processID != nil })
                        kill(try #require(server.processID), SIGKILL)
                        kills += 1
                        #expect(try await eventually { server.cluster.restarts == kills })
                    }
                    // A client repeats what was not acknowledged; it may be in the log twice then.
                    let record = try world.record(document)
                    let isAppended = try await eventually {
                        do throws(SegmentLogError) {
                            try await world.log.append(LogRecordBatch([record]))
                            return true
                        } catch {
                            return false
                        }
                    }
                    #expect(isAppended)
                }
                #expect(try await eventually { (try? await world.isCaughtUp()) == true })
            }
            try await world.foldEverything()
            try await world.expectAgreement("seed \(random.seed)")
        }
        await server.stop()
    }

    // If this fails, one damaged partition of the log stops all others, or records vanish without a word.
    @Test func `a partition that cannot be read waits alone, and what retention removed is counted`() async throws {
        try await withWorld(partitionCount: 2) { (world) async throws in
            let documents = (0..<40).map { document(trace: $0, id: 1, name: "web") }
            try await world.append(documents)
            let ends = try await world.log.endOffsets()
            try #require(ends.allSatisfy { $0 > 3 })
            let isDamaged = Atomic<Bool>(true)
            var log = FaultyLog(base: world.log)
            log.check = { (partition, offset) throws(SegmentLogError) in
                if partition == 0, isDamaged.load(ordering: .relaxed) { throw SegmentLogError(.corrupt, "damaged") }
                if partition == 1, offset < 3 { throw SegmentLogError(.trimmed(firstAvailable: 3), "removed") }
            }
            try await whileRunning(world.aggregator(log: log)) { () async throws in
                #expect(
                    try await eventually {
                        let positions = try await world.store.positions()
                        return positions.contains { $0.partition == 1 && $0.position == ends[1] }
                    })
                #expect(try await world.store.positions().first { $0.partition == 0 }?.position == 0)
                #expect(world.metrics.text().contains("beamline_partitions_unreadable 1"))
                isDamaged.store(false, ordering: .relaxed)
                #expect(try await eventually { try await world.isCaughtUp() })
                #expect(world.metrics.text().contains("beamline_partitions_unreadable 0"))
            }
            #expect(world.metrics.text().contains("beamline_log_records_lost_total 3"))
            let stored = try await world.store.traceIDs(account: account, after: nil, limit: 100)
            #expect(stored.count == 37)
        }
    }

    // If this fails, the map changes while it is only being tidied up.
    @Test func `merging blocks changes no graph, and days past their time go`() async throws {
        var random = SeededGenerator(printingSeedFor: "maintenance")
        var generator = TraceGenerator(random: random, oddities: .init(percent: 8, orderMatters: true))
        let traces = generator.traces(60, startSecond: startSecond)
        let documents = generator.shuffledLog(of: traces)
        try await withWorld { (world) async throws in
            var options = AggregatorOptions.quick
            options.batchRecords = 8
            var rest = documents[...]
            while !rest.isEmpty {
                let part = Array(rest.prefix(Int.random(in: 1...documents.count / 2, using: &random)))
                rest = rest.dropFirst(part.count)
                try await world.append(part)
                let before = try await world.blockCount()
                try await world.foldEverything(options)
                try await world.expectAgreement("seed \(random.seed)")
                let unmerged = try await world.blockCount()
                #expect(unmerged >= before)
                // An hour later: every minute is quiet.
                try await world.whileMaintained(at: now + 3_600_000_000) { () async throws in
                    #expect(try await eventually { try await world.isMerged() })
                }
                try await world.expectAgreement("seed \(random.seed), merged")
            }
            let day = 86_400_000_000 as Micros
            try await world.whileMaintained(at: now + 29 * day) { () async throws in
                #expect(try await eventually { try await world.isMerged() })
            }
            try await world.expectAgreement("seed \(random.seed), kept")
            try await world.whileMaintained(at: now + 32 * day) { () async throws in
                #expect(try await eventually { try await world.blockCount() == 0 })
                #expect(
                    try await eventually {
                        try await world.store.traceIDs(account: account, after: nil, limit: 1).isEmpty
                    })
            }
            #expect(try await world.servedGraph().services.isEmpty)
        }
    }
}

extension AggregationWorld {
    fileprivate func blockCount() async throws -> Int {
        try await store.graphBlocks(account: account, minutes: allMinutes).count
    }

    /// At most one block per minute and partition.
    fileprivate func isMerged() async throws -> Bool {
        let blocks = try await store.graphBlocks(account: account, minutes: allMinutes)
        return Dictionary(grouping: blocks, by: \.minute).values.allSatisfy { $0.count <= log.partitionCount }
    }

    /// Runs maintenance at a time of the clock.
    fileprivate func whileMaintained(at time: Micros, _ body: () async throws -> Void) async throws {
        var options = MaintenanceOptions()
        options.interval = .milliseconds(10)
        let maintenance = Maintenance(
            log: log, store: store, options: options, metrics: metrics, logger: quietLogger, clock: { time })
        let running = Task { try await maintenance.run() }
        do {
            try await body()
        } catch {
            running.cancel()
            try? await running.value
            throw error
        }
        running.cancel()
        try await running.value
    }
}
