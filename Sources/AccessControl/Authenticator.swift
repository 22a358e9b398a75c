// Verifies the SigV4 signature of a request and says who the caller is. In: the request as received, the time, the
// directory. Out: a `Caller`, or the refusal of the first check that fails, in the order of `auth-and-accounts.md`
// §2.3. Called once per request by the server, before anything else is looked at.

import Crypto
import Segments
import Synchronization

/// Settings of signature verification.
public struct AuthenticationSettings: Sendable {
    /// The server's region. Only compared with the signature's when `acceptAnyRegion` is off.
    public var region: String
    public var acceptAnyRegion: Bool
    /// The service of the scope; `xray` for the X-Ray operations.
    public var service: String
    /// Accept `x-amz-content-sha256: UNSIGNED-PAYLOAD` over TLS.
    public var allowUnsignedPayload: Bool

    public init(
        region: String = "us-east-1", acceptAnyRegion: Bool = true, service: String = "xray",
        allowUnsignedPayload: Bool = false
    ) {
        self.region = region
        self.acceptAnyRegion = acceptAnyRegion
        self.service = service
        self.allowUnsignedPayload = allowUnsignedPayload
    }
}

public final class Authenticator: Sendable {
    /// The clocks of client and server may differ by five minutes.
    public static let clockSkewSeconds: Int64 = 300

    private let settings: AuthenticationSettings
    private let directory: any CredentialDirectory
    private let signingKeys = SigningKeyCache()
    /// Unknown keys are verified with it, so that they take as long as known ones.
    private let dummySecret: SecretKey

    public init(settings: AuthenticationSettings = AuthenticationSettings(), directory: any CredentialDirectory) {
        self.settings = settings
        self.directory = directory
        var generator = SystemRandomNumberGenerator()
        dummySecret = AccessKey.generateSecret(using: &generator)
    }

    /// The outcome of authentication: who signed, and the state of that principal's account.
    public struct Authenticated: Sendable {
        public var caller: Caller
        public var accountState: AccountState
    }

    /// - Parameters:
    ///   - now: microseconds since 1970.
    ///   - isSecure: whether the request came over TLS.
    /// - Throws: `AccessRefusal`, or what the directory throws.
    public func authenticate(
        _ request: WireRequest, now: Micros, isSecure: Bool = false
    ) async throws -> Authenticated {
        let claim = try SignatureClaim(request)
        let credential = try await directory.credential(for: claim.accessKeyID)
        return try decide(request, claim: claim, credential: credential, now: now, isSecure: isSecure)
    }

    private func decide(
        _ request: WireRequest, claim: SignatureClaim, credential: Credential?, now: Micros, isSecure: Bool
    ) throws(AccessRefusal) -> Authenticated {
        // Session keys (`ASIA…`) are not issued, and a long-lived key never comes with a token.
        let isUsable =
            credential?.isActive == true && !claim.hasSecurityToken && !claim.accessKeyID.utf8.starts(with: "ASIA".utf8)
        let secret = isUsable ? credential?.secret : nil
        let refusal = verify(
            request, claim: claim, secret: secret ?? dummySecret, isKnown: isUsable, now: now, isSecure: isSecure)
        guard isUsable, let credential else { throw .unrecognizedClient }
        if let refusal { throw refusal }
        let caller = Caller(
            principalARN: credential.principalARN, account: credential.account,
            accessKeyID: credential.accessKeyID, role: credential.role)
        return Authenticated(caller: caller, accountState: credential.accountState)
    }

