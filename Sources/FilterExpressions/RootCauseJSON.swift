// `rootcause.json = #[…]` (`filter-expressions.md` §7): a piece of JSON laid over the root causes as the API sends them.
// In: the pattern of an expression and the causes of a summary. Out: whether it fits.

import JSONText
import Segments

/// A JSON value. Numbers compare as doubles, text by code point, and of equal keys the last one counts.
public indirect enum FilterJSON: Hashable, Sendable {
    case null
    case bool(Bool)
    /// Finite.
    case number(Double)
    case string(ExactString)
    case array([FilterJSON])
    case object([ExactString: FilterJSON])
}

extension FilterJSON {
    /// The elements of a JSON array; nil when the bytes are anything else, or hold a number beyond a double.
    static func array(parsing bytes: [UInt8]) -> [FilterJSON]? {
        guard let root = try? JSONParser().parse(bytes), root.isArray, case .array(let elements)? = FilterJSON(root)
        else { return nil }
        return elements
    }

    /// The depth of `value` was limited before it was parsed.
    private init?(_ value: JSONValue) {
        if value.isNull {
            self = .null
        } else if let flag = value.bool {
            self = .bool(flag)
        } else if let text = value.string {
            self = .string(ExactString(text.string))
        } else if let number = value.double {
            guard number.isFinite else { return nil }
            self = .number(number)
        } else if value.isArray {
            var elements: [FilterJSON] = []
            for element in value.elements {
                guard let element = FilterJSON(element) else { return nil }
                elements.append(element)
            }
            self = .array(elements)
        } else if value.isObject {
            var members: [ExactString: FilterJSON] = [:]
            for (key, value) in value.members {
                guard let value = FilterJSON(value) else { return nil }
                members[ExactString(key.string)] = value
            }
            self = .object(members)
        } else {
            return nil
        }
    }
}
