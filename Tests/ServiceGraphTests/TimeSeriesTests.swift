// Time series (`service-graph.md` §9): examples by hand, the band of `insights.md` §3–§5, and a naive recount per minute.

import Fixtures
import Segments
import Testing
import TraceAssembly

@testable import ServiceGraph

private let start: Int64 = 1_700_000_040  // a whole minute

private func trace(_ number: Int, at second: Int64, milliseconds: Int = 100, name: String = "web", more: String = "")
    -> String
{
    let id = String(number, radix: 16)
    let padded = String(repeating: "0", count: 24 - id.count) + id
    let entity = String(repeating: "0", count: 16 - id.count) + id
    let fraction = String(repeating: "0", count: 3 - "\(milliseconds)".count) + "\(milliseconds)"
    return
        #"{"trace_id":"1-65536f00-\#(padded)","id":"\#(entity)","name":"\#(name)","start_time":\#(second),"end_time":\#(second).\#(fraction)\#(more)}"#
}

private func series(
    _ blocks: [GraphBlock], _ selector: SeriesSelector, _ window: Range<Int64>, period: Int64 = 60,
    hasForecast: Bool = false
) throws -> [TimeSeriesPoint] {
    var builder = TimeSeriesBuilder(selector: selector, window: window, period: period, hasForecast: hasForecast)
    for block in blocks where builder.minutes.contains(block.minute) { try builder.add(block.bytes) }
    return builder.build()
}

private func series(
    _ documents: [String], _ selector: SeriesSelector, _ window: Range<Int64>, period: Int64 = 60
) throws -> [TimeSeriesPoint] {
    try series(StoredTraces(documents).contributions().blocks(), selector, window, period: period)
}

private let web = SeriesSelector.nodes(NodePattern(name: "web"))

@Suite struct TimeSeriesTests {
    // If this fails, points stand at the wrong time or in the wrong order.
    @Test func `minutes are labelled by their end, newest first, and chosen by their label`() throws {
        let documents = [
            trace(1, at: start), trace(2, at: start + 59), trace(3, at: start + 60), trace(4, at: start + 180),
        ]
        let all = try series(documents, web, start..<start + 300)
        #expect(all.map(\.time) == [start + 240, start + 120, start + 60])
        #expect(all.map(\.summary.totalCount) == [1, 1, 2])
        #expect(all[2].responseTimeHistogram == [HistogramEntry(value: 100_000, count: 2)])
        #expect(all[2].summary.totalResponseTime == 200_000)
        // StartTime ≤ label < EndTime.
        #expect(try series(documents, web, start + 60..<start + 61).map(\.time) == [start + 60])
        #expect(try series(documents, web, start + 61..<start + 121).map(\.time) == [start + 120])
        #expect(try series(documents, web, start + 1..<start + 60).isEmpty)
        #expect(try series(documents, web, start..<start).isEmpty)
    }

    // If this fails, five-minute series lose minutes or stand at odd times.
    @Test func `five minutes are merged under a multiple of five minutes`() throws {
        // 1_700_000_100 is a multiple of 300; the minutes labelled 1_700_000_100 … 1_700_000_400 surround it.
        let documents = [
            trace(1, at: start), trace(2, at: start + 60), trace(3, at: start + 359), trace(4, at: start + 360),
        ]
        let points = try series(documents, web, start..<start + 600, period: 300)
        #expect(points.map(\.time) == [start + 660, start + 360, start + 60])
        #expect(points.map(\.summary.totalCount) == [1, 2, 1])
    }

    // If this fails, a service without calls looks as if nothing had been measured, or the other way round.
    @Test func `a minute with traffic elsewhere is listed without counts, an empty one is not`() throws {
        let documents = [trace(1, at: start, name: "other"), trace(2, at: start + 120)]
        let points = try series(documents, web, start..<start + 600)
        #expect(points.map(\.time) == [start + 180, start + 60])
        #expect(points.map(\.summary.totalCount) == [1, 0])
        #expect(points[1].responseTimeHistogram.isEmpty)
    }

