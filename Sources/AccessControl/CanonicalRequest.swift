// The text that SigV4 signs, built from a request as it arrived, and the key and signature over it.
// Pure bytes in, bytes out; used by verification and by signing, so both sides cannot disagree.
// Source: `auth-and-accounts.md` §2.2.

import Crypto

/// One header as received. The name may have any case.
public typealias HeaderField = (name: String, value: String)

/// A request as it was received on the wire, before the account prefix is stripped and the body is decompressed.
public struct WireRequest: Sendable {
    public var method: String
    /// Still percent-encoded, without the query; `""` counts as `/`.
    public var path: Substring
    /// Without the `?`; empty when there is none.
    public var query: Substring
    public var headers: [HeaderField]
    /// SHA-256 of the body's bytes on the wire (de-chunked, still compressed).
    public var bodyHash: SHA256Digest

    public init(method: String, path: Substring, query: Substring = "", headers: [HeaderField], bodyHash: SHA256Digest)
    {
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.bodyHash = bodyHash
    }

    /// Splits a request target (`/path?query`) at its first `?`.
    public init(method: String, target: String, headers: [HeaderField], bodyHash: SHA256Digest) {
        let question = target.utf8.firstIndex(of: UInt8(ascii: "?"))
        self.init(
            method: method,
            path: target[..<(question ?? target.endIndex)],
            query: question.map { target[target.utf8.index(after: $0)...] } ?? "",
            headers: headers,
            bodyHash: bodyHash)
    }
}

/// The date, region and service a signature is valid for.
struct CredentialScope: Hashable, Sendable {
    /// `YYYYMMDD`.
    var date: String
    var region: String
    var service: String

    var text: String { "\(date)/\(region)/\(service)/aws4_request" }
}

enum SigV4 {
    static let algorithm = "AWS4-HMAC-SHA256"
    static let terminator = "aws4_request"
    static let unsignedPayload = "UNSIGNED-PAYLOAD"

    /// - Parameters:
    ///   - signedHeaders: lower case and sorted.
    ///   - host: stands in for the value of the `host` header when given.
    ///   - payloadHash: the last line, normally the body hash in hex.
    static func canonicalRequest(
        _ request: borrowing WireRequest, signedHeaders: [[UInt8]], host: [UInt8]? = nil, payloadHash: [UInt8]
    ) -> [UInt8] {
        var canonical: [UInt8] = []
        canonical.reserveCapacity(1024)
        canonical.append(contentsOf: request.method.utf8)
        canonical.append(newline)
        appendCanonicalPath(request.path.utf8, to: &canonical)
        canonical.append(newline)
        if !request.query.isEmpty { appendCanonicalQuery(request.query.utf8, to: &canonical) }
        canonical.append(newline)
        for name in signedHeaders {
            canonical.append(contentsOf: name)
            canonical.append(UInt8(ascii: ":"))
            if let host, name == hostName {
                canonical.append(contentsOf: host)
            } else {
                appendValues(of: name, in: request.headers, to: &canonical)
            }
            canonical.append(newline)
        }
        canonical.append(newline)
        for (index, name) in signedHeaders.enumerated() {
            if index > 0 { canonical.append(UInt8(ascii: ";")) }
            canonical.append(contentsOf: name)
        }
        canonical.append(newline)
        canonical.append(contentsOf: payloadHash)
        return canonical
    }

    /// - Parameter date: the request's time as `YYYYMMDDTHHMMSSZ`.
    static func stringToSign(date: [UInt8], scope: CredentialScope, canonicalRequest: [UInt8]) -> [UInt8] {
        var text: [UInt8] = []
        text.reserveCapacity(192)
        text.append(contentsOf: algorithm.utf8)
        text.append(newline)
        text.append(contentsOf: date)
        text.append(newline)
        text.append(contentsOf: scope.date.utf8)
        for part in [scope.region, scope.service, terminator] {
            text.append(UInt8(ascii: "/"))
            text.append(contentsOf: part.utf8)
        }
        text.append(newline)
        appendHex(SHA256.hash(data: canonicalRequest), to: &text)
        return text
    }

    static func signingKey(secret: SecretKey, scope: CredentialScope) -> SymmetricKey {
        var key = SymmetricKey(data: Array("AWS4".utf8) + Array(secret.text.utf8))
        for part in [scope.date, scope.region, scope.service, terminator] {
            key = SymmetricKey(data: HMAC<SHA256>.authenticationCode(for: Array(part.utf8), using: key))
        }
        return key
    }

    /// The signature in lower-case hex.
    static func signature(of stringToSign: [UInt8], key: SymmetricKey) -> [UInt8] {
        var hex: [UInt8] = []
        hex.reserveCapacity(64)
        appendHex(HMAC<SHA256>.authenticationCode(for: stringToSign, using: key), to: &hex)
        return hex
    }

    static func hex(_ bytes: some Sequence<UInt8>) -> [UInt8] {
        var hex: [UInt8] = []
        hex.reserveCapacity(64)
        appendHex(bytes, to: &hex)
        return hex
    }

    static func appendHex(_ bytes: some Sequence<UInt8>, to output: inout [UInt8]) {
        for byte in bytes {
            output.append(hexDigit(byte >> 4, upper: false))
            output.append(hexDigit(byte & 15, upper: false))
        }
    }

    // MARK: - Path and query

