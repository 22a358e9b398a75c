import FilterExpressions
import Fixtures
import PostgreSQL
import SearchIndex
import SegmentLog
import Segments
import Testing
import TraceAssembly
import TraceStore

@testable import Aggregation

/// Every trace of the account as its stored documents make it.
private func allForests(_ store: TraceStore) async throws -> [Forest] {
    let ids = try await store.traceIDs(account: account, after: nil, limit: 100_000)
    let parser = SegmentParser(limits: SegmentLimits(documentBytes: .max))
    return try await store.storedTraces(account: account, ids: ids).map { stored in
        Forest(LinkFactsLookup.refold(stored, account: account, parser: parser))
    }
}

/// What a search must find, by the rules alone.
private func expected(
    _ expression: FilterExpression, _ facts: [TraceFacts], _ forests: [Forest], _ rangeType: TimeRangeType,
    _ window: Range<Int64>
) -> [SummaryCandidate] {
    let micros = window.lowerBound * 1_000_000..<window.upperBound * 1_000_000
    return zip(forests, facts).compactMap { forest, facts -> SummaryCandidate? in
        let clocks = SummaryClocks(forest: forest)
        let times =
            switch rangeType {
            case .traceID: clocks.rootStart.map { [$0] } ?? []
            case .event: clocks.rootStart == nil ? [] : clocks.receipts
            case .service: clocks.rootStart == nil ? [] : clocks.ends
            }
        guard let clock = times.filter({ micros.contains($0) }).max(),
            expression.matches(facts, endedIn: rangeType == .service ? micros : nil)
        else { return nil }
        return SummaryCandidate(id: forest.trace.id, clock: clock)
    }.sorted { ($1.clock, $0.id) < ($0.clock, $1.id) }
}