    // If this fails, a selector counts other nodes or edges than the map shows (ruling R-13, R-41).
    @Test func `selectors reach what they name`() throws {
        let call =
            #","subsegments":[{"id":"00000000000000aa","name":"orders","namespace":"remote","start_time":\#(start),"end_time":\#(start).05,"fault":true}]"#
        let documents = [trace(1, at: start, more: call)]
        func counts(_ selector: SeriesSelector) throws -> [Int64] {
            let point = try #require(try series(documents, selector, start..<start + 120).first)
            return [point.summary.okCount, point.summary.faultCount]
        }
        let client = NodePattern(type: "client")
        #expect(try counts(.clientEdges) == [1, 0])
        #expect(try counts(web) == [1, 0])
        #expect(try counts(.nodes(NodePattern(name: "orders"))) == [0, 1])
        #expect(try counts(.nodes(NodePattern(name: "orders", type: "remote"))) == [0, 1])
        #expect(try counts(.nodes(NodePattern(name: "orders", type: "client"))) == [0, 0])
        #expect(try counts(.nodes(client)) == [1, 0])
        #expect(try counts(.nodes(NodePattern(name: "web", account: "111122223333"))) == [1, 0])
        #expect(try counts(.nodes(NodePattern(name: "web", account: "999900001111"))) == [0, 0])
        #expect(
            try counts(.edges(source: NodePattern(name: "web"), destination: NodePattern(name: "orders"))) == [0, 1])
        #expect(try counts(.edges(source: NodePattern(name: "web"), destination: NodePattern(name: "web"))) == [0, 0])
        #expect(try counts(.edges(source: client, destination: NodePattern(name: "web"))) == [1, 0])
    }

    // If this fails, the series of a late or completing trace does not equal the map.
    @Test func `series of random traces equal the graph of each minute`() throws {
        let random = SeededGenerator(printingSeedFor: "series")
        var generator = TraceGenerator(random: random, oddities: .init(percent: 8, orderMatters: true))
        for _ in 0..<10 {
            let traces = try StoredTraces(generator.interleavedLog(of: generator.traces(12, startSecond: start)))
            let blocks = traces.contributions().blocks()
            let reference = ReferenceGraph(traces)
            for minute in Set(blocks.map(\.minute)).sorted() {
                let second = minute * 60
                let graph = reference.graph(second..<second + 60)
                let window = second + 60..<second + 61
                for service in graph.services {
                    let node = service.identity(receivingAccount: testAccount)
                    let pattern = NodePattern(name: node.name, type: node.type, account: node.account)
                    // A pattern cannot ask for the absence of a type.
                    guard node.type != nil, node.type != "client" else { continue }
                    let point = try #require(try series(blocks, .nodes(pattern), window).first)
                    #expect(point.summary == service.statistics?.summary)
                    #expect(point.responseTimeHistogram == service.statistics?.responseTimeHistogram)
                    for edge in service.edges {
                        let target = graph.services[edge.referenceID].identity(receivingAccount: testAccount)
                        guard target.type != nil else { continue }
                        let both = service.edges.filter { $0.referenceID == edge.referenceID }
                        let destination = NodePattern(name: target.name, type: target.type, account: target.account)
                        let onEdge = try #require(
                            try series(blocks, .edges(source: pattern, destination: destination), window).first)
                        #expect(onEdge.summary.totalCount == both.reduce(0) { $0 + $1.summary.totalCount })
                        #expect(onEdge.responseTimeHistogram == both.first { !$0.isLink }?.histogram ?? [])
                    }
                }
                // A segment may call itself `client` too, and be what a link comes from.
                let clients = graph.services.filter { $0.type == "client" }.flatMap(\.edges).filter { !$0.isLink }
                let roots = try #require(try series(blocks, .clientEdges, window).first)
                #expect(roots.summary.totalCount == clients.reduce(0) { $0 + $1.summary.totalCount })
            }
        }
    }

    // If this fails, corrections are counted as traffic.
    @Test func `what was taken back is not in the series`() throws {
        var sum = try StoredTraces([trace(1, at: start), trace(2, at: start)]).contributions()
        let rows = sum.blocks()
        let gone = try StoredTraces([trace(2, at: start)])
        sum = Contributions()
        for forest in gone.forests { sum.subtract(forest, links: [:]) }
        #expect(try series(rows + sum.blocks(), web, start..<start + 120).map(\.summary.totalCount) == [1])
        for forest in try StoredTraces([trace(1, at: start)]).forests { sum.subtract(forest, links: [:]) }
        #expect(try series(rows + sum.blocks(), web, start..<start + 120).isEmpty)
    }

    // If this fails, damaged rows crash the query node.
    @Test func `damaged blocks are errors`() throws {
        let block = try #require(try StoredTraces([trace(1, at: start)]).contributions().blocks().first)
        for length in 0..<block.bytes.count {
            var builder = TimeSeriesBuilder(selector: web, window: start..<start + 60, period: 60, hasForecast: false)
            #expect(throws: GraphBlockError.self) { try builder.add(Array(block.bytes.prefix(length))) }
        }
    }
}