    /// Checks 5 to 9: the scope, the clock, the declared body hash, the signature. Nil when all hold.
    private func verify(
        _ request: WireRequest, claim: SignatureClaim, secret: SecretKey, isKnown: Bool, now: Micros, isSecure: Bool
    ) -> AccessRefusal? {
        let bodyHash = SigV4.hex(request.bodyHash)
        let payloadHash = claim.declaredPayloadHash ?? bodyHash
        let cachedKey = signingKeys.key(secret: secret, scope: claim.scope)
        let key = cachedKey ?? SigV4.signingKey(secret: secret, scope: claim.scope)
        func matches(host: [UInt8]?) -> Bool {
            let canonical = SigV4.canonicalRequest(
                request, signedHeaders: claim.signedHeaders, host: host, payloadHash: payloadHash)
            let text = SigV4.stringToSign(date: claim.date, scope: claim.scope, canonicalRequest: canonical)
            return isEqualInConstantTime(SigV4.signature(of: text, key: key), claim.signature)
        }
        // Clients leave a default port out of `Host`, some proxies add it.
        let isGenuine = matches(host: nil) || claim.hostWithoutDefaultPort.map { matches(host: $0) } ?? false

        if claim.scope.date.utf8.count != 8 || !claim.date.starts(with: claim.scope.date.utf8)
            || claim.terminator != SigV4.terminator || claim.scope.service != settings.service
        {
            return .wrongService(expected: settings.service)
        }
        if !settings.acceptAnyRegion && claim.scope.region != settings.region { return .wrongRegion }
        let seconds = now.secondsRoundedDown
        if claim.signedAt < seconds - Self.clockSkewSeconds {
            return .signatureExpired(signedAt: claim.signedAt, now: seconds)
        }
        if claim.signedAt > seconds + Self.clockSkewSeconds {
            return .signatureNotYetCurrent(signedAt: claim.signedAt, now: seconds)
        }
        if let declared = claim.declaredPayloadHash, declared != bodyHash {
            let isUnsigned = declared.elementsEqual(SigV4.unsignedPayload.utf8)
            guard isUnsigned && settings.allowUnsignedPayload && isSecure else { return .signatureMismatch }
        }
        guard isGenuine else { return .signatureMismatch }
        if isKnown && cachedKey == nil { signingKeys.insert(key, secret: secret, scope: claim.scope) }
        return nil
    }
}

extension Micros {
    fileprivate var secondsRoundedDown: Int64 { self >= 0 ? self / 1_000_000 : -((999_999 - self) / 1_000_000) }
}

/// Compares without telling by its duration where the first difference is.
func isEqualInConstantTime(_ a: [UInt8], _ b: [UInt8]) -> Bool {
    guard a.count == b.count else { return false }
    var difference: UInt8 = 0
    for index in a.indices { difference |= a[index] ^ b[index] }
    return difference == 0
}

/// What a request claims in its `Authorization` header: checks 1 and 2.
struct SignatureClaim: Sendable {
    var accessKeyID: String
    var scope: CredentialScope
    var terminator: String
    /// Lower case, sorted, without duplicates.
    var signedHeaders: [[UInt8]]
    var signature: [UInt8]
    /// `YYYYMMDDTHHMMSSZ`, from `X-Amz-Date` or `Date`.
    var date: [UInt8]
    /// `date` in seconds since 1970.
    var signedAt: Int64
    var hasSecurityToken: Bool
    var declaredPayloadHash: [UInt8]?
    /// The `Host` header without `:80` or `:443`; nil when it has neither.
    var hostWithoutDefaultPort: [UInt8]?

    init(_ request: WireRequest) throws(AccessRefusal) {
        let fields = RelevantHeaders(request.headers)
        guard let authorization = fields.authorization else { throw .missingAuthenticationToken }
        guard fields.authorizationCount == 1 else {
            throw .incompleteSignature("A request must have exactly one Authorization header.")
        }
        let parts = try AuthorizationParts(authorization)
        accessKeyID = parts.accessKeyID
        scope = parts.scope
        terminator = parts.terminator
        signature = parts.signature
        signedHeaders = parts.signedHeaders

        if let text = fields.amzDate {
            guard let seconds = UTCTime.parseBasic(text) else {
                throw .incompleteSignature("Date must be in ISO-8601 'basic format' (YYYYMMDD'T'HHMMSS'Z').")
            }
            date = Array(text)
            signedAt = seconds
        } else if let text = fields.date {
            guard let seconds = UTCTime.parseHTTPDate(text) ?? UTCTime.parseBasic(text) else {
                throw .incompleteSignature("Date must be in ISO-8601 'basic format' (YYYYMMDD'T'HHMMSS'Z').")
            }
            date = Array(UTCTime.basic(seconds).utf8)
            signedAt = seconds
        } else {
            throw .incompleteSignature(
                "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.")
        }
        hasSecurityToken = fields.hasSecurityToken
        declaredPayloadHash = fields.contentHash
        hostWithoutDefaultPort = fields.host.flatMap(Self.withoutDefaultPort)

        var mustBeSigned = fields.mustBeSigned
        mustBeSigned.append(fields.amzDate == nil ? Array("date".utf8) : Array("x-amz-date".utf8))
        for name in [SigV4.hostName] + mustBeSigned where !signedHeaders.contains(name) {
            if name == SigV4.hostName && signedHeaders.contains(Array(":authority".utf8)) { continue }
            let text = name == SigV4.hostName ? "'Host' or ':authority'" : "'\(String(decoding: name, as: UTF8.self))'"
            throw .incompleteSignature("\(text) must be a 'SignedHeader' in the AWS Authorization.")
        }
    }

