// The HTTP server of the API. In: operations, a directory of credentials, settings. It runs as a service: it listens
// until graceful shutdown, then stops accepting, lets running requests finish and returns. Listening, accepting and
// draining are Hummingbird's (`HummingbirdCore.Server`). What happens on one connection is ours
// (`ConnectionHandler.swift`), because framing errors, time-outs and early refusals must be answered in the error
// format of the API.

import AccessControl
import Glibc
import HummingbirdCore
import Logging
import NIOCore
import NIOHTTP1
import NIOPosix
import ServiceLifecycle
import Synchronization
import XRayAPI

/// Called once per answered request: the operation's name (`Unknown` for paths that are none), the status, the seconds
/// from its first byte to its answer. Called on event loops: it must not block.
public typealias RequestObserver = @Sendable (_ operation: String, _ status: Int, _ seconds: Double) -> Void

/// Serves operations over HTTP/1.1, or over TLS with HTTP/2 and HTTP/1.1.
public struct APIService: Service {
    private let configuration: APIServiceConfiguration
    private let responder: Responder
    private let observe: RequestObserver
    private let onListening: @Sendable (_ host: String, _ port: Int) async -> Void
    private let logger: Logger
    /// Made by `run`, which can fail.
    private let certificate = CurrentCertificate()

    /// - Parameters:
    ///   - operations: what the server answers; of two with the same path the later one counts.
    ///   - isReady: what `GET /readyz` answers: 200 or 503.
    ///   - onListening: called once, with the port that is bound.
    public init(
        operations: [Operation], directory: any CredentialDirectory,
        configuration: APIServiceConfiguration = APIServiceConfiguration(),
        isReady: @escaping @Sendable () -> Bool = { true },
        observe: @escaping RequestObserver = { _, _, _ in },
        onListening: @escaping @Sendable (_ host: String, _ port: Int) async -> Void = { _, _ in },
        logger: Logger
    ) {
        self.configuration = configuration
        self.observe = observe
        self.onListening = onListening
        self.logger = logger
        responder = Responder(
            operations: operations, configuration: configuration, directory: directory, isReady: isReady, logger: logger
        )
    }

    /// Bytes of request bodies that are being read or worked on now.
    public var bytesInFlight: Int { responder.budget.usedBytes }

    /// Reads the certificate and the key again; connections from now on get the new ones. When they cannot be used the
    /// old ones stay, and the log says why. Nothing happens without TLS.
    public func reloadCertificates() {
        guard let files = configuration.tls, let certificate = certificate.value else { return }
        do {
            try certificate.reload()
            logger.notice("read the certificate again", metadata: ["file": "\(files.certificatePath)"])
        } catch {
            logger.error("keeping the old certificate: \(error)")
        }
    }

    /// Serves until graceful shutdown.
    /// - Throws: `TLSFilesError` when the certificate or key cannot be used, `APIServiceError` when the address cannot be
    ///   listened on.
    public func run() async throws {
        let shared = ConnectionContext(
            limits: configuration.limits, timeouts: configuration.timeouts, clock: configuration.clock,
            responder: responder, observe: observe, dateHeader: DateHeader())
        let connections = min(configuration.limits.connections, max(64, OpenFiles.raiseLimit() - OpenFiles.reserved))
        var quietLogger = logger
        quietLogger.logLevel = max(logger.logLevel, .warning)  // the caller announces the address itself
        let plain = APIChannel(shared: shared)
        if let files = configuration.tls {
            let certificate = try ServerCertificate(files, shutdownSeconds: configuration.timeouts.lingerSeconds)
            self.certificate.value = certificate
            try await serve(TLSChannel(connection: plain, certificate: certificate), connections, quietLogger)
        } else {
            try await serve(plain, connections, quietLogger)
        }
    }

    private func serve(_ channel: some ServerChildChannel, _ connections: Int, _ quietLogger: Logger) async throws {
        let server = Server(
            childChannelSetup: channel,
            configuration: ServerConfiguration(
                address: .hostname(configuration.host, port: configuration.port), backlog: 4096,
                availableConnectionsDelegate: MaximumAvailableConnections(connections, logger: quietLogger)),
            onServerRunning: { [logger, onListening] channel in
                try? await channel.pipeline.addHandler(AcceptErrorHandler(logger: logger), position: .first).get()
                await onListening(channel.localAddress?.ipAddress ?? "", channel.localAddress?.port ?? 0)
            },
            eventLoopGroup: MultiThreadedEventLoopGroup.singleton,
            logger: quietLogger)
        do {
            try await server.run()
        } catch {
            throw APIServiceError(host: configuration.host, port: configuration.port, cause: error)
        }
    }
}

