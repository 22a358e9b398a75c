// Cases of evaluation that the worked examples leave out: unset and several values, odd text, the place of a test,
// windows, and what large traces cost.

import Segments
import Testing
import TraceAssembly

@testable import FilterExpressions

private func facts(_ documents: String...) throws -> TraceFacts { TraceFacts(forest: try folded(documents)) }

private func matches(_ text: String, _ facts: TraceFacts, endedIn window: Range<Micros>? = nil) throws -> Bool {
    try FilterExpression(parsing: text).matches(facts, endedIn: window)
}

@Suite struct EvaluatorTests {
    // If this fails, `!=` finds traces that have no value, or `!` misses them (`filter-expressions.md` §3).
    @Test func `no value satisfies no operator, several values satisfy any`() throws {
        let two = try facts(
            entity(1, "web", 0, 1, [#""user":"a""#]), entity(2, "orders", 0, 1, parent: 1, [#""user":"b""#]))
        let none = try facts(entity(1, "web", 0, 1))
        for text in [#"user = "a""#, #"user != "a""#, #"user = "b""#, "user", #"user CONTAINS """#, #"!(user = "c")"#] {
            #expect(try matches(text, two), "\(text)")
        }
        for text in [
            #"user = "a""#, #"user != "a""#, "user", #"user CONTAINS """#, "annotation.x != 1", "annotation.x = false",
            "http.status != 200", #"http.url != "x""#,
        ] {
            #expect(try !matches(text, none), "\(text)")
            #expect(try matches("!(\(text))", none), "\(text)")
        }
        // The same from one service's point of view: there is one user.
        #expect(try !matches(#"service("web") { user = "b" }"#, two))
        #expect(try matches(#"service() { user = "b" }"#, two))
        #expect(try !matches(#"service() { user = "a" AND user = "b" }"#, two))
    }

    // If this fails, an annotation is found by a value of another type, or one type hides the other.
    @Test func `values of different types under one key do not meet`() throws {
        let mixed = try facts(
            entity(
                1, "web", 0, 1,
                [
                    #""annotations":{"k":31}"#,
                    "\"subsegments\":[\(entity(2, "a", 0, 1, isEmbedded: true, [#""annotations":{"k":"31"}"#])),\(entity(3, "b", 0, 1, isEmbedded: true, [#""annotations":{"k":false}"#]))]",
                ]))
        for text in [
            "annotation.k = 31", #"annotation.k = "31""#, "annotation.k = false", "annotation.k != true",
            "annotation.k != 32",
            #"annotation.k != "32""#, "annotation.k >= 31", #"annotation.k BEGINSWITH "3""#, "annotation.k",
            "annotation.k < 1e9",
        ] {
            #expect(try matches(text, mixed), "\(text)")
        }
        for text in [
            "annotation.k != 31", #"annotation.k != "31""#, "annotation.k != false", "annotation.k = true",
            "annotation.k = 31.5",
        ] {
            #expect(try !matches(text, mixed), "\(text)")
        }
        let unset = try facts(entity(1, "web", 0, 1, [#""annotations":{"vip":false}"#]))
        #expect(try !matches("annotation.vip", unset))
        #expect(try matches("!annotation.vip AND annotation.vip = false AND annotation.vip != true", unset))
        // Quoted, true is a string.
        #expect(try !matches(#"annotation.vip = "false""#, unset))
    }

    // If this fails, a filter with characters that mean something elsewhere finds too much or nothing.
    @Test func `text is compared as it is`() throws {
        let values = [
            "100%", "a_b", "' OR 1=1; --", #"back\slash"#, #"say "hi""#, "line\nbreak", "nul\u{0}byte", "\u{1F600}",
        ]
        for value in values {
            let json = value.unicodeScalars.map { "\\u" + hex($0) }.joined()
            let odd = try facts(
                entity(1, "web", 0, 1, [#""annotations":{"key":"\#(json)","\#(json)":1},"user":"\#(json)""#]))
            let literal = FilterLiteral.string(ExactString(value))
            for keyword in [FilterKeyword.user, .annotation(.here, key: "key")] {
                for comparison in [FilterOperator.equal, .contains, .beginsWith, .endsWith] {
                    let expression = FilterExpression.test(FilterTest(keyword, .compares(comparison, literal)))
                    #expect(try matches(expression.canonical, odd), "\(expression.canonical)")
                }
            }
            let byKey = FilterExpression.test(
                FilterTest(.annotation(.here, key: ExactString(value)), .compares(.equal, .number(1))))
            #expect(try matches(byKey.canonical, odd), "\(byKey.canonical)")
            #expect(try !matches(#"user = "%" OR user CONTAINS "." OR user = "a-b""#, odd))
        }
    }

    private func hex(_ scalar: Unicode.Scalar) -> String {
        func four(_ unit: UInt16) -> String { String(String(0x10000 + Int(unit), radix: 16).dropFirst()) }
        return String(scalar).utf16.map(four).joined(separator: "\\u")
    }

    // If this fails, names that look alike are one (ruling R-32), or a part is found that is not there.
    @Test func `canonical equivalents are different texts`() throws {
        let composed = try facts(
            entity(1, "caf\u{e9}", 0, 1, [#""user":"caf\u00e9","annotations":{"caf\u00e9":"\u00e9"}"#]))
        for (yes, no) in [
            ("service(\"caf\u{e9}\")", "service(\"cafe\u{301}\")"),
            (#"user = "caf\u00e9""#, #"user = "cafe\u0301""#), (#"user != "cafe\u0301""#, #"user != "caf\u00e9""#),
            (#"user ENDSWITH "\u00e9""#, #"user ENDSWITH "\u0301""#), (#"user CONTAINS "f""#, #"user CONTAINS "fe""#),
            (#"annotation["caf\u00e9"]"#, #"annotation["cafe\u0301"]"#),
            (#"annotation["caf\u00e9"] = "\u00e9""#, #"annotation["caf\u00e9"] = "e\u0301""#),
        ] {
            #expect(try matches(yes, composed), "\(yes)")
            #expect(try !matches(no, composed), "\(no)")
        }
        // A combining mark is a character of its own.
        let decomposed = try facts(entity(1, "web", 0, 1, [#""user":"cafe\u0301""#]))
        #expect(try matches(#"user CONTAINS "cafe" AND user ENDSWITH "\u0301""#, decomposed))
    }

    // If this fails, a filter by time disagrees with the time that is shown (`traces.md` §2).
    @Test func `times compare after rounding half up to milliseconds`() throws {
        let trace = try facts(entity(1, "web", 0, 0.0995))
        #expect(try matches("responsetime = 0.1 AND duration = 0.1 AND responsetime >= 0.1", trace))
        #expect(try matches(#"service("web") { responsetime = 0.1 AND duration = 0.1 }"#, trace))
        #expect(try !matches("responsetime < 0.1", trace))
    }

    // If this fails, an open or a partly reported request is filtered by values it does not have yet.
    @Test func `open entities are ok, and have no times`() throws {
        let open = try facts(
            entity(
                1, "web", 0, nil,
                [
                    #""fault":true"#,
                    "\"subsegments\":[\(entity(2, "orders", 0, 1, isEmbedded: true, [#""namespace":"remote","fault":true"#]))]",
                ]))
        #expect(try matches("ok AND partial AND !responsetime AND !duration AND inferred", open))
        #expect(try matches(#"service("web") { ok AND partial AND !responsetime AND !duration }"#, open))
        #expect(try matches(#"service("orders") { fault AND responsetime = 1 AND duration = 1 }"#, open))
        #expect(try matches(#"edge("web", "orders") { fault }"#, open))
        #expect(try matches(#"edge(id(type: "client"), "web") { ok AND !duration }"#, open))
    }

    // If this fails, the client in front of a service is taken for the service (ruling R-13).
    @Test func `client nodes are reached only by their type`() throws {
        let web = try facts(entity(1, "web", 0, 1, [#""origin":"AWS::EC2::Instance""#]))
        for text in [
            #"service(id(type:"client"))"#, #"service(id(name:"web",type:"client"))"#,
            #"edge(id(type:"client"),"web")"#,
            "edge()", #"service(id(type:"client",account.id:"111122223333"))"#,
            #"service(id(type:"client")) { !root !inferred ok }"#,
        ] {
            #expect(try matches(text, web), "\(text)")
        }
        for text in [
            #"edge("web","web")"#, #"edge(id(name:"web"),"web")"#, #"service(id(type:"Client"))"#,
            "service() { !root }",
        ] {
            #expect(try !matches(text, web), "\(text)")
        }
    }

    // If this fails, a callee that reports itself is looked up by what its caller calls it, or its edge by its own times.
    @Test func `edges take the call, or the callee where there is none`() throws {
        let trace = try facts(
            entity(
                1, "web", 0, 9,
                [
                    "\"subsegments\":[\(entity(2, "orders.internal", 0, 5, isEmbedded: true, [#""namespace":"remote","annotations":{"c":1}"#]))]"
                ]),
            entity(
                3, "orders", 1, 4, parent: 2,
                [
                    #""user":"u","annotations":{"s":1}"#,
                    "\"subsegments\":[\(entity(5, "inner", 2, 7, isEmbedded: true, [#""annotations":{"i":1}"#]))]",
                ]),
            entity(4, "batch", 1, 3, parent: 1, [#""annotations":{"b":1}"#]))
        for text in [
            #"edge("web","orders") { responsetime = 5 AND duration = 5 AND annotation.c AND !annotation.s AND !user }"#,
            #"edge("web","orders") { destination.annotation.s AND destination.annotation.i AND source.annotation.c }"#,
            #"edge("web","batch") { responsetime = 2 AND annotation.b }"#, #"!service("orders.internal")"#,
            #"service("orders") { responsetime = 3 AND duration = 6 AND annotation.i AND user = "u" }"#,
            #"!service("orders") { annotation.c }"#, #"!service("web") { annotation.s OR annotation.b }"#,
            #"service("web") { annotation.c }"#,
            #"edge(id(type:"client"),"web") { duration = 9 AND !source.annotation.c AND destination.annotation.c }"#,
        ] {
            #expect(try matches(text, trace), "\(text)")
        }
    }

    // If this fails, an inferred service is filtered by annotations of its caller (ruling R-20).
    @Test func `an inferred node has the annotations of the call and what is below it`() throws {
        let inner = entity(3, "retry", 0, 1, isEmbedded: true, [#""annotations":{"below":1}"#])
        let call = entity(
            2, "S3", 0, 1, isEmbedded: true,
            [#""namespace":"aws","annotations":{"own":1}"#, "\"subsegments\":[\(inner)]"])
        let trace = try facts(entity(1, "web", 0, 1, [#""annotations":{"above":1}"#, "\"subsegments\":[\(call)]"]))
        #expect(
            try matches(
                #"service("S3") { annotation.own AND annotation.below AND !annotation.above AND inferred }"#, trace))
        #expect(
            try matches(
                #"edge("web","S3") { annotation.own AND !annotation.below AND !destination.annotation.own }"#, trace))
        #expect(
            try matches(#"service("web") { annotation.own AND annotation.below AND annotation.above AND root }"#, trace)
        )
    }

    // If this fails, a search by the end of services shows traces by what happened at another time (`traces.md` §7).
    @Test func `a window of ends limits what selectors look at, and nothing else`() throws {
        let trace = try facts(
            entity(
                1, "web", 0, 10,
                [
                    "\"subsegments\":[\(entity(2, "orders", 0, 4, isEmbedded: true, [#""namespace":"remote","fault":true"#]))]"
                ]),
            entity(3, "late", 0, nil, parent: 1))
        let early = sampleTime(3)..<sampleTime(5)
        let late = sampleTime(10)..<sampleTime(11)
        for text in [#"service("orders") { fault }"#, #"edge("web","orders")"#, "service() { fault }"] {
            #expect(try matches(text, trace, endedIn: early))
            #expect(try !matches(text, trace, endedIn: late))
        }
        for text in [#"service("web")"#, #"edge(id(type:"client"),"web")"#, #"service(id(type:"client"))"#] {
            #expect(try !matches(text, trace, endedIn: early))
            #expect(try matches(text, trace, endedIn: late))
        }
        #expect(try !matches(#"service("late")"#, trace, endedIn: early))
        #expect(try !matches(#"service("web")"#, trace, endedIn: sampleTime(9)..<sampleTime(10)))
        #expect(try matches("ok AND inferred", trace, endedIn: sampleTime(100)..<sampleTime(101)))
        let group = GroupResolver([
            .init(name: "g", arn: "a", expression: try FilterExpression(parsing: "service() { fault }"))
        ])
        let inGroup = try FilterExpression(parsing: "group.name = \"g\"")
        #expect(inGroup.matches(trace, groups: group, endedIn: early))
        #expect(!inGroup.matches(trace, groups: group, endedIn: late))
    }

    // If this fails, patterns of root causes match what they do not describe (ruling R-12, `filter-expressions.md` §7).
    @Test func `root causes as JSON`() throws {
        let t5 = try #require(sampleTraces.first { $0.name == "T5" }).facts()
        let t3 = try #require(sampleTraces.first { $0.name == "T3" }).facts()
        for text in [
            "rootcause.json = #[]", "rootcause.json = #[{}]", "rootcause.json = #[{},{}]",
            #"rootcause.json = #[{"Services":[]}]"#,
            #"rootcause.json = #[{"Services":[{"Name":"web"},{"Name":"orders-table"}]}]"#,
            #"rootcause.json = #[{"Services":[{"Names":["orders"],"Type":"AWS::ECS::Container"}]}]"#,
            #"rootcause.json = #[{"Services":[{"EntityPath":[{"Coverage":0.927}]}]}]"#,
            #"rootcause.json = #[{"Services":[{"EntityPath":[{"Exceptions":[{"Message":"storage failure"}]}]}]}]"#,
            #"rootcause.json != #[{"Services":[{"Name":"orders"},{"Name":"web"}]}]"#,
            #"rootcause.json != #[{"Services":[{"AccountId":"111122223333"}]}]"#,
            #"rootcause.json != #[{"ClientImpacting":1}]"#,
            #"rootcause.json != #[{"Services":{}}]"#,
            #"rootcause.json != #[{"Services":[{"Name":"web"},{"Name":"web"}]}]"#, "rootcause.json != #[true]",
        ] {
            #expect(try matches(text, t5), "\(text)")
        }
        #expect(try matches("rootcause.json != #[{}] AND rootcause.json = #[]", t3))
    }

    // If this fails, a trace of which only subsegments arrived is found, though it has no summary.
    @Test func `a trace without a segment satisfies nothing`() throws {
        let lone = try facts(entity(1, "work", 0, 1, parent: 9, [#""type":"subsegment""#]))
        for text in ["", "ok", "!fault", "service()", "rootcause.json = #[]", "group.name = Default"] {
            #expect(try !matches(text, lone), "\(text)")
        }
        #expect(GroupResolver([.init(name: "all", arn: "a", expression: .everything)]).memberships(of: lone) == [])
    }

    // If this fails, one trace made for the purpose keeps a query busy for minutes.
    @Test func `a chain of thousands of calls costs no more than linear time per test`() throws {
        let call = #""type":"subsegment","namespace":"remote","annotations":{"k":"v"}"#
        let parser = SegmentParser()
        var trace = Trace(id: try #require(TraceID(parsing: traceIDText)), account: receivingAccount)
        func text(_ number: Int) -> String {
            String(String(0x1_0000_0000_0000_0000 as UInt128 + UInt128(number), radix: 16).dropFirst())
        }
        let head = #""start_time":1700000000,"end_time":1700000001,"trace_id":"\#(traceIDText)""#
        for number in 1...3_000 {
            let document =
                number == 1
                ? #"{\#(head),"id":"\#(text(1))","name":"web"}"#
                : #"{\#(head),"id":"\#(text(number))","name":"n\#(number)","parent_id":"\#(text(number - 1))",\#(call)}"#
            _ = trace.fold(try parser.parse(Array(document.utf8)), receivedAt: 0, byteCount: 0, contentHash: 0)
        }
        let facts = TraceFacts(forest: Forest(trace))
        let clock = ContinuousClock()
        let start = clock.now
        #expect(try matches(#"service("n2") { annotation.k = "v" }"#, facts))
        #expect(try !matches(#"service() { annotation.k = "w" }"#, facts))
        #expect(try !matches(#"edge() { source.annotation.k = "w" OR destination.annotation.k = "w" }"#, facts))
        let spent = clock.now - start
        // Tens of milliseconds even without optimisation; quadratic would be many seconds.
        #expect(spent < .seconds(5))
    }
}
