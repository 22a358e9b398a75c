// What expressions ask of one trace. In: its forest, and its summary where that is at hand. Out: values of keywords for
// the trace, for one occurrence of a node or of an edge, and for one element of a root cause. Nodes, annotations and
// root causes are worked out when a test first asks for them: most expressions never do.

import Segments
import TraceAssembly

/// The facts of one trace, to test any number of expressions against. Belongs to one task.
///
/// It holds the forest, and with it the trace's storage: drop it before folding the next document.
public final class TraceFacts {
    let forest: Forest
    private let summary: TraceSummary?

    /// - Parameter summary: the summary of the same forest; saves working out root causes again.
    public init(forest: Forest, summary: TraceSummary? = nil) {
        self.forest = forest
        self.summary = summary
    }

    private(set) lazy var nodes = TraceNodes(forest)
    private(set) lazy var annotations = TraceAnnotations(forest)
    private(set) lazy var annotationsOfNodes = annotations.perNode(nodes)
    private lazy var faultCauses = summary?.faultRootCauses ?? forest.rootCauses(of: .fault)
    private lazy var errorCauses = summary?.errorRootCauses ?? forest.rootCauses(of: .error)
    private lazy var responseTimeCauses =
        summary?.responseTimeRootCauses ?? forest.responseTimeRootCause().map { [$0] } ?? []
    /// As the API sends them, one list per kind.
    private(set) lazy var rootCauseJSON = CauseKind.allCases.map { rootCauses(of: $0).map(FilterJSON.init) }

    func rootCauses(of kind: CauseKind) -> [RootCause] {
        switch kind {
        case .fault: faultCauses
        case .error: errorCauses
        case .responseTime: responseTimeCauses
        }
    }
}

/// What a test is about.
enum Subject {
    case trace
    /// Indexes into `TraceNodes.occurrences` and `.connections`.
    case occurrence(Int)
    case connection(Int)
    case cause(CauseElement)
}

/// One service, entity or exception of a root cause, and where it stands in its list.
struct CauseElement {
    var name: String?
    var type: String?
    var accountID: String?
    var message: String?
    var isInferred = false
    var isRemote = false
    var coverage: Double?
    var index: Int
    var count: Int
}

// MARK: - Values of keywords

// The type check let only keywords through that are known where they stand; the others have no value here.
extension TraceFacts {
    func flag(_ keyword: FilterKeyword, of subject: Subject) -> Bool? {
        if case .cause(let element) = subject {
            switch keyword {
            case .inferred: return element.isInferred
            case .remote: return element.isRemote
            case .first: return element.index == 0
            case .last: return element.index == element.count - 1
            default: return nil
            }
        }
        switch keyword {
        case .partial: return forest.isPartial
        case .ok, .error, .throttle, .fault: return outcome(keyword, of: entity(of: subject))
        case .inferred:
            guard case .occurrence(let index) = subject else {
                return (0..<Int32(forest.count)).contains { forest.isLeafCall($0) }
            }
            return nodes.occurrences[index].kind == .inferred
        case .root:
            guard case .occurrence(let index) = subject else { return nil }
            return nodes.occurrences[index].node == nodes.root
        default: return nil
        }
    }

    private func outcome(_ keyword: FilterKeyword, of entity: Int32) -> Bool? {
        let outcome = forest.trace.entities[Int(entity)].entity.outcome
        switch keyword {
        case .error: return outcome.isError
        case .throttle: return outcome.isThrottle
        case .fault: return outcome.isFault
        default: return !outcome.isError && !outcome.isThrottle && !outcome.isFault
        }
    }

    func number(_ keyword: FilterKeyword, of subject: Subject) -> Double? {
        if case .cause(let element) = subject {
            switch keyword {
            case .index: return Double(element.index)
            case .coverage: return element.coverage
            default: return nil
            }
        }
        let entity = entity(of: subject)
        switch keyword {
        case .httpStatus: return forest.trace.entities[Int(entity)].entity.httpStatus.map(Double.init)
        case .responseTime: return forest.responseTime(of: entity).map(roundedSeconds)
        case .duration:
            if case .trace = subject { return forest.hasOpenEntity ? nil : forest.traceDuration.map(roundedSeconds) }
            let duration =
                forest.isSegment(entity) ? forest.serviceDuration(of: entity) : forest.responseTime(of: entity)
            return duration.map(roundedSeconds)
        default: return nil
        }
    }

