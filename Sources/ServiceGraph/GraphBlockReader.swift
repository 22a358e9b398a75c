// Reads graph blocks, and merges them: for the compactor (the rows of a minute into one) and for queries that meet corrections. The bytes come from a database; nothing about them is trusted.

import Segments

/// Receives the contents of a block in the order they stand in it. Indexes are those of the block's tables.
protocol BlockVisitor {
    mutating func begin(_ header: BlockHeader) throws(GraphBlockError)
    /// - Returns: whether the contents of the group are wanted.
    mutating func beginGroup(node: Int, second: Int64) -> Bool
    mutating func beginGroup(edge: Int, second: Int64) -> Bool
    mutating func presence(flags: UInt8, rootStart: Int64, count: Int64)
    mutating func outcome(_ outcome: Int, count: Int64)
    mutating func response(bucket: Int64, count: Int64, sum: Micros)
    mutating func duration(bucket: Int64, count: Int64, sum: Micros)
    mutating func sighting(edge: Int, label: Int, second: Int64, start: Micros, id: UInt64, count: Int64)
}

/// The tables of a block.
struct BlockHeader {
    var base: Int64
    var span: Int64
    var hasNegatives: Bool
    var isRollUp: Bool
    var strings: [String]
    /// Type is -1 when absent.
    var labels: [(name: Int, type: Int)]
    var nodes: [(label: Int, account: Int)]
    var edges: [(source: Int, destination: Int, isLink: Bool)]
}

struct BlockReader {
    private var reader: ByteReader

    init(_ bytes: UnsafeRawBufferPointer) { reader = ByteReader(bytes) }

    static func visit(_ bytes: [UInt8], _ visitor: inout some BlockVisitor) throws(GraphBlockError) {
        try bytes.withUnsafeBufferPointer { buffer throws(GraphBlockError) in
            var reader = BlockReader(UnsafeRawBufferPointer(buffer))
            try reader.read(into: &visitor)
        }
    }

    /// Only what stands before the tables.
    static func span(of bytes: [UInt8]) throws(GraphBlockError) -> (
        base: Int64, span: Int64, hasNegatives: Bool, isRollUp: Bool
    ) {
        try bytes.withUnsafeBufferPointer { buffer throws(GraphBlockError) in
            var reader = BlockReader(UnsafeRawBufferPointer(buffer))
            return try reader.preamble()
        }
    }

    private mutating func preamble() throws(GraphBlockError) -> (
        base: Int64, span: Int64, hasNegatives: Bool, isRollUp: Bool
    ) {
        guard try reader.byte() == GraphBlock.Format.version else { throw .corrupt }
        let flags = try reader.byte()
        guard flags < 4 else { throw .corrupt }
        let base = try reader.signed()
        let span = try reader.unsigned()
        let bound: Int64 = 1 << 50
        guard base > -bound, base < bound, span > 0, span <= 1_000_000_000 else { throw .corrupt }
        return (
            base, Int64(span), flags & GraphBlock.Format.hasNegatives != 0, flags & GraphBlock.Format.isRollUp != 0
        )
    }

    private mutating func header() throws(GraphBlockError) -> BlockHeader {
        let (base, span, hasNegatives, isRollUp) = try preamble()
        var header = BlockHeader(
            base: base, span: span, hasNegatives: hasNegatives, isRollUp: isRollUp, strings: [], labels: [], nodes: [],
            edges: [])
        for _ in 0..<(try reader.count(bytesEach: 1)) { header.strings.append(try reader.text()) }
        for _ in 0..<(try reader.count(bytesEach: 2)) {
            let name = try reader.index(below: header.strings.count)
            header.labels.append((name, try reader.index(below: header.strings.count + 1) - 1))
        }
        for _ in 0..<(try reader.count(bytesEach: 2)) {
            let label = try reader.index(below: header.labels.count)
            header.nodes.append((label, try reader.index(below: header.strings.count)))
        }
        for _ in 0..<(try reader.count(bytesEach: 2)) {
            let source = try reader.index(below: header.nodes.count)
            let destination = try reader.index(below: header.nodes.count * 2)
            header.edges.append((source, destination >> 1, destination & 1 == 1))
        }
        return header
    }

