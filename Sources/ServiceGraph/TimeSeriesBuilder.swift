// Sums graph blocks into a series of minutes or of five minutes (`service-graph.md` §9). In: the blocks of whole minutes
// and a selector. Out: one point per bucket that saw any observation, newest first. Queries use one builder per answer.

import Segments

/// Which observations a time series counts.
public enum SeriesSelector: Sendable, Hashable {
    /// The client edges: every root request.
    case clientEdges
    /// Observations of nodes; of client nodes, which have none, those of their edges (ruling R-41).
    case nodes(NodePattern)
    /// Link edges count too; they have no response times.
    case edges(source: NodePattern, destination: NodePattern)
}

extension SeriesSelector {
    /// Of its texts.
    public var byteCount: Int {
        switch self {
        case .clientEdges: 0
        case .nodes(let pattern): pattern.byteCount
        case .edges(let source, let destination): source.byteCount + destination.byteCount
        }
    }
}

/// Nodes by their identity; nil parts are not compared.
public struct NodePattern: Sendable, Hashable {
    public var name: ExactString?
    public var type: ExactString?
    public var account: ExactString?

    public init(name: ExactString? = nil, type: ExactString? = nil, account: ExactString? = nil) {
        self.name = name
        self.type = type
        self.account = account
    }

    /// Client nodes are only reached by their type (ruling R-13).
    var reachesClients: Bool { type == TimeSeriesBuilder.clientType }

    var byteCount: Int { [name, type, account].reduce(0) { $0 + ($1?.value.utf8.count ?? 0) } }

    func matches(_ node: NodeIdentity) -> Bool {
        guard reachesClients || node.type != TimeSeriesBuilder.clientType else { return false }
        if let name, name != node.name { return false }
        if let type, type != node.type { return false }
        if let account, account != node.account { return false }
        return true
    }
}

/// One bucket of a time series.
public struct TimeSeriesPoint: Sendable, Equatable {
    /// End of the bucket, seconds since 1970: it covers the period before.
    public var time: Int64
    /// Of the selected observations; all zero where there was traffic elsewhere only.
    public var summary: SummaryStatistics
    public var responseTimeHistogram: [HistogramEntry]
    /// Counts of faults to expect for the bucket's traffic; nil when not asked for.
    public var faultForecast: ClosedRange<Int64>?

    public init(
        time: Int64, summary: SummaryStatistics, responseTimeHistogram: [HistogramEntry],
        faultForecast: ClosedRange<Int64>? = nil
    ) {
        self.time = time
        self.summary = summary
        self.responseTimeHistogram = responseTimeHistogram
        self.faultForecast = faultForecast
    }
}

public struct TimeSeriesBuilder {
    static let clientType: ExactString = "client"
    /// Minutes before the window that decide the forecast: eight half-lives, what is older weighs less than 1 in 256.
    public static let forecastMinutes: Int64 = 48 * 60

    /// Labels are minutes since 1970 at their end.
    public let labels: Range<Int64>
    private let period: Int64
    private let hasForecast: Bool
    private var sums: SeriesSums

    /// - Parameters:
    ///   - window: seconds since 1970; minutes whose end lies in it are selected.
    ///   - period: 60 or 300 seconds.
    public init(selector: SeriesSelector, window: Range<Int64>, period: Int64, hasForecast: Bool) {
        // Whole minutes b·60 with lowerBound ≤ b·60 < upperBound.
        let first = -floorDivide(-window.lowerBound, by: 60)
        labels = first..<max(first, -floorDivide(-window.upperBound, by: 60))
        self.period = period
        self.hasForecast = hasForecast
        sums = SeriesSums(selector: selector)
    }

    /// The minutes whose blocks are to be added, in any order; the forecast needs those before the window.
    public var minutes: Range<Int64> {
        if labels.isEmpty { return labels.lowerBound..<labels.lowerBound }
        return labels.lowerBound - 1 - (hasForecast ? Self.forecastMinutes : 0)..<labels.upperBound - 1
    }