    private static func withoutDefaultPort(_ host: [UInt8]) -> [UInt8]? {
        for port in [":80", ":443"]
        where host.count > port.utf8.count && host.suffix(port.utf8.count).elementsEqual(port.utf8) {
            return Array(host.dropLast(port.utf8.count))
        }
        return nil
    }
}

/// The headers verification reads, found in one pass.
private struct RelevantHeaders {
    var authorization: String?
    var authorizationCount = 0
    var amzDate: [UInt8]?
    var date: [UInt8]?
    var host: [UInt8]?
    var hasSecurityToken = false
    var contentHash: [UInt8]?
    /// Names that the signature must cover because they are there.
    var mustBeSigned: [[UInt8]] = []

    private static let names = (
        authorization: Array("authorization".utf8), amzDate: Array("x-amz-date".utf8), date: Array("date".utf8),
        host: Array("host".utf8), token: Array("x-amz-security-token".utf8),
        contentHash: Array("x-amz-content-sha256".utf8),
        source: Array("x-amz-source-".utf8)
    )

    init(_ headers: [HeaderField]) {
        let names = Self.names
        for (name, value) in headers {
            // The length rules out nearly every header without looking at its bytes.
            switch name.utf8.count {
            case 4 where name.equalsIgnoringCase(names.host):
                host = Self.trimmed(value)
            case 4 where name.equalsIgnoringCase(names.date):
                date = Self.trimmed(value)
            case 10 where name.equalsIgnoringCase(names.amzDate):
                amzDate = Self.trimmed(value)
            case 13 where name.equalsIgnoringCase(names.authorization):
                authorization = value
                authorizationCount += 1
            case 20 where name.equalsIgnoringCase(names.token):
                hasSecurityToken = true
                mustBeSigned.append(names.token)
            case 20 where name.equalsIgnoringCase(names.contentHash):
                contentHash = Self.trimmed(value)
                mustBeSigned.append(names.contentHash)
            case 14... where name.utf8.count > names.source.count && Self.hasSourcePrefix(name, names.source):
                mustBeSigned.append(Array(name.lowercased().utf8))
            default:
                continue
            }
        }
    }

    private static func hasSourcePrefix(_ name: String, _ prefix: [UInt8]) -> Bool {
        String(decoding: name.utf8.prefix(prefix.count), as: UTF8.self).equalsIgnoringCase(prefix)
    }

    private static func trimmed(_ value: String) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(value.utf8.count)
        SigV4.appendTrimmed(value, to: &bytes)
        return bytes
    }
}

/// `AWS4-HMAC-SHA256 Credential=AK/YYYYMMDD/region/service/aws4_request, SignedHeaders=a;b;c, Signature=64 hex`.
private struct AuthorizationParts {
    var accessKeyID: String
    var scope: CredentialScope
    var terminator: String
    var signedHeaders: [[UInt8]]
    var signature: [UInt8]

