// The verdicts of `segments.md` §14, row by row, and the cases tolerated. Both entry points are asked each time.

import Testing

@testable import Segments

let traceText = "1-65536f00-0123456789abcdef01234567"

/// Members of a good segment; `changes` replaces members by key (nil removes one) or adds them.
func segment(_ changes: [(String, String?)] = []) -> String {
    object(
        [
            ("name", "\"checkout\""), ("id", "\"00c0ffee00c0ffee\""), ("trace_id", "\"\(traceText)\""),
            ("start_time", "1700000000.125"), ("end_time", "1700000000.375"),
        ], changes)
}

/// Members of a good independent subsegment.
func subsegment(_ changes: [(String, String?)] = []) -> String {
    object(
        [
            ("type", "\"subsegment\""), ("name", "\"stock.example.com\""), ("id", "\"0badcafe0badcafe\""),
            ("trace_id", "\"\(traceText)\""), ("parent_id", "\"00c0ffee00c0ffee\""), ("namespace", "\"remote\""),
            ("start_time", "1700000000.150"), ("end_time", "1700000000.300"),
        ], changes)
}

/// Members of a good embedded subsegment.
func embedded(_ changes: [(String, String?)] = []) -> String {
    object(
        [
            ("name", "\"part\""), ("id", "\"1111111111111111\""), ("start_time", "1700000000.2"),
            ("end_time", "1700000000.25"),
        ],
        changes)
}

private func object(_ members: [(String, String)], _ changes: [(String, String?)]) -> String {
    var members: [(String, String?)] = members.map { ($0.0, $0.1) }
    for (key, value) in changes {
        if let position = members.firstIndex(where: { $0.0 == key }) {
            members[position].1 = value
        } else {
            members.append((key, value))
        }
    }
    return "{" + members.compactMap { key, value in value.map { "\"\(key)\":\($0)" } }.joined(separator: ",") + "}"
}

/// The refusal of a document, nil when it is accepted. Fails the test when the two entry points disagree.
func refusal(_ text: String, limits: SegmentLimits = SegmentLimits()) -> Refusal? {
    refusal(Array(text.utf8), limits: limits)
}

func refusal(_ bytes: [UInt8], limits: SegmentLimits = SegmentLimits()) -> Refusal? {
    let parser = SegmentParser(limits: limits)
    var validated: Refusal?
    var parsed: Refusal?
    var traceIDs: [TraceID?] = [nil, nil]
    do { traceIDs[0] = try parser.validate(bytes) } catch { validated = error }
    do { traceIDs[1] = try parser.parse(bytes).traceID } catch { parsed = error }
    #expect(validated == parsed)
    #expect(traceIDs[0] == traceIDs[1])
    return validated
}

private func verdict(_ text: String) -> String {
    guard let refusal = refusal(text) else { return "accepted" }
    return "\(refusal.code) \(refusal.kind) \(refusal.id ?? "-")"
}

func document(_ text: String) throws -> SegmentDocument { try SegmentParser().parse(Array(text.utf8)) }

