import JSONText
import Segments
import ServiceGraph
import Testing
import TraceAssembly
import XRayAPI

private func bytes(_ text: String) -> [UInt8] { Array(text.utf8) }

private func message(_ body: () throws -> Void) -> String? {
    do {
        try body()
        return nil
    } catch let error as APIError {
        return error.message
    } catch {
        return "\(error)"
    }
}

@Suite struct TimeSeriesRequestTests {
    @Test func `a captured request is read whole, and what is left out has its default`() throws {
        let request = try GetTimeSeriesServiceStatisticsRequest(body: bytes(CapturedExamples.getTimeSeries))
        #expect(request.window == 1_700_000_000..<1_700_003_600 && request.period == 300 && request.hasForecast)
        #expect(request.selector == #"service("orders")"# && request.group?.name == "slow")
        let bare = try GetTimeSeriesServiceStatisticsRequest(body: bytes(#"{"StartTime":1,"EndTime":2}"#))
        #expect(bare.period == 60 && !bare.hasForecast && bare.selector == nil && bare.group == nil)
    }

    @Test(arguments: [
        (#""Period":61"#, "Time period must be one of [60, 300]"),
        (#""EntitySelectorExpression":"""#, "EntitySelectorExpression must have between 1 and 500 characters"),
        (#""StartTime":3"#, "End time cannot be earlier than start time"),
        (#""EndTime":86402"#, "Time range cannot be longer than 24 hours"),
    ])
    func `limits are told`(member: String, expected: String) {
        #expect(
            message {
                _ = try GetTimeSeriesServiceStatisticsRequest(body: bytes(#"{"StartTime":1,"EndTime":2,\#(member)}"#))
            }
                == expected)
    }

    // If this fails, SDKs show a service's counts as an edge's, or none.
    @Test func `points carry one kind of statistics, and only where there are any`() {
        var summary = SummaryStatistics()
        summary.okCount = 1
        summary.faultCount = 1
        summary.totalResponseTime = 300_000
        let points = [
            TimeSeriesPoint(
                time: 120, summary: summary, responseTimeHistogram: [HistogramEntry(value: 150_000, count: 2)],
                faultForecast: 0...3),
            TimeSeriesPoint(time: 60, summary: SummaryStatistics(), responseTimeHistogram: []),
        ]
        let statistics =
            #"{"OkCount":1,"ErrorStatistics":{"ThrottleCount":0,"OtherCount":0,"TotalCount":0},"FaultStatistics":{"OtherCount":1,"TotalCount":1},"TotalCount":2,"TotalResponseTime":0.3}"#
        func body(_ isOfService: Bool) -> String {
            String(
                decoding: GetTimeSeriesServiceStatisticsResponse(
                    points: points, isOfService: isOfService, containsOldGroupVersions: false, nextToken: nil
                ).body, as: UTF8.self)
        }
        for (isOfService, name) in [(true, "Service"), (false, "Edge")] {
            #expect(
                body(isOfService)
                    == #"{"TimeSeriesServiceStatistics":[{"Timestamp":120,"\#(name)SummaryStatistics":\#(statistics),"ServiceForecastStatistics":{"FaultCountHigh":3,"FaultCountLow":0},"ResponseTimeHistogram":[{"Value":0.15,"Count":2}]},{"Timestamp":60,"ServiceForecastStatistics":{}}],"ContainsOldGroupVersions":false}"#
            )
        }
    }
}

@Suite struct RetrievalRequestTests {
    private let id = "1-65536f00-0123456789abcdef01234567"

    @Test func `a retrieval names its traces and its window`() throws {
        let request = try StartTraceRetrievalRequest(
            body: bytes(#"{"TraceIds":["\#(id)","65536F000123456789abcdef01234567"],"StartTime":5.5,"EndTime":5.5}"#))
        #expect(request.traceIDs.count == 1 && request.startTime == 5_500_000 && request.endTime == 5_500_000)
        #expect(
            try StartTraceRetrievalRequest(body: bytes(#"{"TraceIds":[],"StartTime":1,"EndTime":2}"#)).traceIDs.isEmpty)
        func refusal(_ body: String) -> String? { message { _ = try StartTraceRetrievalRequest(body: bytes(body)) } }
        #expect(refusal(#"{"StartTime":1,"EndTime":2}"#) == "TraceIds is required")
        #expect(refusal(#"{"TraceIds":[],"EndTime":2}"#) == "StartTime is required")
        #expect(refusal(#"{"TraceIds":[],"StartTime":3,"EndTime":2}"#) == "End time cannot be earlier than start time")
        #expect(refusal(#"{"TraceIds":["x"],"StartTime":1,"EndTime":2}"#) == "Invalid trace id x: incorrect id format")
        let many = Array(repeating: "\"\(id)\"", count: 101).joined(separator: ",")
        #expect(
            refusal(#"{"TraceIds":[\#(many)],"StartTime":1,"EndTime":2}"#) == "TraceIds must have at most 100 items")
    }

    @Test func `tokens and formats are checked`() throws {
        #expect(try ListRetrievedTracesRequest(body: bytes(#"{"RetrievalToken":"t"}"#)).format == .xray)
        #expect(
            try ListRetrievedTracesRequest(body: bytes(#"{"RetrievalToken":"t","TraceFormat":"OTEL"}"#)).format == .otel
        )
        #expect(message { _ = try ListRetrievedTracesRequest(body: []) } == "RetrievalToken is required")
        #expect(
            message { _ = try ListRetrievedTracesRequest(body: bytes(#"{"RetrievalToken":"t","TraceFormat":"otel"}"#)) }
                == "TraceFormat must be one of [XRAY, OTEL]")
        let long = String(repeating: "t", count: 1_021)
        #expect(
            message { _ = try CancelTraceRetrievalRequest(body: bytes(#"{"RetrievalToken":"\#(long)"}"#)) }
                == "RetrievalToken must have at most 1020 characters")
    }

    // If this fails, a trace retrieved for OpenTelemetry tools is not one to them.
    @Test func `entities become OTLP spans`() throws {
        let text = #"""
            {"trace_id":"1-65536f00-0123456789abcdef01234567","id":"000000000000000a","name":"web","start_time":1700000000,"end_time":1700000000.5,"annotations":{"tenant":"a","vip":true,"age":31},"http":{"request":{"method":"GET","url":"http://x/"},"response":{"status":404}},"subsegments":[{"id":"000000000000000b","name":"db","namespace":"remote","start_time":1700000000.1,"end_time":1700000000.2},{"id":"000000000000000c","name":"work","start_time":1700000000.3,"in_progress":true}]}
            """#
        let document = try SegmentParser().parse(bytes(text))
        var trace = Trace(id: document.traceID, account: AccountID(rawValue: 1))
        _ = bytes(text).withUnsafeBytes { trace.fold(document, bytes: $0, receivedAt: 0) }
        let spans = otlpSpans(of: Forest(trace)).map { String(decoding: $0.document, as: UTF8.self) }
        #expect(
            spans == [
                #"{"traceId":"65536f000123456789abcdef01234567","spanId":"000000000000000a","name":"web","kind":2,"startTimeUnixNano":"1700000000000000000","endTimeUnixNano":"1700000000500000000","attributes":[{"key":"http.request.method","value":{"stringValue":"GET"}},{"key":"url.full","value":{"stringValue":"http://x/"}},{"key":"http.response.status_code","value":{"intValue":"404"}},{"key":"tenant","value":{"stringValue":"a"}},{"key":"vip","value":{"boolValue":true}},{"key":"age","value":{"doubleValue":31}}],"status":{"code":2}}"#,
                #"{"traceId":"65536f000123456789abcdef01234567","spanId":"000000000000000b","parentSpanId":"000000000000000a","name":"db","kind":3,"startTimeUnixNano":"1700000000100000000","endTimeUnixNano":"1700000000200000000","attributes":[],"status":{}}"#,
                #"{"traceId":"65536f000123456789abcdef01234567","spanId":"000000000000000c","parentSpanId":"000000000000000a","name":"work","kind":1,"startTimeUnixNano":"1700000000300000000","attributes":[],"status":{}}"#,
            ])
    }

    @Test func `a retrieved graph wraps its services`() {
        let service = GraphService(referenceID: 0, name: "q", type: "AWS::SQS::Queue", state: .unknown)
        let link = GraphTraceLink(source: TraceID(high: 1, low: 2), destinations: [TraceID(high: 3, low: 4)])
        let body = GetRetrievedTracesGraphResponse(
            status: "COMPLETE", services: [.init(service: service, links: [link])]
        ).body
        #expect(
            String(decoding: body, as: UTF8.self)
                == #"{"RetrievalStatus":"COMPLETE","Services":[{"Service":{"ReferenceId":0,"Name":"q","Names":["q"],"Type":"AWS::SQS::Queue","State":"unknown","Edges":[]},"Links":[{"ReferenceType":"link","SourceTraceId":"1-00000000-000000010000000000000002","DestinationTraceIds":["1-00000000-000000030000000000000004"]}]}]}"#
        )
    }
}
