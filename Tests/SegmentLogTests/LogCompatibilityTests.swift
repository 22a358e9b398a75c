// What every log promises, tried with each: PostgreSQL, Kafka with a broker that keeps its topics, Kafka with three mock
// brokers. What one of them cannot be brought to do is declared in `LogKind`.

import Logging
import PostgreSQL
import Segments
import Synchronization
import Testing

@testable import SegmentLog

enum LogKind: String, CaseIterable, Sendable, CustomTestStringConvertible {
    case postgres, kafka, mockKafka
    var testDescription: String { rawValue }

    /// A mock broker's topic cannot be given partitions.
    static let growing: [LogKind] = [.postgres, .kafka]
}

/// A fresh log of one kind, to be opened any number of times.
struct LogWorld: Sendable {
    struct Options: Sendable {
        var partitionCount = 4
        var queueBytes: Int?
        /// Appends stay in the queue for a while.
        var isSlow = false
    }

    let kind: LogKind
    let open: @Sendable (Options) async throws -> any SegmentLog
    let plain: PlainKafka?

    static func with(_ kind: LogKind, partitions: Int = 4, _ body: (LogWorld) async throws -> Void) async throws {
        switch kind {
        case .postgres:
            try await withDatabase { (configuration) async throws in
                try await PostgresLog.migrate(database: configuration)
                let world = LogWorld(
                    kind: kind,
                    open: { options in
                        var own = PostgresLogOptions()
                        own.partitionCount = options.partitionCount
                        own.growthInterval = .milliseconds(50)
                        if let bytes = options.queueBytes { own.queueBytes = bytes }
                        return try await PostgresLog.open(database: configuration, options: own, logger: quietLogger)
                    }, plain: nil)
                try await body(world)
            }
        case .kafka:
            let topic = "test.\(UInt64.random(in: 0 ... .max))"
            let brokers = try await NoidaKafka.shared.brokers()
            let plain = try PlainKafka(brokers: brokers, topic: topic, settings: ["message.max.bytes": "4000000"])
            try await body(kafka(kind, brokers: brokers, topic: topic, plain: plain))
        case .mockKafka:
            let mock = try MockKafka(brokerCount: 3, topics: [("test", partitions)])
            defer { mock.stop() }
            let plain = try PlainKafka(brokers: mock.brokers, topic: "test", settings: ["message.max.bytes": "4000000"])
            try await body(kafka(kind, brokers: mock.brokers, topic: "test", plain: plain))
        }
    }

    private static func kafka(_ kind: LogKind, brokers: String, topic: String, plain: PlainKafka) -> LogWorld {
        LogWorld(
            kind: kind,
            open: { options in
                try await KafkaLog.open(brokers: brokers, options: kafkaOptions(topic, options), logger: quietLogger)
            }, plain: plain)
    }

    static func kafkaOptions(_ topic: String, _ options: Options) -> KafkaLogOptions {
        var own = KafkaLogOptions()
        own.topic = topic
        own.partitionCount = options.partitionCount
        own.addsPartitions = true
        own.growthInterval = .milliseconds(50)
        // The machine of the tests may be busy.
        own.appendTimeout = .seconds(20)
        own.readTimeout = .seconds(20)
        // The records of the tests are of 2023.
        own.retention = .seconds(100 * 365 * 86_400)
        if let bytes = options.queueBytes { own.queueBytes = bytes }
        if options.isSlow { own.linger = .seconds(60) }
        return own
    }

