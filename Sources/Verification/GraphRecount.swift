// The service graph of a window, counted again from documents and nothing else: fold, forest, contributions, sum. What
// `beamline verify` compares with the graph that is served. Uses the pure functions of the core; never a stored block.

import Segments
import ServiceGraph
import TraceAssembly

public struct GraphRecount {
    private let account: AccountID
    private let window: Range<Int64>
    private let parser = SegmentParser(limits: SegmentLimits(documentBytes: .max))
    /// Blocks of the minutes that the window touches, one per batch of traces, merged as they pile up.
    private var blocks: [Int64: [[UInt8]]] = [:]
    public private(set) var traceCount = 0
    public private(set) var documentCount = 0

    /// - Parameter window: whole seconds since 1970.
    public init(account: AccountID, window: Range<Int64>) {
        self.account = account
        self.window = window
    }

    /// Counts everything the source has.
    public static func count(
        _ source: inout some DocumentSource, account: AccountID, window: Range<Int64>
    ) async throws -> GraphRecount {
        var recount = GraphRecount(account: account, window: window)
        while let traces = try await source.next() {
            let forests = traces.map { recount.forest($0) }
            var known = Dictionary(forests.map { ($0.trace.id, $0) }, uniquingKeysWith: { first, _ in first })
            // Targets of links, then what decides whether their own roots are linked.
            for _ in 0..<2 {
                let wanted = Set(known.values.flatMap { linksInUse(of: $0.trace).map(\.traceID) }).subtracting(known.keys)
                if wanted.isEmpty { break }
                for trace in try await source.traces(Array(wanted)) { known[trace.id] = recount.forest(trace) }
            }
            try recount.add(forests, known: known)
        }
        return recount
    }

    private func forest(_ recounted: RecountTrace) -> Forest {
        var trace = Trace(id: recounted.id, account: account)
        for document in recounted.documents {
            document.bytes.withUnsafeBytes { bytes in
                // A stored document was valid when it came in; if it no longer is, the counts will differ, which is the point.
                guard let parsed = try? parser.parse(bytes) else { return }
                _ = trace.fold(parsed, bytes: bytes, receivedAt: document.receivedAt)
            }
        }
        return Forest(trace)
    }

    private mutating func add(_ forests: [Forest], known: [TraceID: Forest]) throws {
        func isStored(_ link: Link) -> Bool {
            guard let producer = known[link.traceID], let index = producer.trace.indexes[link.entityID] else { return false }
            return producer.isAttached(index)
        }
        var sum = Contributions()
        for forest in forests {
            traceCount += 1
            documentCount += forest.trace.receipts.count
            var facts: [Link: LinkFacts] = [:]
            for link in linksInUse(of: forest.trace) {
                guard let producer = known[link.traceID] else { continue }
                facts[link] = linkFacts(
                    of: link.entityID, in: producer, rootIsLinked: rootIsLinked(producer, isResolved: isStored))
            }
            sum.add(forest, links: facts)
        }
        for block in sum.blocks() where window.overlaps(block.baseSecond..<(block.baseSecond + block.spanSeconds)) {
            var waiting = blocks.removeValue(forKey: block.baseSecond) ?? []
            waiting.append(block.bytes)
            if waiting.count >= 16, let merged = try GraphBlock.merge(waiting) { waiting = [merged.bytes] }
            blocks[block.baseSecond] = waiting
        }
    }

    public func graph() throws -> ServiceGraphResult {
        var builder = ServiceGraphBuilder(receivingAccount: account, window: window)
        for (_, waiting) in blocks.sorted(by: { $0.key < $1.key }) {
            for block in waiting { try builder.add(block) }
        }
        return try builder.build()
    }
}
