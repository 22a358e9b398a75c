// Graphs and series from roll-ups are those from the rows, whatever happens to the rows.

import Fixtures
import Observability
import PostgreSQL
import SearchIndex
import SegmentLog
import Segments
import ServiceGraph
import Synchronization
import Testing
import TraceStore
import XRayAPI

@testable import Query

private func group(version: Int) -> TraceGroup {
    TraceGroup(
        name: "g\(version)", arn: "arn:aws:xray:us-east-1:111122223333:group/g\(version)/ID1", key: 1, version: version,
        filter: "", createdAt: 0)
}

private let selectors = [
    "", #","EntitySelectorExpression":"service(\"web\")""#,
    #","EntitySelectorExpression":"service(id(type: \"remote\"))""#,
    #","EntitySelectorExpression":"edge(id(type: \"client\"), \"web\")""#,
]

private func call(_ window: Range<Int64>, _ random: inout SeededGenerator) -> RollUpCall {
    let members = #""StartTime":\#(window.lowerBound),"EndTime":\#(window.upperBound)"#
    let group = random.pick(["", #","GroupName":"g1""#, #","GroupName":"g2""#])
    if random.chance(60) { return .graph("{\(members)\(group)}") }
    let selector = random.pick(selectors)
    let forecast = selector.contains("service") && random.chance(30) ? #","ForecastStatistics":true"# : ""
    let period = random.pick(["", #","Period":300"#])
    return .series("{\(members)\(group)\(selector)\(forecast)\(period)}")
}

private let wholeWindow = RollUpWorld.start..<(RollUpWorld.start + RollUpWorld.hours * 3_600)

/// Those with rows. A trace at the end of the world may reach beyond the window.
private func minutes(of world: RollUpWorld, in window: Range<Int64>) -> Set<Int64> {
    Set(world.rows.map(\.minute)).filter { $0 >= window.lowerBound / 60 && $0 * 60 < window.upperBound }
}

private func graph(_ window: Range<Int64> = wholeWindow, _ members: String = "") -> RollUpCall {
    .graph(#"{"StartTime":\#(window.lowerBound),"EndTime":\#(window.upperBound)\#(members)}"#)
}

@Suite struct RollUpTests {
    // If this fails, the service map shows other numbers than the traces have.
    @Test(arguments: [64 << 20, 40_000])
    func `graphs and series equal those without roll-ups`(rollUpBytes: Int) async throws {
        var world = RollUpWorld(random: SeededGenerator(printingSeedFor: "roll-ups"))
        let bench = RollUpBench(rollUpBytes: rollUpBytes)
        bench.traces.state.withLock { $0.groups = [group(version: 1), group(version: 2)] }
        for _ in 0..<12 {
            try world.commit(traces: 25)
            if world.generator.random.chance(60) { try world.merge(percent: 60) }
            if world.generator.random.chance(10) {
                world.remove(minutes: 0..<(RollUpWorld.start / 60 + 20))
            }
            bench.set(world.rows)
            for _ in 0..<8 {
                let window = world.window()
                let call = call(window, &world.generator.random)
                let found = try await call.answer(bench.node)
                let expected = try await call.answer(bench.plain)
                #expect(found == expected, "\(call)")
                #expect(bench.node.rollUps.byteCount <= rollUpBytes)
            }
        }
        #expect(bench.metrics.rollUpCount(.made) > 0 && bench.metrics.rollUpCount(.hit) > 0)
        #expect(bench.metrics.rollUpCount(.stale) > 0 || rollUpBytes < 1 << 20)
    }

    // If this fails, an answer mixes what the store had at two moments.
    @Test func `rows that change between the reads of one answer are not mixed`() async throws {
        var world = RollUpWorld(random: SeededGenerator(printingSeedFor: "changes"))
        try world.commit(traces: 150)
        var states = [world.rows]
        for _ in 0..<150 {
            try world.commit(traces: 4)
            if world.generator.random.chance(50) { try world.merge(percent: 40) }
            states.append(world.rows)
        }
        let bench = RollUpBench()
        bench.set(states[0])
        let next = Mutex(1)
        let history = states
        bench.traces.state.withLock { state in
            state.afterGraphRead = { rows in
                let number = next.withLock { number in
                    number += 1
                    return number
                }
                // Not after every read: some answers come to an end, others give up and read everything.
                if number % 3 == 0, number / 3 < history.count { rows = history[number / 3] }
            }
        }
        for number in 0..<25 {
            let call = number == 0 ? graph() : call(world.window(), &world.generator.random)
            bench.traces.state.withLock { $0.groups = [group(version: 1), group(version: 2)] }
            let found = try await call.answer(bench.node)
            let (rows, after) = bench.traces.state.withLock { state in
                defer { state.afterGraphRead = nil }
                return (state.lastRows, state.afterGraphRead)
            }
            let current = bench.traces.state.withLock { $0.blockRows }
            bench.set(rows)
            #expect(found == (try await call.answer(bench.plain)), "\(call)")
            bench.set(current)
            bench.traces.state.withLock { $0.afterGraphRead = after }
        }
    }

    // If this fails, an account with much traffic never gets an answer.
    @Test func `rows that change all the time still give an answer`() async throws {
        var world = RollUpWorld(random: SeededGenerator(printingSeedFor: "unrest"))
        try world.commit(traces: 60)
        let bench = RollUpBench()
        bench.set(world.rows)
        let names = Mutex(1_000_000)
        bench.traces.state.withLock { state in
            state.afterGraphRead = { rows in
                for index in rows.indices {
                    rows[index].name = names.withLock { name in
                        name += 1
                        return name
                    }
                }
            }
        }
        let found = try await graph().answer(bench.node)
        #expect(found == (try await graph().answer(bench.plain)))
        #expect(bench.metrics.rollUpCount(.stale) > 0)
    }

    // If this fails, a graph over hours is as slow as if nothing were kept, or a late document is not shown.
    @Test func `only what changed is read again`() async throws {
        var world = RollUpWorld(random: SeededGenerator(printingSeedFor: "change"))
        try world.commit(traces: 300)
        let bench = RollUpBench()
        bench.set(world.rows)
        let window = (wholeWindow.lowerBound + 7)..<(wholeWindow.upperBound - 5)
        let borders = [window.lowerBound / 60, window.upperBound / 60]
        let before = try await graph(window).answer(bench.node)
        #expect(Set(bench.minutesRead()) == minutes(of: world, in: window))
        #expect(try await graph(window).answer(bench.node) == before)
        #expect(bench.minutesRead().allSatisfy(borders.contains))
        // A trace in the middle of the second hour: the ten minutes around it are read, and no others.
        let minute = RollUpWorld.start / 60 + 95
        let document =
            #"{"trace_id":"1-653f0000-000000000000000000000001","id":"a000000000000001","name":"late service","start_time":\#(minute * 60),"end_time":\#(minute * 60).5}"#
        try bench.traces.append(document, account: account, receivedAt: 1)
        bench.traces.commit()
        bench.set([])
        let row = try #require(
            try await bench.traces.graphBlocks(
                account: account, groupKey: nil, minutes: minute..<(minute + 1), reading: [minute..<(minute + 1)]
            ).rows.first)
        bench.set(world.rows + [.init(name: 1_000_000, version: 1, minute: minute, bytes: row.bytes)])
        _ = bench.minutesRead()
        let after = try await graph(window).answer(bench.node)
        #expect(after.contains("late service") && !before.contains("late service"))
        let tens = Set(bench.minutesRead().filter { !borders.contains($0) }.map { $0 / 10 })
        #expect(tens == [minute / 10])
        #expect(after == (try await graph(window).answer(bench.plain)))
    }

    // If this fails, what is new takes minutes to be shown.
    @Test func `minutes that are not over are never kept`() async throws {
        var world = RollUpWorld(random: SeededGenerator(printingSeedFor: "now"))
        try world.commit(traces: 200)
        let bench = RollUpBench()
        bench.set(world.rows)
        // The clock stands in the middle of the rows.
        let middle = (wholeWindow.lowerBound + wholeWindow.upperBound) / 2
        bench.clock.advance(seconds: middle - bench.clock.now / 1_000_000)
        for _ in 0..<2 { #expect(try await graph().answer(bench.node) == (try await graph().answer(bench.plain))) }
        _ = bench.minutesRead()
        _ = try await graph().answer(bench.node)
        #expect(Set(bench.minutesRead()) == minutes(of: world, in: wholeWindow).filter { $0 >= middle / 60 - 1 })
    }

    // If this fails, one account or group is shown the map of another.
    @Test func `a roll-up is for one account, group, version and selector`() async throws {
        var world = RollUpWorld(random: SeededGenerator(printingSeedFor: "keys"))
        try world.commit(traces: 120)
        let bench = RollUpBench()
        bench.traces.state.withLock { $0.groups = [group(version: 1), group(version: 2)] }
        bench.set(world.rows)
        _ = try await graph().answer(bench.node)
        #expect(bench.minutesRead().count > 0)
        _ = try await graph().answer(bench.node)
        #expect(bench.minutesRead().isEmpty)
        for (call, account) in [
            (graph(), otherAccount), (graph(wholeWindow, #","GroupName":"g1""#), account),
            (graph(wholeWindow, #","GroupName":"g2""#), account),
        ] {
            _ = try await call.answer(bench.node, account: account)
            #expect(Set(bench.minutesRead()) == minutes(of: world, in: wholeWindow))
        }
        for selector in selectors {
            let call = RollUpCall.series(
                #"{"StartTime":\#(wholeWindow.lowerBound + 60),"EndTime":\#(wholeWindow.upperBound)\#(selector)}"#)
            _ = try await call.answer(bench.node)
            #expect(bench.minutesRead().count > 0)
            _ = try await call.answer(bench.node)
            #expect(bench.minutesRead().isEmpty)
        }
    }
}

@Suite struct RollUpCacheTests {
    private func key(_ minute: Int64) -> RollUpCache.Key {
        .init(
            account: account, groupKey: 0, groupVersion: 0, subject: .graph, span: MinuteSpan(first: minute, length: 1))
    }

    private func rollUp(_ size: Int) -> RollUp {
        RollUp(names: [], sum: .graph(block: [UInt8](repeating: 1, count: size), hasOld: false))
    }

    // If this fails, a query node grows until it is killed, or forgets what is asked for all the time.
    @Test func `what was not used for longest gives way`() {
        let cache = RollUpCache(maxBytes: 100_000)
        for minute in 0..<1_000 {
            cache.keep(rollUp(1_000), for: key(Int64(minute)))
            #expect(cache.byteCount <= 100_000)
            #expect(cache.rollUp(for: key(0)) != nil)
        }
        #expect(cache.byteCount > 80_000)
        #expect(cache.rollUp(for: key(999)) != nil && cache.rollUp(for: key(1)) == nil)
        cache.keep(rollUp(200_000), for: key(0))
        #expect(cache.rollUp(for: key(0)) == nil && cache.rollUp(for: key(999)) != nil)
        for minute in 0..<1_000 { cache.drop(key(Int64(minute))) }
        #expect(cache.byteCount == 0)
    }

    @Test func `spans cover minutes without a gap`() {
        for (first, past) in [(0, 0), (0, 1), (55, 61), (59, 183), (60, 120), (1, 59), (-61, 70)] as [(Int64, Int64)] {
            var next = first
            for span in MinuteSpan.covering(first..<past) {
                #expect(span.first == next && [1, 10, 60].contains(span.length) && span.first % span.length == 0)
                #expect(span.parts.isEmpty == (span.length == 1))
                #expect(span.parts.flatMap { Array($0.minutes) } == (span.length == 1 ? [] : Array(span.minutes)))
                next += span.length
            }
            #expect(next == past)
        }
    }
}

// MARK: - With the tables of PostgreSQL

/// Rows of a real store; the rest from memory.
private struct StoredRows: TraceReading {
    let store: TraceStore
    let memory: InMemoryTraces
    let minutesRead = MinuteLog()

    final class MinuteLog: Sendable {
        private let minutes = Mutex<[Int64]>([])
        func add(_ more: [Int64]) { minutes.withLock { $0 += more } }
        func take() -> [Int64] {
            minutes.withLock { minutes in
                defer { minutes = [] }
                return minutes
            }
        }
    }

    func graphBlocks(
        account: AccountID, groupKey: Int64?, minutes: Range<Int64>, reading wanted: [Range<Int64>]
    ) async throws -> NamedGraphBlocks {
        let found = try await store.namedGraphBlocks(
            account: account, groupKey: groupKey, minutes: minutes, reading: wanted)
        minutesRead.add(found.rows.map(\.minute))
        return found
    }

    func groupSet(account: AccountID) async throws -> GroupSet { try await memory.groupSet(account: account) }
    func lastRemoval(account: AccountID) async throws -> Int64 { try await store.lastRemoval(account: account) }
    func hasRemoved(
        _ data: RetainedData, account: AccountID, seconds: Range<Int64>, since number: Int64
    ) async throws -> Bool {
        try await store.hasRemoved(data, account: account, seconds: seconds, since: number)
    }
    func storedTraces(account: AccountID, ids: [TraceID]) async throws -> [StoredTrace] { [] }
    func summaryPage(
        account: AccountID, rangeType: TimeRangeType, window: Range<Int64>, after: SummaryCandidate?, limit: Int
    ) async throws -> [SummaryCandidate] { [] }
    func searchPage(
        account: AccountID, rangeType: TimeRangeType, window: Range<Int64>, plan: SearchPlan, after: SummaryCandidate?,
        limit: Int
    ) async throws -> SearchPage? { nil }
    func partition(of id: TraceID) -> Int { 0 }
    func endOffsets() async throws -> [Int64] { [] }
    func positions() async throws -> [LogPosition] { [] }
    func waitForPositions(_ offsets: [LogPosition], timeout: Duration) async throws -> Bool { true }
    func backlog(beyond positions: [LogPosition]) async throws -> [LogBacklog] { [] }
}

@Suite struct StoredRollUpTests {
    // If this fails, the map is wrong after a commit, a merge, a rebuild or retention, until the node is restarted.
    @Test func `whatever happens to the tables, graphs equal those without roll-ups`() async throws {
        try await withDatabase { (configuration) async throws in
            try await TraceStore.migrate(database: configuration)
            let store = TraceStore(database: configuration, logger: quietLogger)
            let running = Task { await store.run() }
            do {
                try await check(store, PostgresSession(configuration))
            } catch {
                running.cancel()
                await running.value
                await store.close()
                throw error
            }
            running.cancel()
            await running.value
            await store.close()
        }
    }

    private func check(_ store: TraceStore, _ session: PostgresSession) async throws {
        var world = RollUpWorld(random: SeededGenerator(printingSeedFor: "stored roll-ups"))
        var states = try await store.claim(partitions: [0, 1, 2], owner: "test")
        let memory = InMemoryTraces()
        memory.state.withLock { $0.groups = [group(version: 1), group(version: 2)] }
        let reading = StoredRows(store: store, memory: memory)
        let metrics = Metrics()
        let clock = TestClock()
        func service(_ rollUpBytes: Int, _ metrics: Metrics?) -> QueryService {
            var limits = QueryLimits()
            limits.rollUpBytes = rollUpBytes
            return QueryService(
                reading: reading, tokens: PageTokenSealer(secret: [1]), limits: limits, metrics: metrics,
                logger: quietLogger, now: { clock.now })
        }
        let (node, plain) = (service(64 << 20, metrics), service(0, nil))

        var written = 0
        /// One commit per partition with the rows that are new in the world.
        func commit() async throws {
            try world.commit(traces: 20)
            let rows = world.rows[written...]
            written = world.rows.count
            for index in states.indices {
                var batch = AggregationBatch()
                let from = states[index].position
                states[index].position += 10
                batch.positions = [
                    PositionMove(
                        partition: index, from: from, to: from + 10, ownerEpoch: states[index].ownerEpoch)
                ]
                for (minute, all) in Dictionary(grouping: rows.filter { $0.name % 3 == index }, by: \.minute) {
                    guard let sum = try GraphBlock.merge(all.map(\.bytes)) else { continue }
                    let delta = GraphBlockDelta(
                        account: account, minute: minute, partition: index, lastOffset: from + 9, bytes: sum.bytes)
                    batch.blocks.append(delta)
                    batch.groups.blocks.append(GroupBlockDelta(groupKey: 1, version: all[0].version, delta: delta))
                }
                #expect(try await store.commit(batch) == .committed)
            }
        }
        func compare(_ comment: Comment) async throws {
            for _ in 0..<6 {
                let call = call(world.window(), &world.generator.random)
                #expect(try await call.answer(node) == (try await call.answer(plain)), "\(comment): \(call)")
            }
            for call in [graph(), graph(wholeWindow, #","GroupName":"g2""#)] {
                #expect(try await call.answer(node) == (try await call.answer(plain)), comment)
                _ = reading.minutesRead.take()
                _ = try await call.answer(node)
                #expect(reading.minutesRead.take().isEmpty, comment)
            }
        }

        for _ in 0..<3 {
            try await commit()
            try await compare("after a commit")
            for partition in 0..<3 {
                _ = try await store.compactGraphBlocks(
                    partition: partition, minutes: 0..<(.max / 60), maximumRows: 30
                ) { try GraphBlock.merge($0)?.bytes }
            }
            try await compare("after merging")
        }
        // Other contents under the same keys, of another transaction: a row, then all of them as a rebuild exchanges tables.
        let stale = metrics.rollUpCount(.stale)
        try await session.runScript(
            """
            UPDATE graph_blocks g SET encoding = o.encoding, block = o.block
            FROM (SELECT minute, encoding, block FROM graph_blocks ORDER BY minute, partition LIMIT 1) o
            WHERE g.minute = o.minute
            """)
        try await compare("after a change under the same key")
        try await session.runScript(
            """
            BEGIN;
            CREATE TABLE other (LIKE graph_blocks INCLUDING ALL);
            INSERT INTO other SELECT * FROM graph_blocks WHERE minute % 7 <> 3;
            ALTER TABLE graph_blocks RENAME TO old_blocks;
            ALTER TABLE other RENAME TO graph_blocks;
            COMMIT
            """)
        try await compare("after an exchange of the tables")
        #expect(metrics.rollUpCount(.stale) > stale)
        try await store.removeDays(before: Int(RollUpWorld.start / 86_400) + 2)
        try await compare("after retention")
        #expect(!(try await graph().answer(node).contains("ReferenceId")))
        await session.close()
    }
}
