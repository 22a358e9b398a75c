// What cannot be compared row by row because it is divided and compressed by the accidents of batches: the documents of each
// trace, and the sum of the graph blocks of each minute.

import SegmentLog
import Segments
import ServiceGraph
import TraceAssembly
import TraceStore

/// Compares documents twice: all of them while aggregators work, then, while they stand still, those that differed or may
/// have changed since.
struct DocumentComparison {
    let old: TraceStore
    let new: TraceStore
    private(set) var oldCount = 0
    private(set) var newCount = 0
    private(set) var suspects: Set<TraceKey> = []

    init(old: TraceStore, new: TraceStore) {
        self.old = old
        self.new = new
    }

    /// Goes through all traces of both.
    mutating func compareAll(progress: @Sendable (Int) -> Void) async throws {
        let accounts = Set(try await old.accountsWithDocuments()).union(try await new.accountsWithDocuments())
        for account in accounts.sorted() {
            var left = Pages(store: old, account: account)
            var right = Pages(store: new, account: account)
            var (a, b) = (try await left.next(), try await right.next())
            while a != nil || b != nil {
                try Task.checkCancellation()
                if let first = a, b.map({ first.id < $0.id }) ?? true {
                    suspects.insert(TraceKey(account: account, id: first.id))
                    oldCount += first.count
                    a = try await left.next()
                } else if let second = b, a.map({ second.id < $0.id }) ?? true {
                    suspects.insert(TraceKey(account: account, id: second.id))
                    newCount += second.count
                    b = try await right.next()
                } else if let first = a, let second = b {
                    if first.digest != second.digest { suspects.insert(TraceKey(account: account, id: first.id)) }
                    oldCount += first.count
                    newCount += second.count
                    progress(1)
                    (a, b) = (try await left.next(), try await right.next())
                }
            }
        }
    }

    /// Compares the suspects and the traces given.
    /// - Returns: the comparison as of now.
    mutating func compareAgain(_ changed: Set<TraceKey>, firstDay: Int) async throws -> RowComparison {
        var result = RowComparison(table: "documents", oldCount: 0, newCount: 0, differing: 0)
        for (account, keys) in Dictionary(grouping: suspects.union(changed), by: \.account) {
            var rest = keys.sorted { $0.id < $1.id }[...]
            while !rest.isEmpty {
                let ids = rest.prefix(200).map(\.id)
                rest = rest.dropFirst(200)
                let before = Self.digests(try await old.documentedTraces(account: account, ids: ids))
                let after = Self.digests(try await new.documentedTraces(account: account, ids: ids))
                for id in ids where before[id]?.digest != after[id]?.digest {
                    // Retention has removed a part of the documents: the old tables cannot have them.
                    let (first, last) = (before[id], after[id])
                    if let day = (first ?? last)?.day, day < firstDay {
                        result.cut += 1
                        continue
                    }
                    result.differing += 1
                    if result.examples.count < 5 {
                        result.examples.append(
                            "\(account) \(id): \(first?.count ?? 0) documents, now \(last?.count ?? 0)")
                    }
                }
            }
        }
        result.oldCount = try await old.revisionSum()
        result.newCount = try await new.revisionSum()
        return result
    }

    fileprivate struct Digest {
        var id: TraceID
        var count: Int
        var day: Int
        var digest: UInt64
    }

    fileprivate static func digest(_ trace: StoredTrace) -> Digest {
        var hash: UInt64 = 0xcbf2_9ce4_8422_2325
        for document in trace.documents {
            let content = document.bytes.withUnsafeBytes { Trace.contentHash(of: $0) }
            for word in [
                UInt64(bitPattern: Int64(document.partition)), UInt64(bitPattern: document.offset),
                UInt64(bitPattern: document.receivedAt), content,
            ] {
                hash = (hash ^ word) &* 0x9E37_79B9_7F4A_7C15
                hash ^= hash >> 29
            }
        }
        return Digest(id: trace.id, count: trace.documents.count, day: trace.day, digest: hash)
    }

    private static func digests(_ traces: [StoredTrace]) -> [TraceID: Digest] {
        Dictionary(traces.map { ($0.id, digest($0)) }) { $1 }
    }

    /// The traces of one account in order of id.
    private struct Pages {
        let store: TraceStore
        let account: AccountID
        private var waiting: ArraySlice<Digest> = []
        private var from: TraceID? = TraceID(high: 0, low: 0)
        private var limit = 100

        init(store: TraceStore, account: AccountID) {
            self.store = store
            self.account = account
        }

        mutating func next() async throws -> Digest? {
            if waiting.isEmpty, let first = from {
                let page = try await store.documentedTraces(account: account, from: first, limit: limit)
                from = page.last?.id.next
                let bytes = page.reduce(0) { $0 + $1.documents.reduce(0) { $0 + $1.bytes.count } }
                limit = min(max((8 << 20) / max(bytes / max(page.count, 1), 1), 10), 2_000)
                waiting = page.map(DocumentComparison.digest)[...]
            }
            return waiting.popFirst()
        }
    }
}

/// Compares the sums of all minutes.
struct GraphComparer {
    let old: TraceStore
    let new: TraceStore
    /// What the old tables are about to correct (`PendingLinks`), by account.
    var corrections: [AccountID: Contributions] = [:]

