// Random expressions in normal form: of every kind of test, in every place, with literals that the random traces of
// `RandomTraces` hold now and then, and with text that is hard to quote.

import Fixtures
import Segments

@testable import FilterExpressions

struct ExpressionGenerator {
    var random: SeededGenerator
    /// Groups that may be referred to.
    var groupNames = ["Default", "g0", "g1", "unknown"]

    init(random: SeededGenerator) { self.random = random }

    private static let scopes: [Scope] =
        [.trace, .service, .edge]
        + CauseKind.allCases.flatMap { kind in CauseLevel.allCases.map { .rootCause(kind, $0) } }
    static let annotationKeys = [
        "tenant", "vip", "age", "aws.local.operation", "a \"quoted\" key", "__proto__", "caf\u{e9}", "cafe\u{301}",
        "'; --",
        "%", "_", "",
    ]
    static let texts = [
        "", "web", "orders", "acme", "a\"b\\c", "caf\u{e9}", "cafe\u{301}", "100%", "_", "' OR 1=1", "true", "31",
        "line\nbreak\u{1}", "\u{1F600}", "GET", "http://shop.example.com/api/orders", "/api/", "alice", "i-01",
    ]
    private static let names = [
        "web", "orders", "billing", "stock", "worker", "caf\u{e9}", "cafe\u{301}", "orders-table", "jobs", "DynamoDB",
        "images", "orders.internal", "pay.example.com", "render", "nowhere", "Oops", "Error",
    ]
    private static let types = [
        "AWS::EC2::Instance", "AWS::ECS::Container", "AWS::Lambda", "AWS::Lambda::Function", "AWS::DynamoDB::Table",
        "remote", "client", "AWS::S3::Bucket",
    ]
    private static let accounts = ["111122223333", "444455556666", "999988887777"]

    mutating func expression() -> FilterExpression {
        random.chance(2) ? .everything : expression(in: .trace, depth: 0)
    }

    private mutating func expression(in scope: Scope, depth: Int) -> FilterExpression {
        switch depth < 4 ? Int.random(in: 0..<10, using: &random) : 9 {
        case 0: return expression(in: scope, depth: depth + 1).negated
        case 1, 2:
            return .all(
                (0..<Int.random(in: 2...3, using: &random)).map { _ in expression(in: scope, depth: depth + 1) })
        case 3, 4:
            return .any(
                (0..<Int.random(in: 2...3, using: &random)).map { _ in expression(in: scope, depth: depth + 1) })
        default: break
        }
        guard scope == .trace else { return .test(test(in: scope)) }
        switch Int.random(in: 0..<12, using: &random) {
        case 0, 1: return .service(random.chance(25) ? nil : node(), body: body(in: .service, depth))
        case 2, 3:
            let selector = EdgeSelector(source: node(), destination: node())
            return .edge(random.chance(25) ? nil : selector, body: body(in: .edge, depth))
        case 4, 5:
            let kind = random.pick(CauseKind.allCases)
            let level = random.pick(kind == .responseTime ? [.service, .entity] : CauseLevel.allCases)
            return .rootCause(kind, level, body: expression(in: .rootCause(kind, level), depth: depth + 1))
        case 6:
            return .rootCauseJSON(
                (0..<Int.random(in: 0...2, using: &random)).map { _ in json(depth: 0) }, isNegated: random.chance(30))
        case 7:
            let name = ExactString(random.pick(groupNames))
            return .group(random.chance(70) ? .name(name) : .arn(name), isNegated: random.chance(30))
        default: return .test(test(in: .trace))
        }
    }

    private mutating func body(in scope: Scope, _ depth: Int) -> FilterExpression? {
        random.chance(30) ? nil : expression(in: scope, depth: depth + 1)
    }

    private mutating func node() -> NodeSelector {
        var selector = NodeSelector()
        if random.chance(60) { selector.name = ExactString(random.pick(Self.names)) }
        if random.chance(30) { selector.type = ExactString(random.pick(Self.types)) }
        if random.chance(10) { selector.accountID = ExactString(random.pick(Self.accounts)) }
        return selector == NodeSelector() ? NodeSelector(type: "client") : selector
    }

