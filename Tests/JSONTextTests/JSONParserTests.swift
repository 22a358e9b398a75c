// What counts as JSON, and what comes out of it. Verdicts follow RFC 8259 and the rulings' small print.

import Testing

@testable import JSONText

private func parse<Result>(_ text: String, _ body: (JSONValue) throws -> Result) throws -> Result {
    let parser = JSONParser()
    let value = try parser.parse(Array(text.utf8))
    return try withExtendedLifetime(parser) { try body(value) }
}

private func verdict(_ bytes: [UInt8]) -> JSONParseError.Reason? {
    do {
        _ = try JSONParser().parse(bytes)
        return nil
    } catch {
        return error.reason
    }
}

private func verdict(_ text: String) -> JSONParseError.Reason? { verdict(Array(text.utf8)) }

private func nested(_ depth: Int, open: String, close: String, inner: String = "") -> String {
    String(repeating: open, count: depth) + inner + String(repeating: close, count: depth)
}

@Suite struct JSONParserTests {
    // If this fails, documents that a sender may legally send are refused.
    @Test(arguments: [
        "{}", " {} ", "{}\n", "\r\n\t{}", "[]", "1", "\"a\"", "null", "{\"a\":-0}", "{\"a\":1e400}", "{\"a\":-1E+400}",
        "{\"a\":1e-400}", "{\"a\":123456789012345678901234567890}", "{\"a\":18446744073709551616}",
        "{\"a\":-9223372036854775809}", "{\"a\":1e99999999999999999999}", "1e400", "{\"a\":\"\\u0000\"}",
        "{\"a\":\"\\ud83d\\ude00\"}", "{\"a\":1,\"a\":2}", "{\"\":1}", "{\"a\":\"1e400x\",\"b\":1e400}",
        "{\"a\\\\\":1e400,\"b\\\"\":[1e400 , 2]}",
    ])
    func `legal JSON is accepted`(text: String) {
        #expect(verdict(text) == nil)
    }

    // If this fails, text that other readers refuse enters the log and cannot be returned.
    @Test(arguments: [
        "", " ", "{", "}", "{} {}", "{}{}", "{\"a\":NaN}", "{\"a\":Infinity}", "{\"a\":-Infinity}", "{\"a\":01}",
        "{\"a\":-01}", "{\"a\":1.}", "{\"a\":.5}", "{\"a\":+1}", "{\"a\":1e}", "{\"a\":-}", "{\"a\":1e400x}",
        "{\"a\":1e400 1}", "{\"a\":01e400}", "{\"a\":1e400,}", "{\"a\":0x1p5000}", "{\"a\":\"\\ud800\"}",
        "{\"a\":\"\\udc00\"}", "{\"a\":\"\\ud800\\ud800\"}", "{\"a\":\"\\ud800\\u0041\"}", "{\"\\udfff\":1}",
        "{\"a\":\"\\ud800", "{\"a\":\"\n\"}", "{\"a\":\"\\x\"}", "{\"a\":\"\\u12g4\"}", "{}\0", "{\"a\":1,}", "[1,]",
        "{'a':1}", "{\"a\":tru}", "{}/**/", "\u{FEFF}{}",
    ])
    func `what is not JSON is refused`(text: String) {
        #expect(verdict(text) == .notJSON)
    }

    // If this fails, bytes that are no text come back inside a JSON response and break every client.
    @Test(
        arguments: [
            [0xFF], [0xC0, 0x80], [0xED, 0xA0, 0x80], [0xF4, 0x90, 0x80, 0x80], [0xE2, 0x82], [0x80],
        ] as [[UInt8]])
    func `invalid UTF-8 is refused`(bytes: [UInt8]) {
        #expect(verdict(Array("{\"a\":\"".utf8) + bytes + Array("\"}".utf8)) == .notJSON)
    }

    // If this fails, a hostile document overflows the stack of whoever walks it.
    @Test func `512 levels are legal and 513 are not, whatever stands innermost`() {
        for inner in ["", "1"] {
            #expect(verdict(nested(512, open: "[", close: "]", inner: inner)) == nil)
            #expect(verdict(nested(513, open: "[", close: "]", inner: inner)) == .tooDeep)
            #expect(verdict(nested(10_000, open: "[", close: "]", inner: inner)) == .tooDeep)
        }
        #expect(verdict(nested(511, open: "{\"a\":", close: "}", inner: "{}")) == nil)
        #expect(verdict(nested(512, open: "{\"a\":", close: "}", inner: "1")) == nil)
        #expect(verdict(nested(512, open: "{\"a\":", close: "}", inner: "{}")) == .tooDeep)
        #expect(verdict(nested(513, open: "{\"a\":", close: "}", inner: "1")) == .tooDeep)
        #expect(verdict(nested(10_000, open: "{\"a\":", close: "}", inner: "1")) == .tooDeep)
        // Brackets in strings and siblings are no levels.
        #expect(verdict("[\"" + String(repeating: "[", count: 2000) + "\"]") == nil)
        #expect(verdict("[" + String(repeating: "[],{},", count: 2000) + "1]") == nil)
    }

