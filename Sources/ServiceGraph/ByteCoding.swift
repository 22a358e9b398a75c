// Variable-length integers and texts for graph blocks and link facts: LEB128, zigzag for signed values.
// Reading never trusts the bytes: every way of being cut or wrong is an error.

/// Why bytes could not be read as a graph block.
public enum GraphBlockError: Error, Sendable, Equatable {
    /// They end in the middle.
    case truncated
    /// They contradict themselves, or are of an unknown format version.
    case corrupt
    /// A block of a minute was added after that of a later minute, or its span overlaps one that is summed already.
    case outOfOrder
    /// A block without whole seconds (a roll-up) is cut by the window, or is corrected by other blocks.
    case needsWholeSeconds
}

struct ByteWriter {
    var bytes: [UInt8] = []

    @inline(__always)
    mutating func byte(_ value: UInt8) { bytes.append(value) }

    @inline(__always)
    mutating func unsigned(_ value: UInt64) {
        var rest = value
        while rest >= 0x80 {
            bytes.append(UInt8(truncatingIfNeeded: rest) | 0x80)
            rest >>= 7
        }
        bytes.append(UInt8(truncatingIfNeeded: rest))
    }

    @inline(__always)
    mutating func count(_ value: Int) { unsigned(UInt64(value)) }

    @inline(__always)
    mutating func signed(_ value: Int64) { unsigned(UInt64(bitPattern: (value << 1) ^ (value >> 63))) }

    mutating func fixed64(_ value: UInt64) {
        withUnsafeBytes(of: value.littleEndian) { bytes.append(contentsOf: $0) }
    }

    mutating func text(_ value: String) {
        count(value.utf8.count)
        bytes.append(contentsOf: value.utf8)
    }
}

/// Reads what `ByteWriter` wrote. The buffer must outlive the reader.
struct ByteReader {
    private let buffer: UnsafeRawBufferPointer
    private var position = 0

    init(_ buffer: UnsafeRawBufferPointer) { self.buffer = buffer }

    var isAtEnd: Bool { position == buffer.count }
    var remaining: Int { buffer.count &- position }

    @inline(__always)
    mutating func byte() throws(GraphBlockError) -> UInt8 {
        guard position < buffer.count else { throw .truncated }
        defer { position &+= 1 }
        return buffer[position]
    }

    @inline(__always)
    mutating func unsigned() throws(GraphBlockError) -> UInt64 {
        let first = try byte()
        if first < 0x80 { return UInt64(first) }
        // Sums of many observations have two or three bytes: worth not being called for.
        guard remaining >= 2 else { return try unsignedRest(after: first) }
        let second = buffer[position]
        if second < 0x80 {
            position &+= 1
            return UInt64(first & 0x7f) | UInt64(second) << 7
        }
        let third = buffer[position &+ 1]
        guard third < 0x80 else { return try unsignedRest(after: first) }
        position &+= 2
        return UInt64(first & 0x7f) | UInt64(second & 0x7f) << 7 | UInt64(third) << 14
    }

    private mutating func unsignedRest(after first: UInt8) throws(GraphBlockError) -> UInt64 {
        var value = UInt64(first & 0x7f)
        var shift: UInt64 = 7
        while true {
            let next = try byte()
            if shift == 63, next > 1 { throw .corrupt }
            value |= UInt64(next & 0x7f) << shift
            if next < 0x80 { return value }
            shift &+= 7
            if shift > 63 { throw .corrupt }
        }
    }

    @inline(__always)
    mutating func signed() throws(GraphBlockError) -> Int64 {
        let value = try unsigned()
        return Int64(bitPattern: value >> 1) ^ -Int64(bitPattern: value & 1)
    }

    /// A number of things of which each takes at least `bytesEach` bytes: so it cannot ask for more memory than there are bytes.
    mutating func count(bytesEach: Int) throws(GraphBlockError) -> Int {
        let value = try unsigned()
        guard value <= UInt64(remaining / bytesEach) else { throw .truncated }
        return Int(value)
    }

    mutating func index(below limit: Int) throws(GraphBlockError) -> Int {
        let value = try unsigned()
        guard value < UInt64(limit) else { throw .corrupt }
        return Int(value)
    }

    mutating func fixed64() throws(GraphBlockError) -> UInt64 {
        guard remaining >= 8 else { throw .truncated }
        defer { position &+= 8 }
        return UInt64(littleEndian: buffer.loadUnaligned(fromByteOffset: position, as: UInt64.self))
    }

    mutating func text() throws(GraphBlockError) -> String {
        let length = try count(bytesEach: 1)
        let slice = UnsafeRawBufferPointer(rebasing: buffer[position..<(position + length)])
        guard let text = String(validating: slice, as: UTF8.self) else { throw .corrupt }
        position += length
        return text
    }
}
