// Whether a trace satisfies an expression (`filter-expressions.md` §3–§7). In: an expression, the facts of a trace, the
// account's groups. Out: yes or no. Depth of recursion is that of the expression, which the parser bounds.

import Segments
import TraceAssembly

#if canImport(Glibc)
    import Glibc
#elseif canImport(Musl)
    import Musl
#elseif canImport(Darwin)
    import Darwin
#endif

extension FilterExpression {
    /// Whether a trace satisfies the expression. A trace without a segment satisfies none, not even the empty one.
    ///
    /// - Parameters:
    ///   - groups: what `group.name` and `group.arn` stand for.
    ///   - window: for `TimeRangeType` `Service`: `service()` and `edge()` only look at entities that ended in it
    ///     (`traces.md` §7). Microseconds.
    public func matches(
        _ facts: TraceFacts, groups: GroupResolver = .none, endedIn window: Range<Micros>? = nil
    ) -> Bool {
        guard facts.forest.root >= 0 else { return false }
        var evaluator = Evaluator(facts: facts, groups: groups, window: window)
        return evaluator.holds(self, of: .trace)
    }
}

struct Evaluator {
    let facts: TraceFacts
    let groups: GroupResolver
    let window: Range<Micros>?
    /// A group has one value per trace however often it is asked for: groups that refer to groups would otherwise
    /// multiply. Empty until the first group is asked for.
    private var groupValues: [GroupValue] = []

    private enum GroupValue { case unknown, underWay, matches, doesNotMatch }

    init(facts: TraceFacts, groups: GroupResolver, window: Range<Micros>?) {
        self.facts = facts
        self.groups = groups
        self.window = window
    }

    mutating func holds(_ expression: FilterExpression, of subject: Subject) -> Bool {
        switch expression {
        case .everything:
            return true
        case .test(let test):
            return holds(test, of: subject)
        case .not(let inner):
            return !holds(inner, of: subject)
        case .and(let parts):
            for part in parts where !holds(part, of: subject) { return false }
            return true
        case .or(let parts):
            for part in parts where holds(part, of: subject) { return true }
            return false
        case .service(let selector, let body):
            let nodes = facts.nodes
            for (index, occurrence) in nodes.occurrences.enumerated()
            where isInWindow(occurrence.entity) && nodes.selects(selector, occurrence) {
                guard let body, !holds(body, of: .occurrence(index)) else { return true }
            }
            return false
        case .edge(let selector, let body):
            let nodes = facts.nodes
            for (index, connection) in nodes.connections.enumerated()
            where isInWindow(connection.entity) && nodes.selects(selector, connection) {
                guard let body, !holds(body, of: .connection(index)) else { return true }
            }
            return false
        case .rootCause(let kind, let level, let body):
            return facts.hasCauseElement(kind, level) { holds(body, of: .cause($0)) }
        case .rootCauseJSON(let pattern, let isNegated):
            let isFitting = facts.rootCauseJSON.contains { causes in
                pattern.allSatisfy { element in causes.contains { element.fits($0) } }
            }
            return isFitting != isNegated
        case .group(let reference, let isNegated):
            guard let value = value(of: reference) else { return false }
            return value != isNegated
        }
    }

    private func isInWindow(_ entity: Int32) -> Bool {
        guard let window else { return true }
        guard let end = facts.forest.trace.entities[Int(entity)].entity.end else { return false }
        return window.contains(end)
    }

    // MARK: Tests

    private func holds(_ test: FilterTest, of subject: Subject) -> Bool {
        if case .annotation(let place, let key) = test.keyword {
            return facts.hasAnnotation(place, key: key, of: subject) { holds(test.condition, for: $0) }
        }
        switch test.keyword.valueType {
        case .bool:
            guard let flag = facts.flag(test.keyword, of: subject) else { return false }
            return holds(test.condition, for: .bool(flag))
        case .number:
            guard let number = facts.number(test.keyword, of: subject) else { return false }
            guard case .compares(let comparison, .number(let literal)) = test.condition else { return true }
            return compare(number, comparison, literal)
        case .string, .annotation:
            return facts.hasText(test.keyword, of: subject) { text in
                guard case .compares(let comparison, .string(let literal)) = test.condition else { return true }
                return compare(text, comparison, literal)
            }
        }
    }

