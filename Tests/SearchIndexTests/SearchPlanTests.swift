import FilterExpressions
import Fixtures
import Segments
import Testing
import TraceAssembly

@testable import SearchIndex

private let account = AccountID(rawValue: 123_456_789_012)

/// Random traces as the aggregator would have them after some of their documents.
private struct World {
    var forests: [Forest] = []

    init(_ random: inout SeededGenerator, traces: Int) throws {
        var generator = TraceGenerator(random: random, oddities: .init(percent: 8, orderMatters: true))
        var texts = FilterTexts(random: generator.random)
        let parser = SegmentParser()
        for generated in generator.traces(traces, startSecond: 1_700_000_000) {
            var trace = Trace(id: try #require(TraceID(parsing: generated.id)), account: account)
            let documents = generated.documents.prefix(
                Int.random(in: 1...max(1, generated.documents.count), using: &random))
            for (number, document) in documents.enumerated() {
                let bytes = Array(texts.decorate(document).utf8)
                guard let parsed = try? parser.parse(bytes) else { continue }
                _ = bytes.withUnsafeBytes {
                    trace.fold(parsed, bytes: $0, receivedAt: 1_700_000_500_000_000 + Int64(number) * 700_000)
                }
            }
            forests.append(Forest(trace))
        }
        random = texts.random
    }

    func segment(_ range: Range<Int>, version: Int = 1) -> SearchSegment? {
        var builder = SearchSegmentBuilder()
        for forest in forests[range] { builder.add(forest, version: version, clocks: SummaryClocks(forest: forest)) }
        return builder.finish()
    }
}

// If this fails, a search leaves out traces that match.
@Test(arguments: 1...4)
func `what a plan lets through contains every match`(run: Int) throws {
    var random = SeededGenerator(printingSeedFor: "plans, run \(run)")
    let world = try World(&random, traces: 120)
    // Also after merging, with older versions of the same traces in between.
    let older = try #require(world.segment(20..<60, version: 1))
    let parts = [0..<40, 40..<41, 41..<120].compactMap { world.segment($0, version: 2) }
    let merged = try #require(try SearchSegment.merge(parts.suffix(1) + [older] + parts.dropLast()))
    #expect(merged.traceCount == world.forests.count { $0.root >= 0 })
    var narrowed = 0
    var texts = FilterTexts(random: random)
    for _ in 0..<1_000 {
        let text = texts.expression()
        let expression = try FilterExpression(parsing: text)
        let plan = SearchPlan(expression, groups: .none)
        for segment in parts + [merged] {
            let set = try segment.traces(plan)
            let records = try segment.allRecords()
            let ordinals = Dictionary(uniqueKeysWithValues: records.enumerated().map { ($1.id, $0) })
            for forest in world.forests {
                guard let ordinal = ordinals[forest.trace.id] else { continue }
                if expression.matches(TraceFacts(forest: forest)), !set.contains(ordinal) {
                    Issue.record("seed \(random.seed): \(text) lost a trace; plan:\n\(plan)")
                }
            }
            if set.count < records.count { narrowed += 1 }
        }
    }
    // Most expressions must be narrowed, or the index is of no use.
    #expect(narrowed > 2_000)
}

// If this fails, merging loses traces or shows how they were before they changed.
@Test func `the newest version of a trace survives a merge, in order of root starts`() throws {
    var random = SeededGenerator(printingSeedFor: "merge")
    let world = try World(&random, traces: 60)
    var segments: [SearchSegment] = []
    for version in [3, 1, 2] {
        segments.append(try #require(world.segment(version * 10..<30 + version * 10, version: version)))
    }
    let records = try #require(try SearchSegment.merge(segments)).allRecords()
    let rooted = world.forests[10..<60].filter { $0.root >= 0 }
    #expect(Set(records.map(\.id)) == Set(rooted.map(\.trace.id)))
    for (index, forest) in world.forests.enumerated() where (10..<60).contains(index) {
        guard let record = records.first(where: { $0.id == forest.trace.id }) else { continue }
        #expect(record.version == (index >= 30 ? 3 : index >= 20 ? 2 : 1))
    }
    for (a, b) in zip(records, records.dropFirst()) {
        #expect(a.rootStart > b.rootStart || a.rootStart == b.rootStart && a.id < b.id)
    }
}

@Test(arguments: [
    ("annotation.tenant = \"tenant-12\"", 1), ("user = \"alice\"", 1), ("fault", 1), ("!fault", 1),
    ("http.url CONTAINS \"/api/\"", 2),
    ("service(\"orders\") { fault }", 2), ("responsetime > 5 AND !partial", 2), ("!(user = \"alice\")", 0),
    ("service()", 0),
])
func `a plan has the leaves that narrow`(text: String, leaves: Int) throws {
    let plan = SearchPlan(try FilterExpression(parsing: text), groups: .none)
    #expect(plan.leafCount == leaves)
}

extension SearchPlan {
    fileprivate var leafCount: Int {
        switch self {
        case .all, .none: 0
        case .and(let parts), .or(let parts): parts.reduce(0) { $0 + $1.leafCount }
        default: 1
        }
    }
}

// If this fails, a damaged row stops the server instead of failing one query.
@Test func `damaged segments are errors`() throws {
    var random = SeededGenerator(printingSeedFor: "damage")
    let world = try World(&random, traces: 80)
    let segment = try #require(world.segment(0..<80))
    let plan = SearchPlan(
        try FilterExpression(parsing: "user CONTAINS \"a\" AND annotation.age > 3 OR service(\"web\")"), groups: .none)
    for _ in 0..<2_000 {
        var damaged = segment
        for _ in 0..<Int.random(in: 1...4, using: &random) {
            damaged.postings[Int.random(in: 0..<damaged.postings.count, using: &random)] = UInt8.random(
                in: 0...255, using: &random)
        }
        _ = try? damaged.traces(plan)
        _ = try? SearchSegment.merge([damaged, segment])
    }
}

@Test func `sorting by digits sorts`() {
    var random = SeededGenerator(printingSeedFor: "radix")
    for count in [0, 1, 64, 65, 1_000, 20_000] {
        var values = (0..<count).map { _ in random.next() >> 8 }
        let expected = values.sorted()
        radixSort(&values, bits: 56)
        #expect(values == expected)
    }
}

@Test func `steps of times grow with the times`() {
    var previous: UInt8 = 0
    for millis in 0..<100_000 as Range<Int64> {
        let step = TimeStep.of(millis: millis)
        #expect(step >= previous && step > 0)
        previous = step
    }
    #expect(TimeStep.of(millis: .max) == 255)
}

@Test func `a template contains the templates of all parts`() {
    var random = SeededGenerator(printingSeedFor: "templates")
    let alphabet = Array("0129ab/".utf8)
    for _ in 0..<5_000 {
        let text = (0..<Int.random(in: 1...20, using: &random)).map { _ in random.pick(alphabet) }
        let start = Int.random(in: 0..<text.count, using: &random)
        let end = Int.random(in: start...text.count, using: &random)
        let template = TextTemplate.of(String(decoding: text, as: UTF8.self))
        #expect(template.containsPart(TextTemplate.of(String(decoding: text[start..<end], as: UTF8.self))))
        #expect(template.starts(with: TextTemplate.of(String(decoding: text[..<end], as: UTF8.self))))
    }
}