    /// Adds a block of a minute.
    /// - Throws: `GraphBlockError`. The builder is of no use after an error.
    public mutating func add(_ block: [UInt8]) throws(GraphBlockError) { try BlockReader.visit(block, &sums) }

    /// Adds what was summed of minutes before, for the same selector.
    public mutating func add(_ minutes: SeriesMinutes) throws(GraphBlockError) {
        try minutes.forEach { (minute, sum) in sums.add(sum, of: minute) }
    }

    /// The points, newest first.
    public consuming func build() -> [TimeSeriesPoint] {
        var points: [TimeSeriesPoint] = []
        let minutes = sums.minutes
        var baseline = FaultBaseline()
        var next = self.minutes.lowerBound
        var label = labels.lowerBound
        while label < labels.upperBound {
            // Selected minutes are merged under the label rounded up to the period.
            let bucketEnd = -floorDivide(-label * 60, by: period) * period
            let end = min(bucketEnd / 60 + 1, labels.upperBound)
            var sum = MinuteSum()
            // The minute a label belongs to began one minute before it.
            if hasForecast {
                while next < label - 1 {
                    baseline.close(minutes[next])
                    next += 1
                }
            }
            for minute in (label - 1)..<(end - 1) { if let found = minutes[minute] { sum.add(found) } }
            label = end
            guard sum.observations > 0 else { continue }
            let summary = sum.summary
            points.append(
                TimeSeriesPoint(
                    time: bucketEnd, summary: summary, responseTimeHistogram: HistogramEntry.entries(of: sum.buckets),
                    faultForecast: hasForecast ? baseline.faults(expectedOf: summary.totalCount) : nil))
        }
        return points.reversed()
    }
}

/// What one minute saw.
struct MinuteSum {
    /// Of anything.
    var observations: Int64 = 0
    /// Of the selected subjects, by `OutcomeClass.rawValue`.
    var outcomes = InlineArray<4, Int64>(repeating: 0)
    var responses: [Int64: BucketSum] = [:]

    mutating func add(_ other: MinuteSum) {
        observations &+= other.observations
        for outcome in 0..<4 { outcomes[outcome] &+= other.outcomes[outcome] }
        for (bucket, sum) in other.responses { addResponse(bucket, count: sum.count, sum: sum.sum) }
    }

    mutating func addResponse(_ bucket: Int64, count: Int64, sum: Micros) {
        let known = responses[bucket] ?? BucketSum(count: 0, sum: 0)
        responses[bucket] = BucketSum(count: known.count &+ count, sum: known.sum &+ sum)
    }

    /// The buckets that hold something, ascending.
    var buckets: [BucketSum] {
        responses.filter { $0.value.count > 0 }.sorted { $0.key < $1.key }.map(\.value)
    }

    var summary: SummaryStatistics {
        var summary = SummaryStatistics()
        summary.okCount = outcomes[Int(OutcomeClass.ok.rawValue)]
        summary.errorCount = outcomes[Int(OutcomeClass.error.rawValue)]
        summary.faultCount = outcomes[Int(OutcomeClass.fault.rawValue)]
        summary.throttleCount = outcomes[Int(OutcomeClass.throttle.rawValue)]
        summary.totalResponseTime = buckets.reduce(0) { $0 &+ $1.sum }
        return summary
    }
}

/// What minutes saw of a selector, as bytes: to be kept for further series, not to be stored.
public struct SeriesMinutes: Sendable {
    // Per minute: minute, observations, counts of the four classes, number of buckets; per bucket its distance from the
    // one before, count, and sum beyond the least it can be.
    private var writer = ByteWriter()

    /// Nothing was seen.
    public init() {}

