// The grammar (`filter-expressions.md` §1): tokens to an expression in normal form, by recursive descent with one token
// of look-ahead. What a test may say where it stands is decided by TypeCheck.swift as soon as the test has been read.
// Every level of recursion is paid for by `enter`, so no text can nest deeper than its limit.

import Segments

extension FilterExpression {
    /// Reads a filter expression. Empty or blank text is `.everything`.
    ///
    /// Costs a few microseconds for an ordinary expression; a text over the limits is refused without being read.
    public init(
        parsing text: String, limits: FilterExpressionLimits = .query
    ) throws(FilterExpressionError) {
        var parser = try Parser(text, limits: limits)
        self = try parser.wholeExpression()
    }
}

struct Parser {
    private var lexer: Lexer
    private var token: Token
    private var depth = 0

    init(_ text: String, limits: FilterExpressionLimits) throws(FilterExpressionError) {
        lexer = try Lexer(text, limits: limits)
        token = try lexer.next()
    }

    // MARK: Tokens

    private mutating func advance() throws(FilterExpressionError) { token = try lexer.next() }

    private func isAt(_ mark: Unicode.Scalar) -> Bool { token.kind == .mark(mark) }

    /// The current word in lower case; nil when the current token is none. Words of the language ignore case.
    private var word: String? {
        if case .word(let text) = token.kind { asciiLowercased(text) } else { nil }
    }

    /// Takes a mark that must stand here.
    private mutating func take(_ mark: Unicode.Scalar) throws(FilterExpressionError) {
        guard isAt(mark) else { throw unexpected("\"\(mark)\"") }
        try advance()
    }

    private mutating func enter(at position: Int) throws(FilterExpressionError) {
        depth += 1
        guard depth <= lexer.limits.nesting else {
            throw FilterExpressionError("nested deeper than \(lexer.limits.nesting)", at: position)
        }
    }

    private func unexpected(_ expectation: String) -> FilterExpressionError {
        let found: String
        switch token.kind {
        case .word(let text): found = quoted(text)
        case .string: found = "a string"
        case .json: found = "JSON"
        case .comparison(let comparison): found = "\"\(comparison.rawValue)\""
        case .mark(let mark): found = "\"\(mark)\""
        case .end: found = "the end"
        }
        return FilterExpressionError("expected \(expectation), found \(found)", at: token.position)
    }

    // MARK: Expressions

    mutating func wholeExpression() throws(FilterExpressionError) -> FilterExpression {
        if token.kind == .end { return .everything }
        let result = try orExpression(in: .trace)
        guard token.kind == .end else { throw unexpected("AND, OR or the end") }
        return result
    }

    private mutating func orExpression(in scope: Scope) throws(FilterExpressionError) -> FilterExpression {
        var parts = [try andExpression(in: scope)]
        while word == "or" {
            try advance()
            parts.append(try andExpression(in: scope))
        }
        return .any(parts)
    }

    /// Two expressions side by side mean AND.
    private mutating func andExpression(in scope: Scope) throws(FilterExpressionError) -> FilterExpression {
        var parts = [try unary(in: scope)]
        while true {
            if word == "and" {
                try advance()
            } else if word == "or" || !startsExpression {
                return .all(parts)
            }
            parts.append(try unary(in: scope))
        }
    }

    private var startsExpression: Bool {
        if case .word = token.kind { return true }
        return isAt("(") || isAt("!")
    }

    private mutating func unary(in scope: Scope) throws(FilterExpressionError) -> FilterExpression {
        let outerDepth = depth
        var isNegated = false
        while isAt("!") {
            try enter(at: token.position)
            try advance()
            isNegated.toggle()
        }
        let result = try primary(in: scope)
        depth = outerDepth
        return isNegated ? result.negated : result
    }

