// The reading half of the Kafka log. Each partition has a queue of its own inside librdkafka, filled ahead by fetches and
// bounded in bytes; a reader takes from it without crossing a thread. Only moving to another offset, which may block, is
// done on the consumer's thread. Partitions are assigned with the positions of the callers, never by the group protocol.

import CKafka
import Foundation
import Logging
import PostgreSQL
import Segments
import Synchronization

/// Reads of one topic.
final class KafkaConsumer: @unchecked Sendable {
    /// What is wrong with a position, as far as a fetch can tell.
    enum Fetched {
        case batch(LogBatch)
        /// The partition has no record at the offset: it was removed, or was never written.
        case outOfRange
        /// Nothing came in time; the last error of the partition, if any.
        case nothing(reason: String?)
    }

    /// One partition of the topic. `isBusy` gives it to one task at a time; all the rest belongs to that task.
    private final class Partition: @unchecked Sendable {
        let number: Int32
        /// Told by librdkafka's threads whenever the queue was empty and is not any more.
        let events = Atomic<Int64>(0)
        let watch: OffsetWatch
        let lock = Mutex<(isBusy: Bool, waiting: [UnsafeContinuation<Void, Never>])>((false, []))
        var queue: OpaquePointer?
        var isAssigned = false
        /// Offset of the next record to deliver.
        var next: Int64 = 0
        /// Where the partition ended when it was last looked at, if nothing has come since.
        var end: Int64?
        var isOutOfRange = false
        /// Taken from the queue, not yet delivered.
        var held: UnsafeMutablePointer<rd_kafka_message_t>?
        var lastError: String?
        /// Bytes taken since the client was last made to look at the queue.
        var takenBytes = 0
        var reader: KafkaRecordReader

        init(number: Int32, watch: OffsetWatch, maxValueBytes: Int) {
            self.number = number
            self.watch = watch
            reader = KafkaRecordReader(maxValueBytes: maxValueBytes)
        }

        func acquire() async {
            await withUnsafeContinuation { continuation in
                let isMine = lock.withLock { lock in
                    guard lock.isBusy else {
                        lock.isBusy = true
                        return true
                    }
                    lock.waiting.append(continuation)
                    return false
                }
                if isMine { continuation.resume() }
            }
        }

        func release() {
            let next = lock.withLock { lock -> UnsafeContinuation<Void, Never>? in
                if lock.waiting.isEmpty {
                    lock.isBusy = false
                    return nil
                }
                return lock.waiting.removeFirst()
            }
            next?.resume()
        }

        /// On one of librdkafka's threads, which must not be held up: it only wakes whoever waits.
        func signal() {
            let count = events.wrappingAdd(1, ordering: .acquiringAndReleasing).newValue
            watch.report([(Int(number), count)])
        }
    }

    private let client: KafkaClient
    private let topic: String
    private let maxValueBytes: Int
    /// Bytes of a partition that librdkafka fetches ahead.
    private let prefetchBytes: Int
    private let clock: @Sendable () -> Micros
    private let partitions = Mutex<[Int: Partition]>([:])
    private let watch = OffsetWatch()
    private let thread: KafkaThread
    private let isClosed = Atomic<Bool>(false)
    /// Positions to be committed to the group at the next opportunity.
    private let commits: Commits

    private final class Commits: Sendable {
        let positions = Mutex<[Int: Int64]>([:])
    }

    /// Whether a full queue is looked at only once a second: librdkafka before 2.2, which brought `fetch.queue.backoff.ms`.
    static let mustBeWoken = rd_kafka_version() < 0x0202_0000

    /// - Parameters:
    ///   - prefetchBytes: what the settings say, for each partition.
    ///   - clock: microseconds since 1970.
    init(
        settings: KafkaSettings, topic: String, maxValueBytes: Int, prefetchBytes: Int, logger: Logger,
        clock: @escaping @Sendable () -> Micros
    ) throws(SegmentLogError) {
        let client = try KafkaClient(RD_KAFKA_CONSUMER, settings, pacesFetches: true, logger: logger)
        let commits = Commits()
        self.client = client
        self.topic = topic
        self.maxValueBytes = maxValueBytes
        self.prefetchBytes = prefetchBytes
        self.clock = clock
        self.commits = commits
        rd_kafka_poll_set_consumer(client.handle)
        thread = KafkaThread(name: "kafka-consumer") {
            Self.commit(commits, client, topic)
            // Errors of the client as a whole; those of partitions are in their own queues.
            while let message = rd_kafka_consumer_poll(client.handle, 0) { rd_kafka_message_destroy(message) }
        }
    }

