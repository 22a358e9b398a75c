@testable import Aggregation
import Fixtures
import Observability
import SegmentLog
import Segments
import Synchronization
import Testing
import TraceAssembly
import TraceStore

/// One after the other: several of them measure CPU time or keep both cores busy.
@Suite(.serialized) struct AggregationTests {}

/// Batches of few records and a cache too small for the traces of a test.
private func smallOptions(_ random: inout SeededGenerator) -> AggregatorOptions {
    var options = AggregatorOptions.quick
    options.batchRecords = Int.random(in: 1...50, using: &random)
    options.cacheEntities = random.pick([0, 1, 30, 200, 100_000])
    if random.chance(20) { options.batchInterval = .milliseconds(5) }
    return options
}

/// A log of odd traces: duplicates, any order, open documents, unknown parents, cycles, links.
private func oddLog(_ random: SeededGenerator, traceCount: Int) -> [String] {
    var generator = TraceGenerator(random: random, oddities: .init(percent: 8, orderMatters: true))
    let traces = generator.traces(traceCount, startSecond: startSecond)
    return generator.random.chance(50)
        ? generator.shuffledLog(of: traces) : generator.interleavedLog(of: traces)
}

/// The documents as requests of random sizes.
private func requests(_ documents: [String], _ random: inout SeededGenerator) -> [[String]] {
    var rest = documents[...]
    var result: [[String]] = []
    while !rest.isEmpty {
        let size = random.chance(50) ? 1 : Int.random(in: 1...40, using: &random)
        result.append(Array(rest.prefix(size)))
        rest = rest.dropFirst(size)
    }
    return result
}

extension AggregationTests {
    // If this fails, the map and the traces depend on how fast documents came and on what was in memory.
    @Test(arguments: 1...4)
    func `after every prefix the tables are those of all documents at once`(run: Int) async throws {
        var random = SeededGenerator(printingSeedFor: "prefixes, run \(run)")
        let log = requests(oddLog(random, traceCount: 60), &random)
        try await withWorld(partitionCount: Int.random(in: 1...5, using: &random)) { (world) async throws in
            var next = 0
            while next < log.count {
                // Part of the log, then more while an aggregator is at work, until it has caught up.
                let stop = min(log.count, next + Int.random(in: 1...(log.count / 3 + 1), using: &random))
                let started = Int.random(in: next...stop, using: &random)
                for request in log[next..<started] { try await world.append(request) }
                try await whileRunning(world.aggregator(smallOptions(&random))) { () async throws in
                    for request in log[started..<stop] { try await world.append(request) }
                    try await world.expectAgreement("seed \(random.seed), prefix of \(stop) requests")
                }
                next = stop
            }
            try await world.foldEverything()
            try await world.expectAgreement("seed \(random.seed), at the end")
            // Nobody else was at work: a conflict would be a trace read from the tables before it was written there.
            #expect(!world.metrics.text().contains("outcome=\"conflict\""))
        }
    }

    // If this fails, a restart at the wrong moment counts requests twice on the map, or loses some.
    @Test(arguments: 1...3)
    func `aggregators stopped at any moment lose and double nothing`(run: Int) async throws {
        var random = SeededGenerator(printingSeedFor: "restarts, run \(run)")
        let log = requests(oddLog(random, traceCount: 60), &random)
        try await withWorld { (world) async throws in
            let appending = Task { for request in log { try await world.append(request) } }
            for _ in 0..<25 {
                let pause = Duration.microseconds(Int64.random(in: 0...40_000, using: &random))
                try await whileRunning(world.aggregator(smallOptions(&random))) { () async throws in
                    try await Task.sleep(for: pause)
                }
            }
            try await appending.value
            try await world.foldEverything(smallOptions(&random))
            try await world.expectAgreement("seed \(random.seed)")
        }
    }

