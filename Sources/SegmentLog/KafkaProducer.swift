// The writing half of the Kafka log: an idempotent producer on a thread of its own. The thread keeps the records of requests
// in a lane for each partition and hands a lane's records to librdkafka when those before are acknowledged: what comes in
// meanwhile goes as one batch. It serves delivery reports and answers a request when all of its records are acknowledged.
// When librdkafka declares the producer broken, it makes a new one and sends again what was not acknowledged.
//
// librdkafka could do the batching (`linger.ms`), but its thread for a broker spins (up to version 2.0 at least) while it has
// records that it may not send yet: in the last millisecond of a linger time, and while five requests are under way, the
// most that an idempotent producer may have. So it only gets what it can send.

import CKafka
import Foundation
import Logging
import Segments
import Synchronization

final class KafkaProducer: @unchecked Sendable {
    typealias Reply = UnsafeContinuation<SegmentLogError?, Never>

    /// A request from `append` until the last report on its records. Owned by the thread.
    private final class Request {
        let records: LogRecordBatch
        let partitions: [Int32]
        /// Until the request is answered.
        var reply: Reply?
        var isAcknowledged: [Bool]
        var missing: Int
        /// Records handed to librdkafka whose report has not come.
        var inFlight = 0
        /// Records that librdkafka has not got.
        var waiting: Int

        init(_ incoming: Incoming, partitionCount: Int) {
            records = incoming.records
            partitions = incoming.records.entries.map { Int32(LogPartition.of($0.traceID, count: partitionCount)) }
            reply = incoming.reply
            isAcknowledged = [Bool](repeating: false, count: incoming.records.count)
            missing = incoming.records.count
            waiting = incoming.records.count
        }
    }

    /// The records of one partition on their way. Owned by the thread.
    private struct Lane {
        /// In the order of the requests; those before `first` are done with.
        var waiting: [(id: UInt, index: Int)] = []
        var first = 0
        var waitingBytes = 0
        /// Handed to librdkafka, not yet reported.
        var inFlight = 0
        var lastSend: ContinuousClock.Instant?

        var isEmpty: Bool { first == waiting.count }

        mutating func append(_ id: UInt, _ index: Int, byteCount: Int) {
            waiting.append((id, index))
            waitingBytes += byteCount
        }

        mutating func removeFirst(byteCount: Int) {
            first += 1
            waitingBytes -= byteCount
            if isEmpty {
                waiting.removeAll(keepingCapacity: true)
                (first, waitingBytes) = (0, 0)
            } else if first > 1_000, first * 2 > waiting.count {
                waiting.removeFirst(first)
                first = 0
            }
        }
    }

    private struct Incoming: Sendable {
        var records: LogRecordBatch
        var deadline: ContinuousClock.Instant
        var reply: Reply
    }

    private struct Shared: ~Copyable {
        var incoming: [Incoming] = []
        var byteCount = 0
        var isRefusing = false
        var isClosing = false
        /// The queue on which the thread sleeps; nil while it is awake.
        var sleeping: OpaquePointer?
        var hasEnded = false
        var waitingForEnd: [UnsafeContinuation<Void, Never>] = []
        var waitingForQuiet: [UnsafeContinuation<Void, Never>] = []
    }

    private let shared = Mutex(Shared())
    private let settings: KafkaSettings
    private let topicName: String
    private let queueBytes: Int
    private let timeout: Duration
    /// Changed by the thread only.
    private var linger: Duration
    private let logger: Logger
    private let partitionCount: @Sendable () -> Int
    private let clock = ContinuousClock()
    let replacements = Atomic<Int>(0)

    // Everything below is used by the thread only.
    private var client: KafkaClient
    private var topic: OpaquePointer?
    private var queue: OpaquePointer?
    private let writer = KafkaRecordWriter()
    private var requests: [UInt: Request] = [:]
    /// By partition.
    private var lanes: [Lane] = []
    /// The lane that is looked at first, so that each has its turn.
    private var turn = 0
    /// A lane has records that librdkafka did not take: to be tried again soon.
    private var isRefused = false
    /// Requests in order of their deadlines; those before `firstDeadline` are done with.
    private var deadlines: [(id: UInt, at: ContinuousClock.Instant)] = []
    private var firstDeadline = 0
    private var nextID: UInt = 0
    private var isBroken = false
    private var batchBytes: Int
    private var lastError = ""
    private var lastMetadata: ContinuousClock.Instant?

