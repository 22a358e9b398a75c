// Bytes of search segments: LEB128 integers, written without checks and read with them.

/// A stored search segment contradicts itself.
public struct SearchSegmentError: Error, Sendable, CustomStringConvertible {
    public init() {}
    public var description: String { "a row of the search index cannot be decoded" }
}

extension [UInt8] {
    @inline(__always)
    mutating func appendVarint(_ value: UInt64) {
        var rest = value
        while rest >= 0x80 {
            append(UInt8(truncatingIfNeeded: rest) | 0x80)
            rest >>= 7
        }
        append(UInt8(truncatingIfNeeded: rest))
    }

    @inline(__always)
    mutating func appendLittleEndian(_ value: some FixedWidthInteger) {
        Swift.withUnsafeBytes(of: value.littleEndian) { append(contentsOf: $0) }
    }
}

/// Reads a part of a segment; the buffer outlives it.
struct SearchReader {
    let buffer: UnsafeRawBufferPointer
    var position = 0

    init(_ buffer: UnsafeRawBufferPointer) { self.buffer = buffer }

    var isAtEnd: Bool { position >= buffer.count }

    @inline(__always)
    mutating func varint() throws(SearchSegmentError) -> UInt64 {
        var value: UInt64 = 0
        var shift: UInt64 = 0
        while position < buffer.count, shift < 64 {
            let byte = buffer[position]
            position &+= 1
            value |= UInt64(byte & 0x7f) << shift
            if byte < 0x80 { return value }
            shift &+= 7
        }
        throw SearchSegmentError()
    }

    mutating func count() throws(SearchSegmentError) -> Int {
        let value = try varint()
        guard value <= UInt64(buffer.count) else { throw SearchSegmentError() }
        return Int(value)
    }

    mutating func bytes(_ count: Int) throws(SearchSegmentError) -> UnsafeRawBufferPointer {
        guard count >= 0, count <= buffer.count - position else { throw SearchSegmentError() }
        defer { position += count }
        return UnsafeRawBufferPointer(rebasing: buffer[position..<position + count])
    }

    mutating func skipVarints(_ count: Int) throws(SearchSegmentError) {
        var left = count
        while left > 0 {
            guard position < buffer.count else { throw SearchSegmentError() }
            if buffer[position] < 0x80 { left &-= 1 }
            position &+= 1
        }
    }

    mutating func integer<T: FixedWidthInteger>(_ type: T.Type) throws(SearchSegmentError) -> T {
        let size = MemoryLayout<T>.size
        guard size <= buffer.count - position else { throw SearchSegmentError() }
        defer { position += size }
        return T(littleEndian: buffer.loadUnaligned(fromByteOffset: position, as: T.self))
    }
}

/// Sorts numbers below 2^`bits`, eleven bits at a time; much faster than comparing.
func radixSort(_ values: inout [UInt64], bits: Int) {
    guard values.count > 64 else { return values.sort() }
    var other = [UInt64](repeating: 0, count: values.count)
    var starts = [Int](repeating: 0, count: 2048)
    var shift: UInt64 = 0
    while shift < UInt64(bits) {
        values.withUnsafeBufferPointer { source in
            other.withUnsafeMutableBufferPointer { target in
                starts.withUnsafeMutableBufferPointer { starts in
                    for index in 0..<2048 { starts[index] = 0 }
                    for value in source { starts[Int(value >> shift & 2047)] &+= 1 }
                    var sum = 0
                    for index in 0..<2048 { (starts[index], sum) = (sum, sum &+ starts[index]) }
                    for value in source {
                        let bucket = Int(value >> shift & 2047)
                        target[starts[bucket]] = value
                        starts[bucket] &+= 1
                    }
                }
            }
        }
        swap(&values, &other)
        shift += 11
    }
}

extension Array<UInt8> {
    /// `withUnsafeBytes` with the error's type kept.
    func withBuffer<R>(
        _ body: (UnsafeRawBufferPointer) throws(SearchSegmentError) -> R
    ) throws(SearchSegmentError) -> R {
        try withUnsafeBytes { buffer in
            Result { () throws(SearchSegmentError) in try body(buffer) }
        }.get()
    }
}
