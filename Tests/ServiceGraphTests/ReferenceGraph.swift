// The service graph computed the slow way, from whole traces and straight from the rules of `service-graph.md`: lists of
// observations, no integers for nodes, no blocks. The fast way must give the same for every input.

import Segments
import ServiceGraph
import TraceAssembly

struct ReferenceGraph {
    struct Observation {
        struct End {
            var node: NodeIdentity
            var isActive: Bool
            var isRoot: Bool
            var rootStart: Int64
        }

        /// One for a node, two (source, destination) for an edge.
        var ends: [End]
        var isLink = false
        var second: Int64
        /// Nil: open, only there.
        var outcome: OutcomeClass?
        var response: Micros = 0
        var duration: Micros = 0
        var age: Micros?
        var alias: (name: String, type: String, start: Micros, id: EntityID)?
    }

    var observations: [Observation] = []
    let traces: StoredTraces
    let showsOpen: Bool

    init(_ traces: StoredTraces, showsOpen: Bool = false) {
        self.traces = traces
        self.showsOpen = showsOpen
        for forest in traces.forests { observe(forest) }
    }

    private static func second(_ micros: Micros) -> Int64 {
        Int64((Double(micros) / 1_000_000).rounded(.down))
    }

    private func reported(_ entity: Entity) -> NodeIdentity {
        NodeIdentity(
            name: ExactString(entity.name), type: entity.origin.map { ExactString($0) },
            account: ExactString(entity.accountID ?? testAccount.description))
    }

    private func inferred(_ entity: Entity) -> NodeIdentity {
        let service = InferredService(of: entity)
        return NodeIdentity(
            name: ExactString(service.name), type: ExactString(service.type),
            account: ExactString(entity.accountID ?? testAccount.description))
    }

    private func rootIsLinked(_ forest: Forest) -> Bool {
        forest[forest.root].links.contains { target(of: $0) != nil }
    }

    private func target(of link: Link) -> (forest: Forest, index: Int32)? {
        guard let trace = traces.traces[link.traceID], let index = trace.indexes[link.entityID] else { return nil }
        let forest = Forest(trace)
        return forest.isAttached(index) ? (forest, index) : nil
    }

    private func end(_ node: NodeIdentity, in forest: Forest) -> Observation.End {
        let segments = (0..<Int32(forest.count)).filter { forest.isSegment($0) }
        return Observation.End(
            node: node, isActive: segments.contains { reported(forest[$0]) == node },
            isRoot: !rootIsLinked(forest) && reported(forest[forest.root]) == node,
            rootStart: Self.second(forest[forest.root].start))
    }

    /// The observation of an entity at a node or an edge; nil when it is not to be made.
    private func observation(_ ends: [Observation.End], of entity: Entity, in segment: Entity) -> Observation? {
        guard let end = entity.end, !segment.isOpen else {
            return showsOpen ? Observation(ends: ends, second: 0) : nil
        }
        return Observation(
            ends: ends, second: Self.second(end), outcome: entity.outcome.countedAs,
            response: max(0, end - entity.start),
            duration: max(0, end - entity.start))
    }

    private mutating func observe(_ forest: Forest) {
        guard forest.root >= 0 else { return }
        for index in 0..<Int32(forest.count) where forest.isAttached(index) {
            let entity = forest[index]
            if entity.kind == .segment {
                observeSegment(index, forest)
            } else if forest.isLeafCall(index) {
                let owner = forest[forest.owner[Int(index)]]
                let node = end(inferred(entity), in: forest)
                if let seen = observation([node], of: entity, in: owner) { observations.append(seen) }
                if let seen = observation([end(reported(owner), in: forest), node], of: entity, in: owner) {
                    observations.append(seen)
                }
            }
        }
    }

    private mutating func observeSegment(_ index: Int32, _ forest: Forest) {
        let segment = forest[index]
        let node = end(reported(segment), in: forest)
        if var seen = observation([node], of: segment, in: segment) {
            seen.duration = 0
            for other in 0..<Int32(forest.count) where forest.owner[Int(other)] == index {
                guard let end = forest[other].end, end >= forest[other].start else { continue }
                seen.duration = max(seen.duration, end - segment.start)
            }
            observations.append(seen)
        }
        let above = forest.parent[Int(index)]
        if above >= 0 {
            let caller = forest[forest.owner[Int(above)]]
            let ends = [end(reported(caller), in: forest), node]
            if forest[above].isRemoteCall {
                if var seen = observation(ends, of: forest[above], in: caller) {
                    let alias = InferredService(of: forest[above])
                    seen.alias = (alias.name, alias.type, forest[above].start, forest[above].id)
                    observations.append(seen)
                }
            } else if let seen = observation(ends, of: segment, in: segment) {
                observations.append(seen)
            }
        } else if index == forest.root, !rootIsLinked(forest) {
            var client = reported(segment)
            client.type = "client"
            if let seen = observation([end(client, in: forest), node], of: segment, in: segment) {
                observations.append(seen)
            }
        }
        for link in segment.links {
            guard let (producer, target) = target(of: link) else { continue }
            let entity = producer[target]
            let source =
                producer.isLeafCall(target)
                ? inferred(entity)
                : reported(
                    producer[
                        producer.callees(of: target).first.flatMap { entity.isRemoteCall ? $0 : nil }
                            ?? producer.owner[Int(target)]])
            if var seen = observation([end(source, in: producer), node], of: segment, in: segment) {
                seen.isLink = true
                seen.response = 0
                seen.age = entity.end.map { max(0, segment.start - $0) }
                observations.append(seen)
            }
        }
    }

