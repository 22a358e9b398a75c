import Aggregation
import Fixtures
import Glibc
import SegmentLog
import Segments
import Testing
import TraceStore

/// CPU time of this process so far, all threads.
private func processorTime() -> Duration {
    var time = timespec()
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time)
    return .seconds(time.tv_sec) + .nanoseconds(time.tv_nsec)
}

private func measured(_ body: () async throws -> Void) async rethrows -> Duration {
    let before = processorTime()
    try await body()
    return processorTime() - before
}

/// A root and its calls, one document each, of about 100 bytes each beyond the calls' own facts.
private func largeTrace(_ number: Int, calls: Int) -> [String] {
    var documents = [document(trace: number, id: 1, name: "root", end: 9)]
    for call in 0..<calls {
        documents.append(
            #"{"type":"subsegment","trace_id":"\#(traceName(number))","id":"\#(entityName(call + 2))","parent_id":"\#(entityName(1))","name":"s\#(call % 7)","namespace":"remote","start_time":\#(startSecond),"end_time":\#(startSecond + 1)}"#
        )
    }
    return documents
}

extension AggregationWorld {
    /// Appends each document as a request of its own, several requests at a time.
    fileprivate func appendSingly(_ documents: [String]) async throws {
        try await withThrowingTaskGroup(of: Void.self) { group in
            for (number, document) in documents.enumerated() {
                if number >= 8 { try await group.next() }
                group.addTask { try await self.append(document) }
            }
            try await group.waitForAll()
        }
    }
}

extension AggregationTests {
    // If this fails, one long-running job that streams its subsegments takes the aggregator away from everybody else.
    @Test func `a large trace costs at most ten times as much in single documents as in one batch`() async throws {
        let documents = largeTrace(1, calls: 4_999)
        var atOnce = AggregatorOptions()
        atOnce.maxTraceBytes = 0
        atOnce.batchRecords = 40_000
        atOnce.batchBytes = 64 << 20
        var defaults = AggregatorOptions()
        defaults.maxTraceBytes = 0
        var batch = Duration.zero
        var appending = Duration.zero
        var single = Duration.zero
        try await withWorld { (world) async throws in
            try await world.append(documents)
            batch = try await measured { () async throws in
                try await world.foldEverything(atOnce)
            }
            let stored = try await world.store.storedTraces(account: account, ids: [traceID(1)])
            #expect(stored.first?.documents.count == documents.count)
        }
        try await withWorld { (world) async throws in
            appending = try await measured { () async throws in try await world.appendSingly(documents) }
        }
        try await withWorld { (world) async throws in
            single = try await measured { () async throws in
                try await whileRunning(world.aggregator(defaults)) { () async throws in
                    try await world.appendSingly(documents)
                    #expect(try await eventually { try await world.isCaughtUp() })
                }
            }
            let stored = try await world.store.storedTraces(account: account, ids: [traceID(1)])
            #expect(stored.first?.documents.count == documents.count)
            print("single documents: \(stored.first?.version ?? 0) batches")
        }
        let ratio = (single - appending) / batch
        print(
            "one batch \(batch), single documents \(single - appending) (and \(appending) for appending): \(ratio) times"
        )
        #expect(ratio <= 10)
    }

    // If this fails, a runaway loop in one service of a customer stalls the aggregator.
    @Test func `a hundred thousand documents of one trace end in the inbox at constant cost`() async throws {
        try await withWorld { (world) async throws in
            let documents = largeTrace(1, calls: 99_999)
            var costs: [Duration] = []
            for part in 0..<4 {
                let quarter = Array(documents[part * 25_000..<(part + 1) * 25_000])
                for start in stride(from: 0, to: quarter.count, by: 1_000) {
                    try await world.append(Array(quarter[start..<start + 1_000]))
                }
                costs.append(
                    try await measured { () async throws in
                        try await world.foldEverything()
                    })
            }
            print("a quarter of the documents each: \(costs)")
            #expect(costs[3] < costs[0] * 2)
            let stored = try #require(try await world.store.storedTraces(account: account, ids: [traceID(1)]).first)
            #expect(stored.limitExceeded)
            #expect(stored.documents.reduce(0) { $0 + $1.bytes.count } <= 512_000)
            #expect(try await world.store.inboxCount() + stored.documents.count == documents.count)
            try await world.expectAgreement()
        }
    }
}
