// JSON text in, a tree of values out, without a Swift object per value: simdjson writes a tape, `JSONValue` is a
// position on it. Used for every segment document (ingest, aggregator) and for request bodies.
// Duplicate keys are all there; `member` takes the last, and so must everybody who walks the members.

import CSimdJSON

/// Why a text is refused.
public struct JSONParseError: Error, Equatable, CustomStringConvertible {
    public enum Reason: Sendable { case notJSON, tooDeep, outOfMemory }
    public var reason: Reason

    @inlinable
    public init(_ reason: Reason) { self.reason = reason }

    public var description: String {
        switch reason {
        case .notJSON: "the text is not JSON"
        case .tooDeep: "the JSON text is nested too deeply"
        case .outOfMemory: "no memory to parse the JSON text"
        }
    }
}

/// A reusable parser; one per thread or task. It keeps its buffers between documents, those of a large document only
/// until a small one follows (or `trim()`).
///
/// Grammar: RFC 8259, UTF-8. A byte order mark, invalid UTF-8, lone surrogate escapes, `NaN`, and a second value are
/// refused; numbers of any size and any number of equal keys are legal (rulings, "Small print").
public final class JSONParser {
    // The C parser belongs to this object; every pointer in a `JSONValue` points into its buffers.
    @usableFromInline let handle: OpaquePointer?

    public init() { handle = csimdjson_parser_create() }

    deinit {
        if let handle { csimdjson_parser_destroy(handle) }
    }

    /// Parses one JSON text.
    /// - Parameters:
    ///   - bytes: the text. White space around it is allowed.
    ///   - maxDepth: how many levels of objects and arrays are legal.
    ///   - isPadded: 64 readable bytes follow the text in memory, so it need not be copied.
    /// - Returns: the root value. It points into the parser: it is valid until the next `parse` or `trim`, and only as
    ///   long as the parser lives. Never parse with a temporary (`JSONParser().parse(…)`); keep the parser in a
    ///   property, or in a `let` of a scope that encloses every use of the value.
    @inlinable
    public func parse(
        _ bytes: UnsafeRawBufferPointer, maxDepth: Int = 512, isPadded: Bool = false
    ) throws(JSONParseError) -> JSONValue {
        guard let handle else { throw JSONParseError(.outOfMemory) }
        guard let base = bytes.baseAddress else { throw JSONParseError(.notJSON) }
        var document = csimdjson_document()
        let result = csimdjson_parse(
            handle, base.assumingMemoryBound(to: UInt8.self), bytes.count, maxDepth, isPadded, &document)
        guard result == CSIMDJSON_OK, let tape = document.tape, let strings = document.strings else {
            switch result {
            case CSIMDJSON_TOO_DEEP: throw JSONParseError(.tooDeep)
            case CSIMDJSON_OUT_OF_MEMORY: throw JSONParseError(.outOfMemory)
            default: throw JSONParseError(.notJSON)
            }
        }
        return JSONValue(tape: tape, strings: strings, index: 1)
    }

    /// As above, for a text in an array; the value does not refer to the array.
    @inlinable
    public func parse(_ bytes: [UInt8], maxDepth: Int = 512) throws(JSONParseError) -> JSONValue {
        try bytes.withUnsafeBytes { buffer in
            Result { () throws(JSONParseError) in try parse(buffer, maxDepth: maxDepth) }
        }.get()
    }

    /// Gives back the buffers of a large document. The last value is invalid afterwards.
    public func trim() {
        if let handle { csimdjson_parser_trim(handle) }
    }

    /// About how many bytes the parser keeps allocated.
    public var retainedBytes: Int { handle.map { csimdjson_parser_retained_bytes($0) } ?? 0 }
}
