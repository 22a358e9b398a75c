// The log in Kafka: a topic whose records any other consumer can read (their form: `KafkaRecord.swift`). Ingest nodes write
// it with an idempotent producer, aggregators read it from the positions they keep in PostgreSQL. Nothing here depends on
// the group protocol, on transactions, or on more than Apache Kafka 3.8 promises.

import CKafka
import Foundation
import Logging
import Segments
import Synchronization

public struct KafkaLogOptions: Sendable {
    public var topic = "beamline.segments"
    /// Used when the topic is created.
    public var partitionCount = 12
    /// Whether a topic that exists and has fewer gets the missing ones. Partitions cannot be taken away again.
    public var addsPartitions = false
    /// The topic must have at least as many: positions of so many partitions are known.
    public var knownPartitionCount = 0
    /// Nil: 3, or the number of brokers if that is less.
    public var replicationFactor: Int?
    /// How long a created topic keeps records.
    public var retention: Duration = .seconds(7 * 86_400)
    /// Positions are committed to it for tools that watch the lag; nobody joins it.
    public var consumerGroup = "beamline-aggregators"
    /// Settings of librdkafka for all clients (`security.protocol`, `sasl.…`, `ssl.…`, `client.rack`).
    public var properties: [(name: String, value: String)] = []
    /// Bound of what waits to be acknowledged; beyond it `append` throws `.full`. librdkafka holds a second copy.
    public var queueBytes = 48 << 20
    /// After it an append that is not acknowledged fails. Less than the 2 s after which the X-Ray daemon gives up.
    public var appendTimeout: Duration = .milliseconds(1_900)
    /// How long the records of a partition wait for others after a request: a lone one is sent at once.
    public var linger: Duration = .milliseconds(5)
    /// Bytes of records fetched ahead, all partitions together; not less than 1 MiB for each.
    public var prefetchBytes = 96 << 20
    /// Values larger than this cannot be documents: the record is marked as poison.
    public var maxValueBytes = 1_000_000
    /// How long a read waits for the brokers before it fails.
    public var readTimeout: Duration = .seconds(5)
    /// How long `open` waits for a broker.
    public var openTimeout: Duration = .seconds(10)
    /// How often the brokers are asked for new partitions.
    public var growthInterval: Duration = .seconds(5)
    /// How many of the next records are looked at for the oldest receipt time.
    public var backlogRecords = 100

    public init() {}
}

public final class KafkaLog: SegmentLog {
    public var partitionCount: Int { known.count.load(ordering: .relaxed) }
    public var queuedBytes: Int { producer.queuedBytes }
    /// How often a broken producer was replaced, for metrics.
    public var producerReplacements: Int { producer.replacements.load(ordering: .relaxed) }

    /// Shared with the producer, which must not hold the log.
    private final class Known: Sendable {
        let count: Atomic<Int>
        init(_ count: Int) { self.count = Atomic(count) }
    }

    private let known: Known
    private let options: KafkaLogOptions
    private let logger: Logger
    private let producer: KafkaProducer
    let consumer: KafkaConsumer
    private let queries: KafkaQueries
    private let preview: KafkaPreview
    private let cached = Mutex<[Int: CachedReceipt]>([:])

    /// The oldest receipt time in [position, end) of a partition. It stays true for these bounds.
    private struct CachedReceipt {
        var position: Int64
        var end: Int64
        var oldest: Micros?
    }

    private init(
        known: Known, options: KafkaLogOptions, producer: KafkaProducer, consumer: KafkaConsumer, queries: KafkaQueries,
        preview: KafkaPreview, logger: Logger
    ) {
        self.known = known
        self.options = options
        self.producer = producer
        self.consumer = consumer
        self.queries = queries
        self.preview = preview
        self.logger = logger
    }

    // MARK: Opening and closing

