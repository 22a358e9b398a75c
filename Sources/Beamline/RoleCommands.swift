// `beamline ingest`, `aggregate`, `query`: one role each, any number of processes.

import ArgumentParser
import TraceStore

/// What every role has.
struct RoleOptions: ParsableArguments {
    @Option(help: "The PostgreSQL that all nodes share (postgresql://user@host/database).")
    var databaseURL: String?
    @Option(help: "HOST:PORT of Beamline's own metrics in Prometheus text, or off. (default: 127.0.0.1:9464)")
    var metrics: String?
    @Option(help: "Partitions of the log, at least; it may grow while nodes run, never shrink. (default: 12)")
    var partitions: String?
    @Option(help: "Name of this node in `beamline status`. (default: the host's name)")
    var nodeName: String?
    @Option(help: "Region of the server. (default: us-east-1)")
    var region: String?
    @Option(
        help: "Host suffix: with xray.example.test, 210987654321.xray.example.test names that account. (default: none)")
    var hostSuffix: String?
    @Option(help: "trace, debug, info, notice, warning, error or critical. (default: notice)")
    var logLevel: String?
    @Option(help: "A YAML file with settings, one `name: value` per line.")
    var config: String?

    var flags: [String: String?] {
        [
            "database-url": databaseURL, "metrics": metrics, "partitions": partitions, "node-name": nodeName,
            "region": region, "host-suffix": hostSuffix, "log-level": logLevel, "config": config,
        ]
    }
}

private let settingsDiscussion = """
    Each setting is a flag, else an environment variable (--database-url: BEAMLINE_DATABASE_URL), else a line of the YAML file \
    given with --config (database-url: postgresql://…). Settings of other roles in the environment or the file are passed over.
    """

struct IngestCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "ingest", abstract: "Run an ingest node: takes documents in and appends them to the log.",
        discussion: settingsDiscussion)

    @OptionGroup var role: RoleOptions
    @Option(help: "File of the key that all nodes share.") var masterKey: String?
    @Option(help: "HOST:PORT of the X-Ray API, or off. (default: 127.0.0.1:2000)") var api: String?
    @Option(
        help:
            "HOST:PORT (UDP) of the X-Ray daemon protocol, or off. Unsigned: keep it on loopback. (default: 127.0.0.1:2000)"
    )
    var daemon: String?
    @Option(help: "HOST:PORT of OTLP over HTTP, or off. Arrives in a later release. (default: off)")
    var otlpHttp: String?
    @Option(help: "HOST:PORT of OTLP over gRPC, or off. Arrives in a later release. (default: off)")
    var otlpGrpc: String?
    @Option(help: "Account that the daemon port writes to; 12 digits. (default: 123456789012)")
    var account: String?
    @Option(help: "Documents per second and account before ThrottledException, 0 for no limit. (default: 0)")
    var ingestRate: String?
    @Option(
        help: "PEM file with the certificate of the X-Ray API: it then speaks TLS, HTTP/2 and HTTP/1.1. (default: none)")
    var tlsCertificate: String?
    @Option(help: "PEM file with the key of --tls-certificate. Both are read again at SIGHUP. (default: none)")
    var tlsKey: String?

    func run() async throws {
        try await runRole(
            .ingest,
            role.flags.merging([
                "master-key": masterKey, "api": api, "daemon": daemon, "otlp-http": otlpHttp, "otlp-grpc": otlpGrpc,
                "account": account, "ingest-rate": ingestRate, "tls-certificate": tlsCertificate, "tls-key": tlsKey,
            ]) { $1 })
    }
}

struct AggregateCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "aggregate",
        abstract: "Run an aggregator: folds its share of the log's partitions into traces and graphs.",
        discussion: settingsDiscussion)

    @OptionGroup var role: RoleOptions
    @Option(help: "Largest trace in bytes of its documents, 0 for no limit. (default: 512000)")
    var maxTraceBytes: String?
    @Option(help: "Days that traces and graphs are kept. (default: 30)")
    var retentionDays: String?
    @Option(help: "Days that the log is kept, to rebuild from. (default: as --retention-days)")
    var logRetentionDays: String?

    func run() async throws {
        try await runRole(
            .aggregate,
            role.flags.merging([
                "max-trace-bytes": maxTraceBytes, "retention-days": retentionDays,
                "log-retention-days": logRetentionDays,
            ]) { $1 })
    }
}

struct QueryCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "query", abstract: "Run a query node: answers the read operations.",
        discussion: settingsDiscussion)

    @OptionGroup var role: RoleOptions
    @Option(help: "File of the key that all nodes share.") var masterKey: String?
    @Option(help: "HOST:PORT of the X-Ray API, or off. (default: 127.0.0.1:2000)") var api: String?
    @Option(help: "HOST:PORT of the web console, or off. Arrives in a later release. (default: off)")
    var console: String?
    @Option(
        help: "PEM file with the certificate of the X-Ray API: it then speaks TLS, HTTP/2 and HTTP/1.1. (default: none)")
    var tlsCertificate: String?
    @Option(help: "PEM file with the key of --tls-certificate. Both are read again at SIGHUP. (default: none)")
    var tlsKey: String?

    func run() async throws {
        try await runRole(
            .query,
            role.flags.merging([
                "master-key": masterKey, "api": api, "console": console, "tls-certificate": tlsCertificate,
                "tls-key": tlsKey,
            ]) { $1 })
    }
}

private func runRole(_ role: NodeRole, _ flags: [String: String?]) async throws {
    let reader = try await SettingsReader(
        flags: flags.compactMapValues { $0 }, known: ServerSettings.names, command: role.rawValue)
    let settings = try ServerSettings(reader, role: role)
    try await inOneSentence { try await RoleProcess(settings).run() }
}