    /// Ends all reads; nobody may be waiting in one.
    func close() async {
        guard !isClosed.exchange(true, ordering: .acquiringAndReleasing) else { return }
        let partitions = partitions.withLock { Array($0.values) }
        for partition in partitions { await partition.acquire() }
        await thread.end { [self] in
            Self.commit(commits, client, topic)
            rd_kafka_assign(client.handle, nil)
            for partition in partitions {
                Self.discard(partition)
                guard let queue = partition.queue else { continue }
                rd_kafka_queue_cb_event_enable(queue, nil, nil)
                rd_kafka_queue_destroy(queue)
                partition.queue = nil
            }
            client.destroy()
        }
        for partition in partitions { partition.release() }
    }

    private func partition(_ number: Int) -> Partition {
        partitions.withLock { partitions in
            if let known = partitions[number] { return known }
            let made = Partition(number: Int32(clamping: number), watch: watch, maxValueBytes: maxValueBytes)
            partitions[number] = made
            return made
        }
    }

    // MARK: Reading

    /// Records from `offset` on; an empty batch when the partition ends there.
    func read(
        partition number: Int, from offset: Int64, maxRecords: Int, maxBytes: Int, timeout: Duration
    ) async throws(SegmentLogError) -> Fetched {
        let partition = partition(number)
        await partition.acquire()
        defer { partition.release() }
        let deadline = ContinuousClock.now + timeout
        while true {
            try await move(partition, to: offset)
            let seen = partition.events.load(ordering: .acquiring)
            if let batch = take(partition, maxRecords: maxRecords, maxBytes: maxBytes) { return .batch(batch) }
            if partition.isOutOfRange {
                partition.isAssigned = false
                return .outOfRange
            }
            let rest = deadline - .now
            guard rest > .zero, await watch.wait(for: [(number, seen + 1)], all: false, timeout: rest) else {
                return .nothing(reason: partition.lastError)
            }
        }
    }

    /// Takes what is there. Nil: nothing yet, and not at the end either.
    private func take(_ partition: Partition, maxRecords: Int, maxBytes: Int) -> LogBatch? {
        let from = partition.next
        var messages: [UnsafeMutablePointer<rd_kafka_message_t>] = []
        defer { for message in messages { rd_kafka_message_destroy(message) } }
        var byteCount = 0
        while messages.count < max(1, maxRecords), let message = next(partition) {
            if !messages.isEmpty, byteCount + message.pointee.len > maxBytes {
                partition.held = message
                break
            }
            byteCount += message.pointee.len
            messages.append(message)
            partition.next = message.pointee.offset + 1
        }
        // Control records at the end have offsets, too.
        if messages.isEmpty, let end = partition.end, end > partition.next { partition.next = end }
        guard !messages.isEmpty || partition.end == partition.next else { return nil }
        partition.takenBytes += byteCount
        if Self.mustBeWoken, partition.takenBytes > prefetchBytes / 4 { wakeFetcher(of: partition) }
        let entries = partition.reader.entries(messages, now: clock())
        var low: Int64 = 0
        var high: Int64 = 0
        let known = rd_kafka_get_watermark_offsets(client.handle, topic, partition.number, &low, &high)
        let end = known == RD_KAFKA_RESP_ERR_NO_ERROR ? max(high, partition.next) : partition.next
        return LogBatch(
            partition: Int(partition.number), from: from, nextOffset: partition.next, endOffset: end, entries: entries)
    }

    /// The next message of the partition; events in between (its end, errors) are noted.
    private func next(_ partition: Partition) -> UnsafeMutablePointer<rd_kafka_message_t>? {
        if let held = partition.held {
            partition.held = nil
            return held
        }
        while let queue = partition.queue, let message = rd_kafka_consume_queue(queue, 0) {
            switch message.pointee.err {
            case RD_KAFKA_RESP_ERR_NO_ERROR:
                partition.end = nil
                partition.lastError = nil
                // A fetch begins with a whole batch of the producer, so it may begin before the offset.
                if message.pointee.offset >= partition.next { return message }
            case RD_KAFKA_RESP_ERR__PARTITION_EOF:
                partition.end = message.pointee.offset
                partition.lastError = nil
            case RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET, RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE:
                partition.isOutOfRange = true
                partition.end = nil
            default:
                partition.end = nil
                partition.lastError = rd_kafka_message_errstr(message).map { String(cString: $0) }
            }
            rd_kafka_message_destroy(message)
        }
        return nil
    }

    private static func discard(_ partition: Partition) {
        if let held = partition.held { rd_kafka_message_destroy(held) }
        partition.held = nil
        while let queue = partition.queue, let message = rd_kafka_consume_queue(queue, 0) {
            rd_kafka_message_destroy(message)
        }
    }

