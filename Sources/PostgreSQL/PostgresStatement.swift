// A statement with its parameters in PostgreSQL's binary format, ready to be handed to libpq. Made by the log and the
// store on the caller's thread; the session only passes pointers on.

/// Object ids of the types we bind. Source: PostgreSQL, `src/include/catalog/pg_type.dat`.
public enum PostgresType: UInt32, Sendable {
    case bool = 16, bytea = 17, int8 = 20, int2 = 21, int4 = 23, text = 25, uuid = 2950
    case boolArray = 1000, byteaArray = 1001, int2Array = 1005, int4Array = 1007, textArray = 1009, int8Array = 1016
    case uuidArray = 2951
}

extension [UInt8] {
    @inlinable
    mutating func appendBigEndian(_ value: some FixedWidthInteger) {
        Swift.withUnsafeBytes(of: value.bigEndian) { append(contentsOf: $0) }
    }
}

/// A one-dimensional array parameter, built element by element; one column of an `unnest`.
public struct PostgresArray: Sendable {
    @usableFromInline var bytes: [UInt8] = []
    @usableFromInline var hasNull = false
    public private(set) var type: PostgresType
    let elementType: PostgresType
    public internal(set) var count = 0

    @usableFromInline
    init(type: PostgresType, elementType: PostgresType) {
        self.type = type
        self.elementType = elementType
    }

    public static var int8: PostgresArray { .init(type: .int8Array, elementType: .int8) }
    public static var int4: PostgresArray { .init(type: .int4Array, elementType: .int4) }
    public static var int2: PostgresArray { .init(type: .int2Array, elementType: .int2) }
    public static var bool: PostgresArray { .init(type: .boolArray, elementType: .bool) }
    public static var uuid: PostgresArray { .init(type: .uuidArray, elementType: .uuid) }
    public static var bytea: PostgresArray { .init(type: .byteaArray, elementType: .bytea) }
    public static var text: PostgresArray { .init(type: .textArray, elementType: .text) }

    public mutating func appendNull() {
        hasNull = true
        count += 1
        bytes.appendBigEndian(Int32(-1))
    }

    /// The width of the integer must be that of the array's element.
    public mutating func append(_ value: some FixedWidthInteger) {
        count += 1
        bytes.appendBigEndian(Int32(value.bitWidth / 8))
        bytes.appendBigEndian(value)
    }

    public mutating func append(_ value: Bool) { append(UInt8(value ? 1 : 0)) }

    public mutating func append(optional value: (some FixedWidthInteger)?) {
        if let value { append(value) } else { appendNull() }
    }

    public mutating func append(uuid high: UInt64, _ low: UInt64) {
        count += 1
        bytes.appendBigEndian(Int32(16))
        bytes.appendBigEndian(high)
        bytes.appendBigEndian(low)
    }

    /// At most 1 GB, as everything in PostgreSQL.
    public mutating func append(bytes value: some Collection<UInt8>) {
        count += 1
        bytes.appendBigEndian(Int32(truncatingIfNeeded: value.count))
        bytes.append(contentsOf: value)
    }

    /// U+0000, which PostgreSQL's text cannot hold, becomes U+FFFD.
    public mutating func append(text value: String) { append(bytes: PostgresStatement.storableText(value)) }
}

/// SQL text with bound parameters `$1`, `$2`, … in the order of the `bind` calls.
public struct PostgresStatement: Sendable {
    public let sql: String
    /// Prepared once per connection and cached by its text: for texts that recur. Others are parsed each time.
    public let isPrepared: Bool
    var arena: [UInt8] = []
    /// Length of each parameter in `arena`; -1 = NULL.
    var lengths: [Int32] = []
    var types: [UInt32] = []

    public init(_ sql: String, isPrepared: Bool = true) {
        self.sql = sql
        self.isPrepared = isPrepared
    }

    private mutating func bind(_ type: PostgresType, _ encode: (inout [UInt8]) -> Void) {
        let start = arena.count
        encode(&arena)
        lengths.append(Int32(truncatingIfNeeded: arena.count - start))
        types.append(type.rawValue)
    }

    public mutating func bind(_ value: Int64) { bind(.int8) { $0.appendBigEndian(value) } }
    public mutating func bind(_ value: Int32) { bind(.int4) { $0.appendBigEndian(value) } }
    public mutating func bind(_ value: Bool) { bind(.bool) { $0.append(value ? 1 : 0) } }
    public mutating func bind(uuid high: UInt64, _ low: UInt64) {
        bind(.uuid) {
            $0.appendBigEndian(high)
            $0.appendBigEndian(low)
        }
    }
    public mutating func bind(bytes value: some Collection<UInt8>) { bind(.bytea) { $0.append(contentsOf: value) } }
    /// U+0000, which PostgreSQL's text cannot hold, becomes U+FFFD.
    public mutating func bind(text value: String) { bind(.text) { $0.append(contentsOf: Self.storableText(value)) } }

    public mutating func bind(_ array: PostgresArray) {
        bind(array.type) {
            $0.appendBigEndian(Int32(array.count == 0 ? 0 : 1))
            $0.appendBigEndian(Int32(array.hasNull ? 1 : 0))
            $0.appendBigEndian(array.elementType.rawValue)
            guard array.count > 0 else { return }
            $0.appendBigEndian(Int32(truncatingIfNeeded: array.count))
            $0.appendBigEndian(Int32(1))
            $0.append(contentsOf: array.bytes)
        }
    }

    public mutating func bindNull(_ type: PostgresType) {
        lengths.append(-1)
        types.append(type.rawValue)
    }

    static func storableText(_ text: String) -> [UInt8] {
        guard text.utf8.contains(0) else { return Array(text.utf8) }
        return text.utf8.flatMap { $0 == 0 ? [0xef, 0xbf, 0xbd] : [$0] }
    }

    /// Calls the body with what `PQsendQueryPrepared` wants; the pointers are valid during the call.
    func withParameters<R>(
        _ body: (_ count: Int32, _ values: UnsafePointer<UnsafePointer<CChar>?>?, _ lengths: UnsafePointer<Int32>?,
            _ formats: UnsafePointer<Int32>?, _ types: UnsafePointer<UInt32>?) -> R
    ) -> R {
        // An empty value must not be a NULL pointer: libpq takes that for SQL NULL.
        let storage = arena.isEmpty ? [0] : arena
        return storage.withUnsafeBytes { raw in
            let base = raw.baseAddress?.assumingMemoryBound(to: CChar.self)
            var values: [UnsafePointer<CChar>?] = []
            values.reserveCapacity(lengths.count)
            var start = 0
            for length in lengths {
                values.append(length < 0 ? nil : base.map { $0 + start })
                start += Int(max(length, 0))
            }
            let formats = [Int32](repeating: 1, count: lengths.count)
            return body(Int32(lengths.count), values, lengths, formats, types)
        }
    }
}
