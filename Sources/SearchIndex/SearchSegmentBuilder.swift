// Makes a segment: from the traces of a batch (their forests, which the fold has made anyway), or by merging segments.

import Segments
import TraceAssembly

public struct SearchSegmentBuilder {
    struct Trace {
        var record: SearchRecord
        var flags: UInt16 = 0
        var responseStep: UInt8 = 0
        var durationStep: UInt8 = 0
    }

    var traces: [Trace] = []
    /// Term << 16 | index into `traces`, in any order, with repetitions.
    var postings: [UInt64] = []
    var dictionary = ValueDictionary()
    var roots: SearchSegment.Seconds?
    var receipts: SearchSegment.Seconds?
    var ends: SearchSegment.Seconds?
    var scratch: [UInt8] = []

    public init() {}

    public var traceCount: Int { traces.count }
    public var isFull: Bool { traces.count >= SearchSegment.maxTraces }

    @inline(__always)
    mutating func post(_ term: SearchTerm) { postings.append(term.rawValue << 16 | UInt64(traces.count)) }

    /// Nil without traces.
    public consuming func finish() -> SearchSegment? {
        guard !traces.isEmpty, let roots, let receipts else { return nil }
        let count = traces.count
        // Newest root first, then by id.
        let order = traces.indices.sorted { a, b in
            let (first, second) = (traces[a].record, traces[b].record)
            return first.rootStart != second.rootStart ? first.rootStart > second.rootStart : first.id < second.id
        }
        var ordinals = [UInt64](repeating: 0, count: count)
        var records: [UInt8] = []
        records.reserveCapacity(count * SearchSegment.recordBytes)
        let bitmapBytes = SearchSegment.bitmapBytes(count)
        var columns = [UInt8](repeating: 0, count: SearchFlag.slots * bitmapBytes + 2 * count)
        let responses = SearchSegment.responseTimeRange(traceCount: count).lowerBound
        let durations = SearchSegment.durationRange(traceCount: count).lowerBound
        var marks: [Int64] = []
        for (ordinal, index) in order.enumerated() {
            let trace = traces[index]
            ordinals[index] = UInt64(ordinal)
            trace.record.append(to: &records)
            if ordinal % SearchSegment.blockTraces == 0 { marks.append(trace.record.rootStart) }
            columns[responses + ordinal] = trace.responseStep
            columns[durations + ordinal] = trace.durationStep
            var flags = trace.flags
            while flags != 0 {
                columns[flags.trailingZeroBitCount * bitmapBytes + ordinal >> 3] |= 1 << UInt8(ordinal & 7)
                flags &= flags - 1
            }
        }
        for index in postings.indices {
            let posting = postings[index]
            postings[index] = posting & ~0xffff | ordinals[Int(posting & 0xffff)]
        }
        radixSort(&postings, bits: SearchTerm.bits + 16)
        let (bits, offsets, bytes) = encode(traceCount: count)
        return SearchSegment(
            traceCount: count, sliceBits: bits, sliceOffsets: offsets, marks: marks, records: records, columns: columns,
            postings: bytes, hasAllFields: dictionary.hasAllFields, roots: roots, receipts: receipts, ends: ends)
    }

    /// About 8 KB a slice.
    private static func sliceBits(_ bytes: Int) -> Int {
        var bits = 0
        while bits < 10, bytes >> bits > 12_000 { bits += 1 }
        return bits
    }

    private func encode(traceCount: Int) -> (bits: Int, offsets: [Int32], bytes: [UInt8]) {
        let bits = Self.sliceBits(postings.count * 3)
        let shift = UInt64(SearchTerm.bits - bits)
        var fields = dictionary.fields.sorted { $0.key < $1.key }[...]
        var offsets: [Int32] = []
        var out: [UInt8] = []
        out.reserveCapacity(postings.count * 3)
        var lists: [UInt8] = []
        var start = 0
        for slice in 0..<(1 << bits) {
            offsets.append(Int32(out.count))
            lists.removeAll(keepingCapacity: true)
            var previous = UInt64(slice) << shift
            while start < postings.count, (postings[start] >> 16) >> shift == UInt64(slice) {
                let term = postings[start] >> 16
                var end = start + 1
                while end < postings.count, postings[end] >> 16 == term { end += 1 }
                lists.appendVarint(term - previous)
                previous = term
                append(start..<end, traceCount: traceCount, to: &lists)
                start = end
            }
            out.appendVarint(UInt64(lists.count))
            out.append(contentsOf: lists)
            while let (term, field) = fields.first, term.rawValue >> shift == UInt64(slice) {
                ValueDictionary.append(field, of: term, to: &out)
                fields.removeFirst()
            }
        }
        offsets.append(Int32(out.count))
        return (bits, offsets, out)
    }