    /// Sums blocks of whole minutes.
    /// - Throws: `GraphBlockError`.
    public init(of blocks: [[UInt8]], _ selector: SeriesSelector) throws(GraphBlockError) {
        var sums = SeriesSums(selector: selector)
        for block in blocks { try BlockReader.visit(block, &sums) }
        for (minute, sum) in sums.minutes.sorted(by: { $0.key < $1.key }) { write(minute, sum) }
    }

    public var byteCount: Int { writer.bytes.count }

    public mutating func append(_ other: SeriesMinutes) { writer.bytes += other.writer.bytes }

    /// The minutes with any observation.
    public func observedMinutes() throws(GraphBlockError) -> [Int64] {
        var minutes: [Int64] = []
        try forEach { (minute, sum) in if sum.observations > 0 { minutes.append(minute) } }
        return minutes
    }

    private mutating func write(_ minute: Int64, _ sum: MinuteSum) {
        writer.signed(minute)
        writer.signed(sum.observations)
        for outcome in 0..<4 { writer.signed(sum.outcomes[outcome]) }
        writer.count(sum.responses.count)
        var previous: Int64 = 0
        for (bucket, response) in sum.responses.sorted(by: { $0.key < $1.key }) {
            writer.signed(bucket &- previous)
            previous = bucket
            writer.signed(response.count)
            writer.signed(response.sum &- response.count &* HistogramBucket.lowerBound(bucket))
        }
    }

    func forEach(_ body: (Int64, MinuteSum) -> Void) throws(GraphBlockError) {
        try writer.bytes.withUnsafeBufferPointer { buffer throws(GraphBlockError) in
            var reader = ByteReader(UnsafeRawBufferPointer(buffer))
            while !reader.isAtEnd {
                let minute = try reader.signed()
                var sum = MinuteSum()
                sum.observations = try reader.signed()
                for outcome in 0..<4 { sum.outcomes[outcome] = try reader.signed() }
                let count = try reader.count(bytesEach: 3)
                sum.responses.reserveCapacity(count)
                var bucket: Int64 = 0
                for _ in 0..<count {
                    bucket &+= try reader.signed()
                    let count = try reader.signed()
                    let rest = try reader.signed()
                    sum.responses[bucket] = BucketSum(
                        count: count, sum: rest &+ count &* HistogramBucket.lowerBound(bucket))
                }
                body(minute, sum)
            }
        }
    }
}

/// Counts may be negative in a block: sums of all blocks of a minute are what counts, so they are only added here.
private struct SeriesSums: BlockVisitor {
    private(set) var minutes: [Int64: MinuteSum] = [:]
    private let selector: SeriesSelector
    private var isNodeSelected: [Bool] = []
    /// 0: not selected, 1: counted, 2: counted without response times (a link).
    private var edgeSelections: [UInt8] = []
    private var minute: Int64 = 0
    private var selection: UInt8 = 0

    init(selector: SeriesSelector) { self.selector = selector }

    mutating func add(_ sum: MinuteSum, of minute: Int64) {
        if minutes[minute]?.add(sum) == nil { minutes[minute] = sum }
    }

    mutating func begin(_ header: BlockHeader) throws(GraphBlockError) {
        guard header.span == GraphBlock.Format.minuteSpan, !header.isRollUp else { throw .needsWholeSeconds }
        minute = floorDivide(header.base, by: 60)
        let nodes = header.nodes.map { node in
            let label = header.labels[node.label]
            return NodeIdentity(
                name: ExactString(header.strings[label.name]),
                type: label.type < 0 ? nil : ExactString(header.strings[label.type]),
                account: ExactString(header.strings[node.account]))
        }
        func isClient(_ node: Int) -> Bool { nodes[node].type == TimeSeriesBuilder.clientType }
        switch selector {
        case .clientEdges:
            isNodeSelected = nodes.map { _ in false }
            edgeSelections = header.edges.map { isClient($0.source) && !$0.isLink ? 1 : 0 }
        case .nodes(let pattern):
            isNodeSelected = nodes.map { pattern.matches($0) }
            edgeSelections = header.edges.map { edge in
                isClient(edge.source) && !edge.isLink && isNodeSelected[edge.source] ? 1 : 0
            }
        case .edges(let source, let destination):
            isNodeSelected = nodes.map { _ in false }
            edgeSelections = header.edges.map { edge in
                guard source.matches(nodes[edge.source]), destination.matches(nodes[edge.destination]) else { return 0 }
                return edge.isLink ? 2 : 1
            }
        }
    }

