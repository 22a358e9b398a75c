// Writes the JSON of responses and of documents made by the server. Output rules: `api.md` §1.2.
// Commas are automatic; that keys and ends come in the right places is the caller's part.

import CSimdJSON

/// Appends JSON text to `bytes`.
public struct JSONWriter {
    public var bytes: [UInt8]
    @usableFromInline var needsComma = false

    @inlinable
    public init(reservingCapacity capacity: Int = 512) {
        bytes = []
        bytes.reserveCapacity(capacity)
    }

    /// The text so far.
    public var text: String { String(decoding: bytes, as: UTF8.self) }

    @inlinable
    mutating func separate() {
        if needsComma { bytes.append(UInt8(ascii: ",")) }
        needsComma = true
    }

    @inlinable
    public mutating func beginObject() {
        separate()
        bytes.append(UInt8(ascii: "{"))
        needsComma = false
    }

    @inlinable
    public mutating func endObject() {
        bytes.append(UInt8(ascii: "}"))
        needsComma = true
    }

    @inlinable
    public mutating func beginArray() {
        separate()
        bytes.append(UInt8(ascii: "["))
        needsComma = false
    }

    @inlinable
    public mutating func endArray() {
        bytes.append(UInt8(ascii: "]"))
        needsComma = true
    }

    /// A key that needs no escapes.
    @inlinable
    public mutating func key(_ name: StaticString) {
        separate()
        bytes.append(UInt8(ascii: "\""))
        bytes.append(contentsOf: UnsafeBufferPointer(start: name.utf8Start, count: name.utf8CodeUnitCount))
        bytes.append(UInt8(ascii: "\""))
        bytes.append(UInt8(ascii: ":"))
        needsComma = false
    }

    @inlinable
    public mutating func key(string name: String) {
        string(name)
        bytes.append(UInt8(ascii: ":"))
        needsComma = false
    }

    @inlinable
    public mutating func string(_ value: String) {
        var value = value
        value.withUTF8 { string(utf8: $0) }
    }

    /// UTF-8 of a string, unescaped.
    @inlinable
    public mutating func string(utf8 value: [UInt8]) {
        value.withUnsafeBufferPointer { string(utf8: $0) }
    }

    /// UTF-8 of a string, unescaped.
    public mutating func string(utf8 value: UnsafeBufferPointer<UInt8>) {
        separate()
        bytes.append(UInt8(ascii: "\""))
        // A piece at a time through the stack: documents travel as strings, and every third byte of one is a quote.
        withUnsafeTemporaryAllocation(of: UInt8.self, capacity: 6 * 256) { escaped in
            var piece = 0
            while piece < value.count {
                let end = min(piece + 256, value.count)
                var count = 0
                for position in piece..<end {
                    let byte = value[position]
                    if byte >= 0x20 && byte != 0x22 && byte != 0x5C {
                        escaped[count] = byte
                        count &+= 1
                    } else {
                        count &+= writeEscape(of: byte, to: escaped, at: count)
                    }
                }
                bytes.append(contentsOf: escaped[..<count])
                piece = end
            }
        }
        bytes.append(UInt8(ascii: "\""))
    }

    /// Writes at most 6 bytes and returns how many.
    private func writeEscape(of byte: UInt8, to buffer: UnsafeMutableBufferPointer<UInt8>, at position: Int) -> Int {
        buffer[position] = 0x5C
        let letter: UInt8
        switch byte {
        case 0x22, 0x5C: letter = byte
        case 0x08: letter = UInt8(ascii: "b")
        case 0x09: letter = UInt8(ascii: "t")
        case 0x0A: letter = UInt8(ascii: "n")
        case 0x0C: letter = UInt8(ascii: "f")
        case 0x0D: letter = UInt8(ascii: "r")
        default:
            buffer[position + 1] = UInt8(ascii: "u")
            buffer[position + 2] = 0x30
            buffer[position + 3] = 0x30
            buffer[position + 4] = hexDigit(byte >> 4)
            buffer[position + 5] = hexDigit(byte & 15)
            return 6
        }
        buffer[position + 1] = letter
        return 2
    }

    private func hexDigit(_ value: UInt8) -> UInt8 { value < 10 ? 0x30 + value : 0x57 + value }

