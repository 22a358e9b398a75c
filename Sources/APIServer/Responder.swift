// Answers one complete request: preflight, route, authentication, decompression, target account, authorization, rate limit,
// handler, in the order of `api.md` §1.4. No sockets here; the connection calls it, and it never throws: every failure
// is an answer.

import AccessControl
import Crypto
import Logging
import NIOCore
import NIOHTTP1
import Segments
import XRayAPI

final class Responder: Sendable {
    private let operations: [String: Operation]
    private let configuration: APIServiceConfiguration
    private let directory: any CredentialDirectory
    private let authenticator: Authenticator
    private let rateLimiter: RateLimiter
    private let isReady: @Sendable () -> Bool
    private let logger: Logger
    let requestIDs = RequestIDGenerator()
    let cors: CORS
    let budget: ByteBudget

    init(
        operations: [Operation], configuration: APIServiceConfiguration, directory: any CredentialDirectory,
        isReady: @escaping @Sendable () -> Bool, logger: Logger
    ) {
        self.operations = Dictionary(operations.map { ($0.path, $0) }) { _, last in last }
        self.configuration = configuration
        self.directory = directory
        authenticator = Authenticator(settings: configuration.authentication, directory: directory)
        rateLimiter = RateLimiter(configuration.rateLimits)
        self.isReady = isReady
        self.logger = logger
        cors = CORS(allowedOrigins: configuration.allowedOrigins)
        budget = ByteBudget(limit: configuration.limits.bytesInFlight)
    }

    /// The operation's name for metrics and logs; `Unknown` for every other path, so that labels stay few.
    func operationName(of head: HTTPRequestHead) -> String {
        Route(IncomingRequest.originForm(head.uri), method: head.method, operations: operations).name
    }

    func respond(to request: IncomingRequest) async -> OutgoingResponse {
        if cors.isPreflight(request.head) {
            return OutgoingResponse(
                emptyWith: cors.preflightHeaders(for: request.head), requestID: requestIDs.next(),
                operation: "Preflight")
        }
        var response = await answer(request)
        // The daemon says there what it is and where it runs.
        logger.debug(
            "answered",
            metadata: [
                "operation": "\(response.operation)", "status": "\(response.status)",
                "request": "\(response.requestID)",
                "user-agent": "\(request.head.headers.first(name: "user-agent") ?? "")",
            ])
        response.extraHeaders += cors.headers(for: request.head)
        return response
    }

    private func answer(_ request: IncomingRequest) async -> OutgoingResponse {
        let requestID = requestIDs.next()
        let route = Route(request.target, method: request.head.method, operations: operations)
        do throws(APIError) {
            switch route.kind {
            case .health:
                return OutgoingResponse(body: Array("{}".utf8), requestID: requestID, operation: route.name)
            case .readiness:
                guard isReady() else { throw APIError.serviceUnavailable("Not ready to serve") }
                return OutgoingResponse(body: Array("{}".utf8), requestID: requestID, operation: route.name)
            case .operation, .unknown:
                let answer = try await execute(request, route: route, requestID: requestID)
                return OutgoingResponse(
                    body: answer.body, headers: answer.headers, requestID: requestID, operation: route.name)
            }
        } catch {
            if error.status == 500 {
                logger.error("\(error.message)", metadata: ["request": "\(requestID)", "operation": "\(route.name)"])
            }
            return OutgoingResponse(error, requestID: requestID, operation: route.name)
        }
    }

    private func execute(
        _ request: IncomingRequest, route: Route, requestID: String
    ) async throws(APIError) -> OperationResponse {
        let authenticated = try await authenticate(request, requestID: requestID)
        let caller = authenticated.caller

        // Inflating comes after authentication, so that only known callers can make the server work for their bytes.
        var body = request.body
        var inflatedBytes = 0
        defer { budget.giveBack(inflatedBytes) }
        if request.isGzip && body.readableBytes > 0 { body = try decompress(body, takenBytes: &inflatedBytes) }

        let account = try targetAccount(of: request, path: route.accountPath) ?? caller.account
        guard case .operation(let operation) = route.kind else { throw APIError.unknownOperation() }
        try await authorize(authenticated, operation: operation, account: account, requestID: requestID)
        if let seconds = rateLimiter.admit(account, operation.operationClass, now: request.receivedAt) {
            throw APIError.throttled(retryAfterSeconds: seconds)
        }
        let response = try await operation.handler(
            OperationRequest(
                caller: caller, account: account, body: body, receivedAt: request.receivedAt, requestID: requestID,
                headers: request.head.headers))
        rateLimiter.charge(account, operation.operationClass, cost: response.cost)
        return response
    }

