import JSONText
import Segments
import ServiceGraph
import Testing
import TraceAssembly
import XRayAPI

private let account = AccountID(rawValue: 111_122_223_333)

private func text(_ bytes: [UInt8]) -> String { String(decoding: bytes, as: UTF8.self) }

@Suite struct GraphResponseTests {
    // If this fails, a client reads other numbers, or other fields, than the specification's worked example A.
    @Test func `worked example A of the service graph is rendered byte for byte`() throws {
        let forests = try traces(WorkedExamples.graphADocuments, account: account).map(\.forest)
        let window: Range<Int64> = 1_700_000_000..<1_700_000_200
        let pages = ServiceGraphPages(try serviceGraph(of: forests, account: account, window: window))
        #expect(pages.pages.map(text) == [WorkedExamples.graphAServices.joined(separator: ",")])
        let response = GetServiceGraphResponse(window: window, services: pages.pages[0], nextToken: nil)
        #expect(
            text(response.body)
                == "{\"StartTime\":1700000000,\"EndTime\":1700000200,\"Services\":[\(WorkedExamples.graphAServices.joined(separator: ","))],\"ContainsOldGroupVersions\":false}"
        )
    }

    // If this fails, queues and what reads from them look different on the map than in worked example B.
    @Test func `worked example B, a queue link, is rendered byte for byte`() throws {
        let forests = try traces(WorkedExamples.graphBDocuments, account: account).map(\.forest)
        let graph = try serviceGraph(of: forests, account: account, window: 1_700_000_000..<1_700_000_060)
        #expect(ServiceGraphPages(graph).pages.map(text) == [WorkedExamples.graphBServices.joined(separator: ",")])
    }

    // If this fails, a trace graph has the times of a window it never had.
    @Test func `a trace graph is the same without times`() throws {
        let forests = try traces(WorkedExamples.graphADocuments, account: account).map(\.forest)
        let body = text(GetTraceGraphResponse(graph: traceGraph(of: forests, account: account)).body)
        let expected = WorkedExamples.graphAServices.joined(separator: ",")
            .replacing(/"StartTime":\d+,"EndTime":\d+,/, with: "")
        #expect(body == "{\"Services\":[\(expected)]}")
    }

    // If this fails, the second page repeats or loses services, or edges point at other nodes.
    @Test func `pages cut a graph without changing it`() throws {
        let documents = (0..<7).map {
            #"{"trace_id":"1-65536f64-00000000000000000000000\#($0)","id":"a00000000000000\#($0)","name":"s\#($0)","start_time":1700000100,"end_time":1700000101}"#
        }
        let forests = try traces(documents, account: account).map(\.forest)
        let graph = try serviceGraph(of: forests, account: account, window: 1_700_000_000..<1_700_000_200)
        let whole = ServiceGraphPages(graph)
        let cut = ServiceGraphPages(graph, pageServices: 4)
        #expect(whole.pages.count == 1 && cut.pages.count == 4 && graph.services.count == 14)
        #expect(cut.pages.map(text).joined(separator: ",") == text(whole.pages[0]))
        #expect(cut.digest == whole.digest)
        let other = try serviceGraph(
            of: Array(forests.dropLast()), account: account, window: 1_700_000_000..<1_700_000_200)
        #expect(ServiceGraphPages(other).digest != whole.digest)
        #expect(ServiceGraphPages(ServiceGraphResult(services: [])).pages == [[]])
    }

    // If this fails, clients that index into the list of an empty graph crash.
    @Test func `an empty graph has an empty list`() {
        #expect(text(GetTraceGraphResponse(graph: ServiceGraphResult(services: [])).body) == #"{"Services":[]}"#)
        #expect(
            text(GetServiceGraphResponse(window: 5..<5, services: [], nextToken: "t").body)
                == #"{"StartTime":5,"EndTime":5,"Services":[],"ContainsOldGroupVersions":false,"NextToken":"t"}"#)
    }
}

@Suite struct BatchGetTracesResponseTests {
    // If this fails, `BatchGetTraces` does not give back what was sent (`traces.md` §3, worked example).
    @Test func `the worked example of BatchGetTraces is rendered byte for byte`() throws {
        let document =
            #"{"id":"00c0ffee00c0ffee","name":"checkout","start_time":1700000000.125,"trace_id":"1-65536f00-0123456789abcdef01234567","end_time":1700000000.375,"subsegments":[{"id":"0badcafe0badcafe","name":"stock.example.com","start_time":1700000000.15,"end_time":1700000000.3,"http":{"request":{"method":"GET","url":"https://stock.example.com/sku/9"},"response":{"status":200,"content_length":412}},"namespace":"remote"}]}"#
        let (forest, documents) = try #require(try traces([document], account: account).first)
        let segments = traceDocuments(forest: forest, documents: documents)
        #expect(segments.count == 2)
        let response = BatchGetTracesResponse(traces: [
            .init(id: forest.trace.id, duration: forest.traceDuration, limitExceeded: false, segments: segments)
        ])
        // The id of the inferred segment in the specification is illustrative.
        let expected = WorkedExamples.batchGetTraces.replacing("7d1b0c5a9e3f2468", with: segments[1].id.description)
        #expect(text(response.body) == expected)
    }

