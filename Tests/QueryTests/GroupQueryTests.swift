// Group parameters and time series of the query service, over memory.

import Query
import Segments
import Synchronization
import Testing
import TraceStore
import XRayAPI

private func group(_ name: String, key: Int64, version: Int = 1) -> TraceGroup {
    TraceGroup(
        name: name, arn: "arn:aws:xray:us-east-1:111122223333:group/\(name)/ID\(key)", key: key, version: version,
        filter: "", createdAt: 0)
}

private func bench(_ groups: [TraceGroup]) throws -> QueryBench {
    let bench = QueryBench()
    for number in 0..<3 { try bench.addTrace(number * 60) }
    bench.traces.commit()
    bench.traces.state.withLock { $0.groups = groups }
    return bench
}

private let window = "\"StartTime\":\(startSeconds),\"EndTime\":\(startSeconds + 600)"

@Suite struct GroupQueryTests {
    private func graph(_ bench: QueryBench, _ members: String) async throws -> String {
        text(try await bench.service.getServiceGraph(body: bytes("{\(window),\(members)}"), account: account))
    }

    // If this fails, Terraform does not understand that a group is gone, or one account reads another's groups.
    @Test func `groups are found by name or ARN, and by nothing else`() async throws {
        let bench = try bench([group("one", key: 1), group("two", key: 2)])
        for members in [
            #""GroupName":"one""#, #""GroupARN":"arn:aws:xray:us-east-1:111122223333:group/one/ID1""#,
            #""GroupName":"one","GroupARN":"arn:aws:xray:eu-west-1:111122223333:group/one/ID1""#,
            #""GroupName":"Default""#,
            #""GroupARN":"arn:aws:xray:us-east-1:111122223333:group/Default""#,
        ] {
            #expect(try await graph(bench, members).contains(#""Name":"web""#))
        }
        for members in [
            #""GroupName":"One""#, #""GroupName":"three""#, #""GroupARN":"x""#,
            #""GroupARN":"arn:aws:xray:us-east-1:111122223333:group/one/ID2""#,
            #""GroupARN":"arn:aws:xray:us-east-1:999988887777:group/one/ID1""#,
        ] {
            await #expect(throws: APIError.invalidRequest("Group not found.")) { try await graph(bench, members) }
        }
        await #expect(throws: GroupIdentifier.differ) {
            try await graph(bench, #""GroupName":"two","GroupARN":"arn:aws:xray:us-east-1:111122223333:group/one/ID1""#)
        }
    }

    // If this fails, nobody learns that a graph mixes traces of two filters.
    @Test func `traces of an older version of the filter are told`() async throws {
        let bench = try bench([group("old", key: 1, version: 2), group("new", key: 2)])
        #expect(try await graph(bench, #""GroupName":"old""#).contains(#""ContainsOldGroupVersions":true"#))
        #expect(try await graph(bench, #""GroupName":"new""#).contains(#""ContainsOldGroupVersions":false"#))
        let empty = try await bench.service.getServiceGraph(
            body: bytes(#"{"StartTime":5,"EndTime":600,"GroupName":"old"}"#), account: account)
        #expect(text(empty).contains(#""ContainsOldGroupVersions":false"#))
        let series = try await bench.service.getTimeSeries(
            body: bytes(#"{\#(window),"GroupName":"old"}"#), account: account)
        #expect(text(series).contains(#""ContainsOldGroupVersions":true"#))
    }

    // If this fails, the pages of a walk come from two groups that had the same name.
    @Test func `a page token belongs to the very group`() async throws {
        let bench = QueryBench()
        var documents: [String] = []
        for number in 1...501 { documents.append(bench.document(number, name: "s\(number)")) }
        for document in documents { try bench.traces.append(document, account: account, receivedAt: 1) }
        bench.traces.commit()
        bench.traces.state.withLock { $0.groups = [group("g", key: 1)] }
        let body = #"{"StartTime":\#(startSeconds),"EndTime":\#(startSeconds + 900),"GroupName":"g""#
        let first = try GraphPage(try await bench.service.getServiceGraph(body: bytes(body + "}"), account: account))
        let token = try #require(first.nextToken)
        let second = bytes(body + #","NextToken":"\#(token)"}"#)
        #expect(
            try GraphPage(try await bench.service.getServiceGraph(body: second, account: account)).services.first == 500
        )
        bench.traces.state.withLock { $0.groups = [group("g", key: 2)] }
        await #expect(throws: PageToken.invalid(token)) {
            try await bench.service.getServiceGraph(body: second, account: account)
        }
    }
}

@Suite struct TimeSeriesOperationTests {
    private func series(_ bench: QueryBench, _ members: String) async throws -> String {
        text(try await bench.service.getTimeSeries(body: bytes("{\(window)\(members)}"), account: account))
    }

    @Test func `selectors are read, and wrong ones refused`() async throws {
        let bench = try bench([])
        #expect(try await series(bench, "").contains("EdgeSummaryStatistics"))
        #expect(
            try await series(bench, #","EntitySelectorExpression":"service(\"web\")""#).contains(
                "ServiceSummaryStatistics"))
        #expect(
            try await series(bench, #","EntitySelectorExpression":"edge(id(type: \"client\"), \"web\")""#).contains(
                "EdgeSummaryStatistics"))
        #expect(
            try await !series(bench, #","EntitySelectorExpression":"service(\"none\")""#).contains("SummaryStatistics"))
        for bad in ["ok", #"service(\"a\") { ok }"#, "service()", #"service(\"a\") service(\"b\")"#] {
            await #expect(throws: APIError.invalidRequest("Invalid entity selector expression")) {
                try await series(bench, #","EntitySelectorExpression":"\#(bad)""#)
            }
        }
        #expect(
            try await series(bench, #","EntitySelectorExpression":"service(\"web\")","ForecastStatistics":true"#)
                .contains("FaultCountHigh"))
        for members in ["", #","EntitySelectorExpression":"edge(\"a\",\"b\")""#] {
            await #expect(throws: GetTimeSeriesServiceStatisticsRequest.selectorRequired) {
                try await series(bench, members + #","ForecastStatistics":true"#)
            }
        }
    }

    // If this fails, a failing database looks like an empty service.
    @Test func `a store that is away is a 503`() async throws {
        let bench = try bench([])
        bench.traces.state.withLock { $0.failure = TraceStoreError(.unavailable, "away", isRetriable: true) }
        let error = await #expect(throws: APIError.self) { try await series(bench, "") }
        #expect(error?.status == 503)
    }
}
