// Document bytes in, a verdict or a `SegmentDocument` out. Ingest calls `validate` (no strings are made), the
// aggregator and the queries call `parse`; both run the same checks, so a document accepted once is readable for ever.
// Checks, order and codes: `segments.md` §14. It does not split the `PutTraceSegments` envelope.

import JSONText

/// What a server may set about documents.
public struct SegmentLimits: Sendable {
    /// Longest document in bytes of UTF-8.
    public var documentBytes: Int
    /// Refuse names with characters outside X-Ray's documented alphabet with `InvalidName`.
    public var strictNames: Bool

    public init(documentBytes: Int = 65_536, strictNames: Bool = false) {
        self.documentBytes = documentBytes
        self.strictNames = strictNames
    }
}

/// Validates and reads segment and subsegment documents. Keeps a JSON parser: one per thread or task.
public final class SegmentParser {
    public let limits: SegmentLimits
    private let json = JSONParser()

    public init(limits: SegmentLimits = SegmentLimits()) { self.limits = limits }

    /// Decides whether a document is accepted.
    /// - Parameter document: one JSON text; it is copied, so no padding is needed.
    /// - Returns: the trace it belongs to.
    /// - Throws: the refusal, word for word as `UnprocessedTraceSegments` tells it.
    public func validate(_ document: UnsafeRawBufferPointer) throws(Refusal) -> TraceID {
        let (root, head) = try readHead(document)
        try validateEmbedded(in: root, head.fields, root: root)
        return head.traceID
    }

    /// Reads a document: the same verdict as `validate`, and the facts of all its entities.
    public func parse(_ document: UnsafeRawBufferPointer) throws(Refusal) -> SegmentDocument {
        let (root, head) = try readHead(document)
        var entities: [Entity] = []
        entities.reserveCapacity(1 + (root.field(head.fields.subsegments)?.count ?? 0))
        appendEntity(root, head.fields, head.entity, kind: head.kind, parentID: head.parentID, to: &entities)
        var enclosing: [Int32] = [-1]
        try parseEmbedded(in: root, head.fields, enclosedBy: 0, root: root, &entities, &enclosing)
        return SegmentDocument(traceID: head.traceID, entities: entities, enclosing: enclosing)
    }

    public func validate(_ document: [UInt8]) throws(Refusal) -> TraceID {
        try document.withUnsafeBytes { bytes in Result { () throws(Refusal) in try validate(bytes) } }.get()
    }

    public func parse(_ document: [UInt8]) throws(Refusal) -> SegmentDocument {
        try document.withUnsafeBytes { bytes in Result { () throws(Refusal) in try parse(bytes) } }.get()
    }

    // MARK: The document and its own entity

    private struct Head {
        var fields: EntityFields
        var kind: Entity.Kind
        var traceID: TraceID
        var entity: EntityHead
        var parentID: EntityID?
    }

    /// What every entity must have.
    struct EntityHead {
        var id: EntityID
        var name: JSONString
        var start: Micros
        /// Nil while in progress.
        var end: Micros?
    }

    private func readHead(_ document: UnsafeRawBufferPointer) throws(Refusal) -> (root: JSONValue, head: Head) {
        // 1: too long.
        guard document.count <= limits.documentBytes else {
            let root = try? json.parse(document)
            throw refusal("InvalidSegment", .segment, root: root)
        }
        // 2 and 3: not JSON, or not an object.
        let root: JSONValue
        do {
            root = try json.parse(document)
        } catch {
            throw Refusal(id: nil, code: "ParseError", kind: startsWithBrace(document) ? .segment : .entity)
        }
        guard root.isObject else { throw Refusal(id: nil, code: "ParseError", kind: .entity) }
        let fields = EntityFields(of: root)

        // 4: type.
        var kind = Entity.Kind.segment
        if let type = root.field(fields.type) {
            guard let text = type.string else { throw refusal("UnknownType", .entity, root: root) }
            if text == "subsegment" {
                kind = .subsegment
            } else if !(text.isEmpty || text == "segment") {
                throw refusal("UnknownType", .entity, root: root)
            }
        }
        let refusalKind: Refusal.Kind = kind == .segment ? .segment : .subsegment

        // 5 to 7.
        let (id, name) = try readIdentity(root, fields, refusalKind, root: root)
        // 8 and 9: trace id.
        guard let traceText = root.text(fields.traceID) else {
            throw refusal("MissingTraceId", refusalKind, root: root)
        }
        guard let traceID = TraceID(utf8: traceText.utf8) else {
            throw refusal("InvalidTraceId", refusalKind, root: root)
        }
        // 10 to 12.
        let (start, end) = try readTimes(root, fields, refusalKind, root: root)
        // 13 and 14: parent.
        var parentID: EntityID?
        if let text = root.text(fields.parentID) {
            guard let parent = EntityID(utf8: text.utf8) else {
                throw refusal("InvalidParentId", refusalKind, root: root)
            }
            parentID = parent
        } else if kind == .subsegment {
            throw refusal("MissingParentId", refusalKind, root: root)
        }
        let entity = EntityHead(id: id, name: name, start: start, end: end)
        return (root, Head(fields: fields, kind: kind, traceID: traceID, entity: entity, parentID: parentID))
    }