@Suite struct SegmentParserTests {
    // If this fails, clients get another reason than AWS gives, or a document is accepted that nobody can use.
    @Test(arguments: [
        // 2: not JSON; the kind depends on the first character after white space (R-04).
        ("{\"id\":\"00c0ffee00c0ffee\"", "ParseError segment -"),
        (" \n\t{x", "ParseError segment -"),
        ("{} {}", "ParseError segment -"),
        ("nope", "ParseError entity -"),
        ("", "ParseError entity -"),
        ("  ", "ParseError entity -"),
        ("[{]", "ParseError entity -"),
        ("\u{FEFF}" + segment(), "ParseError entity -"),
        // 3: JSON, but no object.
        ("[" + segment() + "]", "ParseError entity -"),
        ("\"text\"", "ParseError entity -"),
        ("null", "ParseError entity -"),
        // 4: type.
        (segment([("type", "\"span\"")]), "UnknownType entity 00c0ffee00c0ffee"),
        (segment([("type", "\"Segment\"")]), "UnknownType entity 00c0ffee00c0ffee"),
        (segment([("type", "1")]), "UnknownType entity 00c0ffee00c0ffee"),
        (segment([("type", "{}")]), "UnknownType entity 00c0ffee00c0ffee"),
        (segment([("type", "\"span\""), ("id", nil)]), "UnknownType entity -"),
        (segment([("type", "\"span\""), ("id", "7")]), "UnknownType entity -"),
        // 5: id.
        (segment([("id", nil)]), "MissingId segment -"),
        (segment([("id", "\"\"")]), "MissingId segment "),
        (segment([("id", "null")]), "MissingId segment -"),
        (segment([("id", "17")]), "MissingId segment -"),
        (subsegment([("id", nil)]), "MissingId subsegment -"),
        ("{}", "MissingId segment -"),
        // 6: id not hex16.
        (segment([("id", "\"00c0ffee00c0ffe\"")]), "InvalidId segment 00c0ffee00c0ffe"),
        (segment([("id", "\"00c0ffee00c0ffeg\"")]), "InvalidId segment 00c0ffee00c0ffeg"),
        (segment([("id", "\"00c0ffee00c0ffee \"")]), "InvalidId segment 00c0ffee00c0ffee "),
        (subsegment([("id", "\"ü\"")]), "InvalidId subsegment ü"),
        // 7: name.
        (segment([("name", nil)]), "MissingName segment 00c0ffee00c0ffee"),
        (segment([("name", "\"\"")]), "MissingName segment 00c0ffee00c0ffee"),
        (segment([("name", "null")]), "MissingName segment 00c0ffee00c0ffee"),
        (segment([("name", "[]")]), "MissingName segment 00c0ffee00c0ffee"),
        (subsegment([("name", "1")]), "MissingName subsegment 0badcafe0badcafe"),
        // 8: trace id missing.
        (segment([("trace_id", nil)]), "MissingTraceId segment 00c0ffee00c0ffee"),
        (segment([("trace_id", "null")]), "MissingTraceId segment 00c0ffee00c0ffee"),
        (segment([("trace_id", "\"\"")]), "MissingTraceId segment 00c0ffee00c0ffee"),
        (segment([("trace_id", "5")]), "MissingTraceId segment 00c0ffee00c0ffee"),
        (subsegment([("trace_id", nil)]), "MissingTraceId subsegment 0badcafe0badcafe"),
        // 9: trace id malformed.
        (segment([("trace_id", "\"1-65536f00-0123456789abcdef0123456\"")]), "InvalidTraceId segment 00c0ffee00c0ffee"),
        (segment([("trace_id", "\"2-65536f00-0123456789abcdef01234567\"")]), "InvalidTraceId segment 00c0ffee00c0ffee"),
        (segment([("trace_id", "\"1-65536f0-00123456789abcdef01234567\"")]), "InvalidTraceId segment 00c0ffee00c0ffee"),
        (segment([("trace_id", "\"1-65536f00-0123456789abcdef0123456x\"")]), "InvalidTraceId segment 00c0ffee00c0ffee"),
        // 10: start time.
        (segment([("start_time", nil)]), "MissingStartTime segment 00c0ffee00c0ffee"),
        (segment([("start_time", "\"1700000000.1\"")]), "MissingStartTime segment 00c0ffee00c0ffee"),
        (segment([("start_time", "null")]), "MissingStartTime segment 00c0ffee00c0ffee"),
        (segment([("start_time", "0")]), "MissingStartTime segment 00c0ffee00c0ffee"),
        (segment([("start_time", "-1.5")]), "MissingStartTime segment 00c0ffee00c0ffee"),
        (segment([("start_time", "1e999")]), "MissingStartTime segment 00c0ffee00c0ffee"),
        (segment([("start_time", "true")]), "MissingStartTime segment 00c0ffee00c0ffee"),
        // 11: in progress with an end.
        (segment([("in_progress", "true")]), "InProgressSegmentHasEndTime segment 00c0ffee00c0ffee"),
        (subsegment([("in_progress", "true")]), "InProgressSubsegmentHasEndTime subsegment 0badcafe0badcafe"),
        // 12: neither.
        (segment([("end_time", nil)]), "MissingEndTime segment 00c0ffee00c0ffee"),
        (segment([("end_time", "\"1700000001\"")]), "MissingEndTime segment 00c0ffee00c0ffee"),
        (segment([("end_time", nil), ("in_progress", "false")]), "MissingEndTime segment 00c0ffee00c0ffee"),
        (segment([("end_time", nil), ("in_progress", "\"true\"")]), "MissingEndTime segment 00c0ffee00c0ffee"),
        (subsegment([("end_time", "null")]), "MissingEndTime subsegment 0badcafe0badcafe"),
        // 13: independent subsegment without parent.
        (subsegment([("parent_id", nil)]), "MissingParentId subsegment 0badcafe0badcafe"),
        (subsegment([("parent_id", "\"\"")]), "MissingParentId subsegment 0badcafe0badcafe"),
        (subsegment([("parent_id", "4")]), "MissingParentId subsegment 0badcafe0badcafe"),
        // 14: parent not hex16.
        (subsegment([("parent_id", "\"xyz\"")]), "InvalidParentId subsegment 0badcafe0badcafe"),
        (segment([("parent_id", "\"xyz\"")]), "InvalidParentId segment 00c0ffee00c0ffee"),
        // 15: an element of subsegments that is no object.
        (segment([("subsegments", "[1]")]), "ParseError entity 00c0ffee00c0ffee"),
        (segment([("subsegments", "[null]")]), "ParseError entity 00c0ffee00c0ffee"),
        (segment([("subsegments", "[" + embedded([("id", nil)]) + ",\"x\"]")]), "ParseError entity 00c0ffee00c0ffee"),
        // 5 to 12 and 15 of embedded ones; the id is the document's.
        (segment([("subsegments", "[" + embedded([("id", nil)]) + "]")]), "MissingId subsegment 00c0ffee00c0ffee"),
        (segment([("subsegments", "[" + embedded([("id", "\"z\"")]) + "]")]), "InvalidId subsegment 00c0ffee00c0ffee"),
        (
            segment([("subsegments", "[" + embedded([("name", "\"\"")]) + "]")]),
            "MissingName subsegment 00c0ffee00c0ffee"
        ),
        (
            segment([("subsegments", "[" + embedded([("start_time", nil)]) + "]")]),
            "MissingStartTime subsegment 00c0ffee00c0ffee"
        ),
        (
            segment([("subsegments", "[" + embedded([("end_time", nil)]) + "]")]),
            "MissingEndTime subsegment 00c0ffee00c0ffee"
        ),
        (
            segment([("subsegments", "[" + embedded([("in_progress", "true")]) + "]")]),
            "InProgressSubsegmentHasEndTime subsegment 00c0ffee00c0ffee"
        ),
        (
            segment([
                (
                    "subsegments",
                    "[" + embedded([("subsegments", "[" + embedded([("name", nil)]) + "]")]) + ","
                        + embedded([("id", nil)]) + "]"
                )
            ]),
            "MissingName subsegment 00c0ffee00c0ffee"
        ),
        (
            segment([("subsegments", "[" + embedded([("subsegments", "[false]")]) + "]")]),
            "ParseError entity 00c0ffee00c0ffee"
        ),
    ])
    func `a bad document is refused with the code, kind and id of AWS`(text: String, expected: String) {
        #expect(verdict(text) == expected)
    }

