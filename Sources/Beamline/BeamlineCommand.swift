// The command line: one type per command, each in a file of its own. They wire modules together and contain no rules.

import ArgumentParser

@main
struct BeamlineCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "beamline",
        abstract: "A self-hosted tracing backend that speaks AWS X-Ray.",
        version: beamlineVersion,
        subcommands: [
            StandaloneCommand.self, IngestCommand.self, AggregateCommand.self, QueryCommand.self, AccountCommand.self,
            KeyCommand.self, InboxCommand.self, MigrateCommand.self, StatusCommand.self, DoctorCommand.self,
            RebuildCommand.self, VerifyCommand.self, ExplainCommand.self, LoadCommand.self, BenchBareCommand.self,
        ])
}

let beamlineVersion = "0.1.0"
