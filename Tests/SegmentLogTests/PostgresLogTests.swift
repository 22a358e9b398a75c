import Glibc
import Logging
import PostgreSQL
import Segments
import Synchronization
import Testing

@testable import SegmentLog

/// Opens a log in a fresh schema, runs it, and ends it.
func withLog(
    _ configuration: PostgresConfiguration, _ options: PostgresLogOptions = .init(),
    _ body: (PostgresLog) async throws -> Void
) async throws {
    let log = try await PostgresLog.open(database: configuration, options: options, logger: quietLogger)
    let running = Task { await log.run() }
    do {
        try await body(log)
    } catch {
        running.cancel()
        await running.value
        await log.close()
        throw error
    }
    running.cancel()
    await running.value
    await log.close()
}

func withFreshLog(
    _ options: PostgresLogOptions = .init(), _ body: (PostgresLog, PostgresConfiguration) async throws -> Void
) async throws {
    try await withDatabase { (configuration) async throws in
        try await PostgresLog.migrate(database: configuration)
        try await withLog(configuration, options) { try await body($0, configuration) }
    }
}

func record(_ number: Int, id: UInt64? = nil, bytes: [UInt8]?? = .none) -> LogRecord {
    LogRecord(
        kind: number % 11 == 0 ? .touch : .document, traceID: TraceID(high: id ?? UInt64(number), low: 7),
        account: AccountID(rawValue: UInt64(number % 3)), receivedAt: 1_700_000_000_000_000 + Int64(number % 17) * 1_000,
        source: LogSource.allCases[number % 4], callerARN: number % 2 == 0 ? "arn:aws:iam::1:root" : "",
        value: bytes ?? Array("document \(number)".utf8))
}

extension SegmentLog {
    /// The whole partition, by reads with small limits.
    func everything(
        partition: Int, from start: Int64 = 0, maxRecords: Int = 100, maxBytes: Int = 1 << 20
    ) async throws -> [LogEntry] {
        var entries: [LogEntry] = []
        var offset = start
        while true {
            let batch = try await read(partition: partition, from: offset, maxRecords: maxRecords, maxBytes: maxBytes)
            if batch.entries.isEmpty { return entries }
            #expect(batch.entries.map(\.offset) == Array(offset..<batch.nextOffset))
            #expect(batch.entries.count <= maxRecords)
            #expect(batch.endOffset >= batch.nextOffset)
            entries += batch.entries
            offset = batch.nextOffset
        }
    }
}

func expectEqual(_ entry: LogEntry, _ record: LogRecord, sourceLocation: SourceLocation = #_sourceLocation) {
    let same =
        entry.kind == record.kind && entry.traceID == record.traceID && entry.account == record.account
        && entry.receivedAt == record.receivedAt && entry.source == record.source
        && entry.callerARN == record.callerARN && entry.hasValue == (record.value != nil)
        && Array(entry.value) == record.value ?? []
    #expect(same, sourceLocation: sourceLocation)
}

/// What writers were told.
private final class Tally: Sendable {
    let acknowledged = Mutex<Set<UInt64>>([])
}

struct PostgresLogTests {
    // If this fails, what was acknowledged is not what is folded.
    @Test(arguments: [16 << 20, 0])
    func `what is appended is read back, in order, from memory and from the table`(tailBytes: Int) async throws {
        var options = PostgresLogOptions()
        options.tailBytes = tailBytes
        try await withFreshLog(options) { (log, _) async throws in
            let records = (0..<500).map { record($0) }
            for start in stride(from: 0, to: 500, by: 25) {
                try await log.append(LogRecordBatch(Array(records[start..<start + 25])))
            }
            var seen = 0
            for partition in 0..<log.partitionCount {
                let expected = records.filter { LogPartition.of($0.traceID, count: log.partitionCount) == partition }
                let entries = try await log.everything(partition: partition)
                #expect(entries.count == expected.count)
                for (entry, record) in zip(entries, expected) { expectEqual(entry, record) }
                seen += entries.count
            }
            #expect(seen == 500)
            #expect(try await log.endOffsets().reduce(0, +) == 500)
        }
    }

    // If this fails, a legal record stops the log: nothing (NULL), empty, and two megabytes are all legal.
    @Test(arguments: [16 << 20, 0])
    func `odd values survive`(tailBytes: Int) async throws {
        var options = PostgresLogOptions()
        options.tailBytes = tailBytes
        options.partitionCount = 1
        try await withFreshLog(options) { (log, _) async throws in
            var generator = SystemRandomNumberGenerator()
            let noise = (0..<2_000_000).map { _ in UInt8.random(in: 0...255, using: &generator) }
            let values: [[UInt8]?] = [nil, [], [0], noise, Array(repeating: 0, count: 3_000_000), [0xff, 0xfe]]
            let records = values.enumerated().map { record($0.offset, bytes: .some($0.element)) }
            try await log.append(LogRecordBatch(records))
            let entries = try await log.everything(partition: 0, maxRecords: 2_000, maxBytes: 1_000)
            #expect(entries.count == records.count)
            for (entry, record) in zip(entries, records) { expectEqual(entry, record) }
        }
    }

