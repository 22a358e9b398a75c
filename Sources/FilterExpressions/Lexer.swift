// Text to tokens, one at a time as the parser asks. A word is not yet a keyword, a number or a value: what it is depends
// on where it stands, and the parser knows. Positions are offsets in Unicode scalars.

import JSONText
import Segments

struct Token {
    enum Kind: Equatable {
        /// Keywords, AND, OR, numbers, booleans and bare values.
        case word(String)
        /// A quoted string, escapes resolved.
        case string(ExactString)
        /// `#` and the JSON array behind it.
        case json([FilterJSON])
        case comparison(FilterOperator)
        /// One of `( ) { } [ ] , : !`.
        case mark(Unicode.Scalar)
        case end
    }
    var kind: Kind
    var position: Int
}

struct Lexer {
    let text: [Unicode.Scalar]
    let limits: FilterExpressionLimits
    private(set) var position = 0

    /// Refuses a text that is too long before looking at it.
    init(_ text: String, limits: FilterExpressionLimits) throws(FilterExpressionError) {
        // A scalar has at most four bytes, so a text far too long is known by its size alone.
        guard text.utf8.count <= limits.characters * 4 else { throw Lexer.tooLong(limits) }
        self.text = Array(text.unicodeScalars)
        self.limits = limits
        guard self.text.count <= limits.characters else { throw Lexer.tooLong(limits) }
    }

    private static func tooLong(_ limits: FilterExpressionLimits) -> FilterExpressionError {
        FilterExpressionError("longer than \(limits.characters) characters", at: limits.characters)
    }

    mutating func next() throws(FilterExpressionError) -> Token {
        skipSpace()
        let start = position
        guard start < text.count else { return Token(kind: .end, position: start) }
        let scalar = text[start]
        switch scalar {
        case "(", ")", "{", "}", "[", "]", ",", ":":
            position += 1
            return Token(kind: .mark(scalar), position: start)
        case "!", "<", ">", "=":
            return Token(kind: comparisonOrBang(), position: start)
        case "\"":
            return Token(kind: .string(try string()), position: start)
        case "#":
            return Token(kind: .json(try json()), position: start)
        default:
            while position < text.count, Lexer.isWordScalar(text[position]) { position += 1 }
            return Token(kind: .word(slice(start..<position)), position: start)
        }
    }

    private mutating func skipSpace() {
        while position < text.count, Lexer.isSpace(text[position]) { position += 1 }
    }

    static func isSpace(_ scalar: Unicode.Scalar) -> Bool {
        scalar.isASCII
            ? scalar == " " || (0x09...0x0D).contains(scalar.value) : scalar.properties.isWhitespace
    }

    private static func isWordScalar(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar {
        case "(", ")", "{", "}", "[", "]", ",", ":", "!", "<", ">", "=", "\"", "#": false
        default: !isSpace(scalar)
        }
    }

    private func slice(_ range: Range<Int>) -> String {
        var result = ""
        result.unicodeScalars.append(contentsOf: text[range])
        return result
    }

    /// The longest match: `!=`, `<=` and `>=` before `!`, `<` and `>`.
    private mutating func comparisonOrBang() -> Token.Kind {
        let first = text[position]
        position += 1
        let isFollowedByEqual = position < text.count && text[position] == "="
        if first == "=" { return .comparison(.equal) }
        if isFollowedByEqual { position += 1 }
        switch (first, isFollowedByEqual) {
        case ("<", false): return .comparison(.less)
        case ("<", true): return .comparison(.lessOrEqual)
        case (">", false): return .comparison(.greater)
        case (">", true): return .comparison(.greaterOrEqual)
        case (_, true): return .comparison(.notEqual)
        case (_, false): return .mark("!")
        }
    }

    // MARK: Strings