    private static let indexBits: UInt = 20
    /// Requests to a broker that an idempotent producer may have under way.
    private static let mostUnderWay = 5
    /// A lane that waits longer for its reports takes no place from the others: its broker is slow, or gone.
    private static let usualAnswer = Duration.milliseconds(100)
    /// A lane with so much does not linger.
    private static let lingerBytes = 64 << 10

    /// - Parameters:
    ///   - timeout: after it a request that is not acknowledged fails.
    ///   - linger: shortest time between two batches of a partition, unless much waits.
    ///   - batchBytes: most that the broker takes in one batch.
    ///   - partitionCount: read for every request.
    init(
        settings: KafkaSettings, topic: String, queueBytes: Int, timeout: Duration, linger: Duration,
        batchBytes: Int, partitionCount: @escaping @Sendable () -> Int, logger: Logger
    ) throws(SegmentLogError) {
        self.settings = settings
        topicName = topic
        self.queueBytes = queueBytes
        self.timeout = timeout
        self.linger = linger
        self.batchBytes = batchBytes
        self.partitionCount = partitionCount
        self.logger = logger
        client = try Self.makeClient(settings, batchBytes: batchBytes, logger: logger)
        prepareTopic()
        let thread = Thread { [self] in
            Thread.current.name = "kafka-producer"
            work()
        }
        thread.stackSize = 1 << 20
        thread.start()
    }

    private static func makeClient(_ settings: KafkaSettings, batchBytes: Int, logger: Logger) throws(SegmentLogError)
        -> KafkaClient
    {
        var settings = settings
        settings["batch.size"] = "\(batchBytes)"
        return try KafkaClient(
            RD_KAFKA_PRODUCER, settings, events: RD_KAFKA_EVENT_DR | RD_KAFKA_EVENT_ERROR, logger: logger)
    }

    private func prepareTopic() {
        topic = rd_kafka_topic_new(client.handle, topicName, nil)
        queue = rd_kafka_queue_get_main(client.handle)
    }

    // MARK: Called from any task

    var queuedBytes: Int { shared.withLock { $0.byteCount } }

    func append(_ records: LogRecordBatch) async throws(SegmentLogError) {
        guard !records.isEmpty else { return }
        guard records.count < 1 << Self.indexBits else {
            throw SegmentLogError(.tooLarge, "a request of \(records.count) records is too large")
        }
        let deadline = clock.now + timeout
        let error = await withUnsafeContinuation { (reply: Reply) in
            let refusal: SegmentLogError? = shared.withLock { shared in
                if shared.isRefusing { return SegmentLogError(.closed, "the log is shutting down") }
                if shared.byteCount > 0, shared.byteCount + records.byteCount > queueBytes {
                    return SegmentLogError(.full, "the log's queue is full (\(shared.byteCount) bytes)")
                }
                shared.byteCount += records.byteCount
                shared.incoming.append(Incoming(records: records, deadline: deadline, reply: reply))
                Self.wake(&shared)
                return nil
            }
            if let refusal { reply.resume(returning: refusal) }
        }
        if let error { throw error }
    }

    /// Refuses new requests and returns when all earlier ones are answered.
    func finish() async {
        await withUnsafeContinuation { continuation in
            let isQuiet = shared.withLock { shared in
                shared.isRefusing = true
                if shared.hasEnded { return true }
                shared.waitingForQuiet.append(continuation)
                Self.wake(&shared)
                return false
            }
            if isQuiet { continuation.resume() }
        }
    }

    /// Ends the thread; requests that still wait get `.closed`.
    func close() async {
        await withUnsafeContinuation { continuation in
            let isOver = shared.withLock { shared in
                shared.isRefusing = true
                shared.isClosing = true
                if shared.hasEnded { return true }
                shared.waitingForEnd.append(continuation)
                Self.wake(&shared)
                return false
            }
            if isOver { continuation.resume() }
        }
    }

    /// The queue cannot be destroyed meanwhile: the thread takes it back under the lock.
    private static func wake(_ shared: inout Shared) {
        if let queue = shared.sleeping { rd_kafka_queue_yield(queue) }
        shared.sleeping = nil
    }

    // MARK: The thread

