import AccessControl
import Logging
import PostgreSQL
import Segments

public struct TraceStoreOptions: Sendable {
    /// Connections for reads; commits have `writerCount` of their own.
    public var readerCount = 3
    public var writerCount = 2
    /// Documents of an account to collect before a dictionary is trained from them.
    public var dictionarySampleBytes = 1_500_000
    public var dictionaryBytes = 64 << 10

    public init() {}
}

public final class TraceStore: Sendable {
    public init(database: PostgresConfiguration, options: TraceStoreOptions = .init(), logger: Logger) {}

    /// Creates or upgrades the tables; safe to be called by several processes at once.
    public static func migrate(database: PostgresConfiguration, logger: Logger) async throws(TraceStoreError) { throw nothing }

    /// Checks that the schema is the one this program knows. - Throws: `.schemaMismatch`.
    public func checkSchema() async throws(TraceStoreError) { throw nothing }

    /// The store's own work: training dictionaries, watching positions moved by other nodes. Until cancelled.
    public func run() async {}
    public func close() async {}

    // Aggregation
    public func claim(partitions: [Int], owner: String) async throws(TraceStoreError) -> [PartitionState] { throw nothing }
    public func commit(_ batch: AggregationBatch) async throws(TraceStoreError) -> CommitOutcome { throw nothing }
    /// Records that links have been re-checked up to `position`. - Returns: false when the partition has another owner.
    public func setChecked(partition: Int, position: Int64, ownerEpoch: Int64) async throws(TraceStoreError) -> Bool { throw nothing }

    // Traces
    public func storedTraces(account: AccountID, ids: [TraceID]) async throws(TraceStoreError) -> [StoredTrace] { throw nothing }
    public func summaryPage(
        account: AccountID, rangeType: TimeRangeType, window: Range<Int64>, after: SummaryCandidate?, limit: Int
    ) async throws(TraceStoreError) -> [SummaryCandidate] { throw nothing }

    // Graph
    public func graphBlocks(account: AccountID, minutes: Range<Int64>) async throws(TraceStoreError) -> [GraphBlockRow] { throw nothing }
    /// Merges the rows of minutes that had no new row for a while. - Returns: number of rows removed.
    /// - Parameter merge: adds blocks of one minute up to one (nil: everything cancelled out).
    public func compactGraphBlocks(
        partition: Int, minutes: Range<Int64>, minimumRows: Int = 2, maximumRows: Int = 2_000,
        merge: @Sendable ([[UInt8]]) throws -> [UInt8]?
    ) async throws -> Int { throw nothing }

    // Links
    /// Links of the given consumer traces.
    public func links(account: AccountID, ofConsumers: [TraceID]) async throws(TraceStoreError) -> [StoredLink] { throw nothing }
    /// Links that point at the given traces.
    public func links(account: AccountID, toTargets: [TraceID]) async throws(TraceStoreError) -> [StoredLink] { throw nothing }

    // Positions (ruling 4)
    public func positions() async throws(TraceStoreError) -> [PartitionState] { throw nothing }
    /// Waits until each partition's position has reached the offset. - Returns: false after the time-out.
    public func waitForPositions(_ offsets: [(partition: Int, offset: Int64)], timeout: Duration) async throws(TraceStoreError) -> Bool { throw nothing }

    // Inbox, telemetry, settings, sizes
    public func inbox(account: AccountID?, limit: Int) async throws(TraceStoreError) -> [InboxEntry] { throw nothing }
    public func inboxCount() async throws(TraceStoreError) -> Int { throw nothing }
    public func clearInbox(account: AccountID) async throws(TraceStoreError) -> Int { throw nothing }
    public func appendTelemetry(_ records: [TelemetryRecord]) async throws(TraceStoreError) { throw nothing }
    public func setting(account: AccountID, name: String) async throws(TraceStoreError) -> [UInt8]? { throw nothing }
    public func setSetting(account: AccountID, name: String, value: [UInt8]?) async throws(TraceStoreError) { throw nothing }
    public func tableSizes() async throws(TraceStoreError) -> [TableSize] { throw nothing }
    /// For `verify`: traces of an account in order of id. - Returns: at most `limit` ids after `after`.
    public func traceIDs(account: AccountID, after: TraceID?, limit: Int) async throws(TraceStoreError) -> [TraceID] { throw nothing }

    // Retention
    /// Creates the day partitions from yesterday to the day after tomorrow.
    public func prepareDays(around day: Int) async throws(TraceStoreError) { throw nothing }
    /// Removes what was received (graph: what ended) before the day: documents, traces, blocks, links, inbox, telemetry.
    public func removeDays(before day: Int) async throws(TraceStoreError) { throw nothing }

    // Directory
    public func accounts() async throws(TraceStoreError) -> [Account] { throw nothing }
    public func createAccount(_ account: Account) async throws(TraceStoreError) { throw nothing }
    public func setAccountState(_ id: AccountID, _ state: AccountState) async throws(TraceStoreError) { throw nothing }
    public func deleteAccount(_ id: AccountID) async throws(TraceStoreError) { throw nothing }
    public func accessKeys(account: AccountID?) async throws(TraceStoreError) -> [AccessKey] { throw nothing }
    public func createAccessKey(_ key: AccessKey) async throws(TraceStoreError) { throw nothing }
    public func setAccessKeyActive(_ id: String, _ isActive: Bool) async throws(TraceStoreError) { throw nothing }
    public func deleteAccessKey(_ id: String) async throws(TraceStoreError) { throw nothing }

    /// The directory as the API server asks it; answers are cached for `cacheTime` (at most 30 s).
    /// - Parameter decrypt: the clear secret of a key; called once per cached answer.
    public func credentialDirectory(
        cacheTime: Duration = .seconds(10), decrypt: @escaping @Sendable (AccessKey) throws -> SecretKey
    ) -> StoredCredentialDirectory { StoredCredentialDirectory() }
}

public final class StoredCredentialDirectory: CredentialDirectory {
    public func credential(for accessKeyID: String) async throws -> Credential? { throw nothing }
    public func accountState(of account: AccountID) async throws -> AccountState? { throw nothing }
}

let nothing = TraceStoreError(.unavailable, "")