    /// Removes empty, `.` and `..` segments, keeps a trailing slash, then encodes every byte but the unreserved ones
    /// (so `%3A` becomes `%253A`, as every service but S3 wants it).
    static func appendCanonicalPath(_ path: Substring.UTF8View, to output: inout [UInt8]) {
        let slash = UInt8(ascii: "/")
        let dot = UInt8(ascii: ".")
        var segments: [Substring.UTF8View.SubSequence] = []
        segments.reserveCapacity(4)
        var endsWithSlash = true
        for segment in path.split(separator: slash, omittingEmptySubsequences: false).dropFirst(
            path.first == slash ? 1 : 0)
        {
            endsWithSlash = true
            if segment.isEmpty || segment.elementsEqual(CollectionOfOne(dot)) { continue }
            if segment.elementsEqual([dot, dot]) {
                segments.removeLast(min(1, segments.count))
                continue
            }
            segments.append(segment)
            endsWithSlash = false
        }
        for segment in segments {
            output.append(slash)
            appendEncoded(segment, to: &output)
        }
        if endsWithSlash || segments.isEmpty { output.append(slash) }
    }

    private static func appendCanonicalQuery(_ query: Substring.UTF8View, to output: inout [UInt8]) {
        var pairs: [(name: [UInt8], value: [UInt8])] = []
        for pair in query.split(separator: UInt8(ascii: "&")) {
            let equals = pair.firstIndex(of: UInt8(ascii: "="))
            let name = pair[..<(equals ?? pair.endIndex)]
            let value = equals.map { pair[pair.index(after: $0)...] } ?? pair[pair.endIndex...]
            pairs.append((reencoded(name), reencoded(value)))
        }
        pairs.sort { a, b in
            a.name == b.name ? a.value.lexicographicallyPrecedes(b.value) : a.name.lexicographicallyPrecedes(b.name)
        }
        for (index, pair) in pairs.enumerated() {
            if index > 0 { output.append(UInt8(ascii: "&")) }
            output.append(contentsOf: pair.name)
            output.append(UInt8(ascii: "="))
            output.append(contentsOf: pair.value)
        }
    }

    private static func reencoded(_ text: Substring.UTF8View) -> [UInt8] {
        let bytes = Array(text)
        var decoded: [UInt8] = []
        decoded.reserveCapacity(bytes.count)
        var index = 0
        while index < bytes.count {
            if bytes[index] == UInt8(ascii: "%"), index + 2 < bytes.count,
                let high = hexValue(bytes[index + 1]), let low = hexValue(bytes[index + 2])
            {
                decoded.append(high << 4 | low)
                index += 3
            } else {
                decoded.append(bytes[index])
                index += 1
            }
        }
        var encoded: [UInt8] = []
        encoded.reserveCapacity(decoded.count)
        appendEncoded(decoded, to: &encoded)
        return encoded
    }

    private static func appendEncoded(_ bytes: some Sequence<UInt8>, to output: inout [UInt8]) {
        for byte in bytes {
            if isUnreserved(byte) {
                output.append(byte)
            } else {
                output.append(UInt8(ascii: "%"))
                output.append(hexDigit(byte >> 4, upper: true))
                output.append(hexDigit(byte & 15, upper: true))
            }
        }
    }

    // MARK: - Headers

    static let hostName = Array("host".utf8)

    /// The values of all headers of that name in order of arrival, trimmed, runs of spaces collapsed, joined with
    /// commas.
    private static func appendValues(of name: [UInt8], in headers: [HeaderField], to output: inout [UInt8]) {
        var isFirst = true
        for header in headers where header.name.equalsIgnoringCase(name) {
            if !isFirst { output.append(UInt8(ascii: ",")) }
            isFirst = false
            appendTrimmed(header.value, to: &output)
        }
    }

    static func appendTrimmed(_ value: String, to output: inout [UInt8]) {
        let start = output.count
        var pendingSpace = false
        for byte in value.utf8 {
            if byte == UInt8(ascii: " ") || byte == UInt8(ascii: "\t") {
                pendingSpace = true
                continue
            }
            if pendingSpace && output.count > start { output.append(UInt8(ascii: " ")) }
            pendingSpace = false
            output.append(byte)
        }
    }

    // MARK: - Bytes

    private static let newline = UInt8(ascii: "\n")

    private static func isUnreserved(_ byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
            UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "-"), UInt8(ascii: "."), UInt8(ascii: "_"),
            UInt8(ascii: "~"):
            true
        default: false
        }
    }

    private static func hexDigit(_ value: UInt8, upper: Bool) -> UInt8 {
        value < 10 ? UInt8(ascii: "0") + value : (upper ? UInt8(ascii: "A") : UInt8(ascii: "a")) + value - 10
    }

    private static func hexValue(_ digit: UInt8) -> UInt8? {
        switch digit {
        case UInt8(ascii: "0")...UInt8(ascii: "9"): digit - UInt8(ascii: "0")
        case UInt8(ascii: "a")...UInt8(ascii: "f"): digit - UInt8(ascii: "a") + 10
        case UInt8(ascii: "A")...UInt8(ascii: "F"): digit - UInt8(ascii: "A") + 10
        default: nil
        }
    }
}

extension String {
    /// Whether the text is `lowercased` when ASCII letters are folded; compares bytes, allocates nothing.
    func equalsIgnoringCase(_ lowercased: [UInt8]) -> Bool {
        utf8.count == lowercased.count
            && utf8.elementsEqual(lowercased) { byte, expected in
                byte == expected
                    || (UInt8(ascii: "A")...UInt8(ascii: "Z")).contains(byte) && byte | 0x20 == expected
            }
    }
}
