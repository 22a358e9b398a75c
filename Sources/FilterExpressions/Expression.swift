// What a filter expression says, as values: made by the parser, read by the evaluator, by the search planner and by the
// groups. Every expression that exists here is well typed: each test stands where its keyword has a meaning, with an
// operator and a literal that fit it. The language is described in FilterExpressions.docc/Filters.md.

import Segments

/// A predicate over one trace.
///
/// Expressions made by the parser are in normal form: lists of two or more in `and` and `or` without a list of the same
/// kind inside, no `not` directly inside a `not`. So texts that differ only in parentheses, spaces and capitals are
/// equal expressions.
public indirect enum FilterExpression: Hashable, Sendable {
    /// The empty expression: every trace.
    case everything
    case test(FilterTest)
    case not(FilterExpression)
    case and([FilterExpression])
    case or([FilterExpression])
    /// Some single occurrence of a node matching `node` satisfies `body`. No selector: any node but client nodes.
    /// No body: true.
    case service(NodeSelector?, body: FilterExpression?)
    /// Some occurrence of a direct connection satisfies `body`. No selector: any edge, those of clients included.
    case edge(EdgeSelector?, body: FilterExpression?)
    /// Some element of the root causes of a kind satisfies `body`.
    case rootCause(CauseKind, CauseLevel, body: FilterExpression)
    /// `rootcause.json = #[…]`, or `!=` with `isNegated`, which is true without any cause too (ruling R-12).
    case rootCauseJSON([FilterJSON], isNegated: Bool)
    /// The current expression of a group, evaluated here. `!=` with `isNegated`. Both are false for an unknown group.
    case group(GroupReference, isNegated: Bool)
}

/// A keyword, alone or compared with a literal.
public struct FilterTest: Hashable, Sendable {
    public var keyword: FilterKeyword
    public var condition: Condition

    public enum Condition: Hashable, Sendable {
        /// The keyword alone. A boolean: some value is true. Anything else: some value is set, where a boolean
        /// annotation is set only when it is true.
        case isSet
        /// Some value compares so. No value: false, whatever the operator.
        case compares(FilterOperator, FilterLiteral)
    }

    public init(_ keyword: FilterKeyword, _ condition: Condition = .isSet) {
        self.keyword = keyword
        self.condition = condition
    }
}

/// What a test looks at. Which values it has depends on where the test stands (`filter-expressions.md` §2).
public enum FilterKeyword: Hashable, Sendable {
    // Booleans.
    case ok, error, throttle, fault, partial, inferred, root, first, last, remote
    // Numbers. Times are seconds, rounded half up to three decimals.
    case responseTime, duration, httpStatus, index, coverage
    // Text.
    case httpURL, httpMethod, httpUserAgent, httpClientIP
    case user, availabilityZone, instanceID, resourceARN, accountID, name, type, message
    /// Dynamic: the literal decides which type of value can match.
    case annotation(AnnotationPlace, key: ExactString)
}

public enum AnnotationPlace: Hashable, Sendable {
    /// Where the test stands: the trace, the service or the call.
    case here
    /// All segments of an edge's source or destination in the trace.
    case source, destination
}

public enum FilterOperator: String, Hashable, Sendable, CaseIterable {
    case equal = "="
    case notEqual = "!="
    case less = "<"
    case lessOrEqual = "<="
    case greater = ">"
    case greaterOrEqual = ">="
    case contains = "CONTAINS"
    case beginsWith = "BEGINSWITH"
    case endsWith = "ENDSWITH"

    /// Only numbers have an order.
    var isOrdering: Bool { [.less, .lessOrEqual, .greater, .greaterOrEqual].contains(self) }
    /// Only text has parts.
    var isTextual: Bool { [.contains, .beginsWith, .endsWith].contains(self) }
}

public enum FilterLiteral: Hashable, Sendable {
    case bool(Bool)
    /// Finite.
    case number(Double)
    case string(ExactString)
}

/// Which nodes: every given part must be equal. `"web"` is the same as `id(name: "web")`.
public struct NodeSelector: Hashable, Sendable {
    public var name: ExactString?
    public var type: ExactString?
    public var accountID: ExactString?

    public init(name: ExactString? = nil, type: ExactString? = nil, accountID: ExactString? = nil) {
        self.name = name
        self.type = type
        self.accountID = accountID
    }

    /// Client nodes are reached in no other way (ruling R-13).
    public var reachesClients: Bool { type == "client" }

    /// - Parameter accountID: the node's account, the receiving one where the node states none.
    public func matches(name: ExactString, type: ExactString?, accountID: ExactString) -> Bool {
        if let wanted = self.name, wanted != name { return false }
        if let wanted = self.type, wanted != type { return false }
        if let wanted = self.accountID, wanted != accountID { return false }
        return true
    }
}

public struct EdgeSelector: Hashable, Sendable {
    public var source: NodeSelector
    public var destination: NodeSelector

    public init(source: NodeSelector, destination: NodeSelector) {
        self.source = source
        self.destination = destination
    }
}

/// Which of a summary's lists of root causes.
public enum CauseKind: String, Hashable, Sendable, CaseIterable {
    case fault
    case error
    case responseTime = "responsetime"
}

/// Which elements of a root cause. Response times have no exceptions.
public enum CauseLevel: String, Hashable, Sendable, CaseIterable { case service, entity, exception }

public enum GroupReference: Hashable, Sendable {
    case name(ExactString)
    case arn(ExactString)
}

// MARK: - Normal form

extension FilterExpression {
    /// All of them, in normal form.
    static func all(_ parts: [FilterExpression]) -> FilterExpression {
        var flat: [FilterExpression] = []
        for part in parts {
            if case .and(let inner) = part { flat += inner } else if part != .everything { flat.append(part) }
        }
        return flat.count > 1 ? .and(flat) : flat.first ?? .everything
    }

    /// Any of them, in normal form. `parts` is not empty.
    static func any(_ parts: [FilterExpression]) -> FilterExpression {
        var flat: [FilterExpression] = []
        for part in parts {
            if case .or(let inner) = part { flat += inner } else { flat.append(part) }
        }
        return flat.count == 1 ? flat[0] : .or(flat)
    }

    var negated: FilterExpression {
        if case .not(let inner) = self { inner } else { .not(self) }
    }

    /// Every group the expression refers to directly, by first appearance.
    public var groupReferences: [GroupReference] {
        var found: [GroupReference] = []
        collectGroupReferences(into: &found)
        return found
    }

    private func collectGroupReferences(into found: inout [GroupReference]) {
        switch self {
        case .group(let reference, _):
            if !found.contains(reference) { found.append(reference) }
        case .not(let inner):
            inner.collectGroupReferences(into: &found)
        case .and(let parts), .or(let parts):
            for part in parts { part.collectGroupReferences(into: &found) }
        case .everything, .test, .service, .edge, .rootCause, .rootCauseJSON:
            // Groups do not stand inside selectors and causes.
            break
        }
    }
}
