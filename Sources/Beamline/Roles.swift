// What each role consists of: a list of services made from the same few parts. `standalone` is all lists in one process;
// `ingest`, `aggregate` and `query` are one each, with the parts every process has.

import APIServer
import AccessControl
import Aggregation
import Crypto
import Glibc
import Ingest
import Logging
import Observability
import PostgreSQL
import PrivatePostgreSQL
import Query
import SegmentLog
import Segments
import ServiceLifecycle
import Synchronization
import TraceStore
import UnixSignals
import XRayAPI

/// What the services of a process share.
struct Roles {
    let settings: ServerSettings
    let log: any SegmentLog
    let store: TraceStore
    let leases: LeaseKeeper
    let metrics: Metrics
    let logger: Logger
    let serving: ServingState

    /// Opens the store and the log, which must have the tables of this version.
    static func open(
        _ settings: ServerSettings, node: Node, database: PostgresConfiguration, metrics: Metrics, logger: Logger
    ) async throws -> Roles {
        let store = TraceStore(database: database, logger: logger)
        do {
            try await store.checkSchema()
            let log = try await openLog(settings.log, store: store, database: database, logger: logger)
            let registry = NodeRegistry(node: node, database: database)
            return Roles(
                settings: settings, log: log, store: store,
                leases: LeaseKeeper(registry: registry, metrics: metrics, logger: logger), metrics: metrics,
                logger: logger, serving: ServingState())
        } catch {
            await store.close()
            throw error
        }
    }

    /// What `body` makes; nothing stays open when it fails.
    func closedOnFailure<Result>(_ body: () async throws -> Result) async throws -> Result {
        do {
            return try await body()
        } catch {
            await log.close()
            await leases.close()
            await store.close()
            throw error
        }
    }

    // MARK: Services

    /// Of every process; the first in its list, so the last to end.
    func foundation() -> [any Service] {
        if let log = log as? PostgresLog {
            metrics.sampled(
                "beamline_log_round_trips_total", "Round trips to PostgreSQL for the log.", kind: .counter
            ) {
                Double(log.roundTrips)
            }
        }
        metrics.sampled(
            "beamline_store_round_trips_total", "Round trips to PostgreSQL for everything else.", kind: .counter
        ) { [store] in
            Double(store.roundTrips)
        }
        metrics.sampled("beamline_log_queue_bytes", "Records waiting to become durable in the log.") { [log] in
            Double(log.queuedBytes)
        }
        return [
            Worker(run: { [store] in await store.run() }, close: { [store] in await store.close() }),
            Worker(run: { [log] in await log.run() }, close: { [log] in await log.close() }),
            leases,
        ]
    }

    func aggregator() -> Aggregator {
        var options = AggregatorOptions()
        options.maxTraceBytes = settings.maxTraceBytes
        return Aggregator(
            log: log, store: store, leases: leases, options: options, metrics: metrics, logger: logger,
            clock: { SystemClock.now() })
    }

    func maintenance() -> Maintenance {
        var options = MaintenanceOptions()
        options.retentionDays = settings.retentionDays
        options.logRetentionDays = settings.logRetentionDays
        return Maintenance(
            log: log, store: store, leases: leases, options: options, metrics: metrics, logger: logger,
            clock: { SystemClock.now() })
    }

    func intake() -> DocumentIntake { DocumentIntake(log: log, metrics: metrics) }

    func daemon(_ address: ListenAddress, intake: DocumentIntake) throws -> DaemonListener {
        try DaemonListener(
            host: address.host, port: address.port, account: settings.account, intake: intake, metrics: metrics,
            logger: logger)
    }

    func metricsListener(_ address: ListenAddress, listeners: Listeners, isReady: @escaping @Sendable () -> Bool)
        -> MetricsListener
    {
        MetricsListener(address: address, metrics: metrics, isReady: isReady, logger: logger) { port in
            listeners.opened { $0.metrics = ListenAddress(host: address.host, port: port) }
        }
    }

