// The service graph against the specification: the worked examples, and one small story per ruling.

import Fixtures
import Segments
import ServiceGraph
import Testing
import TraceAssembly

private func segment(
    _ id: String, _ name: String, _ start: String, _ end: String?, trace: Int = 1, parent: String? = nil,
    more: String = ""
) -> String {
    #"{"trace_id":"1-00000000-\#(String(repeating: "0", count: 23))\#(trace)","id":"\#(id)","name":"\#(name)","start_time":\#(start),"#
        + (end.map { #""end_time":\#($0)"# } ?? #""in_progress":true"#)
        + (parent.map { #","parent_id":"\#($0)""# } ?? "")
        + (more.isEmpty ? "" : "," + more) + "}"
}

private func call(
    _ id: String, _ name: String, _ start: String, _ end: String?, namespace: String = "remote", more: String = ""
) -> String {
    #"{"id":"\#(id)","name":"\#(name)","start_time":\#(start),"#
        + (end.map { #""end_time":\#($0)"# } ?? #""in_progress":true"#) + #","namespace":"\#(namespace)""# + more + "}"
}

private func subsegments(_ calls: String...) -> String { #""subsegments":[\#(calls.joined(separator: ","))]"# }

extension ServiceGraphResult {
    fileprivate func service(_ name: String, _ type: String? = nil) -> GraphService? {
        services.first { $0.name == name && $0.type == type }
    }

    fileprivate func edge(_ from: (String, String?), _ to: (String, String?), isLink: Bool = false) -> GraphEdge? {
        guard let destination = service(to.0, to.1) else { return nil }
        return service(from.0, from.1)?.edges.first { $0.referenceID == destination.referenceID && $0.isLink == isLink }
    }
}

@Suite struct WorkedExampleTests {
    // If this fails, the map of an instrumented callee, a failed call and a throttle is not what X-Ray draws.
    @Test func `example A comes out word for word in every order of arrival`() throws {
        for documents in permutations(exampleADocuments) {
            let traces = try StoredTraces(documents + documents)
            #expect(json(try traces.graph(1_700_000_000..<1_700_000_200)) == exampleAServices)
        }
    }

    // If this fails, a queue consumer is drawn as a root, or its producer is not on the map.
    @Test func `example B comes out word for word in every order of arrival`() throws {
        for documents in permutations(exampleBDocuments) {
            let traces = try StoredTraces(documents)
            #expect(json(try traces.graph(1_700_000_000..<1_700_000_200)) == exampleBServices)
            #expect(json(ReferenceGraph(traces).graph(nil)) == exampleBServices)
        }
    }

    // If this fails, the graph of one trace shows times or leaves nodes out.
    @Test func `the trace graph of example A is its graph without times`() throws {
        let graph = traceGraph(of: try StoredTraces(exampleADocuments).forests, account: testAccount)
        let expected = exampleAServices.map { $0.replacing(/"(Start|End)Time":\d+,/, with: "") }
        #expect(json(graph) == expected)
    }
}

@Suite struct WindowTests {
    // If this fails, adjacent windows count a request twice or not at all.
    @Test func `an observation belongs to the window that holds the second of its end`() throws {
        let traces = try StoredTraces([
            segment("00000000000000a1", "web", "100.5", "160.999999"),
            segment("00000000000000a2", "web", "90", "161", trace: 2),
        ])
        func count(_ window: Range<Int64>) throws -> Int64? {
            try traces.graph(window).service("web")?.statistics?.summary.totalCount
        }
        #expect(try count(160..<161) == 1)
        #expect(try count(100..<160) == nil)
        #expect(try count(161..<162) == 1)
        #expect(try count(160..<162) == 2)
        #expect(try traces.graph(160..<161).service("web")?.startTime == 100)
        #expect(try traces.graph(160..<162).service("web")?.startTime == 90)
        #expect(try traces.graph(160..<162).service("web", "client")?.endTime == 101)
    }

    // If this fails, the end of an edge is missing from the map when only the edge falls into the window.
    @Test func `a node is there with zero statistics when only an edge of it is observed`() throws {
        let traces = try StoredTraces([
            segment(
                "00000000000000a1", "web", "100", "130",
                more: subsegments(call("00000000000000a2", "orders.internal", "101", "120"))),
            segment("00000000000000a3", "orders", "102", "110", parent: "00000000000000a2"),
        ])
        let graph = try traces.graph(120..<121)
        #expect(graph.services.map(\.name) == ["orders", "web"])
        #expect(graph.services.map { $0.statistics?.summary.totalCount } == [0, 0])
        #expect(graph.services.map(\.state) == [.active, .active])
        #expect(graph.service("web")?.isRoot == true)
        #expect(graph.edge(("web", nil), ("orders", nil))?.summary.totalCount == 1)
        #expect(graph.edge(("web", nil), ("orders", nil))?.aliases.map(\.name) == ["orders.internal"])
        #expect(try traces.graph(110..<111).services.map(\.name) == ["orders"])
        #expect(try traces.graph(110..<111).service("orders")?.edges.isEmpty == true)
    }

    // If this fails, a node looks reported in windows where no service of that name reported anything.
    @Test func `state and root come from the traces of the window only`() throws {
        let leaf = call("00000000000000a2", "pay", "101", "102")
        let traces = try StoredTraces([
            segment("00000000000000a1", "web", "100", "103", more: subsegments(leaf)),
            segment("00000000000000b1", "pay", "200", "203", trace: 2, more: #""origin":"remote""#),
        ])
        #expect(try traces.graph(100..<110).service("pay", "remote")?.state == .passive)
        #expect(try traces.graph(100..<110).service("pay", "remote")?.isRoot == false)
        #expect(try traces.graph(100..<210).service("pay", "remote")?.state == .active)
        #expect(try traces.graph(100..<210).service("pay", "remote")?.isRoot == true)
        #expect(try traces.graph(100..<210).service("pay", "remote")?.statistics?.summary.totalCount == 2)
    }

    // If this fails, the times of a producer on the map follow the consumer, or the other way round.
    @Test func `a link lends each end the trace of its own side`() throws {
        let traces = try StoredTraces(exampleBDocuments)
        let graph = try traces.graph(1_700_000_005..<1_700_000_006)
        #expect(
            graph.service("https://sqs.us-west-2.amazonaws.com/111122223333/jobs", "AWS::SQS::Queue")?.startTime
                == 1_700_000_000)
        #expect(graph.service("worker", "AWS::Lambda")?.startTime == 1_700_000_005)
        let edge = graph.edge(
            ("https://sqs.us-west-2.amazonaws.com/111122223333/jobs", "AWS::SQS::Queue"), ("worker", "AWS::Lambda"),
            isLink: true)
        #expect(edge?.startTime == 1_700_000_005)
        #expect(graph.service("api")?.name == nil)
    }
}

@Suite struct RulingTests {
    // If this fails, running work is counted before it is known how it ends.
    @Test func `calls of an open segment are observed when it completes`() throws {
        let open = segment(
            "00000000000000a1", "web", "100", nil,
            more: subsegments(call("00000000000000a2", "S3", "101", "102", namespace: "aws")))
        var traces = try StoredTraces([open])
        #expect(try traces.graph(nil).services.isEmpty)
        let drawn = traceGraph(of: traces.forests, account: testAccount)
        #expect(drawn.services.map(\.name) == ["S3", "web", "web"])
        #expect(drawn.service("S3", "AWS::S3")?.statistics?.summary == SummaryStatistics())
        #expect(drawn.edge(("web", nil), ("S3", "AWS::S3"))?.histogram == [])
        #expect(drawn.edge(("web", "client"), ("web", nil))?.summary.totalCount == 0)
        try traces.fold(segment("00000000000000a1", "web", "100", "103"))
        #expect(try traces.graph(nil).service("S3", "AWS::S3")?.statistics?.summary.totalCount == 1)
        #expect(try traces.graph(102..<103).services.map(\.name) == ["S3", "web"])
    }

    // If this fails, a call that two segments answer is counted once, or both nodes lose their edge (R-25).
    @Test func `several segments under one call make one edge observation each`() throws {
        let traces = try StoredTraces([
            segment(
                "00000000000000a1", "web", "100", "103",
                more: subsegments(call("00000000000000a2", "jobs.internal", "101", "102.5"))),
            segment("00000000000000a3", "jobs", "101", "102", parent: "00000000000000a2"),
            segment("00000000000000a4", "jobs", "102", "102.2", parent: "00000000000000a2"),
            segment("00000000000000a5", "audit", "102", "102.1", parent: "00000000000000a2"),
        ])
        let graph = try traces.graph(nil)
        #expect(graph.edge(("web", nil), ("jobs", nil))?.summary.totalCount == 2)
        #expect(graph.edge(("web", nil), ("jobs", nil))?.histogram == [HistogramEntry(value: 1_500_000, count: 2)])
        #expect(graph.edge(("web", nil), ("audit", nil))?.summary.totalCount == 1)
        #expect(graph.service("jobs")?.statistics?.responseTimeHistogram.map(\.value) == [200_000, 1_000_000])
        #expect(graph.service("jobs.internal", "remote") == nil)
    }

    // If this fails, a callee whose caller is still on its way has an edge from nowhere (R-01).
    @Test func `a segment below an unattached call is joined when the call is attached`() throws {
        var traces = try StoredTraces([
            segment("00000000000000a3", "orders", "101", "102", parent: "00000000000000a2"),
            segment(
                "00000000000000a2", "orders.internal", "100.5", "102.5", parent: "00000000000000a1",
                more: #""type":"subsegment","namespace":"remote""#),
        ])
        #expect(try traces.graph(nil).services.map(\.name) == ["orders", "orders"])
        #expect(try traces.graph(nil).service("orders")?.isRoot == true)
        try traces.fold(segment("00000000000000a1", "web", "100", "103"))
        let graph = try traces.graph(nil)
        #expect(graph.services.map(\.name) == ["orders", "web", "web"])
        #expect(graph.service("orders")?.isRoot == false)
        #expect(graph.edge(("web", nil), ("orders", nil))?.summary.totalResponseTime == 2_000_000)
    }

    // If this fails, Lambda's function segment is not drawn below its service (no call between them).
    @Test func `a segment below a segment or an internal subsegment is observed itself`() throws {
        let work = call("00000000000000a2", "work", "100", "101", namespace: "local")
        let traces = try StoredTraces([
            segment("00000000000000a1", "web", "100", nil, more: subsegments(work)),
            segment("00000000000000a3", "jobs", "101", "101.25", parent: "00000000000000a2", more: #""fault":true"#),
        ])
        let edge = try traces.graph(nil).edge(("web", nil), ("jobs", nil))
        #expect(edge?.summary.faultCount == 1)
        #expect(edge?.summary.totalResponseTime == 250_000)
        #expect(edge?.aliases.isEmpty == true)
    }

    // If this fails, calls into another account are merged with calls of the same name into our own (R-02).
    @Test func `accounts keep nodes apart and come from the entity itself`() throws {
        let traces = try StoredTraces([
            segment(
                "00000000000000a1", "web", "100", "103",
                more: #""aws":{"account_id":"444455556666"},"#
                    + subsegments(
                        call("00000000000000a2", "S3", "101", "102", namespace: "aws"),
                        call(
                            "00000000000000a3", "S3", "101", "102", namespace: "aws",
                            more: #","aws":{"account_id":"777788889999"}"#)))
        ])
        let graph = try traces.graph(nil)
        #expect(graph.services.map(\.accountID) == [nil, "777788889999", "444455556666", "444455556666"])
        #expect(graph.services.map(\.type) == ["AWS::S3", "AWS::S3", nil, "client"])
    }

    // If this fails, names that only look alike are one node.
    @Test func `names are compared by code point`() throws {
        let traces = try StoredTraces([
            segment("00000000000000a1", "caf\u{e9}", "100", "101"),
            segment("00000000000000b1", "cafe\u{301}", "100", "101", trace: 2),
        ])
        #expect(try traces.graph(nil).services.count == 4)
    }

    // If this fails, the aliases of an edge change places between reads.
    @Test func `aliases stand in order of their first call in the window`() throws {
        let traces = try StoredTraces([
            segment(
                "00000000000000a1", "web", "100", "130",
                more: subsegments(
                    call("00000000000000a2", "b.internal", "102", "110"),
                    call("00000000000000a3", "a.internal", "103", "104"),
                    call("00000000000000a4", "a.internal", "101", "125"))),
            segment("00000000000000a5", "orders", "102", "103", parent: "00000000000000a2"),
            segment("00000000000000a6", "orders", "102", "103", parent: "00000000000000a3"),
            segment("00000000000000a7", "orders", "102", "103", parent: "00000000000000a4"),
        ])
        func aliases(_ window: Range<Int64>) throws -> [String]? {
            try traces.graph(window).edge(("web", nil), ("orders", nil))?.aliases.map(\.name)
        }
        #expect(try aliases(100..<120) == ["b.internal", "a.internal"])
        #expect(try aliases(100..<200) == ["a.internal", "b.internal"])
        #expect(try aliases(125..<126) == ["a.internal"])
    }

    // If this fails, a consumer of a running producer disappears from the map, or has a wrong age (R-29, R-30).
    @Test func `a link to an open entity counts without an age and one to nothing is no link`() throws {
        let link = #""links":[{"trace_id":"1-00000000-000000000000000000000001","id":"00000000000000a1"}]"#
        let consumer = segment("00000000000000b1", "worker", "110", "111", trace: 2, more: link)
        var traces = try StoredTraces([consumer])
        #expect(try traces.graph(nil).service("worker")?.isRoot == true)
        #expect(try traces.graph(nil).service("worker", "client") != nil)
        try traces.fold(segment("00000000000000a1", "api", "100", nil))
        var edge = try traces.graph(nil).edge(("api", nil), ("worker", nil), isLink: true)
        #expect(edge?.summary.okCount == 1)
        #expect(edge?.histogram == [])
        #expect(try traces.graph(nil).service("api")?.statistics?.summary.totalCount == 0)
        #expect(try traces.graph(nil).service("api")?.isRoot == true)
        #expect(try traces.graph(nil).service("worker")?.isRoot == false)
        #expect(try traces.graph(nil).service("worker", "client") == nil)
        try traces.fold(segment("00000000000000a1", "api", "100", "112"))
        edge = try traces.graph(nil).edge(("api", nil), ("worker", nil), isLink: true)
        #expect(edge?.histogram == [HistogramEntry(value: 0, count: 1)])
        // Among given traces only (R-28).
        let alone = traceGraph(
            of: traces.forests.filter { $0.count == 1 && $0[0].name == "worker" }, account: testAccount)
        #expect(alone.services.map(\.type) == [nil, "client"])
    }

    // If this fails, a consumer in the middle of a chain of queues is drawn as an entry point.
    @Test func `a producer whose own root is linked lends no Root`() throws {
        func link(_ trace: Int, _ id: String) -> String {
            #""links":[{"trace_id":"1-00000000-00000000000000000000000\#(trace)","id":"\#(id)"}]"#
        }
        let traces = try StoredTraces([
            segment("00000000000000a1", "first", "100", "101"),
            segment("00000000000000b1", "second", "110", "111", trace: 2, more: link(1, "00000000000000a1")),
            segment("00000000000000c1", "third", "120", "121", trace: 3, more: link(2, "00000000000000b1")),
        ])
        let graph = try traces.graph(120..<122)
        #expect(graph.services.map(\.name) == ["second", "third"])
        #expect(graph.services.map(\.isRoot) == [false, false])
    }

    // If this fails, link facts stored by one version of the process cannot retract what they added.
    @Test func `link facts survive their bytes and refuse others`() throws {
        let traces = try StoredTraces(exampleBDocuments)
        let facts = try #require(traces.forests.flatMap { traces.facts(for: $0.trace).values }.first)
        #expect(LinkFacts(decoding: facts.encoded) == facts)
        for length in 0..<facts.encoded.count {
            #expect(LinkFacts(decoding: Array(facts.encoded.prefix(length))) == nil)
        }
        #expect(LinkFacts(decoding: facts.encoded + [0]) == nil)
    }

    // If this fails, latency histograms show wrong bars or lose requests (R-15, R-16).
    @Test func `histograms of any size equal the rule`() throws {
        var random = SeededGenerator(printingSeedFor: "histograms")
        for round in 0..<40 {
            let limit = random.pick([3_000, 120_000, 2_000_000, 30_000_000, 900_000_000])
            let durations = (0..<random.pick([1, 30, 300, 1_500])).map { _ in
                round % 4 == 0 && random.chance(90) ? 500 : Int64.random(in: 0..<Int64(limit), using: &random)
            }
            let documents = durations.enumerated().map { number, micros in
                let end = 1_000_000_000 + micros
                let fraction = String(String(1_000_000 + end % 1_000_000).dropFirst())
                let id = String(number, radix: 16)
                return segment(
                    String(repeating: "0", count: 16 - id.count) + id, "web", "1000", "\(end / 1_000_000).\(fraction)")
            }
            let histogram = try StoredTraces(documents).graph(nil).service("web")?.statistics?.responseTimeHistogram
            #expect(histogram == ReferenceGraph.histogram(durations))
            #expect((histogram ?? []).count <= 100)
            #expect(histogram?.reduce(0) { $0 + $1.count } == Int64(durations.count))
        }
    }
}
