// Properties of contributions, blocks and graphs over random traces; every test prints its seed.

import Fixtures
import Segments
import ServiceGraph
import Testing
import TraceAssembly

private let start: Int64 = 1_700_000_000

private func generator(_ name: String, percent: Int = 8, orderMatters: Bool = false) -> TraceGenerator {
    TraceGenerator(
        random: SeededGenerator(printingSeedFor: name), oddities: .init(percent: percent, orderMatters: orderMatters))
}

private func windows(_ random: inout SeededGenerator) -> [Range<Int64>?] {
    let low = start + Int64.random(in: 0..<200, using: &random)
    return [
        nil, low..<(low + 1), low..<(low + Int64.random(in: 1..<200, using: &random)), start..<(start + 60),
        (start + 20)..<(start + 260),
    ]
}

/// `String` compares canonically; nodes do not.
private func exact(_ graph: ServiceGraphResult) -> [ExactString] { json(graph).map { ExactString($0) } }

/// What a store holds of the graph, kept by differences as the aggregator does it: block rows only, never a recount.
private struct IncrementalGraph {
    var traces: StoredTraces
    var rows: [GraphBlock] = []
    /// Facts that went into the rows, per consumer.
    var used: [TraceID: [Link: LinkFacts]] = [:]

    init() throws { traces = try StoredTraces() }

    mutating func apply(batch: [String]) throws {
        let before = traces
        var changed: Set<TraceID> = []
        for document in batch { if let id = try traces.fold(document) { changed.insert(id) } }
        var sum = Contributions()
        for id in changed { replace(id, before.traces[id], &sum) }
        rows += sum.blocks()
        // Consumers are looked at again when what they link to looks different (touch records), until nothing changes.
        while true {
            var touched = Contributions()
            let stale = traces.order.filter { id in
                traces.traces[id].map { traces.facts(for: $0) != used[id, default: [:]] } ?? false
            }
            if stale.isEmpty { break }
            for id in stale { replace(id, traces.traces[id], &touched) }
            rows += touched.blocks()
        }
    }

    private mutating func replace(_ id: TraceID, _ old: Trace?, _ sum: inout Contributions) {
        guard let new = traces.traces[id] else { return }
        if let old { sum.subtract(Forest(old), links: used[id, default: [:]]) }
        used[id] = traces.facts(for: new)
        sum.add(Forest(new), links: used[id, default: [:]])
    }
}

@Suite struct ContributionPropertyTests {
    // If this fails, some map somewhere is wrong.
    @Test func `graphs of random traces equal the rules worked out one by one`() throws {
        var generator = generator("reference", percent: 10, orderMatters: true)
        for _ in 0..<25 {
            let log = generator.interleavedLog(of: generator.traces(12, startSecond: start))
            let traces = try StoredTraces(log)
            let reference = ReferenceGraph(traces)
            for window in windows(&generator.random) {
                #expect(try exact(traces.graph(window)) == exact(reference.graph(window)))
            }
            let drawn = traceGraph(of: traces.forests, account: testAccount)
            #expect(exact(drawn) == exact(ReferenceGraph(traces, showsOpen: true).graph(nil, showsTimes: false)))
        }
    }

    // If this fails, the map depends on which document came first, or on a document sent again.
    @Test func `any order and duplication of the same documents gives the same graph`() throws {
        var generator = generator("orders")
        for _ in 0..<15 {
            let made = generator.traces(10, startSecond: start)
            let expected = try StoredTraces(made.flatMap(\.documents)).contributions().blocks()
            for _ in 0..<4 {
                #expect(try StoredTraces(generator.shuffledLog(of: made)).contributions().blocks() == expected)
            }
        }
    }

    // If this fails, a late, completing or linked document leaves wrong counts behind for ever.
    @Test func `differences of any batches add up to a recount after every prefix of the log`() throws {
        var generator = generator("differences", percent: 10, orderMatters: true)
        for _ in 0..<10 {
            let log = generator.shuffledLog(of: generator.traces(10, startSecond: start))
            var stored = try IncrementalGraph()
            var rest = log[...]
            while !rest.isEmpty {
                let batch = rest.prefix(Int.random(in: 1...8, using: &generator.random))
                rest = rest.dropFirst(batch.count)
                try stored.apply(batch: Array(batch))
                #expect(try merged(stored.rows) == stored.traces.contributions().blocks())
            }
            let rows = stored.rows.sorted { $0.baseSecond < $1.baseSecond }
            for window in windows(&generator.random) {
                #expect(try graph(of: rows, window) == stored.traces.graph(window))
            }
        }
    }

    // If this fails, taking back what was added leaves ghosts.
    @Test func `adding and taking back leaves nothing`() throws {
        var generator = generator("nothing")
        let traces = try StoredTraces(generator.traces(20, startSecond: start).flatMap(\.documents))
        var sum = traces.contributions()
        #expect(!sum.isEmpty)
        for forest in traces.forests.reversed() { sum.subtract(forest, links: traces.facts(for: forest.trace)) }
        #expect(sum.isEmpty)
        #expect(sum.blocks() == [])
    }