    // If this fails, of two mistakes clients are told another one than AWS tells.
    @Test func `the first failing check decides`() {
        var changes: [(String, String?)] = [
            ("type", "\"span\""), ("id", nil), ("name", nil), ("trace_id", nil), ("start_time", nil), ("end_time", nil),
            ("parent_id", nil), ("subsegments", "[1]"),
        ]
        let repairs: [(String, (String, String?))] = [
            ("UnknownType", ("type", "\"subsegment\"")), ("MissingId", ("id", "\"x\"")),
            ("InvalidId", ("id", "\"0badcafe0badcafe\"")), ("MissingName", ("name", "\"n\"")),
            ("MissingTraceId", ("trace_id", "\"x\"")), ("InvalidTraceId", ("trace_id", "\"\(traceText)\"")),
            ("MissingStartTime", ("start_time", "1")), ("MissingEndTime", ("end_time", "2")),
            ("MissingParentId", ("parent_id", "\"x\"")), ("InvalidParentId", ("parent_id", "\"00c0ffee00c0ffee\"")),
            ("ParseError", ("subsegments", "[]")),
        ]
        for (code, repair) in repairs {
            #expect(refusal(subsegment(changes))?.code == code)
            changes.append(repair)
        }
        #expect(refusal(subsegment(changes)) == nil)
    }

