// Everything in one process: starts the database, opens the log and the store, makes the first account, and runs the
// roles until SIGTERM or SIGINT. Whatever fails on the way is one sentence, and the private PostgreSQL is stopped again.

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

struct Standalone {
    private let settings: StandaloneSettings
    private let logger: Logger
    private let metrics = Metrics()
    private let startedAt = ContinuousClock.now

    init(_ settings: StandaloneSettings) {
        self.settings = settings
        var logger = Logger(label: "beamline", factory: { StreamLogHandler.standardError(label: $0) })
        logger.logLevel = Logger.Level(rawValue: settings.logLevel) ?? .notice
        self.logger = logger
    }

    func run() async throws {
        for notice in settings.notices { print(notice) }
        let folder = try DataFolder(path: settings.dataFolder)
        defer { withExtendedLifetime(folder) {} }
        // Before anything is started: a taken port is a slip of the person at the terminal, not of a server.
        if let address = settings.api { try requireFree(address, SOCK_STREAM, setting: "api") }
        if let address = settings.daemon { try requireFree(address, SOCK_DGRAM, setting: "daemon") }
        if let address = settings.metrics { try requireFree(address, SOCK_STREAM, setting: "metrics") }
        try settings.tls?.check()
        let masterKey = try MasterKey.loadOrCreate(at: folder.masterKeyPath)
        guard settings.databaseURL == nil else { return try await serve(folder, masterKey, cluster: nil) }
        let cluster = PrivateCluster(dataFolder: folder.path, logger: logger)
        do {
            try await cluster.start()
            try await serve(folder, masterKey, cluster: cluster)
            await cluster.stop()
        } catch {
            await cluster.stop()
            throw error
        }
    }

    private func serve(_ folder: DataFolder, _ masterKey: MasterKey, cluster: PrivateCluster?) async throws {
        let database = PostgresConfiguration(
            settings.databaseURL ?? PrivateCluster.connectionString(dataFolder: folder.path))
        try await PostgresLog.migrate(database: database)
        try await TraceStore.migrate(database: database)
        var logOptions = PostgresLogOptions()
        logOptions.partitionCount = settings.partitions
        let log = try await PostgresLog.open(database: database, options: logOptions, logger: logger)
        let store = TraceStore(database: database, logger: logger)
        let isFirstStart: Bool
        do {
            try await store.checkSchema()
            isFirstStart = try await makeFirstAccount(store, masterKey, credentialsPath: folder.credentialsPath)
        } catch {
            await log.close()
            await store.close()
            throw error
        }

        let serving = ServingState()
        let services = try self.services(
            log: log, store: store, masterKey: masterKey, cluster: cluster, serving: serving
        ) { announce($0, isFirstStart: isFirstStart, credentialsPath: folder.credentialsPath) }
        var configuration = ServiceGroupConfiguration(
            services: services, gracefulShutdownSignals: [.sigterm, .sigint], logger: logger)
        configuration.maximumGracefulShutdownDuration = .seconds(8)
        try await ServiceGroup(configuration: configuration).run()
    }

    /// Later ones depend on earlier ones; shutdown goes backwards.
    private func services(
        log: PostgresLog, store: TraceStore, masterKey: MasterKey, cluster: PrivateCluster?, serving: ServingState,
        announce: @escaping @Sendable (Listeners.Addresses) -> Void
    ) throws -> [any Service] {
        var services: [any Service] = []
        if let cluster {
            services.append(cluster)
            metrics.sampled(
                "beamline_postgres_restarts_total", "How often the private PostgreSQL died and was started again.",
                kind: .counter
            ) {
                Double(cluster.restarts)
            }
        }
        metrics.sampled("beamline_log_round_trips_total", "Round trips to PostgreSQL for the log.", kind: .counter) {
            Double(log.roundTrips)
        }
        metrics.sampled(
            "beamline_store_round_trips_total", "Round trips to PostgreSQL for everything else.", kind: .counter
        ) {
            Double(store.roundTrips)
        }
        metrics.sampled("beamline_log_queue_bytes", "Records waiting for the log's next commit.") {
            Double(log.queuedBytes)
        }
        services.append(Worker(run: { await store.run() }, close: { await store.close() }))
        services.append(Worker(run: { await log.run() }, close: { await log.close() }))

        var aggregation = AggregatorOptions()
        aggregation.maxTraceBytes = settings.maxTraceBytes
        services.append(
            Aggregator(
                log: log, store: store, owner: "standalone-\(getpid())", options: aggregation, metrics: metrics,
                logger: logger,
                clock: { SystemClock.now() }))
        var maintenance = MaintenanceOptions()
        maintenance.retentionDays = settings.retentionDays
        services.append(
            Maintenance(
                log: log, store: store, options: maintenance, metrics: metrics, logger: logger,
                clock: { SystemClock.now() }))

        let intake = DocumentIntake(log: log, metrics: metrics)
        let daemon = try settings.daemon.map { address in
            try DaemonListener(
                host: address.host, port: address.port, account: settings.account, intake: intake, metrics: metrics,
                logger: logger)
        }
        let listeners = Listeners(
            waitingFor: [settings.api, settings.metrics].count { $0 != nil },
            daemon: settings.daemon.flatMap { address in daemon.map { ListenAddress(host: address.host, port: $0.port) }
            }
        ) {
            serving.begin()
            announce($0)
        }
        if let address = settings.api {
            let service = apiService(
                address, intake: intake, log: log, store: store, masterKey: masterKey, cluster: cluster,
                serving: serving
            ) { port in listeners.opened { $0.api = ListenAddress(host: address.host, port: port) } }
            services.append(service)
            if settings.tls != nil { services.append(CertificateReload([service])) }
        }
        if let daemon { services.append(daemon) }
        if let address = settings.metrics {
            services.append(
                MetricsListener(address: address, metrics: metrics, logger: logger) { port in
                    listeners.opened { $0.metrics = ListenAddress(host: address.host, port: port) }
                })
        }
        services.append(ShutdownDeadline(cluster: cluster, serving: serving))
        return services
    }