    /// Opens the log and runs it as long as the body.
    func withLog(_ options: Options = Options(), _ body: (any SegmentLog) async throws -> Void) async throws {
        let log = try await open(options)
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
}

extension SegmentLog {
    func read(partition: Int, from offset: Int64) async throws(SegmentLogError) -> LogBatch {
        try await read(partition: partition, from: offset, maxRecords: 2_000, maxBytes: 4 << 20)
    }
}

@Suite(.timeLimit(.minutes(2)))
struct LogCompatibilityTests {
    // If this fails, what was acknowledged is not what is folded, or not in its order.
    @Test(arguments: LogKind.allCases)
    func `what is appended is read back by another node, in order`(kind: LogKind) async throws {
        try await LogWorld.with(kind) { (world) async throws in
            try await world.withLog { (log) async throws in
                let records = (0..<500).map { record($0, id: UInt64($0 % 40)) }
                for start in stride(from: 0, to: 500, by: 25) {
                    try await log.append(LogRecordBatch(Array(records[start..<start + 25])))
                }
                try await world.withLog { (other) async throws in
                    #expect(other.partitionCount == 4)
                    #expect(try await other.endOffsets().reduce(0, +) == 500)
                    #expect(try await other.startOffsets() == [0, 0, 0, 0])
                    for partition in 0..<4 {
                        let expected = records.filter { LogPartition.of($0.traceID, count: 4) == partition }
                        let entries = try await other.everything(partition: partition)
                        #expect(entries.count == expected.count)
                        for (entry, record) in zip(entries, expected) { expectEqual(entry, record) }
                        #expect(entries.allSatisfy { $0.poison == nil })
                    }
                }
            }
        }
    }

    // If this fails, a worker that takes over a partition folds from the wrong place.
    @Test(arguments: LogKind.allCases)
    func `reading begins at any offset, forwards and backwards`(kind: LogKind) async throws {
        try await LogWorld.with(kind, partitions: 1) { (world) async throws in
            var options = LogWorld.Options()
            options.partitionCount = 1
            try await world.withLog(options) { (log) async throws in
                try await log.append(LogRecordBatch((0..<300).map { record($0) }))
                for offset: Int64 in [0, 299, 150, 151, 10, 300, 7] {
                    let batch = try await log.read(partition: 0, from: offset, maxRecords: 3, maxBytes: 1 << 20)
                    let expected = Array(offset..<min(300, offset + 3))
                    #expect(batch.entries.map(\.offset) == expected)
                    #expect(batch.entries.map { Int64($0.traceID.high) } == expected)
                    #expect(batch.from == offset && batch.nextOffset == offset + Int64(expected.count))
                    #expect(batch.endOffset == 300 || batch.endOffset >= batch.nextOffset)
                }
                let beyond = await #expect(throws: SegmentLogError.self) { try await log.read(partition: 0, from: 350) }
                #expect(beyond?.code == .beyondEnd(end: 300))
                let one = try await log.read(partition: 0, from: 20, maxRecords: 100, maxBytes: 1)
                #expect(one.entries.map(\.offset) == [20])
                await #expect(throws: SegmentLogError.self) { try await log.read(partition: 1, from: 0) }
            }
        }
    }

    // If this fails, a legal record stops the log or comes back as another.
    @Test(arguments: LogKind.allCases)
    func `empty, missing and large values survive`(kind: LogKind) async throws {
        try await LogWorld.with(kind, partitions: 1) { (world) async throws in
            var options = LogWorld.Options()
            options.partitionCount = 1
            try await world.withLog(options) { (log) async throws in
                var generator = SystemRandomNumberGenerator()
                let noise = (0..<900_000).map { _ in UInt8.random(in: 0...255, using: &generator) }
                let values: [[UInt8]?] = [
                    [], [0], Array(repeating: 0x20, count: 70_000), noise, [0xff, 0xfe], Array("{}".utf8),
                ]
                var records = values.enumerated().map { record($0.offset + 1, bytes: .some($0.element)) }
                records.append(record(11, bytes: .some(nil)))
                records.append(record(22, bytes: .some([])))
                try await log.append(LogRecordBatch(records))
                let entries = try await log.everything(partition: 0, maxRecords: 2_000, maxBytes: 1_000)
                #expect(entries.count == records.count)
                for (entry, record) in zip(entries, records) { expectEqual(entry, record) }
            }
        }
    }

