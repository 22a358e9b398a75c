// Text to expressions and back, and every way a text can be wrong.

import Segments
import Testing

@testable import FilterExpressions

/// The parsed expression, for tests that are about something else.
func parsed(_ text: String) throws -> FilterExpression { try FilterExpression(parsing: text) }

@Suite struct ParserTests {
    // If this fails, a wrong filter silently finds nothing instead of saying what is wrong with it
    // (`filter-expressions.md` §9).
    @Test(arguments: [
        "ok AND", #"http.status = "200""#, "fault > 1", #"user > "a""#, #"service("a""#, #"edge("a")"#,
        #"service("a") { service("b") }"#, #"service("a") { group.name = "x" }"#, "annotation.a.b = 1", "foo = 1",
        "root",
        #"name = "web""#, "http.url CONTAINS 5", "rootcause.fault { first }",
        "rootcause.responsetime.exception { first }",
        #"id(name:"a")"#, #"service(id(name:"a", name:"b"))"#, "rootcause.json = #{}", #""web""#,
    ])
    func `an invalid expression of the specification is refused`(_ text: String) {
        let error = #expect(throws: FilterExpressionError.self) { try FilterExpression(parsing: text) }
        #expect(error?.description.hasPrefix("Invalid filter expression: ") == true)
        #expect(error.map { (0...text.unicodeScalars.count).contains($0.position) } == true)
    }
}