    // MARK: Checks 5 to 7 and 10 to 12, of every entity

    @inline(__always)
    private func readIdentity(
        _ value: JSONValue, _ fields: EntityFields, _ kind: Refusal.Kind, root: JSONValue
    ) throws(Refusal) -> (EntityID, JSONString) {
        guard let idText = value.text(fields.id) else { throw refusal("MissingId", kind, root: root) }
        guard let id = EntityID(utf8: idText.utf8) else { throw refusal("InvalidId", kind, root: root) }
        guard let name = value.text(fields.name) else { throw refusal("MissingName", kind, root: root) }
        if limits.strictNames && !isInDocumentedAlphabet(name.string) { throw refusal("InvalidName", kind, root: root) }
        return (id, name)
    }

    @inline(__always)
    private func readTimes(
        _ value: JSONValue, _ fields: EntityFields, _ kind: Refusal.Kind, root: JSONValue
    ) throws(Refusal) -> (Micros, Micros?) {
        guard let start = value.time(fields.startTime), value.at(Int(fields.startTime)).double ?? 0 > 0 else {
            throw refusal("MissingStartTime", kind, root: root)
        }
        let end = value.time(fields.endTime)
        if value.flag(fields.inProgress) {
            guard end == nil else {
                let code = kind == .segment ? "InProgressSegmentHasEndTime" : "InProgressSubsegmentHasEndTime"
                throw refusal(code, kind, root: root)
            }
        } else if end == nil {
            throw refusal("MissingEndTime", kind, root: root)
        }
        return (start, end)
    }

    // MARK: Embedded subsegments, depth first

    /// The elements to descend into; anything but an array is as if absent.
    @inline(__always)
    private func embedded(
        in value: JSONValue, _ fields: EntityFields, root: JSONValue
    ) throws(Refusal) -> JSONElements? {
        guard fields.subsegments != 0 else { return nil }
        let list = value.at(Int(fields.subsegments))
        guard list.isArray else { return nil }
        // 15, before any of the elements is looked into.
        for element in list.elements where !element.isObject { throw refusal("ParseError", .entity, root: root) }
        return list.elements
    }

    private func validateEmbedded(in value: JSONValue, _ fields: EntityFields, root: JSONValue) throws(Refusal) {
        guard let elements = try embedded(in: value, fields, root: root) else { return }
        for element in elements {
            let fields = EntityFields(of: element)
            _ = try readIdentity(element, fields, .subsegment, root: root)
            _ = try readTimes(element, fields, .subsegment, root: root)
            try validateEmbedded(in: element, fields, root: root)
        }
    }

    private func parseEmbedded(
        in value: JSONValue, _ fields: EntityFields, enclosedBy outer: Int, root: JSONValue,
        _ entities: inout [Entity], _ enclosing: inout [Int32]
    ) throws(Refusal) {
        guard let elements = try embedded(in: value, fields, root: root) else { return }
        for element in elements {
            let fields = EntityFields(of: element)
            let (id, name) = try readIdentity(element, fields, .subsegment, root: root)
            let (start, end) = try readTimes(element, fields, .subsegment, root: root)
            let head = EntityHead(id: id, name: name, start: start, end: end)
            let position = entities.count
            appendEntity(element, fields, head, kind: .subsegment, parentID: entities[outer].id, to: &entities)
            enclosing.append(Int32(outer))
            try parseEmbedded(in: element, fields, enclosedBy: position, root: root, &entities, &enclosing)
        }
    }

    // MARK: Refusals

    /// The `Id` is the document's own, even when an embedded subsegment is at fault, and even when it is malformed.
    private func refusal(_ code: String, _ kind: Refusal.Kind, root: JSONValue?) -> Refusal {
        Refusal(id: root?.member("id")?.string?.string, code: code, kind: kind)
    }

    private func startsWithBrace(_ document: UnsafeRawBufferPointer) -> Bool {
        let space: (UInt8) -> Bool = { $0 == 0x20 || $0 == 0x0A || $0 == 0x0D || $0 == 0x09 }
        return document.first { !space($0) } == UInt8(ascii: "{")
    }

    /// Unicode letters, digits, white space and `_ . : / % & # = + \ - @` (`segments.md` §3).
    private func isInDocumentedAlphabet(_ name: String) -> Bool {
        name.unicodeScalars.allSatisfy { scalar in
            switch scalar.properties.generalCategory {
            case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter, .decimalNumber,
                .letterNumber, .otherNumber:
                return true
            default:
                return scalar.properties.isWhitespace || "_.:/%&#=+\\-@".unicodeScalars.contains(scalar)
            }
        }
    }
}
