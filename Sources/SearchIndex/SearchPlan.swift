// Which traces a search has to look at: a filter expression turned into a tree over terms, flags and steps that never
// leaves out a trace that matches, and may let through others; the expression itself decides. Pure; see
// SearchIndex.docc/SearchIndex.md for what each keyword becomes.

import FilterExpressions
import Segments

public indirect enum SearchPlan: Hashable, Sendable {
    /// Every trace: the index cannot help.
    case all
    case none
    case term(SearchTerm, label: String)
    /// Traces with a value of the field for which the test may hold; `presence` when the field's dictionary is full.
    case values(ValueSearch, label: String)
    case flag(SearchFlag, Bool)
    case responseTime(ClosedRange<UInt8>)
    case duration(ClosedRange<UInt8>)
    case and([SearchPlan])
    case or([SearchPlan])

    static func every(_ parts: [SearchPlan]) -> SearchPlan {
        var kept: [SearchPlan] = []
        for part in parts {
            switch part {
            case .all: continue
            case .none: return .none
            case .and(let inner): kept += inner
            default: kept.append(part)
            }
        }
        return kept.isEmpty ? .all : kept.count == 1 ? kept[0] : .and(kept)
    }

    static func any(_ parts: [SearchPlan]) -> SearchPlan {
        var kept: [SearchPlan] = []
        for part in parts {
            switch part {
            case .all: return .all
            case .none: continue
            case .or(let inner): kept += inner
            default: kept.append(part)
            }
        }
        return kept.isEmpty ? .none : kept.count == 1 ? kept[0] : .or(kept)
    }
}

/// A test against every value that a field has in a segment.
public struct ValueSearch: Hashable, Sendable {
    /// Where the dictionary stands.
    var dictionary: SearchTerm
    /// Hashes of templates and of single numbers begin with this, those of steps of numbers with `rangeField`.
    var valueField: SearchField
    var rangeField: SearchField?
    var test: FilterTest.Condition

    /// The terms of the values for which the test may hold.
    func terms(_ values: [DictionaryValue]) -> [SearchTerm] {
        values.compactMap { value in
            switch value {
            case .template(let template):
                return mayHold(template)
                    ? SearchTerm(hash: template.withUnsafeBytes { Hash.of($0, seed: valueField.seed) }) : nil
            case .numbers(let first, let last):
                guard mayHold(first, last) else { return nil }
                return first == last && rangeField == nil
                    ? valueField.term(first) : (rangeField ?? valueField).term(first)
            }
        }
    }

    private func mayHold(_ template: [UInt8]) -> Bool {
        guard case .compares(let comparison, .string(let literal)) = test else { return true }
        let part = TextTemplate.of(literal.value)
        switch comparison {
        case .equal: return template == part
        case .notEqual: return template.contains(where: TextTemplate.isDigit) || template != part
        case .contains: return template.containsPart(part)
        case .beginsWith: return template.starts(with: part)
        case .endsWith: return template.reversed().starts(with: part.reversed())
        case .less, .lessOrEqual, .greater, .greaterOrEqual: return false
        }
    }

    private func mayHold(_ first: Double, _ last: Double) -> Bool {
        guard case .compares(let comparison, .number(let number)) = test else { return true }
        let (low, high) = (min(first, last), max(first, last))
        switch comparison {
        case .equal: return low <= number && number <= high
        case .notEqual: return low != number || high != number
        case .less: return low < number
        case .lessOrEqual: return low <= number
        case .greater: return high > number
        case .greaterOrEqual: return high >= number
        case .contains, .beginsWith, .endsWith: return false
        }
    }
}

extension [UInt8] {
    func containsPart(_ part: [UInt8]) -> Bool {
        guard let first = part.first else { return true }
        guard part.count <= count else { return false }
        for start in 0...(count - part.count) where self[start] == first {
            if self[start..<start + part.count].elementsEqual(part) { return true }
        }
        return false
    }
}

// MARK: - From an expression

