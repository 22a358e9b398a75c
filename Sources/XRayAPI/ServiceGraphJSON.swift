// Writes service graphs: `Services` of `GetServiceGraph` and `GetTraceGraph`, keys in the order of the worked examples of
// `service-graph.md` §10 and §11. Linear in the size of the graph.

import Crypto
import JSONText
import Segments
import ServiceGraph

/// `GetTraceGraph`.
public struct GetTraceGraphResponse {
    public var graph: ServiceGraphResult

    public init(graph: ServiceGraphResult) { self.graph = graph }

    public var body: [UInt8] {
        var writer = JSONWriter(reservingCapacity: 64 + graph.services.count * 768)
        writer.beginObject()
        writer.key("Services")
        writer.beginArray()
        for service in graph.services { writer.service(service) }
        writer.endArray()
        writer.endObject()
        return writer.bytes
    }
}

/// `GetServiceGraph`, one page.
public struct GetServiceGraphResponse {
    /// Whole seconds since 1970, as used.
    public var window: Range<Int64>
    /// Rendered services, comma-separated: a page of `ServiceGraphPages`.
    public var services: [UInt8]
    public var containsOldGroupVersions: Bool
    public var nextToken: String?

    public init(window: Range<Int64>, services: [UInt8], containsOldGroupVersions: Bool = false, nextToken: String?) {
        self.window = window
        self.services = services
        self.containsOldGroupVersions = containsOldGroupVersions
        self.nextToken = nextToken
    }

    public var body: [UInt8] {
        var writer = JSONWriter(reservingCapacity: services.count + 256)
        writer.beginObject()
        writer.key("StartTime")
        writer.int(window.lowerBound)
        writer.key("EndTime")
        writer.int(window.upperBound)
        writer.key("Services")
        writer.beginArray()
        if !services.isEmpty { writer.raw(services) }
        writer.endArray()
        writer.key("ContainsOldGroupVersions")
        writer.bool(containsOldGroupVersions)
        if let nextToken {
            writer.key("NextToken")
            writer.string(nextToken)
        }
        writer.endObject()
        return writer.bytes
    }
}

/// A graph rendered once and cut into pages.
public struct ServiceGraphPages: Sendable {
    /// Comma-separated services of each page; one empty page for an empty graph.
    public let pages: [[UInt8]]
    /// 16 bytes that are equal for graphs with the same nodes in the same order: then every `ReferenceId` means the same
    /// node, and pages of the two may be put together.
    public let digest: [UInt8]
    public let containsOldGroupVersions: Bool

    public init(
        _ graph: ServiceGraphResult, containsOldGroupVersions: Bool = false,
        pageServices: Int = GetServiceGraphRequest.pageServices
    ) {
        self.containsOldGroupVersions = containsOldGroupVersions
        var hash = RequestHash()
        for service in graph.services {
            hash.add(service.name)
            hash.add(service.type)
            hash.add(service.accountID)
        }
        digest = hash.finalized()
        pages = stride(from: 0, to: max(graph.services.count, 1), by: pageServices).map { start in
            let services = graph.services[start..<min(start + pageServices, graph.services.count)]
            var writer = JSONWriter(reservingCapacity: services.count * 768)
            for service in services { writer.service(service) }
            return writer.bytes
        }
    }

    public var byteCount: Int { pages.reduce(0) { $0 + $1.count } }
}

extension JSONWriter {
    mutating func service(_ service: GraphService) {
        beginObject()
        key("ReferenceId")
        int(service.referenceID)
        nameAndNames(service.name)
        if service.isRoot {
            key("Root")
            bool(true)
        }
        if let accountID = service.accountID {
            key("AccountId")
            string(accountID)
        }
        if let type = service.type {
            key("Type")
            string(type)
        }
        key("State")
        string(service.state.rawValue)
        times(service.startTime, service.endTime)
        key("Edges")
        beginArray()
        for edge in service.edges { self.edge(edge) }
        endArray()
        if let node = service.statistics {
            key("SummaryStatistics")
            statistics(node.summary)
            key("DurationHistogram")
            histogram(node.durationHistogram)
            key("ResponseTimeHistogram")
            histogram(node.responseTimeHistogram)
        }
        endObject()
    }

    private mutating func edge(_ edge: GraphEdge) {
        beginObject()
        key("ReferenceId")
        int(edge.referenceID)
        times(edge.startTime, edge.endTime)
        key("SummaryStatistics")
        statistics(edge.summary)
        if edge.isLink {
            key("EdgeType")
            string("link")
            key("ReceivedEventAgeHistogram")
        } else {
            key("ResponseTimeHistogram")
        }
        histogram(edge.histogram)
        key("Aliases")
        beginArray()
        for alias in edge.aliases {
            beginObject()
            nameAndNames(alias.name)
            if let type = alias.type {
                key("Type")
                string(type)
            }
            endObject()
        }
        endArray()
        endObject()
    }

    mutating func nameAndNames(_ name: String) {
        key("Name")
        string(name)
        key("Names")
        beginArray()
        string(name)
        endArray()
    }

    private mutating func times(_ start: Int64?, _ end: Int64?) {
        if let start {
            key("StartTime")
            int(start)
        }
        if let end {
            key("EndTime")
            int(end)
        }
    }

    /// The value of `SummaryStatistics` and its kin.
    mutating func statistics(_ summary: SummaryStatistics) {
        beginObject()
        key("OkCount")
        int(summary.okCount)
        key("ErrorStatistics")
        beginObject()
        key("ThrottleCount")
        int(summary.throttleCount)
        key("OtherCount")
        int(summary.errorCount)
        key("TotalCount")
        int(summary.errorTotalCount)
        endObject()
        key("FaultStatistics")
        beginObject()
        key("OtherCount")
        int(summary.faultCount)
        key("TotalCount")
        int(summary.faultCount)
        endObject()
        key("TotalCount")
        int(summary.totalCount)
        key("TotalResponseTime")
        seconds(micros: summary.totalResponseTime)
        endObject()
    }

    mutating func histogram(_ entries: [HistogramEntry]) {
        beginArray()
        for entry in entries {
            beginObject()
            key("Value")
            seconds(micros: entry.value)
            key("Count")
            int(entry.count)
            endObject()
        }
        endArray()
    }
}
