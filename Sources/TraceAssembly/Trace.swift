// The fold: documents of one trace in, the state of its entities out (`segments.md` §15, `traces.md` §1).
// Called by the aggregator for every record of the log and by the query side for every trace it reads.
// It keeps no JSON: documents are stored beside it, and an entity says in which document its current text is.

import Segments

/// An entity with what the trace knows of it beyond its document.
public struct TraceEntity: Sendable {
    public var entity: Entity
    /// Which of the trace's documents (by order of storing, 0-based) holds the entity's current JSON, and its
    /// position among that document's entities (depth first).
    public var document: Int32
    public var ordinal: Int32
}

public struct TraceLimits: Sendable {
    /// Sum of the bytes of the documents that changed the trace; 0 = no limit (`traces.md` §3, ruling R-21).
    public var traceBytes: Int
    public static let unlimited = TraceLimits(traceBytes: 0)
    public init(traceBytes: Int) { self.traceBytes = traceBytes }
}

/// What one document did to its trace.
public enum FoldResult: Sendable, Equatable {
    /// It stored, replaced or completed at least one entity: store the document, `Revision` grew by one.
    case changed
    /// Nothing new (first completion wins; an equal open document): answered as processed, not stored.
    case ignored
    /// It would take the trace over its limit: it goes to the inbox as `TraceSizeLimitExceeded`.
    case overLimit
}

/// All entities of one (account, trace id) in order of first sight.
public struct Trace: Sendable {
    public let id: TraceID
    /// The account that received the documents; owner of the trace.
    public let account: AccountID
    public internal(set) var entities: [TraceEntity] = []
    public internal(set) var indexes: [EntityID: Int32] = [:]
    /// Number of documents that changed the trace (ruling 2).
    public internal(set) var revision: Int = 0
    public internal(set) var limitExceeded: Bool
    public internal(set) var storedBytes: Int = 0
    /// Receipt time of each document that changed the trace, in log order; `document` indexes into it.
    public internal(set) var receipts: [Micros] = []

    public init(id: TraceID, account: AccountID, limitExceeded: Bool = false) {
        self.id = id
        self.account = account
        self.limitExceeded = limitExceeded
    }
}