extension SearchPlan {
    /// - Parameter group: the current expression of a group; nil for one that does not exist.
    public init(_ expression: FilterExpression, group: @escaping (GroupReference) -> FilterExpression?) {
        self = Planner(group: group).plan(expression, isNegated: false, depth: 0)
    }
}

private struct Planner {
    let group: (GroupReference) -> FilterExpression?
    /// Groups inside groups; deeper ones are not looked into.
    static let groupDepth = 4

    func plan(_ expression: FilterExpression, isNegated: Bool, depth: Int) -> SearchPlan {
        switch expression {
        case .everything:
            return isNegated ? .none : .all
        case .test(let test):
            return isNegated ? negated(test) : traceTest(test)
        case .not(let inner):
            return plan(inner, isNegated: !isNegated, depth: depth)
        case .and(let parts):
            let plans = parts.map { plan($0, isNegated: isNegated, depth: depth) }
            return isNegated ? .any(plans) : .every(plans)
        case .or(let parts):
            let plans = parts.map { plan($0, isNegated: isNegated, depth: depth) }
            return isNegated ? .every(plans) : .any(plans)
        case .service(let selector, let body):
            return isNegated ? .all : service(selector, body)
        case .edge(let selector, let body):
            return isNegated ? .all : edge(selector, body)
        case .rootCause(let kind, let level, let body):
            return isNegated ? .all : rootCause(kind, level, body)
        case .rootCauseJSON:
            return .all
        case .group(let reference, let isNot):
            // Of an unknown group both comparisons are false.
            guard depth < Self.groupDepth else { return .all }
            guard let inner = group(reference) else { return isNegated ? .all : .none }
            return plan(inner, isNegated: isNegated != isNot, depth: depth + 1)
        }
    }

    // MARK: Tests of the trace

    private func traceTest(_ test: FilterTest) -> SearchPlan {
        switch test.keyword {
        case .ok: return flag(.ok, test.condition)
        case .error: return flag(.error, test.condition)
        case .throttle: return flag(.throttle, test.condition)
        case .fault: return flag(.fault, test.condition)
        case .partial: return flag(.partial, test.condition)
        case .inferred: return flag(.inferred, test.condition)
        case .responseTime: return steps(test.condition).map { .responseTime($0) } ?? .all
        case .duration: return steps(test.condition).map { .duration($0) } ?? .all
        case .httpStatus: return number(.status, flag: .status, test.condition)
        case .httpURL:
            let flag = SearchPlan.flag(.url, true)
            return .every([text(SearchField(.url), "http.url", flag, test.condition), urlDigits(test.condition)])
        case .httpMethod: return text(SearchField(.method), "http.method", .flag(.method, true), test.condition)
        case .httpUserAgent:
            return text(SearchField(.userAgent), "http.useragent", .flag(.userAgent, true), test.condition)
        case .httpClientIP: return text(SearchField(.clientIP), "http.clientip", .flag(.clientIP, true), test.condition)
        case .accountID: return text(SearchField(.accountID), "account.id", .all, test.condition)
        case .user, .availabilityZone, .instanceID, .resourceARN, .annotation: return anywhere(test)
        case .root, .first, .last, .remote, .index, .coverage, .name, .type, .message: return .all
        }
    }

    /// Tests whose values come from anywhere in the trace: what holds for one service or call holds for the trace.
    private func anywhere(_ test: FilterTest) -> SearchPlan {
        switch test.keyword {
        case .user: return text(SearchField(.user), "user", .flag(.user, true), test.condition)
        case .availabilityZone: return marked(SearchField(.zone), "availabilityzone", test.condition)
        case .instanceID: return marked(SearchField(.instanceID), "instance.id", test.condition)
        case .resourceARN: return marked(SearchField(.resourceARN), "resource.arn", test.condition)
        case .annotation(_, let key): return annotation(key.value, test.condition)
        default: return .all
        }
    }

    private func marked(_ field: SearchField, _ name: String, _ condition: FilterTest.Condition) -> SearchPlan {
        text(field, name, .term(field.presence, label: name), condition)
    }

