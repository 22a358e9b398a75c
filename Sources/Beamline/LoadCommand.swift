// `beamline load`: traffic for any server that speaks the X-Ray API, and what it took to take it.

import ArgumentParser
import Foundation
import LoadGeneration

struct LoadCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "load",
        abstract: "Send realistic traces, measure, and read them back.",
        discussion: """
            Without --rate every connection sends its next call when the last one is answered (closed loop). With --rate calls go out \
            on a fixed schedule and latency counts from the scheduled time, so that a stalled server cannot hide (open loop). \
            A failed call is tried again for a minute, in a run with a duration for 30 s after it at most. Ends with exit code 1 when a \
            document was refused or never acknowledged, or a check failed. Speaks plain HTTP.
            """)

    @Option(help: "Where the API listens. (default: AWS_ENDPOINT_URL_XRAY, else http://127.0.0.1:2000)")
    var endpoint: String?
    @Option(help: "A shared-credentials file such as DIR/credentials. (default: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)")
    var credentials: String?
    @Option(help: "Profile in that file.") var profile = "default"
    @Option(help: "Region to sign for.") var region = "us-east-1"
    @Option(help: "Connections, one thread each.") var connections = 4
    @Option(help: "Documents of a call, at most 50.") var documentsPerCall = 25
    @Option(help: "Documents per second on a schedule. (default: as fast as answers come back)") var rate: Double?
    @Option(help: "Seconds to send for. (default: 10, unlimited with --traces)") var duration: Double?
    @Option(help: "Traces to send in all. (default: no limit)") var traces: Int?
    @Option(help: "Services of the made-up system.") var services = 20
    @Option(help: "Documents of a trace, on average.") var documentsPerTrace = 6
    @Option(help: "Seed of the traffic. Ids and times come from the clock as well.") var seed: UInt64 = 1
    @Option(help: "Joined to every name with a dash, to tell this run's nodes from others. (default: none; with --check a new one)")
    var tag: String?
    @Option(help: "Date the traces over so many seconds up to now, oldest first; needs --traces. (default: as they are sent)")
    var spread: Double?
    @Flag(help: "Traffic to search in: 10,000 users, an annotation `campaign` with rare values.") var searchable = false
    @Flag(help: "Wait until reads contain everything sent, and report when that was.") var untilComplete = false
    @Flag(help: "Read totals and a sample back and compare them with what was sent.") var check = false
    @Flag(help: "Measure how long after its acknowledgement a document shows in summaries and graph.") var visibility = false
    @Flag(help: "Print the result as JSON.") var json = false
    @Option(help: .hidden) var writeDocuments: String?

    func validate() throws {
        if !(1...50).contains(documentsPerCall) { throw ValidationError("--documents-per-call must be from 1 to 50") }
        if !(1...1000).contains(connections) { throw ValidationError("--connections must be from 1 to 1000") }
        if !(2...1000).contains(services) { throw ValidationError("--services must be from 2 to 1000") }
        if !(1...100).contains(documentsPerTrace) { throw ValidationError("--documents-per-trace must be from 1 to 100") }
        if let rate, !(rate > 0) { throw ValidationError("--rate must be more than 0") }
        if let duration, !(duration > 0) { throw ValidationError("--duration must be more than 0") }
        if let spread, !(spread > 0) { throw ValidationError("--spread must be more than 0") }
        if spread != nil, traces == nil || check { throw ValidationError("--spread needs --traces, and cannot be used with --check") }
        if let traces, traces < 1 { throw ValidationError("--traces must be at least 1") }
    }

    func run() async throws {
        var shape = TraceShape()
        shape.services = services
        shape.documentsPerTrace = documentsPerTrace
        shape.seed = seed
        shape.tag = tag ?? (check ? String(UInt32.random(in: .min ... .max), radix: 36) : "")
        if searchable {
            shape.users = 10_000
            shape.hasCampaigns = true
        }
        if check { shape.sampleEvery = 97 }
        if let writeDocuments { return try write(shape, to: writeDocuments) }

        let address = endpoint ?? environmentValue("AWS_ENDPOINT_URL_XRAY") ?? "http://127.0.0.1:2000"
        var options = LoadOptions(endpoint: try Endpoint(parsing: address))
        options.credentials = try SigningCredentials.load(file: credentials, profile: profile)
        options.region = region
        options.connections = connections
        options.documentsPerCall = documentsPerCall
        options.documentsPerSecond = rate
        options.durationSeconds = duration ?? (traces == nil ? 10 : nil)
        options.traces = traces
        options.shape = shape
        options.spreadSeconds = spread
        options.untilComplete = untilComplete
        options.check = check
        options.visibility = visibility

        try LoadRun.requireReachable(options.endpoint)
        let chosen = options
        let result = await withCheckedContinuation { continuation in
            Thread { continuation.resume(returning: LoadRun.run(chosen)) }.start()
        }
        let report = LoadReport(result)
        print(json ? String(decoding: report.json, as: UTF8.self) : report.text)
        if !result.isGood { throw ExitCode.failure }
    }

    /// The documents of `--traces` traces, one a line: the rows of the `COPY` floor of `deploy/bench`.
    private func write(_ shape: TraceShape, to path: String) throws {
        guard let file = fopen(path, "w") else { throw CommandFailure("cannot write \(path): \(String(cString: strerror(errno)))") }
        defer { fclose(file) }
        let now = Int64(Date().timeIntervalSince1970 * 1_000_000)
        let generator = TraceGenerator(shape: shape, worker: 0, startedAt: now, escaped: false)
        let out = OutputBuffer()
        let wanted = traces ?? 10_000
        while generator.traceCount < wanted || !generator.isBetweenTraces {
            out.removeAll()
            generator.writeDocument(into: out, now: now)
            guard fwrite(out.bytes.baseAddress, 1, out.count, file) == out.count, fputc(10, file) == 10 else {
                throw CommandFailure("cannot write \(path): \(String(cString: strerror(errno)))")
            }
        }
        print(generator.documentCount)
    }
}
