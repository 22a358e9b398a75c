// What BatchGetTraces returns as `Segments` (`traces.md` §3).

import Foundation
import Segments
import Testing

@testable import TraceAssembly

@Suite struct TraceDocumentTests {
    // If this fails, the trace page of an unmodified client shows something else than AWS would.
    @Test func `the worked example comes out exactly, its independent subsegment folded in and the callee inferred`()
        throws
    {
        let folded = try FoldedTrace([
            #"{"name":"checkout","id":"00c0ffee00c0ffee","trace_id":"1-65536f00-0123456789abcdef01234567","start_time":1700000000.125,"end_time":1700000000.375}"#,
            #"{"type":"subsegment","trace_id":"1-65536f00-0123456789abcdef01234567","parent_id":"00c0ffee00c0ffee","id":"0badcafe0badcafe", "name":"stock.example.com","namespace":"remote","start_time":1700000000.15,"end_time":1700000000.3, "http":{"request":{"method":"GET","url":"https://stock.example.com/sku/9"},"response":{"status":200,"content_length":412}}}"#,
        ])
        let documents = folded.documents()
        #expect(documents.map(\.id.description) == ["00c0ffee00c0ffee", "5f9e1fb16d4a02ee"])
        #expect(documents.map(\.isInferred) == [false, true])
        // Even the order of members is the recorded one.
        #expect(
            String(decoding: documents[0].document, as: UTF8.self)
                == #"{"id":"00c0ffee00c0ffee","name":"checkout","start_time":1700000000.125,"trace_id":"1-65536f00-0123456789abcdef01234567","end_time":1700000000.375,"subsegments":[{"id":"0badcafe0badcafe","name":"stock.example.com","start_time":1700000000.15,"end_time":1700000000.3,"http":{"request":{"method":"GET","url":"https://stock.example.com/sku/9"},"response":{"status":200,"content_length":412}},"namespace":"remote"}]}"#
        )
        #expect(
            String(decoding: documents[1].document, as: UTF8.self)
                == #"{"id":"5f9e1fb16d4a02ee","name":"stock.example.com","start_time":1700000000.15,"trace_id":"1-65536f00-0123456789abcdef01234567","end_time":1700000000.3,"parent_id":"0badcafe0badcafe","inferred":true,"http":{"request":{"method":"GET","url":"https://stock.example.com/sku/9"},"response":{"status":200,"content_length":412}}}"#
        )
        #expect(roundedSeconds(try #require(folded.forest.traceDuration)) == 0.25)
    }

    // If this fails, streamed work is missing from the waterfall, or hangs in the wrong place.
    @Test func `subsegments from several documents are folded in at any depth and lose their envelope`() throws {
        let folded = try FoldedTrace([
            subsegment(4, "deep", from: 0.3, parent: 3),
            segment(1, to: nil, subsegments(embedded(2, "a", from: 0.2, to: nil))),
            subsegment(3, "b", from: 0.1, parent: 2, ",\"subsegments\":[\(embedded(5, "first", from: 0.2))]"),
            subsegment(2, "a2", from: 0.2, parent: 1),
            segment(7, "orders", from: 0.15, parent: 3),
        ])
        let root = try folded.document(id(1))
        #expect(root["in_progress"] as? Bool == true)
        #expect(root["end_time"] == nil)
        let a = try #require((root["subsegments"] as? [NSDictionary])?.first)
        #expect(a["name"] as? String == "a2")
        let b = try #require((a["subsegments"] as? [NSDictionary])?.first)
        #expect(b["type"] == nil && b["parent_id"] == nil && b["trace_id"] == nil)
        #expect((b["subsegments"] as? [NSDictionary])?.map { $0["name"] as? String } == ["first", "deep"])
        let callee = try folded.document(id(7))
        #expect(callee["parent_id"] as? String == id(3))
        #expect(callee["trace_id"] as? String == traceIDText)
        #expect(folded.documents().count == 2)
    }

    // If this fails, users get back other numbers, texts or metadata than they sent.
    @Test func `everything else is returned as it was sent`() throws {
        let sent = """
            {"id":"\(id(1))","name":"nul\\u0000\\u00e9/\\/","trace_id":"\(traceIDText)","start_time":1.70000000050E9,"end_time":1700000001.000000,
            "in_progress":false,"error":false,"fault":true,"user":"u\\n","origin":"o","resource_arn":"arn:x",
            "metadata":{"n":{"big":9007199254740993,"huge":1e400,"null":null,"t":1.10,"s":"a\\u0000b", "list":[null, {"x":null}]}},
            "annotations":{"a":1.50,"b":"x","c":true},"service":{"version":"1","runtime":"swift"},"sql":{"url":"u","preparation":"call"},
            "aws":{"xray":{"sdk":"x","rule_name":"r"},"resource_names":["kept on segments"]},"precursor_ids":["00000000000000AB"],
            "links":[{"trace_id":"1-65536F00-0000000000000000000000d1","id":"D000000000000002","attributes":{"k":null}},{"trace_id":"bad","id":"\(id(2))"}]}
            """
        let folded = try FoldedTrace([sent])
        let text = String(decoding: folded.documents()[0].document, as: UTF8.self)
        #expect(text.contains(#""name":"nul\u0000\u00e9/\/""#))
        #expect(text.contains(#""start_time":1.70000000050E9,"#))
        #expect(text.contains(#""end_time":1700000001.000000,"in_progress":false,"error":false,"fault":true,"#))
        #expect(
            text.contains(
                #""metadata":{"n":{"big":9007199254740993,"huge":1e400,"null":null,"t":1.10,"s":"a\u0000b", "list":[null, {"x":null}]}}"#
            ))
        #expect(text.contains(#""annotations":{"a":1.50,"b":"x","c":true}"#))
        #expect(text.contains(#""service":{"version":"1","runtime":"swift"}"#))
        #expect(text.contains(#""sql":{"url":"u","preparation":"call"}"#))
        #expect(text.contains(#""aws":{"xray":{"sdk":"x","rule_name":"r"},"resource_names":["kept on segments"]}"#))
        #expect(text.contains(#""precursor_ids":["00000000000000ab"]"#))
        #expect(
            text.contains(
                #""links":[{"trace_id":"1-65536f00-0000000000000000000000d1","id":"d000000000000002","attributes":{"k":null}}]"#
            ))
        #expect(text.contains(#""user":"u\n","origin":"o","resource_arn":"arn:x""#))
    }

    // If this fails, what the server ignored on input comes back as if it counted (`segments.md` §14, "Tolerated").
    @Test func `what counted as absent is not returned`() throws {
        let sent = """
            {"id":"\(id(1))","name":"\(String(repeating: "é", count: 201))","trace_id":"\(traceIDText)","start_time":1700000000,"end_time":1700000001,
            "Dummy":1,"inferred":true,"notTraced":true,"user":"","origin":5,"metadata":7,"sql":null,"fault":"yes","type":"",
            "annotations":{"null":null,"list":[1],"object":{},"huge":1e400,"ok":1},
            "http":{"request":{"method":"","url":"u","client_ip":7,"traced":true,"x_forwarded_for":true,"more":null},
            "response":{"status":"404","content_length":"-1","odd":1}},
            "aws":{"a":null,"ec2":{"instance_type":"m5","ami_id":null},"deep":{"x":[{"y":null,"z":1},null]}},
            "cause":null,"service":[],"subsegments":{"id":1}}
            """
        let folded = try FoldedTrace([sent])
        let expected = try object(
            """
            {"id":"\(id(1))","name":"\(String(repeating: "é", count: 200))","trace_id":"\(traceIDText)","start_time":1700000000,"end_time":1700000001,
            "annotations":{"ok":1},"http":{"request":{"url":"u","x_forwarded_for":true},"response":{"status":404,"content_length":-1,"odd":1}},
            "aws":{"ec2":{"instance_type":"m5","instance_size":"m5"},"deep":{"x":[{"z":1},null]}}}
            """)
        #expect(try folded.document(id(1)) == expected)
    }

    // If this fails, a client reads another value than the one the server judged and counted.
    @Test func `of equal keys the last wins, escaped spellings included`() throws {
        let first = embedded(8, "lost")
        let sent = """
            {"id":"\(id(1))","name":"a","trace_id":"\(traceIDText)","start_time":1700000000,"end_time":1700000001,"n\\u0061me":"b",
            "fault":true,"fault":null,"subsegments":[\(first),\(first)],"http":{"response":{"status":500},"response":{"status":200}},
            "subse\\u0067ments":[\(embedded(2, "kept", subsegments(embedded(3, "inner"))))],"metadata":{},"meta\\u0064ata":{"k":{}},
            "aws":{"x":1,"\\u0078":2}}
            """
        let root = try FoldedTrace([sent]).document(id(1))
        #expect(root["name"] as? String == "b")
        #expect(root["fault"] == nil)
        #expect(root["metadata"] as? NSDictionary == ["k": NSDictionary()])
        #expect(root["http"] as? NSDictionary == ["response": ["status": 200]])
        #expect((root["aws"] as? NSDictionary)?["x"] as? Int == 2)
        let kept = try #require((root["subsegments"] as? [NSDictionary])?.first)
        #expect(kept["name"] as? String == "kept")
        #expect((kept["subsegments"] as? [NSDictionary])?.first?["name"] as? String == "inner")
    }

    // If this fails, exceptions cannot be told apart, or empty stacks clutter the page.
    @Test func `exceptions get an id when they have none, and lose empty stacks and nulls`() throws {
        let sent = segment(
            1,
            """
            ,"cause":{"working_directory":"/srv","message":null,"exceptions":[7,{"message":"m","stack":[]},
            {"id":"00000000000000AA","type":"T","remote":false,"cause":"00000000000000BB","stack":[{"path":null,"line":-1,"label":"f"}]}]}
            """)
        let cause = try FoldedTrace([sent]).document(id(1))["cause"] as? NSDictionary
        let expected = try object(
            """
            {"working_directory":"/srv","exceptions":[{"id":"2ffc77ea83287241"},{"id":"c308fa148ba18b9b","message":"m"},
            {"id":"00000000000000aa","type":"T","remote":false,"cause":"00000000000000bb","stack":[{"line":-1,"label":"f"}]}]}
            """)
        #expect(cause == expected)
        #expect(
            try FoldedTrace([segment(1, ",\"cause\":\"00000000000000AB\"")]).document(id(1))["cause"] as? String
                == "00000000000000ab")
    }

    // If this fails, the resources column of a call is empty or stale.
    @Test(arguments: [
        (
            "\"operation\":\"GetItem\",\"table_name\":\"t\"",
            "\"operation\":\"GetItem\",\"table_name\":\"t\",\"resource_names\":[\"t\"]"
        ),
        ("\"operation\":\"GetItem\",\"resource_names\":[\"stale\"]", "\"operation\":\"GetItem\""),
    ])
    func `resource_names of a call is recomputed, on the subsegment and on its inferred segment`(
        sent: String, returned: String
    ) throws {
        let folded = try FoldedTrace([
            segment(
                1,
                subsegments(
                    embedded(
                        2, "DynamoDB",
                        """
                        ,"namespace":"aws","aws":{\(sent)},"traced":true,"fault":true,"error":false,"http":{"request":{"traced":true,"url":"u"}},
                        "cause":{"exceptions":[]},"annotations":{"a":1},"metadata":{"m":{}},"sql":{"url":"u"}
                        """)))
        ])
        let call = try #require((try folded.document(id(1))["subsegments"] as? [NSDictionary])?.first)
        #expect(call["aws"] as? NSObject == (try object("{\(returned)}")))
        #expect(call["traced"] == nil)
        #expect(call["http"] as? NSObject == (try object(#"{"request":{"url":"u"}}"#)))
        let inferred = try folded.document("e8f8fbda38c32f30")
        #expect(inferred["aws"] as? NSObject == (try object("{\(returned)}")))
        #expect(
            inferred["origin"] as? String
                == (returned.contains("resource_names") ? "AWS::DynamoDB::Table" : "AWS::DynamoDB"))
        #expect(inferred["name"] as? String == "DynamoDB")
        #expect(inferred["fault"] as? Bool == true && inferred["error"] as? Bool == false)
        #expect(inferred["http"] as? NSObject == (try object(#"{"request":{"url":"u"}}"#)))
        #expect(
            ["cause", "annotations", "metadata", "sql", "namespace", "subsegments"].allSatisfy { inferred[$0] == nil })
    }

    // If this fails, queues show no queueing, or everything else does.
    @Test(arguments: [
        ("\"operation\":\"ReceiveMessage\",\"queue_url\":\"https://q\"", true), ("\"operation\":\"SendMessage\"", true),
        ("\"operation\":\"SendMessageBatch\"", true), ("\"operation\":\"ListQueues\"", false),
        ("\"queue_url\":\"https://q\"", false),
    ])
    func `SQS sends have a QueueTime subsegment`(aws: String, hasQueueTime: Bool) throws {
        let folded = try FoldedTrace([
            segment(1, subsegments(embedded(2, "sqs", from: 0.25, to: 0.5, ",\"namespace\":\"aws\",\"aws\":{\(aws)}")))
        ])
        let inferred = try folded.document("e8f8fbda38c32f30")
        let expected = try object(
            #"[{"id":"b4aaf02daac8a01b","name":"QueueTime","start_time":1700000000.25,"end_time":1700000000.5}]"#)
        #expect(inferred["subsegments"] as? NSArray == (hasQueueTime ? expected as? NSArray : nil))
    }

    // If this fails, running, local or answered calls show phantom services.
    @Test func `only leaf remote calls that have ended are inferred, ordered by start, then id`() throws {
        let remote = ",\"namespace\":\"remote\""
        let folded = try FoldedTrace([
            segment(
                1,
                subsegments(
                    embedded(2, "open", to: nil, remote), embedded(3, "answered", remote),
                    embedded(4, "local", ",\"namespace\":\"local\""),
                    embedded(6, "second", from: 0.5, remote), embedded(5, "first", from: 0.5, remote))),
            segment(9, "callee", from: 0.1, parent: 3), subsegment(10, "unattached", parent: 11, remote),
        ])
        let names = try folded.documents().map {
            try #require(try object($0.document) as? NSDictionary)["name"] as? String
        }
        #expect(names == ["web", "callee", "first", "second"])
        #expect(folded.documents().map(\.isInferred) == [false, false, true, true])
        #expect(folded.documents().map(\.id) == folded.documents().map(\.id))
    }

    // If this fails, a read of the largest legal trace stalls a query node: nesting and size must not multiply.
    @Test func `a document nested 250 deep is written about as fast as a flat one of the same size`() throws {
        func step(_ number: Int, _ more: String = "") -> String {
            embedded(number, "step", ",\"metadata\":{\"n\":{\"s\":\"\(String(repeating: "x", count: 100))\"}}" + more)
        }
        var nested = step(250)
        for number in stride(from: 249, to: 1, by: -1) { nested = step(number, subsegments(nested)) }
        let flat = (2...250).map { step($0) }.joined(separator: ",")
        let folded = try [flat, nested].map { try FoldedTrace([segment(1, subsegments($0))]) }
        var best = [Double.infinity, Double.infinity]
        // In turns, so that a busy machine slows both down.
        for turn in 0..<10 {
            let elapsed = ContinuousClock().measure { _ = folded[turn % 2].documents() }
            best[turn % 2] = min(best[turn % 2], elapsed / .seconds(1))
        }
        // Scanning what is nested once per level would take some 100 times as long.
        #expect(best[1] < best[0] * 15)
    }

    // If this fails, one damaged row of the database takes the query node down.
    @Test func `a damaged or missing stored document gives less, never a crash`() throws {
        let folded = try FoldedTrace([segment(1, ",\"user\":\"u\"" + subsegments(embedded(2)))])
        let whole = folded.stored[0]
        for length in 0..<whole.count {
            #expect(traceDocuments(forest: folded.forest, documents: [Array(whole.prefix(length))]).count == 1)
        }
        let bare = try #require(traceDocuments(forest: folded.forest, documents: []).first)
        #expect((try object(bare.document) as? NSDictionary)?["name"] as? String == "web")
    }
}