    /// A value of another type than the literal never satisfies it, not even with `!=`.
    private func holds(_ condition: FilterTest.Condition, for value: IndexedValue) -> Bool {
        switch condition {
        case .isSet:
            if case .bool(let flag) = value { flag } else { true }
        case .compares(let comparison, let literal):
            switch (value, literal) {
            case (.string(let text), .string(let literal)): compare(text.value, comparison, literal)
            case (.number(let number), .number(let literal)): compare(number, comparison, literal)
            case (.bool(let flag), .bool(let literal)): (flag == literal) == (comparison == .equal)
            default: false
            }
        }
    }

    // MARK: Groups

    /// Whether the trace is in a group; nil when there is no such group, or it refers to itself.
    private mutating func value(of reference: GroupReference) -> Bool? {
        switch groups.meaning(of: reference) {
        case .unknown: return nil
        case .everything: return true
        case .group(let index): return value(ofGroup: index)
        }
    }

    /// Evaluates first what a group refers to, then the group, on a list instead of the stack: groups may refer to one
    /// another in long chains.
    mutating func value(ofGroup index: Int) -> Bool? {
        if groupValues.isEmpty { groupValues = [GroupValue](repeating: .unknown, count: groups.count) }
        // Asked for by a group that it refers to itself.
        if groupValues[index] == .underWay { return nil }
        var waiting = [index]
        while let group = waiting.last {
            if groupValues[group] == .unknown {
                groupValues[group] = .underWay
                let needed = groups.references(ofGroup: group).filter { groupValues[$0] == .unknown }
                if !needed.isEmpty {
                    waiting += needed
                    continue
                }
            }
            waiting.removeLast()
            guard groupValues[group] == .underWay else { continue }
            let isMatching = holds(groups.expression(ofGroup: group), of: .trace)
            groupValues[group] = isMatching ? .matches : .doesNotMatch
        }
        return groupValues[index] == .matches
    }
}

// MARK: - Comparing

private func compare(_ value: Double, _ comparison: FilterOperator, _ literal: Double) -> Bool {
    switch comparison {
    case .equal: value == literal
    case .notEqual: value != literal
    case .less: value < literal
    case .lessOrEqual: value <= literal
    case .greater: value > literal
    case .greaterOrEqual: value >= literal
    case .contains, .beginsWith, .endsWith: false
    }
}

/// By code point (ruling R-32). UTF-8 finds a text inside another exactly where its code points are.
private func compare(_ value: String, _ comparison: FilterOperator, _ literal: ExactString) -> Bool {
    switch comparison {
    case .equal: return ExactString(value) == literal
    case .notEqual: return ExactString(value) != literal
    case .less, .lessOrEqual, .greater, .greaterOrEqual: return false
    case .contains, .beginsWith, .endsWith: break
    }
    var value = value
    var literal = literal.value
    return value.withUTF8 { text in
        literal.withUTF8 { part in
            guard part.count <= text.count else { return false }
            guard let textStart = text.baseAddress, let partStart = part.baseAddress, !part.isEmpty else { return true }
            switch comparison {
            case .contains: return contains(textStart, text.count, partStart, part.count)
            case .beginsWith: return memcmp(textStart, partStart, part.count) == 0
            default: return memcmp(textStart + (text.count - part.count), partStart, part.count) == 0
            }
        }
    }
}

/// Whether `part` stands somewhere in `text`. Both loops run in the C library; at its worst the cost is the product of
/// the lengths at some 30 bytes a nanosecond, and a query that long holds only one such text.
private func contains(
    _ text: UnsafePointer<UInt8>, _ textCount: Int, _ part: UnsafePointer<UInt8>, _ partCount: Int
) -> Bool {
    let last = text + (textCount - partCount)
    var at = text
    while at <= last, let found = memchr(at, Int32(part.pointee), last - at + 1) {
        let candidate = UnsafeRawPointer(found)
        if memcmp(candidate, part, partCount) == 0 { return true }
        at += candidate - UnsafeRawPointer(at) + 1
    }
    return false
}
