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
    @OptionGroup var api: APIOptions
    @OptionGroup var intake: IntakeOptions
    @OptionGroup var reads: ReadOptions
    @Option(
        help: "Account made at the first start, which the daemon port writes to; 12 digits. (default: 123456789012)")
    var account: String?
    @OptionGroup var fold: FoldOptions
    @Option(help: "An external PostgreSQL (postgresql://user@host/database) instead of the private one.")
    var databaseURL: String?
    @Option(help: "File of the key that secrets are encrypted under. (default: master.key in the data folder)")
    var masterKey: String?
    @Option(
        parsing: .unconditional,
        help: "Partitions of the log at its creation; it may grow later, never shrink. (default: 4, with Kafka 12)")
    var partitions: String?
    @OptionGroup var process: ProcessOptions

    func run() async throws {
        let own: [String: String?] = [
            "data-dir": dataDir, "account": account, "database-url": databaseURL, "master-key": masterKey,
            "partitions": partitions,
        ]
        let reader = try await SettingsReader(
            flags: allFlags(own, api.flags, intake.flags, reads.flags, fold.flags, process.flags),
            known: ServerSettings.names)
        let settings = try ServerSettings(reader)
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
