// After a run: reads totals and a sample of traces back through the API and compares them, exactly, with what the
// generator sent. Node and edge names carry the run's tag, so traffic of others does not disturb the comparison.

import JSONText
import Segments

public struct CheckResult: Sendable {
    public var name: String
    /// How many numbers, traces or summaries were compared.
    public var compared: Int
    /// One sentence for each difference.
    public var differences: [String]
    /// A comparison of nothing has not shown anything.
    public var passed: Bool { differences.isEmpty && compared > 0 }
}

final class LoadCheck {
    private let options: LoadOptions
    private let expected: Expectation
    private let client: APIClient
    private let parser = JSONParser()
    private var suffix: String { "-" + options.shape.tag }

    init(_ options: LoadOptions, _ expected: Expectation, startedAt: Micros) {
        self.options = options
        self.expected = expected
        client = APIClient(endpoint: options.endpoint, credentials: options.credentials, region: options.region)
    }

    func run() -> [CheckResult] {
        [checkGraph(), checkSummaries(), checkTraces()]
    }

    private func result(_ name: String, _ body: (inout [String]) throws -> Int) -> CheckResult {
        var differences: [String] = []
        var compared = 0
        do { compared = try body(&differences) } catch { differences.append("\(error)") }
        return CheckResult(name: name, compared: compared, differences: differences)
    }

    // MARK: - Service graph

    private struct Numbers: Equatable {
        var ok = 0
        var error = 0
        var throttle = 0
        var fault = 0
        var total = 0
        var responseTimeMillis: Int64 = 0
    }

    private func numbers(_ value: JSONValue?) -> Numbers {
        func count(_ value: JSONValue?) -> Int { Int(value?.wholeNumber ?? -1) }
        let errors = value?.member("ErrorStatistics")
        return Numbers(
            ok: count(value?.member("OkCount")), error: count(errors?.member("OtherCount")),
            throttle: count(errors?.member("ThrottleCount")), fault: count(value?.member("FaultStatistics")?.member("TotalCount")),
            total: count(value?.member("TotalCount")),
            responseTimeMillis: Int64(((value?.member("TotalResponseTime")?.double ?? -1) * 1000).rounded()))
    }

    private func numbers(_ counts: ClassCounts) -> Numbers {
        Numbers(
            ok: counts.ok, error: counts.error, throttle: counts.throttle, fault: counts.fault, total: counts.total,
            responseTimeMillis: (counts.responseTimeMicros + 500) / 1000)
    }

    /// Every count of every node and edge of the run, over the window in which its observations end.
    private func checkGraph() -> CheckResult {
        result("service graph totals") { differences in
            guard expected.traces > 0 else { return 0 }
            let start = expected.firstEnd / 1_000_000
            let end = expected.lastEnd / 1_000_000 + 1
            var nodes: [ExpectedNode: Numbers?] = [:]
            var edges: [ExpectedEdge: Numbers] = [:]
            var byReference: [Int64: ExpectedNode] = [:]
            var pendingEdges: [(source: ExpectedNode, destination: Int64, numbers: Numbers)] = []
            var token: String?
            repeat {
                var request = JSONWriter()
                request.beginObject()
                request.key("StartTime")
                request.int(start)
                request.key("EndTime")
                request.int(end)
                if let token {
                    request.key("NextToken")
                    request.string(token)
                }
                request.endObject()
                let answer = try client.read("/ServiceGraph", request.bytes, fresh: true)
                let value = try parser.parse(answer.body)
                value.member("Services")?.forEachElement { service in
                    let node = ExpectedNode(
                        name: service.member("Name")?.string?.string ?? "", type: service.member("Type")?.string?.string)
                    byReference[service.member("ReferenceId")?.wholeNumber ?? -1] = node
                    guard isOurs(node) else { return }
                    nodes[node] = service.member("SummaryStatistics").map { numbers($0) }
                    service.member("Edges")?.forEachElement { edge in
                        pendingEdges.append(
                            (node, edge.member("ReferenceId")?.wholeNumber ?? -1, numbers(edge.member("SummaryStatistics"))))
                    }
                }
                token = value.member("NextToken")?.string?.string
            } while token != nil
            for edge in pendingEdges {
                guard let destination = byReference[edge.destination] else {
                    differences.append("\(edge.source.name): an edge leads to ReferenceId \(edge.destination), which is not there")
                    continue
                }
                edges[ExpectedEdge(source: edge.source, destination: destination)] = edge.numbers
            }

            for (node, counts) in expected.nodes {
                let found = nodes[node] ?? nil
                if found != numbers(counts) {
                    differences.append("node \(node.name) (\(node.type ?? "no type")): expected \(numbers(counts)), found \(show(found))")
                }
            }
            for (edge, counts) in expected.edges where edges[edge] != numbers(counts) {
                differences.append(
                    "edge \(edge.source.name) → \(edge.destination.name): expected \(numbers(counts)), found \(show(edges[edge]))")
            }
            for node in nodes.keys where expected.nodes[node] == nil && node.type != "client" {
                differences.append("node \(node.name) (\(node.type ?? "no type")) is there and was never sent")
            }
            for edge in edges.keys where expected.edges[edge] == nil {
                differences.append("edge \(edge.source.name) → \(edge.destination.name) is there and was never sent")
            }
            return (expected.nodes.count + expected.edges.count) * 6
        }
    }

