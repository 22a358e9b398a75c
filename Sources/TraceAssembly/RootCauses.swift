// Why a trace failed and where its time went (`traces.md` §5, §6). In: a forest. Out: `FaultRootCauses`,
// `ErrorRootCauses` and `ResponseTimeRootCauses` of its summary. Works on raw flags, not on outcomes (ruling R-03).

import Segments

public struct RootCause: Sendable, Equatable {
    /// The cause starts at the root of the trace.
    public var isClientImpacting: Bool
    public var services: [RootCauseService]
}

public struct RootCauseService: Sendable, Equatable {
    public var service: ServiceID
    public var isInferred: Bool
    public var path: [RootCauseEntity]
}

public struct RootCauseEntity: Sendable, Equatable {
    public var name: String
    /// It is a remote call (and not the service inferred from one).
    public var isRemote: Bool
    /// Fault and error causes only.
    public var exceptions: [RootCauseException] = []
    /// Response-time causes only: entity duration / root duration, 0…1, rounded half up to three decimals.
    public var coverage: Double?
}

public struct RootCauseException: Sendable, Equatable {
    public var name: String?
    public var message: String?
}

/// Which raw flag the causes are looked for.
public enum RootCauseFlag: Sendable { case fault, error }

extension Forest {
    /// Fault or error root causes by start, then id of their heads. Linear in the trace but for sorting.
    public func rootCauses(of flag: RootCauseFlag) -> [RootCause] {
        var flagged = [Bool](repeating: false, count: count)
        var isAnyFlagged = false
        for index in 0..<count where owner[index] >= 0 {
            let isFlagged =
                flag == .fault ? trace.entities[index].entity.hasFaultFlag : trace.entities[index].entity.hasErrorFlag
            flagged[index] = isFlagged
            isAnyFlagged = isAnyFlagged || isFlagged
        }
        guard isAnyFlagged else { return [] }
        let steps = rootCauseSteps(flagged)
        var causes: [RootCause] = []
        for index in attachedInOrder() where flagged[Int(index)] && isHead(index, flagged) {
            if let cause = rootCause(from: index, steps: steps) { causes.append(cause) }
        }
        return causes
    }

    /// A flagged segment or leaf call whose logical parent is not flagged (R-23: the owner's flag does not matter).
    private func isHead(_ index: Int32, _ flagged: [Bool]) -> Bool {
        guard isSegment(index) || isLeafCall(index) else { return false }
        var above = parent[Int(index)]
        // A segment called through a remote call: what counts is whoever made the call.
        if above >= 0, isSegment(index), trace.entities[Int(above)].entity.isRemoteCall { above = parent[Int(above)] }
        return above < 0 || !flagged[Int(above)]
    }

    /// Where the walk goes from each flagged entity. It depends on the entity alone, so it is settled from the leaves
    /// up, once, and every walk is then a chain.
    private enum Step { case nothing, emit, follow(Int32) }

    private func rootCauseSteps(_ flagged: [Bool]) -> [Step] {
        var steps = [Step](repeating: .nothing, count: count)
        func yields(_ index: Int32) -> Bool {
            if case .nothing = steps[Int(index)] { false } else { true }
        }
        let (order, first, end) = depthFirst()
        var describers: [EntityID: Int32]?

        for index in order.reversed() where flagged[Int(index)] {
            if isLeafCall(index) {
                steps[Int(index)] = .emit
                continue
            }
            let own: [ExceptionDescription]
            var target: Int32?
            var isReference = true
            switch trace.entities[Int(index)].entity.cause {
            case .exceptionReference(let id):
                own = []
                let known = describers ?? exceptionDescribers()
                describers = known
                target = known[id]
            case .reference(let id, let exceptions):
                own = exceptions
                let known = describers ?? exceptionDescribers()
                describers = known
                target = known[id] ?? trace.indexes[id]
            case .unresolvable:
                own = []
            case .exceptions(let exceptions):
                own = exceptions
                isReference = false
            case nil:
                own = []
                isReference = false
            }
            if isReference {
                // Only the child leading to the exception, and only if flagged (ruling R-35). An entity that refers to
                // itself is where the exception is.
                guard let target else { continue }
                if target == index {
                    if !own.isEmpty { steps[Int(index)] = .emit }
                } else if first[Int(target)] > first[Int(index)], first[Int(target)] < end[Int(index)] {
                    let child = childLeading(from: index, toPosition: first[Int(target)], end: end)
                    if flagged[Int(child)], yields(child) { steps[Int(index)] = .follow(child) }
                }
                continue
            }
            let below = children(of: index)
            let candidate =
                below.first { flagged[Int($0)] && isLeafCall($0) } ?? below.first { flagged[Int($0)] && yields($0) }
            if let candidate {
                steps[Int(index)] = .follow(candidate)
            } else if !own.isEmpty {
                steps[Int(index)] = .emit
            }
        }
        return steps
    }

