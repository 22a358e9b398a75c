// `beamline migrate`: brings the tables of the log and the store up to this release, and makes the key that the nodes of
// a cluster share. Standalone does both at each start.

import AccessControl
import ArgumentParser
import SegmentLog
import TraceStore

struct MigrateCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "migrate",
        abstract: "Create or upgrade the tables; safe to run twice and by several processes at once.",
        discussion: """
            With --master-key, also makes the key file if there is none and the database has no access keys yet. Nothing else \
            is made or changed.
            """)
    @OptionGroup var database: DatabaseOptions

    func run() async throws {
        try await database.withDatabase { configuration in
            try await PostgresLog.migrate(database: configuration)
            try await TraceStore.migrate(database: configuration)
        }
        if let path = database.masterKeyPath {
            try await database.withStore { store in
                _ = try await openMasterKey(at: path, store: store, isMade: true, logger: commandLogger)
            }
        }
        print("the tables are those of beamline \(beamlineVersion)")
    }
}