    /// Connects, and creates the topic if it does not exist. The caller runs `run()` and ends with `close()`.
    /// - Parameter brokers: `host:port`, several with commas.
    /// - Throws: `.unavailable` when no broker answers; `.misconfigured` when a setting or the topic does not fit.
    public static func open(
        brokers: String, options: KafkaLogOptions = .init(), logger: Logger
    ) async throws(SegmentLogError) -> KafkaLog {
        let settings = Settings(brokers: brokers, options: options)
        let clock: @Sendable () -> Micros = { Micros(Date().timeIntervalSince1970 * 1_000_000) }
        let queries = try KafkaQueries(
            settings: settings.queries, topic: options.topic, timeout: .seconds(2), logger: logger)
        var preview: KafkaPreview?
        var consumer: KafkaConsumer?
        do throws(SegmentLogError) {
            let count = try await prepareTopic(queries, brokers: brokers, options: options, logger: logger)
            let topicSettings = await check(queries, options: options, logger: logger)
            try refuseCompaction(topicSettings, options: options)
            let known = Known(count)
            let openPreview = try KafkaPreview(
                settings: settings.preview, topic: options.topic, maxRecords: options.backlogRecords, logger: logger,
                clock: clock)
            preview = openPreview
            let openConsumer = try KafkaConsumer(
                settings: settings.consumer(partitionCount: count), topic: options.topic,
                maxValueBytes: options.maxValueBytes, prefetchBytes: settings.prefetchShare(partitionCount: count),
                logger: logger, clock: clock)
            consumer = openConsumer
            let batchBytes = topicSettings["max.message.bytes"].flatMap { Int($0) } ?? 1_000_000
            let producer = try KafkaProducer(
                settings: settings.producer, topic: options.topic, queueBytes: options.queueBytes,
                timeout: options.appendTimeout, linger: options.linger,
                batchBytes: max(16 << 10, min(1_000_000, batchBytes)),
                partitionCount: { known.count.load(ordering: .relaxed) }, logger: logger)
            return KafkaLog(
                known: known, options: options, producer: producer, consumer: openConsumer, queries: queries,
                preview: openPreview, logger: logger)
        } catch {
            await consumer?.close()
            await preview?.close()
            await queries.close()
            throw error
        }
    }

    private static func prepareTopic(
        _ queries: KafkaQueries, brokers: String, options: KafkaLogOptions, logger: Logger
    ) async throws(SegmentLogError) -> Int {
        var found: KafkaQueries.Topic?
        do throws(SegmentLogError) {
            found = try await queries.topic(timeout: options.openTimeout)
        } catch  where error.code == .unavailable {
            throw SegmentLogError(
                .unavailable,
                "no Kafka broker answered at \(brokers) for \(options.openTimeout): is the list right and a broker up? (\(error))"
            )
        }
        if let topic = found, topic.partitionCount == 0 {
            let replicas = options.replicationFactor ?? min(3, max(1, topic.brokerCount))
            var settings: [(name: String, value: String)] = [
                ("cleanup.policy", "delete"), ("retention.ms", "\(options.retention.wholeMilliseconds)"),
                // Retention goes by the brokers' clock: a node whose clock is wrong must not have its records removed early.
                ("message.timestamp.type", "LogAppendTime"),
            ]
            // Acknowledged by all replicas in sync means two at least.
            if replicas >= 3 { settings.append(("min.insync.replicas", "2")) }
            try await queries.createTopic(
                partitions: max(1, options.partitionCount), replicas: replicas, settings: settings)
            logger.info(
                "created the topic of the log",
                metadata: [
                    "topic": "\(options.topic)", "partitions": "\(options.partitionCount)", "replicas": "\(replicas)",
                ])
            let deadline = ContinuousClock.now + options.openTimeout
            // The brokers tell each other.
            while (found?.partitionCount ?? 0) == 0, ContinuousClock.now < deadline {
                try? await Task.sleep(for: .milliseconds(20))
                found = try await queries.topic(timeout: options.openTimeout)
            }
        }
        guard let count = found?.partitionCount, count > 0 else {
            throw SegmentLogError(.unavailable, "topic \(options.topic) has no partitions yet")
        }
        if count < options.knownPartitionCount {
            throw SegmentLogError(
                .misconfigured,
                "topic \(options.topic) has \(count) partitions, but positions of \(options.knownPartitionCount) are known: was it deleted and created again?"
            )
        }
        if count < options.partitionCount, options.addsPartitions {
            // As with the log in PostgreSQL: a node that wants more partitions makes them, the others notice.
            do throws(SegmentLogError) {
                try await queries.addPartitions(total: options.partitionCount)
            } catch {
                // Somebody who may change the topic can still add them, while everything runs.
                logger.warning(
                    "the topic has fewer partitions than configured, and they cannot be added",
                    metadata: [
                        "topic": "\(options.topic)", "partitions": "\(count)",
                        "configured": "\(options.partitionCount)", "reason": "\(error)",
                    ])
                return count
            }
            logger.info(
                "added partitions to the topic of the log",
                metadata: ["topic": "\(options.topic)", "before": "\(count)", "now": "\(options.partitionCount)"])
            return try await queries.topic(timeout: options.openTimeout)?.partitionCount ?? count
        }
        return count
    }