    private func authenticate(
        _ request: IncomingRequest, requestID: String
    ) async throws(APIError) -> Authenticator.Authenticated {
        let digest = request.body.withUnsafeReadableBytes { bytes in
            var hash = SHA256()
            hash.update(bufferPointer: bytes)
            return hash.finalize()
        }
        let target = request.target
        let question = target.utf8.firstIndex(of: UInt8(ascii: "?"))
        let wireRequest = WireRequest(
            method: request.head.method.rawValue,
            path: target[..<(question ?? target.endIndex)],
            query: question.map { target[target.utf8.index(after: $0)...] } ?? "",
            headers: request.head.headers.map { ($0.name, $0.value) },
            bodyHash: digest)
        do {
            return try await authenticator.authenticate(wireRequest, now: configuration.clock())
        } catch {
            throw answer(to: error, during: "authentication", requestID: requestID)
        }
    }

    private func targetAccount(of request: IncomingRequest, path: AccountPath) throws(APIError) -> AccountID? {
        let host = request.head.headers.first(name: "host") ?? ""
        do {
            return try TargetAccount.resolve(
                path: path, host: TargetAccount.named(byHost: host, suffix: configuration.hostSuffix))
        } catch {
            throw APIError(error)
        }
    }

    private func authorize(
        _ authenticated: Authenticator.Authenticated, operation: Operation, account: AccountID, requestID: String
    ) async throws(APIError) {
        do {
            try await Authorization.check(
                authenticated.caller, accountState: authenticated.accountState, action: operation.name, in: account,
                directory: directory)
        } catch {
            throw answer(to: error, during: "authorization", requestID: requestID)
        }
    }

    private func decompress(_ body: ByteBuffer, takenBytes: inout Int) throws(APIError) -> ByteBuffer {
        var taken = 0
        defer { takenBytes = taken }
        do throws(GzipError) {
            return try Gzip.decompress(body, limit: configuration.limits.decompressedBodyBytes) { count in
                guard budget.take(count) else { return false }
                taken += count
                return true
            }
        } catch {
            switch error {
            case .malformed: throw .malformedHTTPRequest("The request body is not valid gzip")
            case .tooLarge: throw .requestEntityTooLarge()
            case .noBudget: throw .serviceUnavailable("Too many request bodies at once")
            }
        }
    }

    /// A refusal is an answer; anything else means that the directory cannot be asked, and nobody is let through
    /// unasked.
    private func answer(to error: any Error, during step: String, requestID: String) -> APIError {
        if let refusal = error as? AccessRefusal { return APIError(refusal) }
        logger.warning(
            "the directory of accounts and keys does not answer",
            metadata: ["step": "\(step)", "request": "\(requestID)", "error": "\(String(reflecting: error))"])
        return .serviceUnavailable()
    }
}

extension APIError {
    public init(_ refusal: AccessRefusal) {
        self.init(name: refusal.name, status: refusal.status, message: refusal.message)
    }
}

/// Where a request goes.
struct Route {
    enum Kind {
        case operation(Operation)
        case health
        case readiness
        case unknown
    }

    var kind: Kind
    var accountPath: AccountPath
    var name: String

    init(_ target: Substring, method: HTTPMethod, operations: [String: Operation]) {
        let path = target.utf8.firstIndex(of: UInt8(ascii: "?")).map { target[..<$0] } ?? target
        accountPath = AccountPath(path)
        var operationPath = path
        switch accountPath {
        case .none: break
        case .account(_, let rest): operationPath = rest
        case .malformed: operationPath = ""
        }
        if operationPath.utf8.count > 1 && operationPath.utf8.last == UInt8(ascii: "/") { operationPath.removeLast() }

        if method == .POST, let operation = operations[String(operationPath)] {
            kind = .operation(operation)
            name = operation.name
        } else if (method == .GET || method == .HEAD) && operationPath == "/healthz" {
            kind = .health
            name = "healthz"
        } else if (method == .GET || method == .HEAD) && operationPath == "/readyz" {
            kind = .readiness
            name = "readyz"
        } else {
            kind = .unknown
            name = "Unknown"
        }
    }
}
