// The form of records at rest: consecutive records of one partition as bytes. A chunk is what a row of `log_batches`
// holds (compressed) and what the tail cache keeps (as it is).
//
//   version 1 (1 byte), then per record: kind | hasValue << 4 | sameCaller << 5 (1 byte), source (1 byte),
//   trace id (16 bytes), account (varint), receipt time minus that of the record before (zigzag varint),
//   caller ARN unless the same as before (varint length, bytes), value if there is one (varint length, bytes)

import CZstd
import Segments

struct LogChunk: Sendable {
    static let formatVersion: UInt8 = 1

    var bytes: [UInt8] = [LogChunk.formatVersion]
    private(set) var count = 0
    private(set) var minReceipt: Micros = .max
    private(set) var maxReceipt: Micros = .min
    private var lastReceipt: Micros = 0
    private var lastCaller: String?

    mutating func append(_ entry: LogRecordBatch.Entry, from source: UnsafeRawBufferPointer) {
        let isSameCaller = lastCaller == entry.callerARN
        bytes.append(entry.kind.rawValue | (entry.length >= 0 ? 0x10 : 0) | (isSameCaller ? 0x20 : 0))
        bytes.append(entry.source.rawValue)
        withUnsafeBytes(of: (entry.traceID.high.bigEndian, entry.traceID.low.bigEndian)) { bytes.append(contentsOf: $0) }
        appendVarint(entry.account.rawValue)
        let delta = entry.receivedAt &- lastReceipt
        appendVarint(UInt64(bitPattern: delta << 1 ^ delta >> 63))
        if !isSameCaller {
            appendVarint(UInt64(entry.callerARN.utf8.count))
            bytes.append(contentsOf: entry.callerARN.utf8)
            lastCaller = entry.callerARN
        }
        if entry.length >= 0 {
            appendVarint(UInt64(entry.length))
            bytes.append(contentsOf: UnsafeRawBufferPointer(rebasing: source[entry.start..<entry.start + entry.length]))
        }
        lastReceipt = entry.receivedAt
        minReceipt = min(minReceipt, entry.receivedAt)
        maxReceipt = max(maxReceipt, entry.receivedAt)
        count += 1
    }

    private mutating func appendVarint(_ value: UInt64) {
        var rest = value
        while rest >= 0x80 {
            bytes.append(UInt8(truncatingIfNeeded: rest) | 0x80)
            rest >>= 7
        }
        bytes.append(UInt8(rest))
    }

    /// Appends the records of a chunk with offsets in [from, …) to `entries`, until a limit is reached.
    /// - Parameter firstOffset: offset of the chunk's first record.
    /// - Throws: `.corrupt` when the bytes are not a chunk.
    static func decode(
        _ bytes: [UInt8], firstOffset: Int64, from: Int64, maxRecords: Int, maxBytes: Int, byteCount: inout Int,
        into entries: inout [LogEntry]
    ) throws(SegmentLogError) {
        var reader = Reader(bytes: bytes)
        guard try reader.byte() == formatVersion else { throw SegmentLogError(.corrupt, "unknown format of a log chunk") }
        var offset = firstOffset
        var receivedAt: Micros = 0
        var caller = ""
        while reader.position < bytes.count {
            let flags = try reader.byte()
            guard let kind = LogRecordKind(rawValue: flags & 0x0f), let source = LogSource(rawValue: try reader.byte()) else {
                throw SegmentLogError(.corrupt, "unknown kind or source at offset \(offset)")
            }
            let traceID = TraceID(high: try reader.word(), low: try reader.word())
            let account = AccountID(rawValue: try reader.varint())
            let zigzag = try reader.varint()
            receivedAt &+= Int64(bitPattern: zigzag >> 1) ^ -Int64(bitPattern: zigzag & 1)
            if flags & 0x20 == 0 {
                let range = try reader.slice()
                caller = String(decoding: bytes[range], as: UTF8.self)
            }
            let hasValue = flags & 0x10 != 0
            let value = hasValue ? try reader.slice() : reader.position..<reader.position
            if offset >= from {
                if !entries.isEmpty && (entries.count >= maxRecords || byteCount + value.count > maxBytes) { return }
                byteCount += value.count
                entries.append(
                    LogEntry(
                        offset: offset, kind: kind, traceID: traceID, account: account, receivedAt: receivedAt,
                        source: source, callerARN: caller, hasValue: hasValue, value: bytes[value]))
            }
            offset += 1
        }
    }

    private struct Reader {
        let bytes: [UInt8]
        var position = 0

        mutating func byte() throws(SegmentLogError) -> UInt8 {
            guard position < bytes.count else { throw SegmentLogError(.corrupt, "a log chunk ends in a record") }
            defer { position += 1 }
            return bytes[position]
        }

        mutating func word() throws(SegmentLogError) -> UInt64 {
            guard position + 8 <= bytes.count else { throw SegmentLogError(.corrupt, "a log chunk ends in a record") }
            defer { position += 8 }
            return bytes.withUnsafeBytes { UInt64(bigEndian: $0.loadUnaligned(fromByteOffset: position, as: UInt64.self)) }
        }

        mutating func varint() throws(SegmentLogError) -> UInt64 {
            var value: UInt64 = 0
            var shift: UInt64 = 0
            while shift < 64 {
                let next = try byte()
                value |= UInt64(next & 0x7f) << shift
                if next < 0x80 { return value }
                shift += 7
            }
            throw SegmentLogError(.corrupt, "a number in a log chunk is too long")
        }

        mutating func slice() throws(SegmentLogError) -> Range<Int> {
            let length = try varint()
            guard length <= UInt64(bytes.count - position) else {
                throw SegmentLogError(.corrupt, "a log chunk ends in a record")
            }
            defer { position += Int(length) }
            return position..<position + Int(length)
        }
    }
}

/// zstd for the log: one frame per chunk, fastest ordinary level (440 MB/s and ×12 on segment documents).
/// Not Sendable: owned by one task at a time.
struct LogCompressor: ~Copyable {
    private let context: OpaquePointer?

    init() { context = ZSTD_createCCtx() }

    deinit { ZSTD_freeCCtx(context) }

    func compress(_ bytes: [UInt8]) throws(SegmentLogError) -> [UInt8] {
        let bound = ZSTD_compressBound(bytes.count)
        var written = 0
        let result = [UInt8](unsafeUninitializedCapacity: bound) { buffer, count in
            written = bytes.withUnsafeBytes {
                ZSTD_compressCCtx(context, buffer.baseAddress, bound, $0.baseAddress, $0.count, 1)
            }
            count = ZSTD_isError(written) == 0 ? written : 0
        }
        guard ZSTD_isError(written) == 0 else { throw SegmentLogError(.corrupt, "cannot compress a log chunk") }
        return result
    }

    /// - Parameter size: what the row says the chunk's length is.
    static func decompress(_ source: UnsafeRawBufferPointer, size: Int) throws(SegmentLogError) -> [UInt8] {
        guard size >= 0, ZSTD_getFrameContentSize(source.baseAddress, source.count) == UInt64(size) else {
            throw SegmentLogError(.corrupt, "a compressed log chunk has not the stated length")
        }
        var read = 0
        let result = [UInt8](unsafeUninitializedCapacity: size) { buffer, count in
            read = ZSTD_decompress(buffer.baseAddress, size, source.baseAddress, source.count)
            count = ZSTD_isError(read) == 0 ? read : 0
        }
        guard result.count == size else { throw SegmentLogError(.corrupt, "a log chunk cannot be decompressed") }
        return result
    }
}