    // If this fails, acknowledged documents are lost or doubled when several nodes write at once, or a reader that
    // follows them skips some.
    @Test func `concurrent appenders on two nodes leave no gap, and a reader beside them sees each record once`() async throws {
        try await withFreshLog { (log, configuration) async throws in
            try await withLog(configuration) { (second) async throws in
                let callers = 16
                let calls = 20
                let perCall = 10
                let total = callers * calls * perCall
                let reader = Task {
                    var numbers: [UInt64] = []
                    var positions = [Int64](repeating: 0, count: log.partitionCount)
                    while numbers.count < total {
                        let waiting = positions.enumerated().map { LogPosition(partition: $0.offset, offset: $0.element) }
                        await second.waitForRecords(beyond: waiting, timeout: .seconds(10))
                        for partition in positions.indices {
                            let batch = try await second.read(partition: partition, from: positions[partition])
                            #expect(batch.entries.map(\.offset) == Array(positions[partition]..<batch.nextOffset))
                            numbers += batch.entries.map(\.traceID.high)
                            positions[partition] = batch.nextOffset
                        }
                    }
                    return numbers
                }
                try await withThrowingTaskGroup(of: Void.self) { group in
                    for caller in 0..<callers {
                        group.addTask {
                            let node = caller % 2 == 0 ? log : second
                            for call in 0..<calls {
                                let first = (caller * calls + call) * perCall
                                try await node.append(LogRecordBatch((first..<first + perCall).map { record($0) }))
                            }
                        }
                    }
                    try await group.waitForAll()
                }
                let numbers = try await reader.value
                #expect(numbers.sorted() == (0..<UInt64(total)).map { $0 })
                let ends = [try await log.endOffsets(), try await second.endOffsets()]
                #expect(ends[0] == ends[1])
            }
        }
    }

    // If this fails, an acknowledged document is gone after a power cut, or ingest does not recover by itself.
    @Test func `kill -9 of PostgreSQL keeps what was acknowledged, and appending goes on`() async throws {
        let server = try await PrivateServer.start()
        try await withDatabase(on: server.connectionString) { (configuration) async throws in
            var impatient = configuration
            impatient.queueTimeout = .milliseconds(500)
            try await PostgresLog.migrate(database: configuration)
            try await withLog(impatient) { (log) async throws in
                let tally = Tally()
                let writers = Task {
                    await withTaskGroup(of: Void.self) { group in
                        for writer in 0..<8 {
                            group.addTask {
                                var number = writer
                                while !Task.isCancelled {
                                    do throws(SegmentLogError) {
                                        try await log.append(LogRecordBatch([record(number)]))
                                        tally.acknowledged.withLock { _ = $0.insert(UInt64(number)) }
                                        number += 8
                                    } catch {
                                        #expect(error.code == .unavailable)
                                        try? await Task.sleep(for: .milliseconds(20))
                                    }
                                }
                            }
                        }
                    }
                }
                #expect(try await eventually { tally.acknowledged.withLock { $0.count } > 100 })
                let killed = try #require(server.processID)
                kill(killed, SIGKILL)
                // Whether an append was refused meanwhile depends on how fast the server is back.
                #expect(try await eventually { server.processID.map { $0 != killed } ?? false })
                let before = tally.acknowledged.withLock { $0.count }
                #expect(try await eventually { tally.acknowledged.withLock { $0.count } > before + 100 })
                writers.cancel()
                await writers.value
                var stored: Set<UInt64> = []
                for partition in 0..<log.partitionCount {
                    stored.formUnion(try await log.everything(partition: partition, maxRecords: 2_000).map(\.traceID.high))
                }
                #expect(tally.acknowledged.withLock { $0 }.isSubset(of: stored))
            }
        }
        await server.stop()
    }

    // If this fails, a restart of Beamline loses or repeats offsets.
    @Test func `a log opened again goes on where it ended`() async throws {
        try await withDatabase { (configuration) async throws in
            try await PostgresLog.migrate(database: configuration)
            try await PostgresLog.migrate(database: configuration)
            var options = PostgresLogOptions()
            options.partitionCount = 2
            try await withLog(configuration, options) { try await $0.append(LogRecordBatch((0..<10).map { record($0) })) }
            options.partitionCount = 1
            try await withLog(configuration, options) { (log) async throws in
                #expect(log.partitionCount == 2)
                try await log.append(LogRecordBatch((10..<20).map { record($0) }))
                var numbers: [UInt64] = []
                for partition in 0..<2 { numbers += try await log.everything(partition: partition).map(\.traceID.high) }
                #expect(numbers.sorted() == (0..<20).map { UInt64($0) })
            }
        }
    }