    /// Entity describing each exception id; of several the first by start, then id.
    private func exceptionDescribers() -> [EntityID: Int32] {
        var result: [EntityID: Int32] = [:]
        for index in attachedInOrder() {
            for exception in exceptions(of: index) {
                guard let id = exception.id, result[id] == nil else { continue }
                result[id] = index
            }
        }
        return result
    }

    private func exceptions(of index: Int32) -> [ExceptionDescription] {
        switch trace.entities[Int(index)].entity.cause {
        case .exceptions(let exceptions), .reference(_, let exceptions): exceptions
        case .exceptionReference, .unresolvable, nil: []
        }
    }

    /// The child whose subtree holds a depth-first position. Children stand in depth-first order: binary search.
    private func childLeading(from index: Int32, toPosition position: Int32, end: [Int32]) -> Int32 {
        let row = children(of: index)
        var low = row.startIndex
        var high = row.endIndex - 1
        while low < high {
            let middle = (low + high) / 2
            if end[Int(row[middle])] > position { high = middle } else { low = middle + 1 }
        }
        return row[low]
    }

    private func rootCause(from head: Int32, steps: [Step]) -> RootCause? {
        var path = RootCausePath(forest: self)
        if isLeafCall(head) {
            path.appendInferred(head, coverage: nil)
            return RootCause(isClientImpacting: false, services: path.services)
        }
        var at = head
        while true {
            let exceptions = exceptions(of: at).map { RootCauseException(name: $0.type, message: $0.message) }
            path.append(at, exceptions: exceptions, coverage: nil)
            switch steps[Int(at)] {
            case .nothing:
                return nil
            case .emit:
                if isLeafCall(at) { path.appendInferred(at, coverage: nil) }
                return RootCause(isClientImpacting: head == root, services: path.services)
            case .follow(let child):
                at = child
            }
        }
    }

    /// The chain of longest children that each take more than half of the root's time; nil when there is none.
    public func responseTimeRootCause() -> RootCause? {
        guard root >= 0, let total = responseTime(of: root), total > 0 else { return nil }
        var path = RootCausePath(forest: self)
        path.append(root, exceptions: [], coverage: 1)
        var at = root
        while true {
            var longest: Int32 = -1
            var longestTime: Micros = 0
            for child in children(of: at) {
                // More than half without overflow: time > total - time.
                guard let time = responseTime(of: child), time <= total, time > total - time, time > longestTime else {
                    continue
                }
                longest = child
                longestTime = time
            }
            guard longest >= 0 else { break }
            let coverage = roundedRatio(longestTime, of: total)
            path.append(longest, exceptions: [], coverage: coverage)
            at = longest
            if isLeafCall(longest) {
                path.appendInferred(longest, coverage: coverage)
                break
            }
        }
        guard at != root else { return nil }
        return RootCause(isClientImpacting: true, services: path.services)
    }

    private func roundedRatio(_ part: Micros, of total: Micros) -> Double {
        let thousandths = (Int128(part) * 2_000 + Int128(total)) / (Int128(total) * 2)
        return Double(Int64(thousandths)) / 1_000
    }
}

/// A path under construction: entities gathered into services; a service that calls itself stays one (ruling R-34).
private struct RootCausePath {
    let forest: Forest
    private(set) var services: [RootCauseService] = []
    private var lastOwner: Int32 = -1

    init(forest: Forest) { self.forest = forest }

    mutating func append(_ index: Int32, exceptions: [RootCauseException], coverage: Double?) {
        let owner = forest.owner[Int(index)]
        if owner != lastOwner {
            lastOwner = owner
            let service = forest.service(ofSegment: owner)
            if services.last?.service != service {
                services.append(RootCauseService(service: service, isInferred: false, path: []))
            }
        }
        let entity = RootCauseEntity(
            name: forest[index].name, isRemote: forest[index].isRemoteCall, exceptions: exceptions, coverage: coverage)
        services[services.count - 1].path.append(entity)
    }

    mutating func appendInferred(_ call: Int32, coverage: Double?) {
        let entity = RootCauseEntity(name: forest[call].name, isRemote: false, coverage: coverage)
        services.append(
            RootCauseService(service: forest.inferredService(ofCall: call), isInferred: true, path: [entity]))
    }
}
