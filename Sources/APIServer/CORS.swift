// Cross-origin resource sharing: which web pages may call the API from a browser (`api.md` §1.7). In: the origins that
// are allowed and the head of a request. Out: the headers of the answer, and whether the request is a preflight that is
// answered at once. It lets nobody in: a browser's requests are signed like any other.
//
// Source: Fetch standard, "HTTP-CORS protocol".

import NIOHTTP1

struct CORS: Sendable {
    /// What a browser compares, byte for byte: `https://console.example.com`.
    private let allowedOrigins: Set<String>

    init(allowedOrigins: [String]) { self.allowedOrigins = Set(allowedOrigins) }

    /// Without allowed origins nothing of this exists.
    private var isOff: Bool { allowedOrigins.isEmpty }

    /// The allowed origin that a request names.
    private func allowedOrigin(of head: HTTPRequestHead) -> String? {
        guard !isOff else { return nil }
        let named = head.headers["origin"]
        guard named.count == 1, allowedOrigins.contains(named[0]) else { return nil }
        return named[0]
    }

    /// A browser asks, before it sends a request, whether it may. It cannot sign that question.
    func isPreflight(_ head: HTTPRequestHead) -> Bool {
        head.method == .OPTIONS && !head.headers.contains(name: "authorization") && allowedOrigin(of: head) != nil
    }

    /// Headers of the answer to a preflight.
    func preflightHeaders(for head: HTTPRequestHead) -> [(name: String, value: String)] {
        originHeaders(for: head) + [
            ("Access-Control-Allow-Methods", "POST, OPTIONS"),
            (
                "Access-Control-Allow-Headers",
                "authorization, content-type, content-encoding, x-amz-date, x-amz-security-token, "
                    + "x-amz-content-sha256, x-amz-user-agent, amz-sdk-invocation-id, amz-sdk-request, x-amzn-trace-id"
            ),
            ("Access-Control-Max-Age", "600"),
        ]
    }

    /// Headers of any other answer, errors included: a page that may not read an error cannot say what is wrong.
    func headers(for head: HTTPRequestHead) -> [(name: String, value: String)] {
        guard allowedOrigin(of: head) != nil else { return originHeaders(for: head) }
        return originHeaders(for: head) + [
            ("Access-Control-Expose-Headers", "x-amzn-RequestId, x-amzn-ErrorType, Date")
        ]
    }

    /// `Vary` also when the origin is not allowed: a cache must not give that answer to one that is.
    private func originHeaders(for head: HTTPRequestHead) -> [(name: String, value: String)] {
        guard !isOff else { return [] }
        guard let origin = allowedOrigin(of: head) else { return [("Vary", "Origin")] }
        return [("Access-Control-Allow-Origin", origin), ("Vary", "Origin")]
    }
}
