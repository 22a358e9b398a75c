import Query
import Segments
import Synchronization
import Testing
import TraceAssembly
import TraceStore
import XRayAPI

private let window = "\"StartTime\":\(startSeconds),\"EndTime\":\(startSeconds + 80_000)"

@Suite struct TraceSearchTests {
    // If this fails, traces are missing or doubled when a client pages through them.
    @Test(arguments: [0, 1, 99, 100, 101, 200, 250])
    func `pages of a hundred add up to the traces of the window, newest first`(count: Int) async throws {
        let bench = QueryBench()
        for number in 0..<count { try bench.addTrace(number) }
        bench.traces.commit()
        let pages = try await bench.allPages(window)
        #expect(pages.flatMap(\.ids) == (0..<count).reversed().map { traceID($0).description })
        #expect(pages.dropLast().allSatisfy { $0.ids.count == 100 })
        // No empty page behind a full one.
        #expect(pages.count == max(1, (count + 99) / 100))
        #expect(pages.compactMap(\.processed).reduce(0, +) == count)
        #expect(pages.last?.approximateTime == startSeconds)
        if count == 250 { #expect(pages.first?.approximateTime == startSeconds + 150) }
    }

    // If this fails, traces that began in the same microsecond get lost between pages.
    @Test func `traces of one time are told apart by id`() async throws {
        let bench = QueryBench()
        for number in 0..<150 {
            let document =
                #"{"trace_id":"\#(traceID(number))","id":"a000000000000001","name":"web","start_time":\#(startSeconds),"end_time":\#(startSeconds).5}"#
            try bench.traces.append(document, account: account, receivedAt: startSeconds * 1_000_000)
        }
        bench.traces.commit()
        for type in ["TraceId", "Event", "Service"] {
            let pages = try await bench.allPages("\(window),\"TimeRangeType\":\"\(type)\"")
            #expect(pages.flatMap(\.ids) == (0..<150).map { traceID($0).description })
        }
    }

    // If this fails, a window shows traces by the wrong clock.
    @Test func `each time range type looks at its own clock`() async throws {
        let bench = QueryBench()
        // Started at +10, ended at +10.5, received at +50.
        try bench.addTrace(10, receivedAt: (startSeconds + 50) * 1_000_000)
        bench.traces.commit()
        func count(_ type: String, _ from: Int64, _ to: Int64) async throws -> Int {
            let members =
                "\"StartTime\":\(startSeconds + from),\"EndTime\":\(startSeconds + to),\"TimeRangeType\":\"\(type)\""
            return try await bench.allPages(members).flatMap(\.ids).count
        }
        #expect(try await count("TraceId", 10, 11) == 1)
        #expect(try await count("TraceId", 11, 60) == 0)
        #expect(try await count("TraceId", 0, 10) == 0)
        #expect(try await count("Event", 50, 51) == 1)
        #expect(try await count("Event", 0, 50) == 0)
        #expect(try await count("Service", 10, 11) == 1)
        #expect(try await count("Service", 11, 60) == 0)
        #expect(try await count("TraceId", 10, 10) == 0)
    }

    // If this fails, a console says it looked further back than it did, or not as far.
    @Test func `the last page of a Service search reaches a minute further back`() async throws {
        let bench = QueryBench()
        try bench.addTrace(1)
        bench.traces.commit()
        let page = try #require(try await bench.allPages("\(window),\"TimeRangeType\":\"Service\"").first)
        #expect(page.approximateTime == startSeconds - 60)
        let answer = try await bench.service.getTraceSummaries(
            body: bytes("{\(window),\"TimeRangeType\":\"Event\"}"), account: account)
        #expect(text(answer).contains("\"MatchedEventTime\":\(startSeconds + 1)}"))
    }

    // If this fails, one account sees traces of another.
    @Test func `traces of another account do not exist`() async throws {
        let bench = QueryBench()
        try bench.addTrace(1)
        try bench.addTrace(2, account: otherAccount)
        bench.traces.commit()
        #expect(try await bench.allPages(window).flatMap(\.ids) == [traceID(1).description])
        #expect(try await bench.allPages(window, account: otherAccount).flatMap(\.ids) == [traceID(2).description])
    }

    // If this fails, a partial scan reads everything there is.
    @Test func `a partial scan stops at its limit without a token`() async throws {
        var limits = QueryLimits()
        #expect(limits.partialScanTraces == 10_000)
        limits.partialScanTraces = 250
        let bench = QueryBench(limits: limits)
        for number in 0..<300 { try bench.addTrace(number) }
        bench.traces.commit()
        let pages = try await bench.allPages("\(window),\"Sampling\":true")
        #expect(pages.map { $0.ids.count } == [100, 100, 50])
        #expect(pages.last?.nextToken == nil)
        #expect(pages.last?.approximateTime == startSeconds + 50)
        let all = try await bench.allPages(
            "\(window),\"Sampling\":false,\"SamplingStrategy\":{\"Name\":\"PartialScan\"}")
        #expect(all.flatMap(\.ids).count == 300)
    }

    // If this fails, a fixed rate keeps other traces on every page, or scans without end.
    @Test(arguments: [0.0, 0.01, 0.5, 1.0])
    func `a fixed rate keeps the traces whose hash is below it`(rate: Double) async throws {
        let bench = QueryBench()
        for number in 0..<1_200 { try bench.addTrace(number) }
        bench.traces.commit()
        let strategy =
            "\"TimeRangeType\":\"Event\",\"Sampling\":true,\"SamplingStrategy\":{\"Name\":\"FixedRate\",\"Value\":\(rate)}"
        let pages = try await bench.allPages("\(window),\(strategy)")
        let expected = (0..<1_200).reversed().map(traceID).filter { $0.samplingFraction < rate }.map(\.description)
        #expect(pages.flatMap(\.ids) == expected)
        #expect(pages.compactMap(\.processed).reduce(0, +) == 1_200)
        #expect(pages.allSatisfy { $0.ids.count <= 100 })
    }

    // If this fails, one request with a tiny rate scans a day of traces.
    @Test func `a page scans a bounded number of traces`() async throws {
        var limits = QueryLimits()
        limits.pageScannedTraces = 50
        let bench = QueryBench(limits: limits)
        for number in 0..<120 { try bench.addTrace(number) }
        bench.traces.commit()
        let strategy =
            "\"TimeRangeType\":\"Event\",\"Sampling\":true,\"SamplingStrategy\":{\"Name\":\"FixedRate\",\"Value\":0}"
        let pages = try await bench.allPages("\(window),\(strategy)")
        #expect(pages.map(\.processed) == [50, 50, 20])
        #expect(pages.map { $0.nextToken == nil } == [false, false, true])
        #expect(pages[0].approximateTime == startSeconds + 70)
        #expect(bench.traces.state.withLock { $0.largestScan } <= 51)
    }

    // If this fails, a page of large traces takes memory without bound.
    @Test func `traces are read a few at a time`() async throws {
        let bench = QueryBench()
        for number in 0..<100 { try bench.addTrace(number) }
        bench.traces.commit()
        #expect(try await bench.allPages(window).flatMap(\.ids).count == 100)
        #expect(bench.traces.state.withLock { $0.largestRead } <= QueryLimits().chunkTraces)
    }

    // If this fails, a token can be used for what it was not made for.
    @Test func `a token belongs to its request, account, operation and time`() async throws {
        let bench = QueryBench()
        for number in 0..<150 {
            try bench.addTrace(number)
            try bench.addTrace(number, account: otherAccount)
        }
        bench.traces.commit()
        let token = try #require(
            try await SummaryPage(bench.service.getTraceSummaries(body: bytes("{\(window)}"), account: account))
                .nextToken)
        let refusal = APIError.invalidRequest("Invalid NextToken \(token)")
        func next(_ members: String, account: AccountID = account) async throws(APIError) -> QueryAnswer {
            try await bench.service.getTraceSummaries(
                body: bytes("{\(members),\"NextToken\":\"\(token)\"}"), account: account)
        }
        let second = try await next(window)
        #expect(text(second) == text(try await next(window)))
        #expect(try SummaryPage(second).ids.count == 50)
        await #expect(throws: refusal) { try await next(window, account: otherAccount) }
        await #expect(throws: refusal) { try await next("\(window),\"TimeRangeType\":\"Event\"") }
        await #expect(throws: refusal) {
            try await next("\"StartTime\":\(startSeconds + 1),\"EndTime\":\(startSeconds + 80_000)")
        }
        await #expect(throws: refusal) {
            try await bench.service.getServiceGraph(
                body: bytes("{\(window),\"NextToken\":\"\(token)\"}"), account: account)
        }
        let stranger = QueryBench(secret: "another")
        await #expect(throws: refusal) {
            try await stranger.service.getTraceSummaries(
                body: bytes("{\(window),\"NextToken\":\"\(token)\"}"), account: account)
        }
        await #expect(throws: APIError.invalidRequest("Invalid NextToken ")) {
            try await bench.service.getTraceSummaries(body: bytes("{\(window),\"NextToken\":\"\"}"), account: account)
        }
        bench.clock.advance(seconds: 299)
        #expect(text(try await next(window)) == text(second))
        bench.clock.advance(seconds: 1)
        await #expect(throws: refusal) { try await next(window) }
    }

    // If this fails, a token stops working when the process restarts or another node answers.
    @Test func `another process with the same secret continues`() async throws {
        let first = QueryBench()
        let second = QueryBench()
        for number in 0..<150 {
            try first.addTrace(number)
            try second.addTrace(number)
        }
        first.traces.commit()
        second.traces.commit()
        let token = try #require(
            try await SummaryPage(first.service.getTraceSummaries(body: bytes("{\(window)}"), account: account))
                .nextToken)
        let page = try await SummaryPage(
            second.service.getTraceSummaries(body: bytes("{\(window),\"NextToken\":\"\(token)\"}"), account: account))
        #expect(page.ids.count == 50)
    }
}
