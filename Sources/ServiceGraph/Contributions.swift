// What traces contribute to the service graph: one observation per completed entity at its node and on its edges
// (`service-graph.md` §2–§6). In: forests and the facts of their links, to be added or taken back. Out: per minute, the
// encoded sum of everything added and taken back. The aggregator keeps one accumulator per account and batch.
//
// What an observation carries is what a windowed graph may show of it (ruling R-14): the second of its end, its class
// and times, the second its trace's root started, and whether that trace reports its nodes and has its root there.

import Segments
import TraceAssembly

/// The sum of contributions of any number of traces of one account. Adding a trace and taking the same trace back
/// leaves nothing.
public struct Contributions: Sendable {
    /// What is known of the nodes of an observation from its trace. Of an edge both ends; a node is a destination.
    struct Flags {
        static let sourceIsActive: UInt8 = 1
        static let sourceIsRoot: UInt8 = 2
        static let destinationIsActive: UInt8 = 4
        static let destinationIsRoot: UInt8 = 8
        /// The presence speaks of the source only (a link: the producer's trace).
        static let sourceOnly: UInt8 = 16
        /// The presence speaks of the edge and its destination only (a link: the consumer's trace).
        static let destinationOnly: UInt8 = 32
    }

    /// One observation as it was made; `subject` is a node, or an edge with `edgeBit`.
    struct Observation {
        static let edgeBit: Int32 = 1 << 30
        /// Class of an entity that is only there (an open one in a trace graph): no counts, no times.
        static let noClass: UInt8 = 4
        static let noAge: Micros = -1

        var second: Int64
        var rootStart: Int64
        /// Response time; on a link edge the event age or `noAge`.
        var response: Micros
        /// Service duration of a node; on a link edge the second the producer's root started.
        var duration: Int64
        var subject: Int32
        var outcome: UInt8
        var flags: UInt8
        var sign: Int8
        var isLink: Bool

        /// Adding both leaves nothing.
        @inline(__always)
        func isOpposite(of other: Observation) -> Bool {
            sign == -other.sign && subject == other.subject && second == other.second && rootStart == other.rootStart
                && response == other.response && duration == other.duration && outcome == other.outcome
                && flags == other.flags && isLink == other.isLink
        }
    }

    /// A resolved call that gave its edge an alias: for the order of the aliases.
    struct Sighting {
        var second: Int64
        var start: Micros
        var id: UInt64
        var edge: Int32
        var alias: Int32
        var count: Int64

        @inline(__always)
        func isOpposite(of other: Sighting) -> Bool {
            count == -other.count && edge == other.edge && alias == other.alias && second == other.second
                && start == other.start && id == other.id
        }
    }

    var tables = GraphTables()
    var observations: [Observation] = []
    var sightings: [Sighting] = []

    private var scratch = Scratch()
    private let clientType: Int32
    private let remoteType: Int32
    private var receivingAccount: (id: AccountID, text: Int32)?

    public init() {
        clientType = tables.strings.intern("client")
        remoteType = tables.strings.intern("remote")
    }

    /// Number of observations added and taken back since the start: a bound for the memory in use (64 bytes each).
    public var observationCount: Int { observations.count }

    /// Adds what a trace contributes.
    /// - Parameter links: facts of the links of the trace that resolve; the others are absent.
    public mutating func add(_ forest: Forest, links: [Link: LinkFacts]) {
        observe(forest, links: links, sign: 1, showsOpenEntities: false)
    }

    /// Takes back what the same trace contributed before it changed.
    /// - Parameter links: the facts that were used when it was added.
    public mutating func subtract(_ forest: Forest, links: [Link: LinkFacts]) {
        observe(forest, links: links, sign: -1, showsOpenEntities: false)
    }

    /// What a trace contributes before it changes, for `replace`. Belongs to one accumulator.
    public struct Before: Sendable {
        fileprivate var observations: [Observation]
        fileprivate var sightings: [Sighting]
        fileprivate var ends: [Ends]
    }

    /// What `replace` will take back. Nothing changes yet, and the forest may be dropped.
    /// - Parameter links: the facts that were used when the trace was added.
    public mutating func before(_ forest: Forest, links: [Link: LinkFacts]) -> Before {
        let (first, firstSighting) = (observations.count, sightings.count)
        scratch.ends = []
        observe(forest, links: links, sign: -1, showsOpenEntities: false)
        let result = Before(
            observations: Array(observations[first...]), sightings: Array(sightings[firstSighting...]),
            ends: scratch.takeEnds(from: Ends(observation: first, sighting: firstSighting)))
        observations.removeSubrange(first...)
        sightings.removeSubrange(firstSighting...)
        return result
    }

