// What is asked of the brokers besides records: how many partitions there are, where they begin and end, how the topic is
// set up. One client and one thread; whoever asks the same while a question is under way shares the next one.

import CKafka
import Foundation
import Logging
import Segments
import Synchronization

final class KafkaQueries: @unchecked Sendable {
    typealias Offsets = Result<[Int64], SegmentLogError>

    struct Topic: Sendable {
        var partitionCount: Int
        var brokerCount: Int
    }

    private enum Question: Int, CaseIterable { case starts, ends }

    private let client: KafkaClient
    private let topic: String
    private let handleOfTopic: OpaquePointer?
    private let timeout: Duration
    private let thread = KafkaThread(name: "kafka-queries")
    private let waiting = Mutex(Waiting())

    private struct Waiting {
        var byQuestion: [[UnsafeContinuation<Offsets, Never>]] = [[], []]
        /// Partitions to ask for: the highest number that anybody knew.
        var count = 0
        var isClosed = false
    }

    /// - Parameter settings: of a consumer that reads uncommitted: so the end of a partition is its high watermark, and
    ///   everything acknowledged lies before it, whatever transactions others have open (KIP-98, "READ_UNCOMMITTED").
    init(settings: KafkaSettings, topic: String, timeout: Duration, logger: Logger) throws(SegmentLogError) {
        client = try KafkaClient(RD_KAFKA_CONSUMER, settings, logger: logger)
        self.topic = topic
        self.timeout = timeout
        handleOfTopic = rd_kafka_topic_new(client.handle, topic, nil)
    }

    func close() async {
        let isFirst = waiting.withLock { waiting in
            defer { waiting.isClosed = true }
            return !waiting.isClosed
        }
        guard isFirst else { return }
        await thread.end { [self] in
            if let handleOfTopic { rd_kafka_topic_destroy(handleOfTopic) }
            client.destroy()
        }
        let left = waiting.withLock { waiting in
            defer { waiting.byQuestion = [[], []] }
            return waiting.byQuestion.flatMap(\.self)
        }
        for continuation in left { continuation.resume(returning: .failure(.closedLog)) }
    }

    // MARK: Offsets

    /// For partitions 0 ..< count, the offset the next record will get. The brokers are asked after the call.
    func ends(count: Int) async throws(SegmentLogError) -> [Int64] { try await ask(.ends, count: count) }

    /// For partitions 0 ..< count, the first offset that is left.
    func starts(count: Int) async throws(SegmentLogError) -> [Int64] { try await ask(.starts, count: count) }

    private func ask(_ question: Question, count: Int) async throws(SegmentLogError) -> [Int64] {
        let result = await withUnsafeContinuation { (continuation: UnsafeContinuation<Offsets, Never>) in
            let (isClosed, isFirst) = waiting.withLock { waiting in
                guard !waiting.isClosed else { return (true, false) }
                waiting.byQuestion[question.rawValue].append(continuation)
                waiting.count = max(waiting.count, count)
                return (false, waiting.byQuestion[question.rawValue].count == 1)
            }
            if isClosed { continuation.resume(returning: .failure(.closedLog)) }
            if isFirst {
                thread.enqueue { [self] in
                    // All who came until now share the answer; those who come later need a later one.
                    let (askers, count) = waiting.withLock { waiting in
                        defer { waiting.byQuestion[question.rawValue].removeAll() }
                        return (waiting.byQuestion[question.rawValue], waiting.count)
                    }
                    let offsets = answer(question, count: count)
                    for asker in askers { asker.resume(returning: offsets) }
                }
            }
        }
        return try result.get()
    }