    /// What the topic is set to; warns of what loses records earlier than configured.
    private static func check(
        _ queries: KafkaQueries, options: KafkaLogOptions, logger: Logger
    ) async -> [String: String] {
        let settings: [String: String]
        do {
            settings = try await queries.topicSettings()
        } catch {
            logger.info(
                "the settings of the topic cannot be read, so they are not checked", metadata: ["reason": "\(error)"])
            return [:]
        }
        let wanted = options.retention.wholeMilliseconds
        if let retention = settings["retention.ms"].flatMap({ Int64($0) }), retention >= 0, retention < wanted {
            logger.warning(
                "the topic keeps records shorter than configured",
                metadata: ["topic": "\(options.topic)", "retention.ms": "\(retention)", "configured": "\(wanted)"])
        }
        if let size = settings["retention.bytes"].flatMap({ Int64($0) }), size >= 0 {
            logger.warning(
                "the topic removes records by size, whatever their age",
                metadata: ["topic": "\(options.topic)", "retention.bytes": "\(size)"])
        }
        return settings
    }

    private static func refuseCompaction(_ settings: [String: String], options: KafkaLogOptions) throws(SegmentLogError)
    {
        guard let policy = settings["cleanup.policy"], policy.contains("compact") else { return }
        throw SegmentLogError(
            .misconfigured,
            "topic \(options.topic) has cleanup.policy=\(policy): compaction keeps one document per trace and removes the others; set it to delete"
        )
    }

    public func close() async {
        await producer.close()
        await consumer.close()
        await preview.close()
        await queries.close()
    }

    /// Watches for new partitions until cancelled, then waits for what is being written.
    public func run() async {
        while !Task.isCancelled {
            try? await Task.sleep(for: options.growthInterval)
            if Task.isCancelled { break }
            guard let topic = try? await queries.topic(timeout: .seconds(2)) else { continue }
            if topic.partitionCount > partitionCount {
                logger.info("the topic has more partitions now", metadata: ["partitions": "\(topic.partitionCount)"])
                known.count.store(topic.partitionCount, ordering: .relaxed)
            }
        }
        await producer.finish()
    }

    // MARK: Appending

    public func append(_ records: LogRecordBatch) async throws(SegmentLogError) { try await producer.append(records) }

    // MARK: Reading