/// All pages of a search, each candidate decided by the expression.
private func found(
    _ expression: FilterExpression, _ facts: [TraceID: TraceFacts], _ store: TraceStore, _ rangeType: TimeRangeType,
    _ window: Range<Int64>, pageSize: Int
) async throws -> (matches: [SummaryCandidate], candidates: Int, isNarrowed: Bool) {
    let plan = SearchPlan(expression, groups: .none)
    let micros = window.lowerBound * 1_000_000..<window.upperBound * 1_000_000
    var matches: [SummaryCandidate] = []
    var candidates: [SummaryCandidate] = []
    var isNarrowed = true
    while true {
        let page: SearchPage
        if let narrowed = try await store.searchPage(
            account: account, rangeType: rangeType, window: window, plan: plan, after: candidates.last, limit: pageSize)
        {
            page = narrowed
        } else {
            isNarrowed = false
            let all = try await store.summaryPage(
                account: account, rangeType: rangeType, window: window, after: candidates.last, limit: pageSize + 1)
            page = SearchPage(candidates: Array(all.prefix(pageSize)), isLast: all.count <= pageSize)
        }
        if !page.isLast { #expect(!page.candidates.isEmpty) }
        candidates += page.candidates
        for candidate in page.candidates {
            guard let facts = facts[candidate.id] else { continue }
            if expression.matches(facts, endedIn: rangeType == .service ? micros : nil) { matches.append(candidate) }
        }
        guard !page.isLast, !page.candidates.isEmpty else { break }
    }
    return (matches, candidates.count, isNarrowed)
}

extension AggregationTests {
    // If this fails, a filter leaves out traces that match it, or shows them twice or in the wrong place.
    @Test(arguments: 1...2)
    func `filtered searches of the tables find what the evaluator finds`(run: Int) async throws {
        var random = SeededGenerator(printingSeedFor: "filtered searches, run \(run)")
        var generator = TraceGenerator(random: random, oddities: .init(percent: 8, orderMatters: true))
        // Roots on both sides of hours.
        generator.spreadSeconds = 3 * 3_600
        let traces = generator.traces(70, startSecond: startSecond)
        let plain =
            generator.random.chance(50) ? generator.shuffledLog(of: traces) : generator.interleavedLog(of: traces)
        var texts = FilterTexts(random: generator.random)
        let log = plain.map { texts.decorate($0) }
        random = texts.random
        try await withWorld(partitionCount: 3) { (world) async throws in
            var next = 0
            for _ in 0..<3 {
                let stop = min(log.count, next + log.count / 3 + 1)
                var options = AggregatorOptions.quick
                options.batchRecords = Int.random(in: 1...40, using: &random)
                try await world.append(Array(log[next..<stop]))
                next = stop
                try await world.foldEverything(options)
                if random.chance(60) {
                    _ = try await world.store.mergeSearchSegments(
                        now: startSecond / 3_600 + Int64.random(in: 0...10, using: &random))
                }

                let forests = try await allForests(world.store)
                let facts = forests.map { TraceFacts(forest: $0) }
                let byID = Dictionary(uniqueKeysWithValues: zip(forests.map(\.trace.id), facts))
                var narrowed = 0
                for _ in 0..<120 {
                    let text = texts.expression()
                    let expression = try FilterExpression(parsing: text)
                    for rangeType in TimeRangeType.allCases {
                        let from =
                            startSecond - 5 + (random.chance(40) ? 0 : Int64.random(in: 0..<11_000, using: &random))
                        let window =
                            from..<from + (random.chance(40) ? 40_000 : Int64.random(in: 1...4_000, using: &random))
                        let wanted = expected(expression, facts, forests, rangeType, window)
                        let result = try await found(
                            expression, byID, world.store, rangeType, window, pageSize: random.pick([1, 3, 10, 100]))
                        if result.matches != wanted {
                            Issue.record(
                                "seed \(random.seed), \(rangeType) \(window): \(text)\nfound \(result.matches.count), expected \(wanted.count)"
                            )
                        }
                        if result.isNarrowed { narrowed += 1 }
                    }
                }
                #expect(narrowed > 100)
            }
        }
    }

    // If this fails, commits and merging lose traces of the index, or readers see half of a merge.
    @Test func `searches while segments are merged find every trace`() async throws {
        try await withWorld(partitionCount: 2) { (world) async throws in
            var options = AggregatorOptions.quick
            options.batchRecords = 3
            try await world.append(
                (0..<200).map {
                    document(
                        trace: $0, id: $0 + 1, name: "web", start: Double($0) / 10, end: 90,
                        more: #""user":"u\#($0 % 10)""#)
                })
            try await world.foldEverything(options)
            let expression = try FilterExpression(parsing: "user = \"u3\"")
            let plan = SearchPlan(expression, groups: .none)
            let window = startSecond..<startSecond + 100
            func count(_ rangeType: TimeRangeType) async throws -> Int {
                try await world.store.searchPage(
                    account: account, rangeType: rangeType, window: window, plan: plan, after: nil, limit: 1_000)?
                    .candidates.count ?? -1
            }
            let merging = Task {
                var removed = 0
                for _ in 0..<20 { removed += try await world.store.mergeSearchSegments(now: 0) }
                return removed
            }
            for _ in 0..<40 { for rangeType in TimeRangeType.allCases { #expect(try await count(rangeType) == 20) } }
            #expect(try await merging.value > 10)
            _ = try await world.store.mergeSearchSegments(now: startSecond / 3_600 + 10)
            let explained = try await world.store.explainSearch(
                account: account, rangeType: .traceID, window: window, plan: plan)
            #expect(explained.segmentCount == 1 && explained.indexedTraces == 200 && explained.candidates == 20)
        }
    }

    // If this fails, what retention removed is found by a filter, or what it must keep is not.
    @Test func `retention removes what is old from the index, and a late document keeps its trace`() async throws {
        try await withWorld(partitionCount: 1) { (world) async throws in
            let day: Int64 = 86_400_000_000
            func record(_ trace: Int, id: Int, received: Micros) -> LogRecord {
                let text = document(trace: trace, id: id, name: "web", more: #""user":"u""#)
                return LogRecord(
                    traceID: traceID(trace), account: account, receivedAt: received, source: .http,
                    value: Array(text.utf8))
            }
            try await world.log.append(
                LogRecordBatch([record(1, id: 1, received: now), record(2, id: 2, received: now)]))
            try await world.foldEverything()
            try await world.log.append(
                LogRecordBatch([record(2, id: 3, received: now + 3 * day), record(3, id: 4, received: now + 3 * day)]))
            try await world.foldEverything()
            let plan = SearchPlan(try FilterExpression(parsing: "user = \"u\""), groups: .none)
            func ids() async throws -> Set<TraceID> {
                let page = try await world.store.searchPage(
                    account: account, rangeType: .traceID, window: startSecond..<startSecond + 10, plan: plan,
                    after: nil,
                    limit: 10)
                return Set(try #require(page).candidates.map(\.id))
            }
            #expect(try await ids() == [traceID(1), traceID(2), traceID(3)])
            _ = try await world.store.mergeSearchSegments(now: 10_000_000)
            #expect(try await ids() == [traceID(1), traceID(2), traceID(3)])
            try await world.store.removeDays(before: Int((now + 2 * day) / day))
            #expect(try await ids() == [traceID(2), traceID(3)])
            try await world.store.removeDays(before: Int((now + 5 * day) / day))
            #expect(try await ids() == [])
            let left = try await world.store.explainSearch(
                account: account, rangeType: .traceID, window: startSecond..<startSecond + 10, plan: plan)
            #expect(left.segmentCount == 0)
        }
    }

    // If this fails, a filter finds nothing of what was stored by a version without the index.
    @Test func `while traces are left from before the index, every trace is looked at`() async throws {
        try await withWorld(partitionCount: 1) { (world) async throws in
            try await world.append(document(trace: 1, id: 1, name: "web"))
            try await world.foldEverything()
            let plan = SearchPlan(try FilterExpression(parsing: "fault"), groups: .none)
            func isNarrowed() async throws -> Bool {
                try await world.store.searchPage(
                    account: account, rangeType: .traceID, window: startSecond..<startSecond + 10, plan: plan,
                    after: nil, limit: 10)
                    != nil
            }
            #expect(try await isNarrowed())
            let pool = PostgresPool(world.configuration, sessionCount: 1)
            let insert = "INSERT INTO search_starts VALUES (\(account.rawValue), \(startSecond + 100))"
            try await pool.run(PostgresStatement(insert))
            #expect(try await !isNarrowed())
            await pool.close()
            try await world.store.removeDays(before: Int(startSecond / 86_400 + 2))
            #expect(try await isNarrowed())
        }
    }
}
