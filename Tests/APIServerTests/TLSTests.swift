// TLS and HTTP/2 as clients see them: curl as a real client, a client of frames for everything else. What HTTP/1.1 and the
// operations do is in `ProtocolTests.swift`.

import APIServer
import AccessControl
import Foundation
import NIOCore
import NIOHPACK
import NIOHTTP2
import Synchronization
import Testing

private func withTLSServer<Result: Sendable>(
    _ change: (inout APIServiceConfiguration) -> Void = { _ in },
    _ use: @escaping @Sendable (TestServer, TestCertificate) async throws -> Result
) async throws -> Result {
    try await withCertificate { certificate in
        try await withServer {
            $0.tls = certificate.files
            change(&$0)
        } _: { server in
            try await use(server, certificate)
        }
    }
}

// One after the other: together their clients and servers would keep each other and other suites waiting.
@Suite(.serialized) struct TLSTests {
    // MARK: - Real clients

    // If this fails, SDKs cannot use https, or fall back to HTTP/1.1 without need.
    @Test(arguments: [("--http1.1", "1.1", "Host"), ("--http2", "2", ":authority")])
    func `curl is answered over TLS with the version it asks for`(flag: String, version: String, host: String)
        async throws
    {
        try await withTLSServer { server, certificate in
            let body = certificate.folder + "/body"
            for length in [0, 2, 100_000, 8 << 20] {
                let bytes = [UInt8](repeating: 32, count: length)
                try certificate.write(String(decoding: bytes, as: UTF8.self), to: body)
                let headers = RequestSigner(
                    accessKeyID: TestDirectory.adminKey.id, secret: TestDirectory.adminKey.secret
                ).headers(
                    target: "/TraceSegments", host: "127.0.0.1:\(server.port)", body: bytes, now: SystemClock.now())
                let output = try await runCommand(
                    ["curl", "-sS", flag, "--cacert", certificate.files.certificatePath, "--max-time", "20"]
                        + headers.flatMap { ["-H", "\($0.name): \($0.value)"] }
                        + [
                            "-H", "Content-Type:", "--data-binary", "@" + body, "-w", " %{http_version} %{http_code}",
                            "https://127.0.0.1:\(server.port)/TraceSegments",
                        ])
                #expect(output == "{\"length\":\(length),\"account\":\"111122223333\"} \(version) 200")
            }
        }
    }

    // If this fails, uploads that are too large show in clients as a broken connection instead of the reason.
    @Test(arguments: ["--http1.1", "--http2"])
    func `curl gets the refusal of a body that is too large`(flag: String) async throws {
        try await withTLSServer { server, certificate in
            let body = certificate.folder + "/body"
            try certificate.write(String(repeating: " ", count: 8 << 20 + 1), to: body)
            let output = try await runCommand([
                "curl", "-sS", flag, "--cacert", certificate.files.certificatePath, "--max-time", "20", "-o",
                "/dev/null",
                "--data-binary", "@" + body, "-w", "%{http_code}", "https://127.0.0.1:\(server.port)/TraceSegments",
            ])
            #expect(output == "413")
        }
    }

    // MARK: - HTTP/2