    /// `subtract` of the trace as it was and `add` of the trace as it is, less what is the same in both: of a large trace
    /// only what changed is sorted and written. A few sums that are the same may still be taken back and added.
    /// - Parameter forest: its entities begin with those of `before`, in the same order.
    /// - Returns: number of observations taken back.
    public mutating func replace(_ before: Before, by forest: Forest, links: [Link: LinkFacts]) -> Int {
        let (first, firstSighting) = (observations.count, sightings.count)
        scratch.ends = []
        observe(forest, links: links, sign: 1, showsOpenEntities: false)
        let ends = scratch.takeEnds(from: Ends(observation: first, sighting: firstSighting))
        Self.cancel(
            before.observations, before.ends.lazy.map(\.observation), &observations, first,
            ends.lazy.map(\.observation)
        ) { $0.isOpposite(of: $1) }
        Self.cancel(
            before.sightings, before.ends.lazy.map(\.sighting), &sightings, firstSighting, ends.lazy.map(\.sighting)
        ) { $0.isOpposite(of: $1) }
        return observations.suffix(from: first).count { $0.sign < 0 }
    }

    /// Adds `old` to `all`, of which the part from `first` on is new, but neither what an entity gave before nor what it
    /// gives now where both are the same.
    /// - Parameter oldEnds: for each entity where its elements end, counted from the first one.
    private static func cancel<T>(
        _ old: [T], _ oldEnds: some Collection<Int>, _ all: inout [T], _ first: Int,
        _ newEnds: some Collection<Int>, isOpposite: (T, T) -> Bool
    ) {
        var kept: [T] = []
        var next = first
        var (oldStart, newStart) = (0, first)
        func keep(_ oldEnd: Int, _ newEnd: Int) {
            kept += old[oldStart..<oldEnd]
            for index in newStart..<newEnd {
                all[next] = all[index]
                next += 1
            }
        }
        for (oldOffset, newOffset) in zip(oldEnds, newEnds) {
            let (oldEnd, newEnd) = (oldOffset, first + newOffset)
            if !old[oldStart..<oldEnd].elementsEqual(all[newStart..<newEnd], by: isOpposite) { keep(oldEnd, newEnd) }
            (oldStart, newStart) = (oldEnd, newEnd)
        }
        // Entities that came since, and links.
        keep(old.count, all.count)
        all.removeSubrange(next...)
        all += kept
    }

    /// Adds the whole trace for a trace graph: open entities are there, without statistics (ruling R-17).
    mutating func addWithOpenEntities(_ forest: Forest, links: [Link: LinkFacts]) {
        observe(forest, links: links, sign: 1, showsOpenEntities: true)
    }
}

/// The contributions of one trace.
public func contributions(of forest: Forest, links: [Link: LinkFacts] = [:]) -> Contributions {
    var result = Contributions()
    result.add(forest, links: links)
    return result
}

// MARK: - Observing

extension Contributions {
    private struct Scratch {
        /// Node of each entity that makes one, -1 for the others.
        var nodeOf: [Int32] = []
        /// Per node of the tables: the trace it was last reported in, and the flags of that trace.
        var reportedIn: [UInt32] = []
        var trace: UInt32 = 0
        var rootNode: Int32 = -1
        /// For `replace`: where what each entity gave ends in the lists. Nil: not asked for.
        var ends: [Ends]?

        /// - Returns: counted from `start`.
        mutating func takeEnds(from start: Ends) -> [Ends] {
            defer { ends = nil }
            return (ends ?? []).map {
                Ends(observation: $0.observation - start.observation, sighting: $0.sighting - start.sighting)
            }
        }
    }

    fileprivate struct Ends {
        var observation: Int
        var sighting: Int
    }

    private mutating func observe(_ forest: Forest, links: [Link: LinkFacts], sign: Int8, showsOpenEntities: Bool) {
        // A trace without a root has no segment, so nothing in it is attached.
        guard forest.root >= 0 else { return }
        forest.trace.entities.withUnsafeBufferPointer { buffer in
            // A root is one of the entities, so there is a base address.
            guard let entities = buffer.baseAddress else { return }
            observe(forest, entities, links: links, sign: sign, showsOpenEntities: showsOpenEntities)
        }
    }

