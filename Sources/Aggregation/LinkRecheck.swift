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
        let outdated = try await Self.outdated(changed: changed, consumers: consumers, in: store)
        guard !outdated.isEmpty else { return }
        let now = clock()
        let touches = outdated.map {
            LogRecord(kind: .touch, traceID: $0.id, account: $0.account, receivedAt: now, source: .aggregator, value: nil)
        }
        try await log.append(LogRecordBatch(touches))
    }

    /// Consumers whose stored facts are not those of their targets now; parameters as of `run`.
    static func outdated(
        changed: [TraceKey], consumers: [TraceKey], in store: TraceStore
    ) async throws(TraceStoreError) -> [TraceKey] {
        let ownLinks = Dictionary(grouping: consumers, by: \.account)
        var result: [TraceKey] = []
        for (account, keys) in Dictionary(grouping: changed, by: \.account) {
            let pointing = try await store.links(account: account, toTargets: keys.map(\.id))
            let linked = ownLinks[account] ?? []
            let own = linked.isEmpty ? [] : try await store.links(account: account, ofConsumers: linked.map(\.id))
            let rows = Set(pointing).union(own)
            result += try await outdated(rows, account: account, in: store).map { TraceKey(account: account, id: $0) }
        }
        return result
    }

    /// Consumers among the rows whose facts are not those of their targets now, in order.
    static func outdated(
        _ rows: Set<StoredLink>, account: AccountID, in store: TraceStore
    ) async throws(TraceStoreError) -> [TraceID] {
        guard !rows.isEmpty else { return [] }
        let parser = LinkFactsLookup.makeParser()
        let links = rows.map { Link(traceID: $0.target, entityID: $0.entity) }
        let members = try await store.groupMembers(account: account, traces: Array(Set(rows.map(\.consumer))))
        let facts = try await LinkFactsLookup.storedFacts(
            of: links, account: account, hasGroups: !members.isEmpty, in: store, parser: parser)
        var outdated: Set<TraceID> = []
        for row in rows where facts.all[Link(traceID: row.target, entityID: row.entity)]?.encoded != row.facts {
            outdated.insert(row.consumer)
        }
        let rowsOf = members.isEmpty ? [:] : Dictionary(grouping: rows, by: \.consumer)
        for member in members where !outdated.contains(member.trace) {
            let used = GroupLinks.decode(member.links)
            let now = facts.groups[member.groupKey] ?? [:]
            let isChanged = (rowsOf[member.trace] ?? []).contains { row in
                let link = Link(traceID: row.target, entityID: row.entity)
                return used[link] != now[link]
            }
            if isChanged { outdated.insert(member.trace) }
        }
        return outdated.sorted()
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
