// One operation of the API as the server sees it: where it is, what it needs, and the function that answers.
// Ingest and Query make arrays of these; the server does everything of HTTP around them.

import AccessControl
import NIOCore
import NIOHTTP1
import Segments
import XRayAPI

/// The class of an operation decides its rate limit (`api.md` §1.5).
public enum OperationClass: String, CaseIterable, Hashable, Sendable {
    case ingest, sampling, query, control
}

/// An operation of the API.
public struct Operation: Sendable {
    public typealias Handler = @Sendable (OperationRequest) async throws(APIError) -> OperationResponse

    /// Name of the operation and of its IAM action: `PutTraceSegments`.
    public var name: String
    /// Path of its `POST`: `/TraceSegments`.
    public var path: String
    public var operationClass: OperationClass
    public var handler: Handler

    /// - Parameter handler: called with an authenticated and authorized request. What it throws is the answer.
    public init(name: String, path: String, class operationClass: OperationClass, handler: @escaping Handler) {
        self.name = name
        self.path = path
        self.operationClass = operationClass
        self.handler = handler
    }
}

/// A request that passed framing, authentication and authorization.
public struct OperationRequest: Sendable {
    public var caller: Caller
    /// The account the operation works on.
    public var account: AccountID
    /// The decompressed body; empty counts as `{}`.
    public var body: ByteBuffer
    /// Microseconds since 1970, when the last byte of the request had arrived.
    public var receivedAt: Micros
    /// The `x-amzn-RequestId` of the answer.
    public var requestID: String
    public var headers: HTTPHeaders

    public init(
        caller: Caller, account: AccountID, body: ByteBuffer, receivedAt: Micros, requestID: String = "",
        headers: HTTPHeaders = [:]
    ) {
        self.caller = caller
        self.account = account
        self.body = body
        self.receivedAt = receivedAt
        self.requestID = requestID
        self.headers = headers
    }

    /// The first value of a header, its name in any case; nil without one.
    public func header(_ name: String) -> String? { headers.first(name: name) }

    /// The body's bytes without a copy; valid during the call only.
    public func withBody<Result, Failure: Error>(
        _ use: (UnsafeRawBufferPointer) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        // `ByteBuffer` rethrows untyped; the outcome is carried out of it by hand.
        var outcome: Swift.Result<Result, Failure>?
        body.withUnsafeReadableBytes { bytes in
            do throws(Failure) { outcome = .success(try use(bytes)) } catch { outcome = .failure(error) }
        }
        guard let outcome else { preconditionFailure("withUnsafeReadableBytes calls its closure exactly once") }
        return try outcome.get()
    }
}

/// A successful answer: 200 with a JSON object.
public struct OperationResponse: Sendable {
    public var body: [UInt8]
    /// Further response headers (`x-beamline-complete-to`).
    public var headers: [(name: String, value: String)]
    /// What the request costs in its class's rate limit: the number of documents for ingest, 1 otherwise.
    public var cost: Int

    public init(body: [UInt8], headers: [(name: String, value: String)] = [], cost: Int = 1) {
        self.body = body
        self.headers = headers
        self.cost = cost
    }
}
