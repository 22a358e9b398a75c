// From records to rows: one batch of the log in, everything the transaction writes out. The traces that the batch
// touches come from the cache or from the store; their old contributions are taken back, their documents folded, their
// new contributions added. Nothing here depends on where a batch begins or ends.

import SearchIndex
import SegmentLog
import Segments
import ServiceGraph
import TraceAssembly
import TraceStore

/// What the worker must know of a folded batch besides its rows.
struct FoldedBatch {
    var rows = AggregationBatch()
    var recordCount = 0
    /// Traces whose entities changed: others may have links to them.
    var changed: [TraceKey] = []
    /// Traces whose links were evaluated.
    var consumers: [TraceKey] = []
    /// Every trace the batch looked at: the cache has their state after it.
    var touched: [TraceKey] = []
    var retractionCount = 0
    /// Entities of the touched traces that were there before the batch, and those that came with it.
    var knownEntityCount = 0
    var newEntityCount = 0
}

/// Folds batches one after the other. Owned by one worker, on its thread.
final class BatchFold {
    private struct Record {
        var partition: Int
        var entry: LogEntry
        var document: SegmentDocument

        /// The document, moved out: the fold need not copy its entities then.
        mutating func takeDocument() -> SegmentDocument {
            var taken = SegmentDocument(traceID: document.traceID, entities: [], enclosing: [])
            swap(&taken, &document)
            return taken
        }
    }

    /// A trace that the batch touches, from first sight until it goes back to the cache.
    private struct Touched {
        var key: TraceKey
        var state: CachedTrace
        var records: [Record] = []
        var isTouchRequested = false
        var newDocuments: [StoredDocument] = []
        /// A document changed it, or was the first to be refused for the trace's size.
        var isChanged = false
        /// It had links before the batch.
        var hadLinks = false
        var links: [Link] = []
        /// What it contributed before the batch; nil: it was not there.
        var before: Contributions.Before?
        /// The same for its groups, by their keys.
        var groupsBefore: [Int64: Contributions.Before] = [:]
        /// A touch is for a trace that has links: if there are none here, another worker has changed the trace since, and
        /// only the version of its row tells.
        var mustBeWritten: Bool { isChanged || (isTouchRequested && !state.trace.entities.isEmpty) }
    }

    let store: TraceStore
    let limits: TraceLimits
    private let parser: SegmentParser
    private let storedParser = LinkFactsLookup.makeParser()
    private let groupFilters = GroupFilters()
    var cache: TraceCache
    /// Traces that are known to have been over their limit before their first document here.
    var exceeded: Set<TraceKey> = []
    /// Which traces may be stored; nil: any.
    var stored: TraceFilter?

    init(store: TraceStore, limits: TraceLimits, segmentLimits: SegmentLimits, cacheCapacity: Int) {
        self.store = store
        self.limits = limits
        parser = SegmentParser(limits: segmentLimits)
        cache = TraceCache(capacity: cacheCapacity)
    }