    private func work() {
        while true {
            let (incoming, isClosing, isAsleep) = shared.withLock { shared -> ([Incoming], Bool, Bool) in
                defer { shared.incoming.removeAll(keepingCapacity: true) }
                // No more will come to wait for.
                if shared.isRefusing { linger = .zero }
                let mustSleep = shared.incoming.isEmpty && !shared.isClosing
                if mustSleep { shared.sleeping = queue }
                return (shared.incoming, shared.isClosing, mustSleep)
            }
            if isClosing {
                for request in incoming {
                    request.reply.resume(returning: SegmentLogError(.closed, "the log was closed"))
                }
                break
            }
            for request in incoming { take(request) }
            send()
            // Asleep, a new request wakes the thread; awake, there may be reports or more requests at once.
            serve(timeoutMilliseconds: isAsleep ? pause() : 0)
            if isAsleep { shared.withLock { $0.sleeping = nil } }
            if isBroken { replaceClient() }
            expire()
            resumeQuiet()
        }
        end()
    }

    /// How long the thread may sleep: until the next request gives up, a lane is due, or what was not taken is tried again.
    private func pause() -> Int32 {
        var rest = Duration.seconds(1)
        if firstDeadline < deadlines.count { rest = min(rest, deadlines[firstDeadline].at - clock.now) }
        if isRefused { rest = min(rest, .milliseconds(20)) }
        for lane in lanes where !lane.isEmpty && lane.inFlight == 0 {
            rest = min(rest, lane.lastSend.map { $0 + linger - clock.now } ?? .zero)
        }
        return Int32(max(0, rest.wholeMilliseconds) + 1)
    }

    private func take(_ incoming: Incoming) {
        let id = nextID
        nextID += 1
        let request = Request(incoming, partitionCount: max(1, partitionCount()))
        requests[id] = request
        deadlines.append((id, incoming.deadline))
        for index in request.partitions.indices { enqueue(request, id, index) }
    }

    private func enqueue(_ request: Request, _ id: UInt, _ index: Int) {
        let partition = Int(request.partitions[index])
        while lanes.count <= partition { lanes.append(Lane()) }
        lanes[partition].append(id, index, byteCount: max(0, request.records.entries[index].length))
    }

    /// Hands over what is due, lane by lane.
    private func send() {
        isRefused = false
        guard !lanes.isEmpty else { return }
        let now = clock.now
        var hasSent = false
        defer { if hasSent { flush() } }
        var underWay = lanes.count { $0.inFlight > 0 && now - ($0.lastSend ?? now) < Self.usualAnswer }
        for step in lanes.indices {
            let number = (turn + step) % lanes.count
            guard !lanes[number].isEmpty, lanes[number].inFlight == 0 else { continue }
            if let last = lanes[number].lastSend, now - last < linger, lanes[number].waitingBytes < Self.lingerBytes {
                continue
            }
            guard underWay < Self.mostUnderWay else {
                turn = number
                return
            }
            send(lane: number, now: now)
            if lanes[number].inFlight > 0 {
                underWay += 1
                hasSent = true
            }
            if isBroken { return }
        }
    }

    /// Has what was handed over sent as it is now. librdkafka's flag for it holds while the call waits, here in vain: only we
    /// could take the reports. Should its thread look too late, the records go when their linger time is over.
    private func flush() { rd_kafka_flush(client.handle, 1) }

    /// Hands the records of a lane to librdkafka, one batch at most; stops at the first that it does not take.
    private func send(lane number: Int, now: ContinuousClock.Instant) {
        guard let topic else { return }
        lanes[number].lastSend = now
        var sentBytes = 0
        while !lanes[number].isEmpty {
            let (id, index) = lanes[number].waiting[lanes[number].first]
            guard let request = requests[id] else {
                lanes[number].removeFirst(byteCount: 0)
                continue
            }
            let length = max(0, request.records.entries[index].length)
            // A request that gave up before it was sent need not be sent.
            if request.reply != nil, !request.isAcknowledged[index] {
                if sentBytes > 0, sentBytes + length > batchBytes { return }
                let opaque = UnsafeMutableRawPointer(bitPattern: (id + 1) << Self.indexBits | UInt(index))
                let error = request.records.bytes.withUnsafeBytes { bytes in
                    writer.send(
                        request.records.entries[index], bytes, to: topic, partition: Int32(number), of: client.handle,
                        opaque: opaque)
                }
                switch error {
                case RD_KAFKA_RESP_ERR_NO_ERROR:
                    request.inFlight += 1
                    lanes[number].inFlight += 1
                    sentBytes += length
                case RD_KAFKA_RESP_ERR__FATAL:
                    isBroken = true
                    return
                case RD_KAFKA_RESP_ERR__QUEUE_FULL:
                    isRefused = true
                    return
                case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION, RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
                    isRefused = true
                    refreshMetadata()
                    return
                case RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE:
                    answer(request, tooLarge(request, index))
                default:
                    answer(request, SegmentLogError(.unavailable, "cannot write to Kafka: \(KafkaClient.text(error))"))
                }
            }
            lanes[number].removeFirst(byteCount: length)
            request.waiting -= 1
            endIfComplete(request, id)
        }
    }

