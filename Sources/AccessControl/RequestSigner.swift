// Signs requests with SigV4 as the SDKs do. Used by the load generator, by `beamline verify --endpoint` and by tests.
// In: a request and a time. Out: the headers to add. The rules are those of verification (`CanonicalRequest.swift`).

import Crypto
import Segments
import Synchronization

/// Signs requests of one access key. Safe to share between tasks; keeps the signing key of the current day.
public final class RequestSigner: Sendable {
    private let accessKeyID: String
    private let secret: SecretKey
    private let region: String
    private let service: String
    private let sessionToken: String?
    private let today = Mutex<(scope: CredentialScope, key: SymmetricKey)?>(nil)

    public init(
        accessKeyID: String, secret: SecretKey, region: String = "us-east-1", service: String = "xray",
        sessionToken: String? = nil
    ) {
        self.accessKeyID = accessKeyID
        self.secret = secret
        self.region = region
        self.service = service
        self.sessionToken = sessionToken
    }

    /// The headers to add to a request: `X-Amz-Date`, `X-Amz-Security-Token` when there is one, `Authorization`.
    /// - Parameters:
    ///   - target: path and query as they will be sent.
    ///   - host: the value of the `Host` header as it will be sent, with the port if it is not the default one.
    ///   - headers: further headers to sign, as they will be sent (`Content-Type`).
    ///   - bodyHash: SHA-256 of the bytes that will be sent.
    ///   - now: microseconds since 1970.
    public func headers(
        method: String = "POST", target: String, host: String, headers: [HeaderField] = [], bodyHash: SHA256Digest,
        now: Micros
    ) -> [HeaderField] {
        let date = UTCTime.basic(now / 1_000_000)
        var added: [HeaderField] = [("X-Amz-Date", date)]
        if let sessionToken { added.append(("X-Amz-Security-Token", sessionToken)) }
        let all = headers + [("Host", host)] + added
        let names = Set(all.map { Array($0.name.lowercased().utf8) }).sorted { $0.lexicographicallyPrecedes($1) }
        let request = WireRequest(method: method, target: target, headers: all, bodyHash: bodyHash)
        let canonical = SigV4.canonicalRequest(request, signedHeaders: names, payloadHash: SigV4.hex(bodyHash))
        let scope = CredentialScope(date: String(date.prefix(8)), region: region, service: service)
        let text = SigV4.stringToSign(date: Array(date.utf8), scope: scope, canonicalRequest: canonical)
        let signature = SigV4.signature(of: text, key: signingKey(scope))
        let signedHeaders = names.map { String(decoding: $0, as: UTF8.self) }.joined(separator: ";")
        added.append(
            (
                "Authorization",
                "\(SigV4.algorithm) Credential=\(accessKeyID)/\(scope.text), SignedHeaders=\(signedHeaders), "
                    + "Signature=\(String(decoding: signature, as: UTF8.self))"
            ))
        return added
    }

    /// As `headers(method:target:host:headers:bodyHash:now:)`, hashing the body first.
    public func headers(
        method: String = "POST", target: String, host: String, headers: [HeaderField] = [], body: [UInt8], now: Micros
    ) -> [HeaderField] {
        self.headers(
            method: method, target: target, host: host, headers: headers, bodyHash: SHA256.hash(data: body), now: now)
    }

    private func signingKey(_ scope: CredentialScope) -> SymmetricKey {
        today.withLock { today in
            if let today, today.scope == scope { return today.key }
            let key = SigV4.signingKey(secret: secret, scope: scope)
            today = (scope, key)
            return key
        }
    }
}
