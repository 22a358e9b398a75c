// Sums graph blocks over a window of whole seconds and makes the list `Services` of it (`service-graph.md` §2–§6, rulings
// In: the blocks of the minutes the window touches, in order of minute. Out: values in the wire's words.
// Queries use one builder per answer.

import Segments

/// Builds one service graph.
public struct ServiceGraphBuilder {
    private let receivingAccount: String
    private let window: Range<Int64>?
    private let showsTimes: Bool
    fileprivate var sums: GraphSums
    /// Blocks of the span that is being added: blocks that correct each other must be summed before they are looked at.
    private var pending: [[UInt8]] = []
    private var pendingSpan: Range<Int64>?
    private var pendingCorrects = false
    private var pendingIsRollUp = false

    /// - Parameter receivingAccount: nodes of this account are shown without `AccountId`.
    /// - Parameter window: seconds since 1970; an observation counts when its entity ended in one of them. Nil: all.
    public init(receivingAccount: AccountID, window: Range<Int64>?) {
        self.init(receivingAccount: receivingAccount, window: window, showsTimes: true)
    }

    init(receivingAccount: AccountID, window: Range<Int64>?, showsTimes: Bool) {
        self.receivingAccount = receivingAccount.description
        self.window = window
        self.showsTimes = showsTimes
        sums = GraphSums(window: window)
    }

    /// Adds one block. All blocks of a span must come one after the other, and spans in ascending order (as the store
    /// returns them); blocks outside the window are skipped.
    /// - Throws: `GraphBlockError`. The builder is of no use after an error.
    public mutating func add(_ block: [UInt8]) throws(GraphBlockError) {
        let place = try BlockReader.span(of: block)
        let span = place.base..<(place.base + place.span)
        if let window {
            guard window.overlaps(span) else { return }
            if place.isRollUp, window.clamped(to: span) != span { throw .needsWholeSeconds }
        }
        if let pendingSpan, pendingSpan != span {
            guard span.lowerBound >= pendingSpan.upperBound else {
                throw pendingIsRollUp || place.isRollUp ? .needsWholeSeconds : .outOfOrder
            }
            try flush()
        }
        guard !(pendingIsRollUp || (place.isRollUp && !pending.isEmpty)) else { throw .needsWholeSeconds }
        pendingSpan = span
        pending.append(block)
        pendingCorrects = pendingCorrects || place.hasNegatives
        pendingIsRollUp = place.isRollUp
    }

    fileprivate mutating func flush() throws(GraphBlockError) {
        // Blocks without negative counts speak only of what is there. Where one takes something back, only the sum does.
        if pendingCorrects, pending.count > 1 {
            if let sum = try GraphBlock.merge(pending) { try BlockReader.visit(sum.bytes, &sums) }
        } else {
            for block in pending { try BlockReader.visit(block, &sums) }
        }
        pending.removeAll(keepingCapacity: true)
        pendingCorrects = false
        pendingIsRollUp = false
    }

    /// The graph of everything added.
    public consuming func build() throws(GraphBlockError) -> ServiceGraphResult {
        try flush()
        return sums.result(receivingAccount: receivingAccount, showsTimes: showsTimes)
    }
}

extension GraphBlock {
    /// The sum of **all** blocks of a longer span (an hour), without its seconds: smaller and faster to read, of use only to
    /// windows that contain the whole span. It must not be added to a graph together with corrections of its span:
    /// when one arrives the roll-up is void and the span is summed anew (`ServiceGraphBuilder` refuses the mixture).
    /// - Parameter blocks: as `ServiceGraphBuilder` takes them: those of a minute one after the other, minutes ascending.
    ///   Roll-ups of parts of the span may stand for their minutes. Whatever the counts, a graph from the roll-up equals
    ///   one from the blocks: what a minute takes back without having it is not set off against other minutes.
    /// - Returns: nil when nothing was observed.
    public static func rollUp(
        _ blocks: [[UInt8]], baseSecond: Int64, spanSeconds: Int64
    ) throws(GraphBlockError) -> GraphBlock? {
        var builder = ServiceGraphBuilder(receivingAccount: AccountID(rawValue: 0), window: nil)
        for block in blocks {
            let place = try BlockReader.span(of: block)
            guard place.base >= baseSecond, place.base + place.span <= baseSecond + spanSeconds else { throw .corrupt }
            try builder.add(block)
        }
        return try builder.rollUp(baseSecond: baseSecond, spanSeconds: spanSeconds)
    }
}

