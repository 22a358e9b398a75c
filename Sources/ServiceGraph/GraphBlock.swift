// Graph blocks: the contributions to one span of seconds (normally a minute) of one account as bytes. A block names its
// nodes itself and adds up with any other block; equal sums are equal bytes. Counts may be negative (taken back).
// Written by the aggregator and the compactor, read by queries.
//
// Layout (integers are LEB128, signed ones zigzag; "index" counts from 0):
//   version, flags, base second (signed), span in seconds
//   strings: count, then each as length + UTF-8, ascending
//   labels: count, then (name index, type index + 1 or 0), ascending          -- (name, type), also aliases
//   nodes: count, then (label index, account index), ascending
//   edges: count, then (source node, destination node · 2 + is link), ascending
//   per node, then per edge: number of groups, then the groups by ascending second
//   sightings: number of runs, then per run (edge, label, count, then (offset, base − start, id, count))
// A group holds what was observed in one second, either a single observation or lists (`BlockWriter.write`).

import Segments

/// Bytes of the contributions to one span of seconds.
public struct GraphBlock: Sendable, Equatable {
    /// First second of the span; a multiple of `spanSeconds`.
    public var baseSecond: Int64
    public var spanSeconds: Int64
    public var bytes: [UInt8]

    /// Seconds / 60, for blocks of a minute.
    public var minute: Int64 { floorDivide(baseSecond, by: 60) }

    enum Format {
        static let version: UInt8 = 1
        /// Some count is negative: the block corrects others of its span.
        static let hasNegatives: UInt8 = 1
        /// Seconds are dropped, and of the facts that are only there (`presence`, sightings) the extremes are kept.
        static let isRollUp: UInt8 = 2
        static let minuteSpan: Int64 = 60
    }
}

/// What was observed of one subject in one second, as lists that add up entry by entry.
struct GraphGroup {
    /// A trace's view of the nodes of an observation: flags and the second its root started.
    struct Presence {
        var rootStart: Int64
        var flags: UInt8
        var count: Int64
    }

    struct Bucket {
        var bucket: Int64
        var count: Int64
        var sum: Micros
    }

    var presences: [Presence] = []
    /// By `OutcomeClass.rawValue`.
    var outcomes = InlineArray<4, Int64>(repeating: 0)
    var responses: [Bucket] = []
    var durations: [Bucket] = []

    mutating func removeAll() {
        presences.removeAll(keepingCapacity: true)
        outcomes = InlineArray(repeating: 0)
        responses.removeAll(keepingCapacity: true)
        durations.removeAll(keepingCapacity: true)
    }

    /// Sorts the lists, sums equal entries and drops those that are zero.
    mutating func normalize() {
        if presences.count > 1 {
            presences.sort { ($0.flags, $0.rootStart) < ($1.flags, $1.rootStart) }
            var kept = 0
            for index in 1..<presences.count {
                if presences[index].flags == presences[kept].flags,
                    presences[index].rootStart == presences[kept].rootStart
                {
                    presences[kept].count &+= presences[index].count
                } else {
                    kept += 1
                    presences[kept] = presences[index]
                }
            }
            presences.removeSubrange((kept + 1)...)
        }
        presences.removeAll { $0.count == 0 }
        Self.normalize(&responses)
        Self.normalize(&durations)
    }

    private static func normalize(_ buckets: inout [Bucket]) {
        if buckets.count > 1 {
            buckets.sort { $0.bucket < $1.bucket }
            var kept = 0
            for index in 1..<buckets.count {
                if buckets[index].bucket == buckets[kept].bucket {
                    buckets[kept].count &+= buckets[index].count
                    buckets[kept].sum &+= buckets[index].sum
                } else {
                    kept += 1
                    buckets[kept] = buckets[index]
                }
            }
            buckets.removeSubrange((kept + 1)...)
        }
        buckets.removeAll { $0.count == 0 && $0.sum == 0 }
    }

    var isEmpty: Bool {
        presences.isEmpty && responses.isEmpty && durations.isEmpty && (0..<4).allSatisfy { outcomes[$0] == 0 }
    }

