// The form of records in the Kafka topic, from our records to messages and back. Other consumers may read the topic:
//
//   key        the 16 bytes of the trace id, most significant first (the W3C trace id)
//   value      the segment document as received, JSON in UTF-8; null for a touch
//   timestamp  when the broker appended it (in a topic that Beamline did not make perhaps the receipt time)
//   partition  FNV-1a over the key (`LogPartition`), not the partitioner of the producer
//   headers, all of them text:
//     beamline-version   1
//     beamline-account   the account that received the document, 12 digits
//     beamline-received  receipt time, microseconds since 1970, decimal
//     beamline-source    http, udp, otlp or aggregator
//     beamline-caller    ARN of the caller; absent when nobody signed
//     beamline-kind      `touch` for a request to evaluate the trace again; absent for documents
//
// Whatever else stands in the topic becomes an entry with `poison` set.

import CKafka
import Segments

/// Names of the headers, in the order of the arrays below.
private enum Header: Int, CaseIterable {
    case version, account, received, source, caller, kind

    var name: StaticString {
        switch self {
        case .version: "beamline-version"
        case .account: "beamline-account"
        case .received: "beamline-received"
        case .source: "beamline-source"
        case .caller: "beamline-caller"
        case .kind: "beamline-kind"
        }
    }

    /// A literal lives for ever and ends with a zero byte.
    var cName: UnsafePointer<CChar> { UnsafeRawPointer(name.utf8Start).assumingMemoryBound(to: CChar.self) }
}

extension LogSource {
    fileprivate var word: StaticString {
        switch self {
        case .http: "http"
        case .udp: "udp"
        case .otlp: "otlp"
        case .aggregator: "aggregator"
        }
    }
}

private let formatVersion: StaticString = "1"
private let touchWord: StaticString = "touch"

private func matches(_ bytes: UnsafeRawBufferPointer, _ word: StaticString) -> Bool {
    bytes.count == word.utf8CodeUnitCount
        && bytes.elementsEqual(UnsafeRawBufferPointer(start: word.utf8Start, count: bytes.count))
}

/// A non-negative decimal number of at most 18 digits.
private func decimal(_ bytes: UnsafeRawBufferPointer) -> UInt64? {
    guard (1...18).contains(bytes.count) else { return nil }
    var value: UInt64 = 0
    for byte in bytes {
        guard (0x30...0x39).contains(byte) else { return nil }
        value = value * 10 + UInt64(byte - 0x30)
    }
    return value
}

// MARK: Writing

/// Hands records to a producer. Its memory is reused from one record to the next: owned by one thread.
struct KafkaRecordWriter: ~Copyable {
    private let headers = UnsafeMutableBufferPointer<ckafka_header>.allocate(capacity: Header.allCases.count)
    private let account = UnsafeMutableBufferPointer<UInt8>.allocate(capacity: 12)
    private let received = UnsafeMutableBufferPointer<UInt8>.allocate(capacity: 20)

    init() {
        for header in Header.allCases {
            headers[header.rawValue] = ckafka_header(name: header.cName, value: nil, size: 0)
        }
    }

    deinit {
        headers.deallocate()
        account.deallocate()
        received.deallocate()
    }

