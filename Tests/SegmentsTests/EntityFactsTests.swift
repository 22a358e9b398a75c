// What assembly, summaries and graph get to know of a document: `segments.md` §2 to §13.

import Testing

@testable import Segments

/// A web request with a DynamoDB call and a nested SQL call, as the SDKs send them.
let richSegment = """
    {"name":"checkout","id":"00C0FFEE00c0ffee","trace_id":"1-65536F00-0123456789abcdef01234567","parent_id":"AAAAAAAAAAAAAAAA",
     "start_time":1700000000.125,"end_time":1700000000.375,"origin":"AWS::EC2::Instance","resource_arn":"arn:aws:ec2:::i-1",
     "user":"u-17","service":{"version":"1.2"},"error":true,"fault":false,"in_progress":false,
     "http":{"request":{"method":"GET","url":"https://shop.example.com/cart","user_agent":"curl/8","client_ip":"10.0.0.1","traced":true},
             "response":{"status":"404","content_length":"12"}},
     "aws":{"account_id":"111122223333","ec2":{"instance_id":"i-1","availability_zone":"us-east-1a"},"operation":"no call"},
     "annotations":{"tier":"gold","count":3,"ratio":0.5,"beta":true,"gone":null,"list":[1],"map":{},"huge":1e400,"":"x","empty":""},
     "metadata":{"default":{"a":[1,2]}},"links":[{"trace_id":"4efaaf4d1e8720b39541901950019ee5","id":"53995C3F42CD8AD8"}],
     "cause":{"working_directory":"/srv","paths":[],"exceptions":[{"id":"2222222222222222","type":"E","message":"m","stack":[]},5,{"message":"only"}]},
     "subsegments":[
       {"name":"DynamoDB","id":"1111111111111111","namespace":"aws","start_time":1700000000.13,"end_time":1700000000.2,
        "aws":{"operation":"GetItem","table_names":["carts"],"account_id":"444455556666","ec2":{"instance_id":"no"}},
        "subsegments":[{"name":"attempt","id":"3333333333333333","start_time":1700000000.14,"in_progress":true,"traced":true,
                        "user":"ignored","origin":"ignored"}]},
       {"name":"db@host","id":"4444444444444444","namespace":"remote","start_time":1700000000.21,"end_time":1700000000.3,
        "throttle":true,"cause":"2222222222222222","parent_id":"nonsense","http":{"response":{"status":429.0}}}]}
    """

private func first(_ changes: [(String, String?)]) throws -> Entity { try document(segment(changes)).entities[0] }

private func describe(_ annotations: [Annotation]) -> [String] { annotations.map { "\($0.key)=\($0.value)" } }

@Suite struct EntityFactsTests {
    // If this fails, summaries and graphs are built from wrong facts.
    @Test func `a rich document gives all its facts`() throws {
        let parsed = try document(richSegment)
        #expect(parsed.traceID == TraceID(high: 0x6553_6f00_0123_4567, low: 0x89ab_cdef_0123_4567))
        #expect(parsed.entities.map(\.name) == ["checkout", "DynamoDB", "attempt", "db@host"])
        #expect(parsed.enclosing == [-1, 0, 1, 0])
        #expect(parsed.entities.map(\.kind) == [.segment, .subsegment, .subsegment, .subsegment])
        #expect(parsed.entities.map(\.namespace) == [.none, .aws, .none, .remote])
        #expect(
            parsed.entities.map(\.parentID)
                == [0xAAAA_AAAA_AAAA_AAAA, 0x00c0_ffee_00c0_ffee, 0x1111_1111_1111_1111, 0x00c0_ffee_00c0_ffee].map {
                    EntityID(rawValue: $0)
                })

