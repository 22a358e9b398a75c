// What the graph tests share: documents to forests, a graph over stored traces as the system computes it, JSON of a
// result in the order of the specification's samples.

import Fixtures
import Segments
import ServiceGraph
import Testing
import TraceAssembly

let testAccount = AccountID(rawValue: 111_122_223_333)

/// Traces folded from documents in the order given, as the aggregator would hold them.
struct StoredTraces {
    var traces: [TraceID: Trace] = [:]
    /// By first document.
    var order: [TraceID] = []
    private let parser = SegmentParser()

    init(_ documents: [String] = []) throws {
        for document in documents { try fold(document) }
    }

    /// - Returns: the trace the document changed, nil when it was ignored.
    @discardableResult
    mutating func fold(_ text: String) throws -> TraceID? {
        let bytes = Array(text.utf8)
        let document = try parser.parse(bytes)
        var trace = traces.removeValue(forKey: document.traceID) ?? Trace(id: document.traceID, account: testAccount)
        if trace.entities.isEmpty { order.append(document.traceID) }
        let result = bytes.withUnsafeBytes { trace.fold(document, bytes: $0, receivedAt: 0) }
        traces[document.traceID] = trace
        return result == .changed ? document.traceID : nil
    }

    var forests: [Forest] { order.compactMap { traces[$0].map { Forest($0) } } }

    /// The facts of the links of a trace as they are now.
    func facts(for trace: Trace) -> [Link: LinkFacts] {
        var result: [Link: LinkFacts] = [:]
        for link in linksInUse(of: trace) {
            guard let producer = traces[link.traceID].map({ Forest($0) }) else { continue }
            result[link] = linkFacts(
                of: link.entityID, in: producer, rootIsLinked: rootIsLinked(producer, isResolved: isStored))
        }
        return result
    }

    func isStored(_ link: Link) -> Bool {
        guard let producer = traces[link.traceID], let index = producer.indexes[link.entityID] else { return false }
        return Forest(producer).isAttached(index)
    }

    /// The contributions of everything, computed from scratch.
    func contributions() -> Contributions {
        var sum = Contributions()
        for forest in forests { sum.add(forest, links: facts(for: forest.trace)) }
        return sum
    }

    func graph(_ window: Range<Int64>?) throws -> ServiceGraphResult {
        try ServiceGraphTests.graph(of: contributions().blocks(), window)
    }
}

func graph(of blocks: [GraphBlock], _ window: Range<Int64>?) throws -> ServiceGraphResult {
    var builder = ServiceGraphBuilder(receivingAccount: testAccount, window: window)
    for block in blocks { try builder.add(block.bytes) }
    return try builder.build()
}

/// Sum of blocks that may be of any minutes, one block per minute.
func merged(_ blocks: [GraphBlock]) throws -> [GraphBlock] {
    let minutes = Dictionary(grouping: blocks) { $0.minute }
    return try minutes.keys.sorted().compactMap { try GraphBlock.merge((minutes[$0] ?? []).map(\.bytes)) }
}

// MARK: - JSON as the specification prints it

private func seconds(_ micros: Int64) -> String {
    let millis = roundedMillis(micros)
    var fraction = String(millis % 1000)
    fraction = String(repeating: "0", count: 3 - fraction.count) + fraction
    while fraction.last == "0" { fraction.removeLast() }
    return "\(millis / 1000)" + (fraction.isEmpty ? "" : "." + fraction)
}

private func json(_ entries: [HistogramEntry]) -> String {
    "[" + entries.map { #"{"Value":\#(seconds($0.value)),"Count":\#($0.count)}"# }.joined(separator: ",") + "]"
}

private func json(_ summary: SummaryStatistics) -> String {
    #"{"OkCount":\#(summary.okCount),"ErrorStatistics":{"ThrottleCount":\#(summary.throttleCount),"OtherCount":\#(summary.errorCount),"#
        + #""TotalCount":\#(summary.errorTotalCount)},"FaultStatistics":{"OtherCount":\#(summary.faultCount),"#
        + #""TotalCount":\#(summary.faultCount)},"TotalCount":\#(summary.totalCount),"TotalResponseTime":\#(seconds(summary.totalResponseTime))}"#
}

private func times(_ start: Int64?, _ end: Int64?) -> String {
    guard let start, let end else { return "" }
    return #""StartTime":\#(start),"EndTime":\#(end),"#
}

private func json(_ edge: GraphEdge) -> String {
    let aliases = edge.aliases.map {
        #"{"Name":"\#($0.name)","Names":["\#($0.name)"]"# + ($0.type.map { #","Type":"\#($0)""# } ?? "") + "}"
    }
    return #"{"ReferenceId":\#(edge.referenceID),"# + times(edge.startTime, edge.endTime)
        + #""SummaryStatistics":\#(json(edge.summary)),"#
        + (edge.isLink ? #""EdgeType":"link","ReceivedEventAgeHistogram":"# : #""ResponseTimeHistogram":"#)
        + json(edge.histogram) + #","Aliases":[\#(aliases.joined(separator: ","))]}"#
}

/// One line per service.
func json(_ graph: ServiceGraphResult) -> [String] {
    graph.services.map { service in
        #"{"ReferenceId":\#(service.referenceID),"Name":"\#(service.name)","Names":["\#(service.name)"],"#
            + (service.isRoot ? #""Root":true,"# : "") + (service.type.map { #""Type":"\#($0)","# } ?? "")
            + (service.accountID.map { #""AccountId":"\#($0)","# } ?? "")
            + #""State":"\#(service.state.rawValue)","# + times(service.startTime, service.endTime)
            + #""Edges":[\#(service.edges.map(json).joined(separator: ","))]"#
            + (service.statistics.map {
                #","SummaryStatistics":\#(json($0.summary)),"DurationHistogram":\#(json($0.durationHistogram)),"#
                    + #""ResponseTimeHistogram":\#(json($0.responseTimeHistogram))"#
            } ?? "") + "}"
    }
}

/// All orders of a few things.
func permutations<T>(_ list: [T]) -> [[T]] {
    guard list.count > 1 else { return [list] }
    return list.indices.flatMap { index in
        var rest = list
        let first = rest.remove(at: index)
        return permutations(rest).map { [first] + $0 }
    }
}