    /// Queues a record; everything is copied.
    /// - Parameter bytes: those of the record's batch.
    func send(
        _ entry: LogRecordBatch.Entry, _ bytes: UnsafeRawBufferPointer, to topic: OpaquePointer, partition: Int32,
        of client: OpaquePointer, opaque: UnsafeMutableRawPointer?
    ) -> rd_kafka_resp_err_t {
        var caller = entry.callerARN
        return caller.withUTF8 { caller in
            set(
                .version, UnsafeRawBufferPointer(start: formatVersion.utf8Start, count: formatVersion.utf8CodeUnitCount)
            )
            set(.account, UnsafeRawBufferPointer(digits(entry.account.rawValue, in: account, width: 12)))
            set(.received, UnsafeRawBufferPointer(digits(UInt64(max(0, entry.receivedAt)), in: received, width: 1)))
            let source = entry.source.word
            set(.source, UnsafeRawBufferPointer(start: source.utf8Start, count: source.utf8CodeUnitCount))
            set(.caller, caller.isEmpty ? nil : UnsafeRawBufferPointer(caller))
            let isTouch = entry.kind == .touch
            set(
                .kind,
                isTouch ? UnsafeRawBufferPointer(start: touchWord.utf8Start, count: touchWord.utf8CodeUnitCount) : nil)
            let key = (entry.traceID.high.bigEndian, entry.traceID.low.bigEndian)
            return withUnsafeBytes(of: key) { key in
                // librdkafka takes a null pointer for a null value, so an empty value needs some other.
                let value = entry.length >= 0 ? bytes.baseAddress.map { $0 + entry.start } ?? key.baseAddress : nil
                return ckafka_produce(
                    client, topic, partition, key.baseAddress, key.count, value, max(0, entry.length),
                    max(0, entry.receivedAt) / 1000, headers.baseAddress, headers.count, opaque)
            }
        }
    }

    private func set(_ header: Header, _ value: UnsafeRawBufferPointer?) {
        headers[header.rawValue].name = value == nil ? nil : header.cName
        headers[header.rawValue].value = value?.baseAddress
        headers[header.rawValue].size = value?.count ?? 0
    }

    private func digits(
        _ value: UInt64, in buffer: UnsafeMutableBufferPointer<UInt8>, width: Int
    ) -> UnsafeMutableBufferPointer<UInt8> {
        var rest = value
        var start = buffer.count
        repeat {
            start -= 1
            buffer[start] = 0x30 + UInt8(rest % 10)
            rest /= 10
        } while start > 0 && (rest > 0 || buffer.count - start < width)
        return UnsafeMutableBufferPointer(rebasing: buffer[start...])
    }
}

// MARK: Reading

/// Turns messages into entries. Owned by one reader at a time.
struct KafkaRecordReader: ~Copyable {
    /// Values of records that cannot be used are kept up to here, for the inbox.
    static let poisonBytes = 64 << 10
    /// How far a receipt time may be ahead of this node's clock.
    private static let futureMicros: Micros = 86_400_000_000
    private static let callerBytes = 2_048

    private struct Draft {
        var kind = LogRecordKind.document
        var traceID = TraceID(high: 0, low: 0)
        var account = AccountID(rawValue: 0)
        var receivedAt: Micros = 0
        var source = LogSource.http
        var caller = ""
        var length = 0
        var poison: String?
    }

    private let maxValueBytes: Int
    private let headers = UnsafeMutableBufferPointer<ckafka_header>.allocate(capacity: Header.allCases.count)
    /// Few callers write nearly all documents: their ARNs are made into strings once.
    private var callers: [UInt64: String] = [:]

    /// - Parameter maxValueBytes: larger values cannot be documents.
    init(maxValueBytes: Int) {
        self.maxValueBytes = maxValueBytes
        for header in Header.allCases {
            headers[header.rawValue] = ckafka_header(name: header.cName, value: nil, size: 0)
        }
    }

    deinit { headers.deallocate() }

    /// The entries of consecutive messages; their values are copied once, into one array.
    /// - Parameter now: microseconds since 1970.
    mutating func entries(_ messages: [UnsafeMutablePointer<rd_kafka_message_t>], now: Micros) -> [LogEntry] {
        var drafts: [Draft] = []
        drafts.reserveCapacity(messages.count)
        for message in messages { drafts.append(draft(message, now: now)) }
        let total = drafts.reduce(0) { $0 + $1.length }
        let bytes = [UInt8](unsafeUninitializedCapacity: total) { buffer, count in
            for (message, draft) in zip(messages, drafts) where draft.length > 0 {
                guard let target = buffer.baseAddress, let source = message.pointee.payload else { continue }
                UnsafeMutableRawPointer(target + count).copyMemory(from: source, byteCount: draft.length)
                count += draft.length
            }
        }
        var start = 0
        var entries: [LogEntry] = []
        entries.reserveCapacity(messages.count)
        for (message, draft) in zip(messages, drafts) {
            entries.append(
                LogEntry(
                    offset: message.pointee.offset, kind: draft.kind, traceID: draft.traceID, account: draft.account,
                    receivedAt: draft.receivedAt, source: draft.source, callerARN: draft.caller,
                    hasValue: message.pointee.payload != nil, value: bytes[start..<start + draft.length],
                    poison: draft.poison))
            start += draft.length
        }
        return entries
    }