    private func flag(_ flag: SearchFlag, _ condition: FilterTest.Condition) -> SearchPlan {
        wantedBool(condition).map { .flag(flag, $0) } ?? .all
    }

    private func wantedBool(_ condition: FilterTest.Condition) -> Bool? {
        switch condition {
        case .isSet: return true
        case .compares(.equal, .bool(let value)): return value
        case .compares(.notEqual, .bool(let value)): return !value
        case .compares: return nil
        }
    }

    private func text(
        _ field: SearchField, _ name: String, _ presence: SearchPlan, _ condition: FilterTest.Condition
    ) -> SearchPlan {
        guard case .compares(let comparison, .string(let literal)) = condition else { return presence }
        if comparison == .equal { return .term(field.term(literal.value), label: "\(name) = \"\(literal.value)\"") }
        let search = ValueSearch(dictionary: field.presence, valueField: field, rangeField: nil, test: condition)
        let values = SearchPlan.values(search, label: "\(name) \(comparison.rawValue) \"\(literal.value)\"")
        return .every([presence, values])
    }

    /// What contains a text contains its digits. Templates leave ids out; three digits in a row bring them back in.
    private func urlDigits(_ condition: FilterTest.Condition) -> SearchPlan {
        guard case .compares(let comparison, .string(let literal)) = condition,
            [.contains, .beginsWith, .endsWith].contains(comparison)
        else { return .all }
        var numbers: Set<Int> = []
        Array(literal.value.utf8).withUnsafeBytes { bytes in
            TextTemplate.forEachThreeDigits(bytes) { numbers.insert($0) }
        }
        return .every(
            numbers.sorted().map { number in
                let digits = String(number)
                let label = String(repeating: "0", count: 3 - digits.count) + digits
                return .term(SearchField(.urlDigits).term(Double(number)), label: "http.url has the digits \(label)")
            })
    }

    private func number(_ kind: SearchField.Kind, flag: SearchFlag, _ condition: FilterTest.Condition) -> SearchPlan {
        let field = SearchField(kind)
        guard case .compares(let comparison, .number(let number)) = condition else { return .flag(flag, true) }
        if comparison == .equal { return .term(field.term(number), label: "http.status = \(number)") }
        let search = ValueSearch(dictionary: field.presence, valueField: field, rangeField: nil, test: condition)
        return .every([.flag(flag, true), .values(search, label: "http.status \(comparison.rawValue) \(number)")])
    }

    private func annotation(_ key: String, _ condition: FilterTest.Condition) -> SearchPlan {
        let presence = SearchPlan.term(SearchField(.annotation, key: key).presence, label: "annotation[\(key)]")
        guard case .compares(let comparison, let literal) = condition else { return presence }
        switch literal {
        case .string(let value):
            // An indexed value may be the first part of what was sent, so a longer literal still meets its own first part only.
            return text(
                SearchField(.annotationText, key: key), "annotation[\(key)]", presence,
                .compares(comparison, .string(value)))
        case .bool(let value):
            let wanted = comparison == .notEqual ? !value : value
            return .term(SearchField(.annotationFlag, key: key).term(wanted), label: "annotation[\(key)] = \(wanted)")
        case .number(let value):
            let field = SearchField(.annotationNumber, key: key)
            if comparison == .equal { return .term(field.term(value), label: "annotation[\(key)] = \(value)") }
            let search = ValueSearch(
                dictionary: field.presence, valueField: field, rangeField: SearchField(.annotationRange, key: key),
                test: condition)
            return .every([presence, .values(search, label: "annotation[\(key)] \(comparison.rawValue) \(value)")])
        }
    }

