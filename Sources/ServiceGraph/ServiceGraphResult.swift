// What GetServiceGraph and GetTraceGraph answer, as values in the wire's words; XRayAPI renders them as JSON.

import Segments

/// The list `Services`, in order of `ReferenceId`.
public struct ServiceGraphResult: Sendable, Equatable {
    public var services: [GraphService]
    public init(services: [GraphService]) { self.services = services }
}

/// One node (`service-graph.md` §2). `Names` is `[name]`.
public struct GraphService: Sendable, Equatable {
    public enum State: String, Sendable { case active, passive, unknown }

    /// 0..<n over the whole result, whatever page it stands on.
    public var referenceID: Int
    public var name: String
    /// Nil: omitted.
    public var type: String?
    /// Nil when it is the receiving account: omitted.
    public var accountID: String?
    /// False: omitted.
    public var isRoot: Bool
    public var state: State
    /// Whole seconds since 1970; nil in trace graphs: omitted.
    public var startTime: Int64?
    public var endTime: Int64?
    public var edges: [GraphEdge]
    /// Nil on client nodes: `SummaryStatistics` and both histograms are omitted together.
    public var statistics: NodeStatistics?

    public init(
        referenceID: Int, name: String, type: String?, accountID: String? = nil, isRoot: Bool = false, state: State,
        startTime: Int64? = nil, endTime: Int64? = nil, edges: [GraphEdge] = [], statistics: NodeStatistics? = nil
    ) {
        self.referenceID = referenceID
        self.name = name
        self.type = type
        self.accountID = accountID
        self.isRoot = isRoot
        self.state = state
        self.startTime = startTime
        self.endTime = endTime
        self.edges = edges
        self.statistics = statistics
    }
}

/// The three fields that client nodes do not have.
public struct NodeStatistics: Sendable, Equatable {
    public var summary: SummaryStatistics
    public var durationHistogram: [HistogramEntry]
    public var responseTimeHistogram: [HistogramEntry]

    public init(
        summary: SummaryStatistics, durationHistogram: [HistogramEntry], responseTimeHistogram: [HistogramEntry]
    ) {
        self.summary = summary
        self.durationHistogram = durationHistogram
        self.responseTimeHistogram = responseTimeHistogram
    }
}

/// One edge (`service-graph.md` §5).
public struct GraphEdge: Sendable, Equatable {
    public struct Alias: Sendable, Equatable {
        public var name: String
        /// Nil: omitted.
        public var type: String?

        public init(name: String, type: String?) {
            self.name = name
            self.type = type
        }
    }

    /// `ReferenceId`: that of the destination node.
    public var referenceID: Int
    public var startTime: Int64?
    public var endTime: Int64?
    public var summary: SummaryStatistics
    /// True: `EdgeType` is `link`; false: omitted.
    public var isLink: Bool
    /// `ReceivedEventAgeHistogram` of a link edge, `ResponseTimeHistogram` of any other.
    public var histogram: [HistogramEntry]
    public var aliases: [Alias]

    public init(
        referenceID: Int, startTime: Int64? = nil, endTime: Int64? = nil, summary: SummaryStatistics,
        isLink: Bool = false,
        histogram: [HistogramEntry], aliases: [Alias] = []
    ) {
        self.referenceID = referenceID
        self.startTime = startTime
        self.endTime = endTime
        self.summary = summary
        self.isLink = isLink
        self.histogram = histogram
        self.aliases = aliases
    }
}

/// `SummaryStatistics`. Every count is written, 0 included.
public struct SummaryStatistics: Sendable, Equatable {
    public var okCount: Int64 = 0
    public var throttleCount: Int64 = 0
    /// `ErrorStatistics.OtherCount`.
    public var errorCount: Int64 = 0
    /// `FaultStatistics.OtherCount` and `.TotalCount`.
    public var faultCount: Int64 = 0
    /// Exact sum of the response times; the wire has seconds rounded half up to 3 decimals.
    public var totalResponseTime: Micros = 0

    public init() {}

    /// `ErrorStatistics.TotalCount`.
    public var errorTotalCount: Int64 { throttleCount + errorCount }
    public var totalCount: Int64 { okCount + errorTotalCount + faultCount }
}