    // If this fails, acknowledged documents are lost or doubled when several nodes write at once.
    @Test(arguments: LogKind.allCases)
    func `concurrent appenders lose nothing, and a waiting reader follows them`(kind: LogKind) async throws {
        try await LogWorld.with(kind) { (world) async throws in
            try await world.withLog { (log) async throws in
                try await world.withLog { (second) async throws in
                    let total = 16 * 10 * 10
                    let reader = Task {
                        var numbers: [UInt64] = []
                        var positions = [Int64](repeating: 0, count: 4)
                        while numbers.count < total {
                            let waiting = positions.enumerated().map {
                                LogPosition(partition: $0.offset, offset: $0.element)
                            }
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
                        for caller in 0..<16 {
                            group.addTask {
                                let node: any SegmentLog = caller % 2 == 0 ? log : second
                                for call in 0..<10 {
                                    let first = (caller * 10 + call) * 10
                                    try await node.append(LogRecordBatch((first..<first + 10).map { record($0) }))
                                }
                            }
                        }
                        try await group.waitForAll()
                    }
                    let acknowledged = try await log.endOffsets()
                    #expect(acknowledged.reduce(0, +) == Int64(total))
                    #expect(try await reader.value.sorted() == (0..<UInt64(total)).map { $0 })
                }
            }
        }
    }

    // If this fails, a read does not see what was acknowledged before it (read your writes).
    @Test(arguments: LogKind.allCases)
    func `the ends include what any node has acknowledged`(kind: LogKind) async throws {
        try await LogWorld.with(kind) { (world) async throws in
            try await world.withLog { (writer) async throws in
                try await world.withLog { (reader) async throws in
                    for count in 1...20 {
                        try await writer.append(LogRecordBatch([record(count)]))
                        #expect(try await reader.endOffsets().reduce(0, +) == Int64(count))
                    }
                }
            }
        }
    }

    // If this fails, a restart loses or repeats offsets.
    @Test(arguments: LogKind.allCases)
    func `a log opened again goes on where it ended`(kind: LogKind) async throws {
        try await LogWorld.with(kind) { (world) async throws in
            for round in 0..<3 {
                try await world.withLog { (log) async throws in
                    #expect(try await log.endOffsets().reduce(0, +) == Int64(round * 10))
                    try await log.append(LogRecordBatch((round * 10..<round * 10 + 10).map { record($0) }))
                    var numbers: [UInt64] = []
                    for partition in 0..<4 {
                        numbers += try await log.everything(partition: partition).map(\.traceID.high)
                    }
                    #expect(numbers.sorted() == (0..<UInt64(round * 10 + 10)).map { $0 })
                }
            }
        }
    }

    // If this fails, a burst is cut off or stalls.
    @Test(arguments: LogKind.allCases)
    func `a large batch is appended and read in one piece`(kind: LogKind) async throws {
        try await LogWorld.with(kind, partitions: 1) { (world) async throws in
            var options = LogWorld.Options()
            options.partitionCount = 1
            try await world.withLog(options) { (log) async throws in
                try await log.append(LogRecordBatch((0..<20_000).map { record($0) }))
                let entries = try await log.everything(partition: 0, maxRecords: 5_000, maxBytes: 64 << 20)
                #expect(entries.map { Int($0.traceID.high) } == Array(0..<20_000))
            }
        }
    }

    // If this fails, lag and completeness of reads are wrong.
    @Test(arguments: LogKind.allCases)
    func `the backlog counts what lies beyond a position and knows its oldest receipt`(kind: LogKind) async throws {
        try await LogWorld.with(kind, partitions: 2) { (world) async throws in
            var options = LogWorld.Options()
            options.partitionCount = 2
            try await world.withLog(options) { (log) async throws in
                let partition = LogPartition.of(TraceID(high: 1, low: 7), count: 2)
                let other = 1 - partition
                var records = (0..<40).map { record($0, id: 1) }
                for index in records.indices {
                    records[index].receivedAt = 1_700_000_000_000_000 + Int64((index * 7) % 40)
                }
                try await log.append(LogRecordBatch(records))
                for (offset, oldest) in [(0, 0), (15, 1), (37, 19), (39, 33)] as [(Int64, Int64)] {
                    let positions = [
                        LogPosition(partition: partition, offset: offset), LogPosition(partition: other, offset: 0),
                    ]
                    let backlog = try await log.backlog(beyond: positions)
                    #expect(Set(backlog.map(\.partition)) == [0, 1])
                    let found = try #require(backlog.first { $0.partition == partition })
                    #expect(found.endOffset == 40 && found.recordCount == 40 - offset)
                    // Another log may look at whole batches and so find an older one.
                    let receipt = try #require(found.oldestReceipt)
                    #expect(receipt <= 1_700_000_000_000_000 + oldest)
                    if kind != .postgres { #expect(receipt == 1_700_000_000_000_000 + oldest) }
                    let empty = try #require(backlog.first { $0.partition == other })
                    #expect(empty.recordCount == 0 && empty.oldestReceipt == nil)
                }
                let end = try await log.backlog(beyond: [LogPosition(partition: partition, offset: 40)])
                #expect(end.first?.recordCount == 0 && end.first?.oldestReceipt == nil)
            }
        }
    }

    // If this fails, a worker with nothing to do burns a core, or documents become visible late.
    @Test(arguments: LogKind.allCases)
    func `waiting ends with news, and otherwise with its time`(kind: LogKind) async throws {
        try await LogWorld.with(kind) { (world) async throws in
            try await world.withLog { (log) async throws in
                let positions = (0..<4).map { LogPosition(partition: $0, offset: 0) }
                let start = ContinuousClock.now
                await log.waitForRecords(beyond: positions, timeout: .milliseconds(300))
                #expect(start.duration(to: .now) >= .milliseconds(290))
                let waiting = Task {
                    let start = ContinuousClock.now
                    await log.waitForRecords(beyond: positions, timeout: .seconds(60))
                    return start.duration(to: .now)
                }
                try await log.append(LogRecordBatch([record(1)]))
                #expect(await waiting.value < .seconds(30))
                await log.waitForRecords(beyond: positions, timeout: .seconds(60))
            }
        }
    }

    // If this fails, a raised partition count needs a restart of every node, or readers miss the new partitions.
    @Test(arguments: LogKind.growing)
    func `partitions added while running are noticed, written and read`(kind: LogKind) async throws {
        try await LogWorld.with(kind) { (world) async throws in
            try await world.withLog { (log) async throws in
                try await log.append(LogRecordBatch((0..<50).map { record($0) }))
                var wider = LogWorld.Options()
                wider.partitionCount = 7
                try await world.withLog(wider) { (second) async throws in
                    #expect(try await eventually { second.partitionCount == 7 })
                    #expect(try await eventually { log.partitionCount == 7 })
                    try await log.append(LogRecordBatch((50..<200).map { record($0) }))
                    #expect(try await second.endOffsets().suffix(3).allSatisfy { $0 > 0 })
                    var numbers: [UInt64] = []
                    for partition in 0..<7 {
                        numbers += try await log.everything(partition: partition).map(\.traceID.high)
                    }
                    #expect(numbers.sorted() == (0..<200).map { UInt64($0) })
                }
            }
        }
    }

    // If this fails, retention silently swallows documents that were never folded.
    @Test(arguments: LogKind.allCases)
    func `a reader whose position was removed gets an error, and can go on`(kind: LogKind) async throws {
        try await LogWorld.with(kind, partitions: 1) { (world) async throws in
            var options = LogWorld.Options()
            options.partitionCount = 1
            try await world.withLog(options) { (log) async throws in
                try await log.append(LogRecordBatch((0..<40).map { record($0) }))
                #expect(try await log.read(partition: 0, from: 0, maxRecords: 5, maxBytes: 1 << 20).nextOffset == 5)
                switch kind {
                case .postgres: try await log.removeRecords(receivedBefore: 1_000_000 * 86_400_000_000)
                case .kafka: try world.plain?.removeRecords(partition: 0, before: 40)
                case .mockKafka:
                    // Keeps 5 MB of a partition.
                    for number in 0..<20 {
                        let noise = (0..<600_000).map { _ in UInt8.random(in: 0...255) }
                        try await log.append(LogRecordBatch([record(number + 1, bytes: .some(noise))]))
                    }
                }
                try await world.withLog(options) { (fresh) async throws in
                    try await fresh.append(LogRecordBatch([record(40)]))
                    let start = try await fresh.startOffsets()[0]
                    #expect(start >= 40)
                    let error = await #expect(throws: SegmentLogError.self) {
                        try await fresh.read(partition: 0, from: 7)
                    }
                    #expect(error?.code == .trimmed(firstAvailable: start))
                    let rest = try await fresh.read(partition: 0, from: start)
                    #expect(rest.entries.first?.offset == start)
                    #expect(
                        try await fresh.endOffsets()[0]
                            == fresh.everything(partition: 0, from: start).last.map { $0.offset + 1 })
                }
            }
        }
    }

