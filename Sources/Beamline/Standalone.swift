// Everything in one process: starts the database, opens the log and the store, makes the first account, and runs the
// roles until SIGTERM or SIGINT. Whatever fails on the way is one sentence, and the private PostgreSQL is stopped again.

import APIServer
import AccessControl
import Aggregation
import Glibc
import Ingest
import Logging
import Observability
import PostgreSQL
import PrivatePostgreSQL
import SegmentLog
import Segments
import ServiceLifecycle
import TraceStore

struct Standalone {
    private let settings: ServerSettings
    private let logger: Logger
    private let metrics = Metrics()
    private let startedAt = ContinuousClock.now

    init(_ settings: ServerSettings) {
        self.settings = settings
        logger = serverLogger(settings)
    }

    func run() async throws {
        for notice in settings.notices { print(notice) }
        let folder = try DataFolder(path: settings.dataFolder)
        defer { withExtendedLifetime(folder) {} }
        try requireFreePorts(settings)
        try settings.tls?.check()
        let masterKey = try MasterKey.loadOrCreate(at: settings.masterKeyPath ?? folder.masterKeyPath)
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
        let node = Node(settings, id: nodeID(folder))
        var database = PostgresConfiguration(
            settings.databaseURL ?? PrivateCluster.connectionString(dataFolder: folder.path))
        database.applicationName = Node.applicationName(of: node.id)
        try await PostgresLog.migrate(database: database)
        try await TraceStore.migrate(database: database)
        let roles = try await Roles.open(
            settings, node: node, database: database, metrics: metrics, logger: logger)
        let services = try await roles.closedOnFailure {
            let isFirstStart = try await makeFirstAccount(
                roles.store, masterKey, credentialsPath: folder.credentialsPath)
            return try self.services(roles, masterKey: masterKey, cluster: cluster) {
                announce($0, isFirstStart: isFirstStart, credentialsPath: folder.credentialsPath)
            }
        }
        try await Beamline.serve(services, logger: logger)
    }

    /// The same at each start: the folder's lock makes sure that the process before is gone, so its leases need not
    /// expire.
    private func nodeID(_ folder: DataFolder) -> String {
        var hash: UInt64 = 0xcbf2_9ce4_8422_2325
        for byte in "\(ServerSettings.hostName):\(folder.path)".utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
        return "standalone-\(String(hash, radix: 36))"
    }

    /// Later ones depend on earlier ones; shutdown goes backwards.
    private func services(
        _ roles: Roles, masterKey: MasterKey, cluster: PrivateCluster?,
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
        services += roles.foundation()
        services += [roles.aggregator(), roles.maintenance()] as [any Service]

        let intake = roles.intake()
        let daemon = try settings.daemon.map { try roles.daemon($0, intake: intake) }
        let serving = roles.serving
        let listeners = Listeners(
            waitingFor: [settings.api, settings.metrics].count { $0 != nil },
            daemon: settings.daemon.flatMap { address in daemon.map { ListenAddress(host: address.host, port: $0.port) }
            }
        ) {
            serving.begin()
            announce($0)
        }
        let isReady: @Sendable () -> Bool = { serving.isServing && (cluster == nil || cluster?.processID != nil) }
        if let address = settings.api {
            services += roles.api(
                address, operations: roles.ingestOperations(intake) + roles.queryOperations(masterKey),
                masterKey: masterKey, listeners: listeners, isReady: isReady)
        }
        if let daemon { services.append(daemon) }
        if let address = settings.metrics {
            services.append(roles.metricsListener(address, listeners: listeners, isReady: isReady))
        }
        services.append(ShutdownDeadline(cluster: cluster, serving: serving))
        return services
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
