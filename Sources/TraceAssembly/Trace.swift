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
    /// Content hash of each of those documents; 0 for one without open entities, whose hash is never looked at.
    var contentHashes: [UInt64] = []

    public init(id: TraceID, account: AccountID, limitExceeded: Bool = false) {
        self.id = id
        self.account = account
        self.limitExceeded = limitExceeded
    }
}

extension Entity {
    /// What stands where an entity was moved away.
    fileprivate static var nothing: Entity {
        Entity(id: EntityID(rawValue: 0), parentID: nil, kind: .segment, name: "", start: 0, end: nil)
    }
}

extension Trace {
    /// Takes one document, in log order. The same documents in the same order always give the same trace, and so do
    /// only those of them that changed it (refold stored documents with `.unlimited`).
    ///
    /// - Parameters:
    ///   - receivedAt: the document's receipt time, microseconds.
    ///   - byteCount: UTF-8 length of the document as received.
    ///   - contentHash: `contentHash(of:)` of its bytes; only read when it has an open entity, pass 0 otherwise.
    /// - Returns: what happened; for `.ignored` nothing changed, for `.overLimit` only `limitExceeded`.
    ///
    /// Two open documents are equal when their bytes are (ruling R-19): an equal one replaces nothing.
    /// Cost: one table look-up per entity of the document, whatever the size of the trace.
    /// Source: `segments.md` §15, rulings 1, 2, 3, 10, R-18, R-19, R-21, R-38.
    public mutating func fold(
        _ document: consuming SegmentDocument, receivedAt: Micros, byteCount: Int, contentHash: UInt64,
        limits: TraceLimits = .unlimited
    ) -> FoldResult {
        guard !document.entities.isEmpty else { return .ignored }
        if let index = indexes[document.entities[0].id] {
            // First completion wins, and with it the whole embedded tree is ignored; the kind of first sight stays.
            let position = Int(index)
            guard entities[position].entity.isOpen, entities[position].entity.kind == document.entities[0].kind else {
                return .ignored
            }
        } else if limits.traceBytes > 0, storedBytes + byteCount > limits.traceBytes {
            limitExceeded = true
            return .overLimit
        }

        let number = Int32(receipts.count)
        var changed = false
        var hasOpenEntity = false
        for ordinal in document.entities.indices {
            if document.entities[ordinal].isOpen { hasOpenEntity = true }
            // Moved out: an entity is large, and a copy would retain each of its strings.
            var entity = Entity.nothing
            swap(&entity, &document.entities[ordinal])
            if take(entity, number: number, ordinal: Int32(ordinal), contentHash: contentHash) { changed = true }
        }
        guard changed else { return .ignored }
        revision += 1
        storedBytes += byteCount
        receipts.append(receivedAt)
        contentHashes.append(hasOpenEntity ? contentHash : 0)
        return .changed
    }

    /// `fold` with length and hash taken from the document's bytes.
    public mutating func fold(
        _ document: consuming SegmentDocument, bytes: UnsafeRawBufferPointer, receivedAt: Micros, limits: TraceLimits = .unlimited
    ) -> FoldResult {
        var hasOpenEntity = false
        for index in document.entities.indices where document.entities[index].isOpen { hasOpenEntity = true }
        return fold(
            document, receivedAt: receivedAt, byteCount: bytes.count,
            contentHash: hasOpenEntity ? Trace.contentHash(of: bytes) : 0, limits: limits)
    }

    /// Makes room for entities to come, so that folding them need not make room again and again.
    public mutating func reserve(entityCount: Int) {
        let wanted = entities.count + entityCount
        guard wanted > entities.capacity else { return }
        entities.reserveCapacity(max(wanted, entities.capacity * 2))
        indexes.reserveCapacity(wanted)
    }

    /// Stores, replaces or completes one entity; false when it brings nothing.
    private mutating func take(_ entity: consuming Entity, number: Int32, ordinal: Int32, contentHash: UInt64) -> Bool {
        guard let index = indexes[entity.id] else {
            indexes[entity.id] = Int32(entities.count)
            entities.append(TraceEntity(entity: entity, document: number, ordinal: ordinal))
            return true
        }
        let position = Int(index)
        guard entities[position].entity.isOpen, entities[position].entity.kind == entity.kind else { return false }
        let current = entities[position].document
        // The current text may stand in this very document (an id used twice): no earlier hash to compare with then.
        if entity.isOpen, current != number, contentHashes[Int(current)] == contentHash { return false }
        entities[position] = TraceEntity(entity: entity, document: number, ordinal: ordinal)
        return true
    }

    /// 64-bit hash of a document's bytes, for `fold`. The same in every process.
    /// Whoever makes two documents collide only keeps their own update of an open entity from being seen.
    public static func contentHash(of bytes: UnsafeRawBufferPointer) -> UInt64 {
        var hash = 0x9E37_79B9_7F4A_7C15 ^ UInt64(truncatingIfNeeded: bytes.count)
        var offset = 0
        while offset + 8 <= bytes.count {
            hash = mix(hash ^ bytes.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
            offset += 8
        }
        var tail: UInt64 = 0
        while offset < bytes.count {
            tail = tail << 8 | UInt64(bytes[offset])
            offset += 1
        }
        return mix(hash ^ tail)
    }

    /// A bijection of 64-bit words, the finaliser of MurmurHash3.
    private static func mix(_ value: UInt64) -> UInt64 {
        var x = value
        x = (x ^ (x >> 33)) &* 0xFF51_AFD7_ED55_8CCD
        x = (x ^ (x >> 33)) &* 0xC4CE_B9FE_1A85_EC53
        return x ^ (x >> 33)
    }
}
