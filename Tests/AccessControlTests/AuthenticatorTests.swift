// Every row of `auth-and-accounts.md` §2.3 with its message of §3, in order.

import Crypto
import Segments
import Testing

@testable import AccessControl

private let account = AccountID(rawValue: 111_122_223_333)
private let secret = SecretKey("wJalrXUtnFEMI/K7MDENG+EXAMPLEKEY00000001")
private let keyID = "AKIAEXAMPLE000000001"
/// 2024-05-01T12:00:00Z.
private let noon: Micros = 1_714_564_800_000_000
private let mismatch =
    "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details."

private struct FixedDirectory: CredentialDirectory {
    var credentials: [String: Credential] = [:]
    var accounts: [AccountID: AccountState] = [account: .active]

    init(isActive: Bool = true, keyID: String = keyID) {
        credentials[keyID] = Credential(
            accessKeyID: keyID, secret: secret, principalARN: PrincipalARN.root(of: account), account: account,
            role: .admin, isActive: isActive)
    }

    func credential(for accessKeyID: String) async throws -> Credential? { credentials[accessKeyID] }
    func accountState(of account: AccountID) async throws -> AccountState? { accounts[account] }
}

/// A request signed at noon, to be changed by a test before it is verified.
private struct Attempt {
    var method = "POST"
    var target = "/TraceSegments"
    var headers: [HeaderField] = []
    var body: [UInt8] = Array("{}".utf8)

    init(
        keyID: String = keyID, secret: SecretKey = secret, region: String = "us-east-1", service: String = "xray",
        token: String? = nil, host: String = "xray.example.test", extra: [HeaderField] = [], now: Micros = noon
    ) {
        let signer = RequestSigner(
            accessKeyID: keyID, secret: secret, region: region, service: service, sessionToken: token)
        headers = [("Host", host)] + extra
        headers += signer.headers(target: target, host: host, headers: extra, body: body, now: now)
    }

    mutating func replace(_ name: String, _ change: (String) -> String?) {
        headers = headers.compactMap { header in
            guard header.name.lowercased() == name.lowercased() else { return header }
            return change(header.value).map { (header.name, $0) }
        }
    }

    func verify(
        _ settings: AuthenticationSettings = AuthenticationSettings(), directory: FixedDirectory = FixedDirectory(),
        now: Micros = noon, isSecure: Bool = false
    ) async throws -> Caller {
        let request = WireRequest(method: method, target: target, headers: headers, bodyHash: SHA256.hash(data: body))
        return try await Authenticator(settings: settings, directory: directory)
            .authenticate(request, now: now, isSecure: isSecure).caller
    }

    /// The refusal; nil when the request is accepted.
    func refusal(
        _ settings: AuthenticationSettings = AuthenticationSettings(), directory: FixedDirectory = FixedDirectory(),
        now: Micros = noon, isSecure: Bool = false
    ) async throws -> AccessRefusal? {
        do {
            _ = try await verify(settings, directory: directory, now: now, isSecure: isSecure)
            return nil
        } catch let refusal as AccessRefusal {
            return refusal
        }
    }
}