    /// One ListOffsets request per leader. In its protocol -1 is the end and -2 the beginning, as in librdkafka
    /// (`RD_KAFKA_OFFSET_END`, `…_BEGINNING`); any other number is a time. A leader that does not know the high watermark
    /// yet answers with an error (KIP-207), and is asked again.
    private func answer(_ question: Question, count: Int) -> Offsets {
        let deadline = ContinuousClock.now + timeout
        let wanted = Int64(question == .ends ? RD_KAFKA_OFFSET_END : RD_KAFKA_OFFSET_BEGINNING)
        var failure = RD_KAFKA_RESP_ERR_NO_ERROR
        repeat {
            guard let list = rd_kafka_topic_partition_list_new(Int32(count)) else { break }
            defer { rd_kafka_topic_partition_list_destroy(list) }
            for partition in 0..<count {
                rd_kafka_topic_partition_list_add(list, topic, Int32(partition))?.pointee.offset = wanted
            }
            let rest = Int32(clamping: max(1, (deadline - .now).wholeMilliseconds))
            failure = rd_kafka_offsets_for_times(client.handle, list, rest)
            if failure == RD_KAFKA_RESP_ERR_NO_ERROR {
                var offsets = [Int64](repeating: -1, count: count)
                for index in 0..<Int(list.pointee.cnt) {
                    let item = list.pointee.elems[index]
                    if item.err != RD_KAFKA_RESP_ERR_NO_ERROR { failure = item.err }
                    if offsets.indices.contains(Int(item.partition)) { offsets[Int(item.partition)] = item.offset }
                }
                if failure == RD_KAFKA_RESP_ERR_NO_ERROR {
                    if offsets.allSatisfy({ $0 >= 0 }) { return .success(offsets) }
                    failure = RD_KAFKA_RESP_ERR_OFFSET_NOT_AVAILABLE
                }
            }
            // A leader may have moved.
            _ = metadata(milliseconds: 500)
            if ContinuousClock.now < deadline { Thread.sleep(forTimeInterval: 0.02) }
        } while ContinuousClock.now < deadline
        return .failure(
            SegmentLogError(.unavailable, "cannot ask for the offsets of topic \(topic): \(KafkaClient.text(failure))"))
    }

    // MARK: The topic

    /// Nil when the topic does not exist.
    func topic(timeout: Duration) async throws(SegmentLogError) -> Topic? {
        let answer = await thread.run { [self] in
            metadata(milliseconds: Int32(clamping: max(1, timeout.wholeMilliseconds)))
        }
        guard let answer else { throw .closedLog }
        return try answer.get()
    }

    private func metadata(milliseconds: Int32) -> Result<Topic?, SegmentLogError> {
        var metadata: UnsafePointer<rd_kafka_metadata>?
        let error = rd_kafka_metadata(client.handle, 0, handleOfTopic, &metadata, milliseconds)
        guard error == RD_KAFKA_RESP_ERR_NO_ERROR, let metadata else {
            return .failure(SegmentLogError(.unavailable, "no Kafka broker answers: \(KafkaClient.text(error))"))
        }
        defer { rd_kafka_metadata_destroy(metadata) }
        guard metadata.pointee.topic_cnt == 1, let topic = metadata.pointee.topics?.pointee else {
            return .success(nil)
        }
        switch topic.err {
        case RD_KAFKA_RESP_ERR_NO_ERROR, RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE:
            guard topic.partition_cnt > 0 else {
                return .success(Topic(partitionCount: 0, brokerCount: Int(metadata.pointee.broker_cnt)))
            }
            return .success(
                Topic(partitionCount: Int(topic.partition_cnt), brokerCount: Int(metadata.pointee.broker_cnt)))
        case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART, RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
            return .success(Topic(partitionCount: 0, brokerCount: Int(metadata.pointee.broker_cnt)))
        default:
            return .failure(SegmentLogError(.unavailable, "topic \(self.topic): \(KafkaClient.text(topic.err))"))
        }
    }

    /// Creates the topic; that it exists already is no error.
    func createTopic(partitions: Int, replicas: Int, settings: [(name: String, value: String)])
        async throws(SegmentLogError)
    {
        let failure = await thread.run { [self] () -> SegmentLogError? in
            var reason = [CChar](repeating: 0, count: 512)
            guard
                let request = rd_kafka_NewTopic_new(
                    topic, Int32(clamping: partitions), Int32(clamping: replicas), &reason, reason.count)
            else {
                return SegmentLogError(
                    .misconfigured,
                    "topic \(topic) cannot be created: \(String(decoding: reason.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self))"
                )
            }
            defer { rd_kafka_NewTopic_destroy(request) }
            for setting in settings { rd_kafka_NewTopic_set_config(request, setting.name, setting.value) }
            var requests: [OpaquePointer?] = [request]
            return administer(RD_KAFKA_ADMIN_OP_CREATETOPICS) { options, queue in
                rd_kafka_CreateTopics(client.handle, &requests, 1, options, queue)
            } read: { event in
                var count = 0
                guard let result = rd_kafka_event_CreateTopics_result(event),
                    let topics = rd_kafka_CreateTopics_result_topics(result, &count), count == 1
                else { return nil }
                let error = rd_kafka_topic_result_error(topics[0])
                if error == RD_KAFKA_RESP_ERR_NO_ERROR || error == RD_KAFKA_RESP_ERR_TOPIC_ALREADY_EXISTS { return nil }
                let text =
                    rd_kafka_topic_result_error_string(topics[0]).map { String(cString: $0) } ?? KafkaClient.text(error)
                return SegmentLogError(.misconfigured, "topic \(topic) cannot be created: \(text)")
            }
        }
        guard let failure else { throw .closedLog }
        if let failure { throw failure }
    }