    mutating func add(_ observation: Contributions.Observation) {
        typealias Flags = Contributions.Flags
        let count = Int64(observation.sign)
        if observation.isLink {
            let source = observation.flags & (Flags.sourceIsActive | Flags.sourceIsRoot)
            let destination = observation.flags & (Flags.destinationIsActive | Flags.destinationIsRoot)
            presences.append(Presence(rootStart: observation.duration, flags: source | Flags.sourceOnly, count: count))
            presences.append(
                Presence(rootStart: observation.rootStart, flags: destination | Flags.destinationOnly, count: count))
        } else {
            presences.append(Presence(rootStart: observation.rootStart, flags: observation.flags, count: count))
        }
        guard observation.outcome != Contributions.Observation.noClass else { return }
        outcomes[Int(observation.outcome)] &+= count
        if observation.response >= 0 {
            responses.append(
                Bucket(
                    bucket: HistogramBucket.of(observation.response), count: count, sum: count &* observation.response))
        }
        if observation.subject & Contributions.Observation.edgeBit == 0 {
            durations.append(
                Bucket(
                    bucket: HistogramBucket.of(observation.duration), count: count, sum: count &* observation.duration))
        }
    }
}

// MARK: - Writing

/// Puts one block together. Subjects come in canonical order, nodes before edges, the groups of each by second.
struct BlockWriter {
    private let tables: GraphTables
    private let order: CanonicalOrder
    private let base: Int64
    private let span: Int64
    private let isRollUp: Bool
    private var subjects: [(subject: Int32, groups: Int, end: Int)] = []
    private var body = ByteWriter()
    private var sightings: [Contributions.Sighting] = []
    private var hasNegatives = false

    init(_ tables: GraphTables, _ order: CanonicalOrder, base: Int64, span: Int64, isRollUp: Bool = false) {
        self.tables = tables
        self.order = order
        self.base = base
        self.span = span
        self.isRollUp = isRollUp
    }

    private mutating func beginGroup(of subject: Int32, second: Int64) {
        if subjects.last?.subject != subject { subjects.append((subject, 0, 0)) }
        subjects[subjects.count - 1].groups += 1
        body.unsigned(UInt64(second - base))
    }

    private mutating func endGroup() { subjects[subjects.count - 1].end = body.bytes.count }

    /// A group of exactly one observation, of a node or a synchronous edge, with a class. The header is
    /// `1 | negative·2 | class·4 | flags of its nodes·16`; a node's are two bits and a third says that the duration
    /// follows (otherwise it equals the response time).
    mutating func write(
        single subject: Int32, second: Int64, outcome: UInt8, flags: UInt8, isNegative: Bool, rootStart: Int64,
        response: Micros, duration: Micros
    ) {
        beginGroup(of: subject, second: second)
        hasNegatives = hasNegatives || isNegative
        var header = 1 | (isNegative ? 2 : 0) | UInt64(outcome) << 2
        let isNode = subject & Contributions.Observation.edgeBit == 0
        if isNode {
            header |= UInt64(flags >> 2) << 4
            if duration != response { header |= 1 << 6 }
        } else {
            header |= UInt64(flags) << 4
        }
        body.unsigned(header)
        body.signed(second &- rootStart)
        body.unsigned(UInt64(response))
        if isNode, duration != response { body.unsigned(UInt64(duration)) }
        endGroup()
    }

    /// A normalised group; an empty one leaves no trace. The header is `0 | present classes·2`, then each class's count,
    /// then the lists.
    mutating func write(_ group: GraphGroup, subject: Int32, second: Int64) {
        if group.isEmpty { return }
        if let single = Single(group, isNode: subject & Contributions.Observation.edgeBit == 0) {
            write(
                single: subject, second: second, outcome: single.outcome, flags: single.flags,
                isNegative: single.isNegative,
                rootStart: single.rootStart, response: single.response, duration: single.duration)
            return
        }
        beginGroup(of: subject, second: second)
        var header: UInt64 = 0
        for outcome in 0..<4 where group.outcomes[outcome] != 0 { header |= 2 << UInt64(outcome) }
        body.unsigned(header)
        for outcome in 0..<4 where group.outcomes[outcome] != 0 { writeCount(group.outcomes[outcome]) }
        body.count(group.presences.count)
        for presence in group.presences {
            body.byte(presence.flags)
            body.signed(second &- presence.rootStart)
            writeCount(presence.count)
        }
        write(group.responses)
        write(group.durations)
        endGroup()
    }