    /// From the opening quote to behind the closing one.
    private mutating func string() throws(FilterExpressionError) -> ExactString {
        let start = position
        position += 1
        var result = String.UnicodeScalarView()
        while position < text.count {
            let scalar = text[position]
            position += 1
            if scalar == "\"" { return ExactString(String(result)) }
            result.append(scalar == "\\" ? try escape() : scalar)
        }
        throw FilterExpressionError("string without closing quote", at: start)
    }

    /// What stands for a backslash that was just read and whatever belongs to it.
    private mutating func escape() throws(FilterExpressionError) -> Unicode.Scalar {
        let start = position - 1
        let unknown = FilterExpressionError(
            "unknown escape sequence in a string (write \\\\ for a backslash)", at: start)
        guard position < text.count else { throw unknown }
        let letter = text[position]
        position += 1
        switch letter {
        case "\"", "\\", "/": return letter
        case "b": return "\u{8}"
        case "f": return "\u{C}"
        case "n": return "\n"
        case "r": return "\r"
        case "t": return "\t"
        case "u":
            guard var value = hexDigits() else { throw unknown }
            if (0xD800...0xDBFF).contains(value), position + 1 < text.count, text[position] == "\\",
                text[position + 1] == "u"
            {
                position += 2
                guard let low = hexDigits() else { throw unknown }
                if (0xDC00...0xDFFF).contains(low) { value = 0x10000 + (value - 0xD800) << 10 + (low - 0xDC00) }
            }
            guard let scalar = Unicode.Scalar(value) else {
                throw FilterExpressionError("half a surrogate pair in a string", at: start)
            }
            return scalar
        default: throw unknown
        }
    }

    private mutating func hexDigits() -> UInt32? {
        guard position + 4 <= text.count else { return nil }
        var value: UInt32 = 0
        for scalar in text[position..<position + 4] {
            guard scalar.isASCII, let digit = Character(scalar).hexDigitValue else { return nil }
            value = value << 4 | UInt32(digit)
        }
        position += 4
        return value
    }

    // MARK: Annotation keys in brackets

    /// The key behind `annotation[`, which was just read, and its closing bracket: quoted, or as it stands.
    mutating func bracketedKey() throws(FilterExpressionError) -> ExactString {
        skipSpace()
        let start = position
        let key: ExactString
        if position < text.count, text[position] == "\"" {
            key = try string()
        } else {
            while position < text.count, text[position] != "]", text[position] != "\"", !Lexer.isSpace(text[position]) {
                position += 1
            }
            guard position > start else { throw FilterExpressionError("expected an annotation key", at: start) }
            key = ExactString(slice(start..<position))
        }
        skipSpace()
        guard position < text.count, text[position] == "]" else {
            throw FilterExpressionError("expected \"]\" after the annotation key", at: position)
        }
        position += 1
        return key
    }

    // MARK: JSON

    /// From `#` to the end of the array: the bracket that closes the first one.
    private mutating func json() throws(FilterExpressionError) -> [FilterJSON] {
        let start = position
        position += 1
        skipSpace()
        let arrayStart = position
        guard position < text.count, text[position] == "[" else {
            throw FilterExpressionError("expected a JSON array after #", at: start)
        }
        var depth = 0
        var isInString = false
        repeat {
            guard position < text.count else {
                throw FilterExpressionError("JSON array without closing bracket", at: start)
            }
            let scalar = text[position]
            if isInString {
                if scalar == "\\" { position += 1 } else if scalar == "\"" { isInString = false }
            } else if scalar == "\"" {
                isInString = true
            } else if scalar == "[" || scalar == "{" {
                depth += 1
                guard depth <= limits.nesting else {
                    throw FilterExpressionError("nested deeper than \(limits.nesting)", at: position)
                }
            } else if scalar == "]" || scalar == "}" {
                depth -= 1
            }
            position += 1
        } while depth > 0
        let bytes = Array(slice(arrayStart..<min(position, text.count)).utf8)
        guard let elements = FilterJSON.array(parsing: bytes) else {
            throw FilterExpressionError("malformed JSON array after #", at: start)
        }
        return elements
    }
}
