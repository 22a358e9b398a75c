import Query
import Segments
import Synchronization
import Testing
import TraceStore
import XRayAPI

private let window = "\"StartTime\":\(startSeconds),\"EndTime\":\(startSeconds + 3_600)"

@Suite struct ConsistencyTests {
    // If this fails, a client does not find the trace it has just written.
    @Test func `reads by id wait for what was acknowledged before them`() async throws {
        let bench = QueryBench()
        try bench.addTrace(1)
        bench.traces.state.withLock { $0.commitsOnWait = true }
        let body = bytes("{\"TraceIds\":[\"\(traceID(1))\"]}")
        let answer = try await bench.service.batchGetTraces(body: body, account: account)
        #expect(text(answer).contains("\"Id\":\"\(traceID(1))\""))
        #expect(answer.completeTo == bench.clock.now)
        try bench.addTrace(1, name: "ignored")
        #expect(text(try await bench.service.getTraceGraph(body: body, account: account)).contains("\"Name\":\"web\""))
        #expect(bench.traces.state.withLock { $0.waits } == 2)
    }

    // If this fails, an answer that misses documents claims to be complete.
    @Test func `an answer that could not wait long enough says up to when it is complete`() async throws {
        let bench = QueryBench()
        try bench.addTrace(1)
        bench.traces.commit()
        let lag = (startSeconds + 42) * 1_000_000
        try bench.addTrace(1, receivedAt: lag)
        let answer = try await bench.service.batchGetTraces(
            body: bytes("{\"TraceIds\":[\"\(traceID(1))\"]}"), account: account)
        #expect(answer.completeTo == lag - 1)
    }

    // If this fails, a slow partition makes every read by id look incomplete.
    @Test func `only the partitions of the traces count for reads by id`() async throws {
        let bench = QueryBench()
        try bench.addTrace(1)
        bench.traces.commit()
        let other = try #require(
            (2..<100).first { bench.traces.partition(of: traceID($0)) != bench.traces.partition(of: traceID(1)) })
        try bench.addTrace(other)
        let answer = try await bench.service.batchGetTraces(
            body: bytes("{\"TraceIds\":[\"\(traceID(1))\"]}"), account: account)
        #expect(answer.completeTo == bench.clock.now)
        let summaries = try await bench.service.getTraceSummaries(body: bytes("{\(window)}"), account: account)
        #expect(summaries.completeTo == (startSeconds + Int64(other)) * 1_000_000 - 1)
    }

    // If this fails, dashboards wait for the aggregator, or cannot when they want to.
    @Test func `summaries and graphs answer at once unless they are asked to be fresh`() async throws {
        let bench = QueryBench()
        try bench.addTrace(1)
        bench.traces.state.withLock { $0.commitsOnWait = true }
        let body = bytes("{\(window)}")
        let late = (startSeconds + 1) * 1_000_000 - 1
        let summaries = try await bench.service.getTraceSummaries(body: body, account: account)
        let graph = try await bench.service.getServiceGraph(body: body, account: account)
        #expect(summaries.completeTo == late && graph.completeTo == late)
        #expect(try SummaryPage(summaries).ids.isEmpty && GraphPage(graph).services.isEmpty)
        #expect(bench.traces.state.withLock { $0.waits } == 0)

        let freshGraph = try await bench.service.getServiceGraph(body: body, account: account, isFresh: true)
        #expect(freshGraph.completeTo == bench.clock.now)
        #expect(try GraphPage(freshGraph).names == ["web", "web"])
        let freshSummaries = try await bench.service.getTraceSummaries(body: body, account: account, isFresh: true)
        #expect(try SummaryPage(freshSummaries).ids.count == 1)
    }
}

