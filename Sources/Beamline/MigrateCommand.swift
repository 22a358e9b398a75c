// `beamline migrate`: brings the tables of the log and the store up to this release. Standalone does it at each start.

import ArgumentParser
import SegmentLog
import TraceStore

struct MigrateCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "migrate",
        abstract: "Create or upgrade the tables; safe to run twice and by several processes at once.")
    @OptionGroup var database: DatabaseOptions

    func run() async throws {
        try await database.withDatabase { configuration in
            try await PostgresLog.migrate(database: configuration)
            try await TraceStore.migrate(database: configuration)
        }
        print("the tables are those of beamline \(beamlineVersion)")
    }
}
