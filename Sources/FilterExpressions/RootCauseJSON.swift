// `rootcause.json = #[…]` (`filter-expressions.md` §7): a piece of JSON laid over the root causes as the API sends them.
// In: the pattern of an expression and the causes of a summary. Out: whether it fits.

import JSONText
import Segments
import TraceAssembly

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
        let parser = JSONParser()
        // The parsed value lives in the parser.
        return withExtendedLifetime(parser) {
            guard let root = try? parser.parse(bytes), root.isArray, case .array(let elements)? = FilterJSON(root)
            else { return nil }
            return elements
        }
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

// MARK: - The causes as JSON

extension FilterJSON {
    /// As `GetTraceSummaries` sends it (`traces.md` §5).
    init(_ cause: RootCause) {
        self = .object([
            "ClientImpacting": .bool(cause.isClientImpacting), "Services": .array(cause.services.map(Self.init)),
        ])
    }

    private init(_ service: RootCauseService) {
        let id = service.service
        var members: [ExactString: FilterJSON] = [
            "Name": .string(id.name), "Names": .array([.string(id.name)]), "Type": .string(id.type ?? ""),
            "Inferred": .bool(service.isInferred), "EntityPath": .array(service.path.map(Self.init)),
        ]
        if let account = id.account { members["AccountId"] = .string(account) }
        self = .object(members)
    }

    private init(_ entity: RootCauseEntity) {
        var members: [ExactString: FilterJSON] = [
            "Name": .string(ExactString(entity.name)), "Remote": .bool(entity.isRemote),
        ]
        if let coverage = entity.coverage {
            members["Coverage"] = .number(coverage)
        } else {
            members["Exceptions"] = .array(entity.exceptions.map(Self.init))
        }
        self = .object(members)
    }

    private init(_ exception: RootCauseException) {
        var members: [ExactString: FilterJSON] = [:]
        if let name = exception.name { members["Name"] = .string(ExactString(name)) }
        if let message = exception.message { members["Message"] = .string(ExactString(message)) }
        self = .object(members)
    }
}

// MARK: - Fitting

extension FilterJSON {
    /// Whether the pattern fits a value: every key it gives is there and fits; its elements fit some elements of the
    /// array in the same order; anything else is equal.
    ///
    /// Taking the first element that fits is enough for an ordered subsequence, so each part of the pattern meets each
    /// part of the value at most once.
    func fits(_ value: FilterJSON) -> Bool {
        switch (self, value) {
        case (.object(let members), .object(let actual)):
            return members.allSatisfy { key, pattern in actual[key].map(pattern.fits) ?? false }
        case (.array(let elements), .array(let actual)):
            var rest = actual[...]
            for element in elements {
                guard let position = rest.firstIndex(where: element.fits) else { return false }
                rest = rest[(position + 1)...]
            }
            return true
        default:
            return self == value
        }
    }
}