    public func read(
        partition: Int, from offset: Int64, maxRecords: Int = 2_000, maxBytes: Int = 4 << 20
    ) async throws(SegmentLogError) -> LogBatch {
        guard (0..<partitionCount).contains(partition) else {
            throw SegmentLogError(.corrupt, "the log has no partition \(partition)")
        }
        // The fetch finds most things out by itself. When it does not, the bounds of the partition decide.
        let deadline = ContinuousClock.now + options.readTimeout
        var reason: String?
        repeat {
            let wait = min(.seconds(1), max(.milliseconds(1), deadline - .now))
            let fetched = try await consumer.read(
                partition: partition, from: max(0, offset), maxRecords: maxRecords, maxBytes: maxBytes, timeout: wait)
            if case .batch(let batch) = fetched { return batch }
            if case .nothing(let found) = fetched { reason = found }
            if Task.isCancelled { throw SegmentLogError(.unavailable, "the read was cancelled") }
            let start = try await queries.starts(count: partitionCount)[partition]
            let end = try await queries.ends(count: partitionCount)[partition]
            if offset < start {
                throw SegmentLogError(
                    .trimmed(firstAvailable: start),
                    "offset \(offset) of partition \(partition) was removed by retention; the log begins at \(start)")
            }
            if offset > end {
                throw SegmentLogError(
                    .beyondEnd(end: end), "partition \(partition) of the log ends at \(end), before offset \(offset)")
            }
            if offset == end {
                return LogBatch(partition: partition, from: offset, nextOffset: offset, endOffset: end, entries: [])
            }
        } while ContinuousClock.now < deadline
        throw SegmentLogError(
            .unavailable,
            "partition \(partition) of topic \(options.topic) gave nothing for \(options.readTimeout)\(reason.map { ": " + $0 } ?? "")"
        )
    }

    public func readAvailable(
        partition: Int, from offset: Int64, maxRecords: Int, maxBytes: Int
    ) async throws(SegmentLogError) -> LogBatch? {
        guard (0..<partitionCount).contains(partition) else {
            throw SegmentLogError(.corrupt, "the log has no partition \(partition)")
        }
        let fetched = try await consumer.read(
            partition: partition, from: max(0, offset), maxRecords: maxRecords, maxBytes: maxBytes, timeout: .zero)
        switch fetched {
        case .batch(let batch): return batch
        case .nothing: return nil
        case .outOfRange:
            return try await read(partition: partition, from: offset, maxRecords: maxRecords, maxBytes: maxBytes)
        }
    }

    public func endOffsets() async throws(SegmentLogError) -> [Int64] { try await queries.ends(count: partitionCount) }

    public func startOffsets() async throws(SegmentLogError) -> [Int64] {
        try await queries.starts(count: partitionCount)
    }

    /// The oldest receipt is that of the next hundred records. Where there are more, one of those behind may have been
    /// received earlier, but not by more than an append may wait: so much is taken off.
    public func backlog(beyond positions: [LogPosition]) async throws(SegmentLogError) -> [LogBacklog] {
        let ends = try await queries.ends(count: partitionCount)
        var result: [LogBacklog] = []
        var unknown: [(partition: Int, position: Int64, end: Int64)] = []
        for position in positions where ends.indices.contains(position.partition) {
            let end = ends[position.partition]
            result.append(
                LogBacklog(
                    partition: position.partition, endOffset: end, recordCount: max(0, end - position.offset),
                    oldestReceipt: nil))
            guard position.offset < end else { continue }
            let receipt = cached.withLock { $0[position.partition] }
            if let receipt, receipt.position == position.offset, receipt.end == end {
                result[result.count - 1].oldestReceipt = receipt.oldest
            } else {
                unknown.append((position.partition, position.offset, end))
            }
        }
        guard !unknown.isEmpty else { return result }
        let seen = await preview.receipts(unknown, timeout: .seconds(2))
        for (partition, position, end) in unknown {
            guard let receipts = seen[partition], receipts.count > 0 || receipts.next >= end else {
                throw SegmentLogError(.unavailable, "the next records of partition \(partition) cannot be read")
            }
            var oldest: Micros? = receipts.count > 0 ? receipts.oldest : nil
            if receipts.next < end {
                oldest = min(receipts.oldest, receipts.newest - options.appendTimeout.wholeMilliseconds * 1_000)
            }
            cached.withLock { $0[partition] = CachedReceipt(position: position, end: end, oldest: oldest) }
            for index in result.indices where result[index].partition == partition {
                result[index].oldestReceipt = oldest
            }
        }
        return result
    }

    public func waitForRecords(beyond positions: [LogPosition], timeout: Duration) async {
        let count = partitionCount
        await consumer.waitForRecords(beyond: positions.filter { (0..<count).contains($0.partition) }, timeout: timeout)
    }