    /// Steps of a time in seconds; all set ones where the test does not narrow. Nil: no time can match.
    private func steps(_ condition: FilterTest.Condition) -> ClosedRange<UInt8>? {
        guard case .compares(let comparison, .number(let seconds)) = condition else { return 1...255 }
        // A millisecond to either side, for the filter compares doubles.
        let limit = 9e15
        let millis = min(max(seconds * 1000, -limit), limit)
        let low = Int64(millis.rounded(.down)) - 1
        let high = Int64(millis.rounded(.up)) + 1
        switch comparison {
        case .equal: return TimeStep.of(millis: low)...TimeStep.of(millis: high)
        case .less, .lessOrEqual: return 1...TimeStep.of(millis: high)
        case .greater, .greaterOrEqual: return TimeStep.of(millis: low)...255
        case .notEqual, .contains, .beginsWith, .endsWith: return 1...255
        }
    }

    private func negated(_ test: FilterTest) -> SearchPlan {
        let flags: [FilterKeyword: SearchFlag] = [
            .ok: .ok, .error: .error, .throttle: .throttle, .fault: .fault, .partial: .partial, .inferred: .inferred,
        ]
        if let flag = flags[test.keyword] { return wantedBool(test.condition).map { .flag(flag, !$0) } ?? .all }
        guard test.condition == .isSet else { return .all }
        switch test.keyword {
        case .httpURL: return .flag(.url, false)
        case .httpMethod: return .flag(.method, false)
        case .httpUserAgent: return .flag(.userAgent, false)
        case .httpClientIP: return .flag(.clientIP, false)
        case .httpStatus: return .flag(.status, false)
        case .user: return .flag(.user, false)
        default: return .all
        }
    }

    // MARK: Services, edges, causes

    /// What the name, type and account of a node narrow; client nodes are not nodes of the index, their root is.
    private func node(_ selector: NodeSelector?) -> SearchPlan {
        guard let selector else { return .all }
        var parts: [SearchPlan] = []
        if let name = selector.name { parts.append(named(name.value)) }
        if !selector.reachesClients {
            if let type = selector.type {
                parts.append(.term(SearchField(.nodeType).term(type.value), label: "a node of type \"\(type.value)\""))
            }
            if let account = selector.accountID {
                parts.append(
                    .term(SearchField(.accountID).term(account.value), label: "a node of account \"\(account.value)\""))
            }
        }
        return .every(parts)
    }

    private func named(_ name: String) -> SearchPlan {
        .term(SearchField(.nodeName).term(name), label: "node \"\(name)\"")
    }

    private func service(_ selector: NodeSelector?, _ body: FilterExpression?) -> SearchPlan {
        guard let body else { return node(selector) }
        return .every([
            node(selector),
            self.body(body) { kind, bit in
                let field = SearchField(kind)
                guard let name = selector?.name?.value else {
                    return .term(field.presence, label: "a node with \(bit)")
                }
                return .term(field.term(name), label: "node \"\(name)\" with \(bit)")
            },
        ])
    }

    private func edge(_ selector: EdgeSelector?, _ body: FilterExpression?) -> SearchPlan {
        guard let selector else { return body.map { self.body($0) { _, _ in .all } } ?? .all }
        let names = (selector.source.name?.value, selector.destination.name?.value)
        let isOfClient = selector.source.reachesClients || selector.destination.reachesClients
        var parts = [node(selector.source), node(selector.destination)]
        if !isOfClient, case (let source?, let destination?) = names {
            parts.append(
                .term(SearchField(.edge).term(source, destination), label: "edge \"\(source)\" → \"\(destination)\""))
        }
        guard let body else { return .every(parts) }
        parts.append(
            self.body(body) { kind, bit in
                guard !isOfClient, case (let source?, let destination?) = names else { return .all }
                let field: SearchField
                switch kind {
                case .nodeFault: field = SearchField(.edgeFault)
                case .nodeError: field = SearchField(.edgeError)
                default: field = SearchField(.edgeThrottle)
                }
                return .term(
                    field.term(source, destination), label: "edge \"\(source)\" → \"\(destination)\" with \(bit)")
            })
        return .every(parts)
    }

