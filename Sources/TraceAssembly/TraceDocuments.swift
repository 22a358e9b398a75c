// The `Segments` of one trace as BatchGetTraces gives them (`traces.md` §3). In: a forest and the stored documents it
// was folded from. Out: one JSON document per segment, its subsegments folded in from whichever document brought them, and
// one per inferred service. Everything optional is given back in the bytes it was sent in, numbers included.

import Crypto
import JSONText
import Segments

/// One element of `Trace.Segments`.
public struct TraceDocument: Sendable {
    public var id: EntityID
    /// UTF-8 of the JSON text.
    public var document: [UInt8]
    public var isInferred: Bool
}

/// Documents of a trace: reported segments by (start, id), then inferred ones in the same order.
///
/// - Parameter documents: those that changed the trace, in log order, as received: `TraceEntity.document` indexes into
///   them. One that is missing leaves its entities with ids, names and times only.
///
/// Ids the server makes are the first 16 hex digits of SHA-256 of a text, so repeated reads agree:
/// `<trace_id>:<subsegment id>:service` for an inferred segment, `…:QueueTime` for the subsegment in it, and
/// `<trace_id>:<entity id>:exception:<position>` for an exception without a valid id (position in its array, from 0).
/// Linear in the bytes of the documents. Source: `traces.md` §3, `segments.md` §5, §6, §10–§14, ruling R-31.
public func traceDocuments(forest: Forest, documents: [[UInt8]]) -> [TraceDocument] {
    var builder = DocumentBuilder(forest: forest, documents: documents)
    let inOrder = forest.attachedInOrder()
    var result: [TraceDocument] = []
    for index in inOrder where forest.isSegment(index) {
        result.append(TraceDocument(id: forest[index].id, document: builder.segment(index), isInferred: false))
    }
    for index in inOrder where forest.isLeafCall(index) && !forest[index].isOpen {
        let id = builder.serverID(forest[index].id, "service")
        result.append(TraceDocument(id: id, document: builder.inferredSegment(index, id: id), isInferred: true))
    }
    return result
}

private struct DocumentBuilder {
    let forest: Forest
    let documents: [[UInt8]]
    /// A document is scanned when the first of its entities is written, and never when all of them were replaced.
    private var texts: [DocumentText?]
    private let traceID: String

    init(forest: Forest, documents: [[UInt8]]) {
        self.forest = forest
        self.documents = documents
        texts = Array(repeating: nil, count: documents.count)
        traceID = forest.trace.id.description
    }

    func serverID(_ entity: EntityID, _ purpose: String) -> EntityID {
        var hash = SHA256()
        hash.update(data: Array("\(traceID):\(entity):\(purpose)".utf8))
        var value: UInt64 = 0
        for byte in hash.finalize().prefix(8) { value = value << 8 | UInt64(byte) }
        return EntityID(rawValue: value)
    }

    private mutating func text(of index: Int32, _ field: DocumentField) -> ArraySlice<UInt8>? {
        let document = Int(forest.trace.entities[Int(index)].document)
        guard documents.indices.contains(document) else { return nil }
        if texts[document] == nil { texts[document] = DocumentText(documents[document]) }
        return texts[document]?.value(field, of: forest.trace.entities[Int(index)].ordinal)
    }

    // MARK: Whole documents

    /// A segment with everything below it through subsegments, at any depth: a stack, no recursion.
    mutating func segment(_ segment: Int32) -> [UInt8] {
        enum Step { case entity(Int32), end }
        var writer = JSONWriter()
        var steps: [Step] = [.entity(segment)]
        while let step = steps.popLast() {
            guard case .entity(let index) = step else {
                writer.endArray()
                writer.endObject()
                continue
            }
            writer.beginObject()
            writeHead(of: index, isDocument: index == segment, to: &writer)
            writeSharedFields(of: index, to: &writer)
            writeOtherFields(of: index, to: &writer)
            let embedded = forest.children(of: index).filter { !forest.isSegment($0) }
            if embedded.isEmpty {
                writer.endObject()
            } else {
                writer.key("subsegments")
                writer.beginArray()
                steps.append(.end)
                for child in embedded.reversed() { steps.append(.entity(child)) }
            }
        }
        return writer.bytes
    }

