// Links cross partitions: a consumer's contributions use facts of another trace, which may change at any time and whose
// owner cannot see a link that is being committed at the same moment. So after each commit, in a fresh snapshot, both
// sides look: whoever committed last sees the other, and asks for the consumer to be evaluated again by appending a
// touch to the log. A touch that changes nothing is harmless, so the check may be repeated after a crash
// (`log_positions.checked_position` says from where).

import SegmentLog
import Segments
import ServiceGraph
import TraceAssembly
import TraceStore

struct LinkRecheck: Sendable {
    let log: any SegmentLog
    let store: TraceStore
    /// Microseconds since 1970.
    let clock: @Sendable () -> Micros

    /// Touches every consumer whose stored facts are not those of its targets now.
    /// - Parameters:
    ///   - changed: traces that the commit changed, as producers.
    ///   - consumers: those of them that have links of their own.
    func run(changed: [TraceKey], consumers: [TraceKey]) async throws {
        let ownLinks = Dictionary(grouping: consumers, by: \.account)
        for (account, keys) in Dictionary(grouping: changed, by: \.account) {
            let pointing = try await store.links(account: account, toTargets: keys.map(\.id))
            let linked = ownLinks[account] ?? []
            let own = linked.isEmpty ? [] : try await store.links(account: account, ofConsumers: linked.map(\.id))
            let rows = Set(pointing).union(own)
            guard !rows.isEmpty else { continue }
            let parser = LinkFactsLookup.makeParser()
            let links = rows.map { Link(traceID: $0.target, entityID: $0.entity) }
            let facts = try await LinkFactsLookup.storedFacts(of: links, account: account, in: store, parser: parser)
            var outdated: Set<TraceID> = []
            for row in rows where facts[Link(traceID: row.target, entityID: row.entity)]?.encoded != row.facts {
                outdated.insert(row.consumer)
            }
            guard !outdated.isEmpty else { continue }
            let now = clock()
            let touches = outdated.sorted().map {
                LogRecord(kind: .touch, traceID: $0, account: account, receivedAt: now, source: .aggregator, value: nil)
            }
            try await log.append(LogRecordBatch(touches))
        }
    }

    /// Repeats the checks that a crash may have prevented.
    func resume(_ state: PartitionState) async throws {
        var offset = state.checkedPosition
        while offset < state.position {
            let batch: LogBatch
            do {
                batch = try await log.read(
                    partition: state.partition, from: offset, maxRecords: 2_000, maxBytes: 4 << 20)
            } catch let error {
                // What retention removed cannot be checked, and its traces were readable for as long as the log kept them.
                guard case .trimmed(let first) = error.code, first > offset else { throw error }
                offset = first
                continue
            }
            guard batch.nextOffset > offset else { break }
            let touched = batch.entries.filter { $0.offset < state.position && $0.poison == nil }
            let keys = Array(Set(touched.map { TraceKey(account: $0.account, id: $0.traceID) }))
            try await run(changed: keys, consumers: keys)
            offset = batch.nextOffset
        }
        _ = try await store.setChecked(
            partition: state.partition, position: state.position, ownerEpoch: state.ownerEpoch)
    }
}
