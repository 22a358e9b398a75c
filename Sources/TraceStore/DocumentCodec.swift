// Documents of one trace as one value: the byte 2, varint length and bytes of the values that `DocumentText` takes out of the
// documents, then a zstd frame of: varint count; per document varint partition, zigzag offset and receipt (each minus the one
// before) and varint 2 × length of its text (+ 1: it stands there as it is); varint length of all documents; the texts.
// Compressed with the account's dictionary when there is one: alone 1 KB shrinks to a fifth, with the dictionary to a tenth.
//
// A value that begins with zstd's magic number is of the first version: no values, and plain lengths and texts in the frame.

import CZstd
import Segments
import Synchronization

/// A trained dictionary, digested once for both directions.
/// Unchecked: zstd's CDict and DDict are read-only after creation and may be shared by threads (zstd.h); freed with this.
final class CompressionDictionary: @unchecked Sendable {
    /// Unique in its account; 0 is "no dictionary".
    let id: Int32
    let bytes: [UInt8]
    private let compression: OpaquePointer?
    /// Made when it is first needed.
    private let thoroughCompression = Mutex<Digested?>(nil)
    fileprivate let decompression: OpaquePointer?

    private struct Digested: @unchecked Sendable {
        let pointer: OpaquePointer?
    }

    init(id: Int32, bytes: [UInt8]) {
        self.id = id
        self.bytes = bytes
        // With a dictionary level 3 takes 6 % off, for little time.
        compression = bytes.withUnsafeBytes { ZSTD_createCDict($0.baseAddress, $0.count, 3) }
        decompression = bytes.withUnsafeBytes { ZSTD_createDDict($0.baseAddress, $0.count) }
    }

    deinit {
        ZSTD_freeCDict(compression)
        thoroughCompression.withLock { ZSTD_freeCDict($0?.pointer) }
        ZSTD_freeDDict(decompression)
    }

    /// - Parameter isThorough: level 5: 5 % fewer bytes for 2 µs more a document.
    fileprivate func compression(isThorough: Bool) -> OpaquePointer? {
        guard isThorough else { return compression }
        return thoroughCompression.withLock { digested in
            if let digested { return digested }
            let made = Digested(pointer: bytes.withUnsafeBytes { ZSTD_createCDict($0.baseAddress, $0.count, 5) })
            digested = made
            return made
        }.pointer
    }

    /// Trains on samples laid one after the other; takes some 100 ms of CPU per MB.
    /// - Returns: nil when zstd finds nothing to learn.
    static func train(samples: [UInt8], sizes: [Int], capacity: Int) -> [UInt8]? {
        var written = 0
        let result = [UInt8](unsafeUninitializedCapacity: capacity) { buffer, count in
            written = samples.withUnsafeBytes {
                ZDICT_trainFromBuffer(
                    buffer.baseAddress, capacity, $0.baseAddress, sizes, UInt32(clamping: sizes.count))
            }
            count = ZDICT_isError(written) == 0 ? written : 0
        }
        return result.isEmpty ? nil : result
    }
}

/// Contexts of zstd, kept for reuse: making one costs more than compressing a document.
final class DocumentCodec: Sendable {
    /// Unchecked: a context is in the pool or with the one caller that took it out, never both; the pool frees it.
    private struct Context: @unchecked Sendable {
        let pointer: OpaquePointer
    }

    /// First byte of a value; zstd's magic number begins otherwise.
    fileprivate static let format: UInt8 = 2

    private let compressors = Mutex<[Context]>([])
    private let decompressors = Mutex<[Context]>([])

    deinit {
        compressors.withLock { $0.forEach { ZSTD_freeCCtx($0.pointer) } }
        decompressors.withLock { $0.forEach { ZSTD_freeDCtx($0.pointer) } }
    }

    /// Compresses many values with one context.
    func withCompressor<R, E: Error>(_ body: (inout Compressor) throws(E) -> R) throws(E) -> R {
        let context = compressors.withLock { $0.popLast() } ?? ZSTD_createCCtx().map { Context(pointer: $0) }
        defer { if let context { compressors.withLock { $0.append(context) } } }
        var compressor = Compressor(context: context?.pointer)
        return try body(&compressor)
    }