    /// The segment of a service that did not report itself, from the call that reached it.
    mutating func inferredSegment(_ call: Int32, id: EntityID) -> [UInt8] {
        let inferred = InferredService(of: forest[call])
        var writer = JSONWriter()
        writer.beginObject()
        writer.key("id")
        writer.string(id)
        writeName(of: call, to: &writer)
        writeTime(of: call, .startTime, to: &writer)
        writer.key("trace_id")
        writer.string(forest.trace.id)
        writeTime(of: call, .endTime, to: &writer)
        writer.key("parent_id")
        writer.string(forest[call].id)
        writer.key("inferred")
        writer.bool(true)
        if forest[call].namespace == .aws {
            writer.key("origin")
            writer.string(inferred.type)
        }
        writeSharedFields(of: call, to: &writer)
        if isQueueing(forest[call], as: inferred) {
            writer.key("subsegments")
            writer.beginArray()
            writer.beginObject()
            writer.key("id")
            writer.string(serverID(forest[call].id, "QueueTime"))
            writer.key("name")
            writer.string("QueueTime")
            writeTime(of: call, .startTime, to: &writer)
            writeTime(of: call, .endTime, to: &writer)
            writer.endObject()
            writer.endArray()
        }
        writer.endObject()
        return writer.bytes
    }

    private func isQueueing(_ call: Entity, as inferred: InferredService) -> Bool {
        guard call.namespace == .aws else { return false }
        if inferred.type == "AWS::SQS::Queue" { return true }
        guard inferred.type == "AWS::SQS", let operation = call.awsCall?.operation else { return false }
        return operation == "SendMessage" || operation == "SendMessageBatch"
    }

    // MARK: Fields of an entity

    private mutating func writeHead(of index: Int32, isDocument: Bool, to writer: inout JSONWriter) {
        writer.key("id")
        writer.string(forest[index].id)
        writeName(of: index, to: &writer)
        writeTime(of: index, .startTime, to: &writer)
        if isDocument {
            writer.key("trace_id")
            writer.string(forest.trace.id)
        }
        writeTime(of: index, .endTime, to: &writer)
        if forest[index].isOpen {
            writer.key("in_progress")
            writer.bool(true)
        } else {
            writeFlag("in_progress", text(of: index, .inProgress), to: &writer)
        }
        guard isDocument else { return }
        if let parentID = forest[index].parentID {
            writer.key("parent_id")
            writer.string(parentID)
        }
        writeText("type", text(of: index, .type), to: &writer)
    }

    private mutating func writeName(of index: Int32, to writer: inout JSONWriter) {
        writer.key("name")
        // At most 200 code points, so at most 200 bytes of text cannot be too long.
        if let sent = text(of: index, .name), sent.count <= 202, sent.first == UInt8(ascii: "\"") {
            writer.raw(sent)
        } else {
            writer.string(forest[index].name)
        }
    }

    private mutating func writeTime(of index: Int32, _ field: DocumentField, to writer: inout JSONWriter) {
        let known = field == .startTime ? forest[index].start : forest[index].end
        // Without a fact the field was no usable number: as if absent.
        guard let known else { return }
        writer.key(field == .startTime ? "start_time" : "end_time")
        if let sent = text(of: index, field) {
            writer.raw(sent)
        } else {
            writer.double(Double(known) / 1e6)
        }
    }

    /// What an inferred segment copies from its call too.
    private mutating func writeSharedFields(of index: Int32, to writer: inout JSONWriter) {
        writeFlag("error", text(of: index, .error), to: &writer)
        writeFlag("fault", text(of: index, .fault), to: &writer)
        writeFlag("throttle", text(of: index, .throttle), to: &writer)
        if let http = object(text(of: index, .http)) { writeHTTP(http, status: forest[index].httpStatus, to: &writer) }
        if let aws = object(text(of: index, .aws)) { writeAWS(aws, of: forest[index], to: &writer) }
    }

