// Bytes written by templates: a growing buffer, and fixed pieces of text kept in one block. The load generator writes
// every document with these, since its own processor time counts against the rate it measures.

import Glibc

/// A growing byte buffer. Not Sendable: one per worker thread.
public final class OutputBuffer {
    public private(set) var base: UnsafeMutablePointer<UInt8>
    public private(set) var count = 0
    private var capacity: Int

    public init(capacity: Int = 256 * 1024) {
        self.capacity = capacity
        base = .allocate(capacity: capacity)
    }

    deinit { base.deallocate() }

    public var bytes: UnsafeRawBufferPointer { UnsafeRawBufferPointer(start: base, count: count) }

    public func removeAll() { count = 0 }

    /// Makes room for `more` bytes; every writer below relies on the caller having done it for a whole document.
    func reserve(_ more: Int) {
        guard count + more > capacity else { return }
        let larger = max(capacity * 2, count + more)
        let moved = UnsafeMutablePointer<UInt8>.allocate(capacity: larger)
        moved.update(from: base, count: count)
        base.deallocate()
        base = moved
        capacity = larger
    }

    @inline(__always)
    func append(_ byte: UInt8) {
        base[count] = byte
        count += 1
    }

    @inline(__always)
    func append(_ piece: Piece, of pieces: Pieces) {
        memcpy(base + count, pieces.base + Int(piece.offset), Int(piece.count))
        count += Int(piece.count)
    }

    func append(_ text: String) {
        var text = text
        text.withUTF8 { utf8 in
            reserve(utf8.count)
            if let start = utf8.baseAddress { memcpy(base + count, start, utf8.count) }
            count += utf8.count
        }
    }

    /// `digits` lower-case hex digits of the low end of `value`.
    @inline(__always)
    func appendHex(_ value: UInt64, digits: Int = 16) {
        var rest = value
        var index = count + digits
        count = index
        for _ in 0..<digits {
            index -= 1
            let digit = UInt8(truncatingIfNeeded: rest & 15)
            base[index] = digit < 10 ? digit + 48 : digit + 87
            rest >>= 4
        }
    }

    @inline(__always)
    func appendDecimal(_ value: Int) {
        guard value >= 10 else { return append(UInt8(truncatingIfNeeded: max(value, 0)) + 48) }
        var digits = 0
        var scale = value
        while scale > 0 {
            digits += 1
            scale /= 10
        }
        appendDecimal(value, digits: digits)
    }

    @inline(__always)
    func appendDecimal(_ value: Int, digits: Int) {
        var rest = UInt64(truncatingIfNeeded: value)
        var index = count + digits
        count = index
        for _ in 0..<digits {
            index -= 1
            base[index] = UInt8(truncatingIfNeeded: rest % 10) + 48
            rest /= 10
        }
    }

    /// Microseconds since 1970 as seconds with six decimals.
    @inline(__always)
    func appendSeconds(micros: Int64) {
        appendDecimal(Int(micros / 1_000_000))
        append(46)
        appendDecimal(Int(micros % 1_000_000), digits: 6)
    }
}

/// A stretch of text inside `Pieces`.
struct Piece {
    var offset: Int32
    var count: Int32
}

/// Fixed texts in one block of memory, written once at start. Immutable afterwards.
final class Pieces {
    /// How the documents travel: as JSON text, or inside a JSON string (each `"` as `\"`).
    let escaped: Bool
    private(set) var base: UnsafeMutablePointer<UInt8>
    private var count = 0
    private var capacity = 4096

    init(escaped: Bool) {
        self.escaped = escaped
        base = .allocate(capacity: capacity)
    }

    deinit { base.deallocate() }

    /// - Parameter text: without backslashes and control characters, so that only quotes need escaping.
    func add(_ text: String) -> Piece {
        let start = count
        for byte in text.utf8 {
            if byte == 34, escaped { push(92) }
            push(byte)
        }
        return Piece(offset: Int32(start), count: Int32(count - start))
    }

    private func push(_ byte: UInt8) {
        if count == capacity {
            let moved = UnsafeMutablePointer<UInt8>.allocate(capacity: capacity * 2)
            moved.update(from: base, count: count)
            base.deallocate()
            base = moved
            capacity *= 2
        }
        base[count] = byte
        count += 1
    }
}