    private func tooLarge(_ request: Request, _ index: Int) -> SegmentLogError {
        SegmentLogError(
            .tooLarge,
            "Kafka does not take a record of \(max(0, request.records.entries[index].length)) bytes; see max.message.bytes of topic \(topicName)"
        )
    }

    /// The partition count was raised, and this client has not noticed. Blocks at most a second, and not often.
    private func refreshMetadata() {
        if let lastMetadata, clock.now - lastMetadata < .milliseconds(500) { return }
        lastMetadata = clock.now
        var metadata: UnsafePointer<rd_kafka_metadata>?
        if rd_kafka_metadata(client.handle, 0, topic, &metadata, 1_000) == RD_KAFKA_RESP_ERR_NO_ERROR, let metadata {
            rd_kafka_metadata_destroy(metadata)
        }
    }

    // MARK: Reports

    private func serve(timeoutMilliseconds: Int32) {
        var timeout = timeoutMilliseconds
        // A bound, so that new requests are sent between the reports of many.
        for _ in 0..<100 {
            guard let queue, let event = rd_kafka_queue_poll(queue, timeout) else { return }
            timeout = 0
            switch rd_kafka_event_type(event) {
            case RD_KAFKA_EVENT_DR: serveReports(event)
            case RD_KAFKA_EVENT_ERROR:
                lastError = rd_kafka_event_error_string(event).map { String(cString: $0) } ?? ""
                if rd_kafka_event_error_is_fatal(event) != 0 { isBroken = true }
            default: break
            }
            rd_kafka_event_destroy(event)
        }
    }

    private func serveReports(_ event: OpaquePointer) {
        while let message = rd_kafka_event_message_next(event) {
            let tag = UInt(bitPattern: message.pointee._private)
            let id = (tag >> Self.indexBits) &- 1
            let index = Int(tag & (1 << Self.indexBits - 1))
            guard let request = requests[id], index < request.records.count else { continue }
            request.inFlight -= 1
            lanes[Int(request.partitions[index])].inFlight -= 1
            report(message.pointee.err, on: index, of: request, id)
            endIfComplete(request, id)
        }
    }

    private func report(_ error: rd_kafka_resp_err_t, on index: Int, of request: Request, _ id: UInt) {
        switch error {
        case RD_KAFKA_RESP_ERR_NO_ERROR:
            guard !request.isAcknowledged[index] else { return }
            request.isAcknowledged[index] = true
            request.missing -= 1
        case RD_KAFKA_RESP_ERR__PURGE_QUEUE, RD_KAFKA_RESP_ERR__PURGE_INFLIGHT, RD_KAFKA_RESP_ERR__FATAL:
            break
        case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION, RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
            answer(
                request,
                SegmentLogError(.unavailable, "partition \(request.partitions[index]) of topic \(topicName) is unknown")
            )
        case RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE:
            // The broker means the batch. Unless this record alone would fill it, smaller batches may do.
            if isBroken { break }
            if request.records.entries[index].length * 2 < batchBytes, batchBytes > 32 << 10 {
                batchBytes /= 2
                isBroken = true
            } else {
                answer(request, tooLarge(request, index))
            }
        default:
            // After a fatal error the reports of its victims carry various codes; all of them are sent again.
            if isBroken || rd_kafka_fatal_error(client.handle, nil, 0) != RD_KAFKA_RESP_ERR_NO_ERROR {
                isBroken = true
            } else {
                answer(request, unavailable(KafkaClient.text(error)))
            }
        }
    }

    private func unavailable(_ reason: String) -> SegmentLogError {
        SegmentLogError(
            .unavailable,
            "Kafka did not acknowledge in time: \(reason)\(lastError.isEmpty ? "" : " (last error: \(lastError))")")
    }

    private func answer(_ request: Request, _ error: SegmentLogError?) {
        request.reply?.resume(returning: error)
        request.reply = nil
    }