@Suite struct TraceReadTests {
    // If this fails, ids that were never stored look like failures.
    @Test func `unknown traces and traces of other accounts are in neither list`() async throws {
        let bench = QueryBench()
        try bench.addTrace(1)
        try bench.addTrace(2, account: otherAccount)
        bench.traces.commit()
        let ids = [3, 2, 1].map { "\"\(traceID($0))\"" }.joined(separator: ",")
        let answer = try await bench.service.batchGetTraces(body: bytes("{\"TraceIds\":[\(ids)]}"), account: account)
        #expect(
            text(answer).hasPrefix(
                "{\"Traces\":[{\"Id\":\"\(traceID(1))\",\"Duration\":0.5,\"LimitExceeded\":false,\"Segments\":[{\"Id\":\"a000000000000001\","
            ))
        #expect(text(answer).hasSuffix("],\"UnprocessedTraceIds\":[]}"))
        #expect(!text(answer).contains(traceID(2).description))
        await #expect(throws: APIError.invalidRequest("Trace id not found")) {
            try await bench.service.getTraceGraph(
                body: bytes("{\"TraceIds\":[\"\(traceID(2))\",\"\(traceID(3))\"]}"), account: account)
        }
    }

    // If this fails, traces come in another order than asked for.
    @Test func `traces come in request order`() async throws {
        let bench = QueryBench()
        for number in 1...5 { try bench.addTrace(number) }
        bench.traces.commit()
        let ids = [4, 1, 5, 2, 3].map { "\"\(traceID($0))\"" }.joined(separator: ",")
        let answer = text(
            try await bench.service.batchGetTraces(body: bytes("{\"TraceIds\":[\(ids)]}"), account: account))
        let places = [4, 1, 5, 2, 3].map { answer.firstRange(of: "{\"Id\":\"\(traceID($0))\"")?.lowerBound }
        #expect(places.allSatisfy { $0 != nil })
        #expect(places.compactMap { $0 } == places.compactMap { $0 }.sorted())
    }

    // If this fails, one damaged row hides four good traces.
    @Test func `a trace that cannot be read is unprocessed, the others are answered`() async throws {
        let bench = QueryBench()
        for number in 1...3 { try bench.addTrace(number) }
        bench.traces.commit()
        bench.traces.state.withLock { _ = $0.corrupt.insert(traceID(2)) }
        let ids = (1...3).map { "\"\(traceID($0))\"" }.joined(separator: ",")
        let answer = text(
            try await bench.service.batchGetTraces(body: bytes("{\"TraceIds\":[\(ids)]}"), account: account))
        #expect(answer.hasSuffix("\"UnprocessedTraceIds\":[\"\(traceID(2))\"]}"))
        #expect(answer.contains("{\"Id\":\"\(traceID(1))\"") && answer.contains("{\"Id\":\"\(traceID(3))\""))
    }

    // If this fails, a database that restarts looks like a bug, and clients do not retry.
    @Test func `an unreachable store is ServiceUnavailable`() async throws {
        let bench = QueryBench()
        bench.traces.state.withLock { $0.failure = TraceStoreError(.unavailable, "down", isRetriable: true) }
        for call in 0..<4 {
            let error = await #expect(throws: APIError.self) {
                switch call {
                case 0:
                    try await bench.service.batchGetTraces(
                        body: bytes("{\"TraceIds\":[\"\(traceID(1))\"]}"), account: account)
                case 1:
                    try await bench.service.getTraceGraph(
                        body: bytes("{\"TraceIds\":[\"\(traceID(1))\"]}"), account: account)
                case 2: try await bench.service.getTraceSummaries(body: bytes("{\(window)}"), account: account)
                default: try await bench.service.getServiceGraph(body: bytes("{\(window)}"), account: account)
                }
            }
            #expect(error?.name == "ServiceUnavailable" && error?.status == 503)
        }
    }

    @Test func `the encryption configuration needs nothing`() throws {
        let answer = try QueryBench().service.getEncryptionConfig(body: [])
        #expect(text(answer) == #"{"EncryptionConfig":{"Status":"ACTIVE","Type":"NONE"}}"#)
        #expect(answer.completeTo == nil)
    }

    // If this fails, the largest traces make a read slower than their size.
    @Test(.timeLimit(.minutes(1))) func `a trace of thousands of documents is answered whole`() async throws {
        let bench = QueryBench()
        let root =
            #"{"trace_id":"\#(traceID(1))","id":"a000000000000001","name":"web","start_time":\#(startSeconds),"end_time":\#(startSeconds).5}"#
        try bench.traces.append(root, account: account, receivedAt: startSeconds * 1_000_000)
        for number in 0..<4_000 {
            let id = "b" + String(1_000_000_000_000_00 + number)
            let document =
                #"{"type":"subsegment","trace_id":"\#(traceID(1))","parent_id":"a000000000000001","id":"\#(id)","name":"n\#(number)","namespace":"remote","start_time":\#(startSeconds),"end_time":\#(startSeconds).25}"#
            try bench.traces.append(document, account: account, receivedAt: startSeconds * 1_000_000)
        }
        bench.traces.commit()
        let body = bytes("{\"TraceIds\":[\"\(traceID(1))\"]}")
        let answer = try await bench.service.batchGetTraces(body: body, account: account)
        #expect(text(answer).components("\"Document\":") == 4_001)
        let graph = try GraphPage(try await bench.service.getTraceGraph(body: body, account: account))
        #expect(graph.services == Array(0..<4_002))
    }
}

