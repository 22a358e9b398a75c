// One HTTP/2 stream seen as a connection with one request: frames in, request parts out, and back. So the
// `ConnectionHandler` behind it applies the same limits, time-outs and error format as on HTTP/1.1. `NIOHTTP2Handler` has
// already checked what RFC 9113 demands of a header block (pseudo-headers first, none twice, no connection headers) and
// that the body is as long as declared.

import NIOCore
import NIOHPACK
import NIOHTTP1
import NIOHTTP2

final class HTTP2StreamCodec: ChannelDuplexHandler {
    typealias InboundIn = HTTP2Frame.FramePayload
    typealias InboundOut = HTTPServerRequestPart
    typealias OutboundIn = HTTPServerResponsePart
    typealias OutboundOut = HTTP2Frame.FramePayload

    private let limits: APIServiceConfiguration.Limits
    private var sawHead = false
    private var sawEnd = false
    /// The last frame written; it waits for the next part, because the last one of all carries END_STREAM.
    private var held: (frame: HTTP2Frame.FramePayload, promise: EventLoopPromise<Void>?)?
    private var wroteEnd = false

    init(limits: APIServiceConfiguration.Limits) { self.limits = limits }

    // MARK: - Requests

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        switch Self.unwrapInboundIn(data) {
        case .headers(let block) where !sawHead:
            sawHead = true
            do throws(HTTPParserError) {
                let head = try requestHead(block.headers)
                context.fireChannelRead(Self.wrapInboundOut(.head(head)))
            } catch {
                sawEnd = block.endStream
                return context.fireErrorCaught(error)
            }
            if block.endStream { end(context) }
        case .headers(let block):
            if block.endStream { end(context) }  // trailers; nobody reads them
        case .data(let frame):
            if case .byteBuffer(let bytes) = frame.data, bytes.readableBytes > 0 {
                context.fireChannelRead(Self.wrapInboundOut(.body(bytes)))
            }
            if frame.endStream { end(context) }
        default:
            break
        }
    }

    private func end(_ context: ChannelHandlerContext) {
        sawEnd = true
        context.fireChannelRead(Self.wrapInboundOut(.end(nil)))
    }

    /// The version is 1.1, because that is what the rest of the server knows: a request with exactly one `Host`.
    private func requestHead(_ block: HPACKHeaders) throws(HTTPParserError) -> HTTPRequestHead {
        guard block.count <= limits.headerCount else { throw .headerOverflow }
        var method: String?
        var path: String?
        var authority: String?
        var headers: [(String, String)] = []
        headers.reserveCapacity(block.count)
        for (name, value, _) in block {
            guard name.utf8.count + value.utf8.count <= limits.headerFieldBytes else { throw .headerOverflow }
            switch name {
            case ":method": method = value
            case ":path": path = value
            case ":authority": authority = value
            case _ where name.utf8.first == UInt8(ascii: ":"): break
            case "host" where value == authority: break  // two that differ are refused as two (RFC 9113 §8.3.1)
            default: headers.append((name, value))
            }
        }
        guard let method, let path else { throw .invalidMethod }  // CONNECT
        if let authority { headers.append(("host", authority)) }
        return HTTPRequestHead(
            version: .http1_1, method: HTTPMethod(rawValue: method), uri: path, headers: HTTPHeaders(headers))
    }

    // MARK: - Answers

    func write(context: ChannelHandlerContext, data: NIOAny, promise: EventLoopPromise<Void>?) {
        switch Self.unwrapOutboundIn(data) {
        case .head(let head):
            var fields = HTTPHeaders([(":status", String(head.status.code))])
            fields.add(contentsOf: head.headers)
            // Normalising makes names lower case and drops `Connection`.
            let block = HPACKHeaders(httpHeaders: fields, normalizeHTTPHeaders: true)
            let frame = HTTP2Frame.FramePayload.headers(.init(headers: block))
            if head.status.code < 200 {
                context.write(Self.wrapOutboundOut(frame), promise: promise)
            } else {
                hold(frame, promise, context)
            }
        case .body(let bytes):
            hold(.data(.init(data: bytes)), promise, context)
        case .end:
            writeEnd(promise, context)
        }
    }

    private func hold(
        _ frame: HTTP2Frame.FramePayload, _ promise: EventLoopPromise<Void>?, _ context: ChannelHandlerContext
    ) {
        writeHeld(context)
        held = (frame, promise)
    }

    private func writeHeld(_ context: ChannelHandlerContext) {
        guard let (frame, promise) = held else { return }
        held = nil
        context.write(Self.wrapOutboundOut(frame), promise: promise)
    }

    private func writeEnd(_ promise: EventLoopPromise<Void>?, _ context: ChannelHandlerContext) {
        wroteEnd = true
        var last = HTTP2Frame.FramePayload.data(
            .init(data: .byteBuffer(context.channel.allocator.buffer(capacity: 0)), endStream: true))
        if let held {
            self.held = nil
            if let earlier = held.promise {
                promise?.futureResult.cascade(to: earlier)
                if promise == nil { earlier.succeed() }
            }
            switch held.frame {
            case .headers(var block):
                block.endStream = true
                last = .headers(block)
            case .data(var frame):
                frame.endStream = true
                last = .data(frame)
            default:
                break
            }
        }
        context.write(Self.wrapOutboundOut(last), promise: promise)
    }

    func flush(context: ChannelHandlerContext) {
        writeHeld(context)
        context.flush()
    }

    /// "No more answers" of a connection. A stream whose request is complete is closed by its answer; of the others the
    /// client need not send the rest (RFC 9113 §8.1), and what is on its way is thrown away by `NIOHTTP2Handler`.
    func close(context: ChannelHandlerContext, mode: CloseMode, promise: EventLoopPromise<Void>?) {
        switch mode {
        case .output where wroteEnd && sawEnd:
            promise?.succeed()
        case .output where wroteEnd:
            context.writeAndFlush(Self.wrapOutboundOut(.rstStream(.noError)), promise: promise)
        default:
            context.close(mode: mode, promise: promise)
        }
    }

    func channelInactive(context: ChannelHandlerContext) {
        held?.promise?.fail(ChannelError.ioOnClosedChannel)
        held = nil
        context.fireChannelInactive()
    }
}
