// A look at the next few records of partitions, for their receipt times: what the lag metrics and completeness of reads
// are computed from. A client of its own with small fetches, idle unless asked.

import CKafka
import Logging
import Segments
import Synchronization

final class KafkaPreview: @unchecked Sendable {
    struct Receipts: Sendable {
        var oldest: Micros = .max
        var newest: Micros = .min
        var count = 0
        /// Where the next look would begin.
        var next: Int64
    }

    private let client: KafkaClient
    private let topic: String
    private let clock: @Sendable () -> Micros
    private let maxRecords: Int
    private let thread = KafkaThread(name: "kafka-preview")
    private let isClosed = Atomic<Bool>(false)

    init(
        settings: KafkaSettings, topic: String, maxRecords: Int, logger: Logger, clock: @escaping @Sendable () -> Micros
    ) throws(SegmentLogError) {
        client = try KafkaClient(RD_KAFKA_CONSUMER, settings, logger: logger)
        rd_kafka_poll_set_consumer(client.handle)
        self.topic = topic
        self.maxRecords = maxRecords
        self.clock = clock
    }

    func close() async {
        guard !isClosed.exchange(true, ordering: .acquiringAndReleasing) else { return }
        await thread.end { [self] in client.destroy() }
    }

    /// Receipt times of the first records in [position, end) of each partition. Stops after `maxRecords` of a partition, at
    /// its end, or when the time is over; what was not seen is not in the result.
    func receipts(
        _ ranges: [(partition: Int, position: Int64, end: Int64)], timeout: Duration
    ) async -> [Int: Receipts] {
        if isClosed.load(ordering: .acquiring) { return [:] }
        return await thread.run { [self] in look(ranges, timeout: timeout) } ?? [:]
    }

    private func look(_ ranges: [(partition: Int, position: Int64, end: Int64)], timeout: Duration) -> [Int: Receipts] {
        guard !ranges.isEmpty, let list = rd_kafka_topic_partition_list_new(Int32(clamping: ranges.count)) else {
            return [:]
        }
        defer { rd_kafka_topic_partition_list_destroy(list) }
        var seen: [Int: Receipts] = [:]
        var open: [Int: Int64] = [:]
        for range in ranges {
            rd_kafka_topic_partition_list_add(list, topic, Int32(clamping: range.partition))?.pointee.offset =
                range.position
            seen[range.partition] = Receipts(next: range.position)
            open[range.partition] = range.end
        }
        guard rd_kafka_assign(client.handle, list) == RD_KAFKA_RESP_ERR_NO_ERROR else { return [:] }
        defer { rd_kafka_assign(client.handle, nil) }
        var reader = KafkaRecordReader(maxValueBytes: .max)
        let now = clock()
        let deadline = ContinuousClock.now + timeout
        var patience: Int64 = 2
        while let waitsFor = open.keys.first, ContinuousClock.now < deadline {
            let rest = Int32(clamping: max(1, min(patience, (deadline - .now).wholeMilliseconds)))
            guard let message = rd_kafka_consumer_poll(client.handle, rest) else {
                client.wakeFetcher(topic: topic, partition: Int32(clamping: waitsFor))
                patience = min(patience * 2, 200)
                continue
            }
            defer { rd_kafka_message_destroy(message) }
            patience = 2
            let partition = Int(message.pointee.partition)
            guard let end = open[partition], var receipts = seen[partition] else { continue }
            switch message.pointee.err {
            case RD_KAFKA_RESP_ERR_NO_ERROR:
                guard message.pointee.offset >= receipts.next else { continue }
                let received = reader.receipt(message, now: now)
                receipts.oldest = min(receipts.oldest, received)
                receipts.newest = max(receipts.newest, received)
                receipts.count += 1
                receipts.next = message.pointee.offset + 1
            case RD_KAFKA_RESP_ERR__PARTITION_EOF:
                receipts.next = max(receipts.next, message.pointee.offset)
                open[partition] = nil
            case RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET, RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE:
                open[partition] = nil
            default: break
            }
            seen[partition] = receipts
            if receipts.next >= end || receipts.count >= maxRecords { open[partition] = nil }
        }
        return seen
    }
}
