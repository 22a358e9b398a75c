// Stored documents come back byte for byte, whatever they look like, and damaged ones are an error.

import Segments
import Testing

@testable import TraceStore

private let trace = TraceID(high: 0x5759_e988_bd86_2e3f, low: 0xe1be_46a9_9427_2793)

private func stored(_ texts: [[UInt8]], receipt: Micros = 1_465_510_280_000_000) -> [StoredDocument] {
    texts.enumerated().map {
        StoredDocument(
            receivedAt: receipt + Micros($0.offset) * 37, partition: $0.offset % 3, offset: Int64(100 + $0.offset),
            bytes: $0.element[...])
    }
}

private func encoded(
    _ documents: [StoredDocument], dictionary: CompressionDictionary? = nil, isThorough: Bool = false
) throws -> [UInt8] {
    try DocumentCodec().withCompressor { compressor in
        Array(try compressor.encode(documents[...], of: trace, dictionary: dictionary, isThorough: isThorough))
    }
}

private func decoded(_ bytes: [UInt8], of id: TraceID = trace, dictionary: CompressionDictionary? = nil)
    throws(TraceStoreError) -> [StoredDocument]
{
    try DocumentCodec().withDecompressor { decompressor throws(TraceStoreError) in
        do {
            return try bytes.withUnsafeBytes { try decompressor.decode($0, of: id, dictionary: dictionary) }
        } catch let error as TraceStoreError {
            throw error
        } catch {
            throw TraceStoreError(.refused, "\(error)")
        }
    }
}

// If this fails, a trace that was stored reads differently.
@Test(arguments: [
    #"{"trace_id":"1-5759e988-bd862e3fe1be46a994272793","id":"6226467e3f845502","start_time":1465510280.123,"end_time":1465510280.5}"#,
    #"{"id":"6226467E3F845502","parent_id":"6226467e3f84550","x":"6226467e3f8455021","trace_id":"1-5759E988-bd862e3fe1be46a994272793"}"#,
    "1465510280.123", "1465510280.1234567", "1465510280.12345678", "1465510280.", "1465510280", "0465510280.5",
    "-1465510280.5",
    "1465510280.5e3", "1465510280.5E3", "11465510280.5", "1.1465510280.5", "1465510280.5.5", "1465510280.5-",
    "9999999999.9999999",
    "1000000000.0", "\"\"", "\"", "\"0123456789abcdef", "\"0123456789abcdef\"", "\"\"0123456789abcdef\"\"",
    "0123456789abcdef\"", "\"1-",
    "\"1-5759e988-bd862e3fe1be46a994272793", "\"1-5759e988-bd862e3fe1be46a994272793\"",
    "1-5759e988-bd862e3fe1be46a994272793",
    "\\\"0123456789abcdef\"", "ünïcödé 𝄞 \u{10FFFF}", "", "[1465510280.1,1465510280.1,1465510280.1000000,1465510279.9]",
])
func `what looks like an id or a time comes back as it was`(_ text: String) throws {
    for texts in [[text], [text, text], ["x", text, "\(text)1", "1\(text)", "\(text)\(text)"]] {
        let documents = stored(texts.map { Array($0.utf8) })
        #expect(try decoded(encoded(documents)) == documents)
    }
}

// If this fails, an id that is not one comes back as another.
@Test func `any byte at any place of an id comes back`() throws {
    for place in 0..<16 {
        let documents = stored(
            (0..<256).map { byte in
                var text = Array("\"0f1e2d3c4b5a6978\"".utf8)
                text[1 + place] = UInt8(byte)
                return text
            })
        #expect(try decoded(encoded(documents)) == documents)
    }
}

