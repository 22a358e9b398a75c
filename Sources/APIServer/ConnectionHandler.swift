// One HTTP/1.1 connection, or one stream of HTTP/2 behind its codec: turns the parts of the decoder into complete requests, hands them one at a time to the
// connection's task, and writes the answers. Everything of framing, sizes and time-outs is here; what a request means
// is the responder's. Runs on the channel's event loop, except `Mailbox`, which connects it to the task.

import Logging
import NIOCore
import NIOHTTP1
import XRayAPI

/// What a connection needs of the server; shared by all connections.
struct ConnectionContext: Sendable {
    var limits: APIServiceConfiguration.Limits
    var timeouts: APIServiceConfiguration.Timeouts
    var clock: @Sendable () -> Int64
    var responder: Responder
    var observe: RequestObserver
    var dateHeader: DateHeader

    func answered(_ response: OutgoingResponse, startedAt: NIODeadline) {
        let seconds = Double((NIODeadline.now() - startedAt).nanoseconds) / 1_000_000_000
        observe(response.operation, response.status, seconds)
    }
}

/// The end of the pipeline.
///
/// A connection is in one of these states:
/// - `idle`: waits for a request; bytes of a head may already have come.
/// - `reading`: the head has come, the body is coming.
/// - `handling`: the request is with the task, or its answer is being written. Nothing more is read from the socket;
///   what one read had already brought of pipelined requests waits in `pending` (at most one receive buffer).
/// - `lingering`: the last answer is written and our side is shut; what still comes is thrown away for a moment,
///   because closing with unread bytes makes the kernel send a reset that can destroy the answer on its way.
final class ConnectionHandler: ChannelDuplexHandler {
    typealias InboundIn = HTTPServerRequestPart
    typealias InboundOut = Never
    typealias OutboundIn = HTTPServerResponsePart
    typealias OutboundOut = HTTPServerResponsePart

    private enum State {
        case idle
        case reading(PartialRequest)
        case handling(Exchange)
        case lingering
        case closed
    }

    private struct PartialRequest {
        var head: HTTPRequestHead
        var body = ByteBuffer()
        var byteCount = 0
        /// As declared; nil for a chunked body.
        var contentLength: Int?
        var isGzip: Bool
    }

    private struct Exchange {
        var method: HTTPMethod
        var version: HTTPVersion
        var keepsAlive: Bool
        var isAnswerWritten = false
    }

    /// What happens when the deadline passes.
    private enum Deadline {
        case none
        case closeIdle, refuseSlowRequest, cutOffResponse, closeLingering, refuseOnDrain
    }

    private let shared: ConnectionContext
    private let mailbox: Mailbox
    /// Set while the handler is in the pipeline.
    private var context: ChannelHandlerContext?
    private var state = State.idle
    private var pending = CircularBuffer<HTTPServerRequestPart>()
    /// When the first byte of the current request came.
    private var requestStartedAt: NIODeadline?
    /// Bytes of the current request taken from the budget.
    private var budgetedBytes = 0
    private var sawPartInThisRead = false
    private var isReadHeld = false
    private var isInputClosed = false
    private var isDraining = false
    /// The decoder gave up; reported once the request before the bad bytes is answered.
    private var hasParseError = false
    private var deadline = Deadline.none
    private var deadlineAt = NIODeadline.distantFuture
    private var timer: (task: Scheduled<Void>, firesAt: NIODeadline)?

    init(shared: ConnectionContext, mailbox: Mailbox) {
        self.shared = shared
        self.mailbox = mailbox
    }

    // MARK: - Channel events

    func handlerAdded(context: ChannelHandlerContext) {
        self.context = context
        if context.channel.isActive { setDeadline(.closeIdle, in: shared.timeouts.idleSeconds, context) }
    }

    func handlerRemoved(context: ChannelHandlerContext) { self.context = nil }

    func channelActive(context: ChannelHandlerContext) {
        setDeadline(.closeIdle, in: shared.timeouts.idleSeconds, context)
        context.fireChannelActive()
    }

    func channelInactive(context: ChannelHandlerContext) {
        let isTaskBusy = if case .handling(let exchange) = state { !exchange.isAnswerWritten } else { false }
        state = .closed
        pending.removeAll(keepingCapacity: false)
        timer?.task.cancel()
        timer = nil
        // The task of a request that is being handled still has the body; it releases the budget with its answer. Else
        // whoever sends, cancels and sends again could make it hold any number of them.
        let wasDropped = mailbox.finish()
        if wasDropped || !isTaskBusy { releaseBudget() }
        context.fireChannelInactive()
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        sawPartInThisRead = true
        let part = Self.unwrapInboundIn(data)
        if case .handling = state {
            pending.append(part)
        } else {
            receive(part, context)
        }
    }

