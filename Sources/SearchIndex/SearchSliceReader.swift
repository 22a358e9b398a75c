// Reads one slice of a segment's postings: the traces of terms, and the dictionaries of fields.

struct SearchSliceReader {
    private var reader: SearchReader
    private let firstTerm: UInt64
    private let traceCount: Int

    /// - Parameter bytes: outlive the reader.
    init(_ bytes: UnsafeRawBufferPointer, slice: Int, sliceBits: Int, traceCount: Int) {
        reader = SearchReader(bytes)
        firstTerm = UInt64(slice) << UInt64(SearchTerm.bits - sliceBits)
        self.traceCount = traceCount
    }

    /// Calls `body` with every term and ordinal. The fields may be read afterwards.
    mutating func forEachPosting(_ body: (UInt64, Int) -> Void) throws(SearchSegmentError) {
        let length = try reader.count()
        let end = reader.position + length
        var term = firstTerm
        while reader.position < end {
            term += try reader.varint() & 0xff_ffff_ffff
            let header = try reader.varint()
            guard header >> 1 <= UInt64(traceCount) else { throw SearchSegmentError() }
            if header & 1 == 1 {
                let bitmap = try reader.bytes(SearchSegment.bitmapBytes(traceCount))
                for (index, byte) in bitmap.enumerated() {
                    var rest = byte
                    while rest != 0 {
                        let ordinal = index << 3 | rest.trailingZeroBitCount
                        guard ordinal < traceCount else { throw SearchSegmentError() }
                        body(term, ordinal)
                        rest &= rest - 1
                    }
                }
            } else {
                var next: UInt64 = 0
                for _ in 0..<(header >> 1) {
                    let ordinal = next &+ (try reader.varint())
                    guard ordinal < UInt64(traceCount) else { throw SearchSegmentError() }
                    body(term, Int(ordinal))
                    next = ordinal + 1
                }
            }
        }
    }

    /// The traces of some terms of this slice. The fields may be read afterwards.
    /// - Parameter wanted: ascending; those that the slice has are handed to `body`.
    mutating func forEachSet(
        of wanted: [SearchTerm], _ body: (SearchTerm, TraceSet) -> Void
    ) throws(SearchSegmentError) {
        let length = try reader.count()
        let end = reader.position + length
        guard end <= reader.buffer.count else { throw SearchSegmentError() }
        var rest = wanted[...]
        var term = firstTerm
        while reader.position < end, !rest.isEmpty {
            term += try reader.varint() & 0xff_ffff_ffff
            let header = try reader.varint()
            while let first = rest.first, first.rawValue < term { rest.removeFirst() }
            let isWanted = rest.first?.rawValue == term
            let count = header >> 1
            guard count <= UInt64(traceCount) else { throw SearchSegmentError() }
            if header & 1 == 1 {
                let bitmap = try reader.bytes(SearchSegment.bitmapBytes(traceCount))
                if isWanted, let set = TraceSet(bitmap: Array(bitmap)[...], capacity: traceCount) {
                    body(SearchTerm(rawValue: term), set)
                }
            } else if isWanted {
                var set = TraceSet(capacity: traceCount)
                var place: UInt64 = 0
                for _ in 0..<count {
                    let ordinal = place &+ (try reader.varint())
                    guard ordinal < UInt64(traceCount) else { throw SearchSegmentError() }
                    set.insert(Int(ordinal))
                    place = ordinal + 1
                }
                body(SearchTerm(rawValue: term), set)
            } else {
                try reader.skipVarints(Int(count))
            }
        }
        reader.position = end
    }

    /// The dictionaries behind the postings, which have been read.
    mutating func forEachField(
        isWanted: (SearchTerm) -> Bool, _ body: (SearchTerm, ValueDictionary.Field) -> Void
    ) throws(SearchSegmentError) {
        while !reader.isAtEnd {
            if let (term, field) = try ValueDictionary.read(&reader, isWanted: isWanted) { body(term, field) }
        }
    }
}
