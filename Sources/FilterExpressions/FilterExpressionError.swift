// Why an expression was refused, and where, in the words of the API (`filter-expressions.md` §9).

/// The message of the `InvalidRequestException` is `description`.
public struct FilterExpressionError: Error, Equatable, Sendable, CustomStringConvertible {
    /// What is wrong, in one short phrase.
    public var reason: String
    /// 0-based offset in Unicode scalars; the length of the text when it ends too early.
    public var position: Int

    public init(_ reason: String, at position: Int) {
        self.reason = reason
        self.position = position
    }

    public var description: String { "Invalid filter expression: \(reason) at position \(position)" }
}

/// How much text and nesting is read. Both are checked before anything is built from the text.
public struct FilterExpressionLimits: Sendable {
    /// Unicode scalars.
    public var characters: Int
    /// Parentheses, braces, `!` and the brackets of `rootcause.json` around one another.
    public var nesting: Int

    public init(characters: Int, nesting: Int = 100) {
        self.characters = characters
        self.nesting = nesting
    }

    public static let query = FilterExpressionLimits(characters: 10_000)
    public static let group = FilterExpressionLimits(characters: 2_000)
}
