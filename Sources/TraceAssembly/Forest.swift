// A trace as a forest: who is whose parent, who belongs to which segment, what is attached (`traces.md` §1, §2).
// In: a folded trace. Out: flat arrays over the entities' indexes in `trace.entities`. Callers: summaries, documents,
// graph contributions, filters. Nothing recurses, so a chain of thousands of entities is as good as a bush.

import Segments

/// The links of one trace, all by index into `trace.entities`; -1 stands for none.
///
/// It shares the trace's storage: drop it before folding the next document, or the fold copies every entity.
public struct Forest: Sendable {
    public let trace: Trace

    /// The entity above; -1 when there is none, it is unknown, or the entity itself is unattached. Always an attached
    /// entity: an unattached subsegment is nobody's parent (ruling R-01). Free of cycles (ruling R-26).
    public private(set) var parent: [Int32]
    /// The nearest segment at or above the entity through subsegments only; -1 when it is unattached.
    public private(set) var owner: [Int32]
    /// The trace's root segment; -1 when the trace has no segment.
    public private(set) var root: Int32 = -1
    /// Anything open, missing or awaited (`IsPartial`; rulings ).
    public private(set) var isPartial = false
    /// Some attached entity is open.
    public private(set) var hasOpenEntity = false
    /// The parent of some stored entity is not there (or is unattached).
    public private(set) var hasMissingParent = false
    /// Earliest start over attached entities; nil when nothing is attached.
    public private(set) var earliestStart: Micros?
    /// Latest valid end (not before its start) over attached entities.
    public private(set) var latestEnd: Micros?
    /// Some attached entity has ended, validly or not.
    public private(set) var hasEnded = false
    public private(set) var segmentCount = 0

    /// Children of i are `childList[childOffsets[i]..<childOffsets[i + 1]]`.
    private var childOffsets: [Int32]
    private var childList: [Int32]
    /// Latest valid end of a segment's service, at least its start; meaningless for subsegments.
    private var serviceEnds: [Micros]
    /// Remote calls that some segment names as parent.
    private var resolved: [Bool]

    public init(_ trace: Trace) {
        self.trace = trace
        let count = trace.entities.count
        parent = Forest.statedParents(of: trace)
        let stated = parent
        Forest.cutCycles(&parent)
        owner = Forest.owners(in: trace, parents: parent)
        childOffsets = [Int32](repeating: 0, count: count + 1)
        childList = []
        serviceEnds = [Micros](repeating: 0, count: count)
        resolved = [Bool](repeating: false, count: count)
        link(stated: stated)
        sortChildren()
        measure()
    }
}

// MARK: - Building

extension Forest {
    /// Index of the entity each one names as parent, stored or -1.
    private static func statedParents(of trace: Trace) -> [Int32] {
        var result = [Int32](repeating: -1, count: trace.entities.count)
        // Siblings come in rows: most look-ups are of the id looked up just before.
        var lastID: EntityID?
        var lastIndex: Int32 = -1
        trace.entities.withUnsafeBufferPointer { entities in
            for index in 0..<entities.count {
                guard let parentID = entities[index].entity.parentID else { continue }
                if parentID != lastID {
                    lastID = parentID
                    lastIndex = trace.indexes[parentID] ?? -1
                }
                result[index] = lastIndex
            }
        }
        return result
    }

    /// Drops the link of the latest-seen entity of every cycle; an entity that is its own parent is a cycle of one.
    private static func cutCycles(_ parents: inout [Int32]) {
        // Where every parent was seen before its child there is no cycle, and that is nearly every trace.
        guard parents.indices.contains(where: { Int(parents[$0]) >= $0 }) else { return }
        var walk = [Int32](repeating: -1, count: parents.count)
        for start in parents.indices {
            var at = Int32(start)
            while at >= 0, walk[Int(at)] < 0 {
                walk[Int(at)] = Int32(start)
                at = parents[Int(at)]
            }
            guard at >= 0, walk[Int(at)] == Int32(start) else { continue }
            // This walk came back to itself: once around the cycle for its latest member.
            var latest = at
            var next = parents[Int(at)]
            while next != at {
                latest = max(latest, next)
                next = parents[Int(next)]
            }
            parents[Int(latest)] = -1
        }
    }