    /// A request leaves the queue when nothing of it is in librdkafka's memory any more.
    private func endIfComplete(_ request: Request, _ id: UInt) {
        guard request.inFlight == 0, request.waiting == 0, request.missing == 0 || request.reply == nil else { return }
        answer(request, nil)
        requests.removeValue(forKey: id)
        shared.withLock { $0.byteCount -= request.records.byteCount }
    }

    /// Answers requests whose time is over; their records leave with librdkafka's own time-out.
    private func expire() {
        while firstDeadline < deadlines.count {
            let (id, deadline) = deadlines[firstDeadline]
            if let request = requests[id], request.reply != nil {
                guard deadline <= clock.now else { break }
                answer(request, unavailable("no answer within \(timeout)"))
                endIfComplete(request, id)
            }
            firstDeadline += 1
        }
        if firstDeadline > 1_000 || firstDeadline == deadlines.count {
            deadlines.removeFirst(firstDeadline)
            firstDeadline = 0
        }
    }

    private func resumeQuiet() {
        guard requests.isEmpty else { return }
        let waiting = shared.withLock { shared -> [UnsafeContinuation<Void, Never>] in
            guard shared.incoming.isEmpty else { return [] }
            defer { shared.waitingForQuiet.removeAll() }
            return shared.waitingForQuiet
        }
        for continuation in waiting { continuation.resume() }
    }

    // MARK: A new client

    /// Ends the client and sends with a new one what was not acknowledged, in the order of the requests. Some of it may be
    /// in the log already: a document twice does no harm.
    private func replaceClient() {
        if queue != nil {
            logger.warning(
                "the Kafka producer is replaced; what is not acknowledged is sent again",
                metadata: ["reason": "\(reasonOfBreak)", "requests": "\(requests.count)"])
        }
        endClient()
        replacements.wrappingAdd(1, ordering: .relaxed)
        lanes = []
        for id in requests.keys.sorted() {
            if let request = requests[id] { resend(request, id) }
        }
        do {
            client = try Self.makeClient(settings, batchBytes: batchBytes, logger: logger)
            prepareTopic()
            isBroken = false
        } catch {
            // Out of threads or memory: those who wait are told when their time is over, and it is tried again.
            logger.error("cannot make a new Kafka producer", metadata: ["reason": "\(error)"])
            Thread.sleep(forTimeInterval: 0.1)
        }
    }

    private var reasonOfBreak: String {
        var reason = [CChar](repeating: 0, count: 512)
        let code = rd_kafka_fatal_error(client.handle, &reason, reason.count)
        if code == RD_KAFKA_RESP_ERR_NO_ERROR { return "the broker refused a batch as too large" }
        return String(decoding: reason.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    private func endClient() {
        guard let queue else { return }
        rd_kafka_purge(client.handle, RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT)
        let deadline = clock.now + .seconds(1)
        while requests.values.contains(where: { $0.inFlight > 0 }), clock.now < deadline {
            serve(timeoutMilliseconds: 10)
        }
        if let topic { rd_kafka_topic_destroy(topic) }
        rd_kafka_queue_destroy(queue)
        topic = nil
        self.queue = nil
        client.destroy()
    }

    /// From the first record of a partition that is not acknowledged, all of that partition go again: so the records of a
    /// trace keep their order.
    private func resend(_ request: Request, _ id: UInt) {
        var partitions: Set<Int32> = []
        for index in request.isAcknowledged.indices {
            if !request.isAcknowledged[index] {
                partitions.insert(request.partitions[index])
            } else if partitions.contains(request.partitions[index]) {
                request.isAcknowledged[index] = false
                request.missing += 1
            }
        }
        request.inFlight = 0
        request.waiting = 0
        for index in request.partitions.indices where !request.isAcknowledged[index] {
            request.waiting += 1
            enqueue(request, id, index)
        }
    }

    private func end() {
        for (id, request) in requests {
            answer(request, SegmentLogError(.closed, "the log was closed"))
            requests.removeValue(forKey: id)
        }
        endClient()
        let waiting = shared.withLock { shared in
            shared.hasEnded = true
            shared.byteCount = 0
            shared.sleeping = nil
            defer {
                shared.waitingForEnd.removeAll()
                shared.waitingForQuiet.removeAll()
            }
            return shared.waitingForEnd + shared.waitingForQuiet
        }
        for continuation in waiting { continuation.resume() }
    }
}