    // MARK: The answer

    private struct EdgeKey: Hashable {
        var source: NodeIdentity
        var destination: NodeIdentity
        var isLink: Bool
    }

    func graph(_ window: Range<Int64>?, showsTimes: Bool = true) -> ServiceGraphResult {
        let seen = observations.filter { window?.contains($0.second) ?? true }
        var ends: [NodeIdentity: [Observation.End]] = [:]
        for observation in seen { for end in observation.ends { ends[end.node, default: []].append(end) } }
        let nodes = ends.keys.sorted {
            if $0.name != $1.name { return $0.name < $1.name }
            if $0.type != $1.type {
                return ($0.type?.value).map { ExactString("1" + $0) } ?? "0" < ($1.type?.value).map {
                    ExactString("1" + $0)
                } ?? "0"
            }
            return $0.account < $1.account
        }
        let reference = Dictionary(uniqueKeysWithValues: nodes.enumerated().map { ($1, $0) })
        let edges = Dictionary(grouping: seen.filter { $0.ends.count == 2 }) {
            EdgeKey(source: $0.ends[0].node, destination: $0.ends[1].node, isLink: $0.isLink)
        }
        let services = nodes.map { node in
            let at = seen.filter { $0.ends.count == 1 && $0.ends[0].node == node }
            let traces = ends[node] ?? []
            let isActive = traces.contains { $0.isActive }
            let starts = traces.map(\.rootStart)
            let out = edges.keys.filter { $0.source == node }.sorted {
                ((reference[$0.destination] ?? 0), $0.isLink ? 1 : 0) < (
                    (reference[$1.destination] ?? 0), $1.isLink ? 1 : 0
                )
            }
            let graphEdges = out.map { key in
                let on = edges[key] ?? []
                let edgeStarts = key.isLink ? on.map { $0.ends[1].rootStart } : starts
                var aliases: [GraphEdge.Alias] = []
                for alias in on.compactMap(\.alias).sorted(by: { ($0.start, $0.id) < ($1.start, $1.id) })
                where !aliases.contains(where: {
                    ExactString($0.name) == ExactString(alias.name)
                        && ExactString($0.type ?? "") == ExactString(alias.type)
                }) {
                    aliases.append(GraphEdge.Alias(name: alias.name, type: alias.type))
                }
                let completed = on.filter { $0.outcome != nil }
                return GraphEdge(
                    referenceID: reference[key.destination] ?? -1, startTime: showsTimes ? edgeStarts.min() : nil,
                    endTime: showsTimes ? edgeStarts.max().map { $0 + 1 } : nil, summary: Self.summary(on),
                    isLink: key.isLink,
                    histogram: Self.histogram(key.isLink ? completed.compactMap(\.age) : completed.map(\.response)),
                    aliases: aliases)
            }
            let completed = at.filter { $0.outcome != nil }
            return GraphService(
                referenceID: reference[node] ?? -1, name: node.name.value, type: node.type?.value,
                accountID: node.account.value == testAccount.description ? nil : node.account.value,
                isRoot: traces.contains { $0.isRoot },
                state: isActive ? .active : node.type == "remote" ? .passive : .unknown,
                startTime: showsTimes ? starts.min() : nil, endTime: showsTimes ? starts.max().map { $0 + 1 } : nil,
                edges: graphEdges,
                statistics: node.type == "client" && !isActive
                    ? nil
                    : NodeStatistics(
                        summary: Self.summary(at), durationHistogram: Self.histogram(completed.map(\.duration)),
                        responseTimeHistogram: Self.histogram(completed.map(\.response))))
        }
        return ServiceGraphResult(services: services)
    }

    private static func summary(_ observations: [Observation]) -> SummaryStatistics {
        var summary = SummaryStatistics()
        for observation in observations {
            switch observation.outcome {
            case .throttle: summary.throttleCount += 1
            case .fault: summary.faultCount += 1
            case .error: summary.errorCount += 1
            case .ok: summary.okCount += 1
            case nil: continue
            }
            summary.totalResponseTime += observation.response
        }
        return summary
    }

    static func histogram(_ values: [Micros]) -> [HistogramEntry] {
        func width(_ value: Micros) -> Micros {
            value < 1_000_000 ? 1_000 : value < 10_000_000 ? 10_000 : value < 100_000_000 ? 100_000 : 1_000_000
        }
        let buckets = Dictionary(grouping: values) { $0 / width($0) * width($0) }
        let rows = buckets.keys.sorted().map { buckets[$0] ?? [] }
        guard rows.count > 100 else { return rows.map(entry) }
        var merged: [[Micros]] = []
        var next: [Micros] = []
        for row in rows.dropFirst().dropLast() {
            next += row
            if Double(next.count) >= Double(values.count) / 98 {
                merged.append(next)
                next = []
            }
        }
        if !next.isEmpty {
            if merged.isEmpty { merged.append(next) } else { merged[merged.count - 1] += next }
        }
        return ([rows[0]] + merged + [rows[rows.count - 1]]).map(entry)
    }

    private static func entry(_ values: [Micros]) -> HistogramEntry {
        let count = Int64(values.count)
        let doubled = values.reduce(0, +) * 2
        return HistogramEntry(value: (doubled + 1_000 * count) / (2_000 * count) * 1_000, count: count)
    }
}
