// Which keywords have a meaning where, and which operators and values fit them (`filter-expressions.md` §2, §3).
// The parser asks while it reads, so that a message points at the keyword, the operator or the value that is wrong.

import Segments

/// Where a test stands.
enum Scope: Equatable {
    case trace
    /// Inside the braces of `service()` and `edge()`.
    case service, edge
    /// Inside the braces of `rootcause.<kind>.<level>`.
    case rootCause(CauseKind, CauseLevel)
}

enum KeywordType {
    case bool, number, string
    /// The literal decides.
    case annotation
}

extension FilterKeyword {
    /// Every keyword but the annotations, as it is written.
    static let simple: [(spelling: String, keyword: FilterKeyword)] = [
        ("ok", .ok), ("error", .error), ("throttle", .throttle), ("fault", .fault), ("partial", .partial),
        ("inferred", .inferred), ("root", .root), ("first", .first), ("last", .last), ("remote", .remote),
        ("responsetime", .responseTime), ("duration", .duration), ("http.status", .httpStatus), ("index", .index),
        ("coverage", .coverage), ("http.url", .httpURL), ("http.method", .httpMethod),
        ("http.useragent", .httpUserAgent), ("http.clientip", .httpClientIP), ("user", .user),
        ("availabilityzone", .availabilityZone), ("instance.id", .instanceID), ("resource.arn", .resourceARN),
        ("account.id", .accountID), ("name", .name), ("type", .type), ("message", .message),
    ]
    private static let bySpelling = Dictionary(uniqueKeysWithValues: simple.map { ($0.spelling, $0.keyword) })
    private static let spellings = Dictionary(uniqueKeysWithValues: simple.map { ($0.keyword, $0.spelling) })

    /// - Parameter spelling: in lower case.
    init?(spelling: String) {
        guard let keyword = FilterKeyword.bySpelling[spelling] else { return nil }
        self = keyword
    }

    /// As it is written; of an annotation without its key.
    var spelling: String {
        switch self {
        case .annotation(.here, _): "annotation"
        case .annotation(.source, _): "source.annotation"
        case .annotation(.destination, _): "destination.annotation"
        default: FilterKeyword.spellings[self] ?? ""
        }
    }

    var valueType: KeywordType {
        switch self {
        case .ok, .error, .throttle, .fault, .partial, .inferred, .root, .first, .last, .remote: .bool
        case .responseTime, .duration, .httpStatus, .index, .coverage: .number
        case .httpURL, .httpMethod, .httpUserAgent, .httpClientIP, .user, .availabilityZone, .instanceID, .resourceARN,
            .accountID, .name, .type, .message:
            .string
        case .annotation: .annotation
        }
    }

    /// The table of `filter-expressions.md` §2.
    func isKnown(in scope: Scope) -> Bool {
        switch (self, scope) {
        case (.ok, _), (.error, _), (.throttle, _), (.fault, _), (.partial, _), (.responseTime, _), (.duration, _),
            (.httpStatus, _), (.httpURL, _), (.httpMethod, _), (.httpUserAgent, _), (.httpClientIP, _), (.user, _),
            (.availabilityZone, _), (.instanceID, _), (.resourceARN, _), (.annotation(.here, _), _):
            if case .rootCause = scope { false } else { true }
        case (.inferred, .trace), (.inferred, .service), (.inferred, .rootCause(_, .service)): true
        case (.root, .service): true
        case (.first, .rootCause), (.last, .rootCause), (.index, .rootCause): true
        case (.remote, .rootCause(_, .entity)): true
        case (.coverage, .rootCause(.responseTime, .entity)): true
        case (.accountID, .trace), (.accountID, .rootCause(_, .service)): true
        case (.name, .service), (.name, .rootCause): true
        case (.type, .service), (.type, .rootCause(_, .service)): true
        case (.message, .rootCause(_, .exception)): true
        case (.annotation(.source, _), .edge), (.annotation(.destination, _), .edge): true
        default: false
        }
    }
}