// If this fails, a document that is not UTF-8 comes back as something else.
@Test func `bytes that are tokens are kept, and the documents beside them too`() throws {
    let good = Array(#"{"id":"6226467e3f845502","start_time":1465510280.123}"#.utf8)
    let bad = (UInt8(0xF4)...0xFF).map {
        Array(#"{"id":"7226467e3f845502","t":1465510281.5,"x":""#.utf8) + [$0] + Array("\"}".utf8)
    }
    let documents = stored([good] + bad + [good, Array(0...255)])
    #expect(try decoded(encoded(documents)) == documents)
}

@Test func `random documents of many ids and times come back, with and without a dictionary`() throws {
    var random = SeededGenerator(printingSeedFor: "document texts")
    let pieces = [
        "\"", "0", "1", "9", ".", "-", "e", "E", "+", "f", "{", "ä", "id", "1-5759e988-", "bd862e3fe1be46a994272793",
        "\"1-5759e988-bd862e3fe1be46a994272793\"",
    ]
    func piece() -> String {
        func hex(_ count: Int) -> String {
            String((0..<count).map { _ in "0123456789abcdef".randomElement(using: &random)! })
        }
        switch Int.random(in: 0..<8, using: &random) {
        case 0: return "\"\(hex(.random(in: 15...17, using: &random)))\""
        case 1: return "\"000000000000000\(Int.random(in: 0...9, using: &random))\""
        case 2:
            return
                "\(Int.random(in: 900_000_000...10_000_000_009, using: &random)).\(Int.random(in: 0...20_000_000, using: &random))"
        default: return pieces.randomElement(using: &random)!
        }
    }
    let samples = Array((0..<3_000).map { _ in piece() }.joined().utf8)
    let dictionary = CompressionDictionary(id: 1, bytes: samples)
    for _ in 0..<300 {
        let documents = stored(
            (0..<Int.random(in: 1...90, using: &random)).map { _ in
                Array((0..<Int.random(in: 0...60, using: &random)).map { _ in piece() }.joined().utf8)
            }, receipt: .random(in: 0...(.max / 20), using: &random))
        #expect(try decoded(encoded(documents)) == documents)
        #expect(try decoded(encoded(documents, dictionary: dictionary), dictionary: dictionary) == documents)
    }
}

// If this fails, a damaged row ends the query node instead of one answer.
@Test func `a damaged value is an error, never a crash`() throws {
    var random = SeededGenerator(printingSeedFor: "damaged documents")
    let text =
        #"{"trace_id":"1-5759e988-bd862e3fe1be46a994272793","id":"6226467e3f845502","parent_id":"6226467e3f845502","start_time":1465510280.123}"#
    let whole = try encoded(stored(Array(repeating: Array(text.utf8), count: 20)))
    for length in 0..<whole.count { #expect(throws: TraceStoreError.self) { try decoded(Array(whole[..<length])) } }
    for _ in 0..<5_000 {
        var bytes = whole
        bytes[.random(in: 0..<bytes.count, using: &random)] ^= UInt8.random(in: 1...255, using: &random)
        do {
            _ = try decoded(bytes)
        } catch let error as TraceStoreError {
            #expect(error.code == .corrupt)
        }
    }
}

// If this fails, traces stored by an earlier version cannot be read.
@Test func `values of the first version are read`() throws {
    let texts = ["{\"id\":\"6226467e3f845502\"}", "{}"].map { Array($0.utf8) }
    var plain: [UInt8] = []
    plain.appendVarint(2)
    for (index, text) in texts.enumerated() {
        plain.appendVarint(UInt64(index))
        plain.appendZigzag(index == 0 ? 100 : 1)
        plain.appendZigzag(index == 0 ? 1_465_510_280_000_000 : 37)
        plain.appendVarint(UInt64(text.count))
    }
    plain += texts[0] + texts[1]
    let value = try DocumentCodec().withCompressor { try Array($0.compress(plain, dictionary: nil)) }
    #expect(try decoded(value) == stored(texts))
}

// If this fails, stored traces take a quarter more than promised.
@Test func `ids and times take the bytes they must`() throws {
    var random = SeededGenerator(printingSeedFor: "ids and times")
    let documents = stored(
        (0..<100).map { _ in
            Array(
                "{\"id\":\"\(hexDigits(random.next()))\",\"start_time\":1465510280.\(Int.random(in: 100_000...999_999, using: &random))}"
                    .utf8)
        })
    // 8 bytes of an id, a flag, 3 of a time; the rest repeats. Digits as text would take 16.
    #expect(try encoded(documents).count < 100 * 14)
}

private func hexDigits(_ number: UInt64) -> String {
    let digits = String(number, radix: 16)
    return String(repeating: "0", count: 16 - digits.count) + digits
}

// If this fails, what was stored while there was time cannot be read, or takes more room than what was stored in haste.
@Test func `documents stored with more time come back too, from fewer bytes`() throws {
    let samples = (0..<400).map { number in
        Array(
            #"{"id":"6226467e3f8455\#(10 + number % 89)","name":"shop-\#(number % 7)","http":{"request":{"method":"GET","url":"https://shop.example/items/\#(number)"},"response":{"status":\#(200 + number % 5)}},"start_time":1465510\#(280 + number).123}"#
                .utf8)
    }
    let trained = try #require(
        CompressionDictionary.train(samples: samples.flatMap { $0 }, sizes: samples.map(\.count), capacity: 8 << 10))
    let dictionary = CompressionDictionary(id: 1, bytes: trained)
    var sizes = (hasty: 0, thorough: 0)
    for start in stride(from: 0, to: 400, by: 10) {
        let documents = stored(Array(samples[start..<start + 10]))
        let thorough = try encoded(documents, dictionary: dictionary, isThorough: true)
        #expect(try decoded(thorough, dictionary: dictionary) == documents)
        sizes.thorough += thorough.count
        sizes.hasty += try encoded(documents, dictionary: dictionary).count
    }
    #expect(sizes.thorough <= sizes.hasty)
}