    // If this fails, clients over HTTP/2 get errors they cannot read, or are not authenticated.
    @Test func `requests, errors and authentication are the same as on HTTP 1`() async throws {
        try await withTLSServer { server, certificate in
            let client = try await HTTP2Client.connect(to: server, trusting: certificate)
            let answer = try await client.exchange(1)
            #expect(answer.status == 200)
            #expect(answer.body == "{\"length\":2,\"account\":\"111122223333\"}")
            #expect(answer.headers["content-type"] == "application/json" && answer.headers["date"] != nil)
            #expect(answer.headers["content-length"] == "\(answer.bodyBytes)")
            #expect(answer.headers["x-amzn-requestid"]?.utf8.count == 36)
            #expect(answer.headers["connection"] == nil)

            let failed = try await client.exchange(3, "/ServiceGraph")
            #expect(failed.status == 400 && failed.errorType == "InvalidRequestException")
            let unknown = try await client.exchange(5, "/nothing")
            #expect(unknown.status == 404 && unknown.errorType == "UnknownOperationException")

            var unsigned = client.head()
            unsigned.remove(name: "authorization")
            client.send(7, head: unsigned)
            #expect(try await client.answer(7).errorType == "MissingAuthenticationTokenException")
            client.send(9, head: client.head(body: [1, 2, 3]), body: [1, 2, 4])
            #expect(try await client.answer(9).errorType == "InvalidSignatureException")

            // The signature covers `:authority`, which also names accounts.
            let byHost = try await client.exchange(11, authority: "210987654321.xray.example.test")
            #expect(byHost.status == 403 && byHost.body.contains("no resource-based policy allows"))
            client.send(13, head: client.head(extra: [("host", "127.0.0.1:\(server.port)")]))
            #expect(try await client.answer(13).status == 200)
            client.send(15, head: client.head(extra: [("host", "elsewhere")]))
            #expect(try await client.answer(15).errorType == "MalformedHttpRequestException")

            client.send(17, head: client.head(extra: [("expect", "100-continue")]), body: nil, ends: false)
            try await client.wait(for: "100") { $0.streams[17]?.interim == [100] }
            client.write(17, .data(.init(data: .byteBuffer(ByteBuffer(string: "{}")), endStream: true)))
            #expect(try await client.answer(17).status == 200)
            #expect(server.bytesInFlight() == 0)
            await client.close()
        }
    }

    // If this fails, a page of another origin hangs over HTTP/2: an answer without a body ends with its headers.
    @Test func `a preflight is answered with headers alone`() async throws {
        try await withTLSServer({ $0.allowedOrigins = ["https://console.example.com"] }) { server, certificate in
            let client = try await HTTP2Client.connect(to: server, trusting: certificate)
            var head = HPACKHeaders([(":method", "OPTIONS"), (":path", "/TraceSegments"), (":scheme", "https")])
            head.add(name: ":authority", value: "127.0.0.1:\(server.port)")
            head.add(name: "origin", value: "https://console.example.com")
            client.send(1, head: head, body: nil)
            let answer = try await client.answer(1)
            #expect(answer.status == 204 && answer.bodyBytes == 0)
            #expect(answer.headers["access-control-allow-origin"] == "https://console.example.com")
            #expect(answer.headers["content-length"] == nil)
            let served = try await client.exchange(3)
            #expect(served.status == 200 && served.headers["vary"] == "Origin")
            await client.close()
        }
    }