    private mutating func write(_ buckets: [GraphGroup.Bucket]) {
        body.count(buckets.count)
        var previous: Int64 = 0
        for bucket in buckets {
            body.unsigned(UInt64(bitPattern: bucket.bucket &- previous))
            previous = bucket.bucket
            writeCount(bucket.count)
            body.signed(bucket.sum &- bucket.count &* HistogramBucket.lowerBound(bucket.bucket))
        }
    }

    private mutating func writeCount(_ count: Int64) {
        if count < 0 { hasNegatives = true }
        body.signed(count)
    }

    /// Sightings of the block, sorted by `Contributions.Sighting.precedes`, equal ones summed, none zero.
    mutating func write(_ sightings: [Contributions.Sighting]) {
        self.sightings = sightings
        if sightings.contains(where: { $0.count < 0 }) { hasNegatives = true }
    }

    /// The single observation a group consists of: what `write(single:…)` can say.
    private struct Single {
        var outcome: UInt8
        var flags: UInt8
        var isNegative: Bool
        var rootStart: Int64
        var response: Micros
        var duration: Micros

        init?(_ group: GraphGroup, isNode: Bool) {
            guard group.presences.count == 1, group.responses.count == 1, group.durations.count == (isNode ? 1 : 0)
            else { return nil }
            let presence = group.presences[0]
            guard presence.count == 1 || presence.count == -1, presence.flags < 16, !isNode || presence.flags & 3 == 0
            else { return nil }
            var outcome: UInt8?
            for candidate in 0..<4 where group.outcomes[candidate] != 0 {
                guard outcome == nil, group.outcomes[candidate] == presence.count else { return nil }
                outcome = UInt8(candidate)
            }
            guard let outcome else { return nil }
            func value(_ bucket: GraphGroup.Bucket) -> Micros? {
                let value = bucket.sum &* presence.count
                guard bucket.count == presence.count, value >= 0, HistogramBucket.of(value) == bucket.bucket else {
                    return nil
                }
                return value
            }
            guard let response = value(group.responses[0]) else { return nil }
            var duration: Micros = 0
            if isNode {
                guard let own = value(group.durations[0]) else { return nil }
                duration = own
            }
            self.outcome = outcome
            flags = presence.flags
            isNegative = presence.count < 0
            rootStart = presence.rootStart
            self.response = response
            self.duration = duration
        }
    }

    /// The block, or nil when everything cancelled out.
    consuming func finish() -> GraphBlock? {
        if subjects.isEmpty && sightings.isEmpty { return nil }
        let edgeBit = Contributions.Observation.edgeBit
        // Only what the block speaks of is named in it; places within the block follow the canonical order.
        var usedNodes: [Int32] = []
        var usedEdges: [Int32] = []
        for entry in subjects {
            if entry.subject & edgeBit == 0 {
                usedNodes.append(entry.subject)
            } else {
                usedEdges.append(entry.subject ^ edgeBit)
            }
        }
        usedEdges += sightings.map(\.edge)
        let edges = LocalIndex(usedEdges, ranks: order.edges)
        for edge in edges.members {
            let parts = tables.edgeParts(edge)
            usedNodes.append(parts.source)
            usedNodes.append(parts.destination)
        }
        let nodes = LocalIndex(usedNodes, ranks: order.nodes)
        let labels = LocalIndex(
            nodes.members.map { tables.nodeParts($0).label } + sightings.map(\.alias), ranks: order.labels)
        var usedStrings = nodes.members.map { tables.nodeParts($0).account }
        for label in labels.members {
            let parts = tables.labelParts(label)
            usedStrings.append(parts.name)
            if parts.type >= 0 { usedStrings.append(parts.type) }
        }
        let strings = LocalIndex(usedStrings, ranks: order.strings)

        var out = ByteWriter()
        out.bytes.reserveCapacity(body.bytes.count + 64 + strings.members.count * 24)
        out.byte(GraphBlock.Format.version)
        out.byte((hasNegatives ? GraphBlock.Format.hasNegatives : 0) | (isRollUp ? GraphBlock.Format.isRollUp : 0))
        out.signed(base)
        out.unsigned(UInt64(span))
        out.count(strings.members.count)
        for string in strings.members { out.text(tables.strings.strings[Int(string)]) }
        out.count(labels.members.count)
        for label in labels.members {
            let parts = tables.labelParts(label)
            out.count(strings[parts.name])
            out.count(parts.type < 0 ? 0 : strings[parts.type] + 1)
        }
        out.count(nodes.members.count)
        for node in nodes.members {
            let parts = tables.nodeParts(node)
            out.count(labels[parts.label])
            out.count(strings[parts.account])
        }
        out.count(edges.members.count)
        for edge in edges.members {
            let parts = tables.edgeParts(edge)
            out.count(nodes[parts.source])
            out.count(nodes[parts.destination] << 1 | (parts.isLink ? 1 : 0))
        }
        var next = 0
        var start = 0
        func appendGroups(of subject: Int32) {
            guard next < subjects.count, subjects[next].subject == subject else { return out.count(0) }
            out.count(subjects[next].groups)
            out.bytes.append(contentsOf: body.bytes[start..<subjects[next].end])
            start = subjects[next].end
            next += 1
        }
        for node in nodes.members { appendGroups(of: node) }
        for edge in edges.members { appendGroups(of: edge | edgeBit) }
        appendSightings(to: &out, edges, labels)
        return GraphBlock(baseSecond: base, spanSeconds: span, bytes: out.bytes)
    }