    private static func owners(in trace: Trace, parents: [Int32]) -> [Int32] {
        let unknown: Int32 = -2
        var owner = [Int32](repeating: unknown, count: parents.count)
        trace.entities.withUnsafeBufferPointer { entities in
            for index in 0..<entities.count where entities[index].entity.kind == .segment {
                owner[index] = Int32(index)
            }
        }
        for start in owner.indices where owner[start] == unknown {
            var at = Int32(start)
            while at >= 0, owner[Int(at)] == unknown { at = parents[Int(at)] }
            let found = at < 0 ? -1 : owner[Int(at)]
            at = Int32(start)
            while at >= 0, owner[Int(at)] == unknown {
                owner[Int(at)] = found
                at = parents[Int(at)]
            }
        }
        return owner
    }

    /// Settles parents, counts children, and finds the root and what is missing.
    private mutating func link(stated: [Int32]) {
        var fallbackRoot: Int32 = -1
        for index in 0..<trace.entities.count {
            let isSegment = owner[index] == Int32(index)
            let above = parent[index]
            if stated[index] < 0, trace.entities[index].entity.parentID != nil { hasMissingParent = true }
            if owner[index] < 0 {
                parent[index] = -1
                continue
            }
            if above >= 0, owner[Int(above)] < 0 {
                parent[index] = -1
                hasMissingParent = true
            }
            let settled = parent[index]
            if settled >= 0 { childOffsets[Int(settled) + 1] += 1 }
            guard isSegment else { continue }
            segmentCount += 1
            if trace.entities[index].entity.parentID == nil {
                if root < 0 || precedes(Int32(index), root) { root = Int32(index) }
            } else if settled < 0 {
                if fallbackRoot < 0 || precedes(Int32(index), fallbackRoot) { fallbackRoot = Int32(index) }
            } else if isRemoteCall(settled) {
                resolved[Int(settled)] = true
            }
        }
        if root < 0 { root = fallbackRoot }
    }

    private mutating func sortChildren() {
        let count = parent.count
        for index in 0..<count { childOffsets[index + 1] += childOffsets[index] }
        childList = [Int32](repeating: 0, count: Int(childOffsets[count]))
        guard !childList.isEmpty else { return }
        var next = childOffsets
        for index in 0..<count where parent[index] >= 0 {
            let above = Int(parent[index])
            childList[Int(next[above])] = Int32(index)
            next[above] += 1
        }
        // Children mostly come in order of start already; sort only the rows that do not.
        var list = childList
        childList = []
        for index in 0..<count {
            let low = Int(childOffsets[index])
            let high = Int(childOffsets[index + 1])
            guard high - low > 1 else { continue }
            var isSorted = true
            for position in low + 1..<high where precedes(list[position], list[position - 1]) {
                isSorted = false
                break
            }
            if !isSorted { list[low..<high].sort { precedes($0, $1) } }
        }
        childList = list
    }

    /// Times over attached entities, service ends, and whether the trace is partial.
    private mutating func measure() {
        var first = Micros.max
        var last = Micros.min
        var isAwaited = false
        trace.entities.withUnsafeBufferPointer { entities in
            for index in 0..<entities.count where owner[index] == Int32(index) {
                serviceEnds[index] = entities[index].entity.start
            }
            for index in 0..<entities.count where owner[index] >= 0 {
                let start = entities[index].entity.start
                if start < first { first = start }
                if let end = entities[index].entity.end {
                    hasEnded = true
                    if end >= start {
                        if end > last { last = end }
                        let segment = Int(owner[index])
                        if end > serviceEnds[segment] { serviceEnds[segment] = end }
                    }
                } else {
                    hasOpenEntity = true
                }
                if entities[index].entity.isTraced, !resolved[index], isRemoteCall(Int32(index)) {
                    isAwaited = true
                }
            }
        }
        if first != .max { earliestStart = first }
        if last != .min { latestEnd = last }
        isPartial = hasOpenEntity || hasMissingParent || isAwaited
    }
}

// MARK: - Asking

extension Forest {
    public subscript(_ index: Int32) -> Entity {
        _read { yield trace.entities[Int(index)].entity }
    }

    public var count: Int { parent.count }

    /// The one order of entities everywhere: by start, then id.
    public func precedes(_ a: Int32, _ b: Int32) -> Bool {
        let startA = trace.entities[Int(a)].entity.start
        let startB = trace.entities[Int(b)].entity.start
        if startA != startB { return startA < startB }
        return trace.entities[Int(a)].entity.id < trace.entities[Int(b)].entity.id
    }

    /// Attached subsegments and callee segments under an entity, by start, then id.
    public func children(of index: Int32) -> ArraySlice<Int32> {
        childList[Int(childOffsets[Int(index)])..<Int(childOffsets[Int(index) + 1])]
    }

    public func isSegment(_ index: Int32) -> Bool { trace.entities[Int(index)].entity.kind == .segment }

    public func isAttached(_ index: Int32) -> Bool { owner[Int(index)] >= 0 }