    /// What the trace must have for some occurrence to satisfy the body.
    /// - Parameter outcome: plan for an occurrence with an outcome bit.
    private func body(_ body: FilterExpression, outcome: (SearchField.Kind, String) -> SearchPlan) -> SearchPlan {
        switch body {
        case .and(let parts): return .every(parts.map { self.body($0, outcome: outcome) })
        case .or(let parts): return .any(parts.map { self.body($0, outcome: outcome) })
        case .not(.test(let test)) where test.keyword == .partial:
            return wantedBool(test.condition).map { .flag(.partial, !$0) } ?? .all
        case .test(let test):
            switch test.keyword {
            case .fault where wantedBool(test.condition) == true: return outcome(.nodeFault, "fault")
            case .error where wantedBool(test.condition) == true: return outcome(.nodeError, "error")
            case .throttle where wantedBool(test.condition) == true: return outcome(.nodeThrottle, "throttle")
            case .inferred where wantedBool(test.condition) == true: return .flag(.inferred, true)
            case .partial: return flag(.partial, test.condition)
            case .name:
                guard case .compares(.equal, .string(let name)) = test.condition else { return .all }
                return named(name.value)
            default: return anywhere(test)
            }
        default: return .all
        }
    }

    private func rootCause(_ kind: CauseKind, _ level: CauseLevel, _ body: FilterExpression) -> SearchPlan {
        let names: SearchPlan
        switch (kind, level) {
        case (.responseTime, .service): names = causes(body) { self.named($0) }
        case (.responseTime, _): names = .all
        case (_, .service):
            names = causes(body) { .term(SearchField(.causeService).term($0), label: "a cause's service \"\($0)\"") }
        case (_, .entity):
            names = causes(body) { .term(SearchField(.causeEntity).term($0), label: "a cause's entity \"\($0)\"") }
        case (_, .exception):
            names = causes(body) {
                .term(SearchField(.causeException).term($0), label: "a cause's exception \"\($0)\"")
            }
        }
        switch kind {
        case .fault: return .every([.flag(.faultFlag, true), names])
        case .error: return .every([.flag(.errorFlag, true), names])
        case .responseTime: return .every([.responseTime(1...255), names])
        }
    }

    private func causes(_ body: FilterExpression, name: (String) -> SearchPlan) -> SearchPlan {
        switch body {
        case .and(let parts): return .every(parts.map { causes($0, name: name) })
        case .or(let parts): return .any(parts.map { causes($0, name: name) })
        case .test(let test):
            guard test.keyword == .name, case .compares(.equal, .string(let value)) = test.condition else {
                return .all
            }
            return name(value.value)
        default: return .all
        }
    }
}

extension SearchPlan {
    public init(_ expression: FilterExpression, groups: GroupResolver) {
        self.init(expression) { reference in
            switch reference {
            case .name(let name):
                if let group = groups.groups.last(where: { ExactString($0.name) == name }) { return group.expression }
                return name == "Default" ? .everything : nil
            case .arn(let arn):
                return groups.groups.last { ExactString($0.arn) == arn }?.expression
            }
        }
    }
}

extension SearchPlan: CustomStringConvertible {
    /// One line a node, indented: for `beamline explain`.
    public var description: String {
        var lines: [String] = []
        describe(into: &lines, indent: "")
        return lines.joined(separator: "\n")
    }

    private func describe(into lines: inout [String], indent: String) {
        switch self {
        case .all: lines.append(indent + "every trace")
        case .none: lines.append(indent + "no trace")
        case .term(_, let label), .values(_, let label): lines.append(indent + label)
        case .flag(let flag, let isSet): lines.append(indent + (isSet ? "" : "not ") + "\(flag)")
        case .responseTime(let range):
            lines.append(indent + "response time in steps \(range.lowerBound) to \(range.upperBound)")
        case .duration(let range): lines.append(indent + "duration in steps \(range.lowerBound) to \(range.upperBound)")
        case .and(let parts):
            lines.append(indent + "all of")
            for part in parts { part.describe(into: &lines, indent: indent + "  ") }
        case .or(let parts):
            lines.append(indent + "any of")
            for part in parts { part.describe(into: &lines, indent: indent + "  ") }
        }
    }
}
