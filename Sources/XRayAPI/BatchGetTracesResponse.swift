// `BatchGetTraces`, the answer (`traces.md` §3): documents travel as JSON strings. Linear in the bytes of the documents.

import JSONText
import Segments
import TraceAssembly

public struct BatchGetTracesResponse {
    public struct Trace {
        public var id: TraceID
        /// Nil: omitted, nothing has ended.
        public var duration: Micros?
        public var limitExceeded: Bool
        /// In order; inferred ones included.
        public var segments: [TraceDocument]

        public init(id: TraceID, duration: Micros?, limitExceeded: Bool, segments: [TraceDocument]) {
            self.id = id
            self.duration = duration
            self.limitExceeded = limitExceeded
            self.segments = segments
        }
    }

    /// In request order.
    public var traces: [Trace]
    /// Ids that could not be read, as the server writes ids.
    public var unprocessedTraceIDs: [TraceID]

    public init(traces: [Trace], unprocessedTraceIDs: [TraceID] = []) {
        self.traces = traces
        self.unprocessedTraceIDs = unprocessedTraceIDs
    }

    public var body: [UInt8] {
        let documentBytes = traces.reduce(0) { $0 + $1.segments.reduce(0) { $0 + $1.document.count + 64 } }
        var writer = JSONWriter(reservingCapacity: 256 + documentBytes + documentBytes / 4)
        writer.beginObject()
        writer.key("Traces")
        writer.beginArray()
        for trace in traces {
            writer.beginObject()
            writer.key("Id")
            writer.string(trace.id)
            if let duration = trace.duration {
                writer.key("Duration")
                writer.seconds(micros: duration)
            }
            writer.key("LimitExceeded")
            writer.bool(trace.limitExceeded)
            writer.key("Segments")
            writer.beginArray()
            for segment in trace.segments {
                writer.beginObject()
                writer.key("Id")
                writer.string(segment.id)
                writer.key("Document")
                writer.string(utf8: segment.document)
                writer.endObject()
            }
            writer.endArray()
            writer.endObject()
        }
        writer.endArray()
        writer.key("UnprocessedTraceIds")
        writer.beginArray()
        for id in unprocessedTraceIDs { writer.string(id) }
        writer.endArray()
        writer.endObject()
        return writer.bytes
    }
}
