// Text to expressions and back, and every way a text can be wrong.

import Fixtures
import Segments
import Testing

@testable import FilterExpressions

/// What the parser makes of a text.
private func outcome(
    _ text: String, _ limits: FilterExpressionLimits = .query
) -> Result<FilterExpression, FilterExpressionError> {
    Result { () throws(FilterExpressionError) in try FilterExpression(parsing: text, limits: limits) }
}

/// What the parser says about a text; nil when it takes it.
private func refusal(_ text: String, limits: FilterExpressionLimits = .query) -> String? {
    if case .failure(let error) = outcome(text, limits) { error.description } else { nil }
}

private func test(_ keyword: FilterKeyword) -> FilterExpression { .test(FilterTest(keyword)) }

private func test(
    _ keyword: FilterKeyword, _ comparison: FilterOperator, _ literal: FilterLiteral
) -> FilterExpression {
    .test(FilterTest(keyword, .compares(comparison, literal)))
}

private func annotation(_ key: ExactString) -> FilterKeyword { .annotation(.here, key: key) }

@Suite struct ParserTests {
    // MARK: Refusals

    // If this fails, a wrong filter silently finds nothing instead of saying what is wrong with it
    // (`filter-expressions.md` §9).
    @Test(arguments: [
        ("ok AND", "expected a keyword, found the end", 6),
        (#"http.status = "200""#, "http.status needs a number without quotes", 14),
        ("fault > 1", "fault cannot be compared by >", 6),
        (#"user > "a""#, "user cannot be compared by >", 5),
        (#"service("a""#, #"expected ")", found the end"#, 11),
        (#"edge("a")"#, #"expected ",", found ")""#, 8),
        (#"service("a") { service("b") }"#, "service() cannot stand inside braces", 15),
        (#"service("a") { group.name = "x" }"#, "group.name cannot stand inside braces", 15),
        ("annotation.a.b = 1", #"annotation key "a.b" must stand in brackets and quotes"#, 11),
        ("foo = 1", #"unknown keyword "foo""#, 0),
        ("root", "root has no meaning outside braces", 0),
        (#"name = "web""#, "name has no meaning outside braces", 0),
        ("http.url CONTAINS 5", "http.url needs a quoted string", 18),
        ("rootcause.fault { first }", #"unknown root cause "rootcause.fault""#, 0),
        ("rootcause.responsetime.exception { first }", #"unknown root cause "rootcause.responsetime.exception""#, 0),
        (#"id(name:"a")"#, "id() stands only inside service() or edge()", 0),
        (#"service(id(name:"a", name:"b"))"#, "name is given twice", 21),
        ("rootcause.json = #{}", "expected a JSON array after #", 17),
        (#""web""#, "expected a keyword, found a string", 0),
    ])
    func `an invalid expression of the specification is refused`(_ text: String, _ reason: String, _ position: Int) {
        #expect(refusal(text) == "Invalid filter expression: \(reason) at position \(position)")
    }

    // If this fails, a typing error costs the user a search through the whole expression.
    @Test(arguments: [
        ("  ok  foo", 6), ("ok OR", 5), ("OR ok", 0), ("AND ok", 0), ("ok AND OR fault", 7), ("()", 1), ("(ok", 3),
        ("ok)", 2), ("ok }", 3), ("!", 1), ("ok = ", 5), ("ok = maybe", 5), ("ok = 1", 5), ("ok CONTAINS true", 3),
        ("user =", 6), ("user = 5", 7), ("user = AND", 7), ("user == \"a\"", 6), ("user CONTAINS", 13),
        ("http.status = 5.", 14), ("http.status = .5", 14), ("http.status = 1e999", 14), ("http.status = 0x10", 14),
        ("http.status = nan", 14), ("http.status BEGINSWITH 2", 12), ("duration = true", 11),
        ("annotation", 10), ("annotation = 1", 11), ("annotation.", 11), ("annotation[]", 11), ("annotation[a b]", 13),
        ("annotation[a", 12), ("annotation[\"a\"", 14), ("annotation[a\"b]", 12), ("annotation.a-b", 11),
        ("annotation.x > \"a\"", 15), ("annotation.x < true", 15), ("annotation.x CONTAINS 5", 22),
        ("annotation.x ENDSWITH false", 22), ("source.annotation.x", 0), ("user = \"abc", 7), (#"user = "a\q""#, 9),
        (#"user = "\u12""#, 8), (#"user = "\ud800""#, 8), (#"user = "\ud800\u0041""#, 8), (#"user = "\udc00""#, 8),
        ("service", 7), ("service(web)", 8), ("service(\"a\",\"b\")", 11), ("service() { }", 12),
        ("service() { ok ", 15), ("service(id())", 11), ("service(id(name=\"a\"))", 15), ("service(id(name:a))", 16),
        ("service(id(foo:\"a\"))", 11), ("service(id(name:\"a\",))", 20), ("edge(\"a\",\"b\",\"c\")", 12),
        ("edge(,)", 5),
        ("edge() { service() }", 9), ("edge() { id(name:\"a\") }", 9), ("edge() { inferred }", 9),
        ("service() { account.id = \"1\" }", 12), ("service() { source.annotation.a }", 12),
        ("service() { rootcause.fault.service { first } }", 12), ("service() { rootcause.json = #[] }", 12),
        ("rootcause.fault.service first", 24), ("rootcause.fault.service { ok }", 26),
        ("rootcause.fault.entity { coverage > 0 }", 25), ("rootcause.responsetime.service { coverage > 0 }", 33),
        ("rootcause.fault.service { group.name = \"a\" }", 26), ("rootcause.fault.service { annotation.a }", 26),
        ("rootcause.x.service { first }", 0), ("rootcause.fault.service.x { first }", 0), ("rootcause", 0),
        ("rootcause.json", 14), ("rootcause.json > #[]", 15), ("rootcause.json = []", 17), ("rootcause.json = #[", 17),
        ("rootcause.json = #[1,]", 17), ("rootcause.json = #[1}", 17), (#"rootcause.json = #["a]"#, 17),
        ("rootcause.json = #[1e999]", 17), ("group.name", 10), ("group.name > \"a\"", 11),
        ("group.name CONTAINS \"a\"", 11),
        ("group.name = AND", 13), ("not ok", 0), ("ok && fault", 3), ("ok || fault", 3), ("ok, fault", 2),
        ("#[]", 0), ("= 1", 0), ("caf\u{e9} = 1", 0), ("ok \u{1F600}\u{1F600} caf\u{e9}", 3),
        ("user = \"\u{1F600}\" foo", 11),
    ])
    func `a refusal points at what is wrong`(_ text: String, _ position: Int) {
        #expect(refusal(text)?.hasSuffix(" at position \(position)") == true, "\(refusal(text) ?? "taken")")
    }

    // If this fails, one request can keep a core busy or bring the process down.
    @Test func `hostile texts are refused at once`() {
        let tooLong = "Invalid filter expression: longer than 10000 characters at position 10000"
        let tooDeep = "Invalid filter expression: nested deeper than 100 at position"
        let clock = ContinuousClock()
        let spent = clock.measure {
            #expect(refusal(String(repeating: "x", count: 1_000_000)) == tooLong)
            #expect(refusal(String(repeating: "(", count: 1_000_000)) == tooLong)
            #expect(refusal(String(repeating: "(", count: 10_000)) == "\(tooDeep) 100")
            #expect(refusal(String(repeating: "!", count: 10_000)) == "\(tooDeep) 100")
            #expect(refusal(String(repeating: "!(", count: 5_000)) == "\(tooDeep) 100")
            #expect(refusal("rootcause.json = #" + String(repeating: "[", count: 9_000)) == "\(tooDeep) 118")
            #expect(refusal("rootcause.json = #" + String(repeating: #"{"a":"#, count: 1_900)) != nil)
            #expect(refusal(String(repeating: "service() { ", count: 800)) != nil)
            #expect(refusal(String(repeating: "ok ", count: 3_333)) == nil)
            #expect(refusal(String(repeating: "\u{301}", count: 10_000)) != nil)
        }
        // Milliseconds even without optimisation; a quadratic parser would need many seconds.
        #expect(spent < .seconds(5))
    }

    // If this fails, an expression at the limit is refused or one over it taken.
    @Test func `limits are exact and count code points`() throws {
        let hundred = String(repeating: "(", count: 100) + "ok" + String(repeating: ")", count: 100)
        #expect(refusal(hundred) == nil)
        #expect(refusal("!" + hundred) != nil)
        #expect(refusal("(\(hundred))") != nil)
        // Levels that were closed do not count.
        #expect(refusal("\(hundred) AND \(hundred)") == nil)
        #expect(
            refusal("service() { " + String(repeating: "(", count: 99) + "ok" + String(repeating: ")", count: 99) + "}")
                == nil)
        func user(_ count: Int) -> String { "user = \"" + String(repeating: "\u{1F600}", count: count - 9) + "\"" }
        #expect(refusal(user(10_000)) == nil)
        #expect(refusal(user(10_001)) != nil)
        #expect(refusal(user(2_000), limits: .group) == nil)
        #expect(refusal(user(2_001), limits: .group)?.contains("longer than 2000") == true)
        #expect(
            refusal("rootcause.json = #" + String(repeating: "[", count: 100) + String(repeating: "]", count: 100))
                == nil)
    }

    // MARK: Meaning of texts

    // If this fails, a filter is read as another one than its author meant (`filter-expressions.md` §1).
    @Test func `NOT binds tighter than AND, AND than OR, and neighbours mean AND`() throws {
        let (ok, error, fault) = (test(.ok), test(.error), test(.fault))
        let expected: [(String, FilterExpression)] = [
            ("", .everything), (" \t\r\n\u{a0}", .everything),
            ("ok OR error AND fault", .or([ok, .and([error, fault])])),
            ("ok AND error OR fault", .or([.and([ok, error]), fault])),
            ("ok error OR fault ok", .or([.and([ok, error]), .and([fault, ok])])),
            ("(ok OR error) fault", .and([.or([ok, error]), fault])),
            ("ok!error", .and([ok, .not(error)])),
            ("ok(error)", .and([ok, error])),
            ("ok !partial duration < 3", .and([ok, .not(test(.partial)), test(.duration, .less, .number(3))])),
            ("!annotation.age > 29", .not(test(annotation("age"), .greater, .number(29)))),
            ("!!ok", ok), ("!(!(ok))", ok), ("!!!ok", .not(ok)), ("((ok))", ok),
            ("ok AND (error AND fault)", .and([ok, error, fault])),
            ("ok OR (error OR fault)", .or([ok, error, fault])),
            ("!(ok AND error)", .not(.and([ok, error]))),
            ("OK aNd eRRoR oR FAULT", .or([.and([ok, error]), fault])),
            ("ok=TRUE", test(.ok, .equal, .bool(true))), (#"ok != "False""#, test(.ok, .notEqual, .bool(false))),
            ("service() OK", .and([.service(nil, body: nil), ok])),
            ("service(){ok}(error)", .and([.service(nil, body: ok), error])),
        ]
        for (text, expression) in expected {
            #expect(try FilterExpression(parsing: text) == expression, "\(text)")
        }
    }

    // If this fails, a value in a filter is compared as another type than it was written.
    @Test func `values are read by what the keyword needs`() throws {
        let expected: [(String, FilterExpression)] = [
            ("user = true", test(.user, .equal, .string("true"))),
            ("user = us-west-2a", test(.user, .equal, .string("us-west-2a"))),
            ("user CONTAINS 5a", test(.user, .contains, .string("5a"))),
            ("HTTP.Status<=+4.5E+2", test(.httpStatus, .lessOrEqual, .number(450))),
            ("duration > -0.5e-1", test(.duration, .greater, .number(-0.05))),
            ("annotation.x = true", test(annotation("x"), .equal, .bool(true))),
            (#"annotation.x = "true""#, test(annotation("x"), .equal, .string("true"))),
            ("annotation.x = 007", test(annotation("x"), .equal, .number(7))),
            (#"annotation.x = "007""#, test(annotation("x"), .equal, .string("007"))),
            ("annotation.x = bareword", test(annotation("x"), .equal, .string("bareword"))),
            ("annotation.x endswith y.z/-", test(annotation("x"), .endsWith, .string("y.z/-"))),
            (
                #"user = "\"\\\/\b\f\n\r\t\u0041\uD83D\uDE00""#,
                test(.user, .equal, .string("\"\\/\u{8}\u{c}\n\r\tA\u{1F600}"))
            ),
            ("user = \"line\nbreak\"", test(.user, .equal, .string("line\nbreak"))),
            ("user = \"\"", test(.user, .equal, .string(""))),
            (
                #"user = "' OR 1=1; DROP TABLE x; -- % _ $1""#,
                test(.user, .equal, .string("' OR 1=1; DROP TABLE x; -- % _ $1"))
            ),
            ("group.name = g", .group(.name("g"), isNegated: false)),
            ("GROUP.ARN != \"arn:x\"", .group(.arn("arn:x"), isNegated: true)),
        ]
        for (text, expression) in expected {
            #expect(try FilterExpression(parsing: text) == expression, "\(text)")
        }
    }

    // If this fails, annotations with unusual keys cannot be searched, or a search finds another key.
    @Test func `annotation keys keep their case and their characters`() throws {
        let expected: [(String, AnnotationPlace, ExactString)] = [
            ("annotation.Tenant_1", .here, "Tenant_1"), ("ANNOTATION[Tenant]", .here, "Tenant"),
            ("annotation [ \"a b\" ]", .here, "a b"), ("annotation[aws.local.operation]", .here, "aws.local.operation"),
            (#"annotation["a\"b\\c]d"]"#, .here, #"a"b\c]d"#), ("annotation[__proto__]", .here, "__proto__"),
            ("annotation.__proto__", .here, "__proto__"), ("annotation[a'b;--%_]", .here, "a'b;--%_"),
            ("annotation[(x):{y},!=<>#[]", .here, "(x):{y},!=<>#["),
            ("annotation.gr\u{f6}\u{df}e", .here, "gr\u{f6}\u{df}e"),
            ("annotation[\"\"]", .here, ""), ("annotation[true]", .here, "true"), ("annotation.and", .here, "and"),
        ]
        for (text, place, key) in expected {
            let wanted = test(.annotation(place, key: key))
            #expect(try FilterExpression(parsing: text) == wanted, "\(text)")
            #expect(
                try FilterExpression(parsing: "edge() { source.\(text) AND Destination.\(text) }")
                    == .edge(
                        nil,
                        body: .and([test(.annotation(.source, key: key)), test(.annotation(.destination, key: key))])))
        }
        // The same to Swift, different keys to X-Ray.
        #expect(
            try FilterExpression(parsing: "annotation[caf\u{e9}]")
                != FilterExpression(parsing: "annotation[cafe\u{301}]"))
    }

    // If this fails, the parts of a node are mixed up.
    @Test func `selectors`() throws {
        let full = NodeSelector(name: "a", type: "t", accountID: "1")
        let ok = test(.ok)
        let expected: [(String, FilterExpression)] = [
            (#"service("a")"#, .service(NodeSelector(name: "a"), body: nil)),
            (#"service(id(name:"a"))"#, .service(NodeSelector(name: "a"), body: nil)),
            (#"SERVICE ( ID ( Account.Id : "1" , TYPE:"t",name:"a" ) ) {ok}"#, .service(full, body: ok)),
            ("edge(){ok}", .edge(nil, body: ok)),
            (
                #"edge("a", id(type:"t"))"#,
                .edge(EdgeSelector(source: NodeSelector(name: "a"), destination: NodeSelector(type: "t")), body: nil)
            ),
            (
                "rootcause.ResponseTime.Entity{coverage>0.5}",
                .rootCause(.responseTime, .entity, body: test(.coverage, .greater, .number(0.5)))
            ),
            (
                #"RootCause.JSON != # [ {"a" : [1, null, "x]\""], "b":true, "a":false} ]"#,
                .rootCauseJSON([.object(["a": .bool(false), "b": .bool(true)])], isNegated: true)
            ),
        ]
        for (text, expression) in expected {
            #expect(try FilterExpression(parsing: text) == expression, "\(text)")
        }
    }

    // If this fails, a keyword is accepted where it has no value, and the filter finds nothing without saying why
    // (the table of `filter-expressions.md` §2).
    @Test func `every keyword is known exactly where the specification says`() {
        let everywhere = [
            "ok", "error", "throttle", "fault", "partial", "responsetime", "duration", "http.status", "http.url",
            "http.method", "http.useragent", "http.clientip", "user", "availabilityzone", "instance.id", "resource.arn",
            "annotation.x", "annotation[x]",
        ]
        let inEdges = everywhere + ["source.annotation.x", "destination.annotation.x"]
        let places: [(String, String, known: [String])] = [
            ("", "", everywhere + ["inferred", "account.id"]),
            ("service() { ", " }", everywhere + ["inferred", "root", "name", "type"]),
            ("edge() { ", " }", inEdges),
            ("rootcause.fault.service { ", " }", ["first", "last", "index", "name", "type", "account.id", "inferred"]),
            ("rootcause.fault.entity { ", " }", ["first", "last", "index", "name", "remote"]),
            ("rootcause.error.exception { ", " }", ["first", "last", "index", "name", "message"]),
            (
                "rootcause.responsetime.service { ", " }",
                ["first", "last", "index", "name", "type", "account.id", "inferred"]
            ),
            ("rootcause.responsetime.entity { ", " }", ["first", "last", "index", "name", "remote", "coverage"]),
        ]
        let all = Set(places.flatMap(\.known))
        for (before, after, known) in places {
            for keyword in all {
                #expect((refusal(before + keyword + after) == nil) == known.contains(keyword), "\(before)\(keyword)")
            }
        }
    }

    // MARK: Normal form

    // If this fails, what is shown, cached or planned for a filter is not that filter.
    @Test func `the canonical text of a random expression parses to the same expression`() throws {
        var generator = ExpressionGenerator(random: SeededGenerator(printingSeedFor: "canonical texts"))
        for _ in 0..<2_000 {
            let expression = generator.expression()
            let canonical = expression.canonical
            let again = try FilterExpression(parsing: canonical, limits: FilterExpressionLimits(characters: 1_000_000))
            guard again == expression, again.canonical == canonical else {
                Issue.record("\(canonical)\n\(again.canonical)\n\(expression)")
                return
            }
        }
    }

    // If this fails, some text stops the process instead of being refused.
    @Test func `any text is taken or refused with a position inside it`() throws {
        var random = SeededGenerator(printingSeedFor: "mangled texts")
        var generator = ExpressionGenerator(random: SeededGenerator(seed: random.next()))
        let pieces = [
            "(", ")", "{", "}", "[", "]", "\"", "\\", "#", "#[", "!", "=", "<", ",", ":", " ", "AND", "annotation",
            "service(", "id(", "rootcause.json", "\u{301}", "\u{1F600}", "1e", "\\u12", ".",
        ]
        for _ in 0..<3_000 {
            var scalars = Array(generator.expression().canonical.unicodeScalars)
            for _ in 0..<Int.random(in: 1...4, using: &random) {
                let position = Int.random(in: 0...scalars.count, using: &random)
                if random.chance(50) {
                    scalars.insert(contentsOf: random.pick(pieces).unicodeScalars, at: position)
                } else {
                    scalars.removeSubrange(
                        position..<min(scalars.count, position + Int.random(in: 1...5, using: &random)))
                }
            }
            var text = ""
            text.unicodeScalars.append(contentsOf: scalars)
            switch outcome(text) {
            case .success(let expression):
                #expect(
                    try outcome(expression.canonical, FilterExpressionLimits(characters: 1_000_000)).get() == expression
                )
            case .failure(let error):
                #expect(error.position >= 0 && (error.position <= scalars.count || scalars.count > 10_000), "\(text)")
            }
        }
    }
}

@Suite struct EntitySelectorTests {
    // If this fails, the time series of a node or an edge cannot be asked for (`filter-expressions.md` §8).
    @Test func `one node or one edge`() throws {
        let (a, b) = (NodeSelector(name: "a"), NodeSelector(name: "b", type: "t", accountID: "1"))
        let expected: [(String, EntitySelector)] = [
            (#"service("a")"#, .service(a)), (#" Service ( id(name: "a") ) "#, .service(a)),
            (#"id(name:"a")"#, .service(a)),
            (#"service(id(type:"client"))"#, .service(NodeSelector(type: "client"))),
            (#"edge("a",id(name:"b",type:"t",account.id:"1"))"#, .edge(source: a, destination: b)),
        ]
        for (text, selector) in expected {
            #expect(try EntitySelector(parsing: text) == selector, "\(text)")
        }
    }

    // If this fails, the statistics of something else than what was asked for are returned.
    @Test(arguments: [
        "", " ", "service()", "edge()", #"service("a") {ok}"#, #"service("a") AND ok"#,
        #"service("a") OR service("b")"#,
        #"!service("a")"#, #"(service("a"))"#, #"edge("a")"#, #"edge("a","b"){ok}"#, #""a""#, "a", "id()", "ok",
        #"service("a") service("b")"#, #"service("a"))"#, #"service("a"#, #"rootcause.fault.service { first }"#,
    ])
    func `anything else is refused`(_ text: String) {
        let error = #expect(throws: EntitySelector.ParseError.self) { try EntitySelector(parsing: text) }
        #expect(error?.description == "Invalid entity selector expression")
    }

    // If this fails, a selector of 500 characters is refused or a longer one taken.
    @Test func `at most 500 characters`() throws {
        func selector(_ length: Int) -> String {
            "service(\"" + String(repeating: "\u{e9}", count: length - 11) + "\")"
        }
        #expect(throws: Never.self) { try EntitySelector(parsing: selector(500)) }
        #expect(throws: EntitySelector.ParseError.self) { try EntitySelector(parsing: selector(501)) }
    }
}
