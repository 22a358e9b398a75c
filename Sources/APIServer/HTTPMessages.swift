// What passes between a connection (event loop) and the responder (task): one complete request, one complete answer.

import NIOCore
import NIOHTTP1
import Segments
import XRayAPI

/// A request whose last byte has arrived. The body is as on the wire.
struct IncomingRequest: Sendable {
    var head: HTTPRequestHead
    var body: ByteBuffer
    /// Microseconds since 1970.
    var receivedAt: Micros
    /// For the duration of the request.
    var startedAt: NIODeadline
    var isGzip: Bool

    /// The request target in origin form: `/path?query`, also when the client sent an absolute URI.
    var target: Substring { Self.originForm(head.uri) }

    static func originForm(_ uri: String) -> Substring {
        guard uri.utf8.first != UInt8(ascii: "/") else { return uri[...] }
        for scheme in ["http://", "https://"] where uri.utf8.starts(with: scheme.utf8) {
            let afterScheme = uri.utf8.dropFirst(scheme.utf8.count)
            guard let slash = afterScheme.firstIndex(of: UInt8(ascii: "/")) else { return "/" }
            return uri[slash...]
        }
        return uri[...]
    }
}

/// A complete answer.
struct OutgoingResponse: Sendable {
    var status: Int
    var body: [UInt8]
    var requestID: String
    var errorType: String?
    var retryAfterSeconds: Int?
    var extraHeaders: [(name: String, value: String)] = []
    /// Name of the operation in metrics and logs.
    var operation: String

    /// 204: nothing but headers.
    init(emptyWith headers: [(name: String, value: String)], requestID: String, operation: String) {
        status = 204
        body = []
        self.requestID = requestID
        extraHeaders = headers
        self.operation = operation
    }

    init(body: [UInt8], headers: [(name: String, value: String)] = [], requestID: String, operation: String) {
        status = 200
        self.body = body
        self.requestID = requestID
        extraHeaders = headers
        self.operation = operation
    }

    init(_ error: APIError, requestID: String, operation: String) {
        status = error.status
        body = error.body
        self.requestID = requestID
        errorType = error.name
        retryAfterSeconds = error.retryAfterSeconds
        self.operation = operation
    }

    /// The headers of `api.md` §1.3.
    func head(date: String, connection: String?) -> HTTPResponseHead {
        var headers = HTTPHeaders()
        headers.reserveCapacity(8 + extraHeaders.count)
        if status != 204 {  // which has no body, not even an empty one (RFC 9110 §8.6)
            headers.add(name: "Content-Type", value: "application/json")
            headers.add(name: "Content-Length", value: String(body.count))
        }
        headers.add(name: "Date", value: date)
        headers.add(name: "x-amzn-RequestId", value: requestID)
        if let errorType { headers.add(name: "x-amzn-ErrorType", value: errorType) }
        if let retryAfterSeconds { headers.add(name: "Retry-After", value: String(retryAfterSeconds)) }
        if let connection { headers.add(name: "Connection", value: connection) }
        for (name, value) in extraHeaders { headers.add(name: name, value: value) }
        return HTTPResponseHead(version: .http1_1, status: HTTPResponseStatus(statusCode: status), headers: headers)
    }
}