    private mutating func test(in scope: Scope) -> FilterTest {
        var known = FilterKeyword.simple.map(\.keyword).filter { $0.isKnown(in: scope) }
        for place in [AnnotationPlace.here, .source, .destination] {
            let keyword = FilterKeyword.annotation(place, key: ExactString(random.pick(Self.annotationKeys)))
            if keyword.isKnown(in: scope) { known += [keyword, keyword, keyword] }
        }
        let keyword = random.pick(known)
        guard random.chance(75) else { return FilterTest(keyword) }
        let equality: [FilterOperator] = [.equal, .notEqual]
        let ordering = FilterOperator.allCases.filter { !$0.isTextual }
        let textual = FilterOperator.allCases.filter { !$0.isOrdering }
        switch keyword.valueType {
        case .bool: return FilterTest(keyword, .compares(random.pick(equality), .bool(random.chance(50))))
        case .number: return FilterTest(keyword, .compares(random.pick(ordering), .number(number(for: keyword))))
        case .string: return FilterTest(keyword, .compares(random.pick(textual), .string(text(for: keyword))))
        case .annotation:
            switch Int.random(in: 0..<3, using: &random) {
            case 0: return FilterTest(keyword, .compares(random.pick(equality), .bool(random.chance(50))))
            case 1: return FilterTest(keyword, .compares(random.pick(ordering), .number(number(for: keyword))))
            default: return FilterTest(keyword, .compares(random.pick(textual), .string(text(for: keyword))))
            }
        }
    }

    private mutating func number(for keyword: FilterKeyword) -> Double {
        switch keyword {
        case .httpStatus: random.pick([200, 404, 429, 500, 503, 404.5])
        case .index: random.pick([0, 1, 2])
        case .annotation: random.pick([31, 25, 0, -1.5, 1e300, 1e-300, 0.1, 9_007_199_254_740_992])
        default: Double(Int.random(in: 0..<600, using: &random)) / random.pick([1_000, 10])
        }
    }

    private mutating func text(for keyword: FilterKeyword) -> ExactString {
        switch keyword {
        case .name where random.chance(80): ExactString(random.pick(Self.names))
        case .type where random.chance(80): ExactString(random.pick(Self.types))
        case .accountID where random.chance(80): ExactString(random.pick(Self.accounts))
        default: ExactString(random.pick(Self.texts))
        }
    }

    private mutating func json(depth: Int) -> FilterJSON {
        if depth < 4, random.chance(60) {
            var members: [ExactString: FilterJSON] = [:]
            for _ in 0..<Int.random(in: 0...2, using: &random) {
                switch random.pick([
                    "ClientImpacting", "Services", "Name", "EntityPath", "Remote", "Inferred", "Type", "odd",
                ]) {
                case "ClientImpacting": members["ClientImpacting"] = .bool(random.chance(50))
                case "Services": members["Services"] = .array([json(depth: depth + 1)])
                case "EntityPath": members["EntityPath"] = .array([json(depth: depth + 1), json(depth: depth + 1)])
                case "Name": members["Name"] = .string(ExactString(random.pick(Self.names)))
                case "Remote": members["Remote"] = .bool(random.chance(50))
                case "Inferred": members["Inferred"] = .bool(random.chance(50))
                case "Type": members["Type"] = .string(ExactString(random.pick(Self.types + [""])))
                default: members[ExactString(random.pick(Self.texts))] = json(depth: depth + 1)
                }
            }
            return .object(members)
        }
        switch Int.random(in: 0..<5, using: &random) {
        case 0: return .null
        case 1: return .bool(random.chance(50))
        case 2: return .number(random.pick([0, 1, -0.5, 0.75, 1e21, 12_345_678_901_234]))
        case 3: return .array([])
        default: return .string(ExactString(random.pick(Self.texts)))
        }
    }
}
