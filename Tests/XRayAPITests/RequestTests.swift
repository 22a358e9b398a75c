import JSONText
import Segments
import Testing
import TraceAssembly
import XRayAPI

private func bytes(_ text: String) -> [UInt8] { Array(text.utf8) }

@Suite struct WireRuleTests {
    // If this fails, clients that send nothing, null or new members are refused.
    @Test func `empty body, null and unknown members are harmless`() throws {
        #expect(throws: Never.self) { try GetEncryptionConfigRequest(body: []) }
        #expect(throws: Never.self) {
            try GetEncryptionConfigRequest(body: bytes(#"{"NextToken":null,"New":[{"a":1e999}]}"#))
        }
        let request = try GetTraceSummariesRequest(
            body: bytes(#"{"StartTime":1,"StartTime":5,"EndTime":10,"NextToken":null,"Sampling":null,"Other":{}}"#))
        // The last duplicate wins.
        #expect(request.window == 5..<10)
        #expect(request.nextToken == nil)
    }

    // If this fails, a broken body is taken for an empty one or crashes the server.
    @Test(arguments: [
        "[]", "null", "1", "\"x\"", "{", "{}{}", "{\"a\":NaN}", "\u{FEFF}{}", "{\"a\":\"\\ud800\"}", "not json", " ",
        String(repeating: "[", count: 10_000), String(repeating: "{\"a\":", count: 10_000),
    ])
    func `a body that is no JSON object is a SerializationException`(text: String) {
        let error = #expect(throws: APIError.self) { try GetEncryptionConfigRequest(body: bytes(text)) }
        #expect(error?.name == "SerializationException")
        #expect(error?.status == 400)
    }

    // If this fails, bytes that are no UTF-8 get into the store.
    @Test func `invalid UTF-8 is a SerializationException`() {
        let error = #expect(throws: APIError.self) {
            try GetEncryptionConfigRequest(body: bytes("{\"a\":\"") + [0xff] + bytes("\"}"))
        }
        #expect(error?.name == "SerializationException")
    }

    // If this fails, numbers and booleans in quotes are guessed at.
    @Test(arguments: [
        #"{"StartTime":true,"EndTime":10}"#, #"{"StartTime":{},"EndTime":10}"#,
        #"{"StartTime":1,"EndTime":2,"Sampling":"true"}"#,
        #"{"StartTime":1,"EndTime":2,"Sampling":1}"#, #"{"StartTime":1,"EndTime":2,"TimeRangeType":1}"#,
        #"{"StartTime":1,"EndTime":2,"SamplingStrategy":"FixedRate"}"#,
        #"{"StartTime":1,"EndTime":2,"SamplingStrategy":{"Value":"0.5"}}"#,
        #"{"StartTime":1,"EndTime":2,"NextToken":7}"#, #"{"StartTime":1,"EndTime":2,"FilterExpression":{}}"#,
    ])
    func `wrong types are SerializationExceptions`(text: String) {
        let error = #expect(throws: APIError.self) { try GetTraceSummariesRequest(body: bytes(text)) }
        #expect(error?.name == "SerializationException")
    }
}

@Suite struct PutTraceSegmentsTests {
    private func documents(_ body: [UInt8]) throws -> [String] {
        let parser = JSONParser()
        return try body.withUnsafeBytes { body in
            try PutTraceSegmentsRequest(body: body, parser: parser).documents.map {
                String(decoding: $0, as: UTF8.self)
            }
        }
    }

    // If this fails, documents arrive garbled.
    @Test func `documents come out unescaped, in order`() throws {
        let documents = try documents(bytes(CapturedExamples.putTraceSegments))
        #expect(documents.count == 2)
        #expect(documents[0].hasPrefix(#"{"trace_id": "1-65536f00-0123456789abcdef01234567", "id""#))
        #expect(documents[1] == "{\"id\":\"0badcafe\",\"name\":\"café \\\"bar\\\"\"}\n")
    }

    // If this fails, a document with a NUL is cut short.
    @Test func `escapes of a document reach it as they are`() throws {
        #expect(
            try documents(bytes(#"{"TraceSegmentDocuments":["a\u0000b\\u0000 \ud83d\ude00",""]}"#)) == [
                "a\u{0}b\\u0000 😀", "",
            ])
    }

    @Test(arguments: ["", "{}", #"{"TraceSegmentDocuments":[]}"#, #"{"TraceSegmentDocuments":null}"#])
    func `no documents is refused with the recorded text`(body: String) {
        #expect(throws: APIError.invalidRequest("Segments can not be empty")) { try documents(bytes(body)) }
    }

    // If this fails, the daemon's full batches are refused, or a caller can send any number.
    @Test func `fifty documents are taken, fifty-one are not`() throws {
        func body(_ count: Int) -> [UInt8] {
            bytes("{\"TraceSegmentDocuments\":[" + (0..<count).map { "\"\($0)\"" }.joined(separator: ",") + "]}")
        }
        #expect(try documents(body(50)).count == 50)
        #expect(throws: APIError.invalidRequest("Too many segment documents")) { try documents(body(51)) }
        #expect(throws: APIError.invalidRequest("Too many segment documents")) { try documents(body(100_000)) }
    }

    @Test(arguments: [
        #"{"TraceSegmentDocuments":"x"}"#, #"{"TraceSegmentDocuments":{}}"#, #"{"TraceSegmentDocuments":[{}]}"#,
        #"{"TraceSegmentDocuments":["a",1]}"#, #"{"TraceSegmentDocuments":[null]}"#,
        #"{"TraceSegmentDocuments":["\ud800"]}"#,
    ])
    func `an envelope of wrong types is a SerializationException`(body: String) {
        let error = #expect(throws: APIError.self) { try documents(bytes(body)) }
        #expect(error?.name == "SerializationException")
    }

    // If this fails, the daemon stops processing the rest of the refused documents.
    @Test func `refused documents are listed with id, code and text`() {
        let response = PutTraceSegmentsResponse(refusals: [
            Refusal(id: "9f1c20aa00d1e7b2", code: "InvalidTraceId", kind: .segment),
            Refusal(id: nil, code: "ParseError", kind: .entity),
            Refusal(id: "00c0ffee00c0ffee", code: "MissingEndTime", kind: .subsegment),
        ])
        #expect(String(decoding: response.body, as: UTF8.self) == CapturedExamples.putTraceSegmentsAnswer)
        #expect(
            String(decoding: PutTraceSegmentsResponse(refusals: []).body, as: UTF8.self)
                == #"{"UnprocessedTraceSegments":[]}"#)
    }
}

@Suite struct PutTelemetryRecordsTests {
    // If this fails, the official daemon's reports are refused.
    @Test func `a daemon's report is read, empty strings included`() throws {
        let request = try PutTelemetryRecordsRequest(body: bytes(CapturedExamples.putTelemetryRecords))
        #expect(request.ec2InstanceID == "" && request.hostname == "ip-10-0-0-7" && request.resourceARN == "")
        #expect(request.records.count == 1)
        #expect(request.records[0].timestamp == 1_700_000_000_250_000)
        #expect(request.records[0].segmentsReceivedCount == 120)
        #expect(request.records[0].backendConnectionErrors?.httpCode4XXCount == 1)
        #expect(String(decoding: PutTelemetryRecordsRequest.responseBody, as: UTF8.self) == "{}")
    }

    @Test(arguments: [
        (#"{}"#, "InvalidRequestException"),
        (#"{"TelemetryRecords":[{}]}"#, "InvalidRequestException"),
        (#"{"TelemetryRecords":[{"Timestamp":-1}]}"#, "InvalidRequestException"),
        (#"{"TelemetryRecords":[],"EC2InstanceId":"123456789012345678901"}"#, "InvalidRequestException"),
        (#"{"TelemetryRecords":[{"Timestamp":1,"SegmentsSentCount":1.5}]}"#, "SerializationException"),
        (#"{"TelemetryRecords":[{"Timestamp":1,"SegmentsSentCount":"1"}]}"#, "SerializationException"),
        (#"{"TelemetryRecords":[7]}"#, "SerializationException"),
        (#"{"TelemetryRecords":{}}"#, "SerializationException"),
        (#"{"TelemetryRecords":[{"Timestamp":1,"BackendConnectionErrors":[]}]}"#, "SerializationException"),
    ])
    func `bad reports are refused by name`(body: String, name: String) {
        let error = #expect(throws: APIError.self) { try PutTelemetryRecordsRequest(body: bytes(body)) }
        #expect(error?.name == name)
    }

    // If this fails, `10.0` of a client without integers is refused.
    @Test func `integers may be written with a zero fraction, and a hundred records are the most`() throws {
        let request = try PutTelemetryRecordsRequest(
            body: bytes(#"{"TelemetryRecords":[{"Timestamp":1,"SegmentsSentCount":10.0}]}"#))
        #expect(request.records[0].segmentsSentCount == 10)
        let records = Array(repeating: #"{"Timestamp":1}"#, count: 101)
        func body(_ count: Int) -> [UInt8] {
            bytes("{\"TelemetryRecords\":[\(records.prefix(count).joined(separator: ","))]}")
        }
        #expect(try PutTelemetryRecordsRequest(body: body(100)).records.count == 100)
        #expect(throws: APIError.self) { try PutTelemetryRecordsRequest(body: body(101)) }
    }
}

@Suite struct TraceIDRequestTests {
    private let id = "1-65536f00-0123456789abcdef01234567"

    // If this fails, ids copied from other tools are not found.
    @Test func `ids are read in either case and as bare hex, in request order`() throws {
        let request = try BatchGetTracesRequest(body: bytes(CapturedExamples.batchGetTraces))
        #expect(
            request.traceIDs.map(\.description) == [
                "1-65536f00-0123456789abcdef01234567", "1-5759e988-bd862e3fe1be46a994272793",
            ])
    }

    // The rows of `traces.md` §3.
    @Test func `BatchGetTraces refuses with the recorded texts`() {
        func refusal(_ body: String) -> String? {
            #expect(throws: APIError.self) { try BatchGetTracesRequest(body: bytes(body)) }.map {
                "\($0.name) \($0.message)"
            }
        }
        let six = (0..<6).map { "\"1-65536f00-00000000000000000000000\($0)\"" }.joined(separator: ",")
        #expect(refusal("{\"TraceIds\":[\(six)]}") == "InvalidRequestException Exceeding maximum query size: 5")
        #expect(
            refusal(#"{"TraceIds":["1-xyz"]}"#) == "InvalidRequestException Invalid trace id 1-xyz: incorrect id format"
        )
        #expect(refusal(#"{"TraceIds":[""]}"#) == "InvalidRequestException Invalid trace id : incorrect id format")
        #expect(
            refusal("{\"TraceIds\":[\"\(id)\",\"65536F000123456789abcdef01234567\"]}")
                == "InvalidRequestException Containing duplicate trace ids")
        #expect(
            refusal("{\"TraceIds\":[\"\(id)\"],\"NextToken\":\"x\"}")
                == "InvalidRequestException NextToken is currently not supported")
        #expect(
            refusal("{\"TraceIds\":[\"\(id)\"],\"NextToken\":\"\"}")
                == "InvalidRequestException NextToken is currently not supported")
        #expect(refusal("{}") == "InvalidRequestException TraceIds is required")
        #expect(refusal(#"{"TraceIds":[]}"#)?.hasPrefix("InvalidRequestException TraceIds") == true)
        #expect(refusal(#"{"TraceIds":"x"}"#)?.hasPrefix("SerializationException") == true)
        #expect(refusal(#"{"TraceIds":[1]}"#)?.hasPrefix("SerializationException") == true)
        let long = String(repeating: "z", count: 100_000)
        #expect((refusal("{\"TraceIds\":[\"\(long)\"]}") ?? long).utf8.count < 200)
    }

    // The rows of `service-graph.md` §1.
    @Test func `GetTraceGraph takes a hundred ids, once each, and refuses with the recorded texts`() throws {
        #expect(try GetTraceGraphRequest(body: bytes(CapturedExamples.getTraceGraph)).traceIDs.count == 1)
        let twice = try GetTraceGraphRequest(
            body: bytes("{\"TraceIds\":[\"\(id)\",\"\(id)\"],\"NextToken\":\"ignored\"}"))
        #expect(twice.traceIDs.count == 1)
        for body in ["{}", #"{"TraceIds":[]}"#, #"{"TraceIds":null}"#] {
            #expect(throws: APIError.invalidRequest("Zero trace ids provided")) {
                try GetTraceGraphRequest(body: bytes(body))
            }
        }
        #expect(throws: APIError.invalidRequest("Invalid traceId. ErrorCode: InvalidId")) {
            try GetTraceGraphRequest(body: bytes(#"{"TraceIds":["1-2-3"]}"#))
        }
        func body(_ count: Int) -> [UInt8] {
            bytes(
                "{\"TraceIds\":["
                    + (0..<count).map { "\"1-65536f00-\(String(1_000_000_000_000 + $0) + "00000000000")\"" }.joined(
                        separator: ",") + "]}")
        }
        #expect(try GetTraceGraphRequest(body: body(100)).traceIDs.count == 100)
        #expect(throws: APIError.self) { try GetTraceGraphRequest(body: body(101)) }
        #expect(GetTraceGraphRequest.notFound == .invalidRequest("Trace id not found"))
    }
}

@Suite struct WindowedRequestTests {
    private func summaries(_ body: String) throws(APIError) -> GetTraceSummariesRequest {
        try GetTraceSummariesRequest(body: bytes(body))
    }

    // If this fails, the window is another one than asked for.
    @Test func `the window is cut to whole seconds`() throws {
        let request = try summaries(CapturedExamples.getTraceSummaries)
        #expect(request.window == 1_700_000_000..<1_700_003_600)
        #expect(request.timeRangeType == .event)
        #expect(request.sampling == .fixedRate(0.25))
        #expect(try summaries(#"{"StartTime":1.9,"EndTime":2.1}"#).window == 1..<2)
        #expect(try summaries(#"{"StartTime":5,"EndTime":5}"#).window.isEmpty)
        let graph = try GetServiceGraphRequest(body: bytes(CapturedExamples.getServiceGraph))
        #expect(graph.window == 1_700_000_000..<1_700_000_200)
    }

    // The rows of `traces.md` §7, in both operations.
    @Test(arguments: [
        (#"{"EndTime":2}"#, "StartTime is required"),
        (#"{"StartTime":null,"EndTime":2}"#, "StartTime is required"),
        (#"{"StartTime":2}"#, "EndTime is required"),
        (#"{"StartTime":2,"EndTime":1}"#, "End time cannot be earlier than start time"),
        (#"{"StartTime":2.5,"EndTime":2.25}"#, "End time cannot be earlier than start time"),
        (#"{"StartTime":0,"EndTime":86401}"#, "Time range cannot be longer than 24 hours"),
        (#"{"StartTime":0,"EndTime":946684800}"#, "Time range cannot be longer than 24 hours"),
        (#"{"StartTime":-1,"EndTime":1}"#, "StartTime is out of range"),
        (#"{"StartTime":253402300800,"EndTime":253402300801}"#, "StartTime is out of range"),
        (#"{"StartTime":1,"EndTime":1e300}"#, "EndTime is out of range"),
        (#"{"StartTime":1,"EndTime":1e999}"#, "EndTime is out of range"),
        (#"{"StartTime":1,"EndTime":"1e999"}"#, "EndTime is out of range"),
        (#"{"StartTime":"soon","EndTime":1}"#, "StartTime is not a valid timestamp"),
        (#"{"StartTime":"","EndTime":1}"#, "StartTime is not a valid timestamp"),
    ])
    func `bad windows are refused with the texts of the specification`(body: String, message: String) {
        #expect(throws: APIError.invalidRequest(message)) { try summaries(body) }
        #expect(throws: APIError.invalidRequest(message)) {
            try GetServiceGraphRequest(body: bytes(body))
        }
    }

    @Test func `a day is the longest window`() throws {
        #expect(try summaries(#"{"StartTime":0,"EndTime":86400.9}"#).window == 0..<86_400)
        #expect(try summaries(#"{"StartTime":253402300700,"EndTime":253402300799}"#).window.count == 99)
    }

    @Test(arguments: [
        ("\"Sampling\":false,\"SamplingStrategy\":{\"Name\":\"FixedRate\"}", GetTraceSummariesRequest.Sampling.all),
        ("\"SamplingStrategy\":{\"Name\":\"PartialScan\",\"Value\":7}", .all),
        ("\"Sampling\":true", .partialScan),
        ("\"Sampling\":true,\"SamplingStrategy\":{}", .partialScan),
        ("\"Sampling\":true,\"SamplingStrategy\":{\"Name\":\"PartialScan\",\"Value\":99}", .partialScan),
        (
            "\"Sampling\":true,\"TimeRangeType\":\"Event\",\"SamplingStrategy\":{\"Name\":\"FixedRate\",\"Value\":1}",
            .fixedRate(1)
        ),
        (
            "\"Sampling\":true,\"TimeRangeType\":\"Event\",\"SamplingStrategy\":{\"Name\":\"FixedRate\",\"Value\":0}",
            .fixedRate(0)
        ),
    ])
    func `the sampling strategy counts only with sampling`(members: String, sampling: GetTraceSummariesRequest.Sampling)
        throws
    {
        #expect(try summaries("{\"StartTime\":1,\"EndTime\":2,\(members)}").sampling == sampling)
    }

    @Test func `sampling that cannot be done is refused with the recorded texts`() {
        func refusal(_ members: String) -> String? {
            #expect(throws: APIError.self) { try summaries("{\"StartTime\":1,\"EndTime\":2,\(members)}") }.map(
                \.message)
        }
        let strategy = "\"Sampling\":true,\"SamplingStrategy\":{\"Name\":\"FixedRate\",\"Value\":0.5}"
        #expect(
            refusal(strategy)
                == "Cannot use FixedRate with input time range type: TraceId. Please try using time range type: Event")
        #expect(
            refusal(strategy + ",\"TimeRangeType\":\"Service\"")
                == "Cannot use FixedRate with input time range type: Service. Please try using time range type: Event")
        let rate = "sampling rate must be specified and its value must be between [0, 1]"
        for value in ["", ",\"Value\":1.01", ",\"Value\":-0.1", ",\"Value\":1e999", ",\"Value\":null"] {
            #expect(
                refusal(
                    "\"TimeRangeType\":\"Event\",\"Sampling\":true,\"SamplingStrategy\":{\"Name\":\"FixedRate\"\(value)}"
                ) == rate)
        }
        #expect(refusal("\"TimeRangeType\":\"event\"") == "TimeRangeType must be one of [TraceId, Event, Service]")
        #expect(
            refusal("\"SamplingStrategy\":{\"Name\":\"Other\"}")
                == "SamplingStrategy.Name must be one of [PartialScan, FixedRate]")
        #expect(
            refusal("\"FilterExpression\":\"fault > 1\"")?.hasPrefix("Invalid filter expression: ") == true)
        #expect(refusal("\"FilterExpression\":\"fault AND\"")?.hasSuffix(" at position 9") == true)
    }

    // If this fails, the graph of a group is asked for by something that cannot be a group.
    @Test func `a group is referred to by name or ARN`() throws {
        func request(_ members: String) throws -> GetServiceGraphRequest {
            try GetServiceGraphRequest(body: bytes("{\"StartTime\":1,\"EndTime\":2\(members)}"))
        }
        #expect(try request("").group == nil)
        #expect(try request(",\"GroupName\":\"mine\"").group == GroupIdentifier(name: "mine", arn: nil))
        #expect(try request(",\"GroupARN\":\"x\"").group == GroupIdentifier(name: nil, arn: "x"))
        #expect(throws: APIError.invalidRequest("GroupName must have between 1 and 32 characters")) {
            try request(",\"GroupName\":\"\"")
        }
        #expect(throws: APIError.self) { try request(",\"GroupName\":\"\(String(repeating: "g", count: 33))\"") }
        #expect(throws: APIError.self) { try request(",\"GroupARN\":\"\(String(repeating: "g", count: 401))\"") }
    }

    // If this fails, a token works for other parameters, or not for the same ones written differently.
    @Test func `the request hash covers every member but the token`() throws {
        let hash = try summaries(#"{"StartTime":1,"EndTime":2}"#).hash
        #expect(
            try summaries(#"{"EndTime":2.0,"StartTime":"1","NextToken":"x","FilterExpression":"","New":1}"#).hash
                == hash)
        let others = [
            #"{"StartTime":1.5,"EndTime":2}"#, #"{"StartTime":1,"EndTime":2.5}"#,
            #"{"StartTime":1,"EndTime":2,"TimeRangeType":"Event"}"#,
            #"{"StartTime":1,"EndTime":2,"Sampling":true}"#,
            #"{"StartTime":1,"EndTime":2,"SamplingStrategy":{"Name":"PartialScan"}}"#,
            #"{"StartTime":1,"EndTime":2,"SamplingStrategy":{"Value":0.5}}"#,
            #"{"StartTime":1,"EndTime":2,"FilterExpression":"fault"}"#,
        ]
        for other in others { #expect(try summaries(other).hash != hash) }
        func graph(_ members: String) throws -> [UInt8] {
            try GetServiceGraphRequest(body: bytes("{\"StartTime\":1,\"EndTime\":2\(members)}")).hash
        }
        #expect(try graph("") == graph(",\"NextToken\":\"x\""))
        #expect(try graph("") != graph(",\"GroupName\":\"Default\""))
    }
}

@Suite struct SamplingHashTests {
    // The vectors of `sampling.md` §10.2; if this fails, nodes sample different traces.
    @Test(arguments: [
        ("1-5759e988-bd862e3fe1be46a994272793", 0.183724), ("4bf92f3577b34da6a3ce929d0e0e4736", 0.742318),
        ("1-581cf771-a006649127e371903a2de979", 0.290766),
    ])
    func `U(T) has the values of the specification`(id: String, fraction: Double) throws {
        #expect(abs(try #require(TraceID(parsing: id)).samplingFraction - fraction) < 1e-6)
    }
}
