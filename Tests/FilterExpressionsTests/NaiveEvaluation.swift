// What an expression means, written down a second time straight from the specification, without any thought of speed:
// every keyword is a list of values, every selector a list of places. The evaluator must agree with it.

import Segments
import TraceAssembly

@testable import FilterExpressions

/// A value of any keyword.
enum NaiveValue {
    case bool(Bool)
    case number(Double)
    case text(String)

    init(_ value: IndexedValue) {
        switch value {
        case .bool(let flag): self = .bool(flag)
        case .number(let number): self = .number(number)
        case .string(let text): self = .text(text.value)
        }
    }
}

/// One place where a body is tried: the values of every keyword there.
typealias NaivePlace = (FilterKeyword) -> [NaiveValue]

struct NaiveEvaluation {
    let forest: Forest
    let summary: TraceSummary
    /// Text and meaning of each group, by name; its ARN is the name too.
    var groups: [String: FilterExpression]
    var window: Range<Micros>?

    func matches(_ expression: FilterExpression) -> Bool { holds(expression, traceValues) }

    private func holds(_ expression: FilterExpression, _ place: NaivePlace) -> Bool {
        switch expression {
        case .everything: true
        case .not(let inner): !holds(inner, place)
        case .and(let parts): parts.map { holds($0, place) }.allSatisfy { $0 }
        case .or(let parts): parts.map { holds($0, place) }.contains(true)
        case .test(let test): holds(test, place)
        case .service(let selector, let body):
            nodePlaces.contains { node, kind, entity in
                isInWindow(entity) && (selector.map { fits($0, node, kind) } ?? (kind != .client))
                    && (body.map { holds($0) { serviceValues($0, node, kind, entity) } } ?? true)
            }
        case .edge(let selector, let body):
            edgePlaces.contains { source, sourceKind, destination, entity in
                isInWindow(entity)
                    && (selector.map {
                        fits($0.source, source, sourceKind) && fits($0.destination, destination, .segment)
                    } ?? true)
                    && (body.map { holds($0) { edgeValues($0, source, destination, entity) } } ?? true)
            }
        case .rootCause(let kind, let level, let body):
            causePlaces(kind, level).contains { holds(body, $0) }
        case .rootCauseJSON(let pattern, let isNegated):
            [summary.faultRootCauses, summary.errorRootCauses, summary.responseTimeRootCauses].contains { causes in
                let json = causes.map(causeJSON)
                return pattern.allSatisfy { element in json.contains { covers(element, $0) } }
            } != isNegated
        case .group(let reference, let isNegated):
            groupHolds(reference).map { $0 != isNegated } ?? false
        }
    }

    private func groupHolds(_ reference: GroupReference) -> Bool? {
        switch reference {
        case .name(let name):
            if name.value == "Default" { return true }
            return groups[name.value].map { holds($0, traceValues) }
        case .arn(let arn):
            return groups[arn.value].map { holds($0, traceValues) }
        }
    }

    // MARK: Tests

    private func holds(_ test: FilterTest, _ place: NaivePlace) -> Bool {
        place(test.keyword).contains { value in
            guard case .compares(let comparison, let literal) = test.condition else {
                if case .bool(let flag) = value { return flag }
                return true
            }
            switch (value, literal) {
            case (.bool(let a), .bool(let b)):
                return comparison == .equal ? a == b : a != b
            case (.number(let a), .number(let b)):
                return switch comparison {
                case .equal: a == b
                case .notEqual: a != b
                case .less: a < b
                case .lessOrEqual: a <= b
                case .greater: a > b
                default: a >= b
                }
            case (.text(let text), .string(let literal)):
                let (a, b) = (Array(text.unicodeScalars), Array(literal.value.unicodeScalars))
                return switch comparison {
                case .equal: a == b
                case .notEqual: a != b
                case .contains: (0...a.count).contains { Array(a[$0...].prefix(b.count)) == b }
                case .beginsWith: Array(a.prefix(b.count)) == b
                default: Array(a.suffix(b.count)) == b
                }
            default:
                return false
            }
        }
    }

    // MARK: Values

    private var attached: [Int32] { (0..<Int32(forest.count)).filter { forest.isAttached($0) } }

    private func traceValues(_ keyword: FilterKeyword) -> [NaiveValue] {
        switch keyword {
        case .ok: return [.bool(!summary.hasFault && !summary.hasError && !summary.hasThrottle)]
        case .error: return [.bool(summary.hasError)]
        case .throttle: return [.bool(summary.hasThrottle)]
        case .fault: return [.bool(summary.hasFault)]
        case .partial: return [.bool(summary.isPartial)]
        case .inferred: return [.bool(attached.contains { forest.isLeafCall($0) })]
        case .responseTime: return summary.responseTime.map { [.number(roundedSeconds($0))] } ?? []
        case .duration: return summary.duration.map { [.number(roundedSeconds($0))] } ?? []
        case .httpStatus: return summary.http.status.map { [.number(Double($0))] } ?? []
        case .httpURL: return texts([summary.http.url])
        case .httpMethod: return texts([summary.http.method])
        case .httpUserAgent: return texts([summary.http.userAgent])
        case .httpClientIP: return texts([summary.http.clientIP])
        case .user: return texts(summary.users.map(\.name))
        case .availabilityZone: return texts(summary.availabilityZones)
        case .instanceID: return texts(summary.instanceIDs)
        case .resourceARN: return texts(summary.resourceARNs)
        case .accountID: return texts(summary.serviceIDs.map { $0.account?.value ?? forest.trace.account.description })
        case .annotation(.here, let key):
            return summary.annotations.filter { Array($0.key.unicodeScalars) == Array(key.value.unicodeScalars) }
                .flatMap(\.values).map { NaiveValue($0.value) }
        default: return []
        }
    }