    // If this fails, an API request may be nested as deep as a document.
    @Test func `the caller chooses the nesting limit, also from parse to parse`() throws {
        let parser = JSONParser()
        let text = Array("[[[1]]]".utf8)
        _ = try parser.parse(text)
        #expect(throws: JSONParseError(.tooDeep)) { _ = try parser.parse(text, maxDepth: 2) }
        _ = try parser.parse(text, maxDepth: 3)
        _ = try parser.parse(Array(nested(512, open: "[", close: "]").utf8))
    }

    // If this fails, one overflowing number hides or shifts its neighbours.
    @Test func `a number too large for a double is marked and its neighbours keep their values`() throws {
        try parse(
            "{\"a\":1.5,\"b\":1e400,\"c\":[7,-1e999,18446744073709551616,2e5],\"d\":\"1e400\",\"e\":18446744073709551615}"
        ) { root in
            #expect(root.member("a")?.double == 1.5)
            #expect(root.member("b")?.kind == .hugeNumber)
            #expect(root.member("b")?.double == nil)
            let c = try #require(root.member("c"))
            #expect(c.elements.map(\.kind) == [.integer, .hugeNumber, .double, .double])
            #expect(c.elements.map(\.double) == [7, nil, 18_446_744_073_709_551_616, 2e5])
            #expect(root.member("d")?.string?.string == "1e400")
            #expect(root.member("e")?.uint64 == UInt64.max)
            #expect(root.member("e")?.int64 == nil)
        }
    }

    // If this fails, members of requests and documents are read wrongly.
    @Test func `every kind of value reads back`() throws {
        try parse(
            "{\"s\":\"é\\u0000\\n\",\"i\":-9223372036854775808,\"d\":0.1,\"t\":true,\"f\":false,\"n\":null,\"a\":[1,[2],{}],\"o\":{\"k\":{}}}"
        ) { root in
            #expect(root.kind == .object)
            #expect(root.member("s")?.string?.string == "é\0\n")
            #expect(root.member("s")?.string?.count == 4)
            #expect(root.member("i")?.int64 == Int64.min)
            #expect(root.member("d")?.double == 0.1)
            #expect(root.member("d")?.wholeNumber == nil)
            #expect(root.member("t")?.bool == true)
            #expect(root.member("f")?.bool == false)
            #expect(root.member("n")?.isNull == true)
            #expect(root.member("n")?.bool == nil)
            #expect(root.member("a")?.elements.map(\.kind) == [.integer, .array, .object])
            #expect(root.member("o")?.member("k")?.isObject == true)
            #expect(root.member("k") == nil)
            #expect(root.member("i")?.member("k") == nil)
            #expect(root.member("s")?.elements.map(\.kind) == [])
            #expect(root.count == 8)
            #expect(root.member("a")?.count == 3)
            #expect(root.member("s")?.count == 0)
            #expect(root.members.map { $0.key.string } == ["s", "i", "d", "t", "f", "n", "a", "o"])
        }
        try parse("[404.0,4.04e2,404.5,1e30]") { root in
            #expect(root.elements.map(\.wholeNumber) == [404, 404, nil, nil])
        }
    }

    // If this fails, two readers of the same document see different values.
    @Test func `the last of equal keys wins`() throws {
        try parse("{\"a\":1,\"\\u0061\":2,\"b\":3}") { root in
            #expect(root.member("a")?.int64 == 2)
            #expect(Array(root.members).count == 3)
        }
    }

    // If this fails, one large request keeps hundreds of megabytes for ever.
    @Test func `buffers of a large text are given back`() throws {
        let parser = JSONParser()
        let large = Array(("[" + String(repeating: "1,", count: 2_000_000) + "1]").utf8)
        let root = try parser.parse(large)
        #expect(root.elements.reduce(0) { count, _ in count + 1 } == 2_000_001)
        #expect(parser.retainedBytes > 4_000_000)
        _ = try parser.parse(Array("{}".utf8))
        #expect(parser.retainedBytes < 1_000_000)
        _ = try parser.parse(large)
        parser.trim()
        #expect(parser.retainedBytes == 0)
        #expect(try parser.parse(Array("{\"a\":1}".utf8)).member("a")?.int64 == 1)
    }

    // If this fails, a million keys in one body stop the server.
    @Test func `a million keys are walked once`() throws {
        var text = "{"
        for key in 0..<1_000_000 { text += "\"k\(key)\":\(key)," }
        text += "\"last\":true}"
        try parse(text) { root in
            #expect(root.member("last")?.bool == true)
            #expect(root.member("k999999")?.int64 == 999_999)
        }
    }
}
