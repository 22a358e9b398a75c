// What clients see of HTTP itself: headers, errors, order of checks, framing, sizes, encodings, time-outs (`api.md`
// §1).

import APIServer
import AccessControl
import CZlib
import Glibc
import Segments
import Testing

/// Compresses with zlib as gzip.
private func gzip(_ bytes: [UInt8]) -> [UInt8] {
    var stream = z_stream()
    guard czlib_deflate_init_gzip(&stream) == Z_OK else { return [] }
    defer { deflateEnd(&stream) }
    var input = bytes
    var output = [UInt8](repeating: 0, count: bytes.count + 1024)
    let count = output.count
    input.withUnsafeMutableBufferPointer { source in
        output.withUnsafeMutableBufferPointer { target in
            stream.next_in = source.baseAddress
            stream.avail_in = UInt32(source.count)
            stream.next_out = target.baseAddress
            stream.avail_out = UInt32(count)
            _ = deflate(&stream, Z_FINISH)
        }
    }
    return Array(output.prefix(count - Int(stream.avail_out)))
}

private let unsigned = "POST /TraceSegments HTTP/1.1\r\nHost: h\r\n"

@Suite struct ProtocolTests {
    // If this fails, an SDK cannot send anything.
    @Test func `a signed request is answered with the headers every SDK expects`() async throws {
        try await withServer { server in
            let before = SystemClock.now() / 1_000_000
            let response = try await server.exchange(server.signed("/TraceSegments"))
            #expect(response.status == 200)
            #expect(response.body == "{\"length\":2,\"account\":\"111122223333\"}")
            #expect(response.headers["content-type"] == "application/json")
            #expect(response.headers["content-length"] == "\(response.body.utf8.count)")
            let date = try #require(response.headers["date"].flatMap { UTCTime.parseHTTPDate($0.utf8) })
            #expect((before...SystemClock.now() / 1_000_000).contains(date))
            let id = Array(try #require(response.headers["x-amzn-requestid"]))
            #expect(id.count == 36 && id[14] == "4" && "89ab".contains(id[19]))
            #expect(response.errorType == nil)
            #expect(server.observations.list == ["PutTraceSegments 200"])
        }
    }

    // If this fails, one SDK or another cannot find the error's name or text.
    @Test func `an error has all three spellings and its name in the header`() async throws {
        try await withServer { server in
            let response = try await server.exchange(server.signed("/ServiceGraph"))
            #expect(response.status == 400)
            #expect(
                response.body
                    == "{\"__type\":\"InvalidRequestException\",\"message\":\"Group not found.\",\"Message\":\"Group not found.\"}"
            )
            #expect(response.errorType == "InvalidRequestException")
            #expect(response.headers["date"] != nil && response.headers["x-amzn-requestid"] != nil)
            #expect(response.headers["content-length"] == "\(response.body.utf8.count)")
            let failure = try await server.exchange(server.signed("/TraceGraph"))
            #expect(failure.status == 500 && failure.errorType == "InternalFailure")
        }
    }

    // If this fails, readers get answers without knowing how complete they are.
    @Test func `an operation's own headers are sent and the body reaches it unchanged`() async throws {
        try await withServer { server in
            server.gate.open()
            let response = try await server.exchange(
                server.signed("/TraceSummaries", body: Array("{\"a\":\"é\"}".utf8)))
            #expect(response.body == "{\"a\":\"é\"}")
            #expect(response.headers["x-beamline-complete-to"] == "2024-05-01T12:00:00Z")
        }
    }

