// Text and byte forms of the ids. Input in either case, output in lower case (`segments.md` §2); by hand, because ids
// are read and written several times per document.

import JSONText

extension TraceID {
    /// Reads `1-` + 8 hex + `-` + 24 hex (35 bytes), or the W3C form of 32 hex digits.
    public init?(utf8 text: UnsafeBufferPointer<UInt8>) {
        let dash = UInt8(ascii: "-")
        switch text.count {
        case 35:
            guard text[0] == UInt8(ascii: "1"), text[1] == dash, text[10] == dash,
                let first = Hex.parse(text, 2, count: 8), let second = Hex.parse(text, 11, count: 8),
                let low = Hex.parse(text, 19, count: 16)
            else { return nil }
            self.init(high: first << 32 | second, low: low)
        case 32:
            guard let high = Hex.parse(text, 0, count: 16), let low = Hex.parse(text, 16, count: 16) else { return nil }
            self.init(high: high, low: low)
        default: return nil
        }
    }

    /// As `init(utf8:)`, from a Swift string.
    public init?(parsing text: String) {
        var text = text
        guard let id = text.withUTF8({ TraceID(utf8: $0) }) else { return nil }
        self = id
    }

    /// As `init(utf8:)`, from any bytes.
    public init?(parsing text: some Collection<UInt8>) {
        guard let id = withContiguousBytes(text, { TraceID(utf8: $0) }) else { return nil }
        self = id
    }

    /// The 16 bytes, most significant first: the W3C trace id, and the `uuid` of a database row.
    public var uuidBytes: [UInt8] {
        [UInt8](unsafeUninitializedCapacity: 16) { buffer, count in
            let raw = UnsafeMutableRawBufferPointer(buffer)
            raw.storeBytes(of: high.bigEndian, toByteOffset: 0, as: UInt64.self)
            raw.storeBytes(of: low.bigEndian, toByteOffset: 8, as: UInt64.self)
            count = 16
        }
    }

    /// - Parameter bytes: 16 bytes, most significant first.
    public init?(uuidBytes bytes: some Collection<UInt8>) {
        guard bytes.count == 16 else { return nil }
        var high: UInt64 = 0
        var low: UInt64 = 0
        for (position, byte) in bytes.enumerated() {
            if position < 8 { high = high << 8 | UInt64(byte) } else { low = low << 8 | UInt64(byte) }
        }
        self.init(high: high, low: low)
    }

    /// Writes the dashed form, 35 bytes.
    func write(to buffer: UnsafeMutableBufferPointer<UInt8>) {
        buffer[0] = UInt8(ascii: "1")
        buffer[1] = UInt8(ascii: "-")
        Hex.write(high >> 32, to: buffer, 2, count: 8)
        buffer[10] = UInt8(ascii: "-")
        Hex.write(high & 0xFFFF_FFFF, to: buffer, 11, count: 8)
        Hex.write(low, to: buffer, 19, count: 16)
    }
}

extension TraceID: CustomStringConvertible {
    /// `1-65536f00-0123456789abcdef01234567`.
    public var description: String {
        String(unsafeUninitializedCapacity: 35) { buffer in
            write(to: buffer)
            return 35
        }
    }

    /// The W3C form: 32 hex digits.
    public var bareHex: String {
        String(unsafeUninitializedCapacity: 32) { buffer in
            Hex.write(high, to: buffer, 0, count: 16)
            Hex.write(low, to: buffer, 16, count: 16)
            return 32
        }
    }
}

extension EntityID {
    /// Reads exactly 16 hex digits.
    public init?(utf8 text: UnsafeBufferPointer<UInt8>) {
        guard text.count == 16, let value = Hex.parse(text, 0, count: 16) else { return nil }
        self.init(rawValue: value)
    }

    /// As `init(utf8:)`, from a Swift string.
    public init?(parsing text: String) {
        var text = text
        guard let id = text.withUTF8({ EntityID(utf8: $0) }) else { return nil }
        self = id
    }

    /// As `init(utf8:)`, from any bytes.
    public init?(parsing text: some Collection<UInt8>) {
        guard let id = withContiguousBytes(text, { EntityID(utf8: $0) }) else { return nil }
        self = id
    }
}

extension EntityID: CustomStringConvertible {
    /// 16 hex digits in lower case.
    public var description: String {
        String(unsafeUninitializedCapacity: 16) { buffer in
            Hex.write(rawValue, to: buffer, 0, count: 16)
            return 16
        }
    }
}

extension AccountID: CustomStringConvertible {
    /// Reads exactly 12 decimal digits.
    public init?(_ text: String) {
        var value: UInt64 = 0
        guard text.utf8.count == 12 else { return nil }
        for byte in text.utf8 {
            guard (0x30...0x39).contains(byte) else { return nil }
            value = value * 10 + UInt64(byte - 0x30)
        }
        self.init(rawValue: value)
    }

    /// 12 digits, leading zeros included.
    public var description: String {
        String(unsafeUninitializedCapacity: 12) { buffer in
            var rest = rawValue
            for position in stride(from: 11, through: 0, by: -1) {
                buffer[position] = 0x30 + UInt8(rest % 10)
                rest /= 10
            }
            return 12
        }
    }
}

extension AccountID: Comparable {
    @inlinable
    public static func < (a: AccountID, b: AccountID) -> Bool { a.rawValue < b.rawValue }
}

extension JSONWriter {
    public mutating func string(_ id: TraceID) {
        withUnsafeTemporaryAllocation(of: UInt8.self, capacity: 35) { buffer in
            id.write(to: buffer)
            string(utf8: UnsafeBufferPointer(buffer))
        }
    }

    public mutating func string(_ id: EntityID) {
        withUnsafeTemporaryAllocation(of: UInt8.self, capacity: 16) { buffer in
            Hex.write(id.rawValue, to: buffer, 0, count: 16)
            string(utf8: UnsafeBufferPointer(buffer))
        }
    }
}

private func withContiguousBytes<Result>(
    _ bytes: some Collection<UInt8>, _ body: (UnsafeBufferPointer<UInt8>) -> Result
) -> Result {
    bytes.withContiguousStorageIfAvailable(body) ?? Array(bytes).withUnsafeBufferPointer(body)
}

/// Hexadecimal digits of 64-bit numbers.
enum Hex {
    @inline(__always)
    static func parse(_ text: UnsafeBufferPointer<UInt8>, _ start: Int, count: Int) -> UInt64? {
        var value: UInt64 = 0
        var invalid: UInt8 = 0
        for position in start..<(start + count) {
            let byte = text[position]
            // 0-9 and a-f of either case; anything else leaves the high bit in `invalid`.
            let digit = byte &- 0x30
            let letter = (byte | 0x20) &- 0x61
            let nibble = digit < 10 ? digit : letter < 6 ? letter &+ 10 : 0x80
            invalid |= nibble
            value = value << 4 | UInt64(nibble & 15)
        }
        return invalid & 0x80 == 0 ? value : nil
    }

    @inline(__always)
    static func write(_ value: UInt64, to buffer: UnsafeMutableBufferPointer<UInt8>, _ start: Int, count: Int) {
        var rest = value
        for position in stride(from: start + count - 1, through: start, by: -1) {
            let nibble = UInt8(truncatingIfNeeded: rest & 15)
            buffer[position] = nibble < 10 ? 0x30 &+ nibble : 0x57 &+ nibble
            rest >>= 4
        }
    }
}
