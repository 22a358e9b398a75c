// Where the fields of every entity stand in the text of one stored document. In: a document that was accepted once.
// Out: byte ranges per entity, in the order of `SegmentDocument.entities`. Called by `traceDocuments` only.
// One pass over the text whatever its nesting; wrong text gives wrong ranges, never a crash.

/// The top-level fields of an entity that are given back as they were sent, in the order they are written.
enum DocumentField: Int, CaseIterable {
    case name, startTime, endTime, inProgress, type, error, fault, throttle, http, aws, annotations, metadata, cause,
        sql
    case service, user, origin, resourceARN, namespace, links, precursorIDs

    /// Keys outside the schema are dropped (`segments.md` §14), as are `inferred` and `traced`. Ids are facts.
    /// - Parameter key: unescaped.
    init?(key: String) {
        switch key {
        case "name": self = .name
        case "start_time": self = .startTime
        case "end_time": self = .endTime
        case "in_progress": self = .inProgress
        case "type": self = .type
        case "error": self = .error
        case "fault": self = .fault
        case "throttle": self = .throttle
        case "http": self = .http
        case "aws": self = .aws
        case "annotations": self = .annotations
        case "metadata": self = .metadata
        case "cause": self = .cause
        case "sql": self = .sql
        case "service": self = .service
        case "user": self = .user
        case "origin": self = .origin
        case "resource_arn": self = .resourceARN
        case "namespace": self = .namespace
        case "links": self = .links
        case "precursor_ids": self = .precursorIDs
        default: return nil
        }
    }
}

struct DocumentText {
    let bytes: [UInt8]
    /// `DocumentField.allCases.count` ranges per entity; empty = absent.
    private var ranges: [Range<Int32>] = []

    init(_ bytes: [UInt8]) {
        self.bytes = bytes
        bytes.withUnsafeBufferPointer { text in
            var scanner = Scanner(text: text)
            scanner.run()
            ranges = scanner.ranges
        }
    }

    /// The bytes of a field's value, without white space around it; nil when absent or null.
    func value(_ field: DocumentField, of ordinal: Int32) -> ArraySlice<UInt8>? {
        let position = Int(ordinal) * DocumentField.allCases.count + field.rawValue
        guard ranges.indices.contains(position), !ranges[position].isEmpty else { return nil }
        let slice = bytes[Int(ranges[position].lowerBound)..<Int(ranges[position].upperBound)]
        return slice.first == UInt8(ascii: "n") ? nil : slice
    }
}

private struct Scanner {
    let text: UnsafeBufferPointer<UInt8>
    var ranges: [Range<Int32>] = []
    private var position = 0
    private var entityCount = 0
    /// Ordinals of the entities around the position, outermost first.
    private var open: [Int] = []

    private static let fieldCount = DocumentField.allCases.count

    init(text: UnsafeBufferPointer<UInt8>) { self.text = text }

    mutating func run() {
        skipSpace()
        guard peek() == UInt8(ascii: "{") else { return }
        beginEntity()
        while let entity = open.last, position < text.count {
            skipSpace()
            switch peek() {
            case UInt8(ascii: ","):
                position += 1
            case UInt8(ascii: "}"):
                position += 1
                open.removeLast()
                if !open.isEmpty { nextElement() }
            case UInt8(ascii: "\""):
                member(of: entity)
            default:
                return
            }
        }
    }

    private mutating func beginEntity() {
        position += 1
        open.append(entityCount)
        entityCount += 1
        ranges.append(contentsOf: repeatElement(0..<0, count: Scanner.fieldCount))
    }

    /// Inside an array of subsegments: into the next element, or out of the array and back to the entity around it.
    private mutating func nextElement() {
        while position < text.count {
            skipSpace()
            switch peek() {
            case UInt8(ascii: ","):
                position += 1
            case UInt8(ascii: "{"):
                beginEntity()
                return
            case UInt8(ascii: "]"):
                position += 1
                return
            default:
                skipValue()
            }
        }
    }

    private mutating func member(of entity: Int) {
        let keyStart = position
        skipString()
        let key = unescapedKey(keyStart + 1, max(keyStart + 1, position - 1))
        skipSpace()
        guard peek() == UInt8(ascii: ":") else {
            position = text.count
            return
        }
        position += 1
        skipSpace()
        if key == "subsegments" {
            // The last of equal keys wins: what an earlier one embedded was never stored.
            entityCount = entity + 1
            ranges.removeLast(ranges.count - entityCount * Scanner.fieldCount)
            if peek() == UInt8(ascii: "[") {
                position += 1
                nextElement()
            } else {
                skipValue()
            }
            return
        }
        let valueStart = position
        skipValue()
        guard let field = DocumentField(key: key) else { return }
        ranges[entity * Scanner.fieldCount + field.rawValue] = Int32(valueStart)..<Int32(position)
    }

    private func peek() -> UInt8 { position < text.count ? text[position] : 0 }

    private mutating func skipSpace() {
        while position < text.count,
            text[position] == 0x20 || text[position] == 0x0A || text[position] == 0x0D || text[position] == 0x09
        {
            position += 1
        }
    }

    private mutating func skipString() {
        position += 1
        while position < text.count, text[position] != UInt8(ascii: "\"") {
            position += text[position] == UInt8(ascii: "\\") ? 2 : 1
        }
        position = min(position + 1, text.count)
    }

    /// Always moves on unless the text has ended.
    private mutating func skipValue() {
        var depth = 0
        let start = position
        while position < text.count {
            switch text[position] {
            case UInt8(ascii: "\""):
                skipString()
                if depth == 0 { return }
            case UInt8(ascii: "{"), UInt8(ascii: "["):
                depth += 1
                position += 1
            case UInt8(ascii: "}"), UInt8(ascii: "]"):
                depth -= 1
                if depth < 0 {
                    if position == start { position += 1 }
                    return
                }
                position += 1
                if depth == 0 { return }
            case UInt8(ascii: ","), UInt8(ascii: ":"), 0x20, 0x0A, 0x0D, 0x09:
                if depth == 0, position > start { return }
                position += 1
            default:
                position += 1
            }
        }
    }

    /// Escapes are legal in keys (`"n\u0061me"`). Only ASCII matters: no known key has anything else.
    private func unescapedKey(_ low: Int, _ high: Int) -> String {
        guard low < high, high <= text.count else { return "" }
        let raw = UnsafeBufferPointer(rebasing: text[low..<high])
        guard raw.contains(UInt8(ascii: "\\")) else {
            return raw.count > 15 ? "" : String(decoding: raw, as: UTF8.self)
        }
        var key: [UInt8] = []
        var at = 0
        while at < raw.count {
            guard raw[at] == UInt8(ascii: "\\"), at + 1 < raw.count else {
                key.append(raw[at])
                at += 1
                continue
            }
            if raw[at + 1] == UInt8(ascii: "u"), at + 6 <= raw.count,
                let code = UInt32(String(decoding: raw[at + 2..<at + 6], as: UTF8.self), radix: 16), code < 0x80
            {
                key.append(UInt8(code))
                at += 6
            } else {
                // Any other escape stands for a character no known key contains.
                key.append(0)
                at += 2
            }
        }
        return String(decoding: key, as: UTF8.self)
    }
}