    /// The traces of one term, sorted, with repetitions.
    private func append(_ range: Range<Int>, traceCount: Int, to out: inout [UInt8]) {
        var count = 0
        var last: UInt64 = .max
        for index in range where postings[index] & 0xffff != last {
            last = postings[index] & 0xffff
            count += 1
        }
        let bitmapBytes = SearchSegment.bitmapBytes(traceCount)
        if count > bitmapBytes {
            out.appendVarint(UInt64(count) << 1 | 1)
            let base = out.count
            out.append(contentsOf: repeatElement(0, count: bitmapBytes))
            for index in range {
                let ordinal = Int(postings[index] & 0xffff)
                out[base + ordinal >> 3] |= 1 << UInt8(ordinal & 7)
            }
        } else {
            out.appendVarint(UInt64(count) << 1)
            var next: UInt64 = 0
            last = .max
            for index in range where postings[index] & 0xffff != last {
                last = postings[index] & 0xffff
                out.appendVarint(last - next)
                next = last + 1
            }
        }
    }
}

// MARK: - Merging

extension SearchSegmentBuilder {
    /// Adds a segment's traces. Of a trace that several have, the newest version stays: add with its place in `newest`.
    /// - Parameter isKept: for each ordinal whether the segment has the newest version of that trace.
    mutating func add(_ segment: SearchSegment, isKept: [Bool]) throws(SearchSegmentError) {
        let count = segment.traceCount
        guard isKept.count == count, segment.records.count == count * SearchSegment.recordBytes,
            segment.columns.count == SearchFlag.slots * SearchSegment.bitmapBytes(count) + 2 * count,
            segment.sliceOffsets.count == 1 << segment.sliceBits + 1
        else { throw SearchSegmentError() }
        let bitmapBytes = SearchSegment.bitmapBytes(count)
        let responses = SearchSegment.responseTimeRange(traceCount: count).lowerBound
        let durations = SearchSegment.durationRange(traceCount: count).lowerBound
        let none = UInt64.max
        var places = [UInt64](repeating: none, count: count)
        try segment.records.withBuffer { bytes throws(SearchSegmentError) in
            for ordinal in 0..<count where isKept[ordinal] {
                let start = ordinal * SearchSegment.recordBytes
                var trace = Trace(
                    record: try SearchRecord(
                        UnsafeRawBufferPointer(rebasing: bytes[start..<start + SearchSegment.recordBytes])))
                for flag in 0..<SearchFlag.slots
                where segment.columns[flag * bitmapBytes + ordinal >> 3] >> UInt8(ordinal & 7) & 1 == 1 {
                    trace.flags |= 1 << UInt16(flag)
                }
                trace.responseStep = segment.columns[responses + ordinal]
                trace.durationStep = segment.columns[durations + ordinal]
                places[ordinal] = UInt64(traces.count)
                traces.append(trace)
            }
        }
        try segment.postings.withBuffer { all throws(SearchSegmentError) in
            for slice in 0..<(1 << segment.sliceBits) {
                let (start, end) = (Int(segment.sliceOffsets[slice]), Int(segment.sliceOffsets[slice + 1]))
                guard start >= 0, start <= end, end <= all.count else { throw SearchSegmentError() }
                let bytes = UnsafeRawBufferPointer(rebasing: all[start..<end])
                var reader = SearchSliceReader(bytes, slice: slice, sliceBits: segment.sliceBits, traceCount: count)
                try reader.forEachPosting { term, ordinal in
                    let place = places[ordinal]
                    if place != none { postings.append(term << 16 | place) }
                }
                try reader.forEachField(isWanted: { _ in true }) { dictionary.merge($0, $1) }
            }
        }
        if !segment.hasAllFields { dictionary.lackFields() }
        include(roots: segment.roots, receipts: segment.receipts, ends: segment.ends)
    }

    mutating func include(roots: SearchSegment.Seconds, receipts: SearchSegment.Seconds, ends: SearchSegment.Seconds?) {
        if self.roots == nil { self.roots = roots } else { self.roots?.include(roots) }
        if self.receipts == nil { self.receipts = receipts } else { self.receipts?.include(receipts) }
        guard let ends else { return }
        if self.ends == nil { self.ends = ends } else { self.ends?.include(ends) }
    }
}

extension SearchSegment {
    /// One segment instead of several: every trace as the newest of them has it.
    /// - Returns: nil when they have more than `maxTraces` together, or none.
    public static func merge(_ segments: [SearchSegment]) throws(SearchSegmentError) -> SearchSegment? {
        guard segments.reduce(0, { $0 + $1.traceCount }) <= maxTraces else { return nil }
        struct Place {
            var version: Int
            var segment: Int
            var ordinal: Int
        }
        var newest: [TraceID: Place] = [:]
        var isKept = segments.map { [Bool](repeating: false, count: $0.traceCount) }
        for (number, segment) in segments.enumerated() {
            guard segment.records.count == segment.traceCount * recordBytes else { throw SearchSegmentError() }
            try segment.records.withBuffer { bytes throws(SearchSegmentError) in
                for ordinal in 0..<segment.traceCount {
                    let start = ordinal * recordBytes
                    let record = try SearchRecord(UnsafeRawBufferPointer(rebasing: bytes[start..<start + recordBytes]))
                    if let known = newest[record.id] {
                        guard known.version < record.version else { continue }
                        isKept[known.segment][known.ordinal] = false
                    }
                    newest[record.id] = Place(version: record.version, segment: number, ordinal: ordinal)
                    isKept[number][ordinal] = true
                }
            }
        }
        var builder = SearchSegmentBuilder()
        for (number, segment) in segments.enumerated() { try builder.add(segment, isKept: isKept[number]) }
        return builder.finish()
    }
}