    func channelReadComplete(context: ChannelHandlerContext) {
        switch state {
        case .idle where !sawPartInThisRead && requestStartedAt == nil:
            // Bytes came, but no complete head: the request has begun.
            requestStartedAt = .now()
            setDeadline(.refuseSlowRequest, in: shared.timeouts.requestSeconds, context)
        case .reading where deadline == .none || deadline == .closeIdle:
            setDeadline(.refuseSlowRequest, in: shared.timeouts.requestSeconds, context)
        default:
            break
        }
        sawPartInThisRead = false
        context.fireChannelReadComplete()
    }

    func read(context: ChannelHandlerContext) {
        if case .handling = state {
            isReadHeld = true
        } else {
            context.read()
        }
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        guard error is HTTPParserError else {
            // Reset by the peer and the like: nobody is there to be told.
            if !(error is ByteToMessageDecoderError) { context.close(promise: nil) }
            return
        }
        switch state {
        case .idle, .reading: refuseMalformed("The request is not valid HTTP", context)
        case .handling: hasParseError = true
        case .lingering, .closed: break
        }
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        switch event {
        case ChannelEvent.inputClosed:
            isInputClosed = true
            switch state {
            case .idle, .lingering: context.close(promise: nil)
            case .reading: refuseMalformed("The request ended before its body was complete", context)
            case .handling, .closed: break
            }
        case is ChannelShouldQuiesceEvent:
            isDraining = true
            switch state {
            case .idle where requestStartedAt == nil: context.close(promise: nil)
            case .idle, .reading: setDeadline(.refuseOnDrain, in: shared.timeouts.drainSeconds, context)
            case .handling: setDeadline(.cutOffResponse, in: shared.timeouts.drainSeconds, context)
            case .lingering, .closed: break
            }
        default:
            context.fireUserInboundEventTriggered(event)
        }
    }

    // MARK: - Requests

    private func receive(_ part: HTTPServerRequestPart, _ context: ChannelHandlerContext) {
        switch (part, state) {
        case (.head(let head), .idle):
            begin(head, context)
        case (.body(let bytes), .reading(var request)):
            state = .idle  // so that the buffer is uniquely referenced while it grows
            if append(bytes, to: &request, context) { state = .reading(request) }
        case (.end, .reading(let request)):
            deliver(request, context)
        default:
            break  // lingering or closed
        }
    }

    private func begin(_ head: HTTPRequestHead, _ context: ChannelHandlerContext) {
        if requestStartedAt == nil { requestStartedAt = .now() }
        var request = PartialRequest(head: head, contentLength: nil, isGzip: false)
        state = .reading(request)
        var hostCount = 0
        for (name, value) in head.headers {
            // The length rules out nearly every header without looking at its bytes.
            switch name.utf8.count {
            case 4 where name.equalsIgnoringASCIICase("host"):
                hostCount += 1
            case 14 where name.equalsIgnoringASCIICase("content-length"):
                // The decoder has refused what is not a number, and two that differ.
                request.contentLength = Int(value.trimmingSpaces)
            case 16 where name.equalsIgnoringASCIICase("content-encoding"):
                let encoding = value.trimmingSpaces
                if encoding.equalsIgnoringASCIICase("gzip") && !request.isGzip {
                    request.isGzip = true
                } else if !encoding.isEmpty && !encoding.equalsIgnoringASCIICase("identity") {
                    return refuseMalformed("Content-Encoding must be gzip or identity", context)
                }
            default:
                continue
            }
        }
        guard hostCount == 1 || (hostCount == 0 && head.version.isBefore11) else {
            return refuseMalformed("A request must have exactly one Host header", context)
        }
        if let length = request.contentLength, length > shared.limits.bodyBytes {
            return refuse(.requestEntityTooLarge(), context)
        }
        state = .reading(request)
        if !head.version.isBefore11, let expectation = head.headers.first(name: "expect"),
            expectation.equalsIgnoringASCIICase("100-continue")
        {
            let interim = HTTPResponseHead(version: .http1_1, status: .continue)
            context.writeAndFlush(Self.wrapOutboundOut(.head(interim)), promise: nil)
        }
    }

