// Everything that is kept in PostgreSQL: what the aggregator derives from the log, and the directory. The aggregator
// commits batches (`TraceStore+Commit`), the query side reads (`TraceStore+Traces`, `+Graph`), the executable keeps house.
// It knows rows, not rules: what a trace or a graph is, is decided in the pure modules.

import Logging
import PostgreSQL
import Segments

public struct TraceStoreOptions: Sendable {
    /// Connections for reads; commits have connections of their own.
    public var readerCount = 3
    public var writerCount = 2
    /// Documents of an account to collect before a dictionary is trained from them.
    public var dictionarySampleBytes = 1_500_000
    /// Twice of it takes 2 % off, and half as long again.
    public var dictionaryBytes = 32 << 10
    /// How long a commit is repeated while PostgreSQL is away before it fails.
    public var commitPatience: Duration = .seconds(20)

    public init() {}
}

/// Safe to call from any task; one per process and database.
public final class TraceStore: Sendable {
    let readers: PostgresPool
    let writers: PostgresPool
    let options: TraceStoreOptions
    let logger: Logger
    let codec = DocumentCodec()
    let dictionaries: Dictionaries
    let days = KnownDays()
    let searchCache = SearchCache()
    /// Positions of partitions as far as this process knows.
    let watch = OffsetWatch()

    /// Connections are opened when first needed. The caller runs `run()` and ends with `close()`.
    public init(database: PostgresConfiguration, options: TraceStoreOptions = .init(), logger: Logger) {
        readers = PostgresPool(database, sessionCount: options.readerCount)
        writers = PostgresPool(database, sessionCount: options.writerCount)
        self.options = options
        self.logger = logger
        dictionaries = Dictionaries(pool: readers, options: options, logger: logger)
    }

    /// Creates or upgrades the tables; safe to be called by several processes at once.
    public static func migrate(database: PostgresConfiguration) async throws(TraceStoreError) {
        do {
            try await PostgresMigrator.migrate(component: StoreSchema.component, StoreSchema.migrations, database: database)
        } catch {
            throw TraceStoreError(error, "cannot migrate the store")
        }
    }

    /// Checks that the schema is the one this program knows.
    /// - Throws: `.schemaMismatch` with the command to run; `.unavailable`.
    public func checkSchema() async throws(TraceStoreError) {
        let found: Int
        do {
            found = try await PostgresMigrator.version(of: StoreSchema.component, on: readers)
        } catch {
            throw TraceStoreError(error, "cannot read the schema's version")
        }
        guard found == StoreSchema.version else {
            let remedy = found < StoreSchema.version ? "run `beamline migrate`" : "use a newer beamline"
            throw TraceStoreError(
                .schemaMismatch, "the schema has version \(found), this program needs \(StoreSchema.version): \(remedy)")
        }
    }

    /// Round trips made so far, for metrics.
    public var roundTrips: Int { readers.roundTrips + writers.roundTrips }

    /// The store's own work (training dictionaries), until cancelled.
    public func run() async { await dictionaries.run() }

    /// Ends the connections; calls under way fail.
    public func close() async {
        await readers.close()
        await writers.close()
    }

    func ask(_ statement: PostgresStatement) async throws(TraceStoreError) -> PostgresResult {
        do {
            return try await readers.run(statement)
        } catch {
            throw TraceStoreError(error, "cannot read from the store")
        }
    }

    @discardableResult
    func change(_ statements: PostgresStatement...) async throws(TraceStoreError) -> [PostgresResult] {
        do {
            return try await writers.run(statements)
        } catch {
            throw TraceStoreError(error, "cannot write to the store")
        }
    }
}

extension TraceStoreError {
    init(_ error: PostgresError, _ what: String) {
        self.init(
            error.isRetriable || error.code == .closed ? .unavailable : .refused, "\(what): \(error)",
            isRetriable: error.isRetriable)
    }
}

extension TraceID {
    init(_ uuid: (high: UInt64, low: UInt64)) { self.init(high: uuid.high, low: uuid.low) }
}

extension PostgresArray {
    mutating func append(_ account: AccountID) { append(Int64(bitPattern: account.rawValue)) }
    mutating func append(_ id: TraceID) { append(uuid: id.high, id.low) }
}

extension PostgresStatement {
    mutating func bind(_ account: AccountID) { bind(Int64(bitPattern: account.rawValue)) }
    mutating func bind(_ id: TraceID) { bind(uuid: id.high, id.low) }
    mutating func bind(_ ids: [TraceID]) {
        var array = PostgresArray.uuid
        for id in ids { array.append(id) }
        bind(array)
    }
}
