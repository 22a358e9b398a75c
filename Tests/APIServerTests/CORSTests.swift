// What a browser sees that runs a page of another origin (`api.md` §1.7).

import APIServer
import Segments
import Testing

private let page = "https://console.example.com"
private let otherPage = "http://localhost:3000"

private func allow(_ configuration: inout APIServiceConfiguration) {
    configuration.allowedOrigins = [page, otherPage]
}

private func preflight(_ target: String, origin: String?, more: String = "") -> String {
    "OPTIONS \(target) HTTP/1.1\r\nHost: h\r\n" + (origin.map { "Origin: \($0)\r\n" } ?? "")
        + "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization,x-amz-date\r\n\(more)\r\n"
}

private func corsHeaders(_ response: RawResponse) -> [String] {
    response.headers.keys.filter { $0.hasPrefix("access-control-") || $0 == "vary" }.sorted()
}

@Suite struct CORSTests {
    // If this fails, no page of another origin can use the API although the operator allowed it.
    @Test(arguments: ["/TraceSegments", "/account/210987654321/TraceSummaries", "/v1/traces", "/Groups/", "/"])
    func `a preflight of an allowed origin is answered without a signature`(target: String) async throws {
        try await withServer(allow) { server in
            for origin in [page, otherPage] {
                let answer = try await server.exchange(preflight(target, origin: origin))
                #expect(answer.status == 204 && answer.body.isEmpty)
                #expect(answer.headers["access-control-allow-origin"] == origin)
                #expect(answer.headers["vary"] == "Origin")
                #expect(answer.headers["access-control-allow-methods"] == "POST, OPTIONS")
                #expect(
                    answer.headers["access-control-allow-headers"]
                        == "authorization, content-type, content-encoding, x-amz-date, x-amz-security-token, x-amz-content-sha256, x-amz-user-agent, amz-sdk-invocation-id, amz-sdk-request, x-amzn-trace-id"
                )
                #expect(answer.headers["access-control-max-age"] == "600")
                #expect(corsHeaders(answer).count == 5, "\(answer.headers)")
                #expect(answer.headers["content-length"] == nil && answer.headers["content-type"] == nil)
                #expect(answer.headers["date"] != nil && answer.headers["x-amzn-requestid"]?.utf8.count == 36)
            }
            #expect(server.observations.list == ["Preflight 204", "Preflight 204"])
        }
    }

    // If this fails, a page that nobody allowed calls the API with keys it got hold of, or learns what is there.
    @Test(arguments: [
        nil, "null", "*", "https://evil.example.com", "https://console.example.com.evil.example",
        "https://CONSOLE.example.com", "http://console.example.com", "https://console.example.com:8443",
        "https://console.example.com/", "https://console.example.com, http://localhost:3000",
        "https://console.example.com\r\nOrigin: https://console.example.com",
    ])
    func `other origins are told nothing`(origin: String?) async throws {
        try await withServer(allow) { server in
            let answer = try await server.exchange(preflight("/TraceSegments", origin: origin))
            #expect(answer.status == 403 && answer.errorType == "MissingAuthenticationTokenException")
            #expect(corsHeaders(answer) == ["vary"])
            // A real request is served, because its signature is right, but the browser keeps the answer from the page.
            let served = try await server.exchange(
                server.signed(
                    "/TraceSegments", headers: origin.map { [("Origin", String($0.prefix { $0 != "\r\n" }))] } ?? []))
            #expect(served.status == 200)
            if origin?.contains("\r\n") != true { #expect(corsHeaders(served) == ["vary"]) }
        }
    }

    // If this fails, a page cannot read answers, request ids or the names of errors.
    @Test func `real answers and errors of every kind can be read by an allowed page`() async throws {
        try await withServer({
            allow(&$0)
            $0.limits.bodyBytes = 1_000
        }) { server in
            let origin = [("Origin", page)]
            let unsigned = "POST /TraceSegments HTTP/1.1\r\nHost: h\r\nOrigin: \(page)\r\n"
            let answers: [(RawResponse, Int)] = [
                (try await server.exchange(server.signed("/TraceSegments", headers: origin)), 200),
                (try await server.exchange(server.signed("/ServiceGraph", headers: origin)), 400),
                (try await server.exchange(server.signed("/nothing", headers: origin)), 404),
                (try await server.exchange(server.signed("/TraceSegments", headers: origin, method: "OPTIONS")), 404),
                (try await server.exchange(unsigned + "Content-Length: 2\r\n\r\n{}"), 403),
                (try await server.exchange(unsigned + "Content-Length: 1001\r\n\r\n"), 413),
                (try await server.exchange(unsigned + "Content-Encoding: br\r\nContent-Length: 2\r\n\r\n{}"), 400),
            ]
            for (answer, status) in answers {
                #expect(answer.status == status)
                #expect(answer.headers["access-control-allow-origin"] == page)
                #expect(answer.headers["vary"] == "Origin")
                #expect(
                    answer.headers["access-control-expose-headers"] == "x-amzn-RequestId, x-amzn-ErrorType, Date")
                #expect(corsHeaders(answer).count == 3, "\(answer.headers)")
            }
        }
    }

    // If this fails, CORS replaces the signature.
    @Test func `an allowed origin is no permission`() async throws {
        try await withServer(allow) { server in
            let answer = try await server.exchange(
                "POST /TraceSegments HTTP/1.1\r\nHost: h\r\nOrigin: \(page)\r\nContent-Length: 2\r\n\r\n{}")
            #expect(answer.status == 403 && answer.errorType == "MissingAuthenticationTokenException")
            let denied = try await server.exchange(
                server.signed("/ServiceGraph", headers: [("Origin", page)], key: TestDirectory.writeKey))
            #expect(denied.status == 403 && denied.errorType == "AccessDeniedException")
        }
    }

    // If this fails, every page of the world may call a server whose operator never asked for CORS.
    @Test func `without allowed origins there is no CORS`() async throws {
        try await withServer { server in
            let answer = try await server.exchange(preflight("/TraceSegments", origin: page))
            #expect(answer.status == 403 && answer.errorType == "MissingAuthenticationTokenException")
            #expect(corsHeaders(answer).isEmpty)
            let served = try await server.exchange(server.signed("/TraceSegments", headers: [("Origin", page)]))
            #expect(served.status == 200 && corsHeaders(served).isEmpty)
        }
    }

    // If this fails, the connection of a browser hangs or is closed after each preflight.
    @Test func `a request follows its preflight on the same connection`() async throws {
        try await withServer(allow) { server in
            let requests = Array(preflight("/TraceSegments", origin: page).utf8) + server.signed("/TraceSegments")
            let answers = try await onThread {
                let client = try server.connect()
                try client.send(requests)
                return [try client.response(), try client.response()]
            }
            #expect(answers.map(\.status) == [204, 200])
            #expect(answers[0].headers["connection"] == nil)
        }
    }
}
