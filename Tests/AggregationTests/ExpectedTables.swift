// What the tables must hold for a log: every trace folded from its first document, the graph of all of them, by the pure
// functions and without batches, caches, retractions or touches. Compared with what is served.

import Aggregation
import Fixtures
import SegmentLog
import Segments
import ServiceGraph
import Testing
import TraceAssembly
import TraceStore

struct ExpectedTables {
    private struct Entry {
        var trace: Trace
        var documents: [StoredDocument] = []
    }

    private var entries: [TraceID: Entry] = [:]
    /// Codes of the inbox by (partition, offset).
    private(set) var refusals: [String] = []

    /// - Parameter log: every record, the partitions one after the other.
    init(of log: [LogBatch], limits: TraceLimits = TraceLimits(traceBytes: 512_000)) {
        let parser = SegmentParser()
        for batch in log {
            for record in batch.entries where record.kind == .document {
                let parsed = record.value.withUnsafeBytes { bytes in
                    Result { () throws(Refusal) in try parser.parse(bytes) }
                }
                switch parsed {
                case .failure(let refusal):
                    refusals.append("\(batch.partition)/\(record.offset) \(refusal.code)")
                case .success(let document) where document.traceID != record.traceID:
                    refusals.append("\(batch.partition)/\(record.offset) InvalidTraceId")
                case .success(let document):
                    var entry =
                        entries.removeValue(forKey: record.traceID)
                        ?? Entry(trace: Trace(id: record.traceID, account: account))
                    let result = record.value.withUnsafeBytes {
                        entry.trace.fold(document, bytes: $0, receivedAt: record.receivedAt, limits: limits)
                    }
                    if result == .changed {
                        entry.documents.append(
                            StoredDocument(
                                receivedAt: record.receivedAt, partition: batch.partition, offset: record.offset,
                                bytes: record.value))
                    } else if result == .overLimit {
                        refusals.append("\(batch.partition)/\(record.offset) TraceSizeLimitExceeded")
                    }
                    entries[record.traceID] = entry
                }
            }
        }
        refusals.sort()
    }

    /// - Parameter stored: traces as the tables have them; their documents are folded in the order they are stored in.
    init(stored: [StoredTrace]) {
        let parser = SegmentParser()
        for found in stored {
            var entry = Entry(
                trace: Trace(id: found.id, account: account, limitExceeded: found.limitExceeded),
                documents: found.documents)
            for document in found.documents {
                document.bytes.withUnsafeBytes { bytes in
                    guard let parsed = try? parser.parse(bytes) else { return }
                    _ = entry.trace.fold(parsed, bytes: bytes, receivedAt: document.receivedAt, limits: .unlimited)
                }
            }
            entries[found.id] = entry
        }
    }

    /// What the links of each consumer resolve to.
    private func facts(_ forests: [TraceID: Forest]) -> [TraceID: [Link: LinkFacts]] {
        func isStored(_ link: Link) -> Bool {
            guard let producer = forests[link.traceID], let index = producer.trace.indexes[link.entityID] else {
                return false
            }
            return producer.isAttached(index)
        }
        return forests.mapValues { forest in
            var facts: [Link: LinkFacts] = [:]
            for link in linksInUse(of: forest.trace) {
                guard let producer = forests[link.traceID] else { continue }
                facts[link] = linkFacts(
                    of: link.entityID, in: producer, rootIsLinked: rootIsLinked(producer, isResolved: isStored))
            }
            return facts
        }
    }

    /// The contributions of everything, one block per minute.
    func blocks() -> [GraphBlock] {
        let forests = entries.mapValues { Forest($0.trace) }
        let facts = facts(forests)
        var sum = Contributions()
        for (id, forest) in forests { sum.add(forest, links: facts[id] ?? [:]) }
        return sum.blocks()
    }

    /// Rows of `links` that do not say what their links resolve to.
    private func wrongLinks(in store: TraceStore) async throws -> [String] {
        let facts = facts(entries.mapValues { Forest($0.trace) })
        return try await store.links(account: account, ofConsumers: Array(entries.keys)).compactMap { row in
            let expected = facts[row.consumer]?[Link(traceID: row.target, entityID: row.entity)]
            guard expected?.encoded != row.facts else { return nil }
            return "the link of \(row.consumer) to \(row.target) \(row.entity) is \(row.facts == nil ? "not " : "")resolved"
        }
    }

    func graph(_ window: Range<Int64>? = nil) throws -> ServiceGraphResult {
        try graphOf(blocks().map(\.bytes), window)
    }