    func withDecompressor<R, E: Error>(_ body: (Decompressor) throws(E) -> R) throws(E) -> R {
        let context = decompressors.withLock { $0.popLast() } ?? ZSTD_createDCtx().map { Context(pointer: $0) }
        defer { if let context { decompressors.withLock { $0.append(context) } } }
        return try body(Decompressor(context: context?.pointer))
    }

    struct Compressor {
        fileprivate let context: OpaquePointer?
        private var plain: [UInt8] = []
        private var scratch: [UInt8] = []

        fileprivate init(context: OpaquePointer?) { self.context = context }

        mutating func encode(
            _ documents: ArraySlice<StoredDocument>, of traceID: TraceID, dictionary: CompressionDictionary?,
            isThorough: Bool = false
        ) throws(TraceStoreError) -> ArraySlice<UInt8> {
            let size = documents.reduce(0) { $0 + $1.bytes.count }
            var shortener = TextShortener(
                traceID: traceID, firstReceipt: documents.first?.receivedAt ?? 0, byteCount: size)
            plain.removeAll(keepingCapacity: true)
            plain.appendVarint(UInt64(documents.count))
            var offset: Int64 = 0
            var receipt: Micros = 0
            for document in documents {
                let (length, isPlain) = document.bytes.withUnsafeBytes { shortener.append($0) }
                plain.appendVarint(UInt64(document.partition))
                plain.appendZigzag(document.offset &- offset)
                plain.appendZigzag(document.receivedAt &- receipt)
                plain.appendVarint(UInt64(length) << 1 | (isPlain ? 1 : 0))
                offset = document.offset
                receipt = document.receivedAt
            }
            plain.appendVarint(UInt64(size))
            plain.append(contentsOf: shortener.text)
            var head: [UInt8] = [DocumentCodec.format]
            head.appendVarint(UInt64(shortener.values.count))
            return try compress(
                plain, dictionary: dictionary, isThorough: isThorough, behind: head + shortener.values)
        }

        mutating func compress(
            _ bytes: [UInt8], dictionary: CompressionDictionary?, isThorough: Bool = false, behind head: [UInt8] = []
        ) throws(TraceStoreError) -> ArraySlice<UInt8> {
            let bound = head.count + ZSTD_compressBound(bytes.count)
            if scratch.count < bound { scratch = [UInt8](repeating: 0, count: bound) }
            scratch.replaceSubrange(0..<head.count, with: head)
            let size = scratch.withUnsafeMutableBytes { whole in
                bytes.withUnsafeBytes { source in
                    let target = UnsafeMutableRawBufferPointer(rebasing: whole[head.count...])
                    if let dictionary {
                        return ZSTD_compress_usingCDict(
                            context, target.baseAddress, target.count, source.baseAddress, source.count,
                            dictionary.compression(isThorough: isThorough))
                    }
                    return ZSTD_compressCCtx(
                        context, target.baseAddress, target.count, source.baseAddress, source.count, isThorough ? 6 : 1)
                }
            }
            guard ZSTD_isError(size) == 0 else { throw TraceStoreError(.corrupt, "documents cannot be compressed") }
            return scratch[0..<head.count + size]
        }
    }

    struct Decompressor {
        fileprivate let context: OpaquePointer?

        func decode(
            _ source: UnsafeRawBufferPointer, of traceID: TraceID, dictionary: CompressionDictionary?
        ) throws(TraceStoreError) -> [StoredDocument] {
            guard source.first == DocumentCodec.format else {
                let frame = ByteReader(try decompress(source, dictionary: dictionary))
                return try firstVersion(frame)
            }
            var head = ByteReader(Array(source.prefix(11)).dropFirst())
            let valueCount = try head.varint()
            let start = head.position
            guard valueCount <= UInt64(source.count - start) else { throw ByteReader.corrupt }
            let end = start + Int(valueCount)
            let values = Array(source[start..<end])
            var frame = ByteReader(
                try decompress(UnsafeRawBufferPointer(rebasing: source[end...]), dictionary: dictionary)[...])

            var (documents, lengths) = try frame.heads()
            let size = try frame.varint()
            // A byte of the frame stands for at most 36.
            guard size <= UInt64(frame.bytes.count) * 36 else { throw ByteReader.corrupt }
            var expander = TextExpander(
                values: values[...], traceID: traceID, firstReceipt: documents.first?.receivedAt ?? 0)
            var bytes: [UInt8] = []
            bytes.reserveCapacity(Int(size))
            var ends: [Int] = []
            for length in lengths {
                let text = try frame.take(length >> 1)
                if length & 1 == 1 { bytes.append(contentsOf: text) } else { try expander.expand(text, into: &bytes) }
                ends.append(bytes.count)
            }
            guard bytes.count == size else { throw ByteReader.corrupt }
            var position = 0
            for (index, end) in ends.enumerated() {
                documents[index].bytes = bytes[position..<end]
                position = end
            }
            return documents
        }

