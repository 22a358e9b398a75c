// One librdkafka client and what all of ours have in common: settings, log lines, error texts, and a thread for the
// calls that may block. The producer, the consumer and the queries each own one.

import CKafka
import Foundation
import Logging
import Synchronization

/// Settings of a client, in librdkafka's words (https://github.com/confluentinc/librdkafka/blob/v2.0.2/CONFIGURATION.md).
struct KafkaSettings: Sendable {
    var values: [(name: String, value: String)] = []

    /// Later values replace earlier ones.
    subscript(name: String) -> String? {
        get { values.last { $0.name == name }?.value }
        set {
            values.removeAll { $0.name == name }
            if let newValue { values.append((name, newValue)) }
        }
    }

    func merged(with others: [(name: String, value: String)]) -> KafkaSettings {
        var result = self
        for other in others { result[other.name] = other.value }
        return result
    }
}

/// A client handle. Made and destroyed by its owner; librdkafka's calls may be made from any thread.
final class KafkaClient: @unchecked Sendable {
    // Both are set once in `init`; librdkafka guards what they point to.
    let handle: OpaquePointer
    private let sink: Unmanaged<LogSink>
    private let isDestroyed = Atomic<Bool>(false)

    /// - Parameters:
    ///   - events: `RD_KAFKA_EVENT_…` to be delivered as events instead of callbacks.
    ///   - pacesFetches: see `FetchPace`.
    init(
        _ type: rd_kafka_type_t, _ settings: KafkaSettings, events: Int32 = 0, pacesFetches: Bool = false,
        logger: Logger
    ) throws(SegmentLogError) {
        let configuration = rd_kafka_conf_new()
        var reason = [CChar](repeating: 0, count: 512)
        for (name, value) in settings.values {
            guard rd_kafka_conf_set(configuration, name, value, &reason, reason.count) == RD_KAFKA_CONF_OK else {
                rd_kafka_conf_destroy(configuration)
                throw SegmentLogError(.misconfigured, "Kafka setting \(name)=\(value): \(Self.text(reason))")
            }
        }
        sink = Unmanaged.passRetained(LogSink(logger: logger))
        rd_kafka_conf_set_opaque(configuration, sink.toOpaque())
        if events != 0 { rd_kafka_conf_set_events(configuration, events) }
        // On librdkafka's threads; the sink outlives the handle.
        rd_kafka_conf_set_log_cb(configuration) { client, level, facility, message in
            guard let client, let opaque = rd_kafka_opaque(client), let message else { return }
            let sink = Unmanaged<LogSink>.fromOpaque(opaque).takeUnretainedValue()
            sink.log(level: level, facility: facility.map { String(cString: $0) } ?? "", String(cString: message))
        }
        if pacesFetches { FetchPace.apply(to: configuration) }
        guard let handle = rd_kafka_new(type, configuration, &reason, reason.count) else {
            rd_kafka_conf_destroy(configuration)
            sink.release()
            throw SegmentLogError(.misconfigured, "cannot make a Kafka client: \(Self.text(reason))")
        }
        self.handle = handle
    }

    /// Ends the client's threads; may block until a broker connection notices. References to its queues and topics have
    /// to be given back before.
    func destroy() {
        guard !isDestroyed.exchange(true, ordering: .acquiringAndReleasing) else { return }
        rd_kafka_destroy_flags(handle, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE)
        sink.release()
    }

    /// Has librdkafka's thread for the broker look at a partition's queue. Once that was full it sleeps up to a second, whatever
    /// is taken from it meanwhile (before version 2.2 at least). Any request to that broker ends its sleep; this one is the
    /// smallest, and nobody needs its answer.
    func wakeFetcher(topic: String, partition: Int32) {
        guard let list = rd_kafka_topic_partition_list_new(1) else { return }
        defer { rd_kafka_topic_partition_list_destroy(list) }
        rd_kafka_topic_partition_list_add(list, topic, partition)?.pointee.offset = Int64(RD_KAFKA_OFFSET_BEGINNING)
        rd_kafka_offsets_for_times(handle, list, 1)
    }

    static func text(_ code: rd_kafka_resp_err_t) -> String { String(cString: rd_kafka_err2str(code)) }

