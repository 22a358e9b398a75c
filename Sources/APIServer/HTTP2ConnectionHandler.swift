// Looks after one HTTP/2 connection: closes it when it has been without a stream for a while, says goodbye (GOAWAY) when
// the server stops, and closes it after an error. Its streams look after themselves (`ConnectionHandler`), its frames are
// `NIOHTTP2Handler`'s, which also answers pings; how often a client pings is nobody's business here.

import NIOCore
import NIOHTTP2

/// Above `NIOHTTP2Handler` in the pipeline. On the channel's event loop.
///
/// A goodbye has two steps, because the client may open streams while the first is on its way: GOAWAY without a limit
/// and a PING; when the client has answered the PING, or after a moment, GOAWAY with the last stream that counts. The
/// connection is closed when that and every earlier stream is done. Source: RFC 9113 §6.8.
final class HTTP2ConnectionHandler: ChannelDuplexHandler {
    typealias InboundIn = HTTP2Frame
    typealias InboundOut = HTTP2Frame
    typealias OutboundIn = HTTP2Frame
    typealias OutboundOut = HTTP2Frame

    private enum State {
        case serving
        case announced(HTTP2PingData)
        case ending
        case closed
    }

    private let timeouts: APIServiceConfiguration.Timeouts
    /// Set while the handler is in the pipeline.
    private var context: ChannelHandlerContext?
    private var state = State.serving
    private var streamCount = 0
    private var lastStream = HTTP2StreamID.rootStream
    private var idleSince = NIODeadline.now()
    private var idleTimer: Scheduled<Void>?
    /// Of the goodbye.
    private var timers: [Scheduled<Void>] = []

    init(timeouts: APIServiceConfiguration.Timeouts) { self.timeouts = timeouts }

    // MARK: - Channel events

    func handlerAdded(context: ChannelHandlerContext) {
        self.context = context
        idleSince = .now()
        scheduleIdleTimer()
    }

    func handlerRemoved(context: ChannelHandlerContext) {
        self.context = nil
        cancelTimers()
    }

    func channelInactive(context: ChannelHandlerContext) {
        state = .closed
        cancelTimers()
        context.fireChannelInactive()
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        if case .ping(let data, ack: true) = Self.unwrapInboundIn(data).payload, case .announced(data) = state { end() }
        context.fireChannelRead(data)
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        switch event {
        case ChannelEvent.inputClosed:
            context.close(promise: nil)
        case is ChannelShouldQuiesceEvent:
            sayGoodbye()
            // Streams finish or refuse within the same time.
            after(timeouts.drainSeconds) { $0.close() }
        default:
            context.fireUserInboundEventTriggered(event)
        }
    }

    /// Errors of a stream are answered by `NIOHTTP2Handler` (RST_STREAM), those of the connection as well (GOAWAY, seen in
    /// `wrote`); the TLS handler closes after its own.
    func errorCaught(context: ChannelHandlerContext, error: any Error) {}

    // MARK: - Streams

    /// What `NIOHTTP2Handler` tells. Called on the event loop.
    struct Events: NIOHTTP2StreamDelegate, NIOHTTP2FrameDelegate {
        private let handler: NIOLoopBound<HTTP2ConnectionHandler>

        init(_ handler: HTTP2ConnectionHandler, eventLoop: any EventLoop) {
            self.handler = NIOLoopBound(handler, eventLoop: eventLoop)
        }

        var openStreams: Int { handler.value.streamCount }

        func streamCreated(_ id: HTTP2StreamID, channel: any Channel) { handler.value.streamOpened(id) }
        func streamClosed(_ id: HTTP2StreamID, channel: any Channel) { handler.value.streamClosed() }

        func wroteFrame(_ frame: HTTP2Frame) {
            if case .goAway(_, let code, _) = frame.payload, code != .noError { handler.value.failed() }
        }
    }

    private func streamOpened(_ id: HTTP2StreamID) {
        streamCount += 1
        lastStream = max(lastStream, id)
    }

    private func streamClosed() {
        streamCount -= 1
        guard streamCount == 0 else { return }
        switch state {
        case .serving:
            idleSince = .now()
            if idleTimer == nil { scheduleIdleTimer() }
        case .ending:
            // Later, because the stream's last frame is written but not yet flushed.
            after(0) { $0.close() }
        case .announced, .closed:
            break
        }
    }

    /// The client broke the protocol or floods us, and has been told so.
    private func failed() { after(0) { $0.close() } }

    // MARK: - The end

    private func sayGoodbye() {
        guard let context, case .serving = state else { return }
        let data = HTTP2PingData(withInteger: .random(in: .min ... .max))
        state = .announced(data)
        write(.goAway(lastStreamID: .maxID, errorCode: .noError, opaqueData: nil), context)
        write(.ping(data, ack: false), context)
        context.flush()
        after(timeouts.lingerSeconds) { $0.end() }
    }

    private func end() {
        guard let context, case .announced = state else { return }
        state = .ending
        write(.goAway(lastStreamID: lastStream, errorCode: .noError, opaqueData: nil), context)
        context.flush()
        if streamCount == 0 { close() }
    }

    private func write(_ payload: HTTP2Frame.FramePayload, _ context: ChannelHandlerContext) {
        context.write(Self.wrapOutboundOut(HTTP2Frame(streamID: .rootStream, payload: payload)), promise: nil)
    }

    private func close() { context?.close(promise: nil) }

    // MARK: - Timers

    /// One timer, which looks at the clock when it fires: a busy connection does not schedule one per request.
    private func scheduleIdleTimer() {
        guard let context else { return }
        let isolated = NIOLoopBound(self, eventLoop: context.eventLoop)
        let deadline = idleSince + .nanoseconds(Int64(timeouts.idleSeconds * 1_000_000_000))
        idleTimer = context.eventLoop.scheduleTask(deadline: deadline) { isolated.value.idleTimerFired(deadline) }
    }

    private func idleTimerFired(_ deadline: NIODeadline) {
        idleTimer = nil
        guard streamCount == 0, case .serving = state else { return }
        if idleSince + .nanoseconds(Int64(timeouts.idleSeconds * 1_000_000_000)) > deadline {
            scheduleIdleTimer()
        } else {
            sayGoodbye()
        }
    }

    private func after(_ seconds: Double, _ act: @escaping @Sendable (HTTP2ConnectionHandler) -> Void) {
        guard let context else { return }
        let isolated = NIOLoopBound(self, eventLoop: context.eventLoop)
        timers.append(
            context.eventLoop.scheduleTask(in: .nanoseconds(Int64(seconds * 1_000_000_000))) { act(isolated.value) })
    }

    private func cancelTimers() {
        idleTimer?.cancel()
        idleTimer = nil
        for timer in timers { timer.cancel() }
        timers = []
    }
}