    // If this fails, a read that is behind takes seconds to say so.
    @Test(arguments: LogKind.allCases)
    func `what waits beyond a position is told soon, however much it is`(kind: LogKind) async throws {
        try await LogWorld.with(kind) { (world) async throws in
            try await world.withLog { (log) async throws in
                let bytes = [UInt8](repeating: UInt8(ascii: "x"), count: 1_200)
                for start in stride(from: 0, to: 3_000, by: 500) {
                    try await log.append(LogRecordBatch((start..<start + 500).map { record($0, bytes: .some(bytes)) }))
                }
                let positions = (0..<4).map { LogPosition(partition: $0, offset: 0) }
                _ = try await log.backlog(beyond: positions)
                var spent = Duration.zero
                for round in 1...5 {
                    // What was found out before holds no more.
                    try await log.append(LogRecordBatch((0..<40).map { record($0) }))
                    let began = ContinuousClock.now
                    let backlog = try await log.backlog(beyond: positions)
                    spent += .now - began
                    #expect(backlog.reduce(0) { $0 + $1.recordCount } == Int64(3_000 + 40 * round))
                    #expect(backlog.allSatisfy { $0.oldestReceipt != nil })
                }
                #expect(spent < .seconds(2))
            }
        }
    }

    /// A lone record goes to Kafka at once; the next one of its partition lingers. The log in PostgreSQL writes nothing before it runs.
    /// - Returns: how many records were appended.
    private func beginLingering(_ kind: LogKind, _ log: any SegmentLog) async throws -> Int64 {
        if kind == .postgres { return 0 }
        try await log.append(LogRecordBatch([record(1)]))
        return 1
    }