    // MARK: Upkeep

    /// The retention of the topic does it.
    public func removeRecords(receivedBefore time: Micros) async throws(SegmentLogError) {}

    public func positionsCommitted(_ positions: [LogPosition]) { consumer.commit(positions) }
}

/// The settings of the clients. What the caller gives goes over the defaults, what the log's promises rest on goes over
/// what the caller gives.
private struct Settings {
    let producer: KafkaSettings
    let queries: KafkaSettings
    let preview: KafkaSettings
    private let reading: KafkaSettings
    private let properties: [(name: String, value: String)]
    private let prefetchBytes: Int

    init(brokers: String, options: KafkaLogOptions) {
        properties = options.properties
        prefetchBytes = options.prefetchBytes
        let timeout = "\(max(100, options.appendTimeout.wholeMilliseconds))"
        var common = KafkaSettings()
        common["bootstrap.servers"] = brokers
        common["client.id"] = "beamline"
        common["reconnect.backoff.ms"] = "50"
        common["reconnect.backoff.max.ms"] = "1000"
        common["topic.metadata.refresh.interval.ms"] = "\(max(1_000, options.growthInterval.wholeMilliseconds))"
        common["log.connection.close"] = "false"

        var producer = common
        producer["compression.type"] = "lz4"
        // Batches are made by `KafkaProducer`; this is for records that are not sent when it asks for it.
        producer["linger.ms"] = "5"
        producer["retry.backoff.ms"] = "50"
        producer = producer.merged(with: properties)
        producer["enable.idempotence"] = "true"
        producer["acks"] = "all"
        // `queueBytes` is the bound.
        producer["queue.buffering.max.messages"] = "10000000"
        producer["queue.buffering.max.kbytes"] = "2147483647"
        producer["message.timeout.ms"] = timeout
        self.producer = producer

        var reading = common
        reading["group.id"] = options.consumerGroup
        reading["fetch.wait.max.ms"] = "100"
        reading["fetch.error.backoff.ms"] = "100"
        reading["receive.message.max.bytes"] = "1000000000"
        self.reading = reading

        // Small fetches, and nothing assigned in between.
        var preview = reading
        preview["queued.min.messages"] = "\(options.backlogRecords)"
        // All partitions share one queue; when it is full, librdkafka's thread falls asleep.
        preview["queued.max.messages.kbytes"] = "4096"
        preview["fetch.message.max.bytes"] = "131072"
        self.preview = Self.promises(preview.merged(with: properties), isolation: "read_uncommitted")

        let queries = common
        self.queries = Self.promises(queries.merged(with: properties), isolation: "read_uncommitted")
    }

    /// What is fetched ahead of one partition, in bytes.
    func prefetchShare(partitionCount: Int) -> Int {
        min(max(prefetchBytes / max(partitionCount, 1), 1 << 20), 64 << 20)
    }

    /// Aborted transactions of other producers are skipped.
    func consumer(partitionCount: Int) -> KafkaSettings {
        var consumer = reading
        let share = prefetchShare(partitionCount: partitionCount)
        consumer["queued.min.messages"] = "100000"
        consumer["queued.max.messages.kbytes"] = "\(share >> 10)"
        consumer["fetch.message.max.bytes"] = "1048576"
        if !KafkaConsumer.mustBeWoken { consumer["fetch.queue.backoff.ms"] = "5" }
        return Self.promises(consumer.merged(with: properties), isolation: "read_committed")
    }

    private static func promises(_ settings: KafkaSettings, isolation: String) -> KafkaSettings {
        var settings = settings
        settings["enable.auto.commit"] = "false"
        settings["enable.auto.offset.store"] = "false"
        // Retention must never be skipped over silently.
        settings["auto.offset.reset"] = "error"
        settings["enable.partition.eof"] = "true"
        settings["isolation.level"] = isolation
        settings["allow.auto.create.topics"] = "false"
        return settings
    }
}