    private mutating func writeOtherFields(of index: Int32, to writer: inout JSONWriter) {
        if let annotations = object(text(of: index, .annotations)) { writeAnnotations(annotations, to: &writer) }
        if let metadata = text(of: index, .metadata), metadata.first == UInt8(ascii: "{") {
            writer.key("metadata")
            writer.raw(metadata)
        }
        if let cause = text(of: index, .cause) { writeCause(RawJSON(Array(cause)), of: forest[index].id, to: &writer) }
        if let sql = object(text(of: index, .sql)) {
            writer.key("sql")
            writer.beginObject()
            for (key, value) in sql where value.isString && value.bytes.count > 2 {
                writeMember(key, value, to: &writer)
            }
            writer.endObject()
        }
        if let service = object(text(of: index, .service)) {
            writer.key("service")
            writer.beginObject()
            for (key, value) in service { writeMember(key, value, to: &writer) }
            writer.endObject()
        }
        writeText("user", text(of: index, .user), to: &writer)
        writeText("origin", text(of: index, .origin), to: &writer)
        writeText("resource_arn", text(of: index, .resourceARN), to: &writer)
        writeText("namespace", text(of: index, .namespace), to: &writer)
        if let links = text(of: index, .links), links.first == UInt8(ascii: "[") {
            writeLinks(RawJSON(Array(links)), to: &writer)
        }
        if let ids = text(of: index, .precursorIDs), ids.first == UInt8(ascii: "[") {
            writer.key("precursor_ids")
            writer.beginArray()
            RawJSON(Array(ids)).forEachElement { element in
                if let id = entityID(element) { writer.string(id) }
            }
            writer.endArray()
        }
    }

    // MARK: Objects whose members need a look

    private func writeHTTP(_ http: [Member], status: Int?, to writer: inout JSONWriter) {
        writer.key("http")
        writer.beginObject()
        for (key, value) in http {
            if key.equals("request") {
                guard value.isObject else { continue }
                writer.key("request")
                writer.beginObject()
                for (key, value) in members(of: value) where !key.equals("traced") {
                    if key.equals("method") || key.equals("url") || key.equals("user_agent") || key.equals("client_ip")
                    {
                        guard value.isString, value.bytes.count > 2 else { continue }
                    } else if key.equals("x_forwarded_for") {
                        guard value.isTrue || value.isFalse else { continue }
                    }
                    writeMember(key, value, to: &writer)
                }
                writer.endObject()
            } else if key.equals("response") {
                guard value.isObject else { continue }
                writer.key("response")
                writer.beginObject()
                for (key, value) in members(of: value) {
                    if key.equals("status") {
                        guard let status else { continue }
                        writer.key("status")
                        writer.int(status)
                    } else if key.equals("content_length") {
                        guard let length = wholeNumber(value) else { continue }
                        writer.key("content_length")
                        writer.raw(length)
                    } else {
                        writeMember(key, value, to: &writer)
                    }
                }
                writer.endObject()
            } else {
                writeMember(key, value, to: &writer)
            }
        }
        writer.endObject()
    }

    private func writeAWS(_ aws: [Member], of entity: Entity, to writer: inout JSONWriter) {
        let isCall = entity.kind == .subsegment && entity.namespace == .aws
        writer.key("aws")
        writer.beginObject()
        for (key, value) in aws {
            if isCall, key.equals("resource_names") { continue }
            if key.equals("ec2"), value.isObject {
                writer.key("ec2")
                writer.beginObject()
                let ec2 = members(of: value)
                for (key, value) in ec2 { writeMember(key, value, to: &writer) }
                // The Python SDK's name for it.
                if !ec2.contains(where: { $0.key.equals("instance_size") }),
                    let type = ec2.last(where: { $0.key.equals("instance_type") })
                {
                    writer.key("instance_size")
                    writer.raw(type.value.bytes)
                }
                writer.endObject()
            } else {
                writeMember(key, value, to: &writer)
            }
        }
        if isCall {
            let inferred = InferredService(of: entity)
            if inferred.isNamedResource {
                writer.key("resource_names")
                writer.beginArray()
                writer.string(inferred.name)
                writer.endArray()
            }
        }
        writer.endObject()
    }

    private func writeAnnotations(_ annotations: [Member], to writer: inout JSONWriter) {
        writer.key("annotations")
        writer.beginObject()
        for (key, value) in annotations {
            if value.isNumber {
                guard Double(String(decoding: value.bytes, as: UTF8.self))?.isFinite == true else { continue }
            } else if !(value.isString || value.isTrue || value.isFalse) {
                continue
            }
            writeMember(key, value, to: &writer)
        }
        writer.endObject()
    }

