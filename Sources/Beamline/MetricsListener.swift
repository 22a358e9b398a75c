// `GET /metrics` of this process, on a listener of its own, and for a role without an API whether it is alive and ready.

import Hummingbird
import Logging
import NIOCore
import Observability
import ServiceLifecycle

struct MetricsListener: Service {
    let address: ListenAddress
    let metrics: Metrics
    /// What `GET /readyz` answers: 200 or 503.
    let isReady: @Sendable () -> Bool
    let logger: Logger
    /// Called once, with the port that is bound.
    let onListening: @Sendable (_ port: Int) -> Void

    func run() async throws {
        let router = Router()
        router.get("/metrics") { _, _ in
            Response(
                status: .ok, headers: [.contentType: "text/plain; version=0.0.4; charset=utf-8"],
                body: ResponseBody(byteBuffer: ByteBuffer(string: metrics.text())))
        }
        router.get("/healthz") { _, _ in HTTPResponse.Status.ok }
        router.get("/readyz") { _, _ in isReady() ? HTTPResponse.Status.ok : .serviceUnavailable }
        var quiet = logger
        quiet.logLevel = max(logger.logLevel, .warning)
        let application = Application(
            router: router,
            configuration: ApplicationConfiguration(address: .hostname(address.host, port: address.port)),
            onServerRunning: { channel in onListening(channel.localAddress?.port ?? 0) }, logger: quiet)
        do {
            try await application.run()
        } catch {
            throw CommandFailure("cannot serve metrics on \(address) (--metrics): \(error); is the port free?")
        }
    }
}
