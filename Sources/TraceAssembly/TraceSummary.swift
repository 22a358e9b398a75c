// One trace in a few lines (`traces.md` §4). In: a forest. Out: every field of a `TraceSummary` as a Swift value; the
// API layer renders it, filters test it. Called by the query side only: summaries are never stored.

import Segments

public struct TraceSummary: Sendable, Equatable {
    public var id: TraceID
    /// Earliest start among attached entities.
    public var startTime: Micros
    /// Microseconds, unrounded; nil while any attached entity is open or nothing has ended.
    public var duration: Micros?
    /// Root end − root start, microseconds, unrounded; nil while the root is open.
    public var responseTime: Micros?
    /// Outcome of the root only.
    public var hasFault: Bool
    public var hasError: Bool
    public var hasThrottle: Bool
    public var isPartial: Bool
    /// From the root; empty when the root has no `http`.
    public var http: HTTPSummary
    /// Keys and values by first appearance (start, id).
    public var annotations: [AnnotationSummary]
    public var users: [UserSummary]
    /// One per node of the trace: reported services, inferred services, and the client node (behind its root).
    public var serviceIDs: [ServiceID]
    public var resourceARNs: [String]
    public var instanceIDs: [String]
    public var availabilityZones: [String]
    public var entryPoint: ServiceID
    public var faultRootCauses: [RootCause]
    public var errorRootCauses: [RootCause]
    /// At most one.
    public var responseTimeRootCauses: [RootCause]
    public var revision: Int
    /// Receipt time of the newest document that changed the trace: `MatchedEventTime` where that is sent.
    public var newestReceipt: Micros
}

public struct HTTPSummary: Sendable, Equatable {
    public var url: String?
    public var method: String?
    public var userAgent: String?
    public var clientIP: String?
    public var status: Int?
}

/// One key of `Annotations` with its distinct values.
public struct AnnotationSummary: Sendable, Equatable {
    public struct Value: Sendable, Equatable {
        public var value: IndexedValue
        /// Services of the owners carrying the value.
        public var serviceIDs: [ServiceID]
    }
    public var key: String
    public var values: [Value]
}

public struct UserSummary: Sendable, Equatable {
    public var name: String
    public var serviceIDs: [ServiceID]
}

extension TraceSummary {
    /// Nil when the trace has no root, that is, no segment.
    public init?(forest: Forest) {
        guard forest.root >= 0, let startTime = forest.earliestStart, let clientService = forest.clientService else {
            return nil
        }
        let root = forest[forest.root]
        let outcome = root.outcome
        let inOrder = forest.attachedInOrder()

        self.id = forest.trace.id
        self.startTime = startTime
        self.duration = forest.hasOpenEntity ? nil : forest.traceDuration
        self.responseTime = forest.responseTime(of: forest.root)
        self.hasFault = outcome.isFault
        self.hasError = outcome.isError
        self.hasThrottle = outcome.isThrottle
        self.isPartial = forest.isPartial
        self.http = HTTPSummary(
            url: root.http?.url, method: root.http?.method, userAgent: root.http?.userAgent,
            clientIP: root.http?.clientIP,
            status: root.httpStatus)
        self.annotations = TraceSummary.annotations(of: forest)
        self.entryPoint = forest.service(ofSegment: forest.root)
        self.faultRootCauses = forest.rootCauses(of: .fault)
        self.errorRootCauses = forest.rootCauses(of: .error)
        self.responseTimeRootCauses = forest.responseTimeRootCause().map { [$0] } ?? []
        self.revision = forest.trace.revision
        self.newestReceipt = forest.trace.receipts.max() ?? 0

        var services = Distinct<ServiceID>()
        var users = Grouped<ExactString, ServiceID>()
        var resourceARNs = Distinct<ExactString>()
        var instanceIDs = Distinct<ExactString>()
        var availabilityZones = Distinct<ExactString>()
        for index in inOrder {
            if forest.isLeafCall(index) { services.insert(forest.inferredService(ofCall: index)) }
            guard forest.isSegment(index) else { continue }
            let service = forest.service(ofSegment: index)
            services.insert(service)
            if index == forest.root { services.insert(clientService) }
            if let user = forest[index].user { users.insert(service, under: ExactString(user)) }
            if let arn = forest[index].resourceARN { resourceARNs.insert(ExactString(arn)) }
            if let id = forest[index].instanceID { instanceIDs.insert(ExactString(id)) }
            if let zone = forest[index].availabilityZone { availabilityZones.insert(ExactString(zone)) }
        }
        self.serviceIDs = services.values
        self.users = users.groups.map { UserSummary(name: $0.key.value, serviceIDs: $0.members.values) }
        self.resourceARNs = resourceARNs.values.map(\.value)
        self.instanceIDs = instanceIDs.values.map(\.value)
        self.availabilityZones = availabilityZones.values.map(\.value)
    }

    private static func annotations(of forest: Forest) -> [AnnotationSummary] {
        let indexed = forest.indexedAnnotations()
        guard !indexed.isEmpty else { return [] }
        // Stable: pairs of one entity stay in document order.
        let carriers = indexed.enumerated().sorted { a, b in
            if a.element.entity == b.element.entity { return a.offset < b.offset }
            return forest.precedes(a.element.entity, b.element.entity)
        }
        // At most 50 keys: they are compared one by one.
        var result: [(key: ExactString, values: Grouped<IndexedValue, ServiceID>)] = []
        for (_, carrier) in carriers {
            var position = result.count
            if let known = result.firstIndex(where: { $0.key == carrier.key }) {
                position = known
            } else {
                result.append((carrier.key, Grouped()))
            }
            let service = forest.service(ofSegment: forest.owner[Int(carrier.entity)])
            result[position].values.insert(service, under: carrier.value)
        }
        return result.map { key, values in
            AnnotationSummary(
                key: key.value, values: values.groups.map { .init(value: $0.key, serviceIDs: $0.members.values) })
        }
    }
}

/// Up to so many values are compared one by one: that is cheaper than a hash table, and a trace seldom has more.
private let mostCompared = 12

/// Distinct values by first appearance.
struct Distinct<Value: Hashable> {
    private(set) var values: [Value] = []
    /// Empty while the values are few.
    private var seen: Set<Value> = []

    mutating func insert(_ value: Value) {
        if values.count < mostCompared {
            if !values.contains(value) { values.append(value) }
        } else {
            if seen.isEmpty { seen = Set(values) }
            if seen.insert(value).inserted { values.append(value) }
        }
    }
}

/// Distinct members per distinct key, both by first appearance.
struct Grouped<Key: Hashable, Member: Hashable> {
    private(set) var groups: [(key: Key, members: Distinct<Member>)] = []
    /// Empty while the groups are few.
    private var positions: [Key: Int] = [:]

    mutating func insert(_ member: Member, under key: Key) {
        if let position = position(of: key) {
            groups[position].members.insert(member)
        } else {
            if !positions.isEmpty { positions[key] = groups.count }
            var members = Distinct<Member>()
            members.insert(member)
            groups.append((key, members))
        }
    }

    private mutating func position(of key: Key) -> Int? {
        if groups.count < mostCompared { return groups.firstIndex { $0.key == key } }
        if positions.isEmpty {
            positions = Dictionary(uniqueKeysWithValues: groups.enumerated().map { ($0.element.key, $0.offset) })
        }
        return positions[key]
    }
}
