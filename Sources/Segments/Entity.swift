// One segment or subsegment as the rest of the system sees it: the facts that assembly, summaries, graph and filters
// need, taken out of its JSON once. The JSON itself is kept beside it (log, documents table), never in here.

/// A segment or subsegment (`segments.md` §3, §4), after validation and normalisation.
public struct Entity: Sendable {
    public enum Kind: UInt8, Sendable { case segment, subsegment }

    /// What a subsegment did; segments have `.none`. `aws` and `remote` make it a remote call.
    public enum Namespace: UInt8, Sendable { case none, aws, remote }

    public var id: EntityID
    /// Parent as stated by the document; an embedded subsegment has the id of the entity around it.
    public var parentID: EntityID?
    public var kind: Kind
    public var namespace: Namespace = .none
    /// At most 200 Unicode code points.
    public var name: String
    public var start: Micros
    /// Nil while open.
    public var end: Micros?
    @inlinable
    public var isOpen: Bool { end == nil }

    /// Raw flags as sent (absent = false) and `http.response.status`.
    public var hasFaultFlag = false
    public var hasErrorFlag = false
    public var hasThrottleFlag = false
    public var httpStatus: Int?
    /// `http.request.traced` or `traced`: the callee is expected to send its own segment.
    public var isTraced = false

    /// Segments only: `origin`, `resource_arn`, `user`, `aws.ec2.instance_id`, `aws.ec2.availability_zone`.
    public var origin: String?
    public var resourceARN: String?
    public var user: String?
    public var instanceID: String?
    public var availabilityZone: String?
    /// `aws.account_id`.
    public var accountID: String?
    /// `http.request` of segments and subsegments.
    public var http: HTTPRequest?
    /// `aws` of a subsegment with namespace `aws`: what decides the name of the inferred node.
    public var awsCall: AWSCall?

    /// Indexable entries in document order, not yet cut to 50 per trace; strings in full.
    public var annotations: [Annotation] = []
    public var cause: Cause?
    /// Segments only; entries with bad ids dropped, at most 20 distinct traces.
    public var links: [Link] = []

    public init(id: EntityID, parentID: EntityID?, kind: Kind, name: String, start: Micros, end: Micros?) {
        self.id = id
        self.parentID = parentID
        self.kind = kind
        self.name = name
        self.start = start
        self.end = end
    }

    @inlinable
    public var isRemoteCall: Bool { kind == .subsegment && namespace != .none }
}

public struct HTTPRequest: Sendable, Equatable {
    public var url: String?
    public var method: String?
    public var userAgent: String?
    public var clientIP: String?
    public init() {}
}

public struct AWSCall: Sendable, Equatable {
    public var operation: String?
    /// `table_name`, or the only entry of `table_names`.
    public var tableName: String?
    public var bucketName: String?
    public var queueURL: String?
    public var topicARN: String?
    public var functionName: String?
    public init() {}
}

public enum AnnotationValue: Sendable {
    case string(String)
    case number(Double)
    case bool(Bool)
}

public struct Annotation: Sendable {
    public var key: String
    public var value: AnnotationValue
    public init(key: String, value: AnnotationValue) {
        self.key = key
        self.value = value
    }
}

/// `cause` (`segments.md` §10).
public enum Cause: Sendable {
    /// The string form: id of an exception described elsewhere in the trace.
    case exceptionReference(EntityID)
    /// The object form with `id`: exception ids first, then entity ids. Own exceptions may stand beside it; the
    /// reference wins.
    case reference(EntityID, exceptions: [ExceptionDescription])
    case exceptions([ExceptionDescription])
    /// A string that is no 16-hex id: resolves to nothing.
    case unresolvable
}

public struct ExceptionDescription: Sendable {
    public var id: EntityID?
    public var type: String?
    public var message: String?
    public init(id: EntityID? = nil, type: String? = nil, message: String? = nil) {
        self.id = id
        self.type = type
        self.message = message
    }
}

public struct Link: Hashable, Sendable {
    public var traceID: TraceID
    public var entityID: EntityID
    public init(traceID: TraceID, entityID: EntityID) {
        self.traceID = traceID
        self.entityID = entityID
    }
}

/// One accepted document: its own entity first, then the embedded ones, depth first in document order.
public struct SegmentDocument: Sendable {
    public var traceID: TraceID
    /// `entities[0]` is the document's own; never empty.
    public var entities: [Entity]
    /// For each entity the index of the one around it; -1 for the document's own.
    public var enclosing: [Int32]

    public init(traceID: TraceID, entities: [Entity], enclosing: [Int32]) {
        self.traceID = traceID
        self.entities = entities
        self.enclosing = enclosing
    }
}

/// Why a document was refused, in the words of `UnprocessedTraceSegments`.
public struct Refusal: Error, Hashable, Sendable {
    public enum Kind: String, Sendable { case segment, subsegment, entity }
    /// The document's top-level `id` when it is a string, as sent.
    public var id: String?
    public var code: String
    public var kind: Kind

    public init(id: String?, code: String, kind: Kind) {
        self.id = id
        self.code = code
        self.kind = kind
    }

    /// `Invalid <kind>. ErrorCode: <code>`, for subsegments with `, Cause: null` behind (recorded AWS texts).
    public var message: String {
        "Invalid \(kind.rawValue). ErrorCode: \(code)" + (kind == .subsegment ? ", Cause: null" : "")
    }
}