    private func apiService(
        _ address: ListenAddress, intake: DocumentIntake, log: PostgresLog, store: TraceStore, masterKey: MasterKey,
        cluster: PrivateCluster?, serving: ServingState, onListening: @escaping @Sendable (_ port: Int) -> Void
    ) -> APIService {
        let ingest = IngestOperations(intake: intake, metrics: metrics, logger: logger) { account, receivedAt, body in
            try await store.appendTelemetry([TelemetryRecord(account: account, receivedAt: receivedAt, document: body)])
        }
        let query = QueryService(
            reading: StoredTraceReading(store: store, log: log),
            tokens: PageTokenSealer(secret: masterKey.derivedKey(for: "page tokens").withUnsafeBytes { Array($0) }),
            logger: logger, now: { SystemClock.now() })
        let encryption = SecretEncryption(masterKey: masterKey)
        let directory = store.credentialDirectory { key in try encryption.open(key.encryptedSecret, accessKeyID: key.id)
        }

        var configuration = APIServiceConfiguration(
            host: address.host, port: address.port, tls: settings.tls,
            authentication: AuthenticationSettings(region: settings.region),
            hostSuffix: settings.hostSuffix)
        if settings.ingestRate > 0 {
            let rate = Double(settings.ingestRate)
            configuration.rateLimits[.ingest] = .init(rate: rate, burst: 2 * rate)
        }
        return APIService(
            operations: ingest.operations + query.operations, directory: directory, configuration: configuration,
            isReady: { serving.isServing && (cluster == nil || cluster?.processID != nil) },
            observe: { [metrics] operation, status, seconds in
                metrics.requestAnswered(operation: operation, status: status, took: .seconds(seconds))
            },
            onListening: { _, port in onListening(port) }, logger: logger)
    }

    /// Creates the account of `--account` and, when it has no key, a root key and the credentials file.
    /// - Returns: whether a key was made.
    private func makeFirstAccount(_ store: TraceStore, _ masterKey: MasterKey, credentialsPath: String) async throws
        -> Bool
    {
        let directory = Directory(store: store, masterKey: masterKey)
        let account = settings.account
        if try await !store.accounts().contains(where: { $0.id == account }) {
            try await directory.createAccount(account, name: "default", now: SystemClock.now())
        }
        guard try await store.accessKeys(account: account).isEmpty else { return false }
        _ = try await directory.createKey(
            account: account, user: nil, role: .admin, credentialsFile: credentialsPath, now: SystemClock.now())
        return true
    }

    private func announce(_ addresses: Listeners.Addresses, isFirstStart: Bool, credentialsPath: String) {
        let milliseconds = Int((ContinuousClock.now - startedAt).inSeconds * 1000)
        var lines = ["Beamline \(beamlineVersion) is ready after \(milliseconds) ms."]
        if isFirstStart {
            lines.append("First start: account \(settings.account) has a root access key in \(credentialsPath).")
        }
        lines.append("Data: \(settings.dataFolder)")
        if let metrics = addresses.metrics { lines.append("Metrics: http://\(metrics.reachable)/metrics") }
        lines += ["", "Paste into a shell:", ""]
        if let api = addresses.api {
            lines.append("export AWS_ENDPOINT_URL_XRAY=\(settings.tls == nil ? "http" : "https")://\(api.reachable)")
        }
        // Older SDKs and version 1 of the AWS CLI read the second name of the region only.
        lines += [
            "export AWS_SHARED_CREDENTIALS_FILE=\(quoted(credentialsPath)) AWS_PROFILE=default",
            "export AWS_REGION=\(settings.region) AWS_DEFAULT_REGION=\(settings.region)",
        ]
        if let daemon = addresses.daemon { lines.append("export AWS_XRAY_DAEMON_ADDRESS=\(daemon.reachable)") }
        print(lines.joined(separator: "\n") + "\n")
        fflush(nil)  // whoever started us through a pipe waits for these lines
    }

    private func quoted(_ path: String) -> String {
        let isPlain = path.utf8.allSatisfy { byte in
            (0x61...0x7A).contains(byte) || (0x41...0x5A).contains(byte) || (0x2D...0x39).contains(byte) || byte == 0x5F
        }
        return isPlain ? path : "'" + path.replacing("'", with: "'\\''") + "'"
    }
}

/// Waits until every listener is open, then tells their addresses, once.
private final class Listeners: Sendable {
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
private struct Worker: Service {
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

/// Whether requests are served: what `readyz` answers.
final class ServingState: Sendable {
    private let value = Atomic<Bool>(false)
    var isServing: Bool { value.load(ordering: .relaxed) }
    func begin() { value.store(true, ordering: .relaxed) }
    func end() { value.store(false, ordering: .relaxed) }
}

/// The last service, so the first to hear of the shutdown: not ready from now on, and the process is gone in 10 s even if
/// something hangs. What was acknowledged is in the log by then; nothing else is lost.
private struct ShutdownDeadline: Service {
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