    /// Folds the records of one or several partitions; the cache then holds the state after them.
    /// - Parameter moves: the positions of those partitions, written with the rows.
    /// - Throws: when the store cannot be read. The cache is then no longer to be trusted: drop it.
    func fold(_ batches: [LogBatch], moves: [PositionMove]) async throws(TraceStoreError) -> FoldedBatch {
        var result = FoldedBatch()
        result.rows.positions = moves
        var touched: [Touched] = []
        var contributions: [AccountID: Contributions] = [:]
        var search = SearchDeltas()

        gather(batches, into: &touched, &result)
        let rules = try await store.rules(of: Set(touched.map(\.key.account)))
        var groups = GroupFold(rules: rules, filters: groupFilters)
        try await load(&touched, groups)
        for index in touched.indices {
            let account = touched[index].key.account
            if !touched[index].state.trace.entities.isEmpty, touched[index].state.isIndexed {
                let forest = Forest(touched[index].state.trace)
                touched[index].before = contributions[account, default: Contributions()].before(
                    forest, links: touched[index].state.usedFacts)
                touched[index].groupsBefore = groups.before(forest, &touched[index].state, account: account)
            }
            let knownCount = touched[index].state.trace.entities.count
            touched[index].hadLinks = !linksInUse(of: touched[index].state.trace).isEmpty
            apply(&touched[index], groups, &result)
            result.knownEntityCount += knownCount
            result.newEntityCount += touched[index].state.trace.entities.count - knownCount
        }
        try await resolveLinks(&touched, groups, &result)
        for index in touched.indices {
            let forest = Forest(touched[index].state.trace)
            let account = touched[index].key.account
            if !touched[index].state.isIndexed {
                // Stored, readable by id, a target of links; nothing else.
            } else if let before = touched[index].before {
                result.retractionCount += contributions[account, default: Contributions()].replace(
                    before, by: forest, links: touched[index].state.usedFacts)
                touched[index].before = nil
            } else {
                contributions[account, default: Contributions()].add(forest, links: touched[index].state.usedFacts)
            }
            groups.replace(touched[index].groupsBefore, by: forest, &touched[index].state, account: account)
            touched[index].groupsBefore = [:]
            if touched[index].mustBeWritten { write(forest, of: &touched[index], &search, &result) }
        }
        writeBlocks(contributions, groups, &result)
        result.rows.searchSegments = search.finish(positions: result.rows.positions)
        // Two workers that write some of the same traces lock their rows in the same order.
        result.rows.traces.sort { ($0.account.rawValue, $0.id) < ($1.account.rawValue, $1.id) }
        result.touched = touched.map(\.key)
        // The tables have these only after the commit: until the next batch is folded they must not be read from there.
        // So the older ones make room, even if the batch alone is more than the cache should hold.
        cache.evict(room: touched.reduce(0) { $0 + TraceCache.weight(of: $1.state) })
        for index in touched.indices where touched[index].state.version > 0 {
            cache.put(touched[index].state, for: touched[index].key)
        }
        return result
    }

    /// Parses the records and brings together each trace with what the batch has for it.
    private func gather(_ batches: [LogBatch], into touched: inout [Touched], _ result: inout FoldedBatch) {
        var places: [TraceKey: Int] = [:]
        for batch in batches {
            for entry in batch.entries {
                result.recordCount += 1
                if let reason = entry.poison {
                    reject(entry, partition: batch.partition, code: "Poison", reason: reason, &result)
                    continue
                }
                let key = TraceKey(account: entry.account, id: entry.traceID)
                var record: Record?
                if entry.kind == .document {
                    guard let document = parse(entry, partition: batch.partition, &result) else { continue }
                    record = Record(partition: batch.partition, entry: entry, document: document)
                }
                let place: Int
                if let known = places[key] {
                    place = known
                } else {
                    place = touched.count
                    places[key] = place
                    let trace = Trace(id: key.id, account: key.account, limitExceeded: exceeded.contains(key))
                    let empty = CachedTrace(trace: trace, version: -1, usedFacts: [:])
                    touched.append(Touched(key: key, state: cache.take(key) ?? empty))
                }
                if let record { touched[place].records.append(record) } else { touched[place].isTouchRequested = true }
            }
        }
    }

    /// Parses a document, or puts it into the inbox: a poison record never stops its partition.
    private func parse(_ entry: LogEntry, partition: Int, _ result: inout FoldedBatch) -> SegmentDocument? {
        let parsed = entry.value.withUnsafeBytes { bytes in
            Result { () throws(Refusal) in try parser.parse(bytes) }
        }
        switch parsed {
        case .success(let document) where document.traceID == entry.traceID:
            return document
        case .success(let document):
            reject(
                entry, partition: partition, code: "InvalidTraceId",
                reason: "the record's key is \(entry.traceID), its document belongs to \(document.traceID)", &result)
        case .failure(let refusal):
            reject(entry, partition: partition, code: refusal.code, reason: refusal.message, &result)
        }
        return nil
    }