/// Why the server could not start.
public struct APIServiceError: Error, CustomStringConvertible {
    public var host: String
    public var port: Int
    public var cause: any Error

    public var description: String {
        "cannot serve the API on \(host):\(port): \(cause); is the port free and the address one of this machine?"
    }
}

/// The certificate once it is loaded. A service is a value; its copies share this.
private final class CurrentCertificate: Sendable {
    private let certificate = Mutex<ServerCertificate?>(nil)

    var value: ServerCertificate? {
        get { certificate.withLock { $0 } }
        set { certificate.withLock { $0 = newValue } }
    }
}

/// Sets up a connection and runs its requests.
struct APIChannel: ServerChildChannel {
    struct Value: ServerChildChannelValue {
        let channel: any Channel
        let mailbox: Mailbox
        /// Lives on the channel's event loop.
        let handler: NIOLoopBound<ConnectionHandler>
    }

    let shared: ConnectionContext

    func setup(channel: any Channel, logger: Logger) -> EventLoopFuture<Value> {
        channel.eventLoop.makeCompletedFuture {
            let pipeline = channel.pipeline.syncOperations
            var decoderLimits = NIOHTTPDecoderLimitConfiguration()
            decoderLimits.maxHeaderFieldSize = shared.limits.headerFieldBytes
            decoderLimits.maxHeaderListSize = shared.limits.headerBytes
            decoderLimits.maxHeaderFieldCount = shared.limits.headerCount
            try pipeline.configureHTTPServerPipeline(
                withPipeliningAssistance: false, withErrorHandling: false, withOutboundHeaderValidation: false,
                withEncoderConfiguration: .init(), withDecoderLimitConfiguration: decoderLimits)
            return try addHandler(to: channel)
        }
    }

    /// The end of the pipeline: of a connection, or of a stream of HTTP/2.
    func addHandler(to channel: any Channel) throws -> Value {
        let mailbox = Mailbox()
        let handler = ConnectionHandler(shared: shared, mailbox: mailbox)
        try channel.pipeline.syncOperations.addHandler(handler)
        return Value(channel: channel, mailbox: mailbox, handler: NIOLoopBound(handler, eventLoop: channel.eventLoop))
    }

    /// The connection's task: one request after the other until the connection is closed.
    func handle(value: Value, logger: Logger) async {
        await withTaskCancellationHandler {
            while let request = await value.mailbox.next() {
                let response = await shared.responder.respond(to: request)
                shared.answered(response, startedAt: request.startedAt)
                value.channel.eventLoop.execute { value.handler.value.answer(response) }
            }
        } onCancel: {
            value.channel.close(promise: nil)
        }
    }
}

/// Keeps the listening socket alive through errors of `accept` that pass (a connection aborted in the queue, no file
/// descriptors left): they must not reach the server, which would stop. After one it does not accept for a moment, so
/// that it does not spin.
private final class AcceptErrorHandler: ChannelDuplexHandler, @unchecked Sendable {
    // Unchecked: it is created on one thread, handed over once, and then only used by the pipeline on the channel's
    // event loop.
    typealias InboundIn = Channel
    typealias OutboundIn = Never

    private let logger: Logger
    private var isPausing = false

    init(logger: Logger) { self.logger = logger }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        guard let code = (error as? IOError)?.errnoCode,
            [ECONNABORTED, EMFILE, ENFILE, ENOBUFS, ENOMEM].contains(code)
        else { return context.fireErrorCaught(error) }
        logger.warning("cannot accept a connection", metadata: ["error": "\(error)"])
        guard !isPausing else { return }
        isPausing = true
        let isolated = NIOLoopBound((handler: self, context: context), eventLoop: context.eventLoop)
        context.eventLoop.scheduleTask(in: .milliseconds(100)) {
            let (handler, context) = isolated.value
            handler.isPausing = false
            // Also when nobody asked meanwhile: an error after a connection was accepted in the same turn leaves the
            // channel without a pending read (NIO reads again only after a turn without error).
            context.read()
        }
    }

    func read(context: ChannelHandlerContext) {
        if !isPausing { context.read() }
    }
}

/// The number of files the process may open: every connection is one.
private enum OpenFiles {
    /// Kept for the database, the log and everything else that is not a connection.
    static let reserved = 256

    /// Raises the soft limit (1024 by default on Debian) to the hard one and returns it.
    static func raiseLimit() -> Int {
        var limit = rlimit()
        guard getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else { return 1024 }
        if limit.rlim_cur < limit.rlim_max {
            var raised = limit
            raised.rlim_cur = limit.rlim_max
            if setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &raised) == 0 { limit = raised }
        }
        return Int(clamping: limit.rlim_cur)
    }
}
