// The two test vectors of `auth-and-accounts.md` §2.4 with every intermediate value, and the rules of the canonical
// request.

import Crypto
import Segments
import Testing

@testable import AccessControl

private let exampleKey = "AKIDEXAMPLE0000000001"
private let exampleSecret = SecretKey("wJalrXUtnFEMI/K7MDENG+EXAMPLEKEY00000001")
private let scope = CredentialScope(date: "20240501", region: "us-east-1", service: "xray")

private func text(_ bytes: [UInt8]) -> String { String(decoding: bytes, as: UTF8.self) }
private func hash(_ text: String) -> SHA256Digest { SHA256.hash(data: Array(text.utf8)) }

private struct Vector: Sendable, CustomTestStringConvertible {
    var path: String
    var body: String
    var bodyHash: String
    var token: String?
    var signedHeaders: String
    var canonicalHash: String
    var signature: String

    var testDescription: String { path }

    var headers: [HeaderField] {
        var headers: [HeaderField] = [
            ("Host", "xray.example.test"), ("Content-Type", "application/json"), ("X-Amz-Date", "20240501T120000Z"),
        ]
        if let token { headers.append(("X-Amz-Security-Token", token)) }
        return headers
    }

    static let all = [
        Vector(
            path: "/GetSamplingRules", body: "{}",
            bodyHash: "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
            signedHeaders: "content-type;host;x-amz-date",
            canonicalHash: "f6fefea5b523c48c86580aa3ca43ea81a99e54fef998e8dba3ac87baeadc09c7",
            signature: "dc477238d8946e3a6ab5bacd3b4ecc8755a0a2e7c466c5a5caa388d2463a3abb"),
        Vector(
            path: "/account/210987654321/TraceSegments", body: "{\"TraceSegmentDocuments\":[]}",
            bodyHash: "10120bee7dd4682e743b2dd5c5f6dd016eb96c56de5f1f3a1b39e03a2259d574", token: "SESSIONTOKEN",
            signedHeaders: "content-type;host;x-amz-date;x-amz-security-token",
            canonicalHash: "0d420d62b16f41f0349b6aabef2b477806861398d55a59f7ba637f179786d394",
            signature: "0b6537415c82264ba9cdf9851bd7864c10cda686e082f9e98a46456ab4f54168"),
    ]
}

@Suite struct SignatureVectorTests {
    // If this fails, no AWS SDK can sign in.
    @Test(arguments: Vector.all) fileprivate func `every intermediate value of the test vectors comes out`(
        _ vector: Vector
    ) {
        let bodyHash = hash(vector.body)
        #expect(text(SigV4.hex(bodyHash)) == vector.bodyHash)

        let request = WireRequest(method: "POST", target: vector.path, headers: vector.headers, bodyHash: bodyHash)
        let names = vector.signedHeaders.split(separator: ";").map { Array($0.utf8) }
        let canonical = SigV4.canonicalRequest(request, signedHeaders: names, payloadHash: SigV4.hex(bodyHash))
        #expect(text(SigV4.hex(SHA256.hash(data: canonical))) == vector.canonicalHash)

        let key = SigV4.signingKey(secret: exampleSecret, scope: scope)
        #expect(
            key.withUnsafeBytes { text(SigV4.hex($0)) }
                == "3614c3e6311666fe51adbdc4add0a52c6a0f05e086fef47db72d26784cc16007")

        let string = SigV4.stringToSign(date: Array("20240501T120000Z".utf8), scope: scope, canonicalRequest: canonical)
        #expect(text(SigV4.signature(of: string, key: key)) == vector.signature)
    }

    // If this fails, the canonical request differs from the specification's text and every signature is refused.
    @Test func `the canonical request of vector 1 is the text of the specification`() {
        let vector = Vector.all[0]
        let request = WireRequest(
            method: "POST", target: vector.path, headers: vector.headers, bodyHash: hash(vector.body))
        let names = ["content-type", "host", "x-amz-date"].map { Array($0.utf8) }
        let canonical = SigV4.canonicalRequest(
            request, signedHeaders: names, payloadHash: SigV4.hex(hash(vector.body)))
        #expect(
            text(canonical) == """
                POST
                /GetSamplingRules

                content-type:application/json
                host:xray.example.test
                x-amz-date:20240501T120000Z

                content-type;host;x-amz-date
                44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a
                """)
    }

    // If this fails, the load generator and `verify` cannot talk to the server.
    @Test(arguments: Vector.all) fileprivate func `the signer produces the signatures of the vectors`(_ vector: Vector)
    {
        let signer = RequestSigner(accessKeyID: exampleKey, secret: exampleSecret, sessionToken: vector.token)
        let added = signer.headers(
            target: vector.path, host: "xray.example.test", headers: [("Content-Type", "application/json")],
            body: Array(vector.body.utf8), now: 1_714_564_800_000_000)
        #expect(added.first { $0.name == "X-Amz-Date" }?.value == "20240501T120000Z")
        #expect(
            added.first { $0.name == "Authorization" }?.value
                == "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE0000000001/20240501/us-east-1/xray/aws4_request, "
                + "SignedHeaders=\(vector.signedHeaders), Signature=\(vector.signature)")
    }

    // If this fails, calls on tag paths or behind proxies with odd paths are refused.
    @Test(arguments: [
        ("", "/"), ("/", "/"), ("/Traces", "/Traces"), ("/Traces/", "/Traces/"), ("//a///b", "/a/b"),
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"), ("/../..", "/"), ("/a/b/..", "/a/"), ("/a/.", "/a/"),
        ("/tags/arn%3Aaws", "/tags/arn%253Aaws"),
        ("/a b~-_.", "/a%20b~-_."), ("/é", "/%C3%A9"),
    ])
    func `the path is normalized and encoded once more`(received: String, canonical: String) {
        var bytes: [UInt8] = []
        SigV4.appendCanonicalPath(received[...].utf8, to: &bytes)
        #expect(text(bytes) == canonical)
    }

    // If this fails, a presigned-like or traced call with a query cannot be verified.
    @Test(arguments: [
        ("b=2&a=1", "a=1&b=2"), ("a=2&a=1", "a=1&a=2"), ("a", "a="), ("a=%7e&A=%2f", "A=%2F&a=~"), ("a=b=c", "a=b%3Dc"),
        ("x=%zz", "x=%25zz"), ("k=+", "k=%2B"), ("&&a=1&", "a=1"),
    ])
    func `query pairs are decoded, encoded and sorted`(received: String, canonical: String) {
        let request = WireRequest(method: "GET", target: "/?" + received, headers: [], bodyHash: hash(""))
        let lines = text(SigV4.canonicalRequest(request, signedHeaders: [], payloadHash: [])).split(
            separator: "\n", omittingEmptySubsequences: false)
        #expect(lines[2] == canonical)
    }

    // If this fails, clients that send repeated or padded headers are refused.
    @Test func `header values are trimmed, collapsed and joined in order of arrival`() {
        let request = WireRequest(
            method: "POST", target: "/",
            headers: [("X-Amz-Meta", "  one   two "), ("Host", "h"), ("x-amz-meta", "three")], bodyHash: hash(""))
        let canonical = SigV4.canonicalRequest(
            request, signedHeaders: [Array("host".utf8), Array("x-amz-meta".utf8)], payloadHash: [])
        #expect(text(canonical).contains("\nhost:h\nx-amz-meta:one two,three\n\nhost;x-amz-meta\n"))
    }
}
