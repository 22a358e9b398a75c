// `NextToken`: where the next page starts, sealed so that nobody can read, forge or carry it to another request
// (`api.md` §1.6). A record {operation, account, hash of the other input members, position, issued-at} goes in, opaque
// text comes out; no server state, so any process that has the key can continue. Used by the paged operations.

import Crypto
import Segments

/// SHA-256 over the input members that a token is bound to. The members are added in a fixed order by the request, so
/// equal requests have equal hashes however their JSON was written.
public struct RequestHash: Sendable {
    private var hash = SHA256()

    public init() {}

    public mutating func add(_ text: String?) {
        guard let text else { return add(-1) }
        add(Int64(text.utf8.count))
        hash.update(data: Array(text.utf8))
    }

    public mutating func add(_ number: Int64) {
        withUnsafeBytes(of: number.littleEndian) { hash.update(bufferPointer: $0) }
    }

    public mutating func add(_ number: Double?) {
        add(number == nil ? 0 : 1)
        add(Int64(bitPattern: (number ?? 0).bitPattern))
    }

    /// The first 16 bytes of the hash.
    public func finalized() -> [UInt8] { Array(hash.finalize().prefix(16)) }
}

/// What a token says once opened.
public struct PageToken: Equatable, Sendable {
    /// The operation it belongs to (`GetTraceSummaries`).
    public var operation: String
    public var account: AccountID
    /// `RequestHash` of every other input member.
    public var requestHash: [UInt8]
    /// Where to go on; its meaning is the operation's own. At most `maxPositionBytes`.
    public var position: [UInt8]

    public init(operation: String, account: AccountID, requestHash: [UInt8], position: [UInt8]) {
        self.operation = operation
        self.account = account
        self.requestHash = requestHash
        self.position = position
    }

    /// Keeps the text of every token below 1,024 characters.
    public static let maxPositionBytes = 512
    /// Lifetime of tokens of trace and graph queries.
    public static let queryLifetime: Micros = 300 * 1_000_000
    /// An error echoes at most this many characters of a bad token: a 1 MB token must not be answered with 1 MB.
    public static let echoedCharacters = 1024

    /// `Invalid NextToken {token}`: forged, truncated, expired, of another request, operation or account.
    public static func invalid(_ token: String) -> APIError {
        .invalidRequest(
            "Invalid NextToken "
                + token.unicodeScalars.prefix(echoedCharacters).reduce(into: "") { $0.unicodeScalars.append($1) })
    }
}

extension PageToken {
    /// Retention has removed a part of what the token had yet to give: going on would show a part as the whole.
    public static func pointsToRemoved(_ token: String) -> APIError {
        .invalidRequest(invalid(token).message + ": a part of what it points to is no longer kept")
    }
}

/// Seals and opens page tokens with AES-256-GCM.
public struct PageTokenSealer: Sendable {
    private let key: SymmetricKey

    /// - Parameter secret: secret bytes shared by all processes that serve queries (the master key, say); the token key is
    ///   derived from it by HKDF-SHA256, so the secret itself encrypts nothing.
    public init(secret: some Collection<UInt8>) {
        key = HKDF<SHA256>.deriveKey(
            inputKeyMaterial: SymmetricKey(data: Array(secret)), info: Array("beamline page tokens v1".utf8),
            outputByteCount: 32)
    }

    /// - Parameter now: time of issue; the token dies `lifetime` later.
    /// - Returns: base64url without padding, at most 1,024 characters.
    public func seal(_ token: PageToken, now: Micros) throws(APIError) -> String {
        precondition(token.position.count <= PageToken.maxPositionBytes && token.requestHash.count == 16)
        var plain: [UInt8] = []
        append(UInt64(bitPattern: now), to: &plain)
        append(token.account.rawValue, to: &plain)
        plain.append(contentsOf: token.requestHash)
        plain.append(UInt8(token.operation.utf8.count))
        plain.append(contentsOf: token.operation.utf8)
        plain.append(contentsOf: token.position)
        do {
            let box = try AES.GCM.seal(plain, using: key)
            return Base64URL.encode(Array(box.nonce) + Array(box.ciphertext) + Array(box.tag))
        } catch {
            throw .internalFailure("The page token could not be made")
        }
    }