    /// With TLS the certificate is read again at SIGHUP.
    func api(
        _ address: ListenAddress, operations: [Operation], masterKey: MasterKey, listeners: Listeners,
        isReady: @escaping @Sendable () -> Bool
    ) -> [any Service] {
        let encryption = SecretEncryption(masterKey: masterKey)
        let directory = store.credentialDirectory { key in
            try encryption.open(key.encryptedSecret, accessKeyID: key.id)
        }
        var configuration = APIServiceConfiguration(
            host: address.host, port: address.port, tls: settings.tls,
            authentication: AuthenticationSettings(region: settings.region), hostSuffix: settings.hostSuffix,
            allowedOrigins: settings.allowedOrigins)
        // How much at once: `api.md` §1.5.
        let rates: [(OperationClass, perSecond: Int, seconds: Double)] = [
            (.ingest, settings.ingestRate, 2), (.query, settings.queryRate, 2), (.sampling, settings.samplingRate, 2),
            (.control, settings.controlRate, 4),
        ]
        for (operationClass, perSecond, seconds) in rates where perSecond > 0 {
            configuration.rateLimits[operationClass] = .init(rate: Double(perSecond), burst: seconds * Double(perSecond))
        }
        configuration.limits.bodyBytes = settings.maxBodyBytes
        configuration.limits.decompressedBodyBytes = 2 * settings.maxBodyBytes
        configuration.limits.bytesInFlight = max(configuration.limits.bytesInFlight, 4 * settings.maxBodyBytes)
        let service = APIService(
            operations: operations, directory: directory, configuration: configuration, isReady: isReady,
            observe: { [metrics] operation, status, seconds in
                metrics.requestAnswered(operation: operation, status: status, took: .seconds(seconds))
            },
            onListening: { _, port in listeners.opened { $0.api = ListenAddress(host: address.host, port: port) } },
            logger: logger)
        return settings.tls == nil ? [service] : [service, CertificateReload([service])]
    }

    // MARK: Operations

    func ingestOperations(_ intake: DocumentIntake) -> [Operation] {
        IngestOperations(intake: intake, metrics: metrics, logger: logger) { [store] account, receivedAt, body in
            try await store.appendTelemetry([TelemetryRecord(account: account, receivedAt: receivedAt, document: body)])
        }.operations
    }

    /// Page tokens are sealed under the master key: every node opens what another has sealed.
    func queryOperations(_ masterKey: MasterKey) -> [Operation] {
        QueryService(
            reading: StoredTraceReading(store: store, log: log),
            tokens: PageTokenSealer(secret: masterKey.derivedKey(for: "page tokens").withUnsafeBytes { Array($0) }),
            control: store, region: settings.region, metrics: metrics, logger: logger, now: { SystemClock.now() }
        ).operations
    }

    /// Operations of another role: whoever sends one here has an address, or a balancer a rule, that is wrong.
    static func misrouted(_ operations: [Operation], to role: NodeRole) -> [Operation] {
        operations.map { operation in
            let message = "\(operation.name) is served by the \(role.rawValue) nodes, not by this one"
            return Operation(name: operation.name, path: operation.path, class: operation.operationClass) {
                (_) throws(APIError) in throw .unknownOperation(message)
            }
        }
    }
}

/// Opens the log that the settings name, if it is the one that the database belongs to.
func openLog(
    _ settings: LogSettings, store: TraceStore, database: PostgresConfiguration, logger: Logger
) async throws -> any SegmentLog {
    try await store.adoptLog(settings.source)
    let known = try await store.positions().count
    return try await settings.open(database: database, knownPartitions: known, logger: logger)
}

extension Node {
    /// This process, as the others see it.
    /// - Parameter id: nil makes one.
    init(_ settings: ServerSettings, id: String? = nil) {
        let listeners = [("api", settings.api), ("daemon", settings.daemon), ("metrics", settings.metrics)]
        self.init(
            id: id ?? "\(settings.role.rawValue)-\(String(UInt64.random(in: 0 ... .max), radix: 36))",
            role: settings.role, name: settings.nodeName, host: ServerSettings.hostName, processID: getpid(),
            addresses: listeners.compactMap { name, address in address.map { "\(name) \($0)" } }
                .joined(separator: ", "),
            version: beamlineVersion)
    }
}

/// What everybody who reaches the daemon port may do.
func warnOfOpenDaemonPort(_ settings: ServerSettings) {
    guard let address = settings.daemon, !address.isLoopback else { return }
    print(
        "Warning: the daemon port \(address) takes unsigned documents for account \(settings.account) from everybody who reaches it; keep it on loopback, or behind a firewall."
    )
}

