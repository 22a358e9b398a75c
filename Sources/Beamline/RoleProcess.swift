// A process of one role in a cluster: `ingest`, `aggregate` or `query`. It has no state of its own. The tables must be
// there (`beamline migrate`); everything else it finds in the database and the log.

import APIServer
import AccessControl
import Aggregation
import Glibc
import Ingest
import Logging
import Observability
import PostgreSQL
import SegmentLog
import ServiceLifecycle
import TraceStore

struct RoleProcess {
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
        guard let databaseURL = settings.databaseURL else { return }
        if let path = settings.masterKeyPath { _ = try MasterKey.load(at: path) }
        try requireFreePorts(settings)
        try settings.tls?.check()
        let node = Node(settings)
        var database = PostgresConfiguration(databaseURL)
        database.applicationName = Node.applicationName(of: node.id)
        let roles = try await Roles.open(
            settings, node: node, database: database, metrics: metrics, logger: logger)
        let services = try await roles.closedOnFailure {
            var masterKey: MasterKey?
            if let path = settings.masterKeyPath {
                masterKey = try await openMasterKey(at: path, store: roles.store, isMade: false, logger: logger)
            }
            return try self.services(roles, masterKey)
        }
        try await serve(services, logger: logger)
    }

    /// Later ones depend on earlier ones; shutdown goes backwards.
    private func services(_ roles: Roles, _ masterKey: MasterKey?) throws -> [any Service] {
        let serving = roles.serving
        let leases = roles.leases
        let intake = settings.role == .ingest ? roles.intake() : nil
        let daemon = try settings.daemon.flatMap { address in try intake.map { try roles.daemon(address, intake: $0) } }
        let listeners = Listeners(
            waitingFor: [settings.api, settings.metrics].count { $0 != nil },
            daemon: settings.daemon.flatMap { address in daemon.map { ListenAddress(host: address.host, port: $0.port) }
            }
        ) {
            serving.begin()
            announce($0)
        }
        var services = roles.foundation()
        var isReady: @Sendable () -> Bool = { serving.isServing && leases.isHeld }
        var operations: [Operation] = []
        if let intake {
            let probe = LogProbe(log: roles.log)
            services.append(probe)
            isReady = { serving.isServing && leases.isHeld && probe.isReachable }
            operations += roles.ingestOperations(intake)
            if let masterKey { operations += Roles.misrouted(roles.queryOperations(masterKey), to: .query) }
        }
        if settings.role == .query, let masterKey {
            operations += roles.queryOperations(masterKey)
            operations += Roles.misrouted(roles.ingestOperations(roles.intake()), to: .ingest)
        }
        if let address = settings.metrics {
            services.append(roles.metricsListener(address, listeners: listeners, isReady: isReady))
        }
        if let address = settings.api, let masterKey {
            services += roles.api(
                address, operations: operations, masterKey: masterKey, listeners: listeners, isReady: isReady)
        }
        if let daemon { services.append(daemon) }
        if settings.role == .aggregate {
            // The aggregator is the first to end: its partitions are free while the rest is still being closed.
            services += [roles.maintenance(), roles.aggregator()] as [any Service]
        }
        services.append(ShutdownDeadline(cluster: nil, serving: serving))
        return services
    }

    private func announce(_ addresses: Listeners.Addresses) {
        let milliseconds = Int((ContinuousClock.now - startedAt).inSeconds * 1000)
        var words = [
            "Beamline \(beamlineVersion) \(settings.role.rawValue) `\(settings.nodeName)` is up after \(milliseconds) ms"
        ]
        if let api = addresses.api { words.append("API \(settings.tls == nil ? "http" : "https")://\(api)") }
        if let daemon = addresses.daemon { words.append("daemon port \(daemon)") }
        if let metrics = addresses.metrics { words.append("metrics http://\(metrics)/metrics") }
        print(words.joined(separator: ", "))
        fflush(nil)
    }
}
