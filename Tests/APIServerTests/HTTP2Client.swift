// An HTTP/2 client that sends the frames a test wants and remembers everything that comes back.

import APIServer
import AccessControl
import NIOCore
import NIOHPACK
import NIOHTTP2
import NIOPosix
import NIOSSL
import NIOTLS
import Segments
import Synchronization

final class HTTP2Client: Sendable {
    struct Stream: Sendable {
        var headers: [String: String] = [:]
        var interim: [Int] = []
        var bodyBytes = 0
        /// The first 4 KiB.
        var body = ""
        var isEnded = false
        var reset: HTTP2ErrorCode?

        var status: Int? { headers[":status"].flatMap(Int.init) }
        var errorType: String? { headers["x-amzn-errortype"] }
    }

    struct Received: Sendable {
        var streams: [Int: Stream] = [:]
        var pongs = 0
        var goAways: [(lastStream: Int, code: HTTP2ErrorCode)] = []
        var settings: [HTTP2Setting] = []
        var isClosed = false
        var certificateName: String?
    }

    let channel: any Channel
    private let port: Int
    private let received: Box

    fileprivate final class Box: Sendable {
        let value = Mutex(Received())
    }

    private init(channel: any Channel, port: Int, received: Box) {
        self.channel = channel
        self.port = port
        self.received = received
    }

    /// Connects and waits for the handshake.
    /// - Parameters:
    ///   - updatesWindows: without, the server may send 64 KiB and no more.
    ///   - speaksFrames: without, the test writes bytes of its own after the handshake.
    static func connect(
        to server: TestServer, trusting certificate: TestCertificate,
        updatesWindows: Bool = true, speaksFrames: Bool = true
    ) async throws -> HTTP2Client {
        var configuration = TLSConfiguration.makeClientConfiguration()
        configuration.trustRoots = .file(certificate.files.certificatePath)
        configuration.applicationProtocols = ["h2"]
        let context = try NIOSSLContext(configuration: configuration)
        let received = Box()
        let handshake = MultiThreadedEventLoopGroup.singleton.any().makePromise(of: Void.self)
        let channel = try await ClientBootstrap(group: MultiThreadedEventLoopGroup.singleton)
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    let pipeline = channel.pipeline.syncOperations
                    try pipeline.addHandler(NIOSSLClientHandler(context: context, serverHostname: nil))
                    try pipeline.addHandler(HandshakeWatch(handshake, received))
                    if speaksFrames {
                        try pipeline.addHandler(NIOHTTP2Handler(mode: .client, connectionConfiguration: .unlimited))
                        try pipeline.addHandler(FrameCollector(received, updatesWindows: updatesWindows))
                    }
                }
            }
            .connect(host: "127.0.0.1", port: server.port).get()
        try await handshake.futureResult.get()
        return HTTP2Client(channel: channel, port: server.port, received: received)
    }

    var state: Received { received.value.withLock { $0 } }

    /// Waits until what came back is as expected. Looks at it in place: copies would be copied again by every frame.
    func wait(
        seconds: Double = 20, for what: String, _ condition: @Sendable (Received) -> Bool
    ) async throws {
        let deadline = ContinuousClock.now + .seconds(seconds)
        while true {
            if received.value.withLock({ condition($0) }) { return }
            guard ContinuousClock.now < deadline else {
                throw RawClientError(description: "no \(what) within \(seconds) s: \(state)")
            }
            try await Task.sleep(for: .milliseconds(1))
        }
    }

    /// The answer to a request, once it is complete.
    func answer(_ id: Int) async throws -> Stream {
        try await wait(for: "answer on stream \(id)") { state in
            state.isClosed || state.streams[id].map { $0.isEnded || $0.reset != nil } == true
        }
        guard let stream = received.value.withLock({ $0.streams[id] }), stream.isEnded else {
            throw RawClientError(description: "stream \(id) ended without an answer: \(state)")
        }
        return stream
    }

    // MARK: - Sending

    func write(_ id: Int, _ payload: HTTP2Frame.FramePayload) {
        channel.writeAndFlush(HTTP2Frame(streamID: HTTP2StreamID(id), payload: payload), promise: nil)
    }

    /// A signed header block.
    func head(
        _ path: String = "/TraceSegments", body: [UInt8] = Array("{}".utf8), extra: [HeaderField] = [],
        key: AccessKey = TestDirectory.adminKey, authority: String? = nil
    ) -> HPACKHeaders {
        let authority = authority ?? "127.0.0.1:\(port)"
        let signed = RequestSigner(accessKeyID: key.id, secret: key.secret).headers(
            target: path, host: authority, headers: [], body: body, now: SystemClock.now())
        return HPACKHeaders(
            [(":method", "POST"), (":path", path), (":scheme", "https"), (":authority", authority)]
                + (signed + extra).map { ($0.name.lowercased(), $0.value) })
    }

    func send(_ id: Int, head: HPACKHeaders, body: [UInt8]? = Array("{}".utf8), ends: Bool = true) {
        write(id, .headers(.init(headers: head, endStream: body == nil && ends)))
        if let body { write(id, .data(.init(data: .byteBuffer(ByteBuffer(bytes: body)), endStream: ends))) }
    }

    /// Sends a signed request and waits for its answer.
    func exchange(
        _ id: Int, _ path: String = "/TraceSegments", body: [UInt8] = Array("{}".utf8), extra: [HeaderField] = [],
        authority: String? = nil
    ) async throws -> Stream {
        send(id, head: head(path, body: body, extra: extra, authority: authority), body: body)
        return try await answer(id)
    }

    func ping(_ number: UInt64) { write(0, .ping(HTTP2PingData(withInteger: number), ack: false)) }

    func close() async { try? await channel.close() }
}