    // If this fails, clients that compare the message do not recognise it.
    @Test func `messages are those recorded from AWS`() {
        #expect(refusal(segment([("name", nil)]))?.message == "Invalid segment. ErrorCode: MissingName")
        #expect(
            refusal(subsegment([("end_time", nil)]))?.message
                == "Invalid subsegment. ErrorCode: MissingEndTime, Cause: null")
        #expect(refusal(segment([("type", "\"x\"")]))?.message == "Invalid entity. ErrorCode: UnknownType")
    }

    // 1. If this fails, one sender fills the log with giant documents, or 64 KiB ones are refused.
    @Test func `a document longer than the limit is refused with its id if it has one`() {
        func padded(_ text: String, to count: Int) -> String {
            text + String(repeating: " ", count: count - text.utf8.count)
        }
        #expect(refusal(padded(segment(), to: 65_536)) == nil)
        #expect(verdict(padded(segment(), to: 65_537)) == "InvalidSegment segment 00c0ffee00c0ffee")
        #expect(verdict(padded(subsegment(), to: 65_537)) == "InvalidSegment segment 0badcafe0badcafe")
        #expect(verdict("{" + String(repeating: "x", count: 70_000)) == "InvalidSegment segment -")
        #expect(refusal(segment(), limits: SegmentLimits(documentBytes: 20))?.code == "InvalidSegment")
    }

    // If this fails, what official SDKs send every day is refused ("Tolerated" of §14, rulings R-05 to R-07).
    @Test(arguments: [
        segment(), segment() + "\n", " " + segment(), subsegment(),
        segment([("type", "\"segment\"")]), segment([("type", "\"\"")]), segment([("type", "null")]),
        segment([("in_progress", "false")]), segment([("in_progress", "true"), ("end_time", nil)]),
        segment([("in_progress", "true"), ("end_time", "null")]), segment([("in_progress", "\"yes\"")]),
        segment([("end_time", "1")]), segment([("end_time", "-5")]), segment([("start_time", "1.478293361271E9")]),
        segment([("start_time", "4e9")]), segment([("start_time", "1478293361271")]),
        segment([("trace_id", "\"65536F000123456789ABCDEF01234567\"")]),
        segment([("id", "\"00C0FFEE00C0FFEE\"")]), segment([("parent_id", "null")]), segment([("parent_id", "\"\"")]),
        segment([("parent_id", "12")]), segment([("name", "\"<weird> 😀\"")]),
        segment([("subsegments", "{}")]), segment([("subsegments", "\"x\"")]), segment([("subsegments", "1")]),
        segment([("subsegments", "null")]), segment([("subsegments", "[]")]),
        segment([("user", "\"\""), ("origin", "5"), ("http", "[]"), ("aws", "\"x\""), ("cause", "3"), ("links", "{}")]),
        segment([("annotations", "[1]"), ("metadata", "7"), ("service", "null"), ("error", "\"yes\""), ("fault", "1")]),
        segment([("Dummy", "{\"a\":[1e400]}"), ("notTraced", "true"), ("inferred", "true")]),
        segment([("http", "{\"request\":null,\"response\":{\"status\":{}}}")]),
        segment([
            (
                "subsegments",
                "[" + embedded([("trace_id", "\"bad\""), ("parent_id", "\"bad\""), ("type", "\"bad\"")]) + "]"
            )
        ]),
        segment([("subsegments", "[" + embedded([("subsegments", "7")]) + "]")]),
        segment([("metadata", "{\"big\":1e999,\"nul\":\"\\u0000\"}")]),
    ])
    func `tolerated documents are accepted`(text: String) {
        #expect(verdict(text) == "accepted")
    }

    // If this fails, a duplicate key gives a verdict about a value that is not the one used.
    @Test func `the last of equal keys decides`() throws {
        let good = segment()
        #expect(verdict(String(good.dropLast()) + ",\"id\":\"x\"}") == "InvalidId segment x")
        #expect(verdict(String(good.dropLast()) + ",\"name\":null}") == "MissingName segment 00c0ffee00c0ffee")
        let twice = "{\"name\":5,\"id\":0," + good.dropFirst()
        #expect(try document(twice).entities[0].name == "checkout")
    }

    // If this fails, the strict setting lets AWS-incompatible names in, or refuses legal ones.
    @Test func `strict names follow the documented alphabet`() {
        let strict = SegmentLimits(strictNames: true)
        #expect(refusal(segment([("name", "\"Käse 7_.:/%&#=+\\\\-@\"")]), limits: strict) == nil)
        #expect(refusal(segment([("name", "\"a<b\"")]), limits: strict)?.code == "InvalidName")
        let inner = segment([("subsegments", "[" + embedded([("name", "\"a|b\"")]) + "]")])
        #expect(refusal(inner, limits: strict)?.message == "Invalid subsegment. ErrorCode: InvalidName, Cause: null")
    }

    // If this fails, a hostile document stops the server that reads it.
    @Test func `hostile documents get an ordinary verdict`() {
        func deep(_ depth: Int) -> String {
            var text = embedded()
            for _ in 1..<depth { text = embedded([("subsegments", "[" + text + "]")]) }
            return segment([("subsegments", "[" + text + "]")])
        }
        // Each level of subsegments is two of JSON: 1 + 2 × 255 = 511.
        #expect(refusal(deep(255)) == nil)
        #expect(refusal(deep(256), limits: SegmentLimits(documentBytes: 1 << 20))?.code == "ParseError")
        let wide = SegmentLimits(documentBytes: 1 << 26)
        #expect(refusal(deep(10_000), limits: wide)?.code == "ParseError")
        #expect(refusal(String(repeating: "[", count: 10_000))?.kind == .entity)
        var keys = ""
        for key in 0..<1_000_000 { keys += "\"k\(key)\":1," }
        #expect(refusal("{" + keys + segment().dropFirst(), limits: wide) == nil)
        #expect(refusal(segment([("annotations", "{" + keys + "\"k\":2}")]), limits: wide) == nil)
        let same = String(repeating: "\"k\":1,", count: 200_000)
        #expect(refusal(segment([("annotations", "{" + same + "\"k\":2}")]), limits: wide) == nil)
        for value in ["NaN", "Infinity", "-Infinity", "\"\\ud800\"", "\"\\udc00\"", "01", "'a'"] {
            #expect(verdict(segment([("user", value)])) == "ParseError segment -")
        }
        #expect(
            refusal(Array("{\"user\":\"".utf8) + [0xFF] + Array("\",".utf8) + Array(segment().utf8.dropFirst()))?.code
                == "ParseError")
        #expect(refusal(segment([("user", "\"a\\u0000b\"")])) == nil)
        #expect(refusal(Array(segment().utf8) + [0])?.code == "ParseError")
    }

    // If this fails, ingest acknowledges documents the aggregator cannot read, or one of them crashes.
    @Test func `validate and parse agree on mutated documents`() {
        var random = SplitMix(state: 0x5E67_0001)
        print("seed 0x5E67_0001")
        let good = [richSegment, segment([("subsegments", "[" + embedded() + "]")]), subsegment()].map {
            Array($0.utf8)
        }
        let spice = Array("{}[]\",:\\0e-.tfn".utf8)
        var accepted = 0
        for round in 0..<6_000 {
            var bytes = good[round % good.count]
            for _ in 0..<Int.random(in: 1...3, using: &random) {
                let position = Int.random(in: 0..<bytes.count, using: &random)
                switch Int.random(in: 0..<5, using: &random) {
                case 0: bytes[position] = UInt8.random(in: 0...255, using: &random)
                case 1: bytes[position] = spice[Int.random(in: 0..<spice.count, using: &random)]
                case 2: bytes.remove(at: position)
                case 3: bytes.insert(bytes[Int.random(in: 0..<bytes.count, using: &random)], at: position)
                default: bytes[position] ^= 1 << UInt8.random(in: 0..<8, using: &random)
                }
            }
            if refusal(bytes) == nil { accepted += 1 }
        }
        #expect(accepted > 500)
    }
}

/// Reproducible random bits.
struct SplitMix: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}