    @Test func `both lists are always there, and a trace in progress has no duration`() {
        #expect(text(BatchGetTracesResponse(traces: []).body) == #"{"Traces":[],"UnprocessedTraceIds":[]}"#)
        let id = TraceID(high: 1, low: 2)
        let response = BatchGetTracesResponse(
            traces: [.init(id: id, duration: nil, limitExceeded: true, segments: [])], unprocessedTraceIDs: [id])
        #expect(
            text(response.body)
                == #"{"Traces":[{"Id":"1-00000000-000000010000000000000002","LimitExceeded":true,"Segments":[]}],"UnprocessedTraceIds":["1-00000000-000000010000000000000002"]}"#
        )
    }

    // If this fails, a document with quotes, control characters or NUL comes back as other text.
    @Test func `documents survive the trip as JSON strings`() throws {
        let document =
            #"{"id":"00c0ffee00c0ffee","name":"a/b\\\"\u0000\n\u001f é😀","start_time":1700000000,"trace_id":"1-65536f00-0123456789abcdef01234567","end_time":1700000001,"metadata":{"n":{"big":12345678901234567890123,"huge":1e400}}}"#
        let (forest, documents) = try #require(try traces([document], account: account).first)
        let segments = traceDocuments(forest: forest, documents: documents)
        let body = BatchGetTracesResponse(traces: [
            .init(id: forest.trace.id, duration: 0, limitExceeded: false, segments: segments)
        ]).body
        let parser = JSONParser()
        let returned = try #require(
            try parser.parse(body).member("Traces")?.elements.first { _ in true }?.member("Segments")?.elements.first {
                _ in true
            }?.member("Document")?.string)
        let inner = JSONParser()
        let root = try inner.parse(returned.rawBytes)
        #expect(root.member("name")?.string?.string == "a/b\\\"\u{0}\n\u{1f} é😀")
        #expect(returned.string.contains(#""big":12345678901234567890123,"huge":1e400"#))
    }
}

@Suite struct TraceSummariesResponseTests {
    private func render(
        _ documents: [String], timeRangeType: GetTraceSummariesRequest.TimeRangeType = .traceID,
        nextToken: String? = nil
    ) throws -> String {
        var response = GetTraceSummariesResponse(timeRangeType: timeRangeType)
        var count = 0
        for (forest, _) in try traces(documents, account: account) {
            count += 1
            if let summary = TraceSummary(forest: forest) { response.append(summary) }
        }
        return text(response.finish(approximateTime: 1_700_000_000, tracesProcessedCount: count, nextToken: nextToken))
    }

