import Segments
import Testing
import XRayAPI

@Suite struct PageTokenTests {
    private let sealer = PageTokenSealer(secret: Array("a secret".utf8))
    private let account = AccountID(rawValue: 111_122_223_333)
    private let hash = [UInt8](0..<16)
    private let position = Array("somewhere".utf8)
    private let issuedAt: Micros = 1_700_000_000_000_000

    private func token() throws -> String {
        try sealer.seal(
            PageToken(operation: "GetTraceSummaries", account: account, requestHash: hash, position: position),
            now: issuedAt)
    }

    private func open(
        _ text: String, operation: String = "GetTraceSummaries", account: AccountID? = nil, hash: [UInt8]? = nil,
        after: Micros = 0,
        sealer: PageTokenSealer? = nil
    ) throws(APIError) -> [UInt8] {
        try (sealer ?? self.sealer).position(
            in: text, operation: operation, account: account ?? self.account, requestHash: hash ?? self.hash,
            now: issuedAt + after)
    }

    // If this fails, nobody gets a second page.
    @Test func `a token opens for the request it was made for, on any node and after a restart`() throws {
        let text = try token()
        #expect(text.utf8.count <= 1024)
        #expect(
            text.utf8.allSatisfy {
                $0 == 0x2d || $0 == 0x5f || (0x30...0x39).contains($0) || (0x41...0x5a).contains($0)
                    || (0x61...0x7a).contains($0)
            })
        #expect(try open(text) == position)
        #expect(try open(text, sealer: PageTokenSealer(secret: Array("a secret".utf8))) == position)
        #expect(try open(text, after: PageToken.queryLifetime - 1) == position)
    }

    // If this fails, a token of one account, operation, request or time works for another.
    @Test func `a token of another request, account, operation, node or time is refused`() throws {
        let text = try token()
        let refusal = APIError.invalidRequest("Invalid NextToken \(text)")
        #expect(throws: refusal) { try open(text, operation: "GetServiceGraph") }
        #expect(throws: refusal) { try open(text, account: AccountID(rawValue: 1)) }
        #expect(throws: refusal) { try open(text, hash: [UInt8](1...16)) }
        #expect(throws: refusal) { try open(text, after: PageToken.queryLifetime) }
        #expect(throws: refusal) { try open(text, sealer: PageTokenSealer(secret: Array("b secret".utf8))) }
    }

    // If this fails, a client can forge where a page starts.
    @Test func `no truncated and no altered token opens`() throws {
        let text = try token()
        let bytes = Array(text.utf8)
        for length in 0..<bytes.count {
            #expect(throws: APIError.self) { try open(String(decoding: bytes[..<length], as: UTF8.self)) }
        }
        for index in bytes.indices {
            for replacement in [UInt8(ascii: "A"), UInt8(ascii: "b"), UInt8(ascii: "="), UInt8(ascii: " ")]
            where replacement != bytes[index] {
                var altered = bytes
                altered[index] = replacement
                #expect(throws: APIError.self) { try open(String(decoding: altered, as: UTF8.self)) }
            }
        }
        for other in [text + "A", text + "=", "A" + text, text + text, "é", "\u{0}", " " + text] {
            #expect(throws: APIError.self) { try open(other) }
        }
    }

    // If this fails, a request with a megabyte of token is answered with a megabyte.
    @Test func `only the beginning of a long bad token is echoed`() {
        let error = PageToken.invalid(String(repeating: "x", count: 1_000_000))
        #expect(error.message == "Invalid NextToken " + String(repeating: "x", count: 1024))
        #expect(error.name == "InvalidRequestException")
    }

    // If this fails, the longest position makes a token that the wire refuses.
    @Test func `the longest position fits into 1,024 characters`() throws {
        let long = [UInt8](repeating: 7, count: PageToken.maxPositionBytes)
        let text = try sealer.seal(
            PageToken(operation: "GetTimeSeriesServiceStatistics", account: account, requestHash: hash, position: long),
            now: issuedAt)
        #expect(text.utf8.count <= 1024)
        #expect(try open(text, operation: "GetTimeSeriesServiceStatistics") == long)
    }
}
