// The distinct values of the fields of a segment, so that a test such as CONTAINS becomes a union of terms. Texts are kept
// as templates (`TextTemplate`), numbers as steps (`NumberRange`). A field with too many values is marked full: it
// answers nothing, and a search then looks at all its traces.

import Segments

/// One value of a dictionary.
enum DictionaryValue: Hashable {
    case template([UInt8])
    /// All numbers from `first` to `last`; one number when they are equal.
    case numbers(first: Double, last: Double)
}

struct ValueDictionary {
    static let valuesPerField = 1024
    static let bytesPerField = 32 << 10
    static let fieldCount = 512
    static let longestValue = 1000

    struct Field {
        var values: [DictionaryValue] = []
        var byteCount = 0
        var isFull = false
    }

    private(set) var fields: [SearchTerm: Field] = [:]
    private(set) var hasAllFields = true
    /// Hashes of field and value of everything seen, so that a value costs one look-up after its first time.
    private var seen: Set<UInt64> = []

    init() {}

    @inline(__always)
    mutating func isNew(_ hash: UInt64) -> Bool { seen.insert(hash).inserted }

    mutating func insert(_ value: DictionaryValue, of field: SearchTerm) {
        guard var known = fields.removeValue(forKey: field) ?? newField() else { return }
        if !known.isFull {
            let size: Int
            if case .template(let bytes) = value { size = bytes.count + 1 } else { size = 16 }
            if known.values.count >= Self.valuesPerField || known.byteCount + size > Self.bytesPerField
                || size > Self.longestValue
            {
                known = Field(isFull: true)
            } else {
                known.values.append(value)
                known.byteCount += size
            }
        }
        fields[field] = known
    }

    private mutating func newField() -> Field? {
        guard fields.count < Self.fieldCount else {
            hasAllFields = false
            return nil
        }
        return Field()
    }

    /// Adds what another segment has.
    mutating func merge(_ field: SearchTerm, _ other: Field) {
        guard !other.isFull else {
            guard fields[field] != nil || newField() != nil else { return }
            fields[field] = Field(isFull: true)
            return
        }
        for value in other.values where isNew(Self.hash(value, field)) { insert(value, of: field) }
    }

    mutating func lackFields() { hasAllFields = false }

    private static func hash(_ value: DictionaryValue, _ field: SearchTerm) -> UInt64 {
        switch value {
        case .template(let bytes): bytes.withUnsafeBytes { Hash.of($0, seed: field.rawValue) }
        case .numbers(let first, let last): Hash.of(last, seed: Hash.of(first, seed: field.rawValue))
        }
    }

    // MARK: Bytes

    static func append(_ field: Field, of term: SearchTerm, to out: inout [UInt8]) {
        out.appendVarint(term.rawValue)
        var body: [UInt8] = []
        body.reserveCapacity(field.byteCount + 16)
        for value in field.values {
            switch value {
            case .template(let bytes):
                body.appendVarint(UInt64(bytes.count) << 1)
                body.append(contentsOf: bytes)
            case .numbers(let first, let last):
                body.appendVarint(1)
                body.appendLittleEndian(first.bitPattern)
                body.appendLittleEndian(last.bitPattern)
            }
        }
        out.appendVarint(UInt64(body.count) << 1 | (field.isFull ? 1 : 0))
        out.append(contentsOf: body)
    }

    /// Reads one field; its values only when they are wanted.
    static func read(
        _ reader: inout SearchReader, isWanted: (SearchTerm) -> Bool
    ) throws(SearchSegmentError) -> (term: SearchTerm, field: Field)? {
        let term = SearchTerm(rawValue: try reader.varint())
        let header = try reader.varint()
        guard header >> 1 <= UInt64(reader.buffer.count) else { throw SearchSegmentError() }
        let body = try reader.bytes(Int(header >> 1))
        guard isWanted(term) else { return nil }
        var field = Field(isFull: header & 1 == 1)
        field.byteCount = body.count
        var values = SearchReader(body)
        while !values.isAtEnd {
            let kind = try values.varint()
            if kind & 1 == 0 {
                guard kind >> 1 <= UInt64(body.count) else { throw SearchSegmentError() }
                field.values.append(.template(Array(try values.bytes(Int(kind >> 1)))))
            } else {
                let first = Double(bitPattern: try values.integer(UInt64.self))
                field.values.append(.numbers(first: first, last: Double(bitPattern: try values.integer(UInt64.self))))
            }
        }
        return (term, field)
    }
}

extension SearchTerm {
    init(rawValue: UInt64) { self.init(hash: rawValue << 24) }
}