    private func appendSightings(to out: inout ByteWriter, _ edges: LocalIndex, _ labels: LocalIndex) {
        var runs: [Range<Int>] = []
        var start = 0
        while start < sightings.count {
            var end = start + 1
            while end < sightings.count, sightings[end].edge == sightings[start].edge,
                sightings[end].alias == sightings[start].alias
            {
                end += 1
            }
            runs.append(start..<end)
            start = end
        }
        out.count(runs.count)
        for run in runs {
            out.count(edges[sightings[run.lowerBound].edge])
            out.count(labels[sightings[run.lowerBound].alias])
            out.count(run.count)
            for sighting in sightings[run] {
                out.unsigned(UInt64(sighting.second - base))
                out.signed(base &* 1_000_000 &- sighting.start)
                out.fixed64(sighting.id)
                out.signed(sighting.count)
            }
        }
    }
}

/// Members of a block in canonical order, and the place of each.
private struct LocalIndex {
    let members: [Int32]
    private var places: [Int32: Int32] = [:]

    init(_ used: [Int32], ranks: [Int32]) {
        var distinct = Array(Set(used))
        distinct.sort { ranks[Int($0)] < ranks[Int($1)] }
        members = distinct
        places.reserveCapacity(distinct.count)
        for (place, member) in distinct.enumerated() { places[member] = Int32(place) }
    }

    subscript(_ member: Int32) -> Int { Int(places[member] ?? 0) }
}

extension Contributions.Sighting {
    /// Order within a block; `order` gives the canonical places.
    static func precedes(_ a: Self, _ b: Self, _ order: CanonicalOrder) -> Bool {
        if a.edge != b.edge { return order.edges[Int(a.edge)] < order.edges[Int(b.edge)] }
        if a.alias != b.alias { return order.labels[Int(a.alias)] < order.labels[Int(b.alias)] }
        return (a.second, a.start, a.id) < (b.second, b.start, b.id)
    }

    /// Sorts, sums equal ones and drops those that are zero.
    static func normalize(_ sightings: inout [Self], _ order: CanonicalOrder) {
        sightings.sort { precedes($0, $1, order) }
        var kept: [Self] = []
        kept.reserveCapacity(sightings.count)
        for sighting in sightings {
            if let last = kept.last, last.edge == sighting.edge, last.alias == sighting.alias,
                last.second == sighting.second,
                last.start == sighting.start, last.id == sighting.id
            {
                kept[kept.count - 1].count &+= sighting.count
                if kept[kept.count - 1].count == 0 { kept.removeLast() }
            } else if sighting.count != 0 {
                kept.append(sighting)
            }
        }
        sightings = kept
    }
}

// MARK: - Contributions as blocks

extension Contributions {
    /// Whether everything added was taken back.
    public var isEmpty: Bool { blocks().isEmpty }

