// A plan against one segment. It says which parts of the segment it needs, so that the store reads only those; tests of
// values take two rounds, for the dictionaries tell which terms to look up.

import Segments

/// What a plan reads of every segment.
public struct SearchNeeds: Sendable {
    /// Terms looked up, and fields whose dictionaries are looked up; ascending.
    public internal(set) var terms: [SearchTerm] = []
    public internal(set) var dictionaries: [SearchTerm] = []
    public internal(set) var flags: [SearchFlag] = []
    public internal(set) var needsResponseTime = false
    public internal(set) var needsDuration = false

    public init(_ plan: SearchPlan) {
        var terms: Set<SearchTerm> = []
        var dictionaries: Set<SearchTerm> = []
        var flags: Set<SearchFlag> = []
        collect(plan, &terms, &dictionaries, &flags)
        self.terms = terms.sorted()
        self.dictionaries = dictionaries.sorted()
        self.flags = flags.sorted { $0.rawValue < $1.rawValue }
    }

    private mutating func collect(
        _ plan: SearchPlan, _ terms: inout Set<SearchTerm>, _ dictionaries: inout Set<SearchTerm>,
        _ flags: inout Set<SearchFlag>
    ) {
        switch plan {
        case .all, .none: break
        case .term(let term, _): terms.insert(term)
        case .values(let search, _): dictionaries.insert(search.dictionary)
        case .flag(let flag, _): flags.insert(flag)
        case .responseTime: needsResponseTime = true
        case .duration: needsDuration = true
        case .and(let parts), .or(let parts): for part in parts { collect(part, &terms, &dictionaries, &flags) }
        }
    }

    /// The first ten bits of everything that stands in slices: of a segment with b slice bits, the first b of them.
    public var slicePrefixes: [Int32] {
        Array(Set((terms + dictionaries).map { Int32($0.rawValue >> UInt64(SearchTerm.bits - 10)) })).sorted()
    }
}

public struct SearchEvaluation {
    private let plan: SearchPlan
    private let needs: SearchNeeds
    private let traceCount: Int
    private let sliceBits: Int
    private let hasAllFields: Bool
    private var slices: [Int: [UInt8]] = [:]
    private var flags: [SearchFlag: TraceSet] = [:]
    private var responseSteps: ArraySlice<UInt8> = []
    private var durationSteps: ArraySlice<UInt8> = []
    /// Terms of the values for which a test may hold; nil: the dictionary is full.
    private var valueTerms: [ValueSearch: [SearchTerm]?] = [:]

    public init(_ plan: SearchPlan, needs: SearchNeeds, traceCount: Int, sliceBits: Int, hasAllFields: Bool) {
        self.plan = plan
        self.needs = needs
        self.traceCount = traceCount
        self.sliceBits = sliceBits
        self.hasAllFields = hasAllFields
    }

    // MARK: Parts

    public mutating func setSlice(_ number: Int, _ bytes: [UInt8]) { slices[number] = bytes }

    public mutating func setFlag(_ flag: SearchFlag, _ bitmap: ArraySlice<UInt8>) throws(SearchSegmentError) {
        guard let set = TraceSet(bitmap: bitmap, capacity: traceCount) else { throw SearchSegmentError() }
        flags[flag] = set
    }

    public mutating func setResponseSteps(_ steps: ArraySlice<UInt8>) throws(SearchSegmentError) {
        guard steps.count == traceCount else { throw SearchSegmentError() }
        responseSteps = steps
    }

    public mutating func setDurationSteps(_ steps: ArraySlice<UInt8>) throws(SearchSegmentError) {
        guard steps.count == traceCount else { throw SearchSegmentError() }
        durationSteps = steps
    }

    /// To be called when the slices of `SearchNeeds` are there.
    /// - Returns: numbers of further slices that are needed.
    public mutating func resolveValues() throws(SearchSegmentError) -> [Int] {
        guard !needs.dictionaries.isEmpty else { return [] }
        var fields: [SearchTerm: ValueDictionary.Field] = [:]
        let bySlice = Dictionary(grouping: needs.dictionaries) { SearchSegment.slice(of: $0, sliceBits: sliceBits) }
        for (number, wanted) in bySlice {
            try withSlice(number) { reader throws(SearchSegmentError) in
                try reader.forEachSet(of: []) { _, _ in }
                try reader.forEachField(isWanted: { wanted.contains($0) }) { fields[$0] = $1 }
            }
        }
        try resolve(plan, fields)
        var missing: Set<Int> = []
        for case let terms? in valueTerms.values {
            for term in terms {
                let number = SearchSegment.slice(of: term, sliceBits: sliceBits)
                if slices[number] == nil { missing.insert(number) }
            }
        }
        return missing.sorted()
    }

