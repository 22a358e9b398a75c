// Documents of one trace as one compressed value: varint count, per document varint partition, zigzag offset and receipt
// (each minus the one before) and varint length, then the bytes of all documents. Compressed by zstd level 1, with the
// account's dictionary when there is one: alone 1 KB shrinks to a quarter, with the dictionary to a ninth.

import CZstd
import Segments
import Synchronization

/// A trained dictionary, digested once for both directions.
/// Unchecked: zstd's CDict and DDict are read-only after creation and may be shared by threads (zstd.h); freed with this.
final class CompressionDictionary: @unchecked Sendable {
    /// Unique in its account; 0 is "no dictionary".
    let id: Int32
    let bytes: [UInt8]
    fileprivate let compression: OpaquePointer?
    fileprivate let decompression: OpaquePointer?

    init(id: Int32, bytes: [UInt8]) {
        self.id = id
        self.bytes = bytes
        compression = bytes.withUnsafeBytes { ZSTD_createCDict($0.baseAddress, $0.count, 1) }
        decompression = bytes.withUnsafeBytes { ZSTD_createDDict($0.baseAddress, $0.count) }
    }

    deinit {
        ZSTD_freeCDict(compression)
        ZSTD_freeDDict(decompression)
    }

    /// Trains on samples laid one after the other; takes some 100 ms of CPU per MB.
    /// - Returns: nil when zstd finds nothing to learn.
    static func train(samples: [UInt8], sizes: [Int], capacity: Int) -> [UInt8]? {
        var written = 0
        let result = [UInt8](unsafeUninitializedCapacity: capacity) { buffer, count in
            written = samples.withUnsafeBytes {
                ZDICT_trainFromBuffer(buffer.baseAddress, capacity, $0.baseAddress, sizes, UInt32(clamping: sizes.count))
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
            _ documents: [StoredDocument], dictionary: CompressionDictionary?
        ) throws(TraceStoreError) -> ArraySlice<UInt8> {
            plain.removeAll(keepingCapacity: true)
            plain.appendVarint(UInt64(documents.count))
            var offset: Int64 = 0
            var receipt: Micros = 0
            for document in documents {
                plain.appendVarint(UInt64(document.partition))
                plain.appendZigzag(document.offset &- offset)
                plain.appendZigzag(document.receivedAt &- receipt)
                plain.appendVarint(UInt64(document.bytes.count))
                offset = document.offset
                receipt = document.receivedAt
            }
            for document in documents { plain.append(contentsOf: document.bytes) }
            return try compress(plain, dictionary: dictionary)
        }

        mutating func compress(
            _ bytes: [UInt8], dictionary: CompressionDictionary?
        ) throws(TraceStoreError) -> ArraySlice<UInt8> {
            let bound = ZSTD_compressBound(bytes.count)
            if scratch.count < bound { scratch = [UInt8](repeating: 0, count: bound) }
            let size = scratch.withUnsafeMutableBytes { target in
                bytes.withUnsafeBytes { source in
                    if let dictionary {
                        ZSTD_compress_usingCDict(
                            context, target.baseAddress, target.count, source.baseAddress, source.count,
                            dictionary.compression)
                    } else {
                        ZSTD_compressCCtx(
                            context, target.baseAddress, target.count, source.baseAddress, source.count, 1)
                    }
                }
            }
            guard ZSTD_isError(size) == 0 else { throw TraceStoreError(.corrupt, "documents cannot be compressed") }
            return scratch[0..<size]
        }
    }

    struct Decompressor {
        fileprivate let context: OpaquePointer?

        func decode(
            _ source: UnsafeRawBufferPointer, dictionary: CompressionDictionary?
        ) throws(TraceStoreError) -> [StoredDocument] {
            let bytes = try decompress(source, dictionary: dictionary)
            var position = 0
            func corrupt() -> TraceStoreError { TraceStoreError(.corrupt, "stored documents cannot be decoded") }
            func varint() throws(TraceStoreError) -> UInt64 {
                var value: UInt64 = 0
                var shift: UInt64 = 0
                while position < bytes.count, shift < 64 {
                    let next = bytes[position]
                    position += 1
                    value |= UInt64(next & 0x7f) << shift
                    if next < 0x80 { return value }
                    shift += 7
                }
                throw corrupt()
            }
            func zigzag() throws(TraceStoreError) -> Int64 {
                let value = try varint()
                return Int64(bitPattern: value >> 1) ^ -Int64(bitPattern: value & 1)
            }
            let count = try varint()
            guard count <= UInt64(bytes.count) else { throw corrupt() }
            var documents: [StoredDocument] = []
            var lengths: [Int] = []
            var offset: Int64 = 0
            var receipt: Micros = 0
            for _ in 0..<count {
                let partition = Int(truncatingIfNeeded: try varint())
                offset &+= try zigzag()
                receipt &+= try zigzag()
                lengths.append(Int(truncatingIfNeeded: try varint()))
                documents.append(StoredDocument(receivedAt: receipt, partition: partition, offset: offset, bytes: []))
            }
            for (index, length) in lengths.enumerated() {
                guard length >= 0, length <= bytes.count - position else { throw corrupt() }
                documents[index].bytes = bytes[position..<position + length]
                position += length
            }
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