    private func texts(_ texts: [String?]) -> [NaiveValue] { texts.compactMap { $0.map(NaiveValue.text) } }

    private func entityValues(_ keyword: FilterKeyword, _ index: Int32) -> [NaiveValue] {
        let entity = forest[index]
        switch keyword {
        case .ok:
            return [.bool(!entity.outcome.isFault && !entity.outcome.isError && !entity.outcome.isThrottle)]
        case .error: return [.bool(entity.outcome.isError)]
        case .throttle: return [.bool(entity.outcome.isThrottle)]
        case .fault: return [.bool(entity.outcome.isFault)]
        case .partial: return [.bool(summary.isPartial)]
        case .responseTime: return entity.end.map { [.number(roundedSeconds(max(0, $0 - entity.start)))] } ?? []
        case .duration:
            guard let end = entity.end else { return [] }
            var ends = [end]
            if entity.kind == .segment {
                ends = attached.filter { forest.owner[Int($0)] == index }.compactMap {
                    forest[$0].end == nil || (forest[$0].end ?? 0) < forest[$0].start ? nil : forest[$0].end
                }
            }
            return [.number(roundedSeconds(max(0, (ends.max() ?? 0) - entity.start)))]
        case .httpStatus: return entity.httpStatus.map { [.number(Double($0))] } ?? []
        case .httpURL: return texts([entity.http?.url])
        case .httpMethod: return texts([entity.http?.method])
        case .httpUserAgent: return texts([entity.http?.userAgent])
        case .httpClientIP: return texts([entity.http?.clientIP])
        case .user: return texts([entity.user])
        case .availabilityZone: return texts([entity.availabilityZone])
        case .instanceID: return texts([entity.instanceID])
        case .resourceARN: return texts([entity.resourceARN])
        case .annotation(.here, let key): return annotations(key) { $0 == index }
        default: return []
        }
    }

    private func serviceValues(
        _ keyword: FilterKeyword, _ node: ServiceID, _ kind: TraceNodes.Occurrence.Kind, _ entity: Int32
    ) -> [NaiveValue] {
        switch keyword {
        case .inferred: [.bool(kind == .inferred)]
        case .root: [.bool(node == summary.entryPoint)]
        case .name: [.text(node.name.value)]
        case .type: texts([node.type?.value])
        case .annotation(.here, let key): annotations(key) { isAtOrBelow($0, entity) }
        default: entityValues(keyword, entity)
        }
    }

    private func edgeValues(
        _ keyword: FilterKeyword, _ source: ServiceID, _ destination: ServiceID, _ entity: Int32
    ) -> [NaiveValue] {
        func values(ofNode node: ServiceID, _ key: ExactString) -> [NaiveValue] {
            annotations(key) { forest.service(ofSegment: forest.owner[Int($0)]) == node }
        }
        switch keyword {
        case .annotation(.source, let key): return values(ofNode: source, key)
        case .annotation(.destination, let key): return values(ofNode: destination, key)
        default: return entityValues(keyword, entity)
        }
    }

    private func annotations(_ key: ExactString, where isCarrier: (Int32) -> Bool) -> [NaiveValue] {
        forest.indexedAnnotations().filter { $0.key == key && isCarrier($0.entity) }.map { NaiveValue($0.value) }
    }

    /// The same entity, or a subsegment of the same segment somewhere below it.
    private func isAtOrBelow(_ entity: Int32, _ top: Int32) -> Bool {
        var at = entity
        while at >= 0, forest.owner[Int(at)] == forest.owner[Int(top)] {
            if at == top { return true }
            at = forest.parent[Int(at)]
        }
        return false
    }

    // MARK: Places

    private var nodePlaces: [(ServiceID, TraceNodes.Occurrence.Kind, Int32)] {
        var places: [(ServiceID, TraceNodes.Occurrence.Kind, Int32)] = []
        for index in attached where forest.isSegment(index) {
            places.append((forest.service(ofSegment: index), .segment, index))
        }
        for index in attached where forest.isLeafCall(index) {
            places.append((forest.inferredService(ofCall: index), .inferred, index))
        }
        if let client = forest.clientService { places.append((client, .client, forest.root)) }
        return places
    }