    private func writeCause(_ cause: RawJSON, of entity: EntityID, to writer: inout JSONWriter) {
        if cause.isString {
            guard cause.bytes.count > 2 else { return }
            writer.key("cause")
            if let id = entityID(cause) { writer.string(id) } else { writer.raw(cause.bytes) }
            return
        }
        guard cause.isObject else { return }
        writer.key("cause")
        writer.beginObject()
        for (key, value) in members(of: cause) {
            if key.equals("id"), let id = entityID(value) {
                writer.key("id")
                writer.string(id)
            } else if key.equals("exceptions") {
                guard value.isArray else { continue }
                writer.key("exceptions")
                writer.beginArray()
                var position = 0
                value.forEachElement { exception in
                    writeException(exception, of: entity, position: position, to: &writer)
                    position += 1
                }
                writer.endArray()
            } else {
                writeMember(key, value, to: &writer)
            }
        }
        writer.endObject()
    }

    /// An element that is no object becomes an exception with an id only.
    private func writeException(_ exception: RawJSON, of entity: EntityID, position: Int, to writer: inout JSONWriter) {
        let fields = members(of: exception)
        let sentID = fields.last { $0.key.equals("id") }.flatMap { entityID($0.value) }
        writer.beginObject()
        writer.key("id")
        writer.string(sentID ?? serverID(entity, "exception:\(position)"))
        for (key, value) in fields where !key.equals("id") {
            if key.equals("type") || key.equals("message") {
                guard value.isString, value.bytes.count > 2 else { continue }
            } else if key.equals("remote") {
                guard value.isTrue || value.isFalse else { continue }
            } else if key.equals("truncated") || key.equals("skipped") {
                guard value.isNumber else { continue }
            } else if key.equals("cause"), let id = entityID(value) {
                writer.key("cause")
                writer.string(id)
                continue
            } else if key.equals("stack") {
                var isEmpty = true
                value.forEachElement { _ in isEmpty = false }
                guard !isEmpty else { continue }
            }
            writeMember(key, value, to: &writer)
        }
        writer.endObject()
    }

    private func writeLinks(_ links: RawJSON, to writer: inout JSONWriter) {
        writer.key("links")
        writer.beginArray()
        links.forEachElement { link in
            let fields = members(of: link)
            guard
                let traceID = fields.last(where: { $0.key.equals("trace_id") })?.value.string.flatMap({
                    TraceID(parsing: $0)
                }),
                let id = fields.last(where: { $0.key.equals("id") }).flatMap({ entityID($0.value) })
            else { return }
            writer.beginObject()
            writer.key("trace_id")
            writer.string(traceID)
            writer.key("id")
            writer.string(id)
            for (key, value) in fields where key.equals("attributes") && value.isObject {
                // Nulls inside attributes stay (rulings).
                writer.raw(key.bytes)
                writer.bytes.append(UInt8(ascii: ":"))
                writer.bytes.append(contentsOf: value.bytes)
            }
            writer.endObject()
        }
        writer.endArray()
    }

    // MARK: Values

    private typealias Member = (key: RawJSON, value: RawJSON)

    private func object(_ slice: ArraySlice<UInt8>?) -> [Member]? {
        guard let slice, slice.first == UInt8(ascii: "{") else { return nil }
        return members(of: RawJSON(Array(slice)))
    }

    /// Members that are not null; the last of equal keys wins, also when it is null.
    private func members(of value: RawJSON) -> [Member] {
        var result: [Member] = []
        value.forEachMember { key, value in result.append((key, value)) }
        if result.count > 1 {
            var last: [ExactString: Int] = [:]
            for position in result.indices { last[ExactString(keyText(result[position].key))] = position }
            if last.count < result.count {
                let kept = Set(last.values)
                result = result.indices.filter(kept.contains).map { result[$0] }
            }
        }
        result.removeAll { $0.value.isNull }
        return result
    }

    private func keyText(_ key: RawJSON) -> String {
        key.string ?? String(decoding: key.bytes, as: UTF8.self)
    }

    private func entityID(_ value: RawJSON) -> EntityID? {
        // 16 digits and two quotes; with escapes longer.
        guard value.isString, value.bytes.count >= 18 else { return nil }
        return value.string.flatMap { EntityID(parsing: $0) }
    }

    private func writeFlag(_ key: StaticString, _ value: ArraySlice<UInt8>?, to writer: inout JSONWriter) {
        guard let value, value.first == UInt8(ascii: "t") || value.first == UInt8(ascii: "f") else { return }
        writer.key(key)
        writer.raw(value)
    }

    /// A string that is not empty.
    private func writeText(_ key: StaticString, _ value: ArraySlice<UInt8>?, to writer: inout JSONWriter) {
        guard let value, value.first == UInt8(ascii: "\""), value.count > 2 else { return }
        writer.key(key)
        writer.raw(value)
    }