    private mutating func primary(in scope: Scope) throws(FilterExpressionError) -> FilterExpression {
        if isAt("(") { return try enclosed(by: "(", ")", in: scope) }
        guard let word else { throw unexpected("a keyword") }
        let position = token.position
        switch word {
        case "and", "or":
            throw unexpected("a keyword")
        case "service", "edge":
            guard scope == .trace else {
                throw FilterExpressionError("\(word)() cannot stand inside braces", at: position)
            }
            return word == "service" ? try serviceSelector() : try edgeSelector()
        case "id":
            throw FilterExpressionError("id() stands only inside service() or edge()", at: position)
        case "group.name", "group.arn":
            guard scope == .trace else {
                throw FilterExpressionError("\(word) cannot stand inside braces", at: position)
            }
            return try group(word)
        case "rootcause.json":
            guard scope == .trace else {
                throw FilterExpressionError("\(word) cannot stand inside braces", at: position)
            }
            return try rootCauseJSON()
        case _ where word.hasPrefix("rootcause."):
            guard scope == .trace else {
                throw FilterExpressionError("\(word) cannot stand inside braces", at: position)
            }
            return try rootCause(word)
        default:
            return .test(try test(in: scope))
        }
    }

    private mutating func enclosed(
        by open: Unicode.Scalar, _ close: Unicode.Scalar, in scope: Scope
    ) throws(FilterExpressionError) -> FilterExpression {
        try enter(at: token.position)
        try take(open)
        let result = try orExpression(in: scope)
        guard isAt(close) else { throw unexpected("AND, OR or \"\(close)\"") }
        try advance()
        depth -= 1
        return result
    }

    // MARK: Selectors

    private mutating func serviceSelector() throws(FilterExpressionError) -> FilterExpression {
        try advance()
        try take("(")
        let selector = isAt(")") ? nil : try node()
        try take(")")
        return .service(selector, body: isAt("{") ? try enclosed(by: "{", "}", in: .service) : nil)
    }

    private mutating func edgeSelector() throws(FilterExpressionError) -> FilterExpression {
        try advance()
        try take("(")
        var selector: EdgeSelector?
        if !isAt(")") {
            let source = try node()
            try take(",")
            selector = EdgeSelector(source: source, destination: try node())
        }
        try take(")")
        return .edge(selector, body: isAt("{") ? try enclosed(by: "{", "}", in: .edge) : nil)
    }

    /// `"name"` or `id(…)`.
    private mutating func node() throws(FilterExpressionError) -> NodeSelector {
        if case .string(let name) = token.kind {
            try advance()
            return NodeSelector(name: name)
        }
        guard word == "id" else { throw unexpected("a quoted name or id()") }
        try advance()
        try take("(")
        var selector = NodeSelector()
        while true {
            let part: WritableKeyPath<NodeSelector, ExactString?>
            switch word {
            case "name": part = \.name
            case "type": part = \.type
            case "account.id": part = \.accountID
            default: throw unexpected("name, type or account.id")
            }
            guard selector[keyPath: part] == nil else {
                throw FilterExpressionError("\(word ?? "") is given twice", at: token.position)
            }
            try advance()
            try take(":")
            guard case .string(let value) = token.kind else { throw unexpected("a quoted string") }
            selector[keyPath: part] = value
            try advance()
            if isAt(")") { break }
            guard isAt(",") else { throw unexpected("\",\" or \")\"") }
            try advance()
        }
        try advance()
        return selector
    }

    /// A whole text that is one selector and nothing else, for `EntitySelector`; nil when it is anything else.
    mutating func loneSelector() throws(FilterExpressionError) -> FilterExpression? {
        let result: FilterExpression
        switch word {
        case "service": result = try serviceSelector()
        case "edge": result = try edgeSelector()
        case "id": result = .service(try node(), body: nil)
        default: return nil
        }
        return token.kind == .end ? result : nil
    }

    // MARK: Root causes and groups

    private mutating func rootCause(_ word: String) throws(FilterExpressionError) -> FilterExpression {
        let parts = word.split(separator: ".", omittingEmptySubsequences: false).map(String.init)
        guard parts.count == 3, let kind = CauseKind(rawValue: parts[1]), let level = CauseLevel(rawValue: parts[2]),
            kind != .responseTime || level != .exception
        else {
            throw FilterExpressionError("unknown root cause \(quoted(word))", at: token.position)
        }
        try advance()
        guard isAt("{") else { throw unexpected("\"{\"") }
        return .rootCause(kind, level, body: try enclosed(by: "{", "}", in: .rootCause(kind, level)))
    }

    private mutating func rootCauseJSON() throws(FilterExpressionError) -> FilterExpression {
        try advance()
        let isNegated = try equality(of: "rootcause.json")
        guard case .json(let elements) = token.kind else { throw unexpected("# and a JSON array") }
        try advance()
        return .rootCauseJSON(elements, isNegated: isNegated)
    }