    mutating func read(into visitor: inout some BlockVisitor) throws(GraphBlockError) {
        let header = try header()
        try visitor.begin(header)
        for node in header.nodes.indices {
            for _ in 0..<(try reader.count(bytesEach: 2)) {
                let second = try second(in: header)
                try readGroup(
                    second: second, isNode: true, isWanted: visitor.beginGroup(node: node, second: second), &visitor)
            }
        }
        for edge in header.edges.indices {
            for _ in 0..<(try reader.count(bytesEach: 2)) {
                let second = try second(in: header)
                try readGroup(
                    second: second, isNode: false, isWanted: visitor.beginGroup(edge: edge, second: second), &visitor)
            }
        }
        for _ in 0..<(try reader.count(bytesEach: 3)) {
            let edge = try reader.index(below: header.edges.count)
            let label = try reader.index(below: header.labels.count)
            for _ in 0..<(try reader.count(bytesEach: 11)) {
                let second = try second(in: header)
                let start = header.base &* 1_000_000 &- (try reader.signed())
                let id = try reader.fixed64()
                let count = try reader.signed()
                visitor.sighting(edge: edge, label: label, second: second, start: start, id: id, count: count)
            }
        }
        guard reader.isAtEnd else { throw .corrupt }
    }

    @inline(__always)
    private mutating func second(in header: BlockHeader) throws(GraphBlockError) -> Int64 {
        let offset = try reader.unsigned()
        guard offset < UInt64(header.span) else { throw .corrupt }
        return header.base &+ Int64(offset)
    }

    @inline(__always)
    private mutating func readGroup(
        second: Int64, isNode: Bool, isWanted: Bool, _ visitor: inout some BlockVisitor
    ) throws(GraphBlockError) {
        let header = try reader.unsigned()
        if header & 1 == 1 {
            let count: Int64 = header & 2 == 0 ? 1 : -1
            let hasDuration = isNode && header & 64 != 0
            guard header < (isNode ? 128 : 256) else { throw .corrupt }
            let rootStart = second &- (try reader.signed())
            let response = Int64(bitPattern: try reader.unsigned())
            let duration = hasDuration ? Int64(bitPattern: try reader.unsigned()) : response
            guard isWanted else { return }
            visitor.presence(
                flags: UInt8(truncatingIfNeeded: isNode ? (header >> 4 & 3) << 2 : header >> 4), rootStart: rootStart,
                count: count)
            visitor.outcome(Int(truncatingIfNeeded: header >> 2 & 3), count: count)
            visitor.response(bucket: HistogramBucket.of(response), count: count, sum: count &* response)
            if isNode { visitor.duration(bucket: HistogramBucket.of(duration), count: count, sum: count &* duration) }
            return
        }
        guard header < 32 else { throw .corrupt }
        for outcome in 0..<4 where header & (2 << UInt64(outcome)) != 0 {
            let count = try reader.signed()
            if isWanted { visitor.outcome(outcome, count: count) }
        }
        for _ in 0..<(try reader.count(bytesEach: 3)) {
            let flags = try reader.byte()
            let rootStart = second &- (try reader.signed())
            let count = try reader.signed()
            if isWanted { visitor.presence(flags: flags, rootStart: rootStart, count: count) }
        }
        for isDuration in [false, true] {
            var bucket: Int64 = 0
            for _ in 0..<(try reader.count(bytesEach: 3)) {
                bucket &+= Int64(bitPattern: try reader.unsigned())
                let count = try reader.signed()
                let sum = (try reader.signed()) &+ count &* HistogramBucket.lowerBound(bucket)
                guard isWanted else { continue }
                if isDuration {
                    visitor.duration(bucket: bucket, count: count, sum: sum)
                } else {
                    visitor.response(bucket: bucket, count: count, sum: sum)
                }
            }
        }
    }
}

/// The numbers a block's indexes have in shared tables.
struct BlockNumbers {
    var labels: [Int32] = []
    var nodes: [Int32] = []
    var edges: [Int32] = []

    init() {}

    init(_ header: BlockHeader, in tables: inout GraphTables) {
        let strings = header.strings.map { tables.strings.intern($0) }
        labels = header.labels.map { label in
            tables.label(nameNumber: strings[label.name], typeNumber: label.type < 0 ? -1 : strings[label.type])
        }
        nodes.reserveCapacity(header.nodes.count)
        for node in header.nodes {
            nodes.append(tables.node(label: labels[node.label], account: strings[node.account]))
        }
        edges.reserveCapacity(header.edges.count)
        for edge in header.edges {
            edges.append(tables.edge(from: nodes[edge.source], to: nodes[edge.destination], isLink: edge.isLink))
        }
    }
}

// MARK: - Merging

extension GraphBlock {
    /// Reads where a block stands; its contents are read only when it is used.
    public init(bytes: [UInt8]) throws(GraphBlockError) {
        let place = try BlockReader.span(of: bytes)
        self.init(baseSecond: place.base, spanSeconds: place.span, bytes: bytes)
    }