    private func reject(_ entry: LogEntry, partition: Int, code: String, reason: String, _ result: inout FoldedBatch) {
        result.rows.inbox.append(
            InboxEntry(
                account: entry.account, partition: partition, offset: entry.offset, receivedAt: entry.receivedAt,
                code: code, reason: reason, traceID: entry.traceID == TraceID(high: 0, low: 0) ? nil : entry.traceID,
                document: Array(entry.value)))
    }

    /// A new trace.
    private func begin(_ touched: inout Touched, _ groups: GroupFold) {
        touched.state.version = 0
        touched.state.isIndexed = groups.isIndexed(
            touched.key, receivedAt: touched.records.first?.entry.receivedAt ?? .max)
    }

    /// Reads the traces that the cache did not have; one that is not stored either is new.
    private func load(_ touched: inout [Touched], _ groups: GroupFold) async throws(TraceStoreError) {
        for index in touched.indices where touched[index].state.version < 0 {
            if stored?.insert(touched[index].key) == true { begin(&touched[index], groups) }
        }
        let unknown = touched.indices.filter { touched[$0].state.version < 0 }
        for (account, places) in Dictionary(grouping: unknown, by: { touched[$0].key.account }) {
            let stored = try await store.storedTraces(account: account, ids: places.map { touched[$0].key.id })
            let byID = Dictionary(stored.map { ($0.id, $0) }) { $1 }
            var consumers: [TraceID] = []
            for place in places {
                guard let found = byID[touched[place].key.id] else {
                    begin(&touched[place], groups)
                    continue
                }
                touched[place].state.isIndexed = found.isIndexed
                touched[place].state.trace = LinkFactsLookup.refold(found, account: account, parser: storedParser)
                touched[place].state.version = found.version
                if !linksInUse(of: touched[place].state.trace).isEmpty { consumers.append(found.id) }
            }
            let used = try await LinkFactsLookup.usedFacts(of: consumers, account: account, in: store)
            for place in places { touched[place].state.usedFacts = used[touched[place].key.id] ?? [:] }
            guard groups.hasGroups(account), !stored.isEmpty else { continue }
            let members = try await store.groupMembers(account: account, traces: stored.map(\.id))
            let membersOf = Dictionary(grouping: members, by: \.trace)
            for place in places {
                touched[place].state.memberships = (membersOf[touched[place].key.id] ?? []).map { Membership($0) }
            }
        }
    }

    /// Folds the batch's documents of one trace in log order.
    private func apply(_ touched: inout Touched, _ groups: GroupFold, _ result: inout FoldedBatch) {
        var records: [Record] = []
        swap(&records, &touched.records)
        touched.state.trace.reserve(entityCount: records.reduce(0) { $0 + $1.document.entities.count })
        for index in records.indices {
            let entry = records[index].entry
            let wasExceeded = touched.state.trace.limitExceeded
            let document = records[index].takeDocument()
            let outcome = entry.value.withUnsafeBytes {
                touched.state.trace.fold(document, bytes: $0, receivedAt: entry.receivedAt, limits: limits)
            }
            switch outcome {
            case .changed:
                touched.isChanged = true
                touched.newDocuments.append(
                    StoredDocument(
                        receivedAt: entry.receivedAt, partition: records[index].partition, offset: entry.offset,
                        bytes: entry.value))
                groups.admit(&touched.state, receivedAt: entry.receivedAt)
            case .ignored:
                break
            case .overLimit:
                if !wasExceeded { touched.isChanged = true }
                reject(
                    entry, partition: records[index].partition, code: "TraceSizeLimitExceeded",
                    reason:
                        "the trace holds \(touched.state.trace.storedBytes) bytes; \(entry.value.count) more would be over its limit of \(limits.traceBytes)",
                    &result)
            }
        }
    }