extension ServiceGraphBuilder {
    fileprivate consuming func rollUp(baseSecond: Int64, spanSeconds: Int64) throws(GraphBlockError) -> GraphBlock? {
        try flush()
        return sums.block(baseSecond: baseSecond, spanSeconds: spanSeconds)
    }
}

/// Everything a graph shows, summed over the blocks read so far. Only positive counts are "there": what is read has been
/// summed over its second already.
private struct GraphSums: BlockVisitor {
    /// What is known of a node or an edge.
    private struct Subject {
        var outcomes = InlineArray<4, Int64>(repeating: 0)
        var isThere = false
        /// Flags seen on the traces of its observations (`Contributions.Flags`).
        var flags: UInt8 = 0
        var destinationStarts = Span()
        /// Of an edge: start seconds of the roots that its source takes over.
        var sourceStarts = Span()
    }

    private struct Span {
        var first = Int64.max
        var last = Int64.min

        @inline(__always)
        mutating func include(_ second: Int64) {
            if second < first { first = second }
            if second > last { last = second }
        }

        mutating func include(_ other: Span) {
            first = min(first, other.first)
            last = max(last, other.last)
        }
    }

    private struct FirstSighting {
        var start: Micros
        var id: UInt64
    }

    private let window: Range<Int64>?
    private var tables = GraphTables()
    private var numbers = BlockNumbers()
    private var nodes: [Subject] = []
    private var edges: [Subject] = []
    /// Histogram number: node or edge · 3, plus 0 for response times of nodes, 1 for their durations, 2 for edges.
    private var buckets = BucketTable()
    /// Per (edge, alias) the earliest call, keyed by both numbers.
    private var aliases: [UInt64: FirstSighting] = [:]
    private var isCut = false

    private var isEdge = false
    private var current = 0

    init(window: Range<Int64>?) { self.window = window }

    mutating func begin(_ header: BlockHeader) throws(GraphBlockError) {
        numbers = BlockNumbers(header, in: &tables)
        while nodes.count < tables.nodes.keys.count { nodes.append(Subject()) }
        while edges.count < tables.edges.keys.count { edges.append(Subject()) }
        buckets.grow(to: 3 * max(nodes.count, edges.count))
        isCut = window.map { $0.lowerBound > header.base || $0.upperBound < header.base + header.span } ?? false
    }

    @inline(__always)
    private func isInWindow(_ second: Int64) -> Bool {
        guard isCut, let window else { return true }
        return window.contains(second)
    }

    @inline(__always)
    mutating func beginGroup(node: Int, second: Int64) -> Bool {
        isEdge = false
        current = Int(numbers.nodes[node])
        return isInWindow(second)
    }

    @inline(__always)
    mutating func beginGroup(edge: Int, second: Int64) -> Bool {
        isEdge = true
        current = Int(numbers.edges[edge])
        return isInWindow(second)
    }

    @inline(__always)
    mutating func presence(flags: UInt8, rootStart: Int64, count: Int64) {
        guard count > 0 else { return }
        if isEdge {
            Self.note(flags, rootStart, &edges[current])
        } else {
            Self.note(flags, rootStart, &nodes[current])
        }
    }

    @inline(__always)
    private static func note(_ flags: UInt8, _ rootStart: Int64, _ subject: inout Subject) {
        subject.isThere = true
        subject.flags |= flags
        if flags & Contributions.Flags.sourceOnly == 0 { subject.destinationStarts.include(rootStart) }
        if flags & Contributions.Flags.destinationOnly == 0 { subject.sourceStarts.include(rootStart) }
    }

    @inline(__always)
    mutating func outcome(_ outcome: Int, count: Int64) {
        if isEdge { edges[current].outcomes[outcome] &+= count } else { nodes[current].outcomes[outcome] &+= count }
    }

    @inline(__always)
    mutating func response(bucket: Int64, count: Int64, sum: Micros) {
        buckets.add(histogram: current &* 3 &+ (isEdge ? 2 : 0), bucket: bucket, count: count, sum: sum)
    }

    @inline(__always)
    mutating func duration(bucket: Int64, count: Int64, sum: Micros) {
        // Edges have none; a damaged block may say otherwise.
        if isEdge { return }
        buckets.add(histogram: current &* 3 &+ 1, bucket: bucket, count: count, sum: sum)
    }