    // If this fails, a raised partition count needs a restart of every node, and readers miss the new partitions.
    @Test func `partitions added by another node are noticed while running`() async throws {
        var options = PostgresLogOptions()
        options.growthInterval = .milliseconds(50)
        try await withFreshLog(options) { (log, configuration) async throws in
            #expect(log.partitionCount == 4)
            try await log.append(LogRecordBatch((0..<50).map { record($0) }))
            options.partitionCount = 7
            try await withLog(configuration, options) { (wider) async throws in
                try await wider.append(LogRecordBatch((50..<100).map { record($0) }))
                #expect(try await eventually { log.partitionCount == 7 })
                try await log.append(LogRecordBatch((100..<200).map { record($0) }))
                var numbers: [UInt64] = []
                for partition in 0..<7 { numbers += try await log.everything(partition: partition).map(\.traceID.high) }
                #expect(numbers.sorted() == (0..<200).map { UInt64($0) })
                #expect(try await log.endOffsets().suffix(3).allSatisfy { $0 > 0 })
            }
        }
    }

    // If this fails, retention silently swallows documents that were never folded.
    @Test func `a reader whose position was removed gets an error`() async throws {
        try await withFreshLog { (log, configuration) async throws in
            try await log.append(LogRecordBatch((0..<40).map { record($0, id: 1) }))
            let partition = LogPartition.of(TraceID(high: 1, low: 7), count: log.partitionCount)
            let backlog = try await log.backlog(beyond: [LogPosition(partition: partition, offset: 15)])
            #expect(backlog.map(\.endOffset) == [40] && backlog.map(\.recordCount) == [25])
            #expect(backlog.first?.oldestReceipt == 1_700_000_000_000_000)
            let beyond = await #expect(throws: SegmentLogError.self) { try await log.read(partition: partition, from: 41) }
            #expect(beyond?.code == .beyondEnd(end: 40))
            try await log.removeRecords(receivedBefore: 1_000_000 * 86_400_000_000)
            var options = PostgresLogOptions()
            options.tailBytes = 0
            try await withLog(configuration, options) { (fresh) async throws in
                try await fresh.append(LogRecordBatch([record(40, id: 1)]))
                let error = await #expect(throws: SegmentLogError.self) { try await fresh.read(partition: partition, from: 39) }
                #expect(error?.code == .trimmed(firstAvailable: 40))
                #expect(try await fresh.startOffsets()[partition] == 40)
                #expect(try await fresh.read(partition: partition, from: 40).entries.count == 1)
            }
        }
    }

    // If this fails, memory grows without bound while PostgreSQL is slow, or a shutdown drops acknowledged requests.
    @Test func `a full queue refuses, and ending writes what was taken`() async throws {
        try await withDatabase { (configuration) async throws in
            try await PostgresLog.migrate(database: configuration)
            var options = PostgresLogOptions()
            options.queueBytes = 10_000
            let log = try await PostgresLog.open(database: configuration, options: options, logger: quietLogger)
            let large = LogRecordBatch([record(1, bytes: [UInt8](repeating: 1, count: 9_000))])
            let first = Task { try await log.append(large) }
            #expect(try await eventually { log.queuedBytes > 0 })
            let full = await #expect(throws: SegmentLogError.self) { try await log.append(large) }
            #expect(full?.code == .full)
            let running = Task { await log.run() }
            running.cancel()
            try await first.value
            await running.value
            let closed = await #expect(throws: SegmentLogError.self) { try await log.append(large) }
            #expect(closed?.code == .closed)
            await log.close()
        }
    }

    // If this fails, a trace changes its partition from one version or log to the next, and is folded twice.
    @Test func `the partition of a trace never changes`() {
        let ids = [TraceID(high: 0, low: 0), TraceID(high: 0x5759_e988_bd86_2e3f, low: 0xe1be_46a9_9427_2793)]
        #expect(ids.map { LogPartition.of($0, count: 4) } == ids.map(reference))
        let counts = (0..<10_000).reduce(into: [Int](repeating: 0, count: 4)) {
            $0[LogPartition.of(TraceID(high: UInt64($1) << 32, low: 0), count: 4)] += 1
        }
        #expect(counts.allSatisfy { (2_200...2_800).contains($0) })
    }

    /// FNV-1a as published, byte by byte.
    private func reference(_ id: TraceID) -> Int {
        var hash: UInt64 = 14_695_981_039_346_656_037
        for word in [id.high, id.low] {
            for byte in withUnsafeBytes(of: word.bigEndian, Array.init) { hash = (hash ^ UInt64(byte)) &* 1_099_511_628_211 }
        }
        return Int((hash ^ (hash >> 32)) % 4)
    }
}
