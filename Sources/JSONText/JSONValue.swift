// A position on simdjson's tape (`doc/tape.md` of simdjson): no copy, no retain, no call. Valid as long as the parse
// it came from; whoever keeps something makes a `String` or copies bytes.

import CSimdJSON

/// One value of a parsed text.
public struct JSONValue {
    public enum Kind: UInt8, Sendable {
        case null, bool, object, array, string
        /// An integer within `Int64` or `UInt64`.
        case integer
        /// Any other number a double can hold, also an integer beyond 64 bits (then the nearest double).
        case double
        /// A number too large for a double.
        case hugeNumber
    }

    @usableFromInline let tape: UnsafePointer<UInt64>
    @usableFromInline let strings: UnsafePointer<UInt8>
    /// Where the value stands on the tape; never 0. With `at`, a compact way to remember a value of the same text.
    public let index: Int

    @inlinable
    init(tape: UnsafePointer<UInt64>, strings: UnsafePointer<UInt8>, index: Int) {
        self.tape = tape
        self.strings = strings
        self.index = index
    }

    /// Another value of the same text, by its `index`.
    @inlinable
    public func at(_ index: Int) -> JSONValue { JSONValue(tape: tape, strings: strings, index: index) }

    @inlinable var word: UInt64 { tape[index] }
    @inlinable var tag: UInt8 { UInt8(truncatingIfNeeded: word &>> 56) }
    @inlinable var payload: Int { Int(truncatingIfNeeded: word & 0x00FF_FFFF_FFFF_FFFF) }

    @inlinable
    public var kind: Kind {
        switch tag {
        case UInt8(ascii: "{"): .object
        case UInt8(ascii: "["): .array
        case UInt8(ascii: "\""): .string
        case UInt8(ascii: "l"), UInt8(ascii: "u"): .integer
        case UInt8(ascii: "d"): payload == Int(CSIMDJSON_HUGE_NUMBER) ? .hugeNumber : .double
        case UInt8(ascii: "t"), UInt8(ascii: "f"): .bool
        default: .null
        }
    }

    @inlinable public var isNull: Bool { tag == UInt8(ascii: "n") }
    @inlinable public var isObject: Bool { tag == UInt8(ascii: "{") }
    @inlinable public var isArray: Bool { tag == UInt8(ascii: "[") }
    @inlinable public var isString: Bool { tag == UInt8(ascii: "\"") }

    @inlinable
    public var bool: Bool? {
        switch tag {
        case UInt8(ascii: "t"): true
        case UInt8(ascii: "f"): false
        default: nil
        }
    }

    @inlinable
    public var string: JSONString? { isString ? JSONString(tapeEntry: strings + payload) : nil }

    /// Any number a double can hold, rounded to the nearest one; nil for `.hugeNumber`.
    @inlinable
    public var double: Double? {
        switch tag {
        case UInt8(ascii: "d"): payload == Int(CSIMDJSON_HUGE_NUMBER) ? nil : Double(bitPattern: tape[index &+ 1])
        case UInt8(ascii: "l"): Double(Int64(bitPattern: tape[index &+ 1]))
        case UInt8(ascii: "u"): Double(tape[index &+ 1])
        default: nil
        }
    }

    /// A number written as an integer (`10`, not `10.0`) within `Int64`.
    @inlinable
    public var int64: Int64? {
        switch tag {
        case UInt8(ascii: "l"): Int64(bitPattern: tape[index &+ 1])
        default: nil
        }
    }

    /// A number written as an integer (`10`, not `10.0`) within `UInt64`.
    @inlinable
    public var uint64: UInt64? {
        switch tag {
        case UInt8(ascii: "u"): tape[index &+ 1]
        case UInt8(ascii: "l"): UInt64(exactly: Int64(bitPattern: tape[index &+ 1]))
        default: nil
        }
    }

    /// A whole number however it is written (`404`, `404.0`, `4.04e2`); nil with a fraction or beyond `Int64`.
    @inlinable
    public var wholeNumber: Int64? { int64 ?? (tag == UInt8(ascii: "d") ? double.flatMap { Int64(exactly: $0) } : nil) }