    // If this fails, memory grows without bound while the log is slow, or a shutdown drops acknowledged requests.
    @Test(arguments: LogKind.allCases)
    func `a full queue refuses, and ending writes what was taken`(kind: LogKind) async throws {
        try await LogWorld.with(kind) { (world) async throws in
            var options = LogWorld.Options()
            options.queueBytes = 10_000
            options.isSlow = true
            let log = try await world.open(options)
            let large = LogRecordBatch([record(1, bytes: .some([UInt8](repeating: 1, count: 9_000)))])
            let before = try await beginLingering(kind, log)
            let first = Task { try await log.append(large) }
            #expect(try await eventually { log.queuedBytes > 0 })
            let full = await #expect(throws: SegmentLogError.self) { try await log.append(large) }
            #expect(full?.code == .full && full?.isRetriable == true)
            let running = Task { await log.run() }
            running.cancel()
            try await first.value
            await running.value
            #expect(log.queuedBytes == 0)
            let closed = await #expect(throws: SegmentLogError.self) { try await log.append(large) }
            #expect(closed?.code == .closed)
            await log.close()
            let after = await #expect(throws: SegmentLogError.self) { try await log.append(large) }
            #expect(after?.code == .closed)
            try await world.withLog { (log) async throws in
                #expect(try await log.endOffsets().reduce(0, +) == before + 1)
            }
        }
    }

    // If this fails, a request hangs for ever when its node is stopped.
    @Test(arguments: LogKind.allCases)
    func `closing answers whoever waits`(kind: LogKind) async throws {
        try await LogWorld.with(kind) { (world) async throws in
            var options = LogWorld.Options()
            options.isSlow = true
            let log = try await world.open(options)
            _ = try await beginLingering(kind, log)
            let waiting = Task { () -> SegmentLogError? in
                do throws(SegmentLogError) {
                    try await log.append(LogRecordBatch([record(1)]))
                    return nil
                } catch { return error }
            }
            #expect(try await eventually { log.queuedBytes > 0 })
            await log.close()
            let error = await waiting.value
            #expect(error == nil || error?.code == .closed)
            await log.close()
        }
    }
}
