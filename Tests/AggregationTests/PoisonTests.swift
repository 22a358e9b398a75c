// What another producer wrote into the log, as the fold sees it.

import Segments
import Testing
import TraceStore

@testable import SegmentLog

extension AggregationTests {
    // If this fails, a record that another producer wrote into the topic stops a partition, or vanishes.
    @Test func `records of other producers go to the inbox as poison`() async throws {
        try await withWorld(partitionCount: 1) { (world) async throws in
            let foreign = LogRecord(
                traceID: traceID(66), account: account, receivedAt: now, source: .http, value: Array("foreign".utf8))
            let good = try world.record(document(trace: 1, id: 1, name: "web"))
            try await world.log.append(LogRecordBatch([foreign, good, foreign]))
            var log = FaultyLog(base: world.log)
            log.transform = { batch in
                var batch = batch
                batch.entries = batch.entries.map { entry in
                    guard entry.value.elementsEqual("foreign".utf8) else { return entry }
                    // The first without key and headers, the other with them: what is known is kept.
                    let isBare = entry.offset == 0
                    return LogEntry(
                        offset: entry.offset, kind: isBare ? .touch : .document,
                        traceID: isBare ? TraceID(high: 0, low: 0) : entry.traceID,
                        account: isBare ? AccountID(rawValue: 0) : entry.account, receivedAt: entry.receivedAt,
                        source: .http, callerARN: "", hasValue: true, value: entry.value, poison: "not ours")
                }
                return batch
            }
            try await whileRunning(world.aggregator(log: log)) { () async throws in
                #expect(try await eventually { try await world.isCaughtUp() })
            }
            let bare = try await world.store.inbox(account: AccountID(rawValue: 0), limit: 10)
            #expect(bare.map(\.code) == ["Poison"] && bare.map(\.reason) == ["not ours"] && bare.map(\.offset) == [0])
            #expect(bare.first?.traceID == nil && bare.first?.document == Array("foreign".utf8))
            let known = try await world.store.inbox(account: account, limit: 10)
            #expect(known.map(\.code) == ["Poison"] && known.first?.traceID == traceID(66))
            #expect(try await world.store.storedTraces(account: account, ids: [traceID(66)]).isEmpty)
            #expect(try await world.store.storedTraces(account: account, ids: [traceID(1)]).count == 1)
        }
    }
}
