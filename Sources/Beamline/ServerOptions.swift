// Flags of the servers, in groups: each stands once, whichever roles have it.

import ArgumentParser

/// What every server has.
struct ProcessOptions: ParsableArguments {
    @Option(help: "HOST:PORT of Beamline's own metrics in Prometheus text, or off. (default: 127.0.0.1:9464)")
    var metrics: String?
    @OptionGroup var log: LogOptions
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
            "metrics": metrics, "node-name": nodeName, "region": region, "host-suffix": hostSuffix,
            "log-level": logLevel, "config": config,
        ].merging(log.flags) { $1 }
    }
}

/// Of those that serve the X-Ray API.
struct APIOptions: ParsableArguments {
    @Option(help: "HOST:PORT of the X-Ray API, or off. (default: 127.0.0.1:2000)")
    var api: String?
    @Option(
        help:
            "Origins of web pages that may call the API from a browser (CORS), with commas: https://console.example.com. (default: none)"
    )
    var corsAllowedOrigins: String?
    @Option(
        help: "PEM file with the certificate of the X-Ray API: it then speaks TLS, HTTP/2 and HTTP/1.1. (default: none)"
    )
    var tlsCertificate: String?
    @Option(help: "PEM file with the key of --tls-certificate. Both are read again at SIGHUP. (default: none)")
    var tlsKey: String?
    @Option(
        parsing: .unconditional,
        help:
            "Reads per second and account before ThrottledException, 0 for no limit; twice as many at once. (default: 0)"
    )
    var queryRate: String?
    @Option(
        parsing: .unconditional,
        help:
            "Changes of groups, tags and rules per second and account, 0 for no limit; four times at once. (default: 0)"
    )
    var controlRate: String?
    @Option(
        parsing: .unconditional,
        help: "Calls of samplers and telemetry per second and account, 0 for no limit; twice at once. (default: 0)")
    var samplingRate: String?
    @Option(
        parsing: .unconditional,
        help: "Largest request body in bytes, twice as much when decompressed. (default: 8388608)")
    var maxBodyBytes: String?

    var flags: [String: String?] {
        [
            "query-rate": queryRate, "control-rate": controlRate, "sampling-rate": samplingRate,
            "max-body-bytes": maxBodyBytes, "api": api, "cors-allowed-origins": corsAllowedOrigins,
            "tls-certificate": tlsCertificate, "tls-key": tlsKey,
        ]
    }
}

/// Of those that take documents in.
struct IntakeOptions: ParsableArguments {
    @Option(
        help:
            "HOST:PORT (UDP) of the X-Ray daemon protocol, or off. Unsigned: keep it on loopback. (default: 127.0.0.1:2000)"
    )
    var daemon: String?
    @Option(help: "HOST:PORT of OTLP over HTTP, or off. Arrives in a later release. (default: off)")
    var otlpHttp: String?
    @Option(help: "HOST:PORT of OTLP over gRPC, or off. Arrives in a later release. (default: off)")
    var otlpGrpc: String?
    @Option(
        parsing: .unconditional,
        help: "Documents per second and account before ThrottledException, 0 for no limit. (default: 0)")
    var ingestRate: String?

    var flags: [String: String?] {
        ["daemon": daemon, "otlp-http": otlpHttp, "otlp-grpc": otlpGrpc, "ingest-rate": ingestRate]
    }
}

/// Of those that answer reads.
struct ReadOptions: ParsableArguments {
    @Option(help: "HOST:PORT of the web console, or off. Arrives in a later release. (default: off)")
    var console: String?

    var flags: [String: String?] { ["console": console] }
}

/// Of those that fold documents into traces.
struct FoldOptions: ParsableArguments {
    @Option(
        parsing: .unconditional,
        help: "Largest trace in bytes of its documents, 0 for no limit. (default: 512000)")
    var maxTraceBytes: String?
    @Option(
        parsing: .unconditional,
        help: "Days that traces and graphs are kept. (default: 30)")
    var retentionDays: String?
    @Option(
        parsing: .unconditional,
        help: "Days that the log is kept, to rebuild from. (default: as --retention-days)")
    var logRetentionDays: String?

    var flags: [String: String?] {
        [
            "max-trace-bytes": maxTraceBytes, "retention-days": retentionDays,
            "log-retention-days": logRetentionDays,
        ]
    }
}

/// The groups of one command as one set of flags.
func allFlags(_ groups: [String: String?]...) -> [String: String] {
    groups.reduce(into: [:]) { all, group in all.merge(group.compactMapValues { $0 }) { $1 } }
}
