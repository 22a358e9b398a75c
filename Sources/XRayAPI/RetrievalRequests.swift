// Trace retrieval, requests and answers (`api.md` §5.3). Documents travel as JSON strings.

import JSONText
import Segments
import ServiceGraph

public struct StartTraceRetrievalRequest: Sendable, Equatable {
    public static let operation = "StartTraceRetrieval"
    public static let maxTraces = 100
    /// Jobs of an account that are not finished.
    public static let maxJobs = 10

    /// In request order, distinct: an id given twice counts once.
    public var traceIDs: [TraceID]
    /// Both inclusive.
    public var startTime: Micros
    public var endTime: Micros

    public init(body: [UInt8]) throws(APIError) {
        (traceIDs, startTime, endTime) = try RequestMembers.decode(body) { (members) throws(APIError) in
            let list = try members.strings("TraceIds", limit: Self.maxTraces)
            let start = try members.requiredTimestamp("StartTime")
            let end = try members.requiredTimestamp("EndTime")
            guard let (texts, count) = list else { throw RequestMembers.missing("TraceIds") }
            guard count <= Self.maxTraces else {
                throw .invalidRequest("TraceIds must have at most \(Self.maxTraces) items")
            }
            var ids: [TraceID] = []
            var seen: Set<TraceID> = []
            for text in texts {
                guard let id = TraceID(parsing: text) else {
                    throw .invalidRequest("Invalid trace id \(text.echoed()): incorrect id format")
                }
                if seen.insert(id).inserted { ids.append(id) }
            }
            guard end >= start else { throw .invalidRequest("End time cannot be earlier than start time") }
            return (ids, start, end)
        }
    }

    public static func responseBody(token: String) -> [UInt8] {
        var writer = JSONWriter()
        writer.beginObject()
        writer.key("RetrievalToken")
        writer.string(token)
        writer.endObject()
        return writer.bytes
    }
}

/// The token of the other three operations.
private func retrievalToken(_ members: RequestMembers) throws(APIError) -> String {
    guard let token = try members.string("RetrievalToken") else { throw RequestMembers.missing("RetrievalToken") }
    guard token.unicodeScalars.count <= 1020 else {
        throw .invalidRequest("RetrievalToken must have at most 1020 characters")
    }
    return token
}

public enum RetrievalToken {
    /// Unknown, of another account, or expired.
    public static func notFound(_ token: String) -> APIError {
        .resourceNotFound("Retrieval not found", resourceName: token.echoed(1020))
    }
}

public struct ListRetrievedTracesRequest: Sendable, Equatable {
    public static let operation = "ListRetrievedTraces"
    public static let pageTraces = 5
    public static let pageSpans = 100

    public enum Format: String, Sendable, CaseIterable {
        case xray = "XRAY"
        case otel = "OTEL"
    }

    public var token: String
    public var format: Format
    public var nextToken: String?
    /// What a page token is bound to.
    public var hash: [UInt8]

    public init(body: [UInt8]) throws(APIError) {
        (token, format, nextToken) = try RequestMembers.decode(body) { (members) throws(APIError) in
            let text = try members.string("TraceFormat") ?? Format.xray.rawValue
            let nextToken = try members.string("NextToken")
            let token = try retrievalToken(members)
            guard let format = Format.allCases.first(where: { $0.rawValue.utf8.elementsEqual(text.utf8) }) else {
                throw .invalidRequest("TraceFormat must be one of [XRAY, OTEL]")
            }
            return (token, format, nextToken)
        }
        var hash = RequestHash()
        hash.add(token)
        hash.add(format.rawValue)
        self.hash = hash.finalized()
    }
}

public struct ListRetrievedTracesResponse {
    public struct Span {
        public var id: EntityID
        /// UTF-8 of a JSON document.
        public var document: [UInt8]

        public init(id: EntityID, document: [UInt8]) {
            self.id = id
            self.document = document
        }
    }