    private mutating func observe(
        _ forest: Forest, _ entities: UnsafePointer<TraceEntity>, links: [Link: LinkFacts], sign: Int8,
        showsOpenEntities: Bool
    ) {
        let root = Int(forest.root)
        let account = accountText(of: forest.trace)
        let isLinked = rootIsLinked(forest) { links[$0] != nil }
        nameNodes(forest, entities, account: account)
        scratch.rootNode = isLinked ? -1 : scratch.nodeOf[root]
        let rootStart = floorDivide(entities[root].entity.start, by: 1_000_000)

        for index in 0..<forest.count {
            defer { scratch.ends?.append(Ends(observation: observations.count, sighting: sightings.count)) }
            let owner = Int(forest.owner[index])
            guard owner >= 0 else { continue }
            let node = scratch.nodeOf[index]
            guard node >= 0 else { continue }
            if owner == index {
                observe(
                    node: node, at: index, entities, duration: forest.serviceDuration(of: Int32(index)) ?? 0,
                    isObserved: true, rootStart: rootStart, sign: sign, showsOpenEntities: showsOpenEntities)
                observeEdge(
                    toSegment: index, forest, entities, rootIsLinked: isLinked, account: account, rootStart: rootStart,
                    sign: sign, showsOpenEntities: showsOpenEntities)
            } else {
                // A leaf call. Nothing of a segment is observed until the segment completes.
                let isObserved = !entities[owner].entity.isOpen
                let duration = max(0, (entities[index].entity.end ?? 0) &- entities[index].entity.start)
                observe(
                    node: node, at: index, entities, duration: duration, isObserved: isObserved, rootStart: rootStart,
                    sign: sign, showsOpenEntities: showsOpenEntities)
                observe(
                    edgeFrom: scratch.nodeOf[owner], to: node, at: index, entities, isObserved: isObserved,
                    rootStart: rootStart, sign: sign, showsOpenEntities: showsOpenEntities)
            }
        }
        guard !links.isEmpty else { return }
        forEachLinkInUse(of: forest.trace) { index, link in
            guard let facts = links[link] else { return }
            observe(
                link: facts, toSegment: index, entities, rootStart: rootStart, sign: sign,
                showsOpenEntities: showsOpenEntities)
        }
    }

    private mutating func accountText(of trace: Trace) -> Int32 {
        if let known = receivingAccount, known.id == trace.account { return known.text }
        let text = tables.strings.intern(trace.account.description)
        receivingAccount = (trace.account, text)
        return text
    }

    /// The node of every segment and leaf call; marks those that segments report.
    private mutating func nameNodes(_ forest: Forest, _ entities: UnsafePointer<TraceEntity>, account: Int32) {
        scratch.trace &+= 1
        scratch.nodeOf.removeAll(keepingCapacity: true)
        for index in 0..<forest.count {
            if forest.owner[index] == Int32(index) {
                let label = tables.label(name: entities[index].entity.name, type: entities[index].entity.origin)
                let node = tables.node(label: label, account: accountText(entities[index].entity.accountID, account))
                scratch.nodeOf.append(node)
                while scratch.reportedIn.count <= Int(node) { scratch.reportedIn.append(0) }
                scratch.reportedIn[Int(node)] = scratch.trace
            } else if entities[index].entity.namespace != .none, entities[index].entity.kind == .subsegment,
                forest.isAttached(Int32(index)), !forest.isResolvedCall(Int32(index))
            {
                // A leaf call, asked field by field: `isLeafCall` copies the entity where it is not inlined.
                let label = inferredLabel(of: entities + index)
                scratch.nodeOf.append(
                    tables.node(label: label, account: accountText(entities[index].entity.accountID, account)))
            } else {
                scratch.nodeOf.append(-1)
            }
        }
    }

    private mutating func accountText(_ stated: String?, _ receiving: Int32) -> Int32 {
        guard let stated else { return receiving }
        return tables.strings.intern(stated)
    }

    /// Reads fields one by one: handing over a whole entity would copy it.
    private mutating func inferredLabel(of call: UnsafePointer<TraceEntity>) -> Int32 {
        guard call.pointee.entity.namespace == .aws else {
            return tables.label(nameNumber: tables.strings.intern(call.pointee.entity.name), typeNumber: remoteType)
        }
        let service = InferredService(
            name: call.pointee.entity.name, namespace: .aws, awsCall: call.pointee.entity.awsCall)
        return tables.label(name: service.name, type: service.type)
    }

    @inline(__always)
    private func flags(ofDestination node: Int32) -> UInt8 {
        let isActive = Int(node) < scratch.reportedIn.count && scratch.reportedIn[Int(node)] == scratch.trace
        return (isActive ? Flags.destinationIsActive : 0) | (node == scratch.rootNode ? Flags.destinationIsRoot : 0)
    }

    /// - Parameter isObserved: false when a segment around the entity is still open.
    private mutating func observe(
        node: Int32, at index: Int, _ entities: UnsafePointer<TraceEntity>, duration: Micros, isObserved: Bool,
        rootStart: Int64, sign: Int8, showsOpenEntities: Bool
    ) {
        append(
            subject: node, entity: index, entities, duration: duration, isObserved: isObserved,
            flags: flags(ofDestination: node),
            rootStart: rootStart, sign: sign, showsOpenEntities: showsOpenEntities)
    }

