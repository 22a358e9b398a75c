// What the store gives back: traces with their documents, candidates of a search, graph blocks, sizes.

import Segments

/// A trace as stored: folding its documents in order gives its state.
public struct StoredTrace: Sendable, Equatable {
    public var id: TraceID
    public var version: Int
    /// Number of documents that changed the trace.
    public var revision: Int
    public var limitExceeded: Bool
    /// Day (since 1970) of the first receipt.
    public var day: Int
    /// In the order in which they were folded.
    public var documents: [StoredDocument]
    /// False: the indexing rule left it out, so it has no summary and no contributions.
    public var isIndexed: Bool

    public init(
        id: TraceID, version: Int, revision: Int, limitExceeded: Bool, day: Int, documents: [StoredDocument],
        isIndexed: Bool = true
    ) {
        self.id = id
        self.version = version
        self.revision = revision
        self.limitExceeded = limitExceeded
        self.day = day
        self.documents = documents
        self.isIndexed = isIndexed
    }
}

/// The clock by which traces are searched (`TimeRangeType`, `traces.md` §7).
public enum TimeRangeType: Sendable, CaseIterable {
    /// `start_time` of the root (`TraceId`).
    case traceID
    /// Receipt of a document: the newest one in the window (`Event`).
    case event
    /// End of a segment or leaf remote call: the newest one in the window (`Service`).
    case service
}

/// A trace with a root whose clock lies in the window.
public struct SummaryCandidate: Sendable, Equatable {
    public var id: TraceID
    public var clock: Micros

    public init(id: TraceID, clock: Micros) {
        self.id = id
        self.clock = clock
    }
}

/// An encoded block of observations; all rows of a minute have to be added up.
public struct GraphBlockRow: Sendable, Equatable {
    public var minute: Int64
    public var bytes: [UInt8]

    public init(minute: Int64, bytes: [UInt8]) {
        self.minute = minute
        self.bytes = bytes
    }
}

/// Blocks, and what is needed to know whether others are still what they were.
public struct NamedGraphBlocks: Sendable, Equatable {
    /// The minutes whose blocks were asked for.
    public var minutesRead: [Range<Int64>]
    /// In order of minute.
    public var rows: [GroupBlockRow] = []
    /// Per minute that has rows: equal names stand for the same rows with the same contents.
    public var names: [Int64: [UInt8]] = [:]

    public init(minutesRead: [Range<Int64>]) { self.minutesRead = minutesRead }
}

/// Size of one kind of data on disk, indexes and out-of-line storage included.
public struct TableSize: Sendable, Equatable {
    /// Name of the table; day partitions are added up under their parent.
    public var table: String
    /// Bytes of the rows (heap and out-of-line storage).
    public var rowBytes: Int
    public var indexBytes: Int

    public init(table: String, rowBytes: Int, indexBytes: Int) {
        self.table = table
        self.rowBytes = rowBytes
        self.indexBytes = indexBytes
    }
}

/// One call of `PutTelemetryRecords`, kept as received.
public struct TelemetryRecord: Sendable, Equatable {
    public var account: AccountID
    public var receivedAt: Micros
    /// The request's body.
    public var document: [UInt8]

    public init(account: AccountID, receivedAt: Micros, document: [UInt8]) {
        self.account = account
        self.receivedAt = receivedAt
        self.document = document
    }
}

/// What the store could not do.
public struct TraceStoreError: Error, Sendable, CustomStringConvertible {
    public enum Code: Sendable, Equatable {
        /// PostgreSQL cannot be reached or did not answer in time; the call may be repeated.
        case unavailable
        /// The schema is older or newer than this program; `beamline migrate` is to be run.
        case schemaMismatch
        /// A row cannot be decoded.
        case corrupt
        /// PostgreSQL refused the statement.
        case refused
        /// The account, key or other thing named does not exist, or exists already.
        case unknown, exists
    }

    public var code: Code
    public var message: String
    public var isRetriable: Bool

    public init(_ code: Code, _ message: String, isRetriable: Bool = false) {
        self.code = code
        self.message = message
        self.isRetriable = isRetriable
    }

    public var description: String { message }
}