    /// The position inside `text`, if it is a token made for exactly this operation, account and request, and still alive.
    /// - Throws: `Invalid NextToken {token}`.
    public func position(
        in text: String, operation: String, account: AccountID, requestHash: [UInt8], now: Micros,
        lifetime: Micros = PageToken.queryLifetime
    ) throws(APIError) -> [UInt8] {
        guard let (token, issuedAt) = open(text), token.operation == operation, token.account == account,
            token.requestHash == requestHash, now - issuedAt < lifetime, issuedAt - now < lifetime
        else { throw PageToken.invalid(text) }
        return token.position
    }

    private func open(_ text: String) -> (PageToken, issuedAt: Micros)? {
        let nonceBytes = 12
        let tagBytes = 16
        guard text.utf8.count <= 1024, let sealed = Base64URL.decode(text), sealed.count > nonceBytes + tagBytes,
            let nonce = try? AES.GCM.Nonce(data: sealed.prefix(nonceBytes)),
            let box = try? AES.GCM.SealedBox(
                nonce: nonce, ciphertext: sealed.dropFirst(nonceBytes).dropLast(tagBytes), tag: sealed.suffix(tagBytes)),
            let opened = try? AES.GCM.open(box, using: key)
        else { return nil }
        let plain = Array(opened)
        guard plain.count >= 33 else { return nil }
        let nameEnd = 33 + Int(plain[32])
        guard plain.count >= nameEnd else { return nil }
        let token = PageToken(
            operation: String(decoding: plain[33..<nameEnd], as: UTF8.self),
            account: AccountID(rawValue: number(plain[8..<16])),
            requestHash: Array(plain[16..<32]), position: Array(plain[nameEnd...]))
        return (token, Micros(bitPattern: number(plain[0..<8])))
    }

    private func append(_ number: UInt64, to bytes: inout [UInt8]) {
        withUnsafeBytes(of: number.bigEndian) { bytes.append(contentsOf: $0) }
    }

    private func number(_ bytes: ArraySlice<UInt8>) -> UInt64 { bytes.reduce(0) { $0 << 8 | UInt64($1) } }
}

/// Base64 with `-` and `_`, no padding (RFC 4648 §5). Decoding takes exactly what encoding gives: one text per record.
enum Base64URL {
    private static let alphabet = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_".utf8)

    static func encode(_ bytes: [UInt8]) -> String {
        var text: [UInt8] = []
        text.reserveCapacity((bytes.count * 4 + 2) / 3)
        var bits: UInt32 = 0
        var count: UInt32 = 0
        for byte in bytes {
            bits = bits << 8 | UInt32(byte)
            count += 8
            while count >= 6 {
                count -= 6
                text.append(alphabet[Int(bits >> count & 63)])
            }
        }
        if count > 0 { text.append(alphabet[Int(bits << (6 - count) & 63)]) }
        return String(decoding: text, as: UTF8.self)
    }

    static func decode(_ text: String) -> [UInt8]? {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(text.utf8.count * 3 / 4)
        var bits: UInt32 = 0
        var count: UInt32 = 0
        for character in text.utf8 {
            guard let value = value(of: character) else { return nil }
            bits = bits << 6 | value
            count += 6
            if count >= 8 {
                count -= 8
                bytes.append(UInt8(truncatingIfNeeded: bits >> count))
            }
        }
        guard count < 6, bits & ((1 << count) - 1) == 0 else { return nil }
        return bytes
    }

    private static func value(of character: UInt8) -> UInt32? {
        switch character {
        case UInt8(ascii: "A")...UInt8(ascii: "Z"): UInt32(character - UInt8(ascii: "A"))
        case UInt8(ascii: "a")...UInt8(ascii: "z"): UInt32(character - UInt8(ascii: "a")) + 26
        case UInt8(ascii: "0")...UInt8(ascii: "9"): UInt32(character - UInt8(ascii: "0")) + 52
        case UInt8(ascii: "-"): 62
        case UInt8(ascii: "_"): 63
        default: nil
        }
    }
}