    /// What was added and taken back, as one block per minute of end times, ascending; minutes that came to nothing are
    /// left out. Equal sums give equal bytes.
    public func blocks() -> [GraphBlock] {
        if observations.isEmpty { return [] }
        let order = CanonicalOrder(tables)
        let span = GraphBlock.Format.minuteSpan
        let sorted = sortedObservations(order)
        var aliases = Dictionary(grouping: sightings) { floorDivide($0.second, by: span) }
        var result: [GraphBlock] = []
        var group = GraphGroup()
        var next = 0
        while next < sorted.count {
            let minute = floorDivide(observations[Int(sorted[next])].second, by: span)
            var writer = BlockWriter(tables, order, base: minute * span, span: span)
            while next < sorted.count, floorDivide(observations[Int(sorted[next])].second, by: span) == minute {
                let first = observations[Int(sorted[next])]
                var end = next + 1
                while end < sorted.count {
                    let other = observations[Int(sorted[end])]
                    if other.subject != first.subject || other.second != first.second { break }
                    end += 1
                }
                if end == next + 1, !first.isLink, first.outcome != Observation.noClass {
                    writer.write(
                        single: first.subject, second: first.second, outcome: first.outcome, flags: first.flags,
                        isNegative: first.sign < 0, rootStart: first.rootStart, response: first.response,
                        duration: first.duration)
                } else {
                    group.removeAll()
                    for position in next..<end { group.add(observations[Int(sorted[position])]) }
                    group.normalize()
                    writer.write(group, subject: first.subject, second: first.second)
                }
                next = end
            }
            if var seen = aliases.removeValue(forKey: minute) {
                Sighting.normalize(&seen, order)
                writer.write(seen)
            }
            if let block = writer.finish() { result.append(block) }
        }
        return result
    }

    /// Indexes of the observations by (minute, subject in canonical order, second).
    private func sortedObservations(_ order: CanonicalOrder) -> [UInt32] {
        let span = GraphBlock.Format.minuteSpan
        // Batches hold few minutes: number them, so that the key is a few small digits and a radix sort takes two passes.
        var minuteNumbers: [Int64: UInt64] = [:]
        var minutes: [Int64] = []
        var last: (minute: Int64, number: UInt64)?
        var keys: [UInt64] = []
        keys.reserveCapacity(observations.count)
        let nodeCount = UInt64(tables.nodes.keys.count)
        let subjectBits = UInt64(64 - (nodeCount + UInt64(tables.edges.keys.count)).leadingZeroBitCount)
        var numbered: [UInt64] = []
        numbered.reserveCapacity(observations.count)
        for observation in observations {
            let minute = floorDivide(observation.second, by: span)
            let number: UInt64
            if let last, last.minute == minute {
                number = last.number
            } else if let known = minuteNumbers[minute] {
                number = known
            } else {
                number = UInt64(minutes.count)
                minuteNumbers[minute] = number
                minutes.append(minute)
            }
            last = (minute, number)
            numbered.append(number)
        }
        var minuteRanks = [UInt64](repeating: 0, count: minutes.count)
        for (rank, number) in minutes.indices.sorted(by: { minutes[$0] < minutes[$1] }).enumerated() {
            minuteRanks[number] = UInt64(rank)
        }
        for (index, observation) in observations.enumerated() {
            let isEdge = observation.subject & Observation.edgeBit != 0
            let place =
                isEdge
                ? nodeCount + UInt64(order.edges[Int(observation.subject ^ Observation.edgeBit)])
                : UInt64(order.nodes[Int(observation.subject)])
            let minute = minuteRanks[Int(numbered[index])]
            let offset = UInt64(observation.second - floorDivide(observation.second, by: span) * span)
            keys.append((minute << subjectBits | place) << 6 | offset)
        }
        return radixSorted(keys)
    }
}

/// The indexes of `keys` in ascending order of key, equal keys in order of index.
func radixSorted(_ keys: [UInt64]) -> [UInt32] {
    var indexes = keys.indices.map { UInt32($0) }
    var other = indexes
    let all = keys.reduce(0) { $0 | $1 }
    var shift: UInt64 = 0
    while shift < 64, all >> shift != 0 {
        var offsets = [Int](repeating: 0, count: 2_049)
        for key in keys { offsets[Int((key >> shift) & 2_047) + 1] += 1 }
        for digit in 0..<2_048 { offsets[digit + 1] += offsets[digit] }
        for index in indexes {
            let digit = Int((keys[Int(index)] >> shift) & 2_047)
            other[offsets[digit]] = index
            offsets[digit] += 1
        }
        swap(&indexes, &other)
        shift += 11
    }
    return indexes
}
