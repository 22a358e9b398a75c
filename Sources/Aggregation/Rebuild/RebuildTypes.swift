// What a rebuild is told, what it tells while it works, and what it found.

import Segments
import TraceStore

public struct RebuildOptions: Sendable {
    /// `max_trace_bytes` of the aggregators; 0 = no limit.
    public var maxTraceBytes = 512_000
    public var segmentLimits = SegmentLimits()
    /// As of the maintenance: what it has removed from the tables does not come back from a longer log.
    public var retentionDays = 30
    /// Replay begins with the records received from then on (microseconds since 1970); nil: with the first of the log.
    public var from: Micros?
    /// Throws a rebuild away that was begun and not finished.
    public var isRestarting = false
    /// Exchanges the tables even if they differ.
    public var acceptsDifferences = false
    /// Threads that fold; each takes a share of the partitions.
    public var workerCount = 2
    /// Bounds of one batch of a worker. Larger batches fold more traces in one piece.
    public var batchRecords = 16_000
    public var batchBytes = 12 << 20
    /// Entities of growing traces each worker keeps in memory.
    public var cacheEntities = 60_000

    public init() {}
}

public struct RebuildProgress: Sendable, Equatable {
    public enum Part: String, Sendable, CaseIterable {
        case documents = "stored documents"
        case log = "replaying the log"
        case indexes = "making indexes"
        case links = "resolving links"
        case comparison = "comparing"
        case exchange = "exchanging the tables"
    }

    public var part: Part
    /// Traces of `.documents`, records of `.log`, else steps; `total` may grow while documents come in.
    public var done: Int
    public var total: Int

    public init(_ part: Part, done: Int = 0, total: Int = 0) {
        self.part = part
        self.done = done
        self.total = total
    }
}

public struct RebuildOutcome: Sendable {
    /// The new tables serve.
    public var isExchanged = false
    /// It went on with what an earlier run had begun.
    public var isContinued = false
    public var plan: RebuildPlan
    /// What was compared: tables, documents, minutes of the graph, facts of links.
    public var comparisons: [RowComparison] = []
    /// Records replayed and traces folded from stored documents by this run.
    public var recordCount = 0
    public var documentedTraceCount = 0
    public var replayTime: Duration = .zero
    /// How long the aggregators were held still.
    public var fencedTime: Duration = .zero

    public var isIdentical: Bool { comparisons.allSatisfy { $0.differing == 0 } }
}

public enum RebuildError: Error, CustomStringConvertible {
    /// Retention has removed records that were still to be replayed.
    case logWasCut(partition: Int, offset: Int64, first: Int64)
    /// The log ends before the tables that were made from it.
    case logEnded(partition: Int, offset: Int64)
    case fenced
    case conflict
    case linksDoNotSettle

    public var description: String {
        switch self {
        case .logWasCut(let partition, let offset, let first):
            "retention removed offsets \(offset) to \(first - 1) of partition \(partition) before they were replayed; begin again with --restart"
        case .logEnded(let partition, let offset):
            "partition \(partition) of the log ends at \(offset), before what the tables have of it; is this their log?"
        case .fenced: "another process moves the positions of the new tables"
        case .conflict: "two partitions changed the same trace"
        case .linksDoNotSettle: "links between traces do not come to rest"
        }
    }
}
