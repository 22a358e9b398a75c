// What a run must have produced if every document it sent was stored and counted exactly once: totals per node, per
// edge, per second, and the ids of a few whole traces. Filled by the generator, compared by `LoadCheck`.

import Segments

/// Observations of one node or edge by class, as `SummaryStatistics` shows them (`service-graph.md` §4).
public struct ClassCounts: Equatable, Sendable {
    public var ok = 0
    public var error = 0
    public var throttle = 0
    public var fault = 0
    public var responseTimeMicros: Int64 = 0

    public init() {}

    public var total: Int { ok + error + throttle + fault }

    @inline(__always)
    mutating func record(_ outcome: OutcomeClass, micros: Int64) {
        switch outcome {
        case .ok: ok += 1
        case .error: error += 1
        case .throttle: throttle += 1
        case .fault: fault += 1
        }
        responseTimeMicros += micros
    }

    mutating func add(_ other: ClassCounts) {
        ok += other.ok
        error += other.error
        throttle += other.throttle
        fault += other.fault
        responseTimeMicros += other.responseTimeMicros
    }
}

public struct ExpectedEdge: Hashable, Sendable {
    public var source: ExpectedNode
    public var destination: ExpectedNode
}

/// One whole trace, kept to be read back.
public struct ExpectedTrace: Sendable {
    public var id: TraceID
    public var segmentIDs: Set<EntityID>
    public var leafCalls: Int
    public var startMicros: Micros
}

public struct Expectation: Sendable {
    public var documents = 0
    /// Bytes of the documents as JSON text, without the escaping that sending them inside a JSON string needs.
    public var documentBytes = 0
    public var traces = 0
    public var tracesByRootSecond: [Int64: Int] = [:]
    public var nodes: [ExpectedNode: ClassCounts] = [:]
    public var edges: [ExpectedEdge: ClassCounts] = [:]
    public var sample: [ExpectedTrace] = []
    /// Earliest and latest end of any observation.
    public var firstEnd = Micros.max
    public var lastEnd = Micros.min

    public init() {}

    public mutating func add(_ other: Expectation) {
        documents += other.documents
        documentBytes += other.documentBytes
        traces += other.traces
        tracesByRootSecond.merge(other.tracesByRootSecond, uniquingKeysWith: +)
        for (node, counts) in other.nodes { nodes[node, default: ClassCounts()].add(counts) }
        for (edge, counts) in other.edges { edges[edge, default: ClassCounts()].add(counts) }
        sample += other.sample
        firstEnd = min(firstEnd, other.firstEnd)
        lastEnd = max(lastEnd, other.lastEnd)
    }
}
