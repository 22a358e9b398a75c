// What the aggregator hands over after folding a piece of the log: everything it changes, written in one transaction
// together with the partitions' positions. Values only; `TraceStore.commit` writes them.

import SearchIndex
import Segments

/// One unit of work of the aggregator: read from one or several partitions, written all or not at all.
public struct AggregationBatch: Sendable {
    /// The guard: one move for every partition the batch was read from.
    public var positions: [PositionMove] = []
    /// Every trace whose row or documents change; a trace appears at most once.
    public var traces: [TraceChange] = []
    /// At most one per (account, minute, partition).
    public var blocks: [GraphBlockDelta] = []
    /// Consumer traces whose links changed: the complete new list of each.
    public var links: [LinkReplacement] = []
    public var inbox: [InboxEntry] = []
    /// The changed traces with a root as the search index has them, by account and hour.
    public var searchSegments: [SearchSegmentDelta] = []
    /// What the batch changes for groups (`GroupChanges`); empty where accounts have none.
    public var groups = GroupChanges()
    /// There is time to store it in fewer bytes.
    public var hasTime = false

    public init() {}
}

/// Moves a partition's position; holds only while it is where the aggregator thinks it is, and still the aggregator's.
public struct PositionMove: Sendable, Equatable {
    public var partition: Int
    /// The position when the batch was read, and after it.
    public var from: Int64
    public var to: Int64
    /// From `TraceStore.claim`.
    public var ownerEpoch: Int64
    /// Newest receipt time among the records of the batch; nil leaves the stored one.
    public var receivedThrough: Micros?
    /// Also moves the position up to which links have been re-checked (`PartitionState.checkedPosition`).
    public var checkedPosition: Int64?

    public init(
        partition: Int, from: Int64, to: Int64, ownerEpoch: Int64, receivedThrough: Micros? = nil,
        checkedPosition: Int64? = nil
    ) {
        self.partition = partition
        self.from = from
        self.to = to
        self.ownerEpoch = ownerEpoch
        self.receivedThrough = receivedThrough
        self.checkedPosition = checkedPosition
    }
}

/// A document that changed its trace, as it is stored and as it is read back.
public struct StoredDocument: Sendable, Equatable {
    public var receivedAt: Micros
    public var partition: Int
    /// Offset of its record in the log.
    public var offset: Int64
    /// The document as received.
    public var bytes: ArraySlice<UInt8>

    public init(receivedAt: Micros, partition: Int, offset: Int64, bytes: ArraySlice<UInt8>) {
        self.receivedAt = receivedAt
        self.partition = partition
        self.offset = offset
        self.bytes = bytes
    }
}

/// The new state of one trace.
public struct TraceChange: Sendable {
    public var account: AccountID
    public var id: TraceID
    /// The version the state was computed from; 0 = the trace was unknown. The row gets `expectedVersion + 1`.
    public var expectedVersion: Int
    /// Documents of this batch that changed the trace, in log order. May be empty (a row-only change).
    public var newDocuments: [StoredDocument]
    /// `start_time` of the root; nil = no root, so no summary.
    public var rootStart: Micros?
    /// Receipt times of all documents that changed the trace, those of `newDocuments` last (`Trace.receipts`).
    public var receipts: [Micros]
    /// End times of ended segments and leaf remote calls, any order, complete.
    public var ends: [Micros]
    public var revision: Int
    public var limitExceeded: Bool
    /// Sum of the bytes of the documents that changed the trace.
    public var storedBytes: Int
    /// False: stored and readable by id only, no summary (its `rootStart` is nil) and no contributions.
    public var isIndexed: Bool

    public init(
        account: AccountID, id: TraceID, expectedVersion: Int, newDocuments: [StoredDocument], rootStart: Micros?,
        receipts: [Micros], ends: [Micros], revision: Int, limitExceeded: Bool, storedBytes: Int, isIndexed: Bool = true
    ) {
        self.account = account
        self.id = id
        self.expectedVersion = expectedVersion
        self.newDocuments = newDocuments
        self.rootStart = rootStart
        self.receipts = receipts
        self.ends = ends
        self.revision = revision
        self.limitExceeded = limitExceeded
        self.storedBytes = storedBytes
        self.isIndexed = isIndexed
    }
}

