// Typed access to the members of a request body with the wire rules of `api.md` §1.1 and §1.2: empty body = `{}`, null =
// absent, last duplicate wins, unknown members ignored, wrong types → SerializationException. Used by the request types
// of this module only.

import JSONText
import Segments

/// The members of one JSON object of a request; a view that lives as long as the parser's current text.
struct RequestMembers {
    private let object: JSONValue

    /// Parses a request body and hands its members to `read`.
    static func decode<Request>(
        _ body: UnsafeRawBufferPointer, parser: JSONParser, _ read: (RequestMembers) throws(APIError) -> Request
    ) throws(APIError) -> Request {
        let value: JSONValue
        do {
            value = body.isEmpty ? try parser.parse(Array("{}".utf8)) : try parser.parse(body)
        } catch {
            throw .serialization("The request body is not valid JSON")
        }
        return try read(RequestMembers(value, of: "The request body"))
    }

    static func decode<Request>(
        _ body: [UInt8], _ read: (RequestMembers) throws(APIError) -> Request
    ) throws(APIError) -> Request {
        let parser = JSONParser()
        var outcome: Result<Request, APIError>?
        body.withUnsafeBytes { bytes in
            do throws(APIError) {
                outcome = .success(try decode(bytes, parser: parser, read))
            } catch {
                outcome = .failure(error)
            }
        }
        guard let outcome else { throw .internalFailure() }
        return try outcome.get()
    }

    init(_ value: JSONValue, of name: String) throws(APIError) {
        guard value.kind == .object else { throw .serialization("\(name) must be a JSON object") }
        object = value
    }

    /// The member, unless absent or null.
    func value(_ name: StaticString) -> JSONValue? {
        guard let value = object.member(name), !value.isNull else { return nil }
        return value
    }

    func string(_ name: StaticString) throws(APIError) -> String? {
        guard let value = value(name) else { return nil }
        guard let string = value.string else { throw Self.wrongType(name, "a string") }
        return string.string
    }

    /// A string of `length` Unicode code points.
    func string(_ name: StaticString, length: ClosedRange<Int>) throws(APIError) -> String? {
        guard let string = try string(name) else { return nil }
        guard length.contains(string.unicodeScalars.count) else {
            throw .invalidRequest("\(name) must have between \(length.lowerBound) and \(length.upperBound) characters")
        }
        return string
    }

    func bool(_ name: StaticString) throws(APIError) -> Bool? {
        guard let value = value(name) else { return nil }
        guard let bool = value.bool else { throw Self.wrongType(name, "true or false") }
        return bool
    }

    func double(_ name: StaticString) throws(APIError) -> Double? {
        guard let value = value(name) else { return nil }
        guard let double = value.double else {
            // A legal number that no double can hold is out of every range, not of the wrong type.
            guard value.kind == .hugeNumber else { throw Self.wrongType(name, "a number") }
            return .infinity
        }
        return double
    }

    /// `10` and `10.0` are integers, `10.5` is not.
    func integer(_ name: StaticString) throws(APIError) -> Int64? {
        guard let value = value(name) else { return nil }
        guard let integer = value.wholeNumber else { throw Self.wrongType(name, "an integer") }
        return integer
    }

    /// A timestamp in any of the forms of `api.md` §1.2, in range.
    func timestamp(_ name: StaticString) throws(APIError) -> Micros? {
        guard let value = value(name) else { return nil }
        let micros: Micros?
        if let text = value.string {
            guard let read = TimestampText.micros(of: text.utf8) else {
                throw .invalidRequest("\(name) is not a valid timestamp")
            }
            micros = read
        } else if let seconds = value.double {
            micros = Segments.micros(fromSeconds: seconds)
        } else if value.kind == .hugeNumber {
            micros = nil
        } else {
            throw Self.wrongType(name, "a timestamp")
        }
        guard let micros, micros >= 0, micros <= TimestampText.validSeconds.upperBound * 1_000_000 else {
            throw .invalidRequest("\(name) is out of range")
        }
        return micros
    }

    func requiredTimestamp(_ name: StaticString) throws(APIError) -> Micros {
        guard let micros = try timestamp(name) else { throw Self.missing(name) }
        return micros
    }

    func object(_ name: StaticString) throws(APIError) -> RequestMembers? {
        guard let value = value(name) else { return nil }
        return try RequestMembers(value, of: "\(name)")
    }

    /// Hands every element of a list to `body`, in order.
    /// - Returns: false when the member is absent or null.
    @discardableResult
    func forEachElement(
        of name: StaticString, _ body: (Int, JSONValue) throws(APIError) -> Void
    ) throws(APIError) -> Bool {
        guard let value = value(name) else { return false }
        guard value.kind == .array else { throw Self.wrongType(name, "a list") }
        var index = 0
        try value.forEachElement { (element) throws(APIError) in
            try body(index, element)
            index += 1
        }
        return true
    }

    /// The strings of a list; of more than `limit` only the first are made, `count` counts all.
    /// - Returns: nil when the member is absent or null.
    func strings(_ name: StaticString, limit: Int) throws(APIError) -> (strings: [String], count: Int)? {
        var strings: [String] = []
        var count = 0
        let isPresent = try forEachElement(of: name) { (_, element) throws(APIError) in
            guard let string = element.string else { throw Self.wrongType(name, "a list of strings") }
            count += 1
            if count <= limit { strings.append(string.string) }
        }
        return isPresent ? (strings, count) : nil
    }

    static func missing(_ name: StaticString) -> APIError { .invalidRequest("\(name) is required") }

    static func wrongType(_ name: StaticString, _ expected: String) -> APIError {
        .serialization("\(name) must be \(expected)")
    }
}
