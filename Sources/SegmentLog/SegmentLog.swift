// The log: everything the system knows came through it. Ingest appends, the aggregator reads, the query side asks how
// far it reaches. Two implementations pass one compatibility suite: PostgreSQL (`PostgresLog`) and Kafka.

import Segments

/// A durable, partitioned, ordered log of records. Safe to call from any task.
public protocol SegmentLog: Sendable {
    /// Partitions are numbered 0 ..< partitionCount. It can only grow, also while the process runs: read it again each round.
    /// While nodes learn of it, a trace may be appended to by two partitions.
    var partitionCount: Int { get }

    /// Bytes that wait to become durable, for metrics.
    var queuedBytes: Int { get }

    /// Appends the records of one request; returns when all of them are durable.
    /// After an error nobody knows whether they are in the log: the caller answers 503, and a repetition does no harm.
    /// - Throws: `.full` when the bounded queue has no room, `.unavailable` when the log cannot be reached
    ///   (after a bounded time), `.tooLarge` when the log does not take a record of this size, `.closed` during shutdown.
    func append(_ records: LogRecordBatch) async throws(SegmentLogError)

    /// Reads records of a partition in order, beginning with the first at or after `offset`; empty when the log ends there.
    /// Offsets may have gaps, at the end of a batch too: `nextOffset` says where to go on.
    /// At least one record is returned if there is any, whatever its size.
    /// - Throws: `.trimmed` when records at or after `offset` have been removed by retention;
    ///   `.beyondEnd` when the log ends before `offset` (a log that lost records); `.unavailable`; `.corrupt`.
    func read(partition: Int, from offset: Int64, maxRecords: Int, maxBytes: Int) async throws(SegmentLogError) -> LogBatch

    /// The same without waiting for a server: what is at hand, perhaps nothing though there is more.
    /// - Returns: nil when nothing is at hand and it is not known whether the partition ends there; `waitForRecords` returns
    ///   when that changes.
    func readAvailable(
        partition: Int, from offset: Int64, maxRecords: Int, maxBytes: Int
    ) async throws(SegmentLogError) -> LogBatch?

    /// For each partition, the offset the next record will get. Everything acknowledged before the call, by any node, is before it.
    func endOffsets() async throws(SegmentLogError) -> [Int64]

    /// For each partition, the first offset that can still be read.
    func startOffsets() async throws(SegmentLogError) -> [Int64]

    /// What lies at or after a position of each partition: for lag metrics and for the header `x-beamline-complete-to`.
    func backlog(beyond positions: [LogPosition]) async throws(SegmentLogError) -> [LogBacklog]

    /// Returns as soon as one of the partitions reaches beyond the given position, or after the time-out. Never busy.
    func waitForRecords(beyond positions: [LogPosition], timeout: Duration) async

    /// Removes what was received before a time, as far as the log allows: PostgreSQL drops whole days; a Kafka topic has a
    /// retention of its own, and nothing happens.
    func removeRecords(receivedBefore time: Micros) async throws(SegmentLogError)

    /// Tells the log's own tools how far the aggregator has come (a Kafka consumer group, for those who watch its lag).
    /// Nothing depends on it; the call does not wait.
    func positionsCommitted(_ positions: [LogPosition])

    /// Does the log's own work (writing what was appended, watching for records of other nodes) until cancelled;
    /// on cancellation what was taken is written, what comes later is refused with `.closed`.
    func run() async

    /// Ends the connections; `run()` has to be over. Whoever still waits gets `.closed`.
    func close() async
}

/// A place in the log.
public struct LogPosition: Sendable, Equatable {
    public var partition: Int
    /// Offset of the first record not yet read.
    public var offset: Int64

    public init(partition: Int, offset: Int64) {
        self.partition = partition
        self.offset = offset
    }
}

/// What a reader at a position has still before it.
public struct LogBacklog: Sendable, Equatable {
    public var partition: Int
    public var endOffset: Int64
    /// Records at or after the position.
    public var recordCount: Int64
    /// The earliest receipt time among them; nil when there is none. Every record of this partition that was received
    /// before it, and is acknowledged, lies before the position.
    public var oldestReceipt: Micros?

    public init(partition: Int, endOffset: Int64, recordCount: Int64, oldestReceipt: Micros?) {
        self.partition = partition
        self.endOffset = endOffset
        self.recordCount = recordCount
        self.oldestReceipt = oldestReceipt
    }
}

extension SegmentLog {
    public func readAvailable(
        partition: Int, from offset: Int64, maxRecords: Int, maxBytes: Int
    ) async throws(SegmentLogError) -> LogBatch? {
        try await read(partition: partition, from: offset, maxRecords: maxRecords, maxBytes: maxBytes)
    }
}

public struct SegmentLogError: Error, Sendable, Equatable, CustomStringConvertible {
    public enum Code: Sendable, Equatable {
        case full
        case unavailable
        /// The log will never take a record of this size.
        case tooLarge
        /// A setting, or the topic as it is, does not fit: somebody has to change something.
        case misconfigured
        case closed
        case corrupt
        /// Retention removed the position; the first offset that is left.
        case trimmed(firstAvailable: Int64)
        case beyondEnd(end: Int64)
    }

    public var code: Code
    public var message: String

    public init(_ code: Code, _ message: String) {
        self.code = code
        self.message = message
    }

    public var description: String { message }

    /// Whether the same call may succeed a little later.
    public var isRetriable: Bool {
        switch code {
        case .full, .unavailable: true
        case .tooLarge, .misconfigured, .closed, .corrupt, .trimmed, .beyondEnd: false
        }
    }
}

/// Which partition a trace lives in: the same for every log, stable for ever, computed by every node.
public enum LogPartition {
    /// FNV-1a (64 bit) over the 16 bytes of the trace id in wire order, upper half xored into the lower, modulo the count.
    @inlinable
    public static func of(_ id: TraceID, count: Int) -> Int {
        var hash: UInt64 = 0xcbf2_9ce4_8422_2325
        mix(id.high, into: &hash)
        mix(id.low, into: &hash)
        return Int((hash ^ hash >> 32) % UInt64(max(count, 1)))
    }

    @inlinable
    static func mix(_ word: UInt64, into hash: inout UInt64) {
        var shift: UInt64 = 64
        while shift > 0 {
            shift -= 8
            hash = (hash ^ (word >> shift & 0xff)) &* 0x100_0000_01b3
        }
    }
}