extension NIOHTTP2Handler.ConnectionConfiguration {
    /// The client has no limits of its own that would hide the server's.
    fileprivate static var unlimited: Self {
        var configuration = Self()
        configuration.controlFrameRateLimit.maximumCount = 100_000
        return configuration
    }
}

private final class HandshakeWatch: ChannelInboundHandler {
    typealias InboundIn = Any
    typealias InboundOut = Any

    private let handshake: EventLoopPromise<Void>
    private let received: HTTP2Client.Box

    init(_ handshake: EventLoopPromise<Void>, _ received: HTTP2Client.Box) {
        self.handshake = handshake
        self.received = received
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        if case TLSUserEvent.handshakeCompleted(let negotiated) = event {
            let certificate = try? context.pipeline.syncOperations.handler(type: NIOSSLClientHandler.self)
                .peerCertificate
            let name = certificate.map { "\($0)" }
            received.value.withLock { $0.certificateName = name }
            if negotiated == "h2" {
                handshake.succeed()
            } else {
                handshake.fail(RawClientError(description: "negotiated \(negotiated ?? "nothing")"))
            }
        }
        context.fireUserInboundEventTriggered(event)
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        handshake.fail(error)
        context.fireErrorCaught(error)
    }

    func channelInactive(context: ChannelHandlerContext) {
        handshake.fail(ChannelError.eof)
        received.value.withLock { $0.isClosed = true }
        context.fireChannelInactive()
    }
}

private final class FrameCollector: ChannelInboundHandler {
    typealias InboundIn = HTTP2Frame
    typealias OutboundOut = HTTP2Frame

    private let received: HTTP2Client.Box
    private let updatesWindows: Bool

    init(_ received: HTTP2Client.Box, updatesWindows: Bool) {
        self.received = received
        self.updatesWindows = updatesWindows
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        let frame = Self.unwrapInboundIn(data)
        let id = Int(frame.streamID)
        received.value.withLock { state in
            switch frame.payload {
            case .headers(let block):
                var stream = state.streams[id] ?? HTTP2Client.Stream()
                if let status = block.headers.first(name: ":status").flatMap(Int.init), status < 200 {
                    stream.interim.append(status)
                } else {
                    for (name, value, _) in block.headers { stream.headers[name] = value }
                }
                stream.isEnded = block.endStream
                state.streams[id] = stream
            case .data(let part):
                guard case .byteBuffer(let bytes) = part.data else { return }
                state.streams[id]?.bodyBytes += bytes.readableBytes
                if state.streams[id]?.body.utf8.count ?? 0 < 4096 {
                    state.streams[id]?.body += String(buffer: bytes)
                }
                if part.endStream { state.streams[id]?.isEnded = true }
            case .rstStream(let code): state.streams[id, default: HTTP2Client.Stream()].reset = code
            case .goAway(let last, let code, _): state.goAways.append((Int(last), code))
            case .ping(_, ack: true): state.pongs += 1
            case .settings(.settings(let settings)): state.settings += settings
            default: break
            }
        }
        guard updatesWindows, case .data(let part) = frame.payload, part.data.readableBytes > 0 else { return }
        for stream in part.endStream ? [0] : [id, 0] {
            let update = HTTP2Frame(
                streamID: HTTP2StreamID(stream), payload: .windowUpdate(windowSizeIncrement: part.data.readableBytes))
            context.writeAndFlush(Self.wrapOutboundOut(update), promise: nil)
        }
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {}
}
