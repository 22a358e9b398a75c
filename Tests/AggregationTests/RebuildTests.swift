import Aggregation
import Fixtures
import Logging
import PostgreSQL
import SegmentLog
import Segments
import Synchronization
import Testing
import TraceAssembly
import TraceStore

/// Oddities, links, poison and refused documents, as requests.
private func everythingOdd(_ random: inout SeededGenerator, traceCount: Int) -> [String] {
    var generator = TraceGenerator(random: random, oddities: .init(percent: 10, orderMatters: true))
    var log = generator.interleavedLog(of: generator.traces(traceCount, startSecond: startSecond))
    random = generator.random
    for (number, scenario) in LinkScenario.all.enumerated() {
        for document in scenario.documents(100 * (number + 1)) {
            log.insert(document, at: Int.random(in: 0...log.count, using: &random))
        }
    }
    // A trace over its limit.
    for number in 0..<6 {
        let text = String(repeating: "x", count: 900)
        log.insert(
            document(trace: 7_000, id: 7_001 + number, name: "large", more: #""metadata":{"a":"\#(text)"}"#),
            at: Int.random(in: 0...log.count, using: &random))
    }
    return log
}

private let limits = TraceLimits(traceBytes: 4_000)

extension AggregationWorld {
    fileprivate func rebuild(
        restart: Bool = false, from: Micros? = nil, accepts: Bool = false, batchRecords: Int = 16_000,
        workers: Int = 2, onProgress: @escaping @Sendable (RebuildProgress) -> Void = { _ in }
    ) async throws -> RebuildOutcome {
        var options = RebuildOptions()
        options.maxTraceBytes = limits.traceBytes
        options.isRestarting = restart
        options.from = from
        options.acceptsDifferences = accepts
        options.batchRecords = batchRecords
        options.workerCount = workers
        return try await Rebuild(
            log: log, database: configuration, options: options, logger: quietLogger, clock: { now }, report: onProgress
        ).run()
    }

    fileprivate func sql(_ text: String) async throws {
        let session = PostgresSession(configuration)
        do {
            try await session.runScript(text)
        } catch {
            await session.close()
            throw error
        }
        await session.close()
    }

    /// A record whose value is no document, and one whose key is of another trace.
    fileprivate func appendPoison() async throws {
        let records = [
            LogRecord(
                traceID: traceID(9_000), account: account, receivedAt: now, source: .http, value: Array("{no".utf8)),
            try record(document(trace: 9_001, id: 1, name: "stray"), key: traceID(9_002)),
        ]
        try await log.append(LogRecordBatch(records))
    }
}

/// A number that several tasks raise.
private final class Tally: Sendable {
    private let value = Atomic<Int>(0)
    var count: Int { value.load(ordering: .relaxed) }
    @discardableResult func add() -> Int { value.wrappingAdd(1, ordering: .relaxed).newValue }
}

private let limited: AggregatorOptions = {
    var options = AggregatorOptions.quick
    options.maxTraceBytes = limits.traceBytes
    return options
}()

private func limited(batchRecords: Int) -> AggregatorOptions {
    var options = limited
    options.batchRecords = batchRecords
    return options
}

/// The first differences of an outcome, for a failing expectation.
private func text(_ outcome: RebuildOutcome) -> Comment {
    let found = outcome.comparisons.filter { $0.differing > 0 }
    return "\(found.map { "\($0.table): \($0.oldCount)/\($0.newCount), \($0.differing) \($0.examples)" })"
}

extension AggregationTests {
    // If this fails, a rebuild changes what users see although nothing was wrong.
    @Test(arguments: 1...4)
    func `a rebuild gives the tables that came about live`(run: Int) async throws {
        var random = SeededGenerator(printingSeedFor: "rebuild, run \(run)")
        let documents = everythingOdd(&random, traceCount: 60)
        try await withWorld(partitionCount: Int.random(in: 1...5, using: &random)) { (world) async throws in
            try await world.append(Array(documents.prefix(documents.count / 2)))
            try await world.appendPoison()
            try await world.foldEverything(limited(batchRecords: Int.random(in: 1...60, using: &random)))
            try await world.append(Array(documents.dropFirst(documents.count / 2)))
            try await world.foldEverything(limited(batchRecords: Int.random(in: 1...60, using: &random)))
            let before = try await world.store.positions()
            let outcome = try await world.rebuild(
                batchRecords: Int.random(in: 1...100, using: &random), workers: Int.random(in: 1...3, using: &random))
            #expect(outcome.isIdentical && outcome.isExchanged, text(outcome))
            #expect(try await world.inboxCodes().contains { $0.hasSuffix("TraceSizeLimitExceeded") })
            try await world.expectAgreement(limits: limits, "seed \(random.seed)")
            let after = try await world.store.positions()
            #expect(after.map(\.position) == before.map(\.position))
            #expect(
                after.allSatisfy { now in
                    before.contains { $0.partition == now.partition && $0.ownerEpoch < now.ownerEpoch }
                })
            // The tables go on as if nothing had been.
            try await world.append(everythingOdd(&random, traceCount: 10))
            try await world.foldEverything(limited)
            try await world.expectAgreement(limits: limits, "seed \(random.seed), later")
        }
    }

    // If this fails, a rebuild needs a maintenance window: reads fail, documents are lost or counted twice.
    @Test(arguments: 1...2)
    func `ingest, aggregation and reads go on during a rebuild`(run: Int) async throws {
        var random = SeededGenerator(printingSeedFor: "rebuild under load, run \(run)")
        let documents = everythingOdd(&random, traceCount: 250)
        try await withWorld { (world) async throws in
            try await world.append(Array(documents.prefix(documents.count / 3)))
            try await world.foldEverything(limited)
            let (done, reads) = (Tally(), Tally())
            let ids = try await world.store.traceIDs(account: account, after: nil, limit: 40)
            try await whileRunning(world.aggregator(limited)) { () async throws in
                try await withThrowingTaskGroup(of: Void.self) { group in
                    group.addTask {
                        for start in stride(from: documents.count / 3, to: documents.count, by: 7) {
                            try await world.append(Array(documents[start..<min(start + 7, documents.count)]))
                            try await Task.sleep(for: .milliseconds(5))
                        }
                    }
                    group.addTask {
                        while done.count == 0 {
                            let found = try await world.store.storedTraces(account: account, ids: ids)
                            #expect(found.count == ids.count)
                            _ = try await world.store.graphBlocks(account: account, minutes: allMinutes)
                            _ = try await world.store.summaryPage(
                                account: account, rangeType: .event, window: startSecond - 10..<startSecond + 100_000,
                                after: nil, limit: 10)
                            _ = try await world.store.positions()
                            reads.add()
                        }
                    }
                    group.addTask {
                        defer { done.add() }
                        for _ in 0..<3 {
                            let outcome = try await world.rebuild(batchRecords: 200)
                            #expect(outcome.isIdentical && outcome.isExchanged, text(outcome))
                        }
                    }
                    try await group.waitForAll()
                }
                try await world.expectAgreement(limits: limits, "seed \(random.seed)")
            }
            try await world.foldEverything(limited)
            try await world.expectAgreement(limits: limits, "seed \(random.seed), at the end")
            #expect(reads.count > 0)
        }
    }

    // If this fails, damaged tables stay damaged, or are replaced without a word.
    @Test func `damage is reported and repaired`() async throws {
        var random = SeededGenerator(printingSeedFor: "damage")
        let documents = everythingOdd(&random, traceCount: 40)
        try await withWorld { (world) async throws in
            try await world.append(documents)
            try await world.foldEverything(limited)
            try await world.sql(
                """
                DELETE FROM graph_blocks WHERE ctid = (SELECT ctid FROM graph_blocks LIMIT 1);
                UPDATE traces SET revision = revision + 1 WHERE trace_id = (SELECT trace_id FROM traces ORDER BY trace_id DESC LIMIT 1);
                DELETE FROM traces WHERE trace_id = (SELECT trace_id FROM traces ORDER BY trace_id LIMIT 1);
                DELETE FROM trace_documents WHERE trace_id = (SELECT trace_id FROM trace_documents ORDER BY trace_id DESC LIMIT 1);
                DELETE FROM inbox WHERE ctid = (SELECT ctid FROM inbox LIMIT 1);
                UPDATE links SET facts = NULL WHERE facts IS NOT NULL;
                """)
            let refused = try await world.rebuild()
            #expect(!refused.isExchanged)
            let found = Dictionary(refused.comparisons.map { ($0.table, $0.differing) }) { $1 }
            #expect(found["traces"] == 2)
            #expect(found["inbox"] == 1)
            #expect(found["documents"] == 1)
            #expect((found["graph minutes"] ?? 0) >= 1)
            #expect((found["facts of links"] ?? 0) >= 1)
            #expect(try await world.store.inbox(account: account, limit: 1).isEmpty == false)
            // Given again it has nothing to replay, and says the same.
            let accepted = try await world.rebuild(accepts: true)
            #expect(accepted.isExchanged && accepted.isContinued && accepted.recordCount == 0)
            #expect(accepted.comparisons == refused.comparisons)
            try await world.expectAgreement(limits: limits, "seed \(random.seed)")
            let again = try await world.rebuild()
            #expect(again.isIdentical && again.isExchanged && !again.isContinued, text(again))
        }
    }

    // If this fails, a rebuild forgets what the log's retention has removed.
    @Test(arguments: 1...3)
    func `what the log no longer has comes from the stored documents`(run: Int) async throws {
        var random = SeededGenerator(printingSeedFor: "cut log, run \(run)")
        let documents = everythingOdd(&random, traceCount: 60)
        try await withWorld(partitionCount: 3) { (world) async throws in
            for start in stride(from: 0, to: documents.count, by: 20) {
                try await world.append(Array(documents[start..<min(start + 20, documents.count)]))
            }
            try await world.appendPoison()
            try await world.foldEverything(limited)
            let expected = try await world.expected(limits: limits)
            let share = run == 3 ? 100 : Int.random(in: 20...80, using: &random)
            try await world.sql(
                """
                UPDATE log_partitions SET first_offset = next_offset * \(share) / 100;
                DELETE FROM log_batches b USING log_partitions p WHERE b.partition = p.partition AND b.last_offset < p.first_offset;
                """)
            let outcome = try await world.rebuild(batchRecords: 50)
            #expect(outcome.isIdentical && outcome.isExchanged, text(outcome))
            #expect(outcome.documentedTraceCount > 0)
            #expect(try await expected.differences(from: world.store) == [])
            #expect(try await world.inboxCodes() == expected.refusals)
        }
    }

    // If this fails, a rebuild of the last hours throws the rest away.
    @Test func `from a time on it replays, before it takes the stored documents`() async throws {
        var random = SeededGenerator(printingSeedFor: "from")
        let documents = everythingOdd(&random, traceCount: 60)
        try await withWorld { (world) async throws in
            for start in stride(from: 0, to: documents.count, by: 10) {
                try await world.append(Array(documents[start..<min(start + 10, documents.count)]))
            }
            try await world.foldEverything(limited)
            let ends = try await world.log.endOffsets().reduce(0, +)
            let outcome = try await world.rebuild(from: now + Int64(documents.count / 2) * 250_000)
            #expect(outcome.isIdentical && outcome.isExchanged, text(outcome))
            #expect(outcome.documentedTraceCount > 0)
            #expect(outcome.recordCount > 0 && outcome.recordCount < ends * 2 / 3)
            try await world.expectAgreement(limits: limits, "seed \(random.seed)")
        }
    }

    // If this fails, a rebuild has to begin anew after every interruption, or counts a part of it twice.
    @Test(arguments: 1...2)
    func `a rebuild that was interrupted anywhere goes on`(run: Int) async throws {
        var random = SeededGenerator(printingSeedFor: "interrupted rebuild, run \(run)")
        let documents = everythingOdd(&random, traceCount: 80)
        try await withWorld { (world) async throws in
            for start in stride(from: 0, to: documents.count, by: 20) {
                try await world.append(Array(documents[start..<min(start + 20, documents.count)]))
            }
            try await world.foldEverything(limited)
            let from = run == 1 ? nil : now + Int64(documents.count / 2) * 250_000
            var interruptions = 0
            var isExchanged = false
            while !isExchanged, interruptions < 40 {
                let stop = Int.random(in: 1...12, using: &random)
                let seen = Tally()
                let (signal, source) = AsyncStream<Void>.makeStream()
                let rebuilding = Task {
                    let outcome = try await world.rebuild(from: from, batchRecords: 15) { _ in
                        if seen.add() == stop { source.yield() }
                    }
                    source.finish()
                    return outcome
                }
                let stopping = Task { for await _ in signal { rebuilding.cancel() } }
                if let outcome = try? await rebuilding.value {
                    #expect(outcome.isIdentical, text(outcome))
                    isExchanged = outcome.isExchanged
                } else {
                    interruptions += 1
                }
                source.finish()
                await stopping.value
            }
            if !isExchanged {
                let outcome = try await world.rebuild(from: from)
                #expect(outcome.isIdentical && outcome.isExchanged && outcome.isContinued, text(outcome))
            }
            #expect(interruptions > 0)
            try await world.expectAgreement(limits: limits, "seed \(random.seed)")
        }
    }

    // If this fails, entries come back that somebody has dealt with, or a rebuild loses what is not its own.
    @Test func `what people did stays: cleared inboxes, other tables`() async throws {
        try await withWorld { (world) async throws in
            try await world.appendPoison()
            try await world.append(document(trace: 1, id: 1, name: "web"))
            try await world.foldEverything(limited)
            #expect(try await world.store.clearInbox(account: account) == 2)
            try await world.appendPoison()
            try await world.foldEverything(limited)
            try await world.store.setSetting(account: account, name: "encryption", value: [1, 2])
            let left = try await world.inboxCodes()
            #expect(left.count == 2)
            let outcome = try await world.rebuild()
            #expect(outcome.isIdentical && outcome.isExchanged, text(outcome))
            #expect(try await world.inboxCodes() == left)
            #expect(try await world.store.setting(account: account, name: "encryption") == [1, 2])
        }
    }

    // If this fails, a table of a later release is lost by a rebuild, or written twice.
    @Test func `a table that nobody has classified stops a rebuild before it begins`() async throws {
        try await withWorld { (world) async throws in
            try await world.sql("CREATE TABLE stranger (number int4)")
            let error = await #expect(throws: TraceStoreError.self) { _ = try await world.rebuild() }
            #expect(error?.message.contains("stranger") == true)
        }
    }
}