    /// Whether some value of a text keyword satisfies `condition`.
    func hasText(_ keyword: FilterKeyword, of subject: Subject, where condition: (String) -> Bool) -> Bool {
        if case .cause(let element) = subject {
            switch keyword {
            case .name: return element.name.map(condition) ?? false
            case .type: return element.type.map(condition) ?? false
            case .accountID: return element.accountID.map(condition) ?? false
            case .message: return element.message.map(condition) ?? false
            default: return false
            }
        }
        switch (keyword, subject) {
        case (.user, .trace), (.availabilityZone, .trace), (.instanceID, .trace), (.resourceARN, .trace):
            // Only segments have them, so a trace has those of its segments.
            return (0..<Int32(forest.count)).contains { index in
                forest.owner[Int(index)] == index && text(keyword, ofEntity: index).map(condition) ?? false
            }
        case (.accountID, .trace):
            return nodes.nodes.contains { condition($0.accountID.value) }
        case (.name, .occurrence(let index)):
            return condition(nodes.node(ofOccurrence: index).name.value)
        case (.type, .occurrence(let index)):
            return (nodes.node(ofOccurrence: index).type?.value).map(condition) ?? false
        default:
            return text(keyword, ofEntity: entity(of: subject)).map(condition) ?? false
        }
    }

    private func text(_ keyword: FilterKeyword, ofEntity index: Int32) -> String? {
        switch keyword {
        case .httpURL: forest.trace.entities[Int(index)].entity.http?.url
        case .httpMethod: forest.trace.entities[Int(index)].entity.http?.method
        case .httpUserAgent: forest.trace.entities[Int(index)].entity.http?.userAgent
        case .httpClientIP: forest.trace.entities[Int(index)].entity.http?.clientIP
        case .user: forest.trace.entities[Int(index)].entity.user
        case .availabilityZone: forest.trace.entities[Int(index)].entity.availabilityZone
        case .instanceID: forest.trace.entities[Int(index)].entity.instanceID
        case .resourceARN: forest.trace.entities[Int(index)].entity.resourceARN
        default: nil
        }
    }

    /// Whether some value of the annotation satisfies `condition`.
    func hasAnnotation(
        _ place: AnnotationPlace, key: ExactString, of subject: Subject, where condition: (IndexedValue) -> Bool
    ) -> Bool {
        let carried: UInt64
        switch (subject, place) {
        case (.trace, _): carried = .max
        case (.occurrence(let index), _): carried = annotations.below(nodes.occurrences[index].entity)
        case (.connection(let index), .here): carried = annotations.own(nodes.connections[index].entity)
        case (.connection(let index), .source): carried = annotationsOfNodes[nodes.connections[index].source]
        case (.connection(let index), .destination): carried = annotationsOfNodes[nodes.connections[index].destination]
        case (.cause, _): return false
        }
        guard carried != 0 else { return false }
        for (number, pair) in annotations.pairs.enumerated()
        where carried & (1 << UInt64(number)) != 0 && pair.key == key && condition(pair.value) {
            return true
        }
        return false
    }

    /// The entity whose fields count: of a trace its root.
    private func entity(of subject: Subject) -> Int32 {
        switch subject {
        case .occurrence(let index): nodes.occurrences[index].entity
        case .connection(let index): nodes.connections[index].entity
        case .trace, .cause: forest.root
        }
    }

    /// Whether some element of the root causes satisfies `condition`.
    func hasCauseElement(_ kind: CauseKind, _ level: CauseLevel, where condition: (CauseElement) -> Bool) -> Bool {
        for cause in rootCauses(of: kind) {
            for (position, service) in cause.services.enumerated() {
                if level == .service {
                    let id = service.service
                    let element = CauseElement(
                        name: id.name.value, type: id.type?.value,
                        accountID: id.account?.value ?? forest.trace.account.description,
                        isInferred: service.isInferred, index: position, count: cause.services.count)
                    if condition(element) { return true }
                    continue
                }
                for (position, entity) in service.path.enumerated() {
                    if level == .entity {
                        let element = CauseElement(
                            name: entity.name, isRemote: entity.isRemote, coverage: entity.coverage, index: position,
                            count: service.path.count)
                        if condition(element) { return true }
                        continue
                    }
                    for (position, exception) in entity.exceptions.enumerated() {
                        let element = CauseElement(
                            name: exception.name, message: exception.message, index: position,
                            count: entity.exceptions.count)
                        if condition(element) { return true }
                    }
                }
            }
        }
        return false
    }
}
