// Text compared by Unicode code point. Swift's own `==` is canonical equivalence: it would merge names, annotation
// values and users that X-Ray keeps apart (ruling R-32). UTF-8 byte order is code point order.

/// A string whose equality, hash and order are those of its UTF-8 bytes.
public struct ExactString: Sendable {
    public var value: String

    @inlinable
    public init(_ value: String) { self.value = value }
}

extension ExactString: Hashable {
    @inlinable
    public static func == (a: ExactString, b: ExactString) -> Bool {
        let (a, b) = (a.value.utf8, b.value.utf8)
        guard a.count == b.count else { return false }
        let isEqual = a.withContiguousStorageIfAvailable { x in
            b.withContiguousStorageIfAvailable { y in x.elementsEqual(y) }
        }
        return (isEqual ?? nil) ?? a.elementsEqual(b)
    }

    @inlinable
    public func hash(into hasher: inout Hasher) {
        var text = value
        text.withUTF8 { hasher.combine(bytes: UnsafeRawBufferPointer($0)) }
    }
}

extension ExactString: Comparable {
    @inlinable
    public static func < (a: ExactString, b: ExactString) -> Bool {
        a.value.utf8.lexicographicallyPrecedes(b.value.utf8)
    }
}

extension ExactString: ExpressibleByStringLiteral, CustomStringConvertible {
    @inlinable
    public init(stringLiteral value: String) { self.init(value) }
    public var description: String { value }
}