    /// The partition's queue has room again: librdkafka stops fetching when it is full.
    private func wakeFetcher(of partition: Partition) {
        partition.takenBytes = 0
        let number = partition.number
        thread.enqueue { [client, topic] in client.wakeFetcher(topic: topic, partition: number) }
    }

    /// Messages of a partition that are fetched and not yet taken. For tests, while nobody reads.
    func fetchedAhead(of number: Int) -> Int { partition(number).queue.map { rd_kafka_queue_length($0) } ?? 0 }

    // MARK: Moving

    /// Sees to it that the next record delivered is the first at or after `offset`.
    private func move(_ partition: Partition, to offset: Int64) async throws(SegmentLogError) {
        if partition.isAssigned && partition.next == offset { return }
        if isClosed.load(ordering: .acquiring) { throw .closedLog }
        guard let error = await thread.run({ [self] in moveNow(partition, to: offset) }) else { throw .closedLog }
        if let error {
            throw SegmentLogError(.unavailable, "cannot read partition \(partition.number) of topic \(topic): \(error)")
        }
    }

    /// On the thread. The partition's queue is ours before it is assigned, so nothing goes by way of the consumer's queue;
    /// what was fetched for the old position is dropped by librdkafka, by its version, and by us.
    private func moveNow(_ partition: Partition, to offset: Int64) -> String? {
        if partition.queue == nil {
            guard let queue = rd_kafka_queue_get_partition(client.handle, topic, partition.number) else {
                return "there is no such partition"
            }
            rd_kafka_queue_forward(queue, nil)
            // The partition lives as long as the consumer, which takes the callback back before it ends.
            rd_kafka_queue_cb_event_enable(
                queue,
                { _, opaque in
                    guard let opaque else { return }
                    Unmanaged<Partition>.fromOpaque(opaque).takeUnretainedValue().signal()
                }, Unmanaged.passUnretained(partition).toOpaque())
            partition.queue = queue
        }
        let list = rd_kafka_topic_partition_list_new(1)
        defer { rd_kafka_topic_partition_list_destroy(list) }
        guard let item = rd_kafka_topic_partition_list_add(list, topic, partition.number) else {
            return "out of memory"
        }
        // Not assigned any more after an error of the offset, but librdkafka still has it in the assignment.
        if let error = rd_kafka_incremental_unassign(client.handle, list) { rd_kafka_error_destroy(error) }
        Self.discard(partition)
        partition.isAssigned = false
        partition.isOutOfRange = false
        partition.end = nil
        partition.lastError = nil
        partition.next = offset
        item.pointee.offset = offset
        if let error = rd_kafka_incremental_assign(client.handle, list) {
            defer { rd_kafka_error_destroy(error) }
            return String(cString: rd_kafka_error_string(error))
        }
        partition.isAssigned = true
        return nil
    }

    // MARK: Waiting

    /// Returns when a partition has something at or beyond its position that a read would deliver (or complain about).
    func waitForRecords(beyond positions: [LogPosition], timeout: Duration) async {
        let deadline = ContinuousClock.now + timeout
        while true {
            var thresholds: [(partition: Int, offset: Int64)] = []
            for position in positions {
                let partition = partition(position.partition)
                await partition.acquire()
                defer { partition.release() }
                if partition.isAssigned, partition.next > position.offset { return }
                do { try await move(partition, to: position.offset) } catch { continue }
                let seen = partition.events.load(ordering: .acquiring)
                partition.held = next(partition)
                if partition.held != nil || partition.isOutOfRange { return }
                if let end = partition.end, end > position.offset { return }
                thresholds.append((position.partition, seen + 1))
            }
            let rest = deadline - .now
            guard rest > .zero, await watch.wait(for: thresholds, all: false, timeout: rest) else { return }
        }
    }

    // MARK: Committing

    /// Notes positions; they are committed about once a second.
    func commit(_ positions: [LogPosition]) {
        commits.positions.withLock { known in
            for position in positions { known[position.partition] = position.offset }
        }
    }

    private static func commit(_ commits: Commits, _ client: KafkaClient, _ topic: String) {
        let positions = commits.positions.withLock { known in
            defer { known.removeAll() }
            return known
        }
        guard !positions.isEmpty, let list = rd_kafka_topic_partition_list_new(Int32(positions.count)) else { return }
        defer { rd_kafka_topic_partition_list_destroy(list) }
        for (partition, offset) in positions {
            rd_kafka_topic_partition_list_add(list, topic, Int32(clamping: partition))?.pointee.offset = offset
        }
        // Only lag tools look at it, so nobody asks for the outcome.
        rd_kafka_commit(client.handle, list, 1)
    }
}