    private mutating func resolve(
        _ plan: SearchPlan, _ fields: [SearchTerm: ValueDictionary.Field]
    ) throws(SearchSegmentError) {
        switch plan {
        case .and(let parts), .or(let parts):
            for part in parts { try resolve(part, fields) }
        case .values(let search, _):
            if let field = fields[search.dictionary] {
                valueTerms.updateValue(field.isFull ? nil : search.terms(field.values).sorted(), forKey: search)
            } else {
                valueTerms.updateValue(hasAllFields ? [] : nil, forKey: search)
            }
        case .all, .none, .term, .flag, .responseTime, .duration:
            break
        }
    }

    private func withSlice(
        _ number: Int, _ body: (inout SearchSliceReader) throws(SearchSegmentError) -> Void
    ) throws(SearchSegmentError) {
        guard let bytes = slices[number] else { throw SearchSegmentError() }
        try bytes.withBuffer { buffer throws(SearchSegmentError) in
            var reader = SearchSliceReader(buffer, slice: number, sliceBits: sliceBits, traceCount: traceCount)
            try body(&reader)
        }
    }

    // MARK: Result

    /// The traces the plan lets through. All parts have been set.
    public func result() throws(SearchSegmentError) -> TraceSet {
        var wanted = Set(needs.terms)
        for case let terms? in valueTerms.values { wanted.formUnion(terms) }
        var sets: [SearchTerm: TraceSet] = [:]
        for (number, terms) in Dictionary(grouping: wanted, by: { SearchSegment.slice(of: $0, sliceBits: sliceBits) }) {
            let sorted = terms.sorted()
            try withSlice(number) { reader throws(SearchSegmentError) in
                try reader.forEachSet(of: sorted) { sets[$0] = $1 }
            }
        }
        return try evaluate(plan, sets)
    }

    private func evaluate(_ plan: SearchPlan, _ sets: [SearchTerm: TraceSet]) throws(SearchSegmentError) -> TraceSet {
        switch plan {
        case .all:
            return .full(traceCount)
        case .none:
            return TraceSet(capacity: traceCount)
        case .term(let term, _):
            return sets[term] ?? TraceSet(capacity: traceCount)
        case .values(let search, _):
            guard let known = valueTerms[search] else { throw SearchSegmentError() }
            guard let terms = known else { return .full(traceCount) }
            var union = TraceSet(capacity: traceCount)
            for term in terms { if let set = sets[term] { union.formUnion(set) } }
            return union
        case .flag(let flag, let isSet):
            guard var set = flags[flag] else { throw SearchSegmentError() }
            if !isSet { set.complement() }
            return set
        case .responseTime(let range):
            return try steps(responseSteps, in: range)
        case .duration(let range):
            return try steps(durationSteps, in: range)
        case .and(let parts):
            var result = TraceSet.full(traceCount)
            for part in parts { result.formIntersection(try evaluate(part, sets)) }
            return result
        case .or(let parts):
            var result = TraceSet(capacity: traceCount)
            for part in parts { result.formUnion(try evaluate(part, sets)) }
            return result
        }
    }

    private func steps(_ steps: ArraySlice<UInt8>, in range: ClosedRange<UInt8>) throws(SearchSegmentError) -> TraceSet
    {
        guard steps.count == traceCount else { throw SearchSegmentError() }
        var set = TraceSet(capacity: traceCount)
        steps.withUnsafeBufferPointer { steps in
            for ordinal in 0..<traceCount where range.contains(steps[ordinal]) { set.insert(ordinal) }
        }
        return set
    }
}

extension SearchSegment {
    /// The traces a plan lets through, from a segment in memory.
    public func traces(_ plan: SearchPlan) throws(SearchSegmentError) -> TraceSet {
        let needs = SearchNeeds(plan)
        var evaluation = SearchEvaluation(
            plan, needs: needs, traceCount: traceCount, sliceBits: sliceBits, hasAllFields: hasAllFields)
        for flag in needs.flags {
            try evaluation.setFlag(flag, columns[Self.flagRange(flag, traceCount: traceCount)])
        }
        try evaluation.setResponseSteps(columns[Self.responseTimeRange(traceCount: traceCount)])
        try evaluation.setDurationSteps(columns[Self.durationRange(traceCount: traceCount)])
        for number in 0..<(1 << sliceBits) {
            evaluation.setSlice(number, Array(postings[Int(sliceOffsets[number])..<Int(sliceOffsets[number + 1])]))
        }
        _ = try evaluation.resolveValues()
        return try evaluation.result()
    }

    /// The records, by ordinal.
    public func allRecords() throws(SearchSegmentError) -> [SearchRecord] {
        try records.withBuffer { bytes throws(SearchSegmentError) in
            var result: [SearchRecord] = []
            for ordinal in 0..<traceCount {
                let start = ordinal * Self.recordBytes
                guard start + Self.recordBytes <= bytes.count else { throw SearchSegmentError() }
                result.append(
                    try SearchRecord(UnsafeRawBufferPointer(rebasing: bytes[start..<start + Self.recordBytes])))
            }
            return result
        }
    }
}
