// What stands in the log: one record per accepted document, or a touch of a trace. Ingest and the aggregator make
// records, the aggregator reads them back. The bytes are kept together: one arena per request, not one array per record.

import Segments

/// By which door a document came in.
public enum LogSource: UInt8, Sendable, CaseIterable { case http = 0, udp = 1, otlp = 2, aggregator = 3 }

/// What a record asks of the aggregator.
public enum LogRecordKind: UInt8, Sendable, CaseIterable {
    /// The value is a segment document as received.
    case document = 0
    /// No value: evaluate the trace again, a trace that it links to has changed.
    case touch = 1
}

/// A record to be appended. The partition follows from the trace id (`LogPartition`).
public struct LogRecord: Sendable, Equatable {
    public var kind: LogRecordKind
    public var traceID: TraceID
    /// The account the document belongs to.
    public var account: AccountID
    /// Microseconds since 1970, by the clock of the node that accepted it.
    public var receivedAt: Micros
    public var source: LogSource
    /// Empty for records that no caller sent.
    public var callerARN: String
    /// Nil is legal and differs from empty (a Kafka tombstone).
    public var value: [UInt8]?

    public init(
        kind: LogRecordKind = .document, traceID: TraceID, account: AccountID, receivedAt: Micros, source: LogSource,
        callerARN: String = "", value: [UInt8]?
    ) {
        self.kind = kind
        self.traceID = traceID
        self.account = account
        self.receivedAt = receivedAt
        self.source = source
        self.callerARN = callerARN
        self.value = value
    }
}

/// The records of one request, in order; they become durable together.
public struct LogRecordBatch: Sendable {
    struct Entry: Sendable {
        var kind: LogRecordKind
        var source: LogSource
        var traceID: TraceID
        var account: AccountID
        var receivedAt: Micros
        var callerARN: String
        /// Start in `bytes` and length; length -1 = no value.
        var start: Int
        var length: Int
    }

    var entries: [Entry] = []
    var bytes: [UInt8] = []

    /// - Parameter byteCount: the expected sum of the values, to reserve memory once.
    public init(recordCount: Int = 0, byteCount: Int = 0) {
        entries.reserveCapacity(recordCount)
        bytes.reserveCapacity(byteCount)
    }

    public init(_ records: [LogRecord]) {
        self.init(recordCount: records.count, byteCount: records.reduce(0) { $0 + ($1.value?.count ?? 0) })
        for record in records { append(record) }
    }

    public var count: Int { entries.count }
    public var isEmpty: Bool { entries.isEmpty }
    /// What the batch counts for in the bounded queue.
    public var byteCount: Int { bytes.count + entries.count * 64 }

    public mutating func append(_ record: LogRecord) {
        guard let value = record.value else {
            append(
                kind: record.kind, traceID: record.traceID, account: record.account, receivedAt: record.receivedAt,
                source: record.source, callerARN: record.callerARN, value: nil)
            return
        }
        value.withUnsafeBytes {
            append(
                kind: record.kind, traceID: record.traceID, account: record.account, receivedAt: record.receivedAt,
                source: record.source, callerARN: record.callerARN, value: $0)
        }
    }

    /// Adds a record; the value is copied.
    public mutating func append(
        kind: LogRecordKind = .document, traceID: TraceID, account: AccountID, receivedAt: Micros, source: LogSource,
        callerARN: String, value: UnsafeRawBufferPointer?
    ) {
        entries.append(
            Entry(
                kind: kind, source: source, traceID: traceID, account: account, receivedAt: receivedAt,
                callerARN: callerARN, start: bytes.count, length: value?.count ?? -1))
        if let value { bytes.append(contentsOf: value) }
    }
}

/// A record as read: its place in the log and its content. The value is a slice of memory shared by the whole batch.
public struct LogEntry: Sendable {
    public let offset: Int64
    public let kind: LogRecordKind
    public let traceID: TraceID
    public let account: AccountID
    public let receivedAt: Micros
    public let source: LogSource
    public let callerARN: String
    /// False: the record was appended with a nil value; `value` is empty then.
    public let hasValue: Bool
    public let value: ArraySlice<UInt8>
    /// Why this record, written by somebody else than Beamline, cannot be used: one sentence. What its headers do not say
    /// is 0 or empty then, and `value` holds no more than its beginning. Nil for every record that `append` wrote.
    public let poison: String?

    init(
        offset: Int64, kind: LogRecordKind, traceID: TraceID, account: AccountID, receivedAt: Micros, source: LogSource,
        callerARN: String, hasValue: Bool, value: ArraySlice<UInt8>, poison: String? = nil
    ) {
        self.offset = offset
        self.kind = kind
        self.traceID = traceID
        self.account = account
        self.receivedAt = receivedAt
        self.source = source
        self.callerARN = callerARN
        self.hasValue = hasValue
        self.value = value
        self.poison = poison
    }
}

/// Consecutive records of one partition.
public struct LogBatch: Sendable {
    public var partition: Int
    /// The offset asked for.
    public var from: Int64
    /// Where the next read starts: one past the last record here (`from` when there is none).
    public var nextOffset: Int64
    /// End of the partition when it was read: a lower bound of the offset the next record will get.
    public var endOffset: Int64
    public var entries: [LogEntry]

    public init(partition: Int, from: Int64, nextOffset: Int64, endOffset: Int64, entries: [LogEntry]) {
        self.partition = partition
        self.from = from
        self.nextOffset = nextOffset
        self.endOffset = endOffset
        self.entries = entries
    }
}
