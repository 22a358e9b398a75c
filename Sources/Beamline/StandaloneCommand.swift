// `beamline standalone`: every role in one process, with a private PostgreSQL or an external one.

import ArgumentParser
import Foundation

struct StandaloneCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "standalone",
        abstract: "Run everything in one process.",
        discussion: """
            Each setting is a flag, else an environment variable (--data-dir: BEAMLINE_DATA_DIR), else a line of the YAML file \
            given with --config (data-dir: /srv/beamline).
            """)

    @Option(help: "Folder of all data. (default: /var/lib/beamline for root, else ~/.local/share/beamline)")
    var dataDir: String?
    @Option(help: "HOST:PORT of the X-Ray API, or off. (default: 127.0.0.1:2000)")
    var api: String?
    @Option(
        help:
            "HOST:PORT (UDP) of the X-Ray daemon protocol, or off. Unsigned: keep it on loopback. (default: 127.0.0.1:2000)"
    )
    var daemon: String?
    @Option(help: "HOST:PORT of the web console, or off. Arrives in a later release. (default: off)")
    var console: String?
    @Option(help: "HOST:PORT of Beamline's own metrics in Prometheus text, or off. (default: 127.0.0.1:9464)")
    var metrics: String?
    @Option(help: "HOST:PORT of OTLP over HTTP, or off. Arrives in a later release. (default: off)")
    var otlpHttp: String?
    @Option(help: "HOST:PORT of OTLP over gRPC, or off. Arrives in a later release. (default: off)")
    var otlpGrpc: String?
    @Option(
        help: "Account made at the first start, which the daemon port writes to; 12 digits. (default: 123456789012)")
    var account: String?
    @Option(help: "Region of the server. (default: us-east-1)")
    var region: String?
    @Option(
        help: "Host suffix: with xray.example.test, 210987654321.xray.example.test names that account. (default: none)")
    var hostSuffix: String?
    @Option(
        help: "PEM file with the certificate of the X-Ray API: it then speaks TLS, HTTP/2 and HTTP/1.1. (default: none)"
    )
    var tlsCertificate: String?
    @Option(help: "PEM file with the key of --tls-certificate. Both are read again at SIGHUP. (default: none)")
    var tlsKey: String?
    @Option(help: "Largest trace in bytes of its documents, 0 for no limit. (default: 512000)")
    var maxTraceBytes: String?
    @Option(help: "Days that traces and graphs are kept. (default: 30)")
    var retentionDays: String?
    @Option(help: "Days that the log is kept, to rebuild from. (default: as --retention-days)")
    var logRetentionDays: String?
    @Option(help: "An external PostgreSQL (postgresql://user@host/database) instead of the private one.")
    var databaseURL: String?
    @Option(help: "File of the key that secrets are encrypted under. (default: master.key in the data folder)")
    var masterKey: String?
    @Option(help: "Name of this node in `beamline status`. (default: the host's name)")
    var nodeName: String?
    @Option(help: "Partitions of the log at its creation; it may grow later, never shrink. (default: 4)")
    var partitions: String?
    @Option(help: "Documents per second and account before ThrottledException, 0 for no limit. (default: 0)")
    var ingestRate: String?
    @Option(help: "trace, debug, info, notice, warning, error or critical. (default: notice)")
    var logLevel: String?
    @Option(help: "A YAML file with settings, one `name: value` per line.")
    var config: String?

    func run() async throws {
        let flags: [String: String?] = [
            "data-dir": dataDir, "api": api, "daemon": daemon, "console": console, "metrics": metrics,
            "otlp-http": otlpHttp,
            "otlp-grpc": otlpGrpc, "account": account, "region": region, "host-suffix": hostSuffix,
            "max-trace-bytes": maxTraceBytes,
            "retention-days": retentionDays, "database-url": databaseURL, "partitions": partitions,
            "ingest-rate": ingestRate, "log-retention-days": logRetentionDays, "master-key": masterKey,
            "node-name": nodeName, "tls-certificate": tlsCertificate, "tls-key": tlsKey,
            "log-level": logLevel, "config": config,
        ]
        let settings = try ServerSettings(try await SettingsReader(flags: flags.compactMapValues { $0 }, known: ServerSettings.names))
        try await inOneSentence { try await Standalone(settings).run() }
    }
}

/// Messages of libpq have several lines; a start that fails says one sentence.
func inOneSentence(_ body: () async throws -> Void) async throws {
    do {
        try await body()
    } catch {
        let lines = "\(error)".split(whereSeparator: \.isNewline).map { $0.trimmingCharacters(in: .whitespaces) }
        throw CommandFailure(lines.joined(separator: " "))
    }
}
