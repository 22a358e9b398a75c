// How the administrative commands find the database: the private PostgreSQL of a data folder, running or not, or an
// external one.

import AccessControl
import ArgumentParser
import Glibc
import Logging
import PostgreSQL
import PrivatePostgreSQL
import TraceStore

struct DatabaseOptions: ParsableArguments {
    @Option(name: .customLong("data-dir"), help: "Folder of a standalone server. (default: BEAMLINE_DATA_DIR, else as of `standalone`)")
    var dataFolder: String?

    @Option(help: "An external PostgreSQL (postgresql://user@host/database). (default: BEAMLINE_DATABASE_URL)")
    var databaseURL: String?

    @Option(name: .customLong("master-key"), help: "File of the master key. (default: BEAMLINE_MASTER_KEY, else master.key in the data folder)")
    var masterKeyFile: String?

    var folder: String {
        ServerSettings.absolute(
            dataFolder ?? environmentValue("BEAMLINE_DATA_DIR") ?? ServerSettings.defaultDataFolder)
    }

    /// Given by flag or environment.
    var masterKeyPath: String? {
        (masterKeyFile ?? environmentValue("BEAMLINE_MASTER_KEY")).map { ServerSettings.absolute($0) }
    }

    func masterKey() throws -> MasterKey { try MasterKey.load(at: masterKeyPath ?? folder + "/master.key") }

    /// The key that the database's secrets are stored under: nothing is stored under another one.
    func masterKey(of store: TraceStore) async throws -> MasterKey {
        try await openMasterKey(
            at: masterKeyPath ?? folder + "/master.key", store: store, isMade: false, logger: commandLogger)
    }

    /// Calls `body` with the configuration of a database that runs. A private one that does not is started for the call
    /// and stopped after it, under the folder's lock.
    func withDatabase<Result>(_ body: (PostgresConfiguration) async throws -> Result) async throws -> Result {
        if let url = databaseURL ?? (dataFolder == nil ? environmentValue("BEAMLINE_DATABASE_URL") : nil) {
            try requireConnectionString(url, origin: databaseURL == nil ? "BEAMLINE_DATABASE_URL" : "--database-url")
            return try await body(PostgresConfiguration(url))
        }
        guard PrivateCluster.exists(dataFolder: folder) else {
            if access(folder, F_OK) == 0, access(folder, R_OK | X_OK) != 0 {
                throw CommandFailure(
                    "cannot look into the data folder \(folder): \(String(cString: strerror(errno))); run this as the user whom it belongs to"
                )
            }
            throw CommandFailure(
                "there is no standalone server's data in \(folder); give --data-dir or --database-url, or start `beamline standalone` first"
            )
        }
        let configuration = PostgresConfiguration(PrivateCluster.connectionString(dataFolder: folder))
        let lock: DataFolder
        do {
            lock = try DataFolder(path: folder)
        } catch is DataFolder.InUse {
            return try await body(configuration)
        }
        defer { withExtendedLifetime(lock) {} }
        let cluster = PrivateCluster(dataFolder: folder, logger: commandLogger)
        do {
            try await cluster.start()
            let result = try await body(configuration)
            await cluster.stop()
            return result
        } catch {
            await cluster.stop()
            throw error
        }
    }

    /// As above, with the store opened and its schema checked.
    func withStore<Result>(_ body: (TraceStore) async throws -> Result) async throws -> Result {
        try await withDatabase { configuration in
            var options = TraceStoreOptions()
            options.readerCount = 1
            options.writerCount = 1
            let store = TraceStore(database: configuration, options: options, logger: commandLogger)
            do {
                try await store.checkSchema()
                let result = try await body(store)
                await store.close()
                return result
            } catch {
                await store.close()
                throw error
            }
        }
    }
}

/// libpq takes any other word for the name of a database.
func requireConnectionString(_ text: String, origin: String) throws {
    guard text.hasPrefix("postgresql://") || text.hasPrefix("postgres://") || text.contains("=") else {
        throw CommandFailure(
            "\(origin) must be a URL (postgresql://user@host/database) or settings of libpq (host=… user=… dbname=…), not `\(text)`"
        )
    }
}

/// Commands speak through their output; the log is for trouble.
let commandLogger: Logger = {
    var logger = Logger(label: "beamline", factory: { StreamLogHandler.standardError(label: $0) })
    logger.logLevel = .error
    return logger
}()

func environmentValue(_ name: String) -> String? {
    guard let value = getenv(name), value.pointee != 0 else { return nil }
    return String(cString: value)
}