    private func show(_ numbers: Numbers?) -> String { numbers.map { "\($0)" } ?? "nothing" }

    private func isOurs(_ node: ExpectedNode) -> Bool {
        options.shape.tag.isEmpty ? expected.nodes[node] != nil || node.type == "client" : node.name.contains(suffix)
    }

    // MARK: - Summaries

    /// The number of summaries of some seconds: the busiest, the first, the last and some between.
    private func checkSummaries() -> CheckResult {
        result("summaries per second") { differences in
            let seconds = expected.tracesByRootSecond.keys.sorted()
            guard let first = seconds.first, let last = seconds.last else { return 0 }
            let busiest = expected.tracesByRootSecond.max { $0.value < $1.value }?.key ?? first
            var compared = 0
            for second in Set([first, busiest, seconds[seconds.count / 2], last]).sorted() {
                let wanted = expected.tracesByRootSecond[second] ?? 0
                var found = 0
                var seen = Set<String>()
                var token: String?
                repeat {
                    var request = JSONWriter()
                    request.beginObject()
                    request.key("StartTime")
                    request.int(second)
                    request.key("EndTime")
                    request.int(second + 1)
                    if let token {
                        request.key("NextToken")
                        request.string(token)
                    }
                    request.endObject()
                    let answer = try client.read("/TraceSummaries", request.bytes, fresh: true)
                    let value = try parser.parse(answer.body)
                    value.member("TraceSummaries")?.forEachElement { summary in
                        let entry = summary.member("EntryPoint")?.member("Name")?.string?.string ?? ""
                        guard options.shape.tag.isEmpty || entry.hasSuffix(suffix) else { return }
                        if seen.insert(summary.member("Id")?.string?.string ?? "").inserted { found += 1 } else {
                            differences.append("second \(second): a trace is listed twice")
                        }
                        if summary.member("IsPartial")?.bool != false {
                            differences.append("trace \(summary.member("Id")?.string?.string ?? "") is partial")
                        }
                    }
                    token = value.member("NextToken")?.string?.string
                } while token != nil
                compared += wanted
                if found != wanted { differences.append("second \(second): expected \(wanted) summaries, found \(found)") }
            }
            return compared
        }
    }

    // MARK: - Traces

    /// Segments and inferred segments of the traces kept as a sample.
    private func checkTraces() -> CheckResult {
        result("traces read back") { differences in
            var waiting = expected.sample.prefix(500)
            var compared = 0
            while !waiting.isEmpty {
                let some = waiting.prefix(5)
                waiting = waiting.dropFirst(5)
                var request = JSONWriter()
                request.beginObject()
                request.key("TraceIds")
                request.beginArray()
                for trace in some { request.string(trace.id.description) }
                request.endArray()
                request.endObject()
                let answer = try client.read("/Traces", request.bytes)
                let value = try parser.parse(answer.body)
                var found: [String: (reported: Set<String>, all: Int)] = [:]
                value.member("Traces")?.forEachElement { trace in
                    var reported = Set<String>()
                    var all = 0
                    trace.member("Segments")?.forEachElement { segment in
                        all += 1
                        reported.insert(segment.member("Id")?.string?.string ?? "")
                    }
                    found[trace.member("Id")?.string?.string ?? ""] = (reported, all)
                }
                for trace in some {
                    compared += 1
                    guard let answer = found[trace.id.description] else {
                        differences.append("trace \(trace.id) is not there")
                        continue
                    }
                    let missing = trace.segmentIDs.filter { !answer.reported.contains($0.description) }
                    if !missing.isEmpty { differences.append("trace \(trace.id) lacks \(missing.count) of its segments") }
                    let wanted = trace.segmentIDs.count + trace.leafCalls
                    if answer.all != wanted || answer.reported.count != wanted {
                        differences.append("trace \(trace.id): expected \(wanted) segments with inferred ones, found \(answer.all)")
                    }
                }
            }
            return compared
        }
    }
}