    /// The receipt time alone.
    mutating func receipt(_ message: UnsafeMutablePointer<rd_kafka_message_t>, now: Micros) -> Micros {
        draft(message, now: now).receivedAt
    }

    private mutating func draft(_ message: UnsafeMutablePointer<rd_kafka_message_t>, now: Micros) -> Draft {
        for index in headers.indices {
            headers[index].value = nil
            headers[index].size = 0
        }
        ckafka_find_headers(message, headers.baseAddress, headers.count)
        var draft = Draft()
        draft.length = message.pointee.payload == nil ? 0 : message.pointee.len
        // What is known even of a record that cannot be used is filled in; the first fault found is the one told.
        var faults: [String] = []
        let key = UnsafeRawBufferPointer(
            start: message.pointee.key, count: message.pointee.key == nil ? 0 : message.pointee.key_len)
        if key.count == 16 {
            draft.traceID = TraceID(
                high: UInt64(bigEndian: key.loadUnaligned(fromByteOffset: 0, as: UInt64.self)),
                low: UInt64(bigEndian: key.loadUnaligned(fromByteOffset: 8, as: UInt64.self)))
        } else {
            faults.append("its key has \(key.count) bytes where the 16 of a trace id belong")
        }
        switch value(.version) {
        case nil: faults.append("it has no header beamline-version, so another producer wrote it")
        case let version? where !matches(version, formatVersion): faults.append("its header beamline-version is not 1")
        default: break
        }
        if let account = value(.account), account.count == 12, let number = decimal(account) {
            draft.account = AccountID(rawValue: number)
        } else {
            faults.append("its header beamline-account is not an account id")
        }
        if let received = value(.received).flatMap(decimal), received > 0, received < now + Self.futureMicros {
            draft.receivedAt = Micros(received)
        } else {
            let timestamp = rd_kafka_message_timestamp(message, nil)
            draft.receivedAt = timestamp > 0 && timestamp < now / 1000 ? timestamp * 1000 : now
            faults.append("its header beamline-received is no time in the past")
        }
        if let word = value(.source), let source = LogSource.allCases.first(where: { matches(word, $0.word) }) {
            draft.source = source
        } else {
            faults.append("its header beamline-source is unknown")
        }
        if let caller = value(.caller) {
            if caller.count <= Self.callerBytes {
                draft.caller = text(ofCaller: caller)
            } else {
                faults.append("its header beamline-caller has \(caller.count) bytes")
            }
        }
        if let kind = value(.kind) {
            if matches(kind, touchWord) {
                draft.kind = .touch
            } else {
                faults.append("its header beamline-kind is unknown")
            }
        }
        if draft.kind == .document && message.pointee.payload == nil { faults.append("it has no value") }
        if draft.length > maxValueBytes {
            faults.append("its value has \(draft.length) bytes; a document has at most \(maxValueBytes)")
        }
        if let fault = faults.first {
            draft.poison = "the record cannot be used: \(fault)"
            draft.length = min(draft.length, Self.poisonBytes)
        }
        return draft
    }

    private func value(_ header: Header) -> UnsafeRawBufferPointer? {
        let found = headers[header.rawValue]
        return found.value.map { UnsafeRawBufferPointer(start: $0, count: found.size) }
    }

    private mutating func text(ofCaller bytes: UnsafeRawBufferPointer) -> String {
        var hash: UInt64 = 0xcbf2_9ce4_8422_2325
        for byte in bytes { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
        if let known = callers[hash], known.utf8.count == bytes.count, known.utf8.elementsEqual(bytes) { return known }
        let text = String(decoding: bytes, as: UTF8.self)
        // Bounded: somebody may write a new ARN with every record.
        if callers.count >= 1_000 { callers.removeAll(keepingCapacity: true) }
        callers[hash] = text
        return text
    }
}