    mutating func beginGroup(node: Int, second: Int64) -> Bool {
        selection = isNodeSelected[node] ? 1 : 0
        return true
    }

    mutating func beginGroup(edge: Int, second: Int64) -> Bool {
        selection = edgeSelections[edge]
        return true
    }

    mutating func presence(flags: UInt8, rootStart: Int64, count: Int64) {}

    mutating func outcome(_ outcome: Int, count: Int64) {
        minutes[minute, default: MinuteSum()].observations &+= count
        if selection > 0 { minutes[minute, default: MinuteSum()].outcomes[outcome] &+= count }
    }

    mutating func response(bucket: Int64, count: Int64, sum: Micros) {
        if selection == 1 { minutes[minute, default: MinuteSum()].addResponse(bucket, count: count, sum: sum) }
    }

    mutating func duration(bucket: Int64, count: Int64, sum: Micros) {}

    mutating func sighting(edge: Int, label: Int, second: Int64, start: Micros, id: UInt64, count: Int64) {}
}

// MARK: - Forecast

/// How many faults to expect (`insights.md` §3–§5): decayed sums of requests and faults, from which minutes of an incident
/// are kept out, so that incidents do not become normal.
struct FaultBaseline {
    /// Half-life of six hours.
    private static let decay = 0.998_076_443_575_628_7  // 2^(-1/360)
    private static let recoveryMinutes = 10

    private var requests = 0.0
    private var faults = 0.0
    /// Counts of the last five minutes.
    private var recent: [(requests: Int64, faults: Int64)] = []
    /// Whether the last evaluations were bad.
    private var verdicts: [Bool] = []
    private var isAnomalous = false
    private var calmMinutes = 0

    /// Expected share of faults: a prior of 1 % worth 100 requests.
    var faultRate: Double { (faults + 1) / (requests + 100) }

    /// The band of `insights.md` §4.
    func faults(expectedOf requests: Int64) -> ClosedRange<Int64> {
        let mean = Double(requests) * faultRate
        let deviation = (mean * (1 - faultRate)).squareRoot()
        let high = (mean + 3 * deviation + 1).rounded(.up)
        let low = max(0, (mean - 3 * deviation).rounded(.down))
        return Int64(low)...Int64(max(low, high))
    }

    /// Takes a minute that is over.
    /// - Parameter minute: nil: nothing was seen in it.
    mutating func close(_ minute: MinuteSum?) {
        let counts = minute?.summary ?? SummaryStatistics()
        recent.append((counts.totalCount, counts.faultCount))
        if recent.count > 5 { recent.removeFirst() }
        let requests5 = recent.reduce(0) { $0 &+ $1.requests }
        let faults5 = recent.reduce(0) { $0 &+ $1.faults }
        let isCalm = faults5 <= faults(expectedOf: requests5).upperBound
        let isBad =
            requests5 >= 10 && faults5 >= 5 && !isCalm && Double(faults5) / Double(requests5) >= faultRate + 0.02
            && counts.faultCount > 0
        verdicts.append(isBad)
        if verdicts.count > 3 { verdicts.removeFirst() }
        calmMinutes = isCalm ? calmMinutes + 1 : 0
        if verdicts.count(where: { $0 }) >= 2 {
            isAnomalous = true
        } else if calmMinutes >= Self.recoveryMinutes {
            isAnomalous = false
        }
        requests *= Self.decay
        faults *= Self.decay
        guard !isBad, !isAnomalous else { return }
        requests += Double(counts.totalCount)
        faults += Double(counts.faultCount)
    }
}