func serverLogger(_ settings: ServerSettings) -> Logger {
    var logger = Logger(label: "beamline", factory: { StreamLogHandler.standardError(label: $0) })
    logger.logLevel = Logger.Level(rawValue: settings.logLevel) ?? .notice
    return logger
}

/// Before anything is started: a taken port is a slip of the person at the terminal, not of a server.
func requireFreePorts(_ settings: ServerSettings) throws {
    if let address = settings.api { try requireFree(address, SOCK_STREAM, setting: "api") }
    if let address = settings.daemon { try requireFree(address, SOCK_DGRAM, setting: "daemon") }
    if let address = settings.metrics { try requireFree(address, SOCK_STREAM, setting: "metrics") }
}

/// Waits until every listener is open, then tells their addresses, once.
final class Listeners: Sendable {
    struct Addresses: Sendable {
        var api: ListenAddress?
        var daemon: ListenAddress?
        var metrics: ListenAddress?
    }

    private let state: Mutex<(addresses: Addresses, missing: Int)>
    private let onAllOpen: @Sendable (Addresses) -> Void

    /// - Parameter daemon: bound already.
    init(waitingFor count: Int, daemon: ListenAddress?, onAllOpen: @escaping @Sendable (Addresses) -> Void) {
        state = Mutex((Addresses(daemon: daemon), count))
        self.onAllOpen = onAllOpen
        if count == 0 { onAllOpen(Addresses(daemon: daemon)) }
    }

    func opened(_ record: (inout Addresses) -> Void) {
        let complete = state.withLock { state -> Addresses? in
            record(&state.addresses)
            state.missing -= 1
            return state.missing == 0 ? state.addresses : nil
        }
        if let complete { onAllOpen(complete) }
    }
}

/// Work that ends by cancellation, as a service that ends by graceful shutdown.
struct Worker: Service {
    let run: @Sendable () async -> Void
    let close: @Sendable () async -> Void

    init(run: @escaping @Sendable () async -> Void, close: @escaping @Sendable () async -> Void) {
        self.run = run
        self.close = close
    }

    func run() async throws {
        await cancelWhenGracefulShutdown { await run() }
        await close()
    }
}

/// Asks the log once a second how far it reaches, so that a node which cannot reach it says that it is not ready.
struct LogProbe: Service {
    let log: any SegmentLog
    private let answeredAt = Answer()

    private final class Answer: Sendable {
        let at = Mutex<ContinuousClock.Instant?>(nil)
    }

    init(log: any SegmentLog) { self.log = log }

    /// It answered within the last five seconds.
    var isReachable: Bool { answeredAt.at.withLock { $0.map { $0.duration(to: .now) < .seconds(5) } ?? false } }

    func run() async throws {
        await cancelWhenGracefulShutdown {
            while !Task.isCancelled {
                if (try? await log.endOffsets()) != nil { answeredAt.at.withLock { $0 = .now } }
                try? await Task.sleep(for: .seconds(1))
            }
        }
    }
}

/// Whether requests are served: what `readyz` answers.
final class ServingState: Sendable {
    private let value = Atomic<Bool>(false)
    var isServing: Bool { value.load(ordering: .relaxed) }
    func begin() { value.store(true, ordering: .relaxed) }
    func end() { value.store(false, ordering: .relaxed) }
}

/// The last service, so the first to hear of the shutdown: not ready from now on, and the process is gone in 10 s even if
/// something hangs. What was acknowledged is in the log by then; nothing else is lost.
struct ShutdownDeadline: Service {
    let cluster: PrivateCluster?
    let serving: ServingState

    func run() async throws {
        try? await gracefulShutdown()
        serving.end()
        let cluster = cluster
        Task.detached {
            try? await Task.sleep(for: .milliseconds(9_800))
            cluster?.kill()
            _exit(1)
        }
    }
}

/// Runs the services until SIGTERM or SIGINT.
func serve(_ services: [any Service], logger: Logger) async throws {
    var configuration = ServiceGroupConfiguration(
        services: services, gracefulShutdownSignals: [.sigterm, .sigint], logger: logger)
    configuration.maximumGracefulShutdownDuration = .seconds(8)
    try await ServiceGroup(configuration: configuration).run()
}