/// What a batch adds to the observations of one minute; may contain negative counts.
public struct GraphBlockDelta: Sendable, Equatable {
    public var account: AccountID
    /// Minutes since 1970 of the observations' end times.
    public var minute: Int64
    public var partition: Int
    /// Offset of the last record of the batch in that partition (`PositionMove.to - 1`): names the delta.
    public var lastOffset: Int64
    /// An encoded, self-contained, additive block of ServiceGraph; opaque here.
    public var bytes: [UInt8]

    public init(account: AccountID, minute: Int64, partition: Int, lastOffset: Int64, bytes: [UInt8]) {
        self.account = account
        self.minute = minute
        self.partition = partition
        self.lastOffset = lastOffset
        self.bytes = bytes
    }
}

/// One trace's link to an entity of another, and what the consumer's last contributions used of it.
public struct StoredLink: Sendable, Hashable {
    public var consumer: TraceID
    public var target: TraceID
    public var entity: EntityID
    /// Encoded `LinkFacts`; nil = the target was not there (or unattached). Opaque here.
    public var facts: [UInt8]?

    public init(consumer: TraceID, target: TraceID, entity: EntityID, facts: [UInt8]?) {
        self.consumer = consumer
        self.target = target
        self.entity = entity
        self.facts = facts
    }
}

/// All links of one consumer trace as they are now.
public struct LinkReplacement: Sendable, Equatable {
    public var account: AccountID
    public var consumer: TraceID
    /// Each with `consumer` as above; distinct (target, entity).
    public var links: [StoredLink]

    public init(account: AccountID, consumer: TraceID, links: [StoredLink]) {
        self.account = account
        self.consumer = consumer
        self.links = links
    }
}

/// A document that was acknowledged and could not be taken: nothing vanishes silently.
public struct InboxEntry: Sendable, Equatable {
    public var account: AccountID
    /// `segments`, `telemetry`.
    public var topic: String
    public var partition: Int
    public var offset: Int64
    public var receivedAt: Micros
    /// `TraceSizeLimitExceeded`, `Poison`, …
    public var code: String
    /// One sentence for a person.
    public var reason: String
    public var traceID: TraceID?
    public var document: [UInt8]

    public init(
        account: AccountID, topic: String = "segments", partition: Int, offset: Int64, receivedAt: Micros, code: String,
        reason: String, traceID: TraceID?, document: [UInt8]
    ) {
        self.account = account
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.receivedAt = receivedAt
        self.code = code
        self.reason = reason
        self.traceID = traceID
        self.document = document
    }
}

/// A trace of an account.
public struct TraceKey: Hashable, Sendable {
    public var account: AccountID
    public var id: TraceID

    public init(account: AccountID, id: TraceID) {
        self.account = account
        self.id = id
    }
}

public enum CommitOutcome: Sendable, Equatable {
    case committed
    /// A partition is not at the expected position or belongs to another owner: nothing was written, stop working on it.
    case fenced
    /// Another partition wrote one of the traces: nothing was written. Read these again, fold again, commit again.
    case versionConflict([TraceKey])
}

/// What the store knows about a partition of the log.
public struct PartitionState: Sendable, Equatable {
    public var partition: Int
    /// Offset of the first record not yet folded.
    public var position: Int64
    /// Links of traces changed by records before this one have been re-checked.
    public var checkedPosition: Int64
    public var ownerEpoch: Int64
    /// Newest receipt time among the folded records; nil before the first.
    public var receivedThrough: Micros?

    public init(partition: Int, position: Int64, checkedPosition: Int64, ownerEpoch: Int64, receivedThrough: Micros?) {
        self.partition = partition
        self.position = position
        self.checkedPosition = checkedPosition
        self.ownerEpoch = ownerEpoch
        self.receivedThrough = receivedThrough
    }
}