    mutating func sighting(edge: Int, label: Int, second: Int64, start: Micros, id: UInt64, count: Int64) {
        guard count > 0, isInWindow(second) else { return }
        let key = UInt64(numbers.edges[edge]) << 32 | UInt64(numbers.labels[label])
        if let known = aliases[key], (known.start, known.id) <= (start, id) { return }
        aliases[key] = FirstSighting(start: start, id: id)
    }

    // MARK: The sums as a block

    /// Read again, it gives the same sums.
    fileprivate func block(baseSecond: Int64, spanSeconds: Int64) -> GraphBlock? {
        let order = CanonicalOrder(tables)
        var writer = BlockWriter(tables, order, base: baseSecond, span: spanSeconds, isRollUp: true)
        let histograms = buckets.numbered()
        var group = GraphGroup()
        for node in nodes.indices.sorted(by: { order.nodes[$0] < order.nodes[$1] }) {
            group.presences = Self.presences(of: nodes[node])
            group.outcomes = nodes[node].outcomes
            group.responses = histograms[node * 3]
            group.durations = histograms[node * 3 + 1]
            writer.write(group, subject: Int32(node), second: baseSecond)
        }
        group.durations = []
        for edge in edges.indices.sorted(by: { order.edges[$0] < order.edges[$1] }) {
            group.presences = Self.presences(of: edges[edge])
            group.outcomes = edges[edge].outcomes
            group.responses = histograms[edge * 3 + 2]
            writer.write(group, subject: Int32(edge) | Contributions.Observation.edgeBit, second: baseSecond)
        }
        var sightings = aliases.map { key, first in
            Contributions.Sighting(
                second: baseSecond, start: first.start, id: first.id, edge: Int32(truncatingIfNeeded: key >> 32),
                alias: Int32(truncatingIfNeeded: key & 0xffff_ffff), count: 1)
        }
        Contributions.Sighting.normalize(&sightings, order)
        writer.write(sightings)
        return writer.finish()
    }

    /// The fewest that give a subject what it has: the first and last second of its roots on either side.
    private static func presences(of subject: Subject) -> [GraphGroup.Presence] {
        typealias Flags = Contributions.Flags
        guard subject.isThere else { return [] }
        let both = subject.flags & ~(Flags.sourceOnly | Flags.destinationOnly)
        func presences(_ starts: Span, _ flags: UInt8) -> [GraphGroup.Presence] {
            if starts.first > starts.last { return [] }
            let first = GraphGroup.Presence(rootStart: starts.first, flags: flags, count: 1)
            let last = GraphGroup.Presence(rootStart: starts.last, flags: flags, count: 1)
            return starts.first == starts.last ? [first] : [first, last]
        }
        let (source, destination) = (subject.sourceStarts, subject.destinationStarts)
        if source.first == destination.first, source.last == destination.last { return presences(source, both) }
        return presences(source, both | Flags.sourceOnly) + presences(destination, both | Flags.destinationOnly)
    }

    // MARK: The result

