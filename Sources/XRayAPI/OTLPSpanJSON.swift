// A trace as OTLP-JSON spans, one per entity (`traces.md` §10): what `ListRetrievedTraces` answers for `TraceFormat` OTEL.
// Field names and number forms: OpenTelemetry protocol, "JSON Protobuf Encoding" (64-bit integers as text).

import JSONText
import Segments
import TraceAssembly

/// The attached entities as spans, in order of start.
public func otlpSpans(of forest: Forest) -> [ListRetrievedTracesResponse.Span] {
    let traceID = forest.trace.id.bareHex
    return forest.attachedInOrder().map { index in
        let entity = forest[index]
        return ListRetrievedTracesResponse.Span(id: entity.id, document: OTLPSpan.json(of: entity, traceID: traceID))
    }
}

private enum OTLPSpan {
    static func json(of entity: Entity, traceID: String) -> [UInt8] {
        var writer = JSONWriter()
        writer.beginObject()
        writer.key("traceId")
        writer.string(traceID)
        writer.key("spanId")
        writer.string(entity.id)
        if let parent = entity.parentID {
            writer.key("parentSpanId")
            writer.string(parent)
        }
        writer.key("name")
        writer.string(entity.name)
        writer.key("kind")
        // INTERNAL, SERVER, CLIENT.
        writer.int(entity.kind == .segment ? 2 : entity.isRemoteCall ? 3 : 1)
        writer.key("startTimeUnixNano")
        writer.string(nanoseconds(entity.start))
        if let end = entity.end {
            writer.key("endTimeUnixNano")
            writer.string(nanoseconds(end))
        }
        writer.key("attributes")
        writer.beginArray()
        http(of: entity, to: &writer)
        for annotation in entity.annotations { attribute(annotation.key, annotation.value, to: &writer) }
        writer.endArray()
        writer.key("status")
        writer.beginObject()
        let outcome = entity.outcome
        if outcome.isError || outcome.isFault || outcome.isThrottle {
            writer.key("code")
            writer.int(2)
        }
        writer.endObject()
        writer.endObject()
        return writer.bytes
    }

    private static func nanoseconds(_ time: Micros) -> String { time == 0 ? "0" : "\(time)000" }

    private static func http(of entity: Entity, to writer: inout JSONWriter) {
        let texts = [
            ("http.request.method", entity.http?.method), ("url.full", entity.http?.url),
            ("user_agent.original", entity.http?.userAgent), ("client.address", entity.http?.clientIP),
        ]
        for case (let key, let text?) in texts { attribute(key, .string(text), to: &writer) }
        guard let status = entity.httpStatus else { return }
        writer.beginObject()
        writer.key("key")
        writer.string("http.response.status_code")
        writer.key("value")
        writer.beginObject()
        writer.key("intValue")
        writer.string("\(status)")
        writer.endObject()
        writer.endObject()
    }

    private static func attribute(_ key: String, _ value: AnnotationValue, to writer: inout JSONWriter) {
        writer.beginObject()
        writer.key("key")
        writer.string(key)
        writer.key("value")
        writer.beginObject()
        switch value {
        case .string(let text):
            writer.key("stringValue")
            writer.string(text)
        case .number(let number):
            writer.key("doubleValue")
            writer.double(number)
        case .bool(let bool):
            writer.key("boolValue")
            writer.bool(bool)
        }
        writer.endObject()
        writer.endObject()
    }
}