    // If this fails, a second worker (a deployment that overlaps, a paused machine) corrupts the counts.
    @Test(arguments: 1...2)
    func `aggregators that compete for the log corrupt nothing`(run: Int) async throws {
        var random = SeededGenerator(printingSeedFor: "competition, run \(run)")
        let log = requests(oddLog(random, traceCount: 60), &random)
        try await withWorld { (world) async throws in
            for request in log.prefix(log.count / 3) { try await world.append(request) }
            let other = TraceStore(database: world.configuration, logger: quietLogger)
            let first = world.aggregator(smallOptions(&random))
            let second = world.aggregator(smallOptions(&random), store: other)
            try await whileRunning(first) { () async throws in
                for request in log.dropFirst(log.count / 3) {
                    if random.chance(20) {
                        let pause = Duration.microseconds(Int64.random(in: 0...30_000, using: &random))
                        try await whileRunning(second) { () async throws in
                            try await Task.sleep(for: pause)
                            try await world.append(request)
                        }
                    } else {
                        try await world.append(request)
                    }
                }
                #expect(try await eventually { try await world.isCaughtUp() })
            }
            await other.close()
            try await world.foldEverything()
            try await world.expectAgreement("seed \(random.seed)")
        }
    }

    // If this fails, a worker whose partitions were taken writes what its successor has written already.
    @Test func `a worker that lost its partitions writes nothing and begins again`() async throws {
        let random = SeededGenerator(printingSeedFor: "fencing")
        let log = oddLog(random, traceCount: 20)
        try await withWorld { (world) async throws in
            try await world.append(log)
            let gate = Gate()
            var slow = FaultyLog(base: world.log)
            slow.afterRead = { await gate.pass() }
            try await whileRunning(world.aggregator(log: slow)) { () async throws in
                #expect(try await eventually { await gate.arrivals > 0 })
                let taken = try await world.store.claim(partitions: Array(0..<4), owner: "somebody else")
                await gate.open()
                #expect(
                    try await eventually {
                        world.metrics.text().contains("beamline_commits_total{outcome=\"fenced\"} 1")
                    })
                // Nobody keeps them: it owns them again, under new epochs, and what comes now is folded once.
                #expect(
                    try await eventually {
                        try await world.store.positions().allSatisfy { $0.ownerEpoch > taken[0].ownerEpoch }
                    })
                try await world.append(log)
                try await world.expectAgreement("seed \(random.seed)")
            }
            try await world.expectAgreement("seed \(random.seed), after the end")
        }
    }

    // If this fails, a link stays unresolved for ever when two workers meet in its consumer.
    @Test func `a touch of a trace that another worker has changed is not passed over`() async throws {
        try await withWorld(partitionCount: 1) { (world) async throws in
            let state = try #require(try await world.store.claim(partitions: [0], owner: "test").first)
            func fold() -> BatchFold {
                BatchFold(
                    store: world.store, limits: TraceLimits(traceBytes: 512_000), segmentLimits: SegmentLimits(),
                    cacheCapacity: 1_000)
            }
            func commit(_ record: LogRecord, by fold: BatchFold) async throws -> CommitOutcome {
                let from = try await world.log.endOffsets()[0]
                try await world.log.append(LogRecordBatch([record]))
                let batch = try await world.log.read(partition: 0, from: from, maxRecords: 10, maxBytes: 1 << 20)
                let move = PositionMove(
                    partition: 0, from: from, to: batch.nextOffset, ownerEpoch: state.ownerEpoch)
                return try await world.store.commit(try await fold.fold([batch], moves: [move]).rows)
            }
            let (stale, other) = (fold(), fold())
            // The first worker keeps the consumer as it was before it had a link.
            let start = try world.record(document(trace: 1, id: 1, name: "worker"))
            #expect(try await commit(start, by: stale) == .committed)
            let link = try world.record(document(trace: 1, id: 3, name: "worker", links: [(2, 2)]))
            #expect(try await commit(link, by: other) == .committed)
            #expect(try await commit(try world.record(document(trace: 2, id: 2, name: "shop")), by: other) == .committed)
            let touch = LogRecord(
                kind: .touch, traceID: traceID(1), account: account, receivedAt: now, source: .aggregator, value: nil)
            let key = TraceKey(account: account, id: traceID(1))
            #expect(try await commit(touch, by: stale) == .versionConflict([key]))
        }
    }
}
