// Where `beamline verify` reads documents from: the store's tables or, without any access to them, the API.

import JSONText
import LoadGeneration
import Segments
import TraceStore

/// The documents of one trace, in the order in which they are to be folded.
public struct RecountTrace: Sendable {
    public var id: TraceID
    public var documents: [Document]

    public struct Document: Sendable {
        public var receivedAt: Micros
        public var bytes: ArraySlice<UInt8>

        public init(receivedAt: Micros, bytes: ArraySlice<UInt8>) {
            self.receivedAt = receivedAt
            self.bytes = bytes
        }
    }

    public init(id: TraceID, documents: [Document]) {
        self.id = id
        self.documents = documents
    }
}

public protocol DocumentSource {
    /// The next traces among which are all that have an observation in the window; nil after the last ones.
    mutating func next() async throws -> [RecountTrace]?
    /// Traces by id; unknown ids are absent.
    mutating func traces(_ ids: [TraceID]) async throws -> [RecountTrace]
}

/// All traces of an account that contribute, from the tables, or those of a group.
public struct StoreDocumentSource: DocumentSource {
    private let store: TraceStore
    private let account: AccountID
    /// Nil: every trace.
    private let groupKey: Int64?
    private var last: TraceID?

    public init(store: TraceStore, account: AccountID, groupKey: Int64? = nil) {
        self.store = store
        self.account = account
        self.groupKey = groupKey
    }

    public mutating func next() async throws -> [RecountTrace]? {
        let ids =
            if let groupKey {
                try await store.memberIDs(account: account, groupKey: groupKey, after: last, limit: 1000)
            } else {
                try await store.traceIDs(account: account, after: last, limit: 1000)
            }
        guard let end = ids.last else { return nil }
        last = end
        // What the indexing rule left out contributes nothing, but links to it resolve.
        return try await recounted(ids) { $0.isIndexed }
    }

    /// Links resolve among members only (ruling R-28).
    public mutating func traces(_ ids: [TraceID]) async throws -> [RecountTrace] {
        guard let groupKey else { return try await recounted(ids) { _ in true } }
        let members = try await store.groupMembers(account: account, traces: ids).filter { $0.groupKey == groupKey }
        return try await recounted(members.map(\.trace)) { _ in true }
    }

    private func recounted(_ ids: [TraceID], _ isWanted: (StoredTrace) -> Bool) async throws -> [RecountTrace] {
        try await store.storedTraces(account: account, ids: ids).filter(isWanted).map { trace in
            RecountTrace(id: trace.id, documents: trace.documents.map { .init(receivedAt: $0.receivedAt, bytes: $0.bytes) })
        }
    }
}

/// The traces that `GetTraceSummaries` lists around the window, read by `BatchGetTraces`.
///
/// A trace belongs here when a segment or leaf call of it ended in the window (`TimeRangeType` `Service`), or its root
/// started in the window or up to `lookBackSeconds` before: a call can end in the window although neither the segment
/// it was made by nor the one it called did.
public struct APIDocumentSource: DocumentSource {
    private let client: APIClient
    private let parser = JSONParser()
    private var waiting: [(type: String, start: Int64, end: Int64)] = []
    private var token: String?
    private var seen: Set<TraceID> = []

    public init(client: APIClient, window: Range<Int64>, lookBackSeconds: Int64) {
        self.client = client
        for (type, first) in [("Service", window.lowerBound), ("TraceId", window.lowerBound - lookBackSeconds)] {
            var start = max(0, first)
            while start < window.upperBound {
                let end = min(start + 86_400, window.upperBound)
                waiting.append((type, start, end))
                start = end
            }
        }
    }

    public mutating func next() async throws -> [RecountTrace]? {
        guard let search = waiting.first else { return nil }
        var request = JSONWriter()
        request.beginObject()
        request.key("StartTime")
        request.int(search.start)
        request.key("EndTime")
        request.int(search.end)
        request.key("TimeRangeType")
        request.string(search.type)
        if let token {
            request.key("NextToken")
            request.string(token)
        }
        request.endObject()
        let answer = try parser.parse(client.read("/TraceSummaries", request.bytes, fresh: true).body)
        var ids: [TraceID] = []
        answer.member("TraceSummaries")?.forEachElement { summary in
            if let text = summary.member("Id")?.string?.string, let id = TraceID(parsing: text), seen.insert(id).inserted { ids.append(id) }
        }
        token = answer.member("NextToken")?.string?.string
        if token == nil { waiting.removeFirst() }
        return try await traces(ids)
    }

    public mutating func traces(_ ids: [TraceID]) async throws -> [RecountTrace] {
        var result: [RecountTrace] = []
        var rest = ids[...]
        while !rest.isEmpty {
            var request = JSONWriter()
            request.beginObject()
            request.key("TraceIds")
            request.beginArray()
            for id in rest.prefix(5) { request.string(id.description) }
            request.endArray()
            request.endObject()
            rest = rest.dropFirst(5)
            let answer = try parser.parse(client.read("/Traces", request.bytes).body)
            var texts: [(id: TraceID, documents: [[UInt8]])] = []
            answer.member("Traces")?.forEachElement { trace in
                guard let id = trace.member("Id")?.string.flatMap({ TraceID(parsing: $0.string) }) else { return }
                var documents: [[UInt8]] = []
                trace.member("Segments")?.forEachElement { segment in
                    if let document = segment.member("Document")?.string { documents.append(Array(document.utf8)) }
                }
                texts.append((id, documents))
            }
            // The answer's values live until the parser's next use, so the documents are looked into afterwards.
            for trace in texts {
                let reported = try trace.documents.filter { try parser.parse($0).member("inferred")?.bool != true }
                result.append(
                    RecountTrace(
                        id: trace.id,
                        documents: reported.enumerated().map { .init(receivedAt: Micros($0.offset), bytes: $0.element[...]) }))
            }
        }
        return result
    }
}