func check(_ keyword: FilterKeyword, in scope: Scope, at position: Int) throws(FilterExpressionError) {
    guard !keyword.isKnown(in: scope) else { return }
    let place =
        switch scope {
        case .trace: "outside braces"
        case .service: "inside service() { }"
        case .edge: "inside edge() { }"
        case .rootCause(let kind, let level): "inside rootcause.\(kind.rawValue).\(level.rawValue) { }"
        }
    throw FilterExpressionError("\(keyword.spelling) has no meaning \(place)", at: position)
}

func check(
    _ comparison: FilterOperator, fits keyword: FilterKeyword, at position: Int
) throws(FilterExpressionError) {
    let fits =
        switch keyword.valueType {
        case .bool: !comparison.isOrdering && !comparison.isTextual
        case .number: !comparison.isTextual
        case .string: !comparison.isOrdering
        case .annotation: true
        }
    guard fits else {
        throw FilterExpressionError("\(keyword.spelling) cannot be compared by \(comparison.rawValue)", at: position)
    }
}

/// A value as it was written.
enum TestValue {
    case quoted(ExactString)
    case bare(String)
}

/// The value as the keyword understands it.
func typedLiteral(
    _ value: TestValue, of keyword: FilterKeyword, comparedBy comparison: FilterOperator, at position: Int
) throws(FilterExpressionError) -> FilterLiteral {
    switch (keyword.valueType, value) {
    case (.bool, .quoted(let text)):
        if let flag = boolean(text.value) { return .bool(flag) }
    case (.bool, .bare(let text)):
        if let flag = boolean(text) { return .bool(flag) }
    case (.number, .bare(let text)):
        if isNumber(text) { return .number(try number(text, at: position)) }
    case (.number, .quoted):
        break
    case (.string, .quoted(let text)):
        return .string(text)
    case (.string, .bare(let text)):
        // `user = true` is the user "true"; a number would not be found where there is only text.
        if !isNumber(text) { return .string(ExactString(text)) }
    case (.annotation, _):
        let literal = try annotationLiteral(value, at: position)
        switch literal {
        case .number: if !comparison.isTextual { return literal }
        case .string: if !comparison.isOrdering { return literal }
        case .bool: if !comparison.isOrdering, !comparison.isTextual { return literal }
        }
        throw FilterExpressionError(
            "\(comparison.rawValue) needs a \(comparison.isOrdering ? "number" : "quoted string")", at: position)
    }
    let wanted =
        switch keyword.valueType {
        case .bool: "true or false"
        case .number: "a number without quotes"
        case .string, .annotation: "a quoted string"
        }
    throw FilterExpressionError("\(keyword.spelling) needs \(wanted)", at: position)
}

private func annotationLiteral(_ value: TestValue, at position: Int) throws(FilterExpressionError) -> FilterLiteral {
    switch value {
    case .quoted(let text): return .string(text)
    case .bare(let text):
        if let flag = boolean(text) { return .bool(flag) }
        return isNumber(text) ? .number(try number(text, at: position)) : .string(ExactString(text))
    }
}

private func boolean(_ text: String) -> Bool? {
    switch asciiLowercased(text) {
    case "true": true
    case "false": false
    default: nil
    }
}

/// `[+-] digits [. digits] [e [+-] digits]`.
private func isNumber(_ text: String) -> Bool {
    var rest = text.utf8[...]
    func digits() -> Bool {
        let end = rest.firstIndex { !(0x30...0x39).contains($0) } ?? rest.endIndex
        defer { rest = rest[end...] }
        return end > rest.startIndex
    }
    if rest.first == UInt8(ascii: "+") || rest.first == UInt8(ascii: "-") { rest.removeFirst() }
    guard digits() else { return false }
    if rest.first == UInt8(ascii: ".") {
        rest.removeFirst()
        guard digits() else { return false }
    }
    if rest.first == UInt8(ascii: "e") || rest.first == UInt8(ascii: "E") {
        rest.removeFirst()
        if rest.first == UInt8(ascii: "+") || rest.first == UInt8(ascii: "-") { rest.removeFirst() }
        guard digits() else { return false }
    }
    return rest.isEmpty
}

private func number(_ text: String, at position: Int) throws(FilterExpressionError) -> Double {
    guard let number = Double(text), number.isFinite else {
        throw FilterExpressionError("number out of range", at: position)
    }
    return number
}
