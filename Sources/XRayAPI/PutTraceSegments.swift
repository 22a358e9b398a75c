// `PutTraceSegments` (`api.md` §5.1, `segments.md` §1): the envelope is split into documents, the answer lists the
// refused ones. Called by the ingest role for every request, so no Swift string is made of a document.

import JSONText
import Segments

/// The documents of one call, unescaped, in list order.
public struct PutTraceSegmentsRequest {
    public static let maxDocuments = 50

    /// Views into the parser's buffer: valid until `parser` parses again, so the caller must keep the parser and use
    /// another one for the documents themselves.
    public let documents: [UnsafeRawBufferPointer]

    /// - Parameter body: the decompressed request body.
    /// - Throws: `SerializationException` (not JSON, wrong types), `Segments can not be empty`, `Too many segment documents`.
    public init(body: UnsafeRawBufferPointer, parser: JSONParser) throws(APIError) {
        documents = try RequestMembers.decode(body, parser: parser) { (members) throws(APIError) in
            var documents: [UnsafeRawBufferPointer] = []
            documents.reserveCapacity(Self.maxDocuments)
            var count = 0
            try members.forEachElement(of: "TraceSegmentDocuments") { (_, element) throws(APIError) in
                guard let document = element.string else {
                    throw RequestMembers.wrongType("TraceSegmentDocuments", "a list of strings")
                }
                count += 1
                if count <= Self.maxDocuments { documents.append(document.rawBytes) }
            }
            guard count > 0 else { throw .invalidRequest("Segments can not be empty") }
            guard count <= Self.maxDocuments else { throw .invalidRequest("Too many segment documents") }
            return documents
        }
    }
}

/// `{"UnprocessedTraceSegments":[…]}`.
public struct PutTraceSegmentsResponse {
    /// In document order.
    public var refusals: [Refusal]

    public init(refusals: [Refusal]) { self.refusals = refusals }

    public var body: [UInt8] {
        guard !refusals.isEmpty else { return Self.allProcessed }
        var writer = JSONWriter()
        writer.beginObject()
        writer.key("UnprocessedTraceSegments")
        writer.beginArray()
        for refusal in refusals {
            writer.beginObject()
            if let id = refusal.id {
                writer.key("Id")
                writer.string(id)
            }
            writer.key("ErrorCode")
            writer.string(refusal.code)
            writer.key("Message")
            writer.string(refusal.message)
            writer.endObject()
        }
        writer.endArray()
        writer.endObject()
        return writer.bytes
    }

    private static let allProcessed = Array(#"{"UnprocessedTraceSegments":[]}"#.utf8)
}