    private func writeMember(_ key: RawJSON, _ value: RawJSON, to writer: inout JSONWriter) {
        writer.raw(key.bytes)
        writer.bytes.append(UInt8(ascii: ":"))
        appendWithoutNulls(value.bytes, to: &writer.bytes)
    }

    /// The digits of a whole number, sent as `412`, `412.0` or `"412"`.
    private func wholeNumber(_ value: RawJSON) -> [UInt8]? {
        if value.isNumber {
            let digits = Array(value.bytes)
            if !digits.contains(where: { $0 == UInt8(ascii: ".") || $0 | 0x20 == UInt8(ascii: "e") }) { return digits }
            guard let number = Double(String(decoding: digits, as: UTF8.self)), let whole = Int64(exactly: number)
            else { return nil }
            return Array(String(whole).utf8)
        }
        guard let text = value.string, text.utf8.first != UInt8(ascii: "+"), let whole = Int64(text) else { return nil }
        return Array(String(whole).utf8)
    }
}

/// Appends a JSON value without the members that are null, at any depth: inside the modelled objects null is absent
/// (rulings). Elements of arrays stay. One pass, no recursion.
func appendWithoutNulls(_ value: ArraySlice<UInt8>, to out: inout [UInt8]) {
    guard containsNull(value) else {
        out.append(contentsOf: value)
        return
    }
    struct Container {
        var isObject: Bool
        var hasMembers = false
        /// Where the current member (or its comma) begins in the output.
        var memberStart = 0
        var expectsKey = true
    }
    var open: [Container] = []
    var position = value.startIndex

    func begin() {
        guard let container = open.last, !container.isObject, container.hasMembers else { return }
        out.append(UInt8(ascii: ","))
    }
    func finish() {
        guard !open.isEmpty else { return }
        open[open.count - 1].hasMembers = true
        open[open.count - 1].expectsKey = true
    }

    while position < value.endIndex {
        let byte = value[position]
        switch byte {
        case UInt8(ascii: "{"), UInt8(ascii: "["):
            begin()
            out.append(byte)
            open.append(Container(isObject: byte == UInt8(ascii: "{")))
            position += 1
        case UInt8(ascii: "}"), UInt8(ascii: "]"):
            out.append(byte)
            _ = open.popLast()
            finish()
            position += 1
        case UInt8(ascii: ","), UInt8(ascii: ":"), 0x20, 0x09, 0x0A, 0x0D:
            position += 1
        case UInt8(ascii: "\""):
            let start = position
            position += 1
            while position < value.endIndex, value[position] != UInt8(ascii: "\"") {
                position += value[position] == UInt8(ascii: "\\") ? 2 : 1
            }
            position = min(position + 1, value.endIndex)
            if let container = open.last, container.isObject, container.expectsKey {
                open[open.count - 1].memberStart = out.count
                open[open.count - 1].expectsKey = false
                if container.hasMembers { out.append(UInt8(ascii: ",")) }
                out.append(contentsOf: value[start..<position])
                out.append(UInt8(ascii: ":"))
            } else {
                begin()
                out.append(contentsOf: value[start..<position])
                finish()
            }
        default:
            let start = position
            while position < value.endIndex, !isDelimiter(value[position]) { position += 1 }
            if byte == UInt8(ascii: "n"), let container = open.last, container.isObject {
                out.removeLast(out.count - container.memberStart)
                open[open.count - 1].expectsKey = true
            } else {
                begin()
                out.append(contentsOf: value[start..<position])
                finish()
            }
        }
    }
}

private func isDelimiter(_ byte: UInt8) -> Bool {
    switch byte {
    case UInt8(ascii: ","), UInt8(ascii: "}"), UInt8(ascii: "]"), UInt8(ascii: ":"), 0x20, 0x09, 0x0A, 0x0D: true
    default: false
    }
}

/// Cheap test that is only ever wrong towards more work: strings may say "null" too.
private func containsNull(_ value: ArraySlice<UInt8>) -> Bool {
    value.withUnsafeBufferPointer { bytes in
        guard bytes.count >= 4 else { return false }
        for position in 0...bytes.count - 4 where bytes[position] == UInt8(ascii: "n") {
            if bytes[position + 1] == UInt8(ascii: "u"), bytes[position + 2] == UInt8(ascii: "l"),
                bytes[position + 3] == UInt8(ascii: "l")
            {
                return true
            }
        }
        return false
    }
}
