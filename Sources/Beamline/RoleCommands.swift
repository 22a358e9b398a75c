// `beamline ingest`, `aggregate`, `query`: one role each, any number of processes.

import ArgumentParser
import TraceStore

/// What every role has.
struct RoleOptions: ParsableArguments {
    @Option(help: "The PostgreSQL that all nodes share (postgresql://user@host/database).")
    var databaseURL: String?
    @Option(
        parsing: .unconditional,
        help: "Partitions of the log, at least; it may grow while nodes run, never shrink. (default: 12)")
    var partitions: String?
    @OptionGroup var process: ProcessOptions

    var flags: [String: String?] {
        ["database-url": databaseURL, "partitions": partitions].merging(process.flags) { $1 }
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
    @OptionGroup var api: APIOptions
    @OptionGroup var intake: IntakeOptions
    @Option(help: "Account that the daemon port writes to; 12 digits. (default: 123456789012)")
    var account: String?

    func run() async throws {
        try await runRole(
            .ingest, allFlags(role.flags, api.flags, intake.flags, ["master-key": masterKey, "account": account]))
    }
}

struct AggregateCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "aggregate",
        abstract: "Run an aggregator: folds its share of the log's partitions into traces and graphs.",
        discussion: settingsDiscussion)

    @OptionGroup var role: RoleOptions
    @OptionGroup var fold: FoldOptions

    func run() async throws { try await runRole(.aggregate, allFlags(role.flags, fold.flags)) }
}

struct QueryCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "query", abstract: "Run a query node: answers the read operations.",
        discussion: settingsDiscussion)

    @OptionGroup var role: RoleOptions
    @Option(help: "File of the key that all nodes share.") var masterKey: String?
    @OptionGroup var api: APIOptions
    @OptionGroup var reads: ReadOptions

    func run() async throws {
        try await runRole(.query, allFlags(role.flags, api.flags, reads.flags, ["master-key": masterKey]))
    }
}

private func runRole(_ role: NodeRole, _ flags: [String: String]) async throws {
    let reader = try await SettingsReader(flags: flags, known: ServerSettings.names, command: role.rawValue)
    let settings = try ServerSettings(reader, role: role)
    try await inOneSentence { try await RoleProcess(settings).run() }
}