    private static func text(_ reason: [CChar]) -> String {
        String(decoding: reason.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
}

/// Keeps a client that has caught up from asking for every few records one by one: a fetch that brings little takes at least
/// `interval`. A request costs both sides the same however little it brings, and brokers differ in how long they hold an
/// empty one (`fetch.wait.max.ms` and `fetch.min.bytes` are wishes; some answer at once, and would be asked ten thousand times
/// a second). It waits on librdkafka's thread for the broker, in an interceptor, which should not be done for long: but 5 ms hold
/// up nothing except other requests to that broker, and librdkafka has no setting for it.
private enum FetchPace {
    /// Microseconds, as librdkafka tells round trips.
    static let interval: Int64 = 5_000
    /// Bytes of the answer.
    static let little = 16 << 10
    private static let fetch: Int16 = 1

    static func apply(to configuration: OpaquePointer?) {
        rd_kafka_conf_interceptor_add_on_new(
            configuration, "beamline",
            { client, _, _, _, _ in
                rd_kafka_interceptor_add_on_response_received(
                    client, "beamline",
                    { _, _, _, _, request, _, _, size, roundTrip, _, _ in
                        if request == FetchPace.fetch, size < FetchPace.little,
                            (0..<FetchPace.interval).contains(roundTrip)
                        {
                            usleep(UInt32(FetchPace.interval - roundTrip))
                        }
                        return RD_KAFKA_RESP_ERR_NO_ERROR
                    }, nil)
            }, nil)
    }
}

private final class LogSink: Sendable {
    let logger: Logger
    init(logger: Logger) { self.logger = logger }

    func log(level: Int32, facility: String, _ message: String) {
        // syslog levels; what is wrong with a broker is said again by the call that fails.
        let own: Logger.Level = level <= 2 ? .error : level <= 4 ? .warning : .debug
        logger.log(level: own, "Kafka client: \(message)", metadata: ["facility": "\(facility)"])
    }
}

/// A thread for calls that may block: closures run on it in the order given, and `idle` about once a second.
final class KafkaThread: @unchecked Sendable {
    // All state is guarded by `condition`. Once `isOver` no job is taken any more.
    private let condition = NSCondition()
    private var jobs: [@Sendable () -> Void] = []
    private var last: (@Sendable () -> Void)?
    private var isOver = false
    private let idle: @Sendable () -> Void

    init(name: String, idle: @escaping @Sendable () -> Void = {}) {
        self.idle = idle
        let thread = Thread { [self] in
            Thread.current.name = name
            run()
        }
        thread.stackSize = 1 << 20
        thread.start()
    }

    /// - Returns: false when the thread has ended, or will without this job.
    @discardableResult
    func enqueue(_ job: @escaping @Sendable () -> Void) -> Bool {
        condition.lock()
        defer { condition.unlock() }
        guard !isOver else { return false }
        jobs.append(job)
        condition.signal()
        return true
    }

    /// - Returns: nil when the thread has ended.
    func run<T: Sendable>(_ job: @escaping @Sendable () -> T) async -> T? {
        await withUnsafeContinuation { (continuation: UnsafeContinuation<T?, Never>) in
            if !enqueue({ continuation.resume(returning: job()) }) { continuation.resume(returning: nil) }
        }
    }

    /// Ends the thread after the jobs given so far and this one. To be called once.
    func end(_ last: @escaping @Sendable () -> Void = {}) async {
        await withUnsafeContinuation { (continuation: UnsafeContinuation<Void, Never>) in
            condition.lock()
            self.last = {
                last()
                continuation.resume()
            }
            condition.signal()
            condition.unlock()
        }
    }

    private func run() {
        var nextIdle = Date(timeIntervalSinceNow: 1)
        while true {
            condition.lock()
            while jobs.isEmpty && last == nil {
                if !condition.wait(until: nextIdle) { break }
            }
            let taken = jobs
            jobs.removeAll(keepingCapacity: true)
            let last = taken.isEmpty ? last : nil
            if last != nil { isOver = true }
            condition.unlock()
            if let last { return last() }
            for job in taken { job() }
            if nextIdle <= Date() {
                idle()
                nextIdle = Date(timeIntervalSinceNow: 1)
            }
        }
    }
}

extension SegmentLogError {
    static let closedLog = SegmentLogError(.closed, "the log was closed")
}

extension Duration {
    /// Rounded towards zero.
    var wholeMilliseconds: Int64 { components.seconds * 1_000 + components.attoseconds / 1_000_000_000_000_000 }
}