    public struct Trace {
        public var id: TraceID
        /// Nil: omitted, nothing has ended.
        public var duration: Micros?
        public var spans: [Span]

        public init(id: TraceID, duration: Micros?, spans: [Span]) {
            self.id = id
            self.duration = duration
            self.spans = spans
        }
    }

    public var status: String
    public var format: ListRetrievedTracesRequest.Format
    public var traces: [Trace]
    public var nextToken: String?

    public init(
        status: String, format: ListRetrievedTracesRequest.Format, traces: [Trace] = [], nextToken: String? = nil
    ) {
        self.status = status
        self.format = format
        self.traces = traces
        self.nextToken = nextToken
    }

    public var body: [UInt8] {
        var writer = JSONWriter(reservingCapacity: 1024)
        writer.beginObject()
        writer.key("RetrievalStatus")
        writer.string(status)
        writer.key("TraceFormat")
        writer.string(format.rawValue)
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
            writer.key("Spans")
            writer.beginArray()
            for span in trace.spans {
                writer.beginObject()
                writer.key("Id")
                writer.string(span.id)
                writer.key("Document")
                writer.string(utf8: span.document)
                writer.endObject()
            }
            writer.endArray()
            writer.endObject()
        }
        writer.endArray()
        if let nextToken {
            writer.key("NextToken")
            writer.string(nextToken)
        }
        writer.endObject()
        return writer.bytes
    }
}

public struct GetRetrievedTracesGraphRequest: Sendable, Equatable {
    public static let operation = "GetRetrievedTracesGraph"
    public static let pageServices = 1_000
    /// Links of one service that are shown.
    public static let serviceLinks = 100

    public var token: String
    public var nextToken: String?
    public var hash: [UInt8]

    public init(body: [UInt8]) throws(APIError) {
        (token, nextToken) = try RequestMembers.decode(body) { (members) throws(APIError) in
            let nextToken = try members.string("NextToken")
            return (try retrievalToken(members), nextToken)
        }
        var hash = RequestHash()
        hash.add(token)
        self.hash = hash.finalized()
    }
}

public struct GetRetrievedTracesGraphResponse {
    public struct Service {
        public var service: GraphService
        public var links: [GraphTraceLink]

        public init(service: GraphService, links: [GraphTraceLink]) {
            self.service = service
            self.links = links
        }
    }

    public var status: String
    public var services: [Service]
    public var nextToken: String?

    public init(status: String, services: [Service] = [], nextToken: String? = nil) {
        self.status = status
        self.services = services
        self.nextToken = nextToken
    }

    public var body: [UInt8] {
        var writer = JSONWriter(reservingCapacity: 64 + services.count * 768)
        writer.beginObject()
        writer.key("RetrievalStatus")
        writer.string(status)
        writer.key("Services")
        writer.beginArray()
        for entry in services {
            writer.beginObject()
            writer.key("Service")
            writer.service(entry.service)
            writer.key("Links")
            writer.beginArray()
            for link in entry.links.prefix(GetRetrievedTracesGraphRequest.serviceLinks) {
                writer.beginObject()
                writer.key("ReferenceType")
                writer.string("link")
                writer.key("SourceTraceId")
                writer.string(link.source)
                writer.key("DestinationTraceIds")
                writer.beginArray()
                for id in link.destinations { writer.string(id) }
                writer.endArray()
                writer.endObject()
            }
            writer.endArray()
            writer.endObject()
        }
        writer.endArray()
        if let nextToken {
            writer.key("NextToken")
            writer.string(nextToken)
        }
        writer.endObject()
        return writer.bytes
    }
}

public struct CancelTraceRetrievalRequest: Sendable, Equatable {
    public static let operation = "CancelTraceRetrieval"
    public static let responseBody = Array("{}".utf8)

    public var token: String

    public init(body: [UInt8]) throws(APIError) {
        token = try RequestMembers.decode(body) { (members) throws(APIError) in try retrievalToken(members) }
    }
}
