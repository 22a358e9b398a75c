// Rows of the graph's tables as an aggregator leaves them, over random traces: deltas of commits, corrections, merges.

import Fixtures
import Logging
import Observability
import Query
import Segments
import ServiceGraph
import Synchronization
import TraceAssembly
import XRayAPI

/// Rows over a few hours from `start` on.
struct RollUpWorld {
    /// On an hour.
    static let start: Int64 = 1_700_000_000 / 3_600 * 3_600
    static let hours: Int64 = 4

    var generator: TraceGenerator
    private(set) var rows: [InMemoryTraces.BlockRow] = []
    private var names = 0
    private var traces: [TraceID: Trace] = [:]
    private var used: [TraceID: [Link: LinkFacts]] = [:]
    /// Documents that are still to come, and rows that are withheld: others take back what these have not brought yet.
    private var waiting: [String] = []
    private var withheld: [GraphBlock] = []
    private let parser = SegmentParser()

    init(random: SeededGenerator) {
        generator = TraceGenerator(random: random, oddities: .init(percent: 8, orderMatters: false))
        generator.spreadSeconds = 120
    }

    private mutating func below(_ bound: Int) -> Int { Int.random(in: 0..<bound, using: &generator.random) }

    mutating func append(_ blocks: [GraphBlock]) {
        for block in blocks {
            names += 1
            rows.append(.init(name: names, version: 1 + below(2), minute: block.minute, bytes: block.bytes))
        }
    }

    /// New traces and late documents of old ones, each batch as the rows of one commit.
    mutating func commit(traces count: Int) throws {
        for _ in 0..<count {
            let second = Self.start + Int64(below(Int(Self.hours) * 3_600 - 300))
            waiting += generator.trace(startSecond: second).documents
        }
        waiting.shuffle(using: &generator.random)
        let late = waiting.count / 3
        var changed: [TraceID: Trace?] = [:]
        for document in waiting.dropLast(late) {
            let bytes = Array(document.utf8)
            let parsed = try parser.parse(bytes)
            let old = traces[parsed.traceID]
            var trace = old ?? Trace(id: parsed.traceID, account: account)
            guard bytes.withUnsafeBytes({ trace.fold(parsed, bytes: $0, receivedAt: 0) }) == .changed else { continue }
            if changed[parsed.traceID] == nil { changed[parsed.traceID] = .some(old) }
            traces[parsed.traceID] = trace
        }
        waiting = Array(waiting.suffix(late))
        var taken = Contributions()
        var added = Contributions()
        for (id, old) in changed.sorted(by: { $0.key < $1.key }) {
            if let old { taken.subtract(Forest(old), links: used[id, default: [:]]) }
            guard let new = traces[id] else { continue }
            used[id] = facts(for: new)
            added.add(Forest(new), links: used[id, default: [:]])
        }
        append(withheld)
        withheld = []
        append(taken.blocks())
        for block in added.blocks() {
            if generator.random.chance(5) { withheld.append(block) } else { append([block]) }
        }
    }

    private func facts(for trace: Trace) -> [Link: LinkFacts] {
        var result: [Link: LinkFacts] = [:]
        for link in linksInUse(of: trace) {
            guard let producer = traces[link.traceID].map({ Forest($0) }) else { continue }
            result[link] = linkFacts(
                of: link.entityID, in: producer, rootIsLinked: rootIsLinked(producer, isResolved: { _ in false }))
        }
        return result
    }

    /// Merges the rows of some minutes, as the compactor does it: one row per version.
    mutating func merge(percent: Int) throws {
        for minute in Set(rows.map(\.minute)).sorted() where generator.random.chance(percent) {
            for version in 1...2 {
                let merged = rows.filter { $0.minute == minute && $0.version == version }
                guard merged.count > 1 else { continue }
                rows.removeAll { $0.minute == minute && $0.version == version }
                names += 1
                if let sum = try GraphBlock.merge(merged.map(\.bytes)) {
                    rows.append(.init(name: names, version: version, minute: minute, bytes: sum.bytes))
                }
            }
        }
    }

    /// As retention does it.
    mutating func remove(minutes: Range<Int64>) { rows.removeAll { minutes.contains($0.minute) } }

    /// Any seconds of the hours.
    mutating func window() -> Range<Int64> {
        let length = Int64(Self.hours) * 3_600
        let first = Int64.random(in: 0..<length, using: &generator.random)
        let last = Int64.random(in: (first + 1)...length, using: &generator.random)
        if generator.random.chance(20) { return Self.start..<(Self.start + length) }
        if generator.random.chance(20) {
            return (Self.start + first)..<(Self.start + min(length, first + 1 + (last - first) % 150))
        }
        return (Self.start + first)..<(Self.start + last)
    }
}

/// A query node over rows: one with roll-ups, and one that reads everything anew for each answer.
struct RollUpBench {
    let traces: InMemoryTraces
    let metrics = Metrics()
    let node: QueryService
    let plain: QueryService
    let clock = TestClock()

    init(rollUpBytes: Int = 64 << 20) {
        let traces = InMemoryTraces()
        let clock = clock
        func service(_ bytes: Int, _ metrics: Metrics?) -> QueryService {
            var limits = QueryLimits()
            limits.rollUpBytes = bytes
            return QueryService(
                reading: traces, tokens: PageTokenSealer(secret: Array("secret".utf8)), limits: limits,
                metrics: metrics,
                logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }, now: { clock.now })
        }
        self.traces = traces
        node = service(rollUpBytes, metrics)
        plain = service(0, nil)
    }

    func set(_ rows: [InMemoryTraces.BlockRow]) { traces.state.withLock { $0.blockRows = rows } }

    /// Minutes whose rows were read since this was asked before.
    func minutesRead() -> [Int64] {
        traces.state.withLock { state in
            defer { state.minutesRead = [] }
            return state.minutesRead
        }
    }
}

enum RollUpCall {
    case graph(String)
    case series(String)

    func answer(_ service: QueryService, account: AccountID = account) async throws -> String {
        switch self {
        case .graph(let body): text(try await service.getServiceGraph(body: bytes(body), account: account))
        case .series(let body): text(try await service.getTimeSeries(body: bytes(body), account: account))
        }
    }
}
