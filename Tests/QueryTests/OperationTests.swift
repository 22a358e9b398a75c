import APIServer
import AccessControl
import NIOCore
import NIOHTTP1
import Query
import Segments
import Synchronization
import Testing
import XRayAPI

@Suite struct OperationTests {
    private func request(_ body: String, headers: HTTPHeaders = [:], account: AccountID = account) -> OperationRequest {
        let caller = Caller(
            principalARN: PrincipalARN.root(of: account), account: account, accessKeyID: "AKIDEXAMPLE", role: .read)
        return OperationRequest(
            caller: caller, account: account, body: ByteBuffer(string: body), receivedAt: 0, headers: headers)
    }

    private func call(
        _ name: String, of bench: QueryBench, _ request: OperationRequest
    ) async throws -> (body: String, completeTo: String?) {
        let operation = try #require(bench.service.operations.first { $0.name == name })
        let response = try await operation.handler(request)
        return (
            String(decoding: response.body, as: UTF8.self),
            response.headers.first { $0.name == "x-beamline-complete-to" }?.value
        )
    }

    // If this fails, SDKs find no such operation (many paths differ from the operation's name).
    @Test func `every read operation has the path of the API`() {
        let paths = QueryBench().service.operations.map { "\($0.name) \($0.path) \($0.operationClass.rawValue)" }
        #expect(
            paths == [
                "BatchGetTraces /Traces query", "GetTraceSummaries /TraceSummaries query",
                "GetServiceGraph /ServiceGraph query",
                "GetTraceGraph /TraceGraph query", "GetEncryptionConfig /EncryptionConfig query",
                "GetTimeSeriesServiceStatistics /TimeSeriesServiceStatistics query", "GetGroup /GetGroup query",
                "GetGroups /Groups query",
            ])
    }

    // If this fails, nobody can tell how complete an answer is, or ask for a complete one.
    @Test func `reads say up to when they are complete, and wait when asked to be fresh`() async throws {
        let bench = QueryBench()
        try bench.addTrace(1)
        bench.traces.state.withLock { $0.commitsOnWait = true }
        let window = "{\"StartTime\":\(startSeconds),\"EndTime\":\(startSeconds + 60)}"
        for name in ["GetTraceSummaries", "GetServiceGraph"] {
            #expect(try await call(name, of: bench, request(window)).completeTo == "2023-11-14T22:13:20.999Z")
        }
        let fresh: HTTPHeaders = ["X-Beamline-Consistency": "fresh"]
        for name in ["GetTraceSummaries", "GetServiceGraph"] {
            let answer = try await call(name, of: bench, request(window, headers: fresh))
            #expect(answer.completeTo == TimestampText.rfc3339(bench.clock.now))
            #expect(answer.body.contains("\"web\""))
        }
        let ids = "{\"TraceIds\":[\"\(traceID(1))\"]}"
        #expect(
            try await call("BatchGetTraces", of: bench, request(ids)).completeTo
                == TimestampText.rfc3339(bench.clock.now))
        #expect(
            try await call("GetTraceGraph", of: bench, request(ids)).completeTo
                == TimestampText.rfc3339(bench.clock.now))
        #expect(try await call("GetEncryptionConfig", of: bench, request("")).completeTo == nil)
    }

    // If this fails, a caller reads the traces of its own account while asking for another one, or the reverse.
    @Test func `the target account of the request decides`() async throws {
        let bench = QueryBench()
        try bench.addTrace(1)
        bench.traces.commit()
        var foreign = request("{\"TraceIds\":[\"\(traceID(1))\"]}")
        foreign.account = otherAccount
        #expect(try await call("BatchGetTraces", of: bench, foreign).body == #"{"Traces":[],"UnprocessedTraceIds":[]}"#)
    }
}
