import Logging
import PostgreSQL
import Segments

public struct PostgresLogOptions: Sendable {
    /// Used when the log is created; a log that has more partitions keeps them, one that has fewer gets the missing ones.
    public var partitionCount = 4
    /// Bound of what waits to be written; beyond it `append` throws `.full`.
    public var queueBytes = 64 << 20
    /// Most that one commit takes (one request is never divided).
    public var commitBytes = 4 << 20
    /// While a commit ran less than `linger` ago and less than this waits, the writer waits a little for more.
    public var lingerBytes = 512 << 10
    public var linger: Duration = .milliseconds(2)
    /// Recent records kept in memory for the reader in the same process.
    public var tailBytes = 16 << 20
    /// How often a waiting reader looks for records appended by other nodes.
    public var pollInterval: Duration = .milliseconds(100)

    public init() {}
}

public final class PostgresLog: SegmentLog {
    public let partitionCount: Int

    init(partitionCount: Int) { self.partitionCount = partitionCount }

    /// Creates or upgrades the log's tables.
    public static func migrate(database: PostgresConfiguration, logger: Logger) async throws {
        throw SegmentLogError(.unavailable, "")
    }

    /// Connects and makes sure that the partitions exist.
    public static func open(
        database: PostgresConfiguration, options: PostgresLogOptions = .init(), logger: Logger
    ) async throws(SegmentLogError) -> PostgresLog {
        throw SegmentLogError(.unavailable, "")
    }

    public func append(_ records: LogRecordBatch) async throws(SegmentLogError) { throw SegmentLogError(.unavailable, "") }
    public func read(
        partition: Int, from offset: Int64, maxRecords: Int = 2_000, maxBytes: Int = 4 << 20
    ) async throws(SegmentLogError) -> LogBatch { throw SegmentLogError(.unavailable, "") }
    public func endOffsets() async throws(SegmentLogError) -> [Int64] { throw SegmentLogError(.unavailable, "") }
    public func startOffsets() async throws(SegmentLogError) -> [Int64] { throw SegmentLogError(.unavailable, "") }
    public func backlog(beyond positions: [LogPosition]) async throws(SegmentLogError) -> [LogBacklog] { [] }
    public func waitForRecords(beyond positions: [LogPosition], timeout: Duration) async {}
    public func run() async {}
    /// Removes whole days of the log that ended before `day` (days since 1970, by time of append).
    public func removeDays(before day: Int) async throws(SegmentLogError) {}
    public func close() async {}
}