    private var edgePlaces: [(ServiceID, TraceNodes.Occurrence.Kind, ServiceID, Int32)] {
        var places: [(ServiceID, TraceNodes.Occurrence.Kind, ServiceID, Int32)] = []
        if let client = forest.clientService { places.append((client, .client, summary.entryPoint, forest.root)) }
        for index in attached {
            let above = forest.parent[Int(index)]
            guard above >= 0 else { continue }
            let caller = forest.service(ofSegment: forest.owner[Int(above)])
            if forest.isSegment(index) {
                places.append(
                    (caller, .segment, forest.service(ofSegment: index), forest[above].isRemoteCall ? above : index))
            } else if forest.isLeafCall(index) {
                places.append((caller, .segment, forest.inferredService(ofCall: index), index))
            }
        }
        return places
    }

    private func fits(_ selector: NodeSelector, _ node: ServiceID, _ kind: TraceNodes.Occurrence.Kind) -> Bool {
        if kind == .client, selector.type != "client" { return false }
        let account = node.account ?? ExactString(forest.trace.account.description)
        return (selector.name ?? node.name) == node.name && (selector.type == nil || selector.type == node.type)
            && (selector.accountID ?? account) == account
    }

    private func isInWindow(_ entity: Int32) -> Bool {
        window.map { window in forest[entity].end.map(window.contains) ?? false } ?? true
    }

    // MARK: Root causes

    private func causePlaces(_ kind: CauseKind, _ level: CauseLevel) -> [NaivePlace] {
        let causes =
            switch kind {
            case .fault: summary.faultRootCauses
            case .error: summary.errorRootCauses
            case .responseTime: summary.responseTimeRootCauses
            }
        func place(_ index: Int, _ count: Int, _ values: [FilterKeyword: NaiveValue?]) -> NaivePlace {
            { keyword in
                switch keyword {
                case .first: [.bool(index == 0)]
                case .last: [.bool(index + 1 == count)]
                case .index: [.number(Double(index))]
                default: [values[keyword] ?? nil].compactMap { $0 }
                }
            }
        }
        let services = causes.map(\.services)
        let entities = services.flatMap { $0 }.map(\.path)
        switch level {
        case .service:
            return services.flatMap { list in
                list.enumerated().map { index, service in
                    place(
                        index, list.count,
                        [
                            .name: .text(service.service.name.value),
                            .type: service.service.type.map { .text($0.value) },
                            .accountID: .text(service.service.account?.value ?? forest.trace.account.description),
                            .inferred: .bool(service.isInferred),
                        ])
                }
            }
        case .entity:
            return entities.flatMap { list in
                list.enumerated().map { index, entity in
                    place(
                        index, list.count,
                        [
                            .name: .text(entity.name), .remote: .bool(entity.isRemote),
                            .coverage: entity.coverage.map { .number($0) },
                        ])
                }
            }
        case .exception:
            return entities.flatMap { $0 }.map(\.exceptions).flatMap { list in
                list.enumerated().map { index, exception in
                    place(
                        index, list.count,
                        [.name: exception.name.map { .text($0) }, .message: exception.message.map { .text($0) }])
                }
            }
        }
    }

    private func causeJSON(_ cause: RootCause) -> FilterJSON {
        func object(_ members: [(ExactString, FilterJSON?)]) -> FilterJSON {
            .object(Dictionary(uniqueKeysWithValues: members.compactMap { key, value in value.map { (key, $0) } }))
        }
        func text(_ text: String?) -> FilterJSON? { text.map { .string(ExactString($0)) } }
        return object([
            ("ClientImpacting", .bool(cause.isClientImpacting)),
            (
                "Services",
                .array(
                    cause.services.map { service in
                        object([
                            ("Name", .string(service.service.name)), ("Names", .array([.string(service.service.name)])),
                            ("Type", .string(service.service.type ?? "")),
                            ("AccountId", service.service.account.map { .string($0) }),
                            ("Inferred", .bool(service.isInferred)),
                            (
                                "EntityPath",
                                .array(
                                    service.path.map { entity in
                                        object([
                                            ("Name", text(entity.name)), ("Remote", .bool(entity.isRemote)),
                                            ("Coverage", entity.coverage.map { .number($0) }),
                                            (
                                                "Exceptions",
                                                entity.coverage != nil
                                                    ? nil
                                                    : .array(
                                                        entity.exceptions.map {
                                                            object([
                                                                ("Name", text($0.name)), ("Message", text($0.message)),
                                                            ])
                                                        })
                                            ),
                                        ])
                                    })
                            ),
                        ])
                    })
            ),
        ])
    }

    /// Tries every subsequence.
    private func covers(_ pattern: FilterJSON, _ value: FilterJSON) -> Bool {
        switch (pattern, value) {
        case (.object(let wanted), .object(let members)):
            return wanted.allSatisfy { key, pattern in members[key].map { covers(pattern, $0) } ?? false }
        case (.array(let wanted), .array(let elements)):
            guard let first = wanted.first else { return true }
            return elements.indices.contains { index in
                covers(first, elements[index])
                    && covers(.array(Array(wanted.dropFirst())), .array(Array(elements[(index + 1)...])))
            }
        default:
            return pattern == value
        }
    }
}