    // If this fails, compaction changes the map.
    @Test func `merging blocks in any grouping gives the same bytes and the same graph`() throws {
        var generator = generator("merging")
        for _ in 0..<10 {
            let traces = try StoredTraces(generator.traces(20, startSecond: start).flatMap(\.documents))
            let whole = traces.contributions().blocks()
            var parts: [GraphBlock] = []
            for forest in traces.forests {
                parts += contributions(of: forest, links: traces.facts(for: forest.trace)).blocks()
            }
            #expect(try merged(parts) == whole)
            parts.shuffle(using: &generator.random)
            let cut = Int.random(in: 0...parts.count, using: &generator.random)
            let grouped = try merged(Array(parts[..<cut])) + merged(Array(parts[cut...]))
            #expect(try merged(grouped) == whole)
            #expect(try merged(whole) == whole)
            let rows = grouped.sorted { $0.baseSecond < $1.baseSecond }
            for window in windows(&generator.random) {
                #expect(try graph(of: rows, window) == graph(of: whole, window))
            }
        }
    }

    // If this fails, the numbers of two halves of a window do not add up to those of the window.
    @Test func `counts of adjacent windows add up`() throws {
        var generator = generator("windows")
        let traces = try StoredTraces(generator.traces(60, startSecond: start).flatMap(\.documents))
        func totals(_ window: Range<Int64>) throws -> [String: Int64] {
            var result: [String: Int64] = [:]
            let graph = try traces.graph(window)
            for service in graph.services {
                let name = "\(service.name) \(service.type ?? "-") \(service.accountID ?? "-")"
                result[name, default: 0] += service.statistics?.summary.totalCount ?? 0
                result[name + " time", default: 0] += service.statistics?.summary.totalResponseTime ?? 0
                for edge in service.edges {
                    let other = graph.services[edge.referenceID]
                    result[
                        "\(name) > \(other.name) \(other.type ?? "-") \(other.accountID ?? "-") \(edge.isLink)",
                        default: 0] += edge.summary.totalCount
                }
            }
            return result.filter { $0.value != 0 }
        }
        for _ in 0..<20 {
            let low = start + Int64.random(in: -10..<200, using: &generator.random)
            let high = low + Int64.random(in: 0..<300, using: &generator.random)
            let middle = Int64.random(in: low...high, using: &generator.random)
            #expect(try totals(low..<middle).merging(totals(middle..<high), uniquingKeysWith: +) == totals(low..<high))
        }
    }

    // If this fails, an hour read from its roll-up is not the hour.
    @Test func `a roll-up shows what its seconds show and refuses what it cannot show`() throws {
        var generator = generator("roll-ups")
        generator.spreadSeconds = 2_000
        let traces = try StoredTraces(generator.traces(80, startSecond: start - start % 3_600).flatMap(\.documents))
        let blocks = traces.contributions().blocks()
        let hours = Dictionary(grouping: blocks) { $0.baseSecond / 3_600 }
        var rollUps: [GraphBlock] = []
        for hour in hours.keys.sorted() {
            let bytes = (hours[hour] ?? []).map(\.bytes)
            let whole = try #require(try GraphBlock.rollUp(bytes, baseSecond: hour * 3_600, spanSeconds: 3_600))
            rollUps.append(whole)
        }
        // An hour with next to nothing in it may not shrink; all of them together do.
        #expect(rollUps.reduce(0) { $0 + $1.bytes.count } < blocks.reduce(0) { $0 + $1.bytes.count })
        #expect(try graph(of: rollUps, nil) == graph(of: blocks, nil))
        let first = try #require(rollUps.first)
        #expect(throws: GraphBlockError.needsWholeSeconds) {
            try graph(of: [first], (first.baseSecond + 1)..<(first.baseSecond + 3_600))
        }
        #expect(throws: GraphBlockError.needsWholeSeconds) { try graph(of: [first, blocks[0]], nil) }
        #expect(throws: GraphBlockError.needsWholeSeconds) { try graph(of: [blocks[0], first], nil) }
        if blocks.count > 1 {
            #expect(throws: GraphBlockError.outOfOrder) { try graph(of: [blocks[1], blocks[0]], nil) }
        }
    }

    // If this fails, one damaged row in the database takes the query process down.
    @Test func `damaged blocks are errors or other numbers, never a crash`() throws {
        var generator = generator("damage")
        let traces = try StoredTraces(generator.traces(6, startSecond: start).flatMap(\.documents))
        for block in traces.contributions().blocks() {
            for length in 0..<block.bytes.count {
                #expect(throws: GraphBlockError.self) {
                    try graph(of: [try GraphBlock(bytes: Array(block.bytes.prefix(length)))], nil)
                }
            }
            for _ in 0..<300 {
                var bytes = block.bytes
                for _ in 0..<Int.random(in: 1...4, using: &generator.random) {
                    bytes[Int.random(in: 0..<bytes.count, using: &generator.random)] = UInt8.random(
                        in: 0...255, using: &generator.random)
                }
                _ = try? graph(of: [try GraphBlock(bytes: bytes)], start..<(start + 90))
                _ = try? GraphBlock.merge([bytes, block.bytes])
                _ = try? GraphBlock.rollUp([bytes], baseSecond: start - start % 3_600, spanSeconds: 7_200)
            }
        }
    }
}
