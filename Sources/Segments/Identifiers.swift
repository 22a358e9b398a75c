// The ids of the data model as values: small, exact, and impossible to confuse with each other.
// Text forms are made and read only at the edges (documents, API, rows).

/// A trace id: 128 bits. `1-` + 8 hex + `-` + 24 hex on the wire; the first 32 bits are the 8 hex digits.
/// Source: `PutTraceSegments`, field `trace_id`; the W3C form (32 bare hex digits) is read too.
public struct TraceID: Hashable, Sendable {
    public var high: UInt64
    public var low: UInt64

    @inlinable
    public init(high: UInt64, low: UInt64) {
        self.high = high
        self.low = low
    }
}

/// The id of a segment, a subsegment or an exception: 64 bits, 16 hex digits on the wire.
public struct EntityID: Hashable, Sendable {
    public var rawValue: UInt64

    @inlinable
    public init(rawValue: UInt64) { self.rawValue = rawValue }

    /// What `Dictionary` and `Set` hash by, in place of SipHash: ids are random already, and the table's seed, a new one in every
    /// process, keeps senders from choosing ids that fall into one bucket.
    @inlinable
    public func _rawHashValue(seed: Int) -> Int {
        let (high, low) = (rawValue ^ UInt64(bitPattern: Int64(seed))).multipliedFullWidth(by: 0x9E37_79B9_7F4A_7C15)
        return Int(truncatingIfNeeded: high ^ low)
    }
}

/// An AWS account: 12 decimal digits, leading zeros significant on the wire.
public struct AccountID: Hashable, Sendable {
    public var rawValue: UInt64

    @inlinable
    public init(rawValue: UInt64) { self.rawValue = rawValue }
}

extension TraceID: Comparable {
    @inlinable
    public static func < (a: TraceID, b: TraceID) -> Bool { (a.high, a.low) < (b.high, b.low) }
}

extension EntityID: Comparable {
    @inlinable
    public static func < (a: EntityID, b: EntityID) -> Bool { a.rawValue < b.rawValue }
}

/// Microseconds since 1970-01-01T00:00:00Z. Every time of the data model is one of these (`segments.md` §2).
public typealias Micros = Int64