    /// The sum of blocks of one span (the rows of one minute); nil when they come to nothing.
    /// In whatever groups and order blocks are merged, the bytes are the same.
    /// - Throws: `.corrupt` also when the blocks are of different spans, or roll-ups.
    public static func merge(_ blocks: [[UInt8]]) throws(GraphBlockError) -> GraphBlock? {
        guard let first = blocks.first else { return nil }
        let place = try BlockReader.span(of: first)
        var merger = BlockMerger(base: place.base, span: place.span)
        for block in blocks { try BlockReader.visit(block, &merger) }
        return merger.finish()
    }
}

/// Collects the groups of blocks, to write them again with equal ones summed.
private struct BlockMerger: BlockVisitor {
    private struct Entry {
        /// 0 presence, 1 outcome, 2 response, 3 duration.
        var kind: UInt8
        var flags: UInt8
        var key: Int64
        var count: Int64
        var sum: Int64
    }

    private struct Group {
        var subject: Int32
        var second: Int64
        var start: Int
        var end: Int
    }

    private let base: Int64
    private let span: Int64
    private var tables = GraphTables()
    private var numbers = BlockNumbers()
    private var entries: [Entry] = []
    private var groups: [Group] = []
    private var sightings: [Contributions.Sighting] = []

    init(base: Int64, span: Int64) {
        self.base = base
        self.span = span
    }

    mutating func begin(_ header: BlockHeader) throws(GraphBlockError) {
        guard header.base == base, header.span == span, !header.isRollUp else { throw .corrupt }
        numbers = BlockNumbers(header, in: &tables)
    }

    private mutating func beginGroup(_ subject: Int32, second: Int64) -> Bool {
        groups.append(Group(subject: subject, second: second, start: entries.count, end: entries.count))
        return true
    }

    mutating func beginGroup(node: Int, second: Int64) -> Bool { beginGroup(numbers.nodes[node], second: second) }

    mutating func beginGroup(edge: Int, second: Int64) -> Bool {
        beginGroup(numbers.edges[edge] | Contributions.Observation.edgeBit, second: second)
    }

    private mutating func append(_ entry: Entry) {
        entries.append(entry)
        groups[groups.count - 1].end = entries.count
    }

    mutating func presence(flags: UInt8, rootStart: Int64, count: Int64) {
        append(Entry(kind: 0, flags: flags, key: rootStart, count: count, sum: 0))
    }

    mutating func outcome(_ outcome: Int, count: Int64) {
        append(Entry(kind: 1, flags: 0, key: Int64(outcome), count: count, sum: 0))
    }

    mutating func response(bucket: Int64, count: Int64, sum: Micros) {
        append(Entry(kind: 2, flags: 0, key: bucket, count: count, sum: sum))
    }

    mutating func duration(bucket: Int64, count: Int64, sum: Micros) {
        append(Entry(kind: 3, flags: 0, key: bucket, count: count, sum: sum))
    }

    mutating func sighting(edge: Int, label: Int, second: Int64, start: Micros, id: UInt64, count: Int64) {
        sightings.append(
            Contributions.Sighting(
                second: second, start: start, id: id, edge: numbers.edges[edge],
                alias: numbers.labels[label],
                count: count))
    }

    consuming func finish() -> GraphBlock? {
        let order = CanonicalOrder(tables)
        let edgeBit = Contributions.Observation.edgeBit
        let nodeCount = UInt64(tables.nodes.keys.count)
        let base = base
        let keys = groups.map { group in
            let place =
                group.subject & edgeBit == 0
                ? UInt64(order.nodes[Int(group.subject)])
                : nodeCount + UInt64(order.edges[Int(group.subject ^ edgeBit)])
            return place << 30 | UInt64(group.second - base)
        }
        let sorted = radixSorted(keys)
        var writer = BlockWriter(tables, order, base: base, span: span)
        var sum = GraphGroup()
        var next = 0
        while next < sorted.count {
            let first = groups[Int(sorted[next])]
            sum.removeAll()
            while next < sorted.count {
                let group = groups[Int(sorted[next])]
                if group.subject != first.subject || group.second != first.second { break }
                for entry in entries[group.start..<group.end] {
                    sum.add(entry.kind, entry.flags, entry.key, entry.count, entry.sum)
                }
                next += 1
            }
            sum.normalize()
            writer.write(sum, subject: first.subject, second: first.second)
        }
        Contributions.Sighting.normalize(&sightings, order)
        writer.write(sightings)
        return writer.finish()
    }
}

extension GraphGroup {
    fileprivate mutating func add(_ kind: UInt8, _ flags: UInt8, _ key: Int64, _ count: Int64, _ sum: Int64) {
        switch kind {
        case 0: presences.append(Presence(rootStart: key, flags: flags, count: count))
        case 1: outcomes[Int(key)] &+= count
        case 2: responses.append(Bucket(bucket: key, count: count, sum: sum))
        default: durations.append(Bucket(bucket: key, count: count, sum: sum))
        }
    }
}