    // If this fails, a field of a summary is missing, misnamed or of another type than clients expect.
    @Test func `every field of a summary is rendered`() throws {
        let document =
            #"{"trace_id":"1-65536f00-0123456789abcdef01234567","id":"00c0ffee00c0ffee","name":"web","start_time":1700000000.1256,"end_time":1700000000.6256,"origin":"AWS::EC2::Instance","user":"ann","resource_arn":"arn:aws:ec2:x","aws":{"account_id":"999988887777","ec2":{"instance_id":"i-1","availability_zone":"eu-1a"}},"http":{"request":{"url":"https://a/b?c=\"d\"","method":"GET","user_agent":"ua","client_ip":"10.0.0.1"},"response":{"status":503}},"annotations":{"tier":"gold","weight":0.5,"vip":true,"count":7}}"#
        let service = #"{"Name":"web","Names":["web"],"AccountId":"999988887777","Type":"AWS::EC2::Instance"}"#
        let client = #"{"Name":"web","Names":["web"],"AccountId":"999988887777","Type":"client"}"#
        let expected =
            #"{"Id":"1-65536f00-0123456789abcdef01234567","StartTime":1700000000.126,"Duration":0.5,"ResponseTime":0.5,"#
            + #""HasFault":true,"HasError":false,"HasThrottle":false,"IsPartial":false,"#
            + #""Http":{"HttpURL":"https://a/b?c=\"d\"","HttpStatus":503,"HttpMethod":"GET","UserAgent":"ua","ClientIp":"10.0.0.1"},"#
            + #""Annotations":{"tier":[{"AnnotationValue":{"StringValue":"gold"},"ServiceIds":[\#(service)]}],"#
            + #""weight":[{"AnnotationValue":{"NumberValue":0.5},"ServiceIds":[\#(service)]}],"#
            + #""vip":[{"AnnotationValue":{"BooleanValue":true},"ServiceIds":[\#(service)]}],"#
            + #""count":[{"AnnotationValue":{"NumberValue":7},"ServiceIds":[\#(service)]}]},"#
            + #""Users":[{"UserName":"ann","ServiceIds":[\#(service)]}],"ServiceIds":[\#(service),\#(client)],"#
            + #""ResourceARNs":[{"ARN":"arn:aws:ec2:x"}],"InstanceIds":[{"Id":"i-1"}],"AvailabilityZones":[{"Name":"eu-1a"}],"#
            + #""EntryPoint":\#(service),"FaultRootCauses":[],"ErrorRootCauses":[],"ResponseTimeRootCauses":[],"Revision":1"#
        #expect(
            try render([document])
                == "{\"TraceSummaries\":[\(expected)}],\"ApproximateTime\":1700000000,\"TracesProcessedCount\":1}")
        #expect(
            try render([document], timeRangeType: .event, nextToken: "next")
                == "{\"TraceSummaries\":[\(expected),\"MatchedEventTime\":1700000000}],\"ApproximateTime\":1700000000,\"TracesProcessedCount\":1,\"NextToken\":\"next\"}"
        )
    }

    // If this fails, SDKs that index into lists crash, or read a duration of a trace that has none.
    @Test func `a bare open trace has its lists and maps, and no durations`() throws {
        let document =
            #"{"trace_id":"1-65536f00-0123456789abcdef01234567","id":"00c0ffee00c0ffee","name":"web","start_time":1700000000,"in_progress":true}"#
        let body = try render([document])
        #expect(
            body.hasPrefix(
                #"{"TraceSummaries":[{"Id":"1-65536f00-0123456789abcdef01234567","StartTime":1700000000,"HasFault":false,"HasError":false,"HasThrottle":false,"IsPartial":true,"Http":{},"Annotations":{},"Users":[],"ServiceIds":[{"Name":"web","Names":["web"]},{"Name":"web","Names":["web"],"Type":"client"}],"ResourceARNs":[],"InstanceIds":[],"AvailabilityZones":[],"EntryPoint":{"Name":"web","Names":["web"]},"FaultRootCauses":[],"ErrorRootCauses":[],"ResponseTimeRootCauses":[],"Revision":1}]"#
            ))
        #expect(!body.contains("null"))
    }

    // If this fails, consoles show another culprit than worked example `traces.md` §6.
    @Test func `the root causes of the worked example are rendered byte for byte`() throws {
        let documents = [
            #"{"trace_id":"1-65536f00-0123456789abcdef01234567","id":"a000000000000001","name":"web","origin":"AWS::EC2::Instance","start_time":1700000000,"end_time":1700000005.5,"fault":true,"subsegments":[{"id":"a000000000000002","name":"orders","namespace":"remote","start_time":1700000000.1,"end_time":1700000005.4,"fault":true}]}"#,
            #"{"trace_id":"1-65536f00-0123456789abcdef01234567","id":"a000000000000003","parent_id":"a000000000000002","name":"orders","origin":"AWS::ECS::Container","start_time":1700000000.2,"end_time":1700000005.3,"fault":true,"subsegments":[{"id":"a000000000000004","name":"DynamoDB","namespace":"aws","start_time":1700000000.3,"end_time":1700000005.2,"fault":true,"aws":{"operation":"PutItem","table_name":"orders-table"},"cause":{"exceptions":[{"type":"InternalServerError","message":"storage failure"}]}}]}"#,
        ]
        let body = try render(documents)
        #expect(body.contains(WorkedExamples.faultRootCauses))
        #expect(body.contains(WorkedExamples.responseTimeRootCauses))
    }

    // If this fails, a client that dereferences the type of a root cause crashes.
    @Test func `the type in a root cause is empty when unknown`() throws {
        let document =
            #"{"trace_id":"1-65536f00-0123456789abcdef01234567","id":"a000000000000001","name":"web","start_time":1700000000,"end_time":1700000001,"error":true,"cause":{"exceptions":[{"message":"m"}]}}"#
        #expect(
            try render([document]).contains(
                #""ErrorRootCauses":[{"ClientImpacting":true,"Services":[{"Name":"web","Names":["web"],"Type":"","Inferred":false,"EntityPath":[{"Name":"web","Remote":false,"Exceptions":[{"Message":"m"}]}]}]}]"#
            ))
    }
}

@Suite struct EncryptionConfigTests {
    @Test func `the default configuration is active without a key`() {
        #expect(text(GetEncryptionConfigRequest.defaultResponseBody) == CapturedExamples.encryptionConfigAnswer)
    }
}
