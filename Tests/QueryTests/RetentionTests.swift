// Walks of several pages from which retention takes something: whoever follows the token is told, unless nothing of what
// was still to come is gone.

import Query
import Segments
import Synchronization
import Testing
import TraceStore
import XRayAPI

private let window = "\"StartTime\":\(startSeconds),\"EndTime\":\(startSeconds + 80_000)"

private func removed(_ token: String) -> APIError {
    .invalidRequest("Invalid NextToken \(token): a part of what it points to is no longer kept")
}

@Suite struct RetentionTests {
    /// 250 traces, one a second; the first page ends with number 150.
    private func bench() throws -> QueryBench {
        let bench = QueryBench()
        for number in 0..<250 { try bench.addTrace(number) }
        bench.traces.commit()
        return bench
    }

    private func remove(_ data: RetainedData, _ seconds: ClosedRange<Int64>, from bench: QueryBench) {
        bench.traces.state.withLock { state in
            state.removals.append((data, startSeconds + seconds.lowerBound...startSeconds + seconds.upperBound))
        }
    }

    // If this fails, a walk that has lost traces ends as if it were complete.
    @Test(
        arguments: [
            ("TraceId", RetainedData.rootStarts), ("Event", .receipts), ("Service", .ends),
        ], ["", #","FilterExpression":"service(\"web\")""#])
    func `a token is refused when something behind it was removed, though its own trace is there`(
        type: (name: String, data: RetainedData), filter: String
    ) async throws {
        let members = "\(window),\"TimeRangeType\":\"\(type.name)\"\(filter)"
        let bench = try bench()
        remove(type.data, 0...249, from: bench)  // before the walk
        let token = try #require(try await bench.allPages(members, mostPages: 1).first?.nextToken)
        func goOn() async throws -> SummaryPage {
            try SummaryPage(
                try await bench.service.getTraceSummaries(
                    body: bytes("{\(members),\"NextToken\":\"\(token)\"}"), account: account))
        }
        // What the first page has given, what lies outside of the window, and what another clock says.
        remove(type.data, 151...249, from: bench)
        remove(type.data, -500 ... -1, from: bench)
        remove(type.data == .ends ? .receipts : .ends, 0...10, from: bench)
        remove(.graph, 0...249, from: bench)
        #expect(try await goOn().ids.count == 100)
        remove(type.data, 10...12, from: bench)
        await #expect(throws: removed(token)) { try await goOn() }
        // A walk that begins now does not miss anything.
        #expect(try await bench.allPages(members).flatMap(\.ids).count == 250)
    }

    // If this fails, a trace that is just being removed is passed over silently.
    @Test func `a trace without documents is being removed`() async throws {
        let bench = try bench()
        let token = try #require(try await bench.allPages(window, mostPages: 1).first?.nextToken)
        bench.traces.state.withLock { $0.withoutDocuments = [traceID(120)] }
        await #expect(throws: removed(token)) {
            try await bench.service.getTraceSummaries(
                body: bytes("{\(window),\"NextToken\":\"\(token)\"}"), account: account)
        }
        // To a walk that only begins, it is gone.
        bench.traces.state.withLock { $0.withoutDocuments = [traceID(240)] }
        #expect(try await bench.allPages(window, mostPages: 1).first?.ids.count == 99)
    }

    // If this fails, the second page of a map shows a day that is gone, or half of a map passes for the whole.
    @Test func `a page of a graph is refused when minutes of its window were removed`() async throws {
        let bench = QueryBench()
        for number in 0..<600 { try bench.addTrace(number, name: "service-\(number)") }
        bench.traces.commit()
        func page(_ token: String?) async throws -> GraphPage {
            let next = token.map { ",\"NextToken\":\"\($0)\"" } ?? ""
            return try GraphPage(
                try await bench.service.getServiceGraph(body: bytes("{\(window)\(next)}"), account: account))
        }
        let token = try #require(try await page(nil).nextToken)
        remove(.graph, -500 ... -1, from: bench)
        remove(.groups, 0...60, from: bench)
        let next = try #require(try await page(token).nextToken)
        remove(.graph, 0...60, from: bench)
        for token in [token, next] { await #expect(throws: removed(token)) { try await page(token) } }
        #expect(try await page(nil).services.count == 500)
    }

    // If this fails, a time series of many points stops early, as if nothing had happened before.
    @Test func `a page of a time series is refused when earlier minutes were removed`() async throws {
        let bench = QueryBench()
        for minute in 0..<1_300 { try bench.addTrace(minute * 60) }
        bench.traces.commit()
        func series(_ token: String?) async throws -> String {
            let next = token.map { ",\"NextToken\":\"\($0)\"" } ?? ""
            return text(
                try await bench.service.getTimeSeries(body: bytes("{\(window)\(next)}"), account: account))
        }
        let first = try await series(nil)
        let start = try #require(first.firstRange(of: "\"NextToken\":\"")).upperBound
        let token = String(first[start...].prefix { $0 != "\"" })
        remove(.graph, 78_000...79_000, from: bench)  // given already
        #expect(try await series(token).contains("Timestamp"))
        remove(.graph, 0...59, from: bench)
        await #expect(throws: removed(token)) { try await series(token) }
    }
}
