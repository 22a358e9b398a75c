import Segments
import ServiceGraph
import Testing

@testable import Verification

/// Traces held in memory.
private struct MemorySource: DocumentSource {
    var batches: [[RecountTrace]]
    var all: [RecountTrace]

    init(_ traces: [RecountTrace], batch: Int) {
        all = traces
        batches = stride(from: 0, to: traces.count, by: batch).map { Array(traces[$0..<min($0 + batch, traces.count)]) }
    }

    mutating func next() async throws -> [RecountTrace]? { batches.isEmpty ? nil : batches.removeFirst() }
    mutating func traces(_ ids: [TraceID]) async throws -> [RecountTrace] { all.filter { ids.contains($0.id) } }
}

struct VerificationTests {
    private func trace(_ id: String, _ documents: String...) throws -> RecountTrace {
        RecountTrace(
            id: try #require(TraceID(parsing: id)),
            documents: documents.enumerated().map { .init(receivedAt: Micros($0.offset), bytes: Array($0.element.utf8)[...]) })
    }

    /// Worked example B of `service-graph.md` §11: a queue link between two traces.
    private func linked() throws -> [RecountTrace] {
        [
            try trace(
                "1-65536f00-0000000000000000000000d1",
                #"{"trace_id":"1-65536f00-0000000000000000000000d1","id":"d000000000000001","name":"api","start_time":1700000000,"end_time":1700000000.2,"http":{"response":{"status":202}},"subsegments":[{"id":"d000000000000002","name":"SQS","start_time":1700000000.05,"end_time":1700000000.1,"namespace":"aws","aws":{"operation":"SendMessage","queue_url":"https://sqs.us-west-2.amazonaws.com/111122223333/jobs"},"http":{"response":{"status":200}}}]}"#
            ),
            try trace(
                "1-65536f05-0000000000000000000000e1",
                #"{"trace_id":"1-65536f05-0000000000000000000000e1","id":"e000000000000001","name":"worker","start_time":1700000005.1,"end_time":1700000005.6,"origin":"AWS::Lambda","http":{"response":{"status":200}},"links":[{"trace_id":"1-65536f00-0000000000000000000000d1","id":"d000000000000002"}]}"#,
                #"{"trace_id":"1-65536f05-0000000000000000000000e1","id":"e000000000000002","name":"worker","start_time":1700000005.2,"end_time":1700000005.55,"origin":"AWS::Lambda::Function","parent_id":"e000000000000001","error":true}"#
            ),
        ]
    }

    private let account = AccountID("111122223333") ?? AccountID(rawValue: 111_122_223_333)

    // If this fails, verify reports differences that are none: a link's target may be read in another batch.
    @Test(arguments: [1, 2]) func `a recount finds links across batches`(batch: Int) async throws {
        var source = MemorySource(try linked(), batch: batch)
        let graph = try await GraphRecount.count(&source, account: account, window: 1_700_000_000..<1_700_000_200).graph()
        #expect(graph.services.map(\.name) == ["api", "api", "https://sqs.us-west-2.amazonaws.com/111122223333/jobs", "worker", "worker"])
        #expect(graph.services[2].edges.map(\.isLink) == [true])
    }

    // If this fails, an observation outside the window makes verify cry wolf, or one inside is not checked.
    @Test func `a recount keeps to whole seconds of the window`() async throws {
        var source = MemorySource(try linked(), batch: 10)
        let graph = try await GraphRecount.count(&source, account: account, window: 1_700_000_000..<1_700_000_001).graph()
        #expect(Set(graph.services.map(\.name)) == ["api", "https://sqs.us-west-2.amazonaws.com/111122223333/jobs"])
    }

    // If this fails, verify passes a map that does not equal its traces.
    @Test func `a wrong count, a missing node and an unaccounted edge are each named`() throws {
        let counted = #"{"Services":[{"ReferenceId":0,"Name":"a","State":"active","Edges":[],"SummaryStatistics":{"TotalCount":2}},{"ReferenceId":1,"Name":"b","State":"active","Edges":[]}]}"#
        let served = #"{"Services":[{"ReferenceId":7,"Name":"a","State":"active","Edges":[{"ReferenceId":7,"SummaryStatistics":{"TotalCount":1},"Aliases":[]}],"SummaryStatistics":{"TotalCount":3}}]}"#
        let comparison = try GraphComparison(recounted: [Array(counted.utf8)], served: [Array(served.utf8)])
        #expect(comparison.observations == 2)
        #expect(
            comparison.differences == [
                "node a (no type): SummaryStatistics is {TotalCount: 3}, recounted {TotalCount: 2}",
                "node b (no type) is missing from the graph that is served",
                "edge a (no type) → a (no type) is served, but no document accounts for it",
            ])
    }

    // If this fails, verify depends on the numbering of nodes, which differs between pages and answers.
    @Test func `reference ids and the order of nodes do not matter`() throws {
        let one = #"{"Services":[{"ReferenceId":0,"Name":"a","Edges":[{"ReferenceId":1,"Aliases":[]}]},{"ReferenceId":1,"Name":"b","Edges":[]}]}"#
        let pages = [#"{"Services":[{"ReferenceId":9,"Name":"b","Edges":[]}]}"#, #"{"Services":[{"ReferenceId":4,"Name":"a","Edges":[{"ReferenceId":9,"Aliases":[]}]}]}"#]
        let comparison = try GraphComparison(recounted: [Array(one.utf8)], served: pages.map { Array($0.utf8) })
        #expect(comparison.differences.isEmpty)
    }
}
