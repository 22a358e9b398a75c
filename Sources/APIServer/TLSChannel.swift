// A connection of the TLS listener: handshake, then HTTP/1.1 or HTTP/2, whichever the client and the server agreed on by
// ALPN. HTTP/1.1 goes on exactly as on the plain listener; on HTTP/2 every stream is served as if it were a connection
// with one request (`HTTP2StreamCodec.swift`), and the connection itself is looked after by `HTTP2ConnectionHandler`.

import HummingbirdCore
import Logging
import NIOCore
import NIOHTTP2
import NIOSSL
import NIOTLS

struct TLSChannel: ServerChildChannel {
    typealias Streams = NIOHTTP2Handler.AsyncStreamMultiplexer<APIChannel.Value>

    enum Negotiated: Sendable {
        case http1(APIChannel.Value)
        case http2(Streams)
    }

    struct Value: ServerChildChannelValue {
        let channel: any Channel
        /// Fails when the connection ends before the handshake is complete.
        let negotiated: EventLoopFuture<Negotiated>
    }

    let connection: APIChannel
    let certificate: ServerCertificate

    func setup(channel: any Channel, logger: Logger) -> EventLoopFuture<Value> {
        channel.eventLoop.makeCompletedFuture {
            let timeouts = connection.shared.timeouts
            let negotiation = NIOTypedApplicationProtocolNegotiationHandler<Negotiated> { result, channel in
                switch result {
                case .negotiated("h2"):
                    return channel.eventLoop.makeCompletedFuture { .http2(try startHTTP2(channel, logger)) }
                case .negotiated, .fallback:
                    return connection.setup(channel: channel, logger: logger).map { .http1($0) }
                }
            }
            let pipeline = channel.pipeline.syncOperations
            try pipeline.addHandlers(
                NIOSSLServerHandler(context: certificate.context),
                HandshakeDeadline(seconds: timeouts.handshakeSeconds),
                negotiation)
            return Value(channel: channel, negotiated: negotiation.protocolNegotiationResult)
        }
    }

    /// The connection's task: waits for the handshake, then serves until the connection is closed.
    func handle(value: Value, logger: Logger) async {
        await withTaskCancellationHandler {
            guard let negotiated = try? await value.negotiated.get() else { return }
            switch negotiated {
            case .http1(let value):
                await connection.handle(value: value, logger: logger)
            case .http2(let streams):
                await withDiscardingTaskGroup { group in
                    do {
                        for try await stream in streams.inbound {
                            group.addTask { await connection.handle(value: stream, logger: logger) }
                        }
                    } catch {
                        // Without the sequence nobody would serve the connection's next streams.
                        value.channel.close(promise: nil)
                        logger.debug("an HTTP/2 connection failed", metadata: ["error": "\(error)"])
                    }
                }
            }
        } onCancel: {
            value.channel.close(promise: nil)
        }
    }

    private func startHTTP2(_ channel: any Channel, _ logger: Logger) throws -> Streams {
        let limits = connection.shared.limits
        let handler = HTTP2ConnectionHandler(timeouts: connection.shared.timeouts)
        let events = HTTP2ConnectionHandler.Events(handler, eventLoop: channel.eventLoop)
        let pipeline = channel.pipeline.syncOperations
        let streams = try pipeline.configureAsyncHTTP2Pipeline(
            mode: .server, streamDelegate: events, frameDelegate: events, configuration: .serving(limits)
        ) { stream in
            stream.eventLoop.makeCompletedFuture {
                // A client that never acknowledges our settings is not held to them by `NIOHTTP2Handler`.
                guard events.openStreams < limits.streamsPerConnection else { throw TooManyStreams() }
                try stream.pipeline.syncOperations.addHandler(HTTP2StreamCodec(limits: limits))
                return try connection.addHandler(to: stream)
            }
        }
        try pipeline.addHandler(handler)
        return streams
    }
}

/// The stream is reset.
private struct TooManyStreams: Error {}

extension NIOHTTP2Handler.Configuration {
    /// What a client may do with one connection.
    fileprivate static func serving(_ limits: APIServiceConfiguration.Limits) -> NIOHTTP2Handler.Configuration {
        // A stream's window is what one request may have on its way to us, the connection's window what all may. Bodies
        // are counted in the byte budget as they arrive, so the windows bound only what is between two reads.
        let streamWindowBytes = 256 << 10
        let connectionWindowBytes = 1 << 20
        var configuration = NIOHTTP2Handler.Configuration()
        configuration.connection.initialSettings = [
            HTTP2Setting(parameter: .maxConcurrentStreams, value: limits.streamsPerConnection),
            HTTP2Setting(parameter: .maxHeaderListSize, value: limits.headerBytes),
            HTTP2Setting(parameter: .initialWindowSize, value: streamWindowBytes),
        ]
        configuration.connection.targetWindowSize = connectionWindowBytes
        configuration.stream.targetWindowSize = streamWindowBytes
        // The official daemon pings a silent connection every second and other clients with every cancelled request: no
        // limit on pings that a client could meet (NIO's default is 200 in 30 s). What is left bounds a flood.
        configuration.connection.controlFrameRateLimit.maximumCount = 2000
        configuration.connection.controlFrameRateLimit.windowLength = .milliseconds(100)
        // Rapid reset (CVE-2023-44487): streams that are opened and cancelled at once. A client that gives up on that many
        // requests in that time gains by a new connection.
        configuration.stream.streamResetFrameRateLimit.maximumCount = 200
        configuration.stream.streamResetFrameRateLimit.windowLength = .seconds(30)
        // CONTINUATION flood (CVE-2024-27316): the header block ends within these frames or the connection does. 16 KiB
        // each, so the header limit is met first by a client that fills its frames.
        configuration.connection.maximumSequentialContinuationFrames = 8
        return configuration
    }
}

/// Closes a connection whose handshake takes too long, fails, or is still going on when the server stops. Leaves the
/// pipeline when the handshake is complete.
private final class HandshakeDeadline: ChannelInboundHandler, RemovableChannelHandler {
    typealias InboundIn = NIOAny
    typealias InboundOut = NIOAny

    private let seconds: Double
    private var timer: Scheduled<Void>?

    init(seconds: Double) { self.seconds = seconds }

    func handlerAdded(context: ChannelHandlerContext) {
        let isolated = NIOLoopBound(context, eventLoop: context.eventLoop)
        timer = context.eventLoop.scheduleTask(in: .nanoseconds(Int64(seconds * 1_000_000_000))) {
            isolated.value.close(promise: nil)
        }
    }

    func handlerRemoved(context: ChannelHandlerContext) { timer?.cancel() }

    func channelInactive(context: ChannelHandlerContext) {
        timer?.cancel()
        context.fireChannelInactive()
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        switch event {
        case TLSUserEvent.handshakeCompleted:
            timer?.cancel()
            context.fireUserInboundEventTriggered(event)
            context.pipeline.syncOperations.removeHandler(self, promise: nil)
        case is ChannelShouldQuiesceEvent:
            context.close(promise: nil)
        default:
            context.fireUserInboundEventTriggered(event)
        }
    }

    /// Whoever speaks no TLS, or none that we understand, is of no interest: connections from scanners and misdirected
    /// clients come by the thousand.
    func errorCaught(context: ChannelHandlerContext, error: any Error) { context.close(promise: nil) }
}