    /// Raises the number of partitions; that it is as high already is no error.
    func addPartitions(total: Int) async throws(SegmentLogError) {
        let failure = await thread.run { [self] () -> SegmentLogError? in
            var reason = [CChar](repeating: 0, count: 512)
            guard let request = rd_kafka_NewPartitions_new(topic, total, &reason, reason.count) else {
                return SegmentLogError(.misconfigured, "topic \(topic) cannot have \(total) partitions")
            }
            defer { rd_kafka_NewPartitions_destroy(request) }
            var requests: [OpaquePointer?] = [request]
            return administer(RD_KAFKA_ADMIN_OP_CREATEPARTITIONS) { options, queue in
                rd_kafka_CreatePartitions(client.handle, &requests, 1, options, queue)
            } read: { event in
                var count = 0
                guard let result = rd_kafka_event_CreatePartitions_result(event),
                    let topics = rd_kafka_CreatePartitions_result_topics(result, &count), count == 1
                else { return nil }
                let error = rd_kafka_topic_result_error(topics[0])
                // Another node was faster.
                if error == RD_KAFKA_RESP_ERR_NO_ERROR || error == RD_KAFKA_RESP_ERR_INVALID_PARTITIONS { return nil }
                let text =
                    rd_kafka_topic_result_error_string(topics[0]).map { String(cString: $0) } ?? KafkaClient.text(error)
                return SegmentLogError(.misconfigured, "partitions cannot be added to topic \(topic): \(text)")
            }
        }
        guard let failure else { throw .closedLog }
        if let failure { throw failure }
    }

    /// The topic's settings by name; a broker may refuse to tell them.
    func topicSettings() async throws(SegmentLogError) -> [String: String] {
        let result = await thread.run { [self] () -> Result<[String: String], SegmentLogError> in
            guard let resource = rd_kafka_ConfigResource_new(RD_KAFKA_RESOURCE_TOPIC, topic) else {
                return .success([:])
            }
            defer { rd_kafka_ConfigResource_destroy(resource) }
            var resources: [OpaquePointer?] = [resource]
            var settings: [String: String] = [:]
            let failure = administer(RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS) { options, queue in
                rd_kafka_DescribeConfigs(client.handle, &resources, 1, options, queue)
            } read: { event in
                var count = 0
                guard let result = rd_kafka_event_DescribeConfigs_result(event),
                    let found = rd_kafka_DescribeConfigs_result_resources(result, &count), count == 1
                else { return nil }
                let error = rd_kafka_ConfigResource_error(found[0])
                guard error == RD_KAFKA_RESP_ERR_NO_ERROR else {
                    return SegmentLogError(.unavailable, KafkaClient.text(error))
                }
                var entryCount = 0
                guard let entries = rd_kafka_ConfigResource_configs(found[0], &entryCount) else { return nil }
                for index in 0..<entryCount {
                    guard let name = rd_kafka_ConfigEntry_name(entries[index]),
                        let value = rd_kafka_ConfigEntry_value(entries[index])
                    else { continue }
                    settings[String(cString: name)] = String(cString: value)
                }
                return nil
            }
            return failure.map { .failure($0) } ?? .success(settings)
        }
        guard let result else { throw .closedLog }
        return try result.get()
    }

    /// Sends an administrative request and waits for its answer; on the thread.
    private func administer(
        _ operation: rd_kafka_admin_op_t, send: (_ options: OpaquePointer?, _ queue: OpaquePointer?) -> Void,
        read: (_ event: OpaquePointer) -> SegmentLogError?
    ) -> SegmentLogError? {
        let queue = rd_kafka_queue_new(client.handle)
        defer { rd_kafka_queue_destroy(queue) }
        let options = rd_kafka_AdminOptions_new(client.handle, operation)
        defer { rd_kafka_AdminOptions_destroy(options) }
        rd_kafka_AdminOptions_set_request_timeout(options, 10_000, nil, 0)
        if operation == RD_KAFKA_ADMIN_OP_CREATETOPICS {
            rd_kafka_AdminOptions_set_operation_timeout(options, 10_000, nil, 0)
        }
        send(options, queue)
        guard let event = rd_kafka_queue_poll(queue, 15_000) else {
            return SegmentLogError(.unavailable, "no answer from the Kafka brokers")
        }
        defer { rd_kafka_event_destroy(event) }
        let error = rd_kafka_event_error(event)
        guard error == RD_KAFKA_RESP_ERR_NO_ERROR else {
            let text = rd_kafka_event_error_string(event).map { String(cString: $0) } ?? KafkaClient.text(error)
            return SegmentLogError(.unavailable, text)
        }
        return read(event)
    }
}