        let own = parsed.entities[0]
        #expect(own.id.rawValue == 0x00c0_ffee_00c0_ffee)
        #expect(own.start == 1_700_000_000_125_000)
        #expect(own.end == 1_700_000_000_375_000)
        #expect((own.hasErrorFlag, own.hasFaultFlag, own.hasThrottleFlag) == (true, false, false))
        #expect(own.httpStatus == 404)
        #expect((own.origin, own.resourceARN, own.user) == ("AWS::EC2::Instance", "arn:aws:ec2:::i-1", "u-17"))
        #expect((own.instanceID, own.availabilityZone, own.accountID) == ("i-1", "us-east-1a", "111122223333"))
        #expect(own.http?.url == "https://shop.example.com/cart")
        #expect((own.http?.method, own.http?.userAgent, own.http?.clientIP) == ("GET", "curl/8", "10.0.0.1"))
        #expect(own.isTraced == false)
        #expect(own.awsCall == nil)
        #expect(
            describe(own.annotations) == [
                "tier=string(\"gold\")", "count=number(3.0)", "ratio=number(0.5)", "beta=bool(true)",
                "empty=string(\"\")",
            ])
        #expect(
            own.links == [
                Link(
                    traceID: TraceID(high: 0x4efa_af4d_1e87_20b3, low: 0x9541_9019_5001_9ee5),
                    entityID: EntityID(rawValue: 0x5399_5c3f_42cd_8ad8))
            ])
        guard case .exceptions(let exceptions) = own.cause else {
            Issue.record("cause \(String(describing: own.cause))")
            return
        }
        #expect(exceptions.map(\.id?.description) == ["2222222222222222", nil, nil])
        #expect(exceptions.map(\.type) == ["E", nil, nil])
        #expect(exceptions.map(\.message) == ["m", nil, "only"])

        let call = parsed.entities[1]
        #expect(
            (call.awsCall?.operation, call.awsCall?.tableName, call.accountID) == ("GetItem", "carts", "444455556666"))
        #expect(call.instanceID == nil)
        #expect(call.http == nil)
        let attempt = parsed.entities[2]
        #expect(attempt.isOpen && attempt.isTraced)
        #expect((attempt.user, attempt.origin) == (nil, nil))
        let sql = parsed.entities[3]
        #expect(sql.httpStatus == 429 && sql.hasThrottleFlag)
        guard case .exceptionReference(EntityID(rawValue: 0x2222_2222_2222_2222)) = sql.cause else {
            Issue.record("cause \(String(describing: sql.cause))")
            return
        }
    }

    // If this fails, an independent subsegment is taken for internal work or loses its parent.
    @Test func `an independent subsegment keeps its parent and namespace`() throws {
        let parsed = try document(subsegment([("http", "{\"request\":{\"traced\":true,\"url\":\"http://x\"}}")]))
        #expect(parsed.entities.count == 1)
        #expect(parsed.entities[0].kind == .subsegment)
        #expect(parsed.entities[0].isRemoteCall && parsed.entities[0].isTraced)
        #expect(parsed.entities[0].parentID?.description == "00c0ffee00c0ffee")
        for other in ["\"local\"", "\"\"", "\"AWS\"", "7", "null"] {
            #expect(try document(subsegment([("namespace", other)])).entities[0].namespace == .none)
        }
    }

    // If this fails, times shift by a microsecond between a document and its summary.
    @Test(
        arguments: [
            ("1478293361.271", 1_478_293_361_271_000), ("1.478293361271E9", 1_478_293_361_271_000),
            ("1700000000", 1_700_000_000_000_000),
            ("1700000000.0000003", 1_700_000_000_000_000), ("1700000000.123456", 1_700_000_000_123_456),
            ("1700000000.999999", 1_700_000_000_999_999), ("1700000000.9999999", 1_700_000_001_000_000),
            ("0.0000005", 1),
            ("0.0000004", 0), ("1.0000005", 1_000_001), ("1.0000015", 1_000_002), ("1.0000025", 1_000_003),
            ("1.00000049", 1_000_000), ("2.5", 2_500_000), ("1e-9", 0), ("4e12", 4_000_000_000_000_000_000),
        ] as [(String, Int64)])
    func `seconds become microseconds, half up`(text: String, expected: Int64) throws {
        #expect(try first([("start_time", text)]).start == expected)
    }

    // If this fails, an SDK's milliseconds or microseconds come out as neighbours.
    @Test func `every printed microsecond is read as that microsecond`() throws {
        var random = SplitMix(state: 0x71E5)
        print("seed 0x71E5")
        for _ in 0..<20_000 {
            let expected = Int64.random(in: 0..<4_000_000_000_000_000, using: &random)
            let fraction = String(expected % 1_000_000)
            let text = "\(expected / 1_000_000)." + String(repeating: "0", count: 6 - fraction.count) + fraction
            #expect(micros(fromSeconds: try #require(Double(text))) == expected)
        }
        #expect(micros(fromSeconds: 1e300) == nil)
        #expect(micros(fromSeconds: -1e300) == nil)
        #expect(micros(fromSeconds: -1.5) == -1_500_000)
    }

    // If this fails, status codes of Node and Java are lost (§5, small print).
    @Test func `status may be a number or a numeric string`() throws {
        let cases: [(String, Int?)] = [
            ("404", 404), ("404.0", 404), ("4.04e2", 404), ("\"404\"", 404), ("404.5", nil), ("\" 404\"", nil),
            ("\"\"", nil),
            ("\"404.0\"", nil), ("1e400", nil), ("true", nil), ("null", nil), ("\"-1\"", -1), ("\"-\"", nil),
            ("\"99999999999999999999\"", nil), ("\"9999999999999999999\"", nil), ("99999999999999999999", nil),
        ]
        for (text, expected) in cases {
            #expect(try first([("http", "{\"response\":{\"status\":\(text)}}")]).httpStatus == expected, "\(text)")
        }
    }

    // If this fails, names are cut inside a user's character set or not at all (R-32).
    @Test func `a name keeps its first 200 code points`() throws {
        for character in ["a", "é", "😀", "e\u{301}"] {
            let long = String(repeating: character, count: 250)
            let name = try first([("name", "\"\(long)\"")]).name
            #expect(Array(name.unicodeScalars) == Array(long.unicodeScalars.prefix(200)))
        }
        let exact = String(repeating: "é", count: 200)
        #expect(try first([("name", "\"\(exact)\"")]).name == exact)
    }

    // If this fails, filters find values that are not there or miss those that are (§11).
    @Test func `annotations keep the last of equal keys and drop what cannot be indexed`() throws {
        func annotations(_ text: String) throws -> [String] { describe(try first([("annotations", text)]).annotations) }
        #expect(try annotations("{\"a\":1,\"b\":2,\"a\":\"x\"}") == ["b=number(2.0)", "a=string(\"x\")"])
        #expect(try annotations("{\"a\":1,\"a\":null,\"b\":2,\"b\":2,\"c\":1e400}") == ["b=number(2.0)"])
        #expect(try annotations("{\"é\":1,\"e\u{301}\":2}").count == 2)
        let many = (0..<40).map { "\"k\($0 % 30)\":\($0)" }.joined(separator: ",")
        #expect(try annotations("{\(many)}") == (10..<40).map { "k\($0 % 30)=number(\($0).0)" })
        let key = String(repeating: "ü", count: 500)
        #expect(try annotations("{\"\(key)\":1,\"\(key)x\":2}").count == 1)
        let value = String(repeating: "v", count: 5_000)
        guard case .string(value) = try first([("annotations", "{\"a\":\"\(value)\"}")]).annotations[0].value else {
            Issue.record("a long value was cut")
            return
        }
        #expect(try annotations("{\"n\":123456789012345678901234567890,\"z\":\"\\u0000\"}").count == 2)
        #expect(try annotations("\"text\"") == [])
    }

    // If this fails, root causes lose their exceptions (§10).
    @Test func `cause has three forms and tolerates others`() throws {
        func cause(_ text: String) throws -> String {
            switch try first([("cause", text)]).cause {
            case nil: "none"
            case .exceptionReference(let id): "exception \(id)"
            case .reference(let id, let exceptions): "reference \(id) \(exceptions.count)"
            case .exceptions(let exceptions): "exceptions \(exceptions.count)"
            case .unresolvable: "unresolvable"
            }
        }
        #expect(try cause("\"9F3A2818434bc94d\"") == "exception 9f3a2818434bc94d")
        #expect(try cause("\"nonsense\"") == "unresolvable")
        #expect(try cause("\"\"") == "none")
        #expect(try cause("null") == "none")
        #expect(try cause("[]") == "none")
        #expect(try cause("{}") == "exceptions 0")
        #expect(
            try cause("{\"id\":\"0badcafe0badcafe\",\"exceptions\":[],\"message\":\"m\"}")
                == "reference 0badcafe0badcafe 0")
        #expect(try cause("{\"id\":\"x\",\"exceptions\":[{},null,\"s\"]}") == "exceptions 3")
        #expect(try cause("{\"exceptions\":{}}") == "exceptions 0")
    }

    // If this fails, one consumer's links multiply the work of everybody (§13).
    @Test func `links are valid, distinct and of at most 20 traces`() throws {
        func link(_ trace: Int, _ entity: Int) -> String {
            let trace = String(trace, radix: 16)
            let entity = String(entity, radix: 16)
            let traceID = "1-00000000-" + String(repeating: "0", count: 24 - trace.count) + trace
            return "{\"trace_id\":\"\(traceID)\",\"id\":\"" + String(repeating: "0", count: 16 - entity.count) + entity
                + "\"}"
        }
        let list =
            (0..<25).map { link($0, 1) } + [link(3, 1), link(3, 2), "{}", "7", "{\"trace_id\":\"x\",\"id\":\"y\"}"]
        let links = try first([("links", "[\(list.joined(separator: ","))]")]).links
        #expect(links.count == 21)
        #expect(links.last == Link(traceID: TraceID(high: 0, low: 3), entityID: EntityID(rawValue: 2)))
        #expect(try document(subsegment([("links", "[\(link(1, 1))]")])).entities[0].links == [])
    }

    // If this fails, calls to tables and buckets are drawn as the bare service.
    @Test func `the keys that name a called resource are read from aws calls only`() throws {
        func call(_ aws: String, namespace: String = "aws") throws -> AWSCall? {
            try document(subsegment([("namespace", "\"\(namespace)\""), ("aws", aws)])).entities[0].awsCall
        }
        let all = try call(
            "{\"operation\":\"o\",\"table_name\":\"t\",\"table_names\":[\"u\"],\"bucket_name\":\"b\",\"queue_url\":\"q\",\"topic_arn\":\"a\",\"function_name\":\"f\"}"
        )
        #expect((all?.operation, all?.tableName, all?.bucketName) == ("o", "t", "b"))
        #expect((all?.queueURL, all?.topicARN, all?.functionName) == ("q", "a", "f"))
        #expect(try call("{\"table_names\":[\"a\",\"b\"],\"queue_url\":\"\"}") == AWSCall())
        #expect(try call("{\"table_name\":5,\"table_names\":[\"a\"]}")?.tableName == "a")
        #expect(try call("{\"operation\":\"o\"}", namespace: "remote") == nil)
        #expect(try call("[]") == nil)
    }
}

