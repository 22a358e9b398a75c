import Aggregation
import Fixtures
import Observability
import SegmentLog
import Segments
import Testing
import TraceAssembly
import TraceStore

extension AggregationTests {
    // If this fails, one bad record stops a partition for everybody, or vanishes without a trace.
    @Test func `poison records go to the inbox and the partition moves on`() async throws {
        try await withWorld(partitionCount: 1) { (world) async throws in
            func poison(_ value: [UInt8]?, kind: LogRecordKind = .document) -> LogRecord {
                LogRecord(
                    kind: kind, traceID: traceID(66), account: account, receivedAt: now, source: .http, value: value)
            }
            let good = document(trace: 1, id: 1, name: "web")
            let long = document(
                trace: 66, id: 6, name: "long", more: #""metadata":{"a":"\#(String(repeating: "x", count: 65_536))"}"#)
            let huge = [UInt8](repeating: UInt8(ascii: "["), count: 2 << 20)
            let records = [
                poison(Array("not JSON".utf8)), poison([]), poison(nil), poison([0, 0xff, 0xfe, 0]),
                poison(Array("[]".utf8)),
                try world.record(good),
                poison(huge), poison(Array(long.utf8)), poison(Array(#"{"id":"1"}"#.utf8)),
                // Its key says another trace than it does.
                try world.record(document(trace: 2, id: 2, name: "stray"), key: traceID(66)),
                // A touch of a trace that nobody knows, and one with a value.
                poison(nil, kind: .touch), poison(Array(good.utf8), kind: .touch),
                try world.record(document(trace: 1, id: 3, name: "api", parent: 1)),
            ]
            for options in [1, 4_000].map({ count in
                var options = AggregatorOptions.quick
                options.batchRecords = count
                return options
            }) {
                try await world.log.append(LogRecordBatch(records))
                try await world.foldEverything(options)
                try await world.expectAgreement()
            }
            let inbox = try await world.store.inbox(account: account, limit: 100)
            #expect(inbox.count == 18)
            #expect(inbox.allSatisfy { !$0.code.isEmpty && !$0.reason.isEmpty && $0.traceID == traceID(66) })
            #expect(inbox.contains { $0.document == huge })
            #expect(Set(inbox.map(\.code)).isSuperset(of: ["ParseError", "InvalidTraceId", "InvalidSegment"]))
            let counted = world.metrics.text()
            #expect(counted.contains(#"beamline_inbox_documents_total{reason="InvalidTraceId"} 2"#))
            #expect(counted.contains(#"beamline_inbox_documents_total{reason="InvalidSegment"} 4"#))
            #expect(try await world.store.storedTraces(account: account, ids: [traceID(66)]).isEmpty)
            let stored = try await world.store.storedTraces(account: account, ids: [traceID(1)])
            #expect(stored.first?.documents.count == 2)
        }
    }

    // If this fails, a trace without end fills the tables, or is cut off differently after a restart.
    @Test func `a trace over its size limit takes completions only, also after eviction and restart`() async throws {
        var random = SeededGenerator(printingSeedFor: "size limit")
        try await withWorld { (world) async throws in
            let limits = TraceLimits(traceBytes: 2_000)
            var options = AggregatorOptions.quick
            options.maxTraceBytes = limits.traceBytes
            let padding = String(repeating: "p", count: 200)
            func open(_ trace: Int, _ id: Int) -> String {
                document(
                    trace: trace, id: id, name: padding, end: nil, parent: id == 1 ? nil : 1, isSubsegment: id != 1)
            }
            func complete(_ trace: Int, _ id: Int) -> String {
                document(trace: trace, id: id, name: padding, parent: id == 1 ? nil : 1, isSubsegment: id != 1)
            }
            for round in 0..<4 {
                var documents: [String] = []
                for trace in 1...3 {
                    for id in 1...12 {
                        documents.append(round % 2 == 0 ? open(trace, id + round) : complete(trace, id))
                    }
                }
                // A trace whose first document is too large already.
                documents.append(
                    document(
                        trace: 9, id: round, name: "big",
                        more: #""metadata":{"a":"\#(String(repeating: "x", count: 3_000))"}"#))
                documents.shuffle(using: &random)
                try await world.append(documents)
                options.cacheEntities = [0, 100_000, 10, 100_000][round]
                options.batchRecords = [40, 3, 4_000, 1][round]
                try await world.foldEverything(options)
                try await world.expectAgreement(limits: limits, "seed \(random.seed), round \(round)")
            }
            let stored = try await world.store.storedTraces(account: account, ids: [1, 2, 3, 9].map(traceID))
            #expect(stored.count == 4 && stored.allSatisfy(\.limitExceeded))
            let codes = Set(try await world.store.inbox(account: account, limit: 1_000).map(\.code))
            #expect(codes == ["TraceSizeLimitExceeded"])
        }
    }
}