    // If this fails, a busy client cannot use one connection for everything, as SDKs do.
    @Test func `a thousand requests on one connection are all answered, 250 at a time`() async throws {
        try await withTLSServer { server, certificate in
            let client = try await HTTP2Client.connect(to: server, trusting: certificate)
            try await client.wait(for: "settings") { !$0.settings.isEmpty }
            #expect(
                client.state.settings.contains(HTTP2Setting(parameter: .maxConcurrentStreams, value: 256)))
            for wave in 0..<4 {
                let indices = (250 * wave)..<(250 * (wave + 1))
                for index in indices {
                    let body = [UInt8](repeating: 32, count: index)
                    client.send(2 * index + 1, head: client.head(body: body), body: body)
                }
                for index in indices {
                    let answer = try await client.answer(2 * index + 1)
                    #expect(answer.status == 200 && answer.body.contains("\"length\":\(index),"))
                }
            }
            #expect(!client.state.isClosed && client.state.goAways.isEmpty)
            await client.close()
        }
    }

    // If this fails, one connection makes the server work on any number of requests.
    @Test func `streams beyond the limit are refused, the others go on`() async throws {
        try await withTLSServer {
            $0.limits.streamsPerConnection = 3
        } _: { server, certificate in
            // This client never learns of the limit: it opens its streams before it reads the server's settings.
            let client = try await HTTP2Client.connect(to: server, trusting: certificate, speaksFrames: false)
            var bytes = preface
            for stream: UInt32 in [1, 3, 5, 7, 9] {
                let block = literals(client.head("/TraceSummaries"))
                bytes +=
                    frame(type: 1, flags: 4, stream: stream, block)
                    + frame(type: 0, flags: 1, stream: stream, Array("{}".utf8))
            }
            try await client.channel.writeAndFlush(ByteBuffer(bytes: bytes)).get()
            await server.gate.arrived(3)
            server.gate.open()
            try #require(await eventually { server.observations.list.count >= 3 })
            let next = try await HTTP2Client.connect(to: server, trusting: certificate)
            #expect(try await next.exchange(1).status == 200)
            let answered = server.observations.list.filter { $0.hasPrefix("GetTraceSummaries") }
            #expect(answered == [String](repeating: "GetTraceSummaries 200", count: 3))
            await client.close()
            await next.close()
        }
    }

    // If this fails, the largest allowed call is refused over HTTP/2, or a larger one is read, or refusals stall the
    // connection for the calls after them.
    @Test func `a body of 8 MiB is accepted, one byte more refused, with and without a declared length`() async throws {
        try await withTLSServer { server, certificate in
            let client = try await HTTP2Client.connect(to: server, trusting: certificate)
            let limit = 8 << 20
            let largest = try await client.exchange(1, body: [UInt8](repeating: 32, count: limit))
            #expect(largest.status == 200 && largest.body.contains("\"length\":\(limit),"))

            client.send(
                3, head: client.head(extra: [("content-length", "\(limit + 1)")]), body: nil, ends: false)
            #expect(try await client.answer(3).errorType == "RequestEntityTooLargeException")
            try await client.wait(for: "reset") { $0.streams[3]?.reset == .noError }

            client.send(5, head: client.head(), body: [UInt8](repeating: 32, count: limit + 1))
            #expect(try await client.answer(5).status == 413)

            // What was on its way of refused bodies is credited to the connection's window.
            for index in 0..<30 {
                let id = 7 + 2 * index
                client.send(
                    id, head: client.head(extra: [("content-length", "\(limit + 1)")]),
                    body: [UInt8](repeating: 32, count: 200_000), ends: false)
                #expect(try await client.answer(id).status == 413)
            }
            let last = try await client.exchange(101, body: [UInt8](repeating: 32, count: 2_000_000))
            #expect(last.status == 200)
            #expect(server.bytesInFlight() == 0)
            await client.close()
        }
    }

    // If this fails, large answers break off or are never finished.
    @Test func `a large answer follows the client's flow control`() async throws {
        try await withTLSServer { server, certificate in
            let client = try await HTTP2Client.connect(to: server, trusting: certificate)
            let answer = try await client.exchange(1, "/Traces")
            #expect(answer.status == 200 && answer.bodyBytes == 8 << 20 + 2)
            await client.close()
        }
    }

    // If this fails, a client that takes no answers fills the memory.
    @Test func `a client that does not take its answer loses the stream`() async throws {
        try await withTLSServer {
            $0.timeouts.responseSeconds = 0.2
        } _: { server, certificate in
            let client = try await HTTP2Client.connect(to: server, trusting: certificate, updatesWindows: false)
            client.send(1, head: client.head("/Traces"))
            try await client.wait(for: "reset") { $0.streams[1]?.reset == .cancel }
            #expect(client.state.streams[1]?.isEnded == false)
            await client.close()
        }
    }

    // If this fails, heads of any size fill the memory.
    @Test func `heads are limited in number, field size and sum`() async throws {
        try await withTLSServer { server, certificate in
            let client = try await HTTP2Client.connect(to: server, trusting: certificate)
            let many = (0..<130).map { ("x-\($0)", "1") }
            client.send(1, head: client.head(extra: many))
            #expect(try await client.answer(1).errorType == "MalformedHttpRequestException")
            client.send(3, head: client.head(extra: [("x-long", String(repeating: "a", count: 17_000))]))
            #expect(try await client.answer(3).errorType == "MalformedHttpRequestException")
            client.send(5, head: client.head("/" + String(repeating: "a", count: 17_000)))
            #expect(try await client.answer(5).status == 400)
            #expect(try await client.exchange(7).status == 200)
            let huge = (0..<7).map { ("x-\($0)", String(repeating: "a", count: 10_000)) }
            client.send(9, head: client.head(extra: huge))
            try await client.wait(for: "end") { $0.isClosed }
            #expect(client.state.streams[9]?.status != 200)
        }
    }

    // If this fails, a slow sender keeps a stream for ever, or disturbs the others on its connection.
    @Test func `a request that does not arrive in time is answered 408, the others are served meanwhile`() async throws
    {
        try await withTLSServer {
            $0.timeouts.requestSeconds = 0.3
        } _: { server, certificate in
            let client = try await HTTP2Client.connect(to: server, trusting: certificate)
            client.send(1, head: client.head(), body: Array("{".utf8), ends: false)
            #expect(try await client.exchange(3).status == 200)
            let slow = try await client.answer(1)
            #expect(slow.status == 408 && slow.errorType == "RequestTimeoutException")
            #expect(try await client.exchange(5).status == 200)
            #expect(server.bytesInFlight() == 0)
            await client.close()
        }
    }

    // MARK: - Life of a connection

    // If this fails, the official daemon drops its connection every three seconds.
    @Test func `pings of an idle connection are answered, however many`() async throws {
        try await withTLSServer { server, certificate in
            let client = try await HTTP2Client.connect(to: server, trusting: certificate)
            for number in 0..<1000 { client.ping(UInt64(number)) }
            try await client.wait(for: "answers to pings") { $0.pongs == 1000 }
            client.ping(1)
            try await client.wait(for: "answer to a ping") { $0.pongs == 1001 }
            #expect(try await client.exchange(1).status == 200)
            #expect(client.state.goAways.isEmpty)
            await client.close()
        }
    }

    // If this fails, connections nobody uses pile up.
    @Test func `an idle connection is told goodbye and closed, before and after a request`() async throws {
        try await withTLSServer {
            $0.timeouts.idleSeconds = 0.3
            $0.timeouts.lingerSeconds = 0.3
        } _: { server, certificate in
            let unused = try await HTTP2Client.connect(to: server, trusting: certificate)
            // On a busy machine the connection may be closed before the request is sent.
            var answer: HTTP2Client.Stream?
            var used = unused
            while answer == nil {
                used = try await HTTP2Client.connect(to: server, trusting: certificate)
                answer = try? await used.exchange(1)
            }
            #expect(answer?.status == 200)
            for client in [unused, used] {
                try await client.wait(for: "end") { $0.isClosed }
                let end = client.state
                // NIO complains of whatever an idle client says after the first goodbye.
                #expect(end.goAways.first?.code == .noError && end.goAways.count > 1)
            }
            // One that says nothing at all, not even the preface of HTTP/2.
            let silent = try await HTTP2Client.connect(to: server, trusting: certificate, speaksFrames: false)
            try await silent.wait(for: "end") { $0.isClosed }
        }
    }

    // If this fails, a restart loses answers to requests that were already running.
    @Test func `shutdown says goodbye and finishes what runs`() async throws {
        try await withTLSServer {
            $0.timeouts.drainSeconds = 60
        } _: { server, certificate in
            let idle = try await HTTP2Client.connect(to: server, trusting: certificate)
            let client = try await HTTP2Client.connect(to: server, trusting: certificate)
            client.send(1, head: client.head("/TraceSummaries"))
            await server.gate.arrived(1)
            await server.shutDown()
            try await idle.wait(for: "end") { $0.isClosed && $0.goAways.first?.code == .noError }
            try await client.wait(for: "goodbye") { $0.goAways.last.map { $0 == (1, .noError) } == true }
            server.gate.open()
            #expect(try await client.answer(1).status == 200)
            try await client.wait(for: "end") { $0.isClosed }
        }
    }

    // If this fails, one unfinished upload or stuck handler holds up the end of the process.
    @Test func `shutdown does not wait longer than its drain time`() async throws {
        try await withTLSServer {
            $0.timeouts.drainSeconds = 0.3
            $0.timeouts.lingerSeconds = 0.1
        } _: { server, certificate in
            // Accepted before the one that follows.
            let handshaking = try server.connect()
            let client = try await HTTP2Client.connect(to: server, trusting: certificate)
            client.send(1, head: client.head("/TraceSummaries"))
            client.send(3, head: client.head(), body: Array("{".utf8), ends: false)
            await server.gate.arrived(1)
            await server.shutDown()
            #expect(try await client.answer(3).errorType == "ServiceUnavailable")
            try await client.wait(for: "end") { $0.isClosed }
            #expect(client.state.streams[1]?.isEnded != true)
            #expect(try await onThread { try handshaking.isClosed() })
        }
    }

    // MARK: - Attacks and accidents

    // If this fails, one client can make the server work without end for requests it cancels at once.
    @Test func `a flood of resets ends the connection, and only that`() async throws {
        try await withTLSServer { server, certificate in
            let other = try await HTTP2Client.connect(to: server, trusting: certificate)
            #expect(try await other.exchange(1).status == 200)
            let client = try await HTTP2Client.connect(to: server, trusting: certificate)
            for index in 0..<400 {
                client.send(2 * index + 1, head: client.head("/TraceSummaries"))
                client.write(2 * index + 1, .rstStream(.cancel))
            }
            try await client.wait(for: "end") { $0.isClosed }
            #expect(client.state.goAways.last?.code == .enhanceYourCalm)
            #expect(try await other.exchange(3).status == 200)
            server.gate.open()
            try #require(await eventually { server.bytesInFlight() == 0 })
            await other.close()
        }
    }

    // If this fails, whoever cancels and sends again makes the server hold more bodies than its limit.
    @Test func `the body of a cancelled request counts until its handler is done`() async throws {
        try await withTLSServer {
            $0.limits.bytesInFlight = 100_000
        } _: { server, certificate in
            let client = try await HTTP2Client.connect(to: server, trusting: certificate)
            let body = [UInt8](repeating: 32, count: 60_000)
            client.send(1, head: client.head("/TraceSummaries", body: body), body: body)
            await server.gate.arrived(1)
            client.write(1, .rstStream(.cancel))
            client.ping(1)
            try await client.wait(for: "answer to a ping") { $0.pongs == 1 }
            #expect(server.bytesInFlight() == 60_000)
            #expect(try await client.exchange(3, body: body).errorType == "ServiceUnavailable")
            server.gate.open()
            try #require(await eventually { server.bytesInFlight() == 0 })
            #expect(try await client.exchange(5, body: body).status == 200)
            await client.close()
        }
    }

    // If this fails, header blocks that never end fill the memory.
    @Test func `endless CONTINUATION frames end the connection`() async throws {
        try await withTLSServer { server, certificate in
            let client = try await HTTP2Client.connect(to: server, trusting: certificate, speaksFrames: false)
            var bytes = preface + frame(type: 1, flags: 0, stream: 1, [0x82])  // HEADERS without END_HEADERS
            for _ in 0..<100 { bytes += frame(type: 9, flags: 0, stream: 1, [0x00, 0x01, 0x78, 0x01, 0x79]) }
            client.channel.writeAndFlush(ByteBuffer(bytes: bytes), promise: nil)
            try await client.wait(for: "end") { $0.isClosed }
            let next = try await HTTP2Client.connect(to: server, trusting: certificate)
            #expect(try await next.exchange(1).status == 200)
            await next.close()
        }
    }

    // If this fails, a client that speaks something else over TLS keeps its connection or harms others.
    @Test func `what is no HTTP 2 after all is closed`() async throws {
        try await withTLSServer { server, certificate in
            let client = try await HTTP2Client.connect(to: server, trusting: certificate, speaksFrames: false)
            client.channel.writeAndFlush(ByteBuffer(string: "GET / HTTP/1.1\r\nHost: h\r\n\r\n"), promise: nil)
            try await client.wait(for: "end") { $0.isClosed }
        }
    }

    // If this fails, a client with http:// in its settings hangs or harms the server instead of being turned away.
    @Test func `plain HTTP and garbage on the TLS port are closed without harm`() async throws {
        try await withTLSServer { server, certificate in
            for text in ["GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n", "\u{16}\u{3}\u{1}\u{0}\u{5}nonsense", "\u{0}"] {
                try await onThread {
                    let client = try server.connect()
                    try client.send(text)
                    client.shutDownOutput()
                    while try !client.isCutOff() {}  // an alert may come first
                }
            }
            let client = try await HTTP2Client.connect(to: server, trusting: certificate)
            #expect(try await client.exchange(1).status == 200)
            await client.close()
        }
    }

    // If this fails, connections that never finish their handshake pile up.
    @Test(arguments: ["", "\u{16}\u{3}\u{1}\u{1}"])
    func `a handshake that takes too long is cut off`(sent: String) async throws {
        try await withTLSServer {
            $0.timeouts.handshakeSeconds = 0.2
        } _: { server, _ in
            try await onThread {
                let client = try server.connect()
                try client.send(sent)
                #expect(try client.isCutOff())
            }
        }
    }

    // MARK: - Certificates

    // If this fails, a renewed certificate needs a restart, or a broken file takes the listener down.
    @Test func `a new certificate is used for new connections, a broken one is reported and the old one kept`()
        async throws
    {
        try await withTLSServer { server, certificate in
            let first = try await HTTP2Client.connect(to: server, trusting: certificate)
            let firstName = try #require(first.state.certificateName)
            try await certificate.make(name: "renewed")
            server.reloadCertificates()
            let second = try await HTTP2Client.connect(to: server, trusting: certificate)
            let secondName = try #require(second.state.certificateName)
            #expect(firstName != secondName && secondName.contains("renewed"))
            #expect(try await first.exchange(1).status == 200)

            let trusted = TestCertificate(folder: certificate.folder + "/trusted")
            try FileManager.default.createDirectory(atPath: trusted.folder, withIntermediateDirectories: true)
            try FileManager.default.copyItem(
                atPath: certificate.files.certificatePath, toPath: trusted.files.certificatePath)
            try certificate.write("half a file", to: certificate.files.certificatePath)
            server.reloadCertificates()
            let errors = server.logs.list.filter { $0.hasPrefix("error") }
            #expect(errors.count == 1 && errors[0].contains("keeping the old certificate"))
            #expect(errors[0].contains(certificate.files.certificatePath) && errors[0].contains("--tls-certificate"))
            let third = try await HTTP2Client.connect(to: server, trusting: trusted)
            #expect(third.state.certificateName == secondName)
            #expect(try await third.exchange(1).status == 200)
            for client in [first, second, third] { await client.close() }
        }
    }

    // If this fails, a wrong path or file shows as an error number, or only when the first client comes.
    @Test func `files that cannot be used stop the start with one sentence that names them`() async throws {
        try await withCertificate { certificate in
            let good = certificate.files
            let text = certificate.folder + "/text"
            let foreign = TestCertificate(folder: certificate.folder + "/foreign")
            try FileManager.default.createDirectory(atPath: foreign.folder, withIntermediateDirectories: true)
            try await foreign.make()
            try certificate.write("no certificate", to: text)
            let missing = certificate.folder + "/missing"
            for (files, path, setting) in [
                (TLSFiles(certificatePath: missing, keyPath: good.keyPath), missing, "--tls-certificate"),
                (TLSFiles(certificatePath: good.certificatePath, keyPath: missing), missing, "--tls-key"),
                (TLSFiles(certificatePath: text, keyPath: good.keyPath), text, "--tls-certificate"),
                (TLSFiles(certificatePath: good.certificatePath, keyPath: text), text, "--tls-key"),
                (
                    TLSFiles(certificatePath: good.certificatePath, keyPath: foreign.files.keyPath),
                    foreign.files.keyPath, "--tls-key"
                ),
            ] {
                await #expect {
                    try await withServer {
                        $0.tls = files
                    } _: { _ in
                    }
                } throws: {
                    let message = "\($0)"
                    return message.contains(path) && message.contains(setting) && !message.contains("\n")
                }
            }
        }
    }
}

// MARK: - Bytes of HTTP/2

private let preface = Array("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".utf8) + frame(type: 4, flags: 0, stream: 0, [])

private func frame(type: UInt8, flags: UInt8, stream: UInt32, _ payload: [UInt8]) -> [UInt8] {
    let length = UInt32(payload.count)
    return [UInt8(length >> 16 & 0xFF), UInt8(length >> 8 & 0xFF), UInt8(length & 0xFF), type, flags]
        + (0..<4).map { UInt8(stream >> (24 - 8 * $0) & 0xFF) } + payload
}

/// A header block without compression (RFC 7541 §6.2.2).
private func literals(_ headers: HPACKHeaders) -> [UInt8] {
    func text(_ text: String) -> [UInt8] {
        let bytes = Array(text.utf8)
        guard bytes.count >= 127 else { return [UInt8(bytes.count)] + bytes }
        var rest = bytes.count - 127
        var length: [UInt8] = [127]
        while rest >= 128 {
            length.append(UInt8(rest & 127 | 128))
            rest >>= 7
        }
        return length + [UInt8(rest)] + bytes
    }
    return headers.flatMap { name, value, _ in [0] + text(name) + text(value) }
}