@Suite struct IdentifierTests {
    // If this fails, ids change between what a client sent and what it gets back.
    @Test func `ids are read in either case and printed in lower case`() throws {
        let id = try #require(TraceID(parsing: "1-65536F00-0123456789ABCDEF01234567"))
        #expect(id.description == traceText)
        #expect(TraceID(parsing: id.bareHex) == id)
        #expect(TraceID(parsing: Array(traceText.utf8)[...]) == id)
        #expect(
            id.uuidBytes == [0x65, 0x53, 0x6f, 0, 1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 1, 0x23, 0x45, 0x67])
        #expect(TraceID(uuidBytes: id.uuidBytes) == id)
        #expect(TraceID(uuidBytes: [1, 2]) == nil)
        #expect(EntityID(parsing: "0BADcafe0badCAFE")?.description == "0badcafe0badcafe")
        #expect(AccountID("000000000012")?.description == "000000000012")
        var random = SplitMix(state: 0x1D5)
        print("seed 0x1D5")
        for _ in 0..<1_000 {
            let id = TraceID(high: random.next(), low: random.next())
            #expect(TraceID(parsing: id.description) == id)
            #expect(TraceID(parsing: id.description.uppercased()) == id)
            let entity = EntityID(rawValue: random.next())
            #expect(EntityID(parsing: entity.description) == entity)
        }
    }

    // If this fails, two spellings of garbage become the same trace.
    @Test(arguments: [
        "", "1-", "1-65536f00-0123456789abcdef0123456", "1-65536f00-0123456789abcdef012345678",
        "1-65536f00_0123456789abcdef01234567",
        "1_65536f00-0123456789abcdef01234567", "0-65536f00-0123456789abcdef01234567",
        "65536f00-0123456789abcdef01234567",
        "1-65536g00-0123456789abcdef01234567", "65536f000123456789abcdef0123456", "65536f000123456789abcdef0123456-",
        "1-65536f00-0123456789abcdef0123456`", "1-6553@f00-0123456789abcdef01234567",
        "1-65536f00-0123456789abcdef0123456é",
    ])
    func `anything else is no trace id`(text: String) {
        #expect(TraceID(parsing: text) == nil)
    }

    // If this fails, a malformed id is taken for a good one.
    @Test func `anything else is no entity id and no account`() {
        for text in [
            "", "0badcafe0badcaf", "0badcafe0badcafe0", "0badcafe0badcafg", " badcafe0badcafe", "0badcafe0badc/fe",
            "0badcafe0badc:fe",
        ] {
            #expect(EntityID(parsing: text) == nil)
        }
        for text in ["", "12345678901", "1234567890123", "12345678901a", "١٢٣٤٥٦"] { #expect(AccountID(text) == nil) }
        for byte in UInt8.min...UInt8.max {
            let digit =
                UInt8(ascii: "0")...UInt8(ascii: "9") ~= byte || UInt8(ascii: "a")...UInt8(ascii: "f") ~= byte
                || UInt8(ascii: "A")...UInt8(ascii: "F") ~= byte
            #expect((EntityID(parsing: Array(repeating: byte, count: 16)) != nil) == digit)
        }
    }
}