    /// An attached remote call that no segment names as parent: it stands for an inferred service.
    public func isLeafCall(_ index: Int32) -> Bool {
        owner[Int(index)] >= 0 && !resolved[Int(index)] && isRemoteCall(index)
    }

    /// `Entity.isRemoteCall`, from its fields: asking the entity would copy it.
    private func isRemoteCall(_ index: Int32) -> Bool {
        trace.entities.withUnsafeBufferPointer {
            $0[Int(index)].entity.kind == .subsegment && $0[Int(index)].entity.namespace != .none
        }
    }

    /// An attached remote call that some segment names as parent.
    public func isResolvedCall(_ index: Int32) -> Bool { resolved[Int(index)] }

    /// The segments that name the entity as their parent, by start, then id.
    public func callees(of index: Int32) -> [Int32] { children(of: index).filter { isSegment($0) } }

    /// A segment that names a parent which is not stored, is unattached, or was cut out of a cycle.
    public func hasUnknownParent(_ index: Int32) -> Bool {
        owner[Int(index)] == index && parent[Int(index)] < 0 && trace.entities[Int(index)].entity.parentID != nil
    }

    /// End − start of an entity in microseconds: nil while open, 0 when it ended before it started.
    public func responseTime(of index: Int32) -> Micros? {
        guard let end = trace.entities[Int(index)].entity.end else { return nil }
        return max(0, end - trace.entities[Int(index)].entity.start)
    }

    /// Latest valid end of a segment and its own subsegments, at least its start; nil while it is open (ruling R-09).
    public func serviceEnd(of segment: Int32) -> Micros? {
        trace.entities[Int(segment)].entity.isOpen ? nil : serviceEnds[Int(segment)]
    }

    /// Service duration of a segment in microseconds (`traces.md` §2); nil while it is open.
    public func serviceDuration(of segment: Int32) -> Micros? {
        serviceEnd(of: segment).map { $0 - trace.entities[Int(segment)].entity.start }
    }

    /// `Trace.Duration` in microseconds: nil while nothing has ended, 0 when every end is invalid (ruling R-08).
    public var traceDuration: Micros? {
        guard hasEnded, let earliestStart else { return nil }
        guard let latestEnd else { return 0 }
        return latestEnd - earliestStart
    }

    /// All attached entities by start, then id: the order of "first appearance" in lists of a summary.
    public func attachedInOrder() -> [Int32] { inOrder { owner[Int($0)] >= 0 } }

    /// All segments by start, then id.
    public func segmentsInOrder() -> [Int32] { inOrder { owner[Int($0)] == $0 } }

    private func inOrder(_ isWanted: (Int32) -> Bool) -> [Int32] {
        var list = (0..<Int32(count)).filter(isWanted)
        var isSorted = true
        for position in list.indices.dropFirst() where precedes(list[position], list[position - 1]) {
            isSorted = false
            break
        }
        if !isSorted { list.sort { precedes($0, $1) } }
        return list
    }

    /// All attached entities, every one before its children, siblings by start, then id.
    /// - Returns: `order`, and for each entity the position in it and one past the last position of its subtree (both 0
    ///   when it is unattached).
    func depthFirst() -> (order: [Int32], first: [Int32], end: [Int32]) {
        var order: [Int32] = []
        order.reserveCapacity(count)
        var first = [Int32](repeating: 0, count: count)
        var end = [Int32](repeating: 0, count: count)
        var stack: [Int32] = segmentsInOrder().filter { parent[Int($0)] < 0 }.reversed()
        while let index = stack.popLast() {
            first[Int(index)] = Int32(order.count)
            order.append(index)
            stack.append(contentsOf: children(of: index).reversed())
        }
        // Children stand after their parent, so going backwards every subtree is finished before its parent asks.
        for index in order.reversed() {
            end[Int(index)] = max(end[Int(index)], first[Int(index)] + 1)
            let above = parent[Int(index)]
            if above >= 0 { end[Int(above)] = max(end[Int(above)], end[Int(index)]) }
        }
        return (order, first, end)
    }
}

/// Seconds as they are sent: microseconds rounded half up to three decimals (`traces.md` §2, ruling R-24).
public func roundedSeconds(_ micros: Micros) -> Double {
    Double(roundedMillis(micros)) / 1000
}

/// Microseconds rounded half up to milliseconds.
public func roundedMillis(_ micros: Micros) -> Int64 {
    let (quotient, remainder) = micros.quotientAndRemainder(dividingBy: 1000)
    if remainder >= 500 { return quotient + 1 }
    return remainder < -500 ? quotient - 1 : quotient
}