        private func firstVersion(_ frame: consuming ByteReader) throws(TraceStoreError) -> [StoredDocument] {
            var (documents, lengths) = try frame.heads()
            for (index, length) in lengths.enumerated() { documents[index].bytes = try frame.take(length) }
            return documents
        }

        func decompress(
            _ source: UnsafeRawBufferPointer, dictionary: CompressionDictionary?
        ) throws(TraceStoreError) -> [UInt8] {
            let size = ZSTD_getFrameContentSize(source.baseAddress, source.count)
            guard size <= 1 << 30 else { throw TraceStoreError(.corrupt, "stored bytes are not a zstd frame") }
            var read = 0
            let bytes = [UInt8](unsafeUninitializedCapacity: Int(size)) { target, count in
                if let dictionary {
                    read = ZSTD_decompress_usingDDict(
                        context, target.baseAddress, Int(size), source.baseAddress, source.count,
                        dictionary.decompression)
                } else {
                    read = ZSTD_decompressDCtx(context, target.baseAddress, Int(size), source.baseAddress, source.count)
                }
                count = ZSTD_isError(read) == 0 ? read : 0
            }
            guard bytes.count == size else { throw TraceStoreError(.corrupt, "stored bytes cannot be decompressed") }
            return bytes
        }
    }
}

/// Reads what `encode` has written; nothing in it is believed.
private struct ByteReader {
    static var corrupt: TraceStoreError { TraceStoreError(.corrupt, "stored documents cannot be decoded") }

    let bytes: ArraySlice<UInt8>
    private(set) var position: Int

    init(_ bytes: ArraySlice<UInt8>) {
        self.bytes = bytes
        position = bytes.startIndex
    }

    init(_ bytes: [UInt8]) { self.init(bytes[...]) }

    mutating func varint() throws(TraceStoreError) -> UInt64 {
        var value: UInt64 = 0
        var shift: UInt64 = 0
        while position < bytes.endIndex, shift < 64 {
            let next = bytes[position]
            position += 1
            value |= UInt64(next & 0x7f) << shift
            if next < 0x80 { return value }
            shift += 7
        }
        throw Self.corrupt
    }

    mutating func zigzag() throws(TraceStoreError) -> Int64 {
        let value = try varint()
        return Int64(bitPattern: value >> 1) ^ -Int64(bitPattern: value & 1)
    }

    mutating func take(_ length: UInt64) throws(TraceStoreError) -> ArraySlice<UInt8> {
        guard length <= UInt64(bytes.endIndex - position) else { throw Self.corrupt }
        defer { position += Int(length) }
        return bytes[position..<position + Int(length)]
    }

    /// The documents without their texts, and what is written of the lengths of those.
    mutating func heads() throws(TraceStoreError) -> ([StoredDocument], lengths: [UInt64]) {
        let count = try varint()
        guard count <= UInt64(bytes.count) else { throw Self.corrupt }
        var documents: [StoredDocument] = []
        var lengths: [UInt64] = []
        documents.reserveCapacity(Int(count))
        lengths.reserveCapacity(Int(count))
        var offset: Int64 = 0
        var receipt: Micros = 0
        for _ in 0..<count {
            let partition = Int(truncatingIfNeeded: try varint())
            offset &+= try zigzag()
            receipt &+= try zigzag()
            lengths.append(try varint())
            documents.append(StoredDocument(receivedAt: receipt, partition: partition, offset: offset, bytes: []))
        }
        return (documents, lengths)
    }
}

extension [UInt8] {
    mutating func appendVarint(_ value: UInt64) {
        var rest = value
        while rest >= 0x80 {
            append(UInt8(truncatingIfNeeded: rest) | 0x80)
            rest >>= 7
        }
        append(UInt8(rest))
    }

    mutating func appendZigzag(_ value: Int64) { appendVarint(UInt64(bitPattern: value << 1 ^ value >> 63)) }
}