    /// - Returns: false when the request was refused.
    private func append(
        _ bytes: ByteBuffer, to request: inout PartialRequest, _ context: ChannelHandlerContext
    ) -> Bool {
        let count = bytes.readableBytes
        guard request.byteCount + count <= shared.limits.bodyBytes else {
            state = .reading(request)
            refuse(.requestEntityTooLarge(), context)
            return false
        }
        guard shared.responder.budget.take(count) else {
            state = .reading(request)
            refuse(.serviceUnavailable("Too many request bodies at once"), context)
            return false
        }
        budgetedBytes += count
        if request.byteCount == 0 && request.contentLength == count {
            request.body = bytes
        } else {
            // Copied, because a slice of a few bytes would keep the whole receive buffer. A sender gets memory only for
            // what it has sent: at first no more than 64 KiB, then doubling.
            if request.byteCount == 0 {
                request.body = context.channel.allocator.buffer(
                    capacity: max(count, min(request.contentLength ?? 0, count * 4, 64 << 10)))
            }
            request.body.writeImmutableBuffer(bytes)
        }
        request.byteCount += count
        return true
    }

    private func deliver(_ request: PartialRequest, _ context: ChannelHandlerContext) {
        let headers = request.head.headers
        // After an `Upgrade` the decoder stops; the request itself is answered as usual.
        let keepsAlive =
            request.head.isKeepAlive && !headers.contains(name: "upgrade") && request.head.method != .CONNECT
        state = .handling(
            Exchange(method: request.head.method, version: request.head.version, keepsAlive: keepsAlive))
        let startedAt = requestStartedAt ?? .now()
        requestStartedAt = nil
        deadline = .none
        if isDraining { setDeadline(.cutOffResponse, in: shared.timeouts.drainSeconds, context) }
        mailbox.deliver(
            IncomingRequest(
                head: request.head, body: request.body, receivedAt: shared.clock(), startedAt: startedAt,
                isGzip: request.isGzip))
    }

    // MARK: - Answers

    /// Writes the answer to the request that is being handled. Called by the task, on the event loop.
    func answer(_ response: OutgoingResponse) {
        if case .closed = state { return releaseBudget() }
        guard let context, case .handling(var exchange) = state, !exchange.isAnswerWritten else { return }
        exchange.isAnswerWritten = true
        exchange.keepsAlive = exchange.keepsAlive && !isDraining && !isInputClosed
        state = .handling(exchange)
        write(response, method: exchange.method, version: exchange.version, keepsAlive: exchange.keepsAlive, context)
    }

    /// Answers a request that is not complete, and ends the connection.
    private func refuse(_ error: APIError, _ context: ChannelHandlerContext) {
        var method = HTTPMethod.POST
        var operation = "Unknown"
        var headers: [(name: String, value: String)] = []
        if case .reading(let request) = state {
            method = request.head.method
            operation = shared.responder.operationName(of: request.head)
            headers = shared.responder.cors.headers(for: request.head)
        }
        var response = OutgoingResponse(error, requestID: shared.responder.requestIDs.next(), operation: operation)
        response.extraHeaders = headers
        shared.answered(response, startedAt: requestStartedAt ?? .now())
        requestStartedAt = nil
        state = .handling(Exchange(method: method, version: .http1_1, keepsAlive: false, isAnswerWritten: true))
        write(response, method: method, version: .http1_1, keepsAlive: false, context)
    }

    private func refuseMalformed(_ message: String, _ context: ChannelHandlerContext) {
        refuse(.malformedHTTPRequest(message), context)
    }

    private func write(
        _ response: OutgoingResponse, method: HTTPMethod, version: HTTPVersion, keepsAlive: Bool,
        _ context: ChannelHandlerContext
    ) {
        let date = shared.dateHeader.text(second: shared.clock() / 1_000_000)
        let connection = keepsAlive ? (version.isBefore11 ? "keep-alive" : nil) : "close"
        context.write(Self.wrapOutboundOut(.head(response.head(date: date, connection: connection))), promise: nil)
        if method != .HEAD && !response.body.isEmpty {
            let body = context.channel.allocator.buffer(bytes: response.body)
            context.write(Self.wrapOutboundOut(.body(.byteBuffer(body))), promise: nil)
        }
        let written = context.eventLoop.makePromise(of: Void.self)
        context.writeAndFlush(Self.wrapOutboundOut(.end(nil)), promise: written)
        let isolated = NIOLoopBound((handler: self, context: context), eventLoop: context.eventLoop)
        written.futureResult.whenComplete { result in
            let (handler, context) = isolated.value
            handler.didWrite(result, context)
        }
        if case .handling(let exchange) = state, exchange.isAnswerWritten {
            setDeadline(
                .cutOffResponse, in: isDraining ? shared.timeouts.drainSeconds : shared.timeouts.responseSeconds,
                context)
        }
    }