    /// - Returns: whether there is such an observation.
    @discardableResult
    private mutating func observe(
        edgeFrom source: Int32, to destination: Int32, at index: Int, _ entities: UnsafePointer<TraceEntity>,
        isObserved: Bool, rootStart: Int64, sign: Int8, showsOpenEntities: Bool
    ) -> (edge: Int32, second: Int64)? {
        let edge = tables.edge(from: source, to: destination, isLink: false)
        let flags = flags(ofDestination: destination) | flags(ofDestination: source) >> 2
        let second = append(
            subject: edge | Observation.edgeBit, entity: index, entities, duration: 0, isObserved: isObserved,
            flags: flags,
            rootStart: rootStart, sign: sign, showsOpenEntities: showsOpenEntities)
        return second.map { (edge, $0) }
    }

    @discardableResult
    private mutating func append(
        subject: Int32, entity index: Int, _ entities: UnsafePointer<TraceEntity>, duration: Micros, isObserved: Bool,
        flags: UInt8, rootStart: Int64, sign: Int8, showsOpenEntities: Bool
    ) -> Int64? {
        if isObserved, let end = entities[index].entity.end {
            let second = floorDivide(end, by: 1_000_000)
            observations.append(
                Observation(
                    second: second, rootStart: rootStart, response: max(0, end &- entities[index].entity.start),
                    duration: duration, subject: subject, outcome: entities[index].entity.outcome.countedAs.rawValue,
                    flags: flags, sign: sign, isLink: false))
            return second
        }
        guard showsOpenEntities else { return nil }
        let second = floorDivide(entities[index].entity.start, by: 1_000_000)
        observations.append(
            Observation(
                second: second, rootStart: rootStart, response: 0, duration: 0, subject: subject,
                outcome: Observation.noClass,
                flags: flags, sign: sign, isLink: false))
        return second
    }

    /// The edge from the caller of a segment, or from the client of the root.
    private mutating func observeEdge(
        toSegment index: Int, _ forest: Forest, _ entities: UnsafePointer<TraceEntity>, rootIsLinked: Bool,
        account: Int32, rootStart: Int64, sign: Int8, showsOpenEntities: Bool
    ) {
        let node = scratch.nodeOf[index]
        let above = Int(forest.parent[index])
        guard above >= 0 else {
            guard index == Int(forest.root), !rootIsLinked else { return }
            let label = tables.label(
                nameNumber: tables.labelParts(tables.nodeParts(node).label).name, typeNumber: clientType)
            let client = tables.node(label: label, account: tables.nodeParts(node).account)
            observe(
                edgeFrom: client, to: node, at: index, entities, isObserved: true, rootStart: rootStart, sign: sign,
                showsOpenEntities: showsOpenEntities)
            return
        }
        let caller = Int(forest.owner[above])
        // `isRemoteCall` by its fields: asking the entity would copy it.
        guard entities[above].entity.kind == .subsegment, entities[above].entity.namespace != .none else {
            observe(
                edgeFrom: scratch.nodeOf[caller], to: node, at: index, entities, isObserved: true, rootStart: rootStart,
                sign: sign, showsOpenEntities: showsOpenEntities)
            return
        }
        let observed = observe(
            edgeFrom: scratch.nodeOf[caller], to: node, at: above, entities,
            isObserved: !entities[caller].entity.isOpen,
            rootStart: rootStart, sign: sign, showsOpenEntities: showsOpenEntities)
        guard let observed else { return }
        sightings.append(
            Sighting(
                second: observed.second, start: entities[above].entity.start, id: entities[above].entity.id.rawValue,
                edge: observed.edge, alias: inferredLabel(of: entities + above), count: Int64(sign)))
    }

    private mutating func observe(
        link facts: LinkFacts, toSegment index: Int, _ entities: UnsafePointer<TraceEntity>, rootStart: Int64,
        sign: Int8,
        showsOpenEntities: Bool
    ) {
        guard showsOpenEntities || !entities[index].entity.isOpen else { return }
        let source = tables.node(
            label: tables.label(name: facts.source.name.value, type: facts.source.type?.value),
            account: tables.strings.intern(facts.source.account.value))
        let edge = tables.edge(from: source, to: scratch.nodeOf[index], isLink: true)
        var flags = flags(ofDestination: scratch.nodeOf[index])
        if facts.sourceIsActive { flags |= Flags.sourceIsActive }
        if facts.sourceIsRoot { flags |= Flags.sourceIsRoot }
        let start = entities[index].entity.start
        let age = facts.targetEnd.map { max(0, start &- $0) } ?? Observation.noAge
        let end = entities[index].entity.end
        observations.append(
            Observation(
                second: floorDivide(end ?? start, by: 1_000_000), rootStart: rootStart,
                response: end == nil ? Observation.noAge : age, duration: facts.rootStartSecond,
                subject: edge | Observation.edgeBit,
                outcome: end == nil ? Observation.noClass : entities[index].entity.outcome.countedAs.rawValue,
                flags: flags, sign: sign, isLink: true))
    }
}
