// One immutable piece of the search index: the traces of one account whose roots started in one hour, as they were at
// some moment, and their terms inverted. Written by every commit for the traces it changed, merged in the background.
// A trace may be in several segments; what its newest version says is true. Decision record:
// SearchIndex.docc/SearchIndex.md.
//
// Traces have ordinals: newest root first, then by id. Layout of the parts, all little-endian:
//   records   28 bytes a trace: id (16), root start (8), version (4)
//   columns   16 bitmaps (SearchFlag), then a byte a trace: step of the response time, then: step of the duration
//   postings  2^sliceBits slices by the first bits of the term, found by sliceOffsets. A slice: length of its lists;
//             lists (difference of the term to the one before, count << 1 | isBitmap, differences of ordinals or bitmap);
//             dictionaries of the fields whose term falls into the slice (ValueDictionary).

import Segments

public struct SearchSegment: Sendable, Equatable {
    public static let maxTraces = 32_768
    public static let recordBytes = 28
    /// Traces of a block; `marks` has one entry a block.
    public static let blockTraces = 256

    /// First and last second of a clock.
    public struct Seconds: Sendable, Equatable {
        public var first: Int64
        public var last: Int64

        public init(first: Int64, last: Int64) {
            self.first = first
            self.last = last
        }

        mutating func include(_ other: Seconds) {
            first = min(first, other.first)
            last = max(last, other.last)
        }
    }

    public var traceCount: Int
    public var sliceBits: Int
    /// Where each slice begins in `postings`, and where the last one ends.
    public var sliceOffsets: [Int32]
    /// Root start (microseconds) of the first trace of each block.
    public var marks: [Int64]
    public var records: [UInt8]
    public var columns: [UInt8]
    public var postings: [UInt8]
    /// Every field with values has a dictionary, or an entry that says it had too many.
    public var hasAllFields: Bool
    /// Seconds of root starts, of receipts and of ends; no ends: nil.
    public var roots: Seconds
    public var receipts: Seconds
    public var ends: Seconds?

    public init(
        traceCount: Int, sliceBits: Int, sliceOffsets: [Int32], marks: [Int64], records: [UInt8], columns: [UInt8],
        postings: [UInt8], hasAllFields: Bool, roots: Seconds, receipts: Seconds, ends: Seconds?
    ) {
        self.traceCount = traceCount
        self.sliceBits = sliceBits
        self.sliceOffsets = sliceOffsets
        self.marks = marks
        self.records = records
        self.columns = columns
        self.postings = postings
        self.hasAllFields = hasAllFields
        self.roots = roots
        self.receipts = receipts
        self.ends = ends
    }

    /// Segments are for one hour of root starts each, so that a search reads those of its window.
    public static func hour(ofRootStart start: Micros) -> Int64 { secondFloor(start, by: 3_600_000_000) }

    static func second(_ time: Micros) -> Int64 { secondFloor(time, by: 1_000_000) }

    private static func secondFloor(_ time: Micros, by divisor: Int64) -> Int64 {
        let (quotient, remainder) = time.quotientAndRemainder(dividingBy: divisor)
        return remainder < 0 ? quotient - 1 : quotient
    }

    // MARK: Columns

    static func bitmapBytes(_ traceCount: Int) -> Int { (traceCount + 63) / 64 * 8 }

    /// Where a flag's bitmap stands in `columns`.
    public static func flagRange(_ flag: SearchFlag, traceCount: Int) -> Range<Int> {
        let size = bitmapBytes(traceCount)
        return flag.rawValue * size..<(flag.rawValue + 1) * size
    }

    public static func responseTimeRange(traceCount: Int) -> Range<Int> {
        let start = SearchFlag.slots * bitmapBytes(traceCount)
        return start..<start + traceCount
    }

    public static func durationRange(traceCount: Int) -> Range<Int> {
        let start = SearchFlag.slots * bitmapBytes(traceCount) + traceCount
        return start..<start + traceCount
    }

    /// The slice a term stands in.
    public static func slice(of term: SearchTerm, sliceBits: Int) -> Int {
        Int(term.rawValue >> UInt64(SearchTerm.bits - sliceBits))
    }
}

/// A trace as a segment knows it.
public struct SearchRecord: Sendable, Equatable {
    public var id: TraceID
    /// Microseconds.
    public var rootStart: Micros
    /// Of the trace's row when this was written.
    public var version: Int

    init(id: TraceID, rootStart: Micros, version: Int) {
        self.id = id
        self.rootStart = rootStart
        self.version = version
    }

    /// - Throws: when it is not `SearchSegment.recordBytes` long.
    public init(_ bytes: UnsafeRawBufferPointer) throws(SearchSegmentError) {
        var reader = SearchReader(bytes)
        let high = try reader.integer(UInt64.self)
        let low = try reader.integer(UInt64.self)
        id = TraceID(high: high.byteSwapped, low: low.byteSwapped)
        rootStart = try reader.integer(Int64.self)
        version = Int(try reader.integer(Int32.self))
    }

    func append(to bytes: inout [UInt8]) {
        // The id in the order of a PostgreSQL uuid.
        bytes.appendLittleEndian(id.high.byteSwapped)
        bytes.appendLittleEndian(id.low.byteSwapped)
        bytes.appendLittleEndian(rootStart)
        bytes.appendLittleEndian(Int32(clamping: version))
    }
}