    init(_ header: String) throws(AccessRefusal) {
        let bytes = Array(header.utf8)
        let start = bytes.firstIndex { $0 != UInt8(ascii: " ") } ?? bytes.count
        let end = bytes[start...].firstIndex { $0 == UInt8(ascii: " ") } ?? bytes.count
        guard bytes[start..<end].elementsEqual(SigV4.algorithm.utf8) else {
            throw .incompleteSignature("Authorization header requires the algorithm 'AWS4-HMAC-SHA256'.")
        }
        var credential: ArraySlice<UInt8>?
        var headers: ArraySlice<UInt8>?
        var signature: ArraySlice<UInt8>?
        for piece in bytes[end...].split(separator: UInt8(ascii: ",")) {
            let part = Self.trimmed(piece)
            guard let equals = part.firstIndex(of: UInt8(ascii: "=")) else {
                if part.isEmpty { continue }
                throw .incompleteSignature("Authorization header must consist of name=value parts.")
            }
            let value = part[(equals + 1)...]
            let name = part[..<equals]
            if name.elementsEqual("Credential".utf8), credential == nil {
                credential = value
            } else if name.elementsEqual("SignedHeaders".utf8), headers == nil {
                headers = value
            } else if name.elementsEqual("Signature".utf8), signature == nil {
                signature = value
            } else {
                throw .incompleteSignature("Authorization header has an unknown or repeated part.")
            }
        }
        guard let credential, !credential.isEmpty else { throw Self.missing("Credential") }
        guard let signature, !signature.isEmpty else { throw Self.missing("Signature") }
        guard let headers, !headers.isEmpty else { throw Self.missing("SignedHeaders") }

        let elements = credential.split(separator: UInt8(ascii: "/"), omittingEmptySubsequences: false)
        guard elements.count == 5 else {
            throw .incompleteSignature(
                "Credential must have exactly 5 slash-delimited elements, keyid/date/region/service/term.")
        }
        guard (16...128).contains(elements[0].count), elements[0].allSatisfy(Self.isKeyCharacter) else {
            // An id that no directory can hold: the answer of an unknown key, and no look-up for it.
            throw .unrecognizedClient
        }
        guard signature.count == 64, signature.allSatisfy(Self.isLowerHex) else {
            throw .incompleteSignature(
                "Authorization header requires 'Signature' to be 64 lower-case hexadecimal digits.")
        }
        accessKeyID = String(decoding: elements[0], as: UTF8.self)
        scope = CredentialScope(
            date: String(decoding: elements[1], as: UTF8.self),
            region: String(decoding: elements[2], as: UTF8.self),
            service: String(decoding: elements[3], as: UTF8.self))
        terminator = String(decoding: elements[4], as: UTF8.self)
        self.signature = Array(signature)
        signedHeaders = Self.sortedNames(headers)
    }

    private static func missing(_ part: String) -> AccessRefusal {
        .incompleteSignature("Authorization header requires '\(part)' parameter.")
    }

    private static func sortedNames(_ text: ArraySlice<UInt8>) -> [[UInt8]] {
        var names = text.split(separator: UInt8(ascii: ";")).map { name in
            name.map { (UInt8(ascii: "A")...UInt8(ascii: "Z")).contains($0) ? $0 | 0x20 : $0 }
        }
        for index in names.indices.dropFirst() where !names[index - 1].lexicographicallyPrecedes(names[index]) {
            names.sort { $0.lexicographicallyPrecedes($1) }
            var distinct: [[UInt8]] = []
            for name in names where distinct.last != name { distinct.append(name) }
            return distinct
        }
        return names
    }

    private static func trimmed(_ bytes: ArraySlice<UInt8>) -> ArraySlice<UInt8> {
        let space = UInt8(ascii: " ")
        return bytes.drop { $0 == space }.reversed().drop { $0 == space }.reversed()[...]
    }

    private static func isKeyCharacter(_ byte: UInt8) -> Bool {
        (UInt8(ascii: "A")...UInt8(ascii: "Z")).contains(byte) || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
    }

    private static func isLowerHex(_ byte: UInt8) -> Bool {
        (UInt8(ascii: "a")...UInt8(ascii: "f")).contains(byte) || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
    }
}

/// Signing keys of genuine requests; deriving one costs four HMACs. Bounded: a full cache is emptied.
/// Only verified signatures put a key in, so nobody without a secret can push others out.
private final class SigningKeyCache: Sendable {
    private struct Key: Hashable {
        var secret: SecretKey
        var scope: CredentialScope
    }

    private static let capacity = 4096
    private let keys = Mutex<[Key: SymmetricKey]>([:])

    func key(secret: SecretKey, scope: CredentialScope) -> SymmetricKey? {
        keys.withLock { $0[Key(secret: secret, scope: scope)] }
    }

    func insert(_ key: SymmetricKey, secret: SecretKey, scope: CredentialScope) {
        keys.withLock { keys in
            if keys.count >= Self.capacity { keys.removeAll(keepingCapacity: true) }
            keys[Key(secret: secret, scope: scope)] = key
        }
    }
}