    func result(receivingAccount: String, showsTimes: Bool) -> ServiceGraphResult {
        typealias Flags = Contributions.Flags
        let order = CanonicalOrder(tables)
        var nodes = nodes
        for (number, edge) in edges.enumerated() where edge.isThere {
            let parts = tables.edgeParts(Int32(number))
            let source = Int(parts.source)
            let destination = Int(parts.destination)
            nodes[source].isThere = true
            nodes[source].flags |= (edge.flags & (Flags.sourceIsActive | Flags.sourceIsRoot)) << 2
            nodes[source].destinationStarts.include(edge.sourceStarts)
            nodes[destination].isThere = true
            nodes[destination].flags |= edge.flags & (Flags.destinationIsActive | Flags.destinationIsRoot)
            nodes[destination].destinationStarts.include(edge.destinationStarts)
        }
        let shown = nodes.indices.filter { nodes[$0].isThere }.sorted { order.nodes[$0] < order.nodes[$1] }
        var references = [Int](repeating: -1, count: nodes.count)
        for (reference, node) in shown.enumerated() { references[node] = reference }

        let histograms = buckets.filled()
        var edgesOf: [Int: [Int]] = [:]
        for (number, edge) in edges.enumerated() where edge.isThere {
            edgesOf[Int(tables.edgeParts(Int32(number)).source), default: []].append(number)
        }
        let aliasesOf = Dictionary(grouping: aliases.keys) { Int($0 >> 32) }

        let services = shown.map { node in
            let parts = tables.nodeParts(Int32(node))
            let label = tables.labelParts(parts.label)
            let name = tables.strings.strings[Int(label.name)]
            let type = label.type < 0 ? nil : tables.strings.strings[Int(label.type)]
            let account = tables.strings.strings[Int(parts.account)]
            let isActive = nodes[node].flags & Flags.destinationIsActive != 0
            let starts = nodes[node].destinationStarts
            let out = (edgesOf[node] ?? []).sorted { a, b in
                let (a, b) = (tables.edgeParts(Int32(a)), tables.edgeParts(Int32(b)))
                let (left, right) = (references[Int(a.destination)], references[Int(b.destination)])
                return left != right ? left < right : !a.isLink && b.isLink
            }
            return GraphService(
                referenceID: references[node],
                name: name,
                type: type,
                accountID: ExactString(account) == ExactString(receivingAccount) ? nil : account,
                isRoot: nodes[node].flags & Flags.destinationIsRoot != 0,
                state: isActive ? .active : type == "remote" ? .passive : .unknown,
                startTime: showsTimes ? starts.first : nil,
                endTime: showsTimes ? starts.last &+ 1 : nil,
                edges: out.map {
                    edge($0, sourceStarts: starts, order, references, histograms, aliasesOf, showsTimes: showsTimes)
                },
                statistics: type == "client" && !isActive
                    ? nil : statistics(ofNode: node, nodes[node].outcomes, histograms))
        }
        return ServiceGraphResult(services: services)
    }

    private func statistics(
        ofNode node: Int, _ outcomes: InlineArray<4, Int64>, _ histograms: [[BucketSum]]
    ) -> NodeStatistics {
        let responses = histograms[node * 3]
        let durations = histograms[node * 3 + 1]
        return NodeStatistics(
            summary: Self.summary(outcomes, totalResponseTime: responses.reduce(0) { $0 &+ $1.sum }),
            durationHistogram: HistogramEntry.entries(of: durations),
            responseTimeHistogram: HistogramEntry.entries(of: responses))
    }

    private func edge(
        _ number: Int, sourceStarts: Span, _ order: CanonicalOrder, _ references: [Int], _ histograms: [[BucketSum]],
        _ aliasesOf: [Int: [UInt64]], showsTimes: Bool
    ) -> GraphEdge {
        let parts = tables.edgeParts(Int32(number))
        let buckets = histograms[number * 3 + 2]
        let starts = parts.isLink ? edges[number].destinationStarts : sourceStarts
        return GraphEdge(
            referenceID: references[Int(parts.destination)],
            startTime: showsTimes ? starts.first : nil,
            endTime: showsTimes ? starts.last &+ 1 : nil,
            summary: Self.summary(
                edges[number].outcomes, totalResponseTime: parts.isLink ? 0 : buckets.reduce(0) { $0 &+ $1.sum }),
            isLink: parts.isLink,
            histogram: HistogramEntry.entries(of: buckets),
            aliases: aliasesInOrder(aliasesOf[number] ?? [], order))
    }

    /// By the start, then the id, of the earliest call of each.
    private func aliasesInOrder(_ keys: [UInt64], _ order: CanonicalOrder) -> [GraphEdge.Alias] {
        let sorted = keys.compactMap { key in
            aliases[key].map { (label: Int32(truncatingIfNeeded: key & 0xffff_ffff), first: $0) }
        }
        .sorted { a, b in
            (a.first.start, a.first.id, order.labels[Int(a.label)]) < (
                b.first.start, b.first.id, order.labels[Int(b.label)]
            )
        }
        return sorted.map { label, _ in
            let label = tables.labelParts(label)
            return GraphEdge.Alias(
                name: tables.strings.strings[Int(label.name)],
                type: label.type < 0 ? nil : tables.strings.strings[Int(label.type)])
        }
    }

    private static func summary(_ outcomes: InlineArray<4, Int64>, totalResponseTime: Micros) -> SummaryStatistics {
        var summary = SummaryStatistics()
        summary.throttleCount = outcomes[Int(OutcomeClass.throttle.rawValue)]
        summary.faultCount = outcomes[Int(OutcomeClass.fault.rawValue)]
        summary.errorCount = outcomes[Int(OutcomeClass.error.rawValue)]
        summary.okCount = outcomes[Int(OutcomeClass.ok.rawValue)]
        summary.totalResponseTime = totalResponseTime
        return summary
    }
}
