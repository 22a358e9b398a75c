// The text of responses, `api.md` §1.2, and the slices that give documents back as sent.

import Testing

@testable import JSONText

private func written(_ body: (inout JSONWriter) -> Void) -> String {
    var writer = JSONWriter()
    body(&writer)
    return writer.text
}

@Suite struct JSONWriterTests {
    // If this fails, every response is broken JSON.
    @Test func `commas and nesting come out right`() {
        let text = written { json in
            json.beginObject()
            json.key("a")
            json.beginArray()
            json.int(1)
            json.beginObject()
            json.endObject()
            json.string("x")
            json.endArray()
            json.key(string: "b\"c")
            json.bool(true)
            json.key("d")
            json.raw(Array("{\"e\":1.0}".utf8))
            json.key("f")
            json.beginObject()
            json.key("g")
            json.int(Int64.min)
            json.endObject()
            json.endObject()
        }
        #expect(text == "{\"a\":[1,{},\"x\"],\"b\\\"c\":true,\"d\":{\"e\":1.0},\"f\":{\"g\":-9223372036854775808}}")
    }

    // If this fails, clients compare documents that differ in escapes only, or cannot read control characters.
    @Test func `only quotes, backslashes and control characters are escaped`() {
        #expect(
            written { $0.string("/é😀\u{7F} \"\\\u{8}\t\n\u{C}\r\u{0}\u{1F}") }
                == "\"/é😀\u{7F} \\\"\\\\\\b\\t\\n\\f\\r\\u0000\\u001f\"")
        #expect(written { $0.string("") } == "\"\"")
        #expect(written { $0.string(utf8: Array("{\"a\":1}".utf8)) } == "\"{\\\"a\\\":1}\"")
    }

    // If this fails, decimal parsers of clients see exponents, or values change on the way.
    @Test(arguments: [
        (0, "0"), (-0.0, "0"), (1, "1"), (-1.5, "-1.5"), (0.1, "0.1"), (0.25, "0.25"), (1e-6, "0.000001"),
        (1.25e-5, "0.0000125"), (123456.789, "123456.789"), (1e14, "100000000000000"),
        (999_999_999_999_999, "999999999999999"),
        (1700000000.125, "1700000000.125"), (0.30000000000000004, "0.30000000000000004"), (1e15, "1e15"),
        (1.5e300, "1.5e300"), (9.9e-7, "9.9e-7"), (.leastNonzeroMagnitude, "5e-324"), (-2e-10, "-2e-10"), (100, "100"),
        (1.7976931348623157e308, "1.7976931348623157e308"),
    ])
    func `doubles are the shortest plain decimals`(value: Double, text: String) {
        #expect(written { $0.double(value) } == text)
    }

    // If this fails, a value read from a response is not the value stored.
    @Test func `any double reads back as itself`() throws {
        var generator = SplitMix(state: 0x0DD5_EED5)
        print("seed 0x0DD5_EED5")
        let parser = JSONParser()
        for _ in 0..<20_000 {
            let value = Double(bitPattern: generator.next())
            guard value.isFinite else { continue }
            for value in [value, value.remainder(dividingBy: 1e6)] {
                let text = written { $0.double(value) }
                #expect(try parser.parse(Array(text.utf8)).double == value, "\(text)")
                if value.magnitude >= 1e-6 && value.magnitude < 1e15 { #expect(!text.contains("e"), "\(text)") }
            }
        }
    }

    // If this fails, times in responses are off by a millisecond or carry noise digits.
    @Test(
        arguments: [
            (0, "0"), (1, "0"), (499, "0"), (500, "0.001"), (1_499, "0.001"), (1_500, "0.002"), (-1_500, "-0.001"),
            (-1_501, "-0.002"), (-400, "0"), (1_700_000_000_125_000, "1700000000.125"),
            (1_700_000_000_120_000, "1700000000.12"),
            (1_700_000_000_000_000, "1700000000"), (999_999_500, "1000"), (-1_000_000, "-1"), (10_050_000, "10.05"),
            (Int64.max, "9223372036854.776"), (Int64.min, "-9223372036854.776"),
        ] as [(Int64, String)])
    func `seconds have at most three decimals, half up`(micros: Int64, text: String) {
        #expect(written { $0.seconds(micros: micros) } == text)
    }

    // If this fails, metadata, large integers and numbers like 1.0 come back changed.
    @Test func `raw slices are the bytes as sent`() throws {
        let text = Array(
            " { \"a\" : [ 1.0 , 1e400,{\"x\":\"]}\\\"\"} ] , \"n\\u0061\":\"v\\n\", \"a\":12345678901234567890123 ,\"t\":true}\n"
                .utf8)
        let root = RawJSON(text)
        var keys: [String] = []
        var values: [String] = []
        root.forEachMember { key, value in
            keys.append(key.string ?? "?")
            values.append(String(decoding: value.bytes, as: UTF8.self))
        }
        #expect(keys == ["a", "na", "a", "t"])
        #expect(values == ["[ 1.0 , 1e400,{\"x\":\"]}\\\"\"} ]", "\"v\\n\"", "12345678901234567890123", "true"])
        #expect(root.member("na")?.string == "v\n")
        #expect(root.member("a")?.isNumber == true)
        var elements: [String] = []
        RawJSON(Array("[ 1.0 , 1e400,{\"x\":\"]}\\\"\"} ,[] ]".utf8)).forEachElement {
            elements.append(String(decoding: $0.bytes, as: UTF8.self))
        }
        #expect(elements == ["1.0", "1e400", "{\"x\":\"]}\\\"\"}", "[]"])
        for empty in ["{}", "[ ]", "", "{\"a\"", "[1", "{\"a\":", "\"", "[,,,", "}", "{\"a\":}"] {
            let value = RawJSON(Array(empty.utf8))
            value.forEachMember { _, _ in }
            value.forEachElement { _ in }
            _ = value.string
        }
    }
}

/// Reproducible random bits.
private struct SplitMix: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}