    private mutating func group(_ word: String) throws(FilterExpressionError) -> FilterExpression {
        try advance()
        let isNegated = try equality(of: word)
        let name: ExactString
        switch token.kind {
        case .string(let text): name = text
        case .word(let text) where !isReserved(text): name = ExactString(text)
        default: throw unexpected("a quoted string")
        }
        try advance()
        return .group(word == "group.name" ? .name(name) : .arn(name), isNegated: isNegated)
    }

    /// Takes `=` or `!=`; true for the latter.
    private mutating func equality(of word: String) throws(FilterExpressionError) -> Bool {
        guard case .comparison(let comparison) = token.kind, [.equal, .notEqual].contains(comparison) else {
            throw unexpected("= or != after \(word)")
        }
        try advance()
        return comparison == .notEqual
    }

    // MARK: Tests

    private mutating func test(in scope: Scope) throws(FilterExpressionError) -> FilterTest {
        let position = token.position
        let keyword = try readKeyword()
        try check(keyword, in: scope, at: position)
        let operatorPosition = token.position
        guard let comparison = takeOperator() else { return FilterTest(keyword) }
        try check(comparison, fits: keyword, at: operatorPosition)
        try advance()
        let value: TestValue
        switch token.kind {
        case .string(let text): value = .quoted(text)
        case .word(let text) where !isReserved(text): value = .bare(text)
        default: throw unexpected("a value")
        }
        let literal = try typedLiteral(value, of: keyword, comparedBy: comparison, at: token.position)
        try advance()
        return FilterTest(keyword, .compares(comparison, literal))
    }

    /// The operator that stands here; it is not taken yet.
    private func takeOperator() -> FilterOperator? {
        if case .comparison(let comparison) = token.kind { return comparison }
        switch word {
        case "contains": return .contains
        case "beginswith": return .beginsWith
        case "endswith": return .endsWith
        default: return nil
        }
    }

    private func isReserved(_ text: String) -> Bool { ["and", "or"].contains(asciiLowercased(text)) }

    /// Takes a simple keyword or an annotation with its key.
    private mutating func readKeyword() throws(FilterExpressionError) -> FilterKeyword {
        guard case .word(let text) = token.kind else { throw unexpected("a keyword") }
        let position = token.position
        let lowercased = asciiLowercased(text)
        try advance()
        if let keyword = FilterKeyword(spelling: lowercased) { return keyword }
        for (prefix, place) in annotationPrefixes {
            if lowercased == prefix {
                guard isAt("[") else { throw unexpected("\".\" or \"[\" and a key after \(prefix)") }
                let key = try lexer.bracketedKey()
                try advance()
                return .annotation(place, key: key)
            }
            if lowercased.hasPrefix(prefix + ".") {
                // Keys keep their case.
                let key = String(text.unicodeScalars.dropFirst(prefix.unicodeScalars.count + 1))
                guard isPlainKey(key) else {
                    throw FilterExpressionError(
                        "annotation key \(quoted(key)) must stand in brackets and quotes",
                        at: position + prefix.unicodeScalars.count + 1)
                }
                return .annotation(place, key: ExactString(key))
            }
        }
        throw FilterExpressionError("unknown keyword \(quoted(text))", at: position)
    }
}

private let annotationPrefixes: [(String, AnnotationPlace)] = [
    ("annotation", .here), ("source.annotation", .source), ("destination.annotation", .destination),
]

/// Letters, digits and `_`: a key that can stand behind `annotation.`.
func isPlainKey(_ key: String) -> Bool {
    !key.isEmpty
        && key.unicodeScalars.allSatisfy { scalar in
            switch scalar.properties.generalCategory {
            case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter, .decimalNumber:
                true
            default: scalar == "_"
            }
        }
}

/// Words of the language are ASCII: other capitals stay, so that positions do too.
func asciiLowercased(_ text: String) -> String {
    var text = text
    guard text.utf8.contains(where: { (0x41...0x5A).contains($0) }) else { return text }
    text.makeContiguousUTF8()
    return String(decoding: text.utf8.map { (0x41...0x5A).contains($0) ? $0 | 0x20 : $0 }, as: UTF8.self)
}

/// What the user wrote, for a message: not more of it than can be read.
func quoted(_ text: String) -> String {
    let scalars = text.unicodeScalars
    return scalars.count > 50 ? "\"\(String(scalars.prefix(50)))…\"" : "\"\(text)\""
}