    /// Finds out what the links of changed consumers resolve to now.
    private func resolveLinks(
        _ touched: inout [Touched], _ groups: GroupFold, _ result: inout FoldedBatch
    ) async throws(TraceStoreError) {
        var wanted: [AccountID: Set<Link>] = [:]
        for index in touched.indices where touched[index].isChanged || touched[index].isTouchRequested {
            touched[index].links = linksInUse(of: touched[index].state.trace)
            if touched[index].links.isEmpty, touched[index].hadLinks {
                evaluateLinks(&touched[index], ResolvedLinks(), groups, &result)
            }
            if !touched[index].links.isEmpty {
                wanted[touched[index].key.account, default: []].formUnion(touched[index].links)
            }
        }
        guard !wanted.isEmpty else { return }
        let places = Dictionary(touched.indices.map { (touched[$0].key, $0) }) { $1 }
        for (account, links) in wanted {
            var facts = ResolvedLinks()
            var elsewhere: [Link] = []
            for (target, links) in Dictionary(grouping: links, by: \.traceID) {
                // Traces of this batch are ahead of the tables. A producer that changes later touches its consumers.
                guard let place = places[TraceKey(account: account, id: target)] else {
                    elsewhere += links
                    continue
                }
                let state = touched[place].state
                facts.add(
                    links.map(\.entityID), of: state.trace, used: state.usedFacts, memberships: state.memberships)
            }
            facts.merge(
                try await LinkFactsLookup.storedFacts(
                    of: elsewhere, account: account, hasGroups: groups.hasGroups(account), in: store,
                    parser: storedParser))
            for index in touched.indices where touched[index].key.account == account && !touched[index].links.isEmpty {
                evaluateLinks(&touched[index], facts, groups, &result)
            }
        }
    }

    private func evaluateLinks(
        _ touched: inout Touched, _ facts: ResolvedLinks, _ groups: GroupFold, _ result: inout FoldedBatch
    ) {
        touched.state.usedFacts = [:]
        var rows: [StoredLink] = []
        for link in touched.links {
            let found = facts.all[link]
            touched.state.usedFacts[link] = found
            rows.append(
                StoredLink(consumer: touched.key.id, target: link.traceID, entity: link.entityID, facts: found?.encoded)
            )
        }
        groups.evaluateLinks(touched.links, facts, &touched.state)
        result.rows.links.append(LinkReplacement(account: touched.key.account, consumer: touched.key.id, links: rows))
        result.consumers.append(touched.key)
    }

    private func writeBlocks(
        _ contributions: [AccountID: Contributions], _ groups: GroupFold, _ result: inout FoldedBatch
    ) {
        // The delta is named by one of the batch's partitions; readers add up all of them.
        guard let move = result.rows.positions.first(where: { $0.to > $0.from }) else { return }
        result.rows.groups = groups.changes(move)
        for (account, sum) in contributions {
            for block in sum.blocks() {
                result.rows.blocks.append(
                    GraphBlockDelta(
                        account: account, minute: block.minute, partition: move.partition, lastOffset: move.to - 1,
                        bytes: block.bytes))
            }
        }
    }

    /// The row of a trace and its new documents. A touch that evaluated links writes the row too: its version guards the
    /// contributions against a second owner of the trace.
    private func write(
        _ forest: Forest, of touched: inout Touched, _ search: inout SearchDeltas, _ result: inout FoldedBatch
    ) {
        let trace = touched.state.trace
        let clocks = SummaryClocks(forest: forest)
        result.rows.traces.append(
            TraceChange(
                account: touched.key.account, id: touched.key.id, expectedVersion: touched.state.version,
                newDocuments: touched.newDocuments, rootStart: touched.state.isIndexed ? clocks.rootStart : nil,
                receipts: trace.receipts,
                ends: clocks.ends, revision: trace.revision, limitExceeded: trace.limitExceeded,
                storedBytes: trace.storedBytes, isIndexed: touched.state.isIndexed))
        touched.state.version += 1
        if touched.isChanged, touched.state.isIndexed {
            search.add(forest, version: touched.state.version, clocks: clocks)
        }
        // A consumer that was only evaluated again is a producer too: its root may be linked now.
        result.changed.append(touched.key)
    }
}