    /// What differs between the tables and this; empty when nothing does.
    func differences(from store: TraceStore) async throws -> [String] {
        var found: [String] = []
        let expected = blocks()
        let rows = try await store.graphBlocks(account: account, minutes: allMinutes)
        let served = try Dictionary(grouping: rows, by: \.minute)
            .compactMapValues { try GraphBlock.merge($0.map(\.bytes))?.bytes }
        if served != Dictionary(expected.map { ($0.minute, $0.bytes) }, uniquingKeysWith: { $1 }) {
            found.append("the observations differ")
        }
        found += try await wrongLinks(in: store)
        let windows = [nil, startSecond..<startSecond + 60, startSecond + 17..<startSecond + 71, 0..<startSecond + 133]
        for window in windows {
            let served = try graphOf(rows.map(\.bytes), window)
            let expected = try graphOf(expected.map(\.bytes), window)
            if served != expected {
                found.append("the graph of \(window.map { "\($0)" } ?? "everything") differs")
                found += Self.parts(of: served).subtracting(Self.parts(of: expected)).sorted().map { "served: \($0)" }
                found += Self.parts(of: expected).subtracting(Self.parts(of: served)).sorted().map { "expected: \($0)" }
            }
        }

        // A trace that only refused documents have seen has a row, so that its limit is remembered.
        let known = entries.filter { !$0.value.documents.isEmpty || $0.value.trace.limitExceeded }
        let ids = try await store.traceIDs(account: account, after: nil, limit: 1_000_000)
        if Set(ids) != Set(known.keys) { found.append("\(ids.count) traces are stored, not \(known.count)") }
        let parser = SegmentParser()
        for stored in try await store.storedTraces(account: account, ids: ids) {
            guard let entry = known[stored.id] else { continue }
            if stored.documents != entry.documents { found.append("documents of \(stored.id) differ") }
            if stored.revision != entry.trace.revision || stored.limitExceeded != entry.trace.limitExceeded {
                found.append("revision or limit of \(stored.id) differ")
            }
            var refolded = Trace(id: stored.id, account: account, limitExceeded: stored.limitExceeded)
            for document in stored.documents {
                let parsed = try parser.parse(Array(document.bytes))
                _ = document.bytes.withUnsafeBytes {
                    refolded.fold(parsed, bytes: $0, receivedAt: document.receivedAt)
                }
            }
            if Self.state(of: refolded) != Self.state(of: entry.trace) { found.append("state of \(stored.id) differs") }
        }

        for type in TimeRangeType.allCases {
            let page = try await store.summaryPage(
                account: account, rangeType: type, window: 0..<1 << 40, after: nil, limit: 1_000_000)
            let clocks = known.compactMapValues { entry -> Micros? in
                let clocks = SummaryClocks(forest: Forest(entry.trace))
                guard clocks.rootStart != nil else { return nil }
                switch type {
                case .traceID: return clocks.rootStart
                case .event: return clocks.receipts.last
                case .service: return clocks.ends.last
                }
            }
            if Dictionary(page.map { ($0.id, $0.clock) }, uniquingKeysWith: { $1 }) != clocks {
                found.append("search by \(type) finds other traces")
            }
        }
        return found
    }

    /// One line for each node and edge.
    private static func parts(of graph: ServiceGraphResult) -> Set<String> {
        func name(_ service: GraphService) -> String { "\(service.name) (\(service.type ?? "no type"))" }
        return Set(
            graph.services.flatMap { service in
                var node = service
                node.edges = []
                node.referenceID = 0
                return ["\(node)"]
                    + service.edges.map { edge in
                        var edge = edge
                        let target = name(graph.services[edge.referenceID])
                        edge.referenceID = 0
                        return "\(name(service)) → \(target): \(edge)"
                    }
            })
    }

    private static func state(of trace: Trace) -> [String] {
        trace.entities.map { "\($0.entity.id) \($0.document) \($0.ordinal) \($0.entity.isOpen)" }
            + ["\(trace.revision) \(trace.storedBytes) \(trace.receipts)"]
    }
}

let allMinutes: Range<Int64> = -(1 << 40)..<1 << 40

func graphOf(_ blocks: [[UInt8]], _ window: Range<Int64>?) throws -> ServiceGraphResult {
    var builder = ServiceGraphBuilder(receivingAccount: account, window: window)
    for block in blocks { try builder.add(block) }
    return try builder.build()
}

extension AggregationWorld {
    /// What the tables of this world must hold now.
    func expected(limits: TraceLimits = TraceLimits(traceBytes: 512_000)) async throws -> ExpectedTables {
        ExpectedTables(of: try await everything(), limits: limits)
    }

    func servedGraph() async throws -> ServiceGraphResult {
        try graphOf(try await store.graphBlocks(account: account, minutes: allMinutes).map(\.bytes), nil)
    }

    func inboxCodes() async throws -> [String] {
        try await store.inbox(account: account, limit: 1_000_000).map { "\($0.partition)/\($0.offset) \($0.code)" }
            .sorted()
    }

    /// Waits until the tables hold what the log says, inbox included.
    func expectAgreement(
        limits: TraceLimits = TraceLimits(traceBytes: 512_000), _ comment: Comment? = nil,
        sourceLocation: SourceLocation = #_sourceLocation
    ) async throws {
        let expected = try await expected(limits: limits)
        var differences: [String] = []
        let agrees = try await eventually {
            guard try await isCaughtUp() else { return false }
            differences = try await expected.differences(from: store)
            return differences.isEmpty
        }
        if !agrees {
            Issue.record("\(differences.prefix(5)) \(comment?.rawValue ?? "")", sourceLocation: sourceLocation)
        }
        #expect(try await inboxCodes() == expected.refusals, sourceLocation: sourceLocation)
    }
}