@Suite struct AuthenticatorTests {
    // If this fails, nobody gets in.
    @Test func `a signed request is its principal`() async throws {
        let caller = try await Attempt().verify()
        #expect(
            caller
                == Caller(
                    principalARN: "arn:aws:iam::111122223333:root", account: account, accessKeyID: keyID, role: .admin))
    }

    // If this fails, the second request of a client is verified with a wrong cached key.
    @Test func `the signing key of a verified request is reused, per day and region`() async throws {
        let authenticator = Authenticator(directory: FixedDirectory())
        for (region, now) in [
            ("us-east-1", noon), ("us-east-1", noon), ("eu-west-1", noon), ("us-east-1", noon + 86_400_000_000),
        ] {
            let attempt = Attempt(region: region, now: now)
            let request = WireRequest(
                method: "POST", target: attempt.target, headers: attempt.headers,
                bodyHash: SHA256.hash(data: attempt.body))
            #expect(try await authenticator.authenticate(request, now: now).caller.account == account)
        }
    }

    // Row 1. If this fails, SDKs without credentials get an error they do not know.
    @Test func `a request without Authorization, also a presigned one, lacks the token`() async throws {
        var attempt = Attempt()
        attempt.replace("Authorization") { _ in nil }
        #expect(try await attempt.refusal() == .missingAuthenticationToken)
        attempt.target = "/TraceSegments?X-Amz-Signature=00&X-Amz-Algorithm=AWS4-HMAC-SHA256"
        #expect(try await attempt.refusal() == .missingAuthenticationToken)
        #expect(AccessRefusal.missingAuthenticationToken.message == "Missing Authentication Token")
        #expect(AccessRefusal.missingAuthenticationToken.name == "MissingAuthenticationTokenException")
    }

    // Row 2. If this fails, a broken client is told to look for the fault in the wrong place.
    @Test(arguments: [
        ("Bearer xrt_abc", "Authorization header requires the algorithm 'AWS4-HMAC-SHA256'."),
        ("AWS AKIA:sig", "Authorization header requires the algorithm 'AWS4-HMAC-SHA256'."),
        ("AWS4-ECDSA-P256-SHA256 Credential=a", "Authorization header requires the algorithm 'AWS4-HMAC-SHA256'."),
        ("", "Authorization header requires the algorithm 'AWS4-HMAC-SHA256'."),
        ("AWS4-HMAC-SHA256", "Authorization header requires 'Credential' parameter."),
        ("AWS4-HMAC-SHA256 Credential=", "Authorization header requires 'Credential' parameter."),
        (
            "AWS4-HMAC-SHA256 Credential=a/b/c/d/e, SignedHeaders=host",
            "Authorization header requires 'Signature' parameter."
        ),
        (
            "AWS4-HMAC-SHA256 Credential=a/b/c/d/e, Signature=00",
            "Authorization header requires 'SignedHeaders' parameter."
        ),
        (
            "AWS4-HMAC-SHA256 Credential=a/b/c/d, SignedHeaders=host, Signature=00",
            "Credential must have exactly 5 slash-delimited elements, keyid/date/region/service/term."
        ),
        (
            "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE000000001/20240501/us-east-1/xray/aws4_request, SignedHeaders=host, Signature=XYZ",
            "Authorization header requires 'Signature' to be 64 lower-case hexadecimal digits."
        ),
        ("AWS4-HMAC-SHA256 nonsense", "Authorization header must consist of name=value parts."),
        ("AWS4-HMAC-SHA256 Signature=a, Signature=b", "Authorization header has an unknown or repeated part."),
    ])
    func `a malformed Authorization header names the part`(header: String, message: String) async throws {
        var attempt = Attempt()
        attempt.replace("Authorization") { _ in header }
        let refusal = try await attempt.refusal()
        #expect(refusal == .incompleteSignature(message))
        #expect(refusal?.name == "IncompleteSignatureException")
        #expect(refusal?.status == 403)
    }

    // Row 2. If this fails, a request without a date, or whose host an attacker may change, is accepted.
    @Test func `date and host must be there and signed`() async throws {
        var attempt = Attempt()
        attempt.replace("X-Amz-Date") { _ in nil }
        #expect(
            try await attempt.refusal()
                == .incompleteSignature(
                    "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header."))

        attempt = Attempt()
        attempt.replace("X-Amz-Date") { _ in "yesterday" }
        #expect(
            try await attempt.refusal()
                == .incompleteSignature("Date must be in ISO-8601 'basic format' (YYYYMMDD'T'HHMMSS'Z')."))

        for (name, shown) in [("host;", "'Host' or ':authority'"), (";x-amz-date", "'x-amz-date'")] {
            attempt = Attempt()
            attempt.replace("Authorization") { $0.replacing(name, with: "") }
            #expect(
                try await attempt.refusal()
                    == .incompleteSignature("\(shown) must be a 'SignedHeader' in the AWS Authorization."))
        }

        attempt = Attempt()
        attempt.headers.append(("x-amz-source-account", "111122223333"))
        #expect(
            try await attempt.refusal()
                == .incompleteSignature("'x-amz-source-account' must be a 'SignedHeader' in the AWS Authorization."))

        attempt = Attempt()
        attempt.headers.append(attempt.headers[2])
        #expect(
            try await attempt.refusal() == .incompleteSignature("A request must have exactly one Authorization header.")
        )
    }

    // If this fails, clients that sign `Date` instead of `X-Amz-Date` cannot sign in.
    @Test(arguments: ["Wed, 01 May 2024 12:00:00 GMT", "20240501T120000Z"])
    func `Date stands in for X-Amz-Date`(date: String) async throws {
        var attempt = Attempt()
        attempt.headers = [("Host", "h"), ("Date", date)]
        let names = ["date", "host"].map { Array($0.utf8) }
        let request = WireRequest(
            method: "POST", target: attempt.target, headers: attempt.headers, bodyHash: SHA256.hash(data: attempt.body))
        let canonical = SigV4.canonicalRequest(
            request, signedHeaders: names, payloadHash: SigV4.hex(SHA256.hash(data: attempt.body)))
        let scope = CredentialScope(date: "20240501", region: "us-east-1", service: "xray")
        let string = SigV4.stringToSign(date: Array("20240501T120000Z".utf8), scope: scope, canonicalRequest: canonical)
        let signature = SigV4.signature(of: string, key: SigV4.signingKey(secret: secret, scope: scope))
        // Without spaces after the commas, as some clients write it.
        attempt.headers.append(
            (
                "authorization",
                "AWS4-HMAC-SHA256 Credential=\(keyID)/\(scope.text),SignedHeaders=date;host,Signature=\(String(decoding: signature, as: UTF8.self))"
            ))
        #expect(try await attempt.refusal() == nil)
    }

    // Row 3. If this fails, a disabled key still works, or tells an attacker that it exists.
    @Test func `unknown, inactive and session keys are not recognized, whatever else is wrong`() async throws {
        let expected = AccessRefusal.unrecognizedClient
        #expect(try await Attempt(keyID: "AKIAUNKNOWN000000000").refusal() == expected)
        #expect(try await Attempt(keyID: "AKIAUNKNOWN000000000", service: "s3", now: 0).refusal() == expected)
        #expect(try await Attempt(keyID: "short").refusal() == expected)
        #expect(try await Attempt().refusal(directory: FixedDirectory(isActive: false)) == expected)
        #expect(try await Attempt(token: "TOKEN").refusal() == expected)
        let sessionKey = "ASIAEXAMPLE000000001"
        #expect(try await Attempt(keyID: sessionKey).refusal(directory: FixedDirectory(keyID: sessionKey)) == expected)
        #expect(expected.message == "The security token included in the request is invalid.")
        #expect(expected.name == "UnrecognizedClientException")
    }

    // Row 5. If this fails, a signature for another service or day is accepted.
    @Test func `date, terminator and service of the scope must fit`() async throws {
        let expected = AccessRefusal.invalidSignature("Credential should be scoped to correct service: 'xray'.")
        #expect(try await Attempt(service: "s3").refusal() == expected)
        var attempt = Attempt()
        attempt.replace("Authorization") { $0.replacing("/20240501/", with: "/20240502/") }
        #expect(try await attempt.refusal() == expected)
        attempt = Attempt()
        attempt.replace("Authorization") { $0.replacing("aws4_request", with: "aws5_request") }
        #expect(try await attempt.refusal() == expected)
        #expect(expected.name == "InvalidSignatureException")
    }

    // Row 6. If this fails, a server for one region takes signatures for another although it was told not to.
    @Test func `the region is only compared when it is asked for`() async throws {
        #expect(try await Attempt(region: "eu-west-1").refusal() == nil)
        var strict = AuthenticationSettings(acceptAnyRegion: false)
        #expect(
            try await Attempt(region: "eu-west-1").refusal(strict)
                == .invalidSignature("Credential should be scoped to a valid region."))
        strict.region = "eu-west-1"
        #expect(try await Attempt(region: "eu-west-1").refusal(strict) == nil)
    }

    // Row 7. If this fails, SDKs with a wrong clock do not correct it.
    @Test func `the clocks may differ by five minutes`() async throws {
        let minute: Micros = 60_000_000
        #expect(try await Attempt().refusal(now: noon + 5 * minute + 999_999) == nil)
        #expect(try await Attempt().refusal(now: noon - 5 * minute) == nil)
        #expect(
            try await Attempt().refusal(now: noon + 12 * minute)
                == .invalidSignature(
                    "Signature expired: 20240501T120000Z is now earlier than 20240501T120700Z (20240501T121200Z - 5 min.)"
                ))
        #expect(
            try await Attempt(now: noon + 19 * minute).refusal(now: noon + 12 * minute)
                == .invalidSignature(
                    "Signature not yet current: 20240501T121900Z is still later than 20240501T121700Z (20240501T121200Z + 5 min.)"
                ))
    }

    // Row 8. If this fails, a body can be exchanged under its signature.
    @Test func `a declared body hash must be the body's`() async throws {
        let emptyObject = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
        #expect(try await Attempt(extra: [("x-amz-content-sha256", emptyObject)]).refusal() == nil)
        for declared in [String(repeating: "0", count: 64), "UNSIGNED-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"] {
            #expect(
                try await Attempt(extra: [("x-amz-content-sha256", declared)]).refusal() == .invalidSignature(mismatch))
        }
    }

    // Row 8. If this fails, unsigned bodies are accepted without TLS.
    @Test func `an unsigned payload needs both the setting and TLS`() async throws {
        let body = Array("{}".utf8)
        let headers: [HeaderField] = [
            ("Host", "h"), ("X-Amz-Date", "20240501T120000Z"), ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),
        ]
        let names = ["host", "x-amz-content-sha256", "x-amz-date"]
        let request = WireRequest(
            method: "POST", target: "/TraceSegments", headers: headers, bodyHash: SHA256.hash(data: body))
        let scope = CredentialScope(date: "20240501", region: "us-east-1", service: "xray")
        let canonical = SigV4.canonicalRequest(
            request, signedHeaders: names.map { Array($0.utf8) }, payloadHash: Array("UNSIGNED-PAYLOAD".utf8))
        let string = SigV4.stringToSign(date: Array("20240501T120000Z".utf8), scope: scope, canonicalRequest: canonical)
        let signature = String(
            decoding: SigV4.signature(of: string, key: SigV4.signingKey(secret: secret, scope: scope)), as: UTF8.self)
        var attempt = Attempt()
        attempt.headers =
            headers + [
                (
                    "Authorization",
                    "AWS4-HMAC-SHA256 Credential=\(keyID)/\(scope.text), SignedHeaders=\(names.joined(separator: ";")), Signature=\(signature)"
                )
            ]
        let settings = AuthenticationSettings(allowUnsignedPayload: true)
        #expect(try await attempt.refusal(settings, isSecure: true) == nil)
        #expect(try await attempt.refusal(settings) == .invalidSignature(mismatch))
        #expect(try await attempt.refusal(isSecure: true) == .invalidSignature(mismatch))
    }

    // Row 9. If this fails, a changed request passes as genuine.
    @Test func `whatever the signature covers cannot be changed`() async throws {
        let expected = AccessRefusal.invalidSignature(mismatch)
        var attempt = Attempt()
        attempt.body = Array("[]".utf8)
        #expect(try await attempt.refusal() == expected)
        attempt = Attempt()
        attempt.target = "/account/210987654321/TraceSegments"
        #expect(try await attempt.refusal() == expected)
        attempt = Attempt()
        attempt.target += "?a=b"
        #expect(try await attempt.refusal() == expected)
        attempt = Attempt()
        attempt.method = "PUT"
        #expect(try await attempt.refusal() == expected)
        attempt = Attempt()
        attempt.replace("Host") { _ in "210987654321.xray.example.test" }
        #expect(try await attempt.refusal() == expected)
        attempt = Attempt(secret: SecretKey("another"))
        #expect(try await attempt.refusal() == expected)
        attempt = Attempt(extra: [("X-Amz-Meta", "a")])
        attempt.replace("X-Amz-Meta") { _ in "b" }
        #expect(try await attempt.refusal() == expected)
    }

    // If this fails, clients behind a proxy that adds the default port are refused.
    @Test(arguments: [":80", ":443"])
    func `a default port in Host that the client did not sign is tolerated`(port: String) async throws {
        var attempt = Attempt()
        attempt.replace("Host") { $0 + port }
        #expect(try await attempt.refusal() == nil)
        attempt.replace("Host") { _ in "xray.example.test:2000" }
        #expect(try await attempt.refusal() == .invalidSignature(mismatch))
        #expect(try await Attempt(host: "xray.example.test:443").refusal() == nil)
    }

    // If this fails, a load balancer that adds headers breaks every call.
    @Test func `unsigned headers added on the way are ignored`() async throws {
        var attempt = Attempt()
        attempt.headers += [("x-amz-cf-id", "abc"), ("X-Forwarded-For", "192.0.2.9"), ("x-amzn-trace-id", "Root=1")]
        #expect(try await attempt.refusal() == nil)
    }
}