    /// - Parameter firstDay: minutes before it may have lost a part to retention.
    func compare(firstDay: Int) async throws -> RowComparison {
        var result = RowComparison(table: "graph minutes", oldCount: 0, newCount: 0, differing: 0)
        let accounts = Set(try await old.accountsWithGraphs()).union(try await new.accountsWithGraphs())
        for account in accounts.union(corrections.keys).sorted() {
            var sizes: [Int64: Int] = [:]
            for store in [old, new] {
                for (minute, size) in try await store.graphMinutes(account: account) {
                    sizes[minute, default: 0] += size
                }
            }
            let expected = Dictionary(
                corrections[account]?.blocks().map { ($0.minute, [$0.bytes]) } ?? [], uniquingKeysWith: +)
            for minute in expected.keys { sizes[minute, default: 0] += 0 }
            var minutes = sizes.keys.sorted()[...]
            while let first = minutes.first {
                var bytes = 0
                var last = first
                while let next = minutes.first, bytes < 8 << 20 {
                    bytes += sizes[next] ?? 0
                    last = next
                    minutes.removeFirst()
                }
                let range = first..<last + 1
                var before = Dictionary(
                    grouping: try await old.graphBlocks(account: account, minutes: range), by: \.minute
                )
                .mapValues { $0.map(\.bytes) }
                let after = Dictionary(
                    grouping: try await new.graphBlocks(account: account, minutes: range), by: \.minute
                )
                .mapValues { $0.map(\.bytes) }
                for (minute, blocks) in expected where range.contains(minute) { before[minute, default: []] += blocks }
                for minute in Set(before.keys).union(after.keys).sorted() {
                    let a = try GraphBlock.merge(before[minute] ?? [])?.bytes
                    let b = try GraphBlock.merge(after[minute] ?? [])?.bytes
                    result.oldCount += a == nil ? 0 : 1
                    result.newCount += b == nil ? 0 : 1
                    guard a != b else { continue }
                    if minute < Int64(firstDay) * 1_440 {
                        result.cut += 1
                        continue
                    }
                    result.differing += 1
                    if result.examples.count < 5 { result.examples.append("\(account) minute \(minute * 60)") }
                }
            }
        }
        return result
    }
}

/// Links whose facts the old tables were about to bring up to date when their aggregators were held still. The new tables are
/// ahead of them there, rightly: such links are not counted as differences, and what their consumers' contributions will change
/// by is added to the old sums.
struct PendingLinks {
    private(set) var comparison = RowComparison(table: "facts of links", oldCount: 0, newCount: 0, differing: 0)
    private(set) var corrections: [AccountID: Contributions] = [:]

    init(
        _ differing: [DifferingLink], fence: RebuildFence, log: any SegmentLog, old: TraceStore, new: TraceStore
    ) async throws {
        guard !differing.isEmpty else { return }
        let pending = try await Self.pending(fence, log: log, in: new)
        let parser = LinkFactsLookup.makeParser()
        for (account, links) in Dictionary(grouping: differing, by: \.account) {
            for (consumer, rows) in Dictionary(grouping: links, by: \.old.consumer).sorted(by: { $0.key < $1.key }) {
                guard pending.contains(TraceKey(account: account, id: consumer)) else {
                    comparison.differing += rows.count
                    if comparison.examples.count < 5 { comparison.examples.append("\(account) \(consumer)") }
                    continue
                }
                guard let stored = try await new.storedTraces(account: account, ids: [consumer]).first else { continue }
                let forest = Forest(LinkFactsLookup.refold(stored, account: account, parser: parser))
                let before = try await LinkFactsLookup.usedFacts(of: [consumer], account: account, in: old)
                let after = try await LinkFactsLookup.usedFacts(of: [consumer], account: account, in: new)
                corrections[account, default: Contributions()].subtract(forest, links: before[consumer] ?? [:])
                corrections[account, default: Contributions()].add(forest, links: after[consumer] ?? [:])
            }
        }
    }

    /// Consumers that the old tables' aggregators have been, or will be, asked to look at again: of touches that wait in the
    /// log, of traces whose links have not been re-checked since they changed, and of consumers among these.
    private static func pending(
        _ fence: RebuildFence, log: any SegmentLog, in store: TraceStore
    ) async throws -> Set<TraceKey> {
        var changed: Set<TraceKey> = []
        let ends = try await log.endOffsets()
        for state in fence.positions where state.partition < ends.count {
            var offset = min(state.checkedPosition, state.position)
            while offset < ends[state.partition] {
                let batch: LogBatch
                do {
                    batch = try await log.read(
                        partition: state.partition, from: offset, maxRecords: 4_000, maxBytes: 4 << 20)
                } catch let error {
                    guard case .trimmed(let first) = error.code, first > offset else { throw error }
                    offset = first
                    continue
                }
                guard batch.nextOffset > offset else { break }
                for entry in batch.entries where entry.kind == .touch || entry.offset < state.position {
                    changed.insert(TraceKey(account: entry.account, id: entry.traceID))
                }
                offset = batch.nextOffset
            }
        }
        var new = changed
        while !new.isEmpty {
            var next: Set<TraceKey> = []
            for (account, keys) in Dictionary(grouping: new, by: \.account) {
                for link in try await store.links(account: account, toTargets: keys.map(\.id)) {
                    next.insert(TraceKey(account: account, id: link.consumer))
                }
            }
            new = next.subtracting(changed)
            changed.formUnion(new)
        }
        return changed
    }
}