private func minute(_ requests: Int64, faults: Int64) -> MinuteSum {
    var sum = MinuteSum()
    sum.observations = requests
    sum.outcomes[Int(OutcomeClass.fault.rawValue)] = faults
    sum.outcomes[Int(OutcomeClass.ok.rawValue)] = requests - faults
    return sum
}

@Suite struct FaultForecastTests {
    // The check of `insights.md` §5: 100 requests and 1 fault a minute give p = 0.01, High(100) = 5, High(500) = 13.
    @Test func `a steady service has the band of the specification`() {
        var baseline = FaultBaseline()
        for _ in 0..<5_000 { baseline.close(minute(100, faults: 1)) }
        #expect(abs(baseline.faultRate - 0.01) < 1e-4)
        #expect(baseline.faults(expectedOf: 100) == 0...5)
        #expect(baseline.faults(expectedOf: 500) == 0...13)
        #expect(baseline.faults(expectedOf: 10_000) == 70...131)
    }

    @Test func `without data one fault is still ordinary`() {
        #expect(FaultBaseline().faults(expectedOf: 0) == 0...1)
        #expect(abs(FaultBaseline().faultRate - 0.01) < 1e-12)
    }

    // If this fails, an incident becomes normal, and the next one is not noticed.
    @Test func `minutes of an incident do not move the baseline`() {
        var baseline = FaultBaseline()
        for _ in 0..<2_000 { baseline.close(minute(100, faults: 1)) }
        let before = baseline.faultRate
        for _ in 0..<60 { baseline.close(minute(100, faults: 30)) }
        #expect(baseline.faultRate < before * 1.1)
        for _ in 0..<30 { baseline.close(minute(100, faults: 1)) }
        #expect(baseline.faultRate < before * 1.1)
    }

    // If this fails, the band of a point depends on what came after it.
    @Test func `a forecast looks at the minutes before its bucket`() throws {
        var documents: [String] = []
        for number in 1...40 {
            documents.append(
                trace(number, at: start + Int64(number % 4) * 60, more: number % 4 == 3 ? #","fault":true"# : ""))
        }
        let blocks = try StoredTraces(documents).contributions().blocks()
        let points = try series(blocks, web, start..<start + 300, hasForecast: true)
        #expect(points.map(\.time) == [start + 240, start + 180, start + 120, start + 60])
        var baseline = FaultBaseline()
        var expected: [ClosedRange<Int64>] = []
        for faults in [0, 0, 0, 10] as [Int64] {
            expected.append(baseline.faults(expectedOf: 10))
            baseline.close(minute(10, faults: faults))
        }
        #expect(points.map(\.faultForecast) == expected.reversed())
        // Asked for the last minute alone it is the same.
        #expect(
            try series(blocks, web, start + 240..<start + 241, hasForecast: true).first?.faultForecast == expected[3])
    }
}
