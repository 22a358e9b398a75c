// What brokers do wrong, and what others write into the topic: nothing acknowledged is lost, nothing stops a partition.

import CKafka
import Logging
import Segments
import Synchronization
import Testing

@testable import SegmentLog

/// librdkafka's mock brokers with a topic `test`, and a log on it.
private func withFaultyKafka(
    partitions: Int = 2, _ adjust: (inout KafkaLogOptions) -> Void = { _ in },
    _ body: (MockKafka, KafkaLog) async throws -> Void
) async throws {
    let mock = try MockKafka(brokerCount: 3, topics: [("test", partitions)])
    defer { mock.stop() }
    var options = LogWorld.kafkaOptions("test", LogWorld.Options())
    options.partitionCount = partitions
    adjust(&options)
    let log = try await KafkaLog.open(brokers: mock.brokers, options: options, logger: quietLogger)
    let running = Task { await log.run() }
    do {
        try await body(mock, log)
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

/// Appends in several tasks, as clients do, and remembers what was acknowledged.
private final class Writers: Sendable {
    let acknowledged = Mutex<Set<UInt64>>([])
    let refused = Mutex<[SegmentLogError]>([])
    private let isOver = Atomic<Bool>(false)

    var count: Int { acknowledged.withLock { $0.count } }

    /// Writes while the body runs; each writer's own records carry rising numbers in one trace id's lower half.
    func whileWriting(to log: KafkaLog, _ body: () async throws -> Void) async throws {
        let tasks = (0..<4).map { writer in
            Task {
                var call: UInt64 = 0
                while !isOver.load(ordering: .relaxed) {
                    let numbers = (0..<5).map { UInt64(writer) << 32 | (call * 5 + $0) }
                    do throws(SegmentLogError) {
                        try await log.append(LogRecordBatch(numbers.map { Self.record($0) }))
                        acknowledged.withLock { $0.formUnion(numbers) }
                    } catch {
                        refused.withLock { $0.append(error) }
                    }
                    call += 1
                    try? await Task.sleep(for: .milliseconds(5))
                }
            }
        }
        do {
            try await body()
        } catch {
            isOver.store(true, ordering: .relaxed)
            throw error
        }
        isOver.store(true, ordering: .relaxed)
        for task in tasks { await task.value }
    }

    private static func record(_ number: UInt64) -> LogRecord {
        LogRecord(
            traceID: TraceID(high: number >> 32, low: 7), account: AccountID(rawValue: 1),
            receivedAt: 1_700_000_000_000_000,
            source: .http, callerARN: "arn:aws:iam::000000000001:root", value: Array("\(number)".utf8))
    }

    /// Everything acknowledged is in the log, and the first appearances of a writer's records are in order.
    func expectNothingLost(in log: KafkaLog) async throws {
        var found: Set<UInt64> = []
        for partition in 0..<log.partitionCount {
            var last: [UInt64: UInt64] = [:]
            for entry in try await log.everything(partition: partition, maxRecords: 2_000) {
                let number = try #require(UInt64(String(decoding: entry.value, as: UTF8.self)))
                guard found.insert(number).inserted else { continue }
                let writer = number >> 32
                #expect(last[writer].map { $0 < number } ?? true)
                last[writer] = number
            }
        }
        let missing = acknowledged.withLock { $0.subtracting(found) }
        #expect(missing.isEmpty)
    }
}

@Suite(.timeLimit(.minutes(2)))
struct KafkaFaultTests {
    // If this fails, a broker's restart loses documents, or ingest does not recover by itself.
    @Test func `a broker that goes and comes back loses nothing acknowledged`() async throws {
        try await withFaultyKafka {
            $0.appendTimeout = .seconds(1)
        } _: { (mock, log) async throws in
            let writers = Writers()
            try await writers.whileWriting(to: log) {
                #expect(try await eventually { writers.count > 50 })
                for broker in 1...3 { try mock.command("down \(broker)") }
                #expect(try await eventually { writers.refused.withLock { $0.count } > 3 })
                for broker in 1...3 { try mock.command("up \(broker)") }
                let before = writers.count
                #expect(try await eventually { writers.count > before + 100 })
            }
            #expect(writers.refused.withLock { $0.allSatisfy { $0.code == .unavailable && !$0.message.isEmpty } })
            try await writers.expectNothingLost(in: log)
        }
    }

    // If this fails, an election or a replica out of sync becomes an error of a client's request.
    @Test(arguments: [6, 7, 19, 20]) func `an error that passes is not seen by who appends`(code: Int) async throws {
        try await withFaultyKafka { (mock, log) async throws in
            let writers = Writers()
            try await writers.whileWriting(to: log) {
                #expect(try await eventually { writers.count > 20 })
                try mock.command("error 0 \(code) 3")
                let before = writers.count
                #expect(try await eventually { writers.count > before + 100 })
            }
            #expect(writers.refused.withLock { $0.isEmpty })
            try await writers.expectNothingLost(in: log)
        }
    }

    // If this fails, one broken sequence stops ingest for ever: librdkafka never leaves its fatal state.
    @Test(arguments: [45, 59]) func `a fatal error of the producer is survived`(code: Int) async throws {
        try await withFaultyKafka { (mock, log) async throws in
            let writers = Writers()
            try await writers.whileWriting(to: log) {
                for round in 1...3 {
                    var before = writers.count
                    #expect(try await eventually { writers.count > before + 20 })
                    try mock.command("error 0 \(code) 1")
                    if code == 45 { #expect(try await eventually { log.producerReplacements >= round }) }
                    before = writers.count
                    #expect(try await eventually { writers.count > before + 50 })
                }
            }
            #expect(writers.refused.withLock { $0.isEmpty })
            try await writers.expectNothingLost(in: log)
        }
    }

    // If this fails, a lost answer hangs the request, or makes the log unusable for the next one.
    @Test func `a record whose acknowledgement is lost may come twice`() async throws {
        try await withFaultyKafka(partitions: 1) {
            $0.appendTimeout = .seconds(1)
        } _: { (mock, log) async throws in
            try await log.append(LogRecordBatch([record(1)]))
            for broker in 1...3 { try mock.command("late \(broker) 0 0 4000 1") }
            let start = ContinuousClock.now
            let lost = await #expect(throws: SegmentLogError.self) { try await log.append(LogRecordBatch([record(2)])) }
            #expect(lost?.code == .unavailable)
            #expect(start.duration(to: .now) < .seconds(3))
            for broker in 1...3 { try mock.command("down \(broker)") }
            for broker in 1...3 { try mock.command("up \(broker)") }
            for broker in 1...3 { try mock.command("rtt \(broker) 0") }
            try mock.command("clear 0")
            #expect(
                try await eventually {
                    do { try await log.append(LogRecordBatch([record(2)])) } catch { return false }
                    return true
                })
            let numbers = try await log.everything(partition: 0).map(\.traceID.high)
            #expect(numbers.filter { $0 == 2 }.count >= 2)
            #expect(log.queuedBytes == 0)
        }
    }

    // If this fails, catching up and rebuilding read a megabyte a second from each partition: librdkafka before 2.2 looks
    // at a full queue once a second only.
    @Test func `reading does not stall behind a full queue`() async throws {
        try await withFaultyKafka(partitions: 1) {
            $0.prefetchBytes = 1 << 20
        } _: { (mock, log) async throws in
            for start in stride(from: 0, to: 440, by: 20) {
                let records = (start..<start + 20).map { number in
                    record(number + 1, bytes: .some((0..<10_000).map { _ in UInt8.random(in: 0...255) }))
                }
                try await log.append(LogRecordBatch(records))
            }
            // Full before the first is taken.
            #expect(try await log.read(partition: 0, from: 0, maxRecords: 1, maxBytes: 1).entries.count == 1)
            #expect(try await eventually { log.consumer.fetchedAhead(of: 0) > 90 })
            let start = ContinuousClock.now
            #expect(try await log.everything(partition: 0, from: 1, maxRecords: 10, maxBytes: 1 << 20).count == 439)
            #expect(start.duration(to: .now) < .milliseconds(2_500))
        }
    }

    // If this fails, a slow network is taken for a broken one.
    @Test func `slow brokers and moving leaders are followed`() async throws {
        try await withFaultyKafka { (mock, log) async throws in
            let writers = Writers()
            try await writers.whileWriting(to: log) {
                for broker in 1...3 { try mock.command("rtt \(broker) 150") }
                for round in 0..<3 {
                    try mock.command("leader test 0 \(round % 3 + 1)")
                    try mock.command("leader test 1 \((round + 1) % 3 + 1)")
                    let before = writers.count
                    #expect(try await eventually { writers.count > before + 40 })
                    #expect(try await log.endOffsets().reduce(0, +) >= Int64(before))
                }
                for broker in 1...3 { try mock.command("rtt \(broker) 0") }
            }
            #expect(writers.refused.withLock { $0.isEmpty })
            try await writers.expectNothingLost(in: log)
        }
    }

    // If this fails, one oversized record fails everybody's requests, or a lowered limit of the broker stops ingest.
    @Test func `a record too large is refused alone, a batch too large is divided`() async throws {
        try await withFaultyKafka { (mock, log) async throws in
            async let good: Void = log.append(LogRecordBatch([record(1)]))
            let huge = LogRecordBatch([record(2, bytes: .some([UInt8](repeating: 1, count: 2_000_000)))])
            let error = await #expect(throws: SegmentLogError.self) { try await log.append(huge) }
            #expect(error?.code == .tooLarge && error?.isRetriable == false)
            #expect(error?.message.contains("max.message.bytes") == true)
            try await good
            let writers = Writers()
            try await writers.whileWriting(to: log) {
                #expect(try await eventually { writers.count > 20 })
                try mock.command("error 0 10 1")
                #expect(try await eventually { log.producerReplacements == 1 })
                let before = writers.count
                #expect(try await eventually { writers.count > before + 50 })
            }
            #expect(writers.refused.withLock { $0.isEmpty })
            #expect(log.queuedBytes == 0)
        }
    }

    // If this fails, a request waits for minutes while no broker is there, and the start says nothing useful.
    @Test func `without brokers the calls fail in time and say why`() async throws {
        try await withFaultyKafka {
            $0.appendTimeout = .milliseconds(700)
        } _: { (mock, log) async throws in
            try await log.append(LogRecordBatch([record(1)]))
            for broker in 1...3 { try mock.command("down \(broker)") }
            let start = ContinuousClock.now
            let error = await #expect(throws: SegmentLogError.self) {
                try await log.append(LogRecordBatch([record(2)]))
            }
            #expect(error?.code == .unavailable && start.duration(to: .now) < .seconds(3))
            let ends = await #expect(throws: SegmentLogError.self) { try await log.endOffsets() }
            #expect(ends?.code == .unavailable)
        }
        var options = KafkaLogOptions()
        options.openTimeout = .milliseconds(300)
        let open = await #expect(throws: SegmentLogError.self) {
            try await KafkaLog.open(brokers: "127.0.0.1:1", options: options, logger: quietLogger)
        }
        #expect(open?.code == .unavailable && open?.message.contains("127.0.0.1:1") == true)
        options.properties = [("no.such.setting", "1")]
        let setting = await #expect(throws: SegmentLogError.self) {
            try await KafkaLog.open(brokers: "127.0.0.1:1", options: options, logger: quietLogger)
        }
        #expect(setting?.code == .misconfigured && setting?.message.contains("no.such.setting") == true)
    }

    // If this fails, somebody else's record stops a partition for everybody.
    @Test(arguments: [LogKind.kafka, .mockKafka])
    func `whatever others write is read as poison, and the partition moves on`(kind: LogKind) async throws {
        try await LogWorld.with(kind, partitions: 1) { (world) async throws in
            var options = LogWorld.Options()
            options.partitionCount = 1
            let plain = try #require(world.plain)
            if kind == .kafka {
                try plain.createTopic(partitions: 1, settings: ["max.message.bytes": "4000000", "retention.ms": "-1"])
            }
            try await world.withLog(options) { (log) async throws in
                let key = [UInt8](repeating: 7, count: 16)
                let json = Array("{}".utf8)
                func headers(_ changes: [String: String?] = [:]) -> [(String, String?)] {
                    var all: [String: String?] = [
                        "beamline-version": "1", "beamline-account": "000000000042",
                        "beamline-received": "1700000000000000", "beamline-source": "http",
                    ]
                    for (name, value) in changes { all.updateValue(value, forKey: name) }
                    return all.map { ($0.key, $0.value) }
                }
                try await log.append(LogRecordBatch([record(1)]))
                try plain.write(partition: 0, key: nil, value: json)
                try plain.write(partition: 0, key: nil, value: nil)
                try plain.write(partition: 0, key: [], value: [])
                try plain.write(partition: 0, key: [1, 2, 3], value: json, headers: headers())
                try plain.write(partition: 0, key: key, value: json)
                try plain.write(partition: 0, key: key, value: json, headers: headers(["beamline-version": "2"]))
                try plain.write(
                    partition: 0, key: key, value: json, headers: headers(["beamline-version": String?.none]))
                try plain.write(partition: 0, key: key, value: json, headers: headers(["beamline-account": "x"]))
                try plain.write(partition: 0, key: key, value: json, headers: headers(["beamline-received": "-1"]))
                try plain.write(
                    partition: 0, key: key, value: json, headers: headers(["beamline-received": "999999999999999999"]))
                try plain.write(partition: 0, key: key, value: json, headers: headers(["beamline-source": ""]))
                try plain.write(partition: 0, key: key, value: json, headers: headers(["beamline-kind": "other"]))
                try plain.write(
                    partition: 0, key: key, value: json,
                    headers: headers(["beamline-caller": String(repeating: "x", count: 3_000)]))
                try plain.write(partition: 0, key: key, value: nil, headers: headers())
                try plain.write(
                    partition: 0, key: key, value: [UInt8](repeating: 9, count: 2 << 20), headers: headers())
                // These two are as Beamline writes them: what the value says is for the fold to judge.
                try plain.write(partition: 0, key: key, value: Array("not JSON".utf8), headers: headers())
                try plain.write(partition: 0, key: key, value: nil, headers: headers(["beamline-kind": "touch"]))
                try plain.flush()
                try await log.append(LogRecordBatch([record(2)]))

                let entries = try await log.everything(partition: 0)
                try #require(entries.count == 19)
                let poisoned = entries.filter { $0.poison != nil }
                try #require(poisoned.map(\.offset) == Array(1...15))
                #expect(poisoned.allSatisfy { $0.value.count <= 64 << 10 && $0.receivedAt > 0 })
                #expect(poisoned.filter { $0.account == AccountID(rawValue: 42) }.count == 10)
                #expect(poisoned[3].value.elementsEqual(json) && poisoned[14].value.count == 64 << 10)
                #expect(Set(poisoned.compactMap(\.poison)).count >= 10)
                #expect(entries[17].kind == .touch && !entries[17].hasValue)
                let positions = [LogPosition(partition: 0, offset: 1)]
                #expect(try await log.backlog(beyond: positions).first?.recordCount == 18)
            }
        }
    }

    // If this fails, an aborted transaction's records are folded, or a reader waits for ever behind its markers.
    @Test func `records of aborted transactions are skipped, and offsets go on behind their markers`() async throws {
        try await LogWorld.with(.kafka) { (world) async throws in
            var options = LogWorld.Options()
            options.partitionCount = 1
            try await world.withLog(options) { (log) async throws in
                let plain = try #require(world.plain)
                let brokers = try await NoidaKafka.shared.brokers()
                let writer = try PlainKafka(
                    brokers: brokers, topic: plain.topic, settings: ["transactional.id": plain.topic])
                try await log.append(LogRecordBatch([record(1)]))
                try writer.inTransaction(commits: false) { try writer.write(partition: 0, key: nil, value: [1]) }
                try writer.inTransaction(commits: true) { try writer.write(partition: 0, key: nil, value: [2]) }
                try writer.inTransaction(commits: false) { try writer.write(partition: 0, key: nil, value: [3]) }
                let end = try await log.endOffsets()[0]
                #expect(end > 2)
                var values: [[UInt8]] = []
                var offset: Int64 = 0
                #expect(
                    try await eventually {
                        let batch = try await log.read(partition: 0, from: offset)
                        values += batch.entries.map { Array($0.value) }
                        offset = batch.nextOffset
                        return offset == end
                    })
                #expect(values == [Array("document 1".utf8), [2]])
            }
        }
    }

    // If this fails, a compacted topic silently keeps one document per trace, or a new topic is taken for the old one.
    @Test func `a topic that does not fit is refused`() async throws {
        let brokers = try await NoidaKafka.shared.brokers()
        var options = LogWorld.kafkaOptions("fit.\(UInt64.random(in: 0 ... .max))", LogWorld.Options())
        let plain = try PlainKafka(brokers: brokers, topic: options.topic)
        try plain.createTopic(partitions: 2, settings: ["cleanup.policy": "compact"])
        let compacted = await #expect(throws: SegmentLogError.self) {
            try await KafkaLog.open(brokers: brokers, options: options, logger: quietLogger)
        }
        #expect(compacted?.code == .misconfigured && compacted?.message.contains("compact") == true)
        options.topic = "fit.\(UInt64.random(in: 0 ... .max))"
        let log = try await KafkaLog.open(brokers: brokers, options: options, logger: quietLogger)
        #expect(log.partitionCount == 4)
        await log.close()
        options.knownPartitionCount = 5
        let fewer = await #expect(throws: SegmentLogError.self) {
            try await KafkaLog.open(brokers: brokers, options: options, logger: quietLogger)
        }
        #expect(fewer?.code == .misconfigured && fewer?.message.contains("5") == true)
    }

    // If this fails, tools that watch consumer groups do not see the aggregators' lag.
    @Test func `positions are committed to the consumer group`() async throws {
        try await LogWorld.with(.kafka) { (world) async throws in
            try await world.withLog { (log) async throws in
                let plain = try #require(world.plain)
                try await log.append(LogRecordBatch((0..<40).map { record($0) }))
                let positions = try await log.endOffsets().enumerated().map {
                    LogPosition(partition: $0.offset, offset: $0.element)
                }
                log.positionsCommitted(positions)
                #expect(
                    try await eventually {
                        try plain.committed(partitions: 4, group: "beamline-aggregators") == positions.map(\.offset)
                    })
            }
        }
    }
}
