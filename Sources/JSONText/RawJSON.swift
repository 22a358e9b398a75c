// Slices of a JSON text as it was sent: for giving back numbers, metadata and whole documents exactly. The text has
// been through `JSONParser`, so nothing is validated again; a text that has not gives wrong slices, never a crash.

/// One value of a JSON text, as the bytes that spell it.
public struct RawJSON: Sendable {
    let text: [UInt8]
    let range: Range<Int>

    /// The root value of a text.
    public init(_ text: [UInt8]) {
        self.text = text
        let start = RawJSON.skipSpace(in: text, from: 0)
        range = start..<RawJSON.endOfValue(in: text, from: start)
    }

    private init(text: [UInt8], range: Range<Int>) {
        self.text = text
        self.range = range
    }

    /// The bytes of the value, without white space around it.
    public var bytes: ArraySlice<UInt8> { text[range] }

    private var first: UInt8 { range.isEmpty ? 0 : text[range.lowerBound] }
    public var isObject: Bool { first == UInt8(ascii: "{") }
    public var isArray: Bool { first == UInt8(ascii: "[") }
    public var isString: Bool { first == UInt8(ascii: "\"") }
    public var isNull: Bool { first == UInt8(ascii: "n") }
    public var isTrue: Bool { first == UInt8(ascii: "t") }
    public var isFalse: Bool { first == UInt8(ascii: "f") }
    public var isNumber: Bool { first == UInt8(ascii: "-") || (0x30...0x39).contains(first) }

    /// The unescaped text of a string; nil for anything else.
    public var string: String? {
        guard isString, range.count >= 2 else { return nil }
        let inner = text[(range.lowerBound + 1)..<(range.upperBound - 1)]
        guard inner.contains(0x5C) else { return String(decoding: inner, as: UTF8.self) }
        let parser = JSONParser()
        return withExtendedLifetime(parser) { (try? parser.parse(Array(bytes)))?.string?.string }
    }

    /// True when this is a string with exactly this text.
    public func equals(_ other: StaticString) -> Bool {
        guard isString, range.count >= 2 else { return false }
        let other = UnsafeBufferPointer(start: other.utf8Start, count: other.utf8CodeUnitCount)
        let inner = text[(range.lowerBound + 1)..<(range.upperBound - 1)]
        if inner.contains(0x5C) { return (string ?? "").utf8.elementsEqual(other) }
        return inner.elementsEqual(other)
    }

    /// Calls `body` for every member in the order of the text, duplicates included; keys are strings with their quotes.
    public func forEachMember<Failure: Error>(
        _ body: (_ key: RawJSON, _ value: RawJSON) throws(Failure) -> Void
    ) throws(Failure) {
        guard isObject else { return }
        var position = RawJSON.skipSpace(in: text, from: range.lowerBound + 1)
        while position < range.upperBound, text[position] == UInt8(ascii: "\"") {
            let key = position..<RawJSON.endOfValue(in: text, from: position)
            position = RawJSON.skipSpace(in: text, from: key.upperBound)
            guard position < range.upperBound, text[position] == UInt8(ascii: ":") else { return }
            position = RawJSON.skipSpace(in: text, from: position + 1)
            let value = position..<RawJSON.endOfValue(in: text, from: position)
            try body(RawJSON(text: text, range: key), RawJSON(text: text, range: value))
            position = RawJSON.skipSpace(in: text, from: value.upperBound)
            guard position < range.upperBound, text[position] == UInt8(ascii: ",") else { return }
            position = RawJSON.skipSpace(in: text, from: position + 1)
        }
    }

    public func forEachElement<Failure: Error>(_ body: (RawJSON) throws(Failure) -> Void) throws(Failure) {
        guard isArray else { return }
        var position = RawJSON.skipSpace(in: text, from: range.lowerBound + 1)
        while position < range.upperBound, text[position] != UInt8(ascii: "]") {
            let value = position..<RawJSON.endOfValue(in: text, from: position)
            try body(RawJSON(text: text, range: value))
            position = RawJSON.skipSpace(in: text, from: value.upperBound)
            guard position < range.upperBound, text[position] == UInt8(ascii: ",") else { return }
            position = RawJSON.skipSpace(in: text, from: position + 1)
        }
    }

    /// The last member with this key; nil when there is none, or when this is no object.
    public func member(_ key: StaticString) -> RawJSON? {
        var found: RawJSON?
        forEachMember { name, value in
            if name.equals(key) { found = value }
        }
        return found
    }

    private static func skipSpace(in text: [UInt8], from start: Int) -> Int {
        var position = start
        while position < text.count, isSpace(text[position]) { position += 1 }
        return position
    }

    private static func isSpace(_ byte: UInt8) -> Bool { byte == 0x20 || byte == 0x0A || byte == 0x0D || byte == 0x09 }

    /// Always past `start` unless the text ends there, so that walking ends.
    private static func endOfValue(in text: [UInt8], from start: Int) -> Int {
        text.withUnsafeBufferPointer { text in
            var position = start
            var depth = 0
            while position < text.count {
                switch text[position] {
                case UInt8(ascii: "\""):
                    position += 1
                    while position < text.count, text[position] != UInt8(ascii: "\"") {
                        position += text[position] == 0x5C ? 2 : 1
                    }
                    position += 1
                    if depth == 0 { return min(position, text.count) }
                case UInt8(ascii: "{"), UInt8(ascii: "["):
                    depth += 1
                    position += 1
                case UInt8(ascii: "}"), UInt8(ascii: "]"):
                    depth -= 1
                    if depth < 0 { return max(position, min(start + 1, text.count)) }
                    position += 1
                    if depth == 0 { return position }
                case UInt8(ascii: ","), UInt8(ascii: ":"), 0x20, 0x0A, 0x0D, 0x09:
                    if depth == 0 { return max(position, min(start + 1, text.count)) }
                    position += 1
                default:
                    position += 1
                }
            }
            return min(position, text.count)
        }
    }
}