    private func didWrite(_ result: Result<Void, any Error>, _ context: ChannelHandlerContext) {
        guard case .handling(let exchange) = state else { return }
        releaseBudget()
        guard case .success = result else { return context.close(promise: nil) }
        guard exchange.keepsAlive && !hasParseError else { return endExchange(exchange, context) }
        if isDraining || isInputClosed { return context.close(promise: nil) }

        state = .idle
        setDeadline(.closeIdle, in: shared.timeouts.idleSeconds, context)
        while !pending.isEmpty {
            if case .handling = state { return }
            receive(pending.removeFirst(), context)
        }
        if case .reading = state { setDeadline(.refuseSlowRequest, in: shared.timeouts.requestSeconds, context) }
        resumeReading(context)
    }

    /// The last answer is out: reports bytes the decoder could not read, or shuts our side and lingers.
    private func endExchange(_ exchange: Exchange, _ context: ChannelHandlerContext) {
        if exchange.keepsAlive && hasParseError {
            hasParseError = false
            state = .idle
            // Complete requests before the bad bytes are answered first.
            while let part = pending.popFirst() {
                receive(part, context)
                if case .handling = state {
                    hasParseError = true
                    return
                }
            }
            return refuseMalformed("The request is not valid HTTP", context)
        }
        state = .lingering
        pending.removeAll(keepingCapacity: false)
        if isInputClosed { return context.close(promise: nil) }
        context.close(mode: .output, promise: nil)
        guard case .lingering = state else { return }  // a stream is closed at once
        setDeadline(.closeLingering, in: shared.timeouts.lingerSeconds, context)
        resumeReading(context)
    }

    private func resumeReading(_ context: ChannelHandlerContext) {
        guard isReadHeld else { return }
        if case .handling = state { return }
        isReadHeld = false
        context.read()
    }

    private func releaseBudget() {
        shared.responder.budget.giveBack(budgetedBytes)
        budgetedBytes = 0
    }

    // MARK: - Deadlines

    /// Replaces the deadline. At most one timer is scheduled; one that fires too early looks at the deadline again, so
    /// a busy connection does not schedule and cancel a timer per request.
    private func setDeadline(_ deadline: Deadline, in seconds: Double, _ context: ChannelHandlerContext) {
        self.deadline = deadline
        deadlineAt = .now() + .nanoseconds(Int64(seconds * 1_000_000_000))
        if let timer {
            guard deadlineAt < timer.firesAt else { return }
            timer.task.cancel()
        }
        schedule(context)
    }

    private func schedule(_ context: ChannelHandlerContext) {
        let isolated = NIOLoopBound((handler: self, context: context), eventLoop: context.eventLoop)
        let task = context.eventLoop.scheduleTask(deadline: deadlineAt) {
            let (handler, context) = isolated.value
            handler.timerFired(context)
        }
        timer = (task, deadlineAt)
    }

    private func timerFired(_ context: ChannelHandlerContext) {
        timer = nil
        guard deadline != .none else { return }
        guard deadlineAt <= .now() else { return schedule(context) }
        switch (deadline, state) {
        case (.refuseSlowRequest, .idle), (.refuseSlowRequest, .reading):
            refuse(.requestTimeout(), context)
        case (.refuseOnDrain, .idle), (.refuseOnDrain, .reading):
            refuse(.serviceUnavailable("The server is shutting down"), context)
        case (.closeIdle, .idle), (.cutOffResponse, .handling), (.closeLingering, .lingering):
            context.close(promise: nil)
        default:
            break  // the state it was set for is over
        }
    }
}

extension HTTPVersion {
    /// The decoder passes major version 1 only.
    fileprivate var isBefore11: Bool { major < 1 || major == 1 && minor < 1 }
}

extension StringProtocol {
    /// - Parameter lowercased: ASCII, lower case.
    fileprivate func equalsIgnoringASCIICase(_ lowercased: StaticString) -> Bool {
        guard utf8.count == lowercased.utf8CodeUnitCount else { return false }
        let expected = UnsafeBufferPointer(start: lowercased.utf8Start, count: lowercased.utf8CodeUnitCount)
        return utf8.elementsEqual(expected) { byte, expected in
            byte == expected || (UInt8(ascii: "A")...UInt8(ascii: "Z")).contains(byte) && byte | 0x20 == expected
        }
    }

    fileprivate var trimmingSpaces: SubSequence {
        let isSpace = { (character: Character) in character == " " || character == "\t" }
        guard let start = firstIndex(where: { !isSpace($0) }), let end = lastIndex(where: { !isSpace($0) }) else {
            return self[endIndex...]
        }
        return self[start...end]
    }
}