    /// Where the value after this one starts.
    @inlinable
    var next: Int {
        switch tag {
        case UInt8(ascii: "{"), UInt8(ascii: "["): payload & 0xFFFF_FFFF
        case UInt8(ascii: "l"), UInt8(ascii: "u"), UInt8(ascii: "d"): index &+ 2
        default: index &+ 1
        }
    }

    /// Members in the order of the text, duplicates included; empty when this is no object.
    @inlinable
    public var members: JSONMembers {
        JSONMembers(base: self, position: isObject ? index &+ 1 : 0, end: isObject ? next &- 1 : 0)
    }

    /// Elements in order; empty when this is no array.
    @inlinable
    public var elements: JSONElements {
        JSONElements(base: self, position: isArray ? index &+ 1 : 0, end: isArray ? next &- 1 : 0)
    }

    /// How many elements or members, duplicates included; of more than 16,777,215 that many. 0 for other kinds.
    @inlinable
    public var count: Int { isArray || isObject ? payload &>> 32 : 0 }

    @inlinable
    public func forEachMember<Failure: Error>(
        _ body: (_ key: JSONString, _ value: JSONValue) throws(Failure) -> Void
    ) throws(Failure) {
        var iterator = members
        while let (key, value) = iterator.next() { try body(key, value) }
    }

    @inlinable
    public func forEachElement<Failure: Error>(_ body: (JSONValue) throws(Failure) -> Void) throws(Failure) {
        var iterator = elements
        while let value = iterator.next() { try body(value) }
    }

    /// The last member with this key; nil when there is none, or when this is no object.
    @inlinable
    public func member(_ key: StaticString) -> JSONValue? {
        var found: JSONValue?
        var iterator = members
        while let (name, value) = iterator.next() {
            if name == key { found = value }
        }
        return found
    }
}

/// The members of an object; single pass.
public struct JSONMembers: Sequence, IteratorProtocol {
    @usableFromInline let base: JSONValue
    @usableFromInline var position: Int
    @usableFromInline let end: Int

    @inlinable
    init(base: JSONValue, position: Int, end: Int) {
        self.base = base
        self.position = position
        self.end = end
    }

    @inlinable
    public mutating func next() -> (key: JSONString, value: JSONValue)? {
        guard position < end else { return nil }
        let key = JSONString(tapeEntry: base.strings + base.at(position).payload)
        let value = base.at(position &+ 1)
        position = value.next
        return (key, value)
    }
}

/// The elements of an array; single pass.
public struct JSONElements: Sequence, IteratorProtocol {
    @usableFromInline let base: JSONValue
    @usableFromInline var position: Int
    @usableFromInline let end: Int

    @inlinable
    init(base: JSONValue, position: Int, end: Int) {
        self.base = base
        self.position = position
        self.end = end
    }

    @inlinable
    public mutating func next() -> JSONValue? {
        guard position < end else { return nil }
        let value = base.at(position)
        position = value.next
        return value
    }
}

/// The unescaped UTF-8 of a string or key, in the parser's buffer. Comparison is by byte, that is by code point.
public struct JSONString {
    @usableFromInline let start: UnsafePointer<UInt8>
    /// Bytes, not characters.
    public let count: Int

    /// simdjson stores 4 bytes of length, the text, and a NUL.
    @inlinable
    init(tapeEntry: UnsafePointer<UInt8>) {
        count = Int(UnsafeRawPointer(tapeEntry).loadUnaligned(as: UInt32.self))
        start = tapeEntry + 4
    }

    @inlinable public var isEmpty: Bool { count == 0 }
    @inlinable public var utf8: UnsafeBufferPointer<UInt8> { UnsafeBufferPointer(start: start, count: count) }
    @inlinable public var rawBytes: UnsafeRawBufferPointer { UnsafeRawBufferPointer(start: start, count: count) }

    /// A copy as a Swift string.
    @inlinable public var string: String { String(decoding: utf8, as: UTF8.self) }

    @inlinable
    public static func == (a: JSONString, b: StaticString) -> Bool {
        // The literal's length, not ours: a constant, so the comparison becomes a few instructions.
        a.count == b.utf8CodeUnitCount && csimdjson_bytes_equal(a.start, b.utf8Start, b.utf8CodeUnitCount)
    }

    @inlinable
    public static func == (a: JSONString, b: JSONString) -> Bool {
        a.count == b.count && csimdjson_bytes_equal(a.start, b.start, a.count)
    }
}
