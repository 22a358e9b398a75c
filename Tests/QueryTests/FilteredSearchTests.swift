import Query
import Segments
import Synchronization
import Testing
import TraceStore
import XRayAPI

private let window = "\"StartTime\":\(startSeconds),\"EndTime\":\(startSeconds + 80_000)"

/// Traces of which every n-th is of the service `rare`; the index in memory narrows nothing, so all are looked at.
private func bench(_ count: Int, rareEvery: Int, limits: QueryLimits = QueryLimits()) throws -> QueryBench {
    let bench = QueryBench(limits: limits)
    for number in 0..<count { try bench.addTrace(number, name: number % rareEvery == 0 ? "rare" : "web") }
    bench.traces.commit()
    return bench
}

private let filter = #""FilterExpression":"service(\"rare\")""#

@Suite struct FilteredSearchTests {
    // If this fails, pages with a filter lose matches, show them twice, or end in an empty page.
    @Test(arguments: [1, 2, 7, 50])
    func `pages hold every match once, newest first`(rareEvery: Int) async throws {
        let bench = try bench(420, rareEvery: rareEvery)
        for type in ["TraceId", "Event", "Service"] {
            let pages = try await bench.allPages("\(window),\(filter),\"TimeRangeType\":\"\(type)\"")
            let matches = (0..<420).filter { $0 % rareEvery == 0 }.reversed().map { traceID($0).description }
            #expect(pages.flatMap(\.ids) == matches)
            #expect(pages.dropLast().allSatisfy { $0.ids.count == 100 })
            #expect(pages.compactMap(\.processed).reduce(0, +) == 420)
            #expect(pages.last?.approximateTime == startSeconds - (type == "Service" ? 60 : 0))
        }
    }

    // If this fails, one request with a filter that matches nothing keeps a server busy.
    @Test func `a page looks at a bounded number of traces, and goes on behind them`() async throws {
        var limits = QueryLimits()
        limits.pageScannedTraces = 150
        let bench = try bench(400, rareEvery: 1_000, limits: limits)
        let pages = try await bench.allPages("\(window),\(filter)")
        #expect(pages.map(\.processed) == [150, 150, 100])
        #expect(pages.flatMap(\.ids) == [traceID(0).description])
        #expect(pages.first?.approximateTime == startSeconds + 250)
    }

    // If this fails, a partial scan looks at everything, or a rate applies to something else than the matches.
    @Test func `sampling counts and keeps what it does without a filter`() async throws {
        var limits = QueryLimits()
        limits.partialScanTraces = 250
        let bench = try bench(400, rareEvery: 2, limits: limits)
        let partial = try await bench.allPages("\(window),\(filter),\"Sampling\":true")
        #expect(partial.flatMap(\.ids).count == 125 && partial.compactMap(\.processed).reduce(0, +) == 250)
        let event = "\(window),\"TimeRangeType\":\"Event\""
        let rate = "\"Sampling\":true,\"SamplingStrategy\":{\"Name\":\"FixedRate\",\"Value\":0.5}"
        let kept = Set(try await bench.allPages("\(event),\(rate)").flatMap(\.ids))
        let matches = try await bench.allPages("\(event),\(filter)").flatMap(\.ids)
        let both = try await bench.allPages("\(event),\(filter),\(rate)").flatMap(\.ids)
        #expect(both == matches.filter(kept.contains) && !both.isEmpty && both.count < matches.count)
    }

    // If this fails, whoever follows a token after retention removed its traces takes a part for the whole.
    @Test func `a token that points to a removed trace says so`() async throws {
        let bench = try bench(150, rareEvery: 1)
        let page = try #require(try await bench.allPages("\(window),\(filter)", mostPages: 1).first)
        let token = try #require(page.nextToken)
        bench.traces.state.withLock { state in state.offsets = state.offsets.filter { $0.key.id < traceID(20) } }
        await #expect {
            _ = try await bench.service.getTraceSummaries(
                body: bytes("{\(window),\(filter),\"NextToken\":\"\(token)\"}"), account: account)
        } throws: { error in
            let error = error as? APIError
            return error?.status == 400 && error?.message.hasPrefix("Invalid NextToken") == true
                && error?.message.hasSuffix("no longer kept") == true
        }
    }

    @Test func `a group that does not exist holds nothing`() async throws {
        let bench = try bench(10, rareEvery: 1)
        for text in [#"group.name = \"nobody\""#, #"group.name != \"nobody\""#] {
            #expect(try await bench.allPages("\(window),\"FilterExpression\":\"\(text)\"").flatMap(\.ids) == [])
        }
        #expect(
            try await bench.allPages(#"\#(window),"FilterExpression":"group.name = \"Default\"""#).flatMap(\.ids).count
                == 10)
    }
}