    @inlinable
    public mutating func int(_ value: some BinaryInteger) {
        separate()
        if value < 0 { bytes.append(UInt8(ascii: "-")) }
        bytes.appendDecimal(UInt64(value.magnitude))
    }

    @inlinable
    public mutating func bool(_ value: Bool) {
        separate()
        bytes.append(contentsOf: value ? "true".utf8 : "false".utf8)
    }

    /// The shortest decimal that reads back as the same double, without exponent for 1e-6 ≤ |x| < 1e15 (and for 0).
    /// - Parameter value: finite; anything else is an error of ours and comes out as 0.
    public mutating func double(_ value: Double) {
        separate()
        assert(value.isFinite, "JSON has no number for \(value)")
        bytes.appendShortestDecimal(value.isFinite ? value : 0)
    }

    /// A time or duration in seconds: at most 3 decimals, rounded half up, no zeros at the end, never an exponent.
    /// - Parameter micros: microseconds.
    public mutating func seconds(micros: Int64) {
        separate()
        var millis = micros / 1000
        let rest = micros % 1000
        if rest >= 500 { millis += 1 } else if rest < -500 { millis -= 1 }
        if millis < 0 { bytes.append(UInt8(ascii: "-")) }
        bytes.appendDecimal(millis.magnitude / 1000)
        var fraction = millis.magnitude % 1000
        guard fraction > 0 else { return }
        bytes.append(UInt8(ascii: "."))
        var unit: UInt64 = 100
        while fraction > 0 {
            bytes.append(0x30 + UInt8(truncatingIfNeeded: fraction / unit))
            fraction %= unit
            unit /= 10
        }
    }

    /// A value that is JSON already.
    @inlinable
    public mutating func raw(_ json: some Collection<UInt8>) {
        separate()
        bytes.append(contentsOf: json)
    }
}

extension [UInt8] {
    @inlinable
    package mutating func appendDecimal(_ value: UInt64) {
        var value = value
        withUnsafeTemporaryAllocation(of: UInt8.self, capacity: 20) { digits in
            var start = 20
            repeat {
                start &-= 1
                digits[start] = 0x30 &+ UInt8(truncatingIfNeeded: value % 10)
                value /= 10
            } while value > 0
            append(contentsOf: digits[start...])
        }
    }

    /// Swift's `description` gives the shortest digits that round-trip; only their layout differs from ours.
    fileprivate mutating func appendShortestDecimal(_ value: Double) {
        guard value != 0 else { return append(UInt8(ascii: "0")) }
        var digits: [UInt8] = []
        // The value is 0.DIGITS × 10^point.
        var point = 0
        var sawPoint = false
        var exponent = 0
        var text = value.magnitude.description
        text.withUTF8 { text in
            for (position, byte) in text.enumerated() {
                if byte == UInt8(ascii: "e") {
                    exponent = Int(String(decoding: text[(position + 1)...], as: UTF8.self)) ?? 0
                    break
                }
                if byte == UInt8(ascii: ".") {
                    sawPoint = true
                    continue
                }
                if digits.isEmpty && byte == 0x30 {
                    if sawPoint { point -= 1 }
                    continue
                }
                digits.append(byte)
                if !sawPoint { point += 1 }
            }
        }
        point += exponent
        while digits.last == 0x30 { digits.removeLast() }
        if value < 0 { append(UInt8(ascii: "-")) }

        guard value.magnitude >= 1e-6 && value.magnitude < 1e15 else {
            append(digits[0])
            if digits.count > 1 {
                append(UInt8(ascii: "."))
                append(contentsOf: digits[1...])
            }
            append(UInt8(ascii: "e"))
            return append(contentsOf: String(point - 1).utf8)
        }
        if point <= 0 {
            append(contentsOf: "0.".utf8)
            append(contentsOf: repeatElement(0x30, count: -point))
            append(contentsOf: digits)
        } else if digits.count <= point {
            append(contentsOf: digits)
            append(contentsOf: repeatElement(0x30, count: point - digits.count))
        } else {
            append(contentsOf: digits[..<point])
            append(UInt8(ascii: "."))
            append(contentsOf: digits[point...])
        }
    }
}