    // If this fails, one character of a path decides whether a client works.
    @Test
    func `one trailing slash is ignored, case and two slashes are not, other paths are unknown after authentication`()
        async throws
    {
        try await withServer { server in
            #expect(try await server.exchange(server.signed("/TraceSegments/")).status == 200)
            for target in [
                "/TraceSegments//", "/tracesegments", "/", "/nothing", "/account/111122223333", "/v1/traces",
            ] {
                let response = try await server.exchange(server.signed(target))
                #expect(response.status == 404 && response.errorType == "UnknownOperationException", "\(target)")
            }
            #expect(try await server.exchange(server.signed("/TraceSegments", method: "PUT")).status == 404)
            let unsigned = try await server.exchange("POST /nothing HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
            #expect(unsigned.status == 403 && unsigned.errorType == "MissingAuthenticationTokenException")
            #expect(server.observations.list.contains("Unknown 404"))
        }
    }

    // If this fails, requests without or with a wrong signature are served.
    @Test func `unsigned, wrongly signed and unknown callers are refused`() async throws {
        try await withServer { server in
            let none = try await server.exchange(unsigned + "Content-Length: 2\r\n\r\n{}")
            #expect(none.status == 403 && none.errorType == "MissingAuthenticationTokenException")
            var tampered = server.signed("/TraceSegments", body: Array("{}".utf8))
            tampered[tampered.count - 1] = UInt8(ascii: "]")
            let wrong = try await server.exchange(tampered)
            #expect(wrong.status == 403 && wrong.errorType == "InvalidSignatureException")
            let unknown = try await server.exchange(server.signed("/TraceSegments", key: AccessKey.generate()))
            #expect(unknown.status == 403 && unknown.errorType == "UnrecognizedClientException")
        }
    }

    // If this fails, an outage of the directory lets requests through or shows as a bug.
    @Test func `a directory that does not answer means 503`() async throws {
        try await withServer { server in
            let response = try await server.exchange(server.signed("/TraceSegments", key: TestDirectory.brokenKey))
            #expect(response.status == 503 && response.errorType == "ServiceUnavailable")
            #expect(response.headers["retry-after"] == "1")
        }
    }

    // If this fails, a writer's key reads traces, or accounts are not walls.
    @Test func `the role and the target account decide`() async throws {
        try await withServer { server in
            let denied = try await server.exchange(server.signed("/ServiceGraph", key: TestDirectory.writeKey))
            #expect(denied.status == 403 && denied.errorType == "AccessDeniedException")
            #expect(denied.body.contains("because no identity-based policy allows the xray:GetServiceGraph action"))

            let own = try await server.exchange(server.signed("/account/111122223333/TraceSegments"))
            #expect(own.status == 200 && own.body.contains("111122223333"))
            let ownHost = try await server.exchange(
                server.signed("/TraceSegments", host: "111122223333.xray.example.test"))
            #expect(ownHost.status == 200)

            let other = try await server.exchange(server.signed("/account/210987654321/TraceSegments"))
            #expect(other.status == 403 && other.body.contains("no resource-based policy allows"))
            let otherHost = try await server.exchange(
                server.signed("/TraceSegments", host: "210987654321.xray.example.test"))
            #expect(otherHost.status == 403 && otherHost.body.contains("no resource-based policy allows"))
            let unknown = try await server.exchange(server.signed("/account/000000000001/TraceSegments"))
            #expect(unknown.status == 403 && unknown.body.contains("Account 000000000001 is not available"))

            for target in ["/account/12/TraceSegments", "/account/", "/account/1111222233334/TraceSegments"] {
                let malformed = try await server.exchange(server.signed(target))
                #expect(malformed.status == 400 && malformed.errorType == "InvalidRequestException", "\(target)")
            }
            let contradiction = try await server.exchange(
                server.signed("/account/111122223333/TraceSegments", host: "210987654321.xray.example.test"))
            #expect(contradiction.status == 400 && contradiction.errorType == "InvalidRequestException")
        }
    }

    // If this fails, orchestrators restart healthy processes or send traffic to unready ones.
    @Test func `health and readiness need no signature`() async throws {
        try await withServer(isReady: { false }) { server in
            #expect(try await server.exchange("GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n").status == 200)
            #expect(try await server.exchange("GET /healthz HTTP/1.0\r\n\r\n").status == 200)
            let unready = try await server.exchange("GET /readyz HTTP/1.1\r\nHost: h\r\n\r\n")
            #expect(unready.status == 503 && unready.headers["retry-after"] == "1")
            try await onThread {
                let client = try server.connect()
                try client.send("HEAD /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
                let head = try client.response(hasBody: false)
                #expect(head.status == 200 && head.headers["content-length"] == "2")
                #expect(try client.isClosed())
            }
        }
        try await withServer { server in
            let ready = try await server.exchange("GET /readyz HTTP/1.1\r\nHost: h\r\n\r\n")
            #expect(ready.status == 200)
        }
    }

    // MARK: - Encodings

    // If this fails, OpenTelemetry and daemon clients that compress cannot send.
    @Test func `gzip bodies are signed compressed and handled decompressed`() async throws {
        try await withServer { server in
            let body = gzip([UInt8](repeating: UInt8(ascii: " "), count: 100_000) + Array("{}".utf8))
            for encoding in ["gzip", "GZIP", "identity"] {
                let response = try await server.exchange(
                    server.signed("/TraceSegments", body: body, headers: [("Content-Encoding", encoding)]))
                #expect(response.status == 200)
                #expect(response.body.contains("\"length\":\(encoding == "identity" ? body.count : 100_002),"))
            }
            let members = try await server.exchange(
                server.signed(
                    "/TraceSegments", body: gzip([1, 2]) + gzip([]) + gzip([3]), headers: [("Content-Encoding", "gzip")]
                ))
            #expect(members.body.contains("\"length\":3,"))
            let empty = try await server.exchange(
                server.signed("/TraceSegments", body: [], headers: [("Content-Encoding", "gzip")]))
            #expect(empty.body.contains("\"length\":0,"))
        }
    }

    // If this fails, bad compressed bodies crash the server, or 8 MiB of gzip fill the memory.
    @Test func `broken gzip, bombs and other encodings are refused`() async throws {
        try await withServer { server in
            let good = gzip(Array(String(repeating: "segment ", count: 1000).utf8))
            var flipped = good
            flipped[good.count / 2] ^= 0xFF
            for body in [Array(good.dropLast(4)), Array("{}".utf8), flipped, good + [0], [0x1f]] {
                let response = try await server.exchange(
                    server.signed("/TraceSegments", body: body, headers: [("Content-Encoding", "gzip")]))
                #expect(response.status == 400 && response.errorType == "MalformedHttpRequestException")
            }
            let limit = 16 << 20
            let fits = gzip([UInt8](repeating: 0, count: limit))
            let atLimit = try await server.exchange(
                server.signed("/TraceSegments", body: fits, headers: [("Content-Encoding", "gzip")]))
            #expect(atLimit.body.contains("\"length\":\(limit),"))
            for bomb in [gzip([UInt8](repeating: 0, count: limit + 1)), gzip([UInt8](repeating: 0, count: 64 << 20))] {
                let response = try await server.exchange(
                    server.signed("/TraceSegments", body: bomb, headers: [("Content-Encoding", "gzip")]))
                #expect(response.status == 413 && response.errorType == "RequestEntityTooLargeException")
            }
            for encoding in ["br", "deflate", "zstd", "gzip, gzip"] {
                let response = try await server.exchange(
                    server.signed("/TraceSegments", body: good, headers: [("Content-Encoding", encoding)]))
                #expect(response.status == 400 && response.errorType == "MalformedHttpRequestException")
            }
        }
    }

    // MARK: - Sizes

    // If this fails, the largest allowed call is refused, or a larger one is read into memory.
    @Test func `a body of 8 MiB is accepted, one byte more is refused before it is read`() async throws {
        try await withServer { server in
            let limit = 8 << 20
            let largest = try await server.exchange(
                server.signed("/TraceSegments", body: [UInt8](repeating: 32, count: limit)))
            #expect(largest.status == 200 && largest.body.contains("\"length\":\(limit),"))
            try await onThread {
                // Only the head is sent: the declared length is enough.
                let client = try server.connect()
                try client.send(unsigned + "Content-Length: \(limit + 1)\r\n\r\n")
                let response = try client.response()
                #expect(response.status == 413 && response.errorType == "RequestEntityTooLargeException")
                #expect(response.headers["connection"] == "close")
                // A client that sends the body all the same must still see the answer, and then the end.
                try? client.send([UInt8](repeating: 32, count: 1 << 20))
                #expect(try client.isClosed())
            }
        }
    }

    // If this fails, a chunked body without a declared length has no limit.
    @Test func `a chunked body is limited while it arrives`() async throws {
        try await withServer {
            $0.limits.bodyBytes = 1000
        } _: { server in
            try await onThread {
                let client = try server.connect()
                try client.send(unsigned + "Transfer-Encoding: chunked\r\n\r\n")
                let chunk = "64\r\n" + String(repeating: "x", count: 100) + "\r\n"
                for _ in 0..<11 { try client.send(chunk) }
                #expect(try client.response().status == 413)
            }
        }
    }

    // If this fails, a head of any size fills the memory.
    @Test func `heads are limited in size and number`() async throws {
        try await withServer { server in
            let long = String(repeating: "a", count: 20_000)
            let heads = [
                "POST /\(long) HTTP/1.1\r\nHost: h\r\n\r\n",
                unsigned + "X-Long: \(long)\r\n\r\n",
                unsigned + (0..<200).map { "X-\($0): 1\r\n" }.joined() + "\r\n",
                unsigned + (0..<100).map { "X-\($0): \(long.prefix(1000))\r\n" }.joined() + "\r\n",
            ]
            for head in heads {
                let response = try await server.exchange(head)
                #expect(response.status == 400 && response.errorType == "MalformedHttpRequestException")
            }
        }
    }

    // If this fails, many large uploads at once make the process grow without limit.
    @Test func `bodies beyond the bytes in flight are answered 503, and later ones are served again`() async throws {
        try await withServer {
            $0.limits.bytesInFlight = 100_000
        } _: { server in
            try await onThread {
                let holder = try server.connect()
                try holder.send(unsigned + "Content-Length: 100001\r\n\r\n" + String(repeating: "x", count: 90_000))
                try #require(waitUntil { server.bytesInFlight() >= 90_000 })
                let refusedClient = try server.connect()
                try refusedClient.send(server.signed("/TraceSegments", body: [UInt8](repeating: 32, count: 20_000)))
                let refused = try refusedClient.response()
                #expect(refused.status == 503)
                #expect(refused.errorType == "ServiceUnavailable")
                #expect(refused.headers["retry-after"] == "1")
                let small = try server.connect()
                try small.send(server.signed("/TraceSegments"))
                #expect(try small.response().status == 200)
                holder.shutDownOutput()
                #expect(try holder.response().status == 400)
                try #require(waitUntil { server.bytesInFlight() == 0 })
                let client = try server.connect()
                try client.send(server.signed("/TraceSegments", body: [UInt8](repeating: 32, count: 90_000)))
                #expect(try client.response().status == 200)
            }
        }
    }

    // MARK: - Framing

    // If this fails, malformed HTTP gets an answer SDKs cannot read, or none.
    @Test(arguments: [
        "nonsense\r\n\r\n",
        "POST /TraceSegments HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
        "POST /TraceSegments HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: 2\r\n\r\n{}",
        "POST /TraceSegments HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
        "POST /TraceSegments HTTP/1.1\r\nHost: h\r\nContent-Length: two\r\n\r\n{}",
        "POST /TraceSegments HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        "POST /TraceSegments HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /TraceSegments HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "POST /TraceSegments HTTP/1.1\r\nHost: h\r\n: empty\r\n\r\n",
        "POST /TraceSegments HTTP/3.0\r\nHost: h\r\n\r\n",
        "\u{0}\u{1}\u{2}\u{3}\r\n\r\n",
    ])
    func `what is not valid HTTP is refused in the API's format`(request: String) async throws {
        try await withServer { server in
            try await onThread {
                let client = try server.connect()
                try client.send(request)
                let response = try client.response()
                #expect(response.status == 400)
                #expect(response.errorType == "MalformedHttpRequestException")
                #expect(response.headers["x-amzn-requestid"] != nil && response.headers["connection"] == "close")
                #expect(try client.isClosed())
            }
        }
    }

    // If this fails, a client whose body is shorter than declared waits for ever, or its half body is taken as whole.
    @Test func `a body shorter than declared is refused when the client ends, a longer one after its request`()
        async throws
    {
        try await withServer { server in
            try await onThread {
                let short = try server.connect()
                try short.send(unsigned + "Content-Length: 10\r\n\r\n{}")
                short.shutDownOutput()
                let refused = try short.response()
                #expect(refused.status == 400 && refused.errorType == "MalformedHttpRequestException")

                let long = try server.connect()
                try long.send(server.signed("/TraceSegments") + Array("superfluous\r\n\r\n".utf8))
                #expect(try long.response().status == 200)
                #expect(try long.response().status == 400)
                #expect(try long.isClosed())
            }
        }
    }

    // If this fails, clients that stream their body cannot send.
    @Test func `chunked bodies are de-chunked before the signature is verified`() async throws {
        try await withServer { server in
            let body = Array("{\"TraceSegmentDocuments\":[]}".utf8)
            let text = String(decoding: body, as: UTF8.self)
            let chunks = text.map { "1;ext=1\r\n\($0)\r\n" }.joined() + "0\r\nTrailer: x\r\n\r\n"
            let response = try await server.exchange(
                server.signedHead("/TraceSegments", body: body) + "Transfer-Encoding: chunked\r\n\r\n" + chunks)
            #expect(response.status == 200 && response.body.contains("\"length\":28,"))
        }
    }

    // If this fails, clients that wait for 100 Continue hang, or send what will be refused.
    @Test func `a client that expects 100-continue gets it, or the refusal instead`() async throws {
        try await withServer { server in
            try await onThread {
                let client = try server.connect()
                let body = Array("{}".utf8)
                try client.send(
                    server.signedHead("/TraceSegments", body: body)
                        + "Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
                #expect(try client.response().status == 100)
                try client.send(body)
                #expect(try client.response().status == 200)

                let tooLarge = try server.connect()
                try tooLarge.send(unsigned + "Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n")
                #expect(try tooLarge.response().status == 413)
            }
        }
    }

    // If this fails, every call needs a new connection, or answers get mixed up.
    @Test func `connections are kept, and pipelined requests are answered in order`() async throws {
        try await withServer { server in
            try await onThread {
                let client = try server.connect()
                for length in [2, 100, 70_000] {
                    try client.send(server.signed("/TraceSegments", body: [UInt8](repeating: 32, count: length)))
                    let response = try client.response()
                    #expect(response.body.contains("\"length\":\(length),"))
                    #expect(response.headers["connection"] == nil)
                }
                let lengths = Array(1...200)
                let requests = lengths.flatMap {
                    server.signed("/TraceSegments", body: [UInt8](repeating: 32, count: $0))
                }
                try client.send(requests)
                for length in lengths { #expect(try client.response().body.contains("\"length\":\(length),")) }

                try client.send(server.signed("/TraceSegments", headers: [("Connection", "close")]))
                let last = try client.response()
                #expect(last.status == 200 && last.headers["connection"] == "close")
                #expect(try client.isClosed())
            }
        }
    }

    // If this fails, Java clients that offer HTTP/2 in the clear get no answer.
    @Test func `an offer to upgrade is answered as a plain request`() async throws {
        try await withServer { server in
            let response = try await server.exchange(
                server.signed(
                    "/TraceSegments",
                    headers: [
                        ("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABk"),
                    ]))
            #expect(response.status == 200)
        }
    }

    // If this fails, clients configured with a proxy cannot reach the server.
    @Test func `the absolute form of the target is understood`() async throws {
        try await withServer { server in
            let head = server.signedHead("/TraceSegments").replacing(
                "POST /", with: "POST http://127.0.0.1:\(server.port)/", maxReplacements: 1)
            let response = try await server.exchange(head + "Content-Length: 2\r\n\r\n{}")
            #expect(response.status == 200)
        }
    }

    // MARK: - Time

    // If this fails, slow senders hold connections and memory for ever.
    @Test(arguments: [
        "POST /TraceSeg", unsigned + "Content-Length: 10\r\n\r\n{",
        unsigned + "Transfer-Encoding: chunked\r\n\r\n5\r\n",
    ])
    func `a request that does not arrive in time is answered 408`(sent: String) async throws {
        try await withServer {
            $0.timeouts.requestSeconds = 0.2
        } _: { server in
            try await onThread {
                let client = try server.connect()
                try client.send(sent)
                let response = try client.response()
                #expect(response.status == 408 && response.errorType == "RequestTimeoutException")
                #expect(try client.isClosed())
            }
        }
    }

    // If this fails, the unfinished second one of two pipelined requests holds its connection for ever.
    @Test func `the time of a pipelined request counts as well`() async throws {
        try await withServer {
            $0.timeouts.requestSeconds = 0.2
        } _: { server in
            try await onThread {
                let client = try server.connect()
                try client.send(
                    server.signed("/TraceSegments") + Array((unsigned + "Content-Length: 10\r\n\r\n{").utf8))
                #expect(try client.response().status == 200)
                #expect(try client.response().status == 408)
                #expect(try client.isClosed())
            }
        }
    }

    // If this fails, a byte now and then keeps a request alive beyond its time.
    @Test func `the time of a request counts from its first byte, however it trickles`() async throws {
        try await withServer {
            $0.timeouts.requestSeconds = 0.3
        } _: { server in
            try await onThread {
                let client = try server.connect()
                try client.send(unsigned + "Content-Length: 1000000\r\n\r\n")
                let trickle = Thread { while (try? client.send("x")) != nil {} }
                defer { trickle.join() }
                #expect(try client.response().status == 408)
            }
        }
    }

    // If this fails, idle connections pile up.
    @Test func `an idle connection is closed without an answer, before and after a request`() async throws {
        try await withServer {
            $0.timeouts.idleSeconds = 0.2
        } _: { server in
            try await onThread {
                #expect(try server.connect().isClosed())
                let client = try server.connect()
                try client.send(server.signed("/TraceSegments"))
                #expect(try client.response().status == 200)
                #expect(try client.isClosed())
            }
        }
    }

    // If this fails, a client that never reads its answer keeps it in memory.
    @Test func `a client that does not take its answer is cut off`() async throws {
        try await withServer {
            $0.timeouts.responseSeconds = 0.2
        } _: { server in
            try await onThread {
                let client = try server.connect()
                try client.send(server.signed("/Traces"))
                // Nothing is read; the operation has been answered when it is observed, and then the connection is cut.
                #expect(throws: RawClientError.self) {
                    while true { try client.send(server.signed("/Traces")) }
                }
            }
        }
    }

    // If this fails, slow clients starve the others.
    @Test func `others are served at once while many senders are slow`() async throws {
        try await withServer { server in
            try await onThread {
                let slow = try (0..<300).map { index in
                    let client = try server.connect()
                    try client.send(index % 2 == 0 ? unsigned + "Content-Length: 50000\r\n\r\n{" : "POST /Trace")
                    return client
                }
                for _ in 0..<50 {
                    let client = try server.connect()
                    try client.send(server.signed("/TraceSegments", body: [UInt8](repeating: 32, count: 25_000)))
                    #expect(try client.response(seconds: 10).status == 200)
                }
                for client in slow { try client.send("x") }
            }
        }
    }

    // MARK: - Limits and shutdown

    // If this fails, one account can take the whole server, or SDKs do not back off.
    @Test func `an account beyond its rate is throttled, other classes are not`() async throws {
        try await withServer {
            $0.rateLimits[.ingest] = .init(rate: 0.001, burst: 7)
            $0.rateLimits[.query] = .init(rate: 0, burst: 0)
        } _: { server in
            server.gate.open()
            // Each call costs three documents: 7, 4, 1 are left before the calls, then none.
            for _ in 0..<3 { #expect(try await server.exchange(server.signed("/TraceSegments")).status == 200) }
            let throttled = try await server.exchange(server.signed("/TraceSegments"))
            #expect(throttled.status == 429 && throttled.errorType == "ThrottledException")
            #expect((throttled.headers["retry-after"].flatMap(Int.init) ?? 0) > 1)
            #expect(try await server.exchange(server.signed("/TraceSummaries")).status == 200)
        }
    }

    // If this fails, a restart loses answers to requests that were already running.
    @Test func `shutdown finishes what runs, closes what is idle and accepts nothing new`() async throws {
        try await withServer { server in
            let idle = try server.connect()
            let running = try server.connect()
            try await onThread { try running.send(server.signed("/TraceSummaries")) }
            await server.gate.arrived(1)
            await server.shutDown()
            #expect(try await onThread { try idle.isClosed() })
            server.gate.open()
            let response = try await onThread { try running.response() }
            #expect(response.status == 200 && response.headers["connection"] == "close")
            #expect(try await onThread { try running.isClosed() })
            // The port is free again: whoever answers there now, and other tests may, is not this server.
            let served = server.observations.list
            if let other = try? server.connect() {
                _ = try? await onThread {
                    try other.send(Array("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".utf8))
                    return try other.response()
                }
            }
            #expect(server.observations.list == served)
        }
    }

    // If this fails, one unfinished upload or stuck handler holds up the end of the process.
    @Test func `shutdown does not wait longer than its drain time`() async throws {
        try await withServer {
            $0.timeouts.drainSeconds = 0.2
        } _: { server in
            let unfinished = try server.connect()
            let stuck = try server.connect()
            try await onThread {
                try unfinished.send(unsigned + "Content-Length: 10\r\n\r\n{")
                try stuck.send(server.signed("/TraceSummaries"))
            }
            await server.gate.arrived(1)
            // One byte of the upload and the two of the running request are there.
            try #require(await eventually { server.bytesInFlight() == 3 })
            await server.shutDown()
            let response = try await onThread { try unfinished.response() }
            #expect(response.status == 503 && response.errorType == "ServiceUnavailable")
            #expect(try await onThread { try stuck.isClosed() })
        }
    }

    // If this fails, a port that is taken shows as a bare error number.
    @Test func `a port that is taken is reported with a sentence`() async throws {
        try await withServer { server in
            let port = server.port
            await #expect {
                try await withServer {
                    $0.port = port
                } _: { _ in
                }
            } throws: { "\($0)".contains("cannot serve the API on 127.0.0.1:\(port)") }
        }
    }
}
