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
        warnOfOpenDaemonPort(settings)
        let folder = try DataFolder(path: settings.dataFolder)
        defer { withExtendedLifetime(folder) {} }
        try requireFreePorts(settings)
        try settings.tls?.check()
        // A file that cannot be used stops the start before a database is made.
        _ = try MasterKey.loadIfPresent(at: settings.masterKeyPath ?? folder.masterKeyPath)
        guard settings.databaseURL == nil else { return try await serve(folder, cluster: nil) }
        let cluster = PrivateCluster(dataFolder: folder.path, logger: logger)
        do {
            try await cluster.start()
            try await serve(folder, cluster: cluster)
            await cluster.stop()
        } catch {
            await cluster.stop()
            throw error
        }
    }

    private func serve(_ folder: DataFolder, cluster: PrivateCluster?) async throws {
        let node = Node(settings, id: nodeID(folder))
        var database = PostgresConfiguration(
            settings.databaseURL ?? PrivateCluster.connectionString(dataFolder: folder.path))
        database.applicationName = Node.applicationName(of: node.id)
        try await PostgresLog.migrate(database: database)
        try await TraceStore.migrate(database: database)
        let roles = try await Roles.open(
            settings, node: node, database: database, metrics: metrics, logger: logger)
        let services = try await roles.closedOnFailure {
            let masterKey = try await openMasterKey(
                at: settings.masterKeyPath ?? folder.masterKeyPath, store: roles.store, isMade: true, logger: logger)
            let access = try await makeFirstAccount(
                roles.store, masterKey, file: CredentialsFile(folder.credentialsPath))
            let partitionNotice = try await partitionNotice(roles)
            return try self.services(roles, masterKey: masterKey, cluster: cluster) {
                announce($0, access: access, partitionNotice: partitionNotice)
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

    /// How somebody at the terminal gets at the account of `--account`.
    private struct Access {
        /// Of the credentials file; nil: no profile in it has a key of the account.
        var profile: String?
        var credentialsPath: String
        /// What was made, as one sentence.
        var news: String?
    }

    /// Creates the account of `--account` and, when it has no key, a root key in a profile of the credentials file that
    /// is free: keys of other accounts stay.
    private func makeFirstAccount(_ store: TraceStore, _ masterKey: MasterKey, file: CredentialsFile) async throws
        -> Access
    {
        let directory = Directory(store: store, masterKey: masterKey)
        let account = settings.account
        let known = try await store.accounts()
        if !known.contains(where: { $0.id == account }) {
            try await directory.createAccount(account, name: "default", now: SystemClock.now())
        }
        let keys = try await store.accessKeys(account: account)
        let profiles = try file.profiles()
        guard keys.isEmpty else {
            let active = Set(keys.filter(\.isActive).map(\.id))
            let own = profiles.filter { active.contains($0.value ?? "") }.keys.sorted()
            return Access(
                profile: own.contains("default") ? "default" : own.first, credentialsPath: file.path, news: nil)
        }
        var profile = "default"
        var count = 1
        while profiles[profile] != nil {
            profile = count == 1 ? "\(account)" : "\(account)-\(count)"
            count += 1
        }
        _ = try await directory.createKey(
            account: account, user: nil, role: .admin, credentials: CredentialsTarget(file: file, profile: profile),
            now: SystemClock.now())
        let others = profile == "default" ? "" : "; the other keys in it stay as they are"
        let news =
            known.isEmpty && profile == "default"
            ? "First start: account \(account) has a root access key in \(file.path)."
            : "Account \(account) had no access key: a new root key is profile `\(profile)` of \(file.path)\(others)."
        return Access(profile: profile, credentialsPath: file.path, news: news)
    }

    private func partitionNotice(_ roles: Roles) async throws -> String? {
        guard settings.log.isPartitionCountStated else { return nil }
        let count = try await roles.log.endOffsets().count
        guard count > settings.log.partitions else { return nil }
        return
            "The log has \(count) partitions already and keeps them; --partitions \(settings.log.partitions) is not used."
    }

    private func announce(_ addresses: Listeners.Addresses, access: Access, partitionNotice: String?) {
        let milliseconds = Int((ContinuousClock.now - startedAt).inSeconds * 1000)
        var lines = ["Beamline \(beamlineVersion) is ready after \(milliseconds) ms."]
        lines += [access.news, partitionNotice].compactMap { $0 }
        lines.append("Data: \(settings.dataFolder)")
        if let metrics = addresses.metrics { lines.append("Metrics: http://\(metrics.reachable)/metrics") }
        lines += ["", "Paste into a shell:", ""]
        if let api = addresses.api {
            lines.append("export AWS_ENDPOINT_URL_XRAY=\(settings.tls == nil ? "http" : "https")://\(api.reachable)")
        }
        if let profile = access.profile {
            lines.append(
                "export AWS_SHARED_CREDENTIALS_FILE=\(quoted(access.credentialsPath)) AWS_PROFILE=\(profile)")
        } else {
            lines.append(
                "# \(access.credentialsPath) has no key of account \(settings.account); this makes one: beamline key create \(settings.account) --profile \(settings.account) --credentials \(quoted(access.credentialsPath))"
                    + (settings.databaseURL == nil ? " --data-dir \(quoted(settings.dataFolder))" : "")
            )
        }
        // Older SDKs and version 1 of the AWS CLI read the second name of the region only.
        lines.append("export AWS_REGION=\(settings.region) AWS_DEFAULT_REGION=\(settings.region)")
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