extension String {
    /// How often a text occurs.
    fileprivate func components(_ part: String) -> Int {
        split(separator: part, omittingEmptySubsequences: false).count - 1
    }
}

@Suite struct ServiceGraphPageTests {
    private func bench(services: Int, secret: String = "secret") throws -> QueryBench {
        let bench = QueryBench(secret: secret)
        for number in 0..<services { try bench.addTrace(number, name: "service-\(number)") }
        bench.traces.commit()
        return bench
    }

    private func page(_ bench: QueryBench, _ token: String?, account: AccountID = account) async throws -> GraphPage {
        let next = token.map { ",\"NextToken\":\"\($0)\"" } ?? ""
        return try GraphPage(
            try await bench.service.getServiceGraph(body: bytes("{\(window)\(next)}"), account: account))
    }

    // If this fails, maps of more than 500 services lose some of them, or draw edges to the wrong ones.
    @Test func `a graph beyond 500 services comes in pages with ids unique across them`() async throws {
        let bench = try bench(services: 600)
        var ids: [Int64] = []
        var token: String?
        var counts: [Int] = []
        var reads = 0
        repeat {
            let next = try await page(bench, token)
            if counts.isEmpty { reads = bench.traces.state.withLock { $0.graphReads } }
            counts.append(next.services.count)
            ids += next.services
            token = next.nextToken
        } while token != nil && counts.count < 10
        // 600 services and their client nodes.
        #expect(counts == [500, 500, 200])
        #expect(ids == Array(0..<1_200))
        // All pages of a walk come from one computation.
        #expect(reads > 0 && bench.traces.state.withLock { $0.graphReads } == reads)
        let small = try self.bench(services: 3)
        #expect(try await page(small, nil).nextToken == nil)
    }

    // If this fails, pages of two different graphs are put together.
    @Test func `a page is refused when the nodes have changed and the graph it belongs to is gone`() async throws {
        let first = try bench(services: 600)
        let token = try #require(try await page(first, nil).nextToken)
        // A change does not disturb a walk that has begun.
        try first.addTrace(700, name: "another")
        first.traces.commit()
        #expect(try await page(first, token).services == Array(500..<1_000))
        // A node that did not compute the graph continues when it is the same, and refuses otherwise.
        let same = try bench(services: 600)
        #expect(try await page(same, token).services == Array(500..<1_000))
        let changed = try bench(services: 601)
        await #expect(throws: APIError.invalidRequest("Invalid NextToken \(token)")) { try await page(changed, token) }
        await #expect(throws: APIError.self) { try await page(first, token, account: otherAccount) }
    }

    // If this fails, one account's map shows another's services.
    @Test func `the graph is that of the account`() async throws {
        let bench = try bench(services: 2)
        try bench.addTrace(50, account: otherAccount, name: "secret")
        bench.traces.commit()
        #expect(try await page(bench, nil).names == ["service-0", "service-0", "service-1", "service-1"])
        #expect(try await page(bench, nil, account: otherAccount).names == ["secret", "secret"])
        let empty = try await bench.service.getServiceGraph(
            body: bytes(#"{"StartTime":5,"EndTime":5}"#), account: account)
        #expect(text(empty) == #"{"StartTime":5,"EndTime":5,"Services":[],"ContainsOldGroupVersions":false}"#)
    }
}
