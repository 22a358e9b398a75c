import AccessControl
import Logging
import PostgreSQL
import Segments
import Testing

@testable import TraceStore

/// A store in a fresh schema, with partitions 0 and 1 claimed; `states` are their states.
func withStore(
    _ options: TraceStoreOptions = .init(),
    _ body: (_ store: TraceStore, _ states: [PartitionState], _ configuration: PostgresConfiguration) async throws -> Void
) async throws {
    try await withDatabase { (configuration) async throws in
        try await TraceStore.migrate(database: configuration)
        let store = TraceStore(database: configuration, options: options, logger: quietLogger)
        let running = Task { await store.run() }
        do {
            try await body(store, try await store.claim(partitions: [0, 1], owner: "test"), configuration)
        } catch {
            running.cancel()
            await running.value
            await store.close()
            throw error
        }
        running.cancel()
        await running.value
        await store.close()
    }
}

let account = AccountID(rawValue: 123_456_789_012)
let today: Micros = 20_000 * 86_400_000_000

func traceID(_ number: Int) -> TraceID { TraceID(high: UInt64(number) &* 0x9e37_79b9_7f4a_7c15, low: UInt64(number)) }

func document(_ text: String, receivedAt: Micros = today, partition: Int = 0, offset: Int64 = 0) -> StoredDocument {
    StoredDocument(receivedAt: receivedAt, partition: partition, offset: offset, bytes: Array(text.utf8)[...])
}

func change(
    _ number: Int, version: Int = 0, documents: [StoredDocument], receipts: [Micros]? = nil, ends: [Micros] = [],
    root: Micros? = today, account: AccountID = account
) -> TraceChange {
    TraceChange(
        account: account, id: traceID(number), expectedVersion: version, newDocuments: documents, rootStart: root,
        receipts: receipts ?? documents.map(\.receivedAt), ends: ends, revision: (receipts ?? documents.map(\.receivedAt)).count,
        limitExceeded: false, storedBytes: documents.reduce(0) { $0 + $1.bytes.count })
}

extension PartitionState {
    func move(to offset: Int64) -> PositionMove {
        PositionMove(partition: partition, from: position, to: offset, ownerEpoch: ownerEpoch)
    }
}

func batch(_ moves: [PositionMove], _ traces: [TraceChange] = []) -> AggregationBatch {
    var batch = AggregationBatch()
    batch.positions = moves
    batch.traces = traces
    return batch
}

struct TraceStoreTests {
    // If this fails, a trace comes back with other documents than were acknowledged, or in another order.
    @Test func `documents of several commits and days come back whole and in order`() async throws {
        try await withStore { (store, states, _) async throws in
            let day = Micros(86_400_000_000)
            let first = [document("{\"a\":1}", receivedAt: today - 3 * day, offset: 5), document("", receivedAt: today, offset: 9)]
            let second = [document("{\"a\":\"\\u0000\"}", receivedAt: today - 9 * day, offset: 12)]
            #expect(try await store.commit(batch([states[0].move(to: 10)], [change(1, documents: first), change(2, documents: second)])) == .committed)
            var move = states[0].move(to: 20)
            move.from = 10
            let receipts = (first + second).map(\.receivedAt)
            #expect(try await store.commit(batch([move], [change(1, version: 1, documents: second, receipts: receipts)])) == .committed)
            let traces = try await store.storedTraces(account: account, ids: [traceID(1), traceID(3), traceID(2)])
            #expect(traces.count == 2)
            let one = try #require(traces.first { $0.id == traceID(1) })
            #expect(one.documents == first + second)
            #expect(one.version == 2 && one.revision == 3 && one.day == 20_000 - 9)
            #expect(try await store.storedTraces(account: AccountID(rawValue: 1), ids: [traceID(1)]).isEmpty)
            #expect(try await store.positions().first?.position == 20)
        }
    }

    // If this fails, a document is counted twice after a crash, or a worker that lost its partition still writes.
    @Test func `a batch is written only from the expected position and by the owner`() async throws {
        try await withStore { (store, states, _) async throws in
            let good = batch([states[0].move(to: 5), states[1].move(to: 7)], [change(1, documents: [document("a")])])
            #expect(try await store.commit(good) == .committed)
            #expect(try await store.commit(good) == .fenced)
            var half = batch([states[0].move(to: 6), states[1].move(to: 9)], [change(2, documents: [document("b")])])
            half.positions[0].from = 5
            half.positions[1].from = 6
            half.inbox = [InboxEntry(account: account, partition: 0, offset: 1, receivedAt: today, code: "Poison", reason: "r\u{0}", traceID: nil, document: [0])]
            #expect(try await store.commit(half) == .fenced)
            half.positions[1].from = 7
            let next = try await store.claim(partitions: [0], owner: "other")
            #expect(next[0].ownerEpoch == states[0].ownerEpoch + 1 && next[0].position == 5)
            #expect(try await store.commit(half) == .fenced)
            #expect(try await store.setChecked(partition: 0, position: 3, ownerEpoch: states[0].ownerEpoch) == false)
            #expect(try await store.inbox(account: account, limit: 10).isEmpty)
            #expect(try await store.storedTraces(account: account, ids: [traceID(2)]).isEmpty)
            half.positions[0].ownerEpoch = next[0].ownerEpoch
            #expect(try await store.commit(half) == .committed)
            let inbox = try await store.inbox(account: account, limit: 10)
            #expect(inbox.count == 1 && inbox[0].reason == "r\u{FFFD}" && inbox[0].document == [0])
            #expect(try await store.setChecked(partition: 0, position: 3, ownerEpoch: next[0].ownerEpoch))
        }
    }

    // If this fails, two partitions that own a trace for a moment overwrite each other's documents.
    @Test func `a version conflict names the traces and writes nothing`() async throws {
        try await withStore { (store, states, _) async throws in
            let start = batch([states[0].move(to: 1)], [change(1, documents: [document("a")]), change(2, documents: [document("b")])])
            #expect(try await store.commit(start) == .committed)
            // Known already: an insert.
            var other = batch([states[1].move(to: 4)], [change(2, documents: [document("c", partition: 1)]), change(9, documents: [document("d")])])
            other.blocks = [GraphBlockDelta(account: account, minute: 1, partition: 1, lastOffset: 3, bytes: [1])]
            other.links = [LinkReplacement(account: account, consumer: traceID(9), links: [StoredLink(consumer: traceID(9), target: traceID(1), entity: EntityID(rawValue: 1), facts: nil)])]
            #expect(try await store.commit(other) == .versionConflict([TraceKey(account: account, id: traceID(2))]))
            // Another version, and a row that is not there.
            other.traces = [change(1, version: 1, documents: [document("e")]), change(2, version: 3, documents: [document("f")]), change(9, version: 1, documents: [document("g")])]
            guard case .versionConflict(let keys) = try await store.commit(other) else {
                Issue.record("no conflict")
                return
            }
            #expect(Set(keys.map(\.id)) == [traceID(2), traceID(9)])
            #expect(try await store.storedTraces(account: account, ids: [traceID(1)])[0].documents.count == 1)
            #expect(try await store.graphBlocks(account: account, minutes: 0..<10).isEmpty)
            #expect(try await store.links(account: account, toTargets: [traceID(1)]).isEmpty)
            #expect(try await store.positions()[1].position == 0)
            other.traces = [change(1, version: 1, documents: [document("e")], receipts: [today, today])]
            #expect(try await store.commit(other) == .committed)
            #expect(try await store.links(account: account, toTargets: [traceID(1)]).count == 1)
        }
    }

    // If this fails, a search shows traces outside its window, misses some, or shows some twice on two pages.
    @Test func `pages of every clock equal a search of all rows by brute force`() async throws {
        try await withStore { (store, states, _) async throws in
            var generator = SeededGenerator(printingSeedFor: "summary pages")
            var model: [Int: (root: Micros?, receipts: [Micros], ends: [Micros])] = [:]
            var versions: [Int: Int] = [:]
            var position = states[0].move(to: 0)
            func times(_ base: Micros) -> [Micros] {
                let spread = [1_000, 1_500_000, 3_000_000, 20_000_000].randomElement(using: &generator) ?? 1
                return (0..<Int.random(in: 1...6, using: &generator)).map { _ in base + Micros.random(in: 0..<Micros(spread), using: &generator) }
            }
            for round in 0..<4 {
                var changes: [TraceChange] = []
                for number in 0..<150 where round == 0 || Bool.random(using: &generator) {
                    let base = today + Micros.random(in: 0..<40, using: &generator) * 1_000_000
                    let new = times(base)
                    let before = model[number]
                    let receipts = (before?.receipts ?? []) + new
                    let ends = round % 2 == 0 ? times(base) : (before?.ends ?? []) + times(base)
                    let root = Int.random(in: 0..<8, using: &generator) == 0 ? nil : base
                    model[number] = (root, receipts, ends)
                    changes.append(
                        change(
                            number, version: before == nil ? 0 : versions[number, default: 0],
                            documents: new.map { document("x", receivedAt: $0) }, receipts: receipts, ends: ends, root: root))
                    versions[number, default: 0] += 1
                }
                position.to += 1
                #expect(try await store.commit(batch([position], changes)) == .committed)
                position.from = position.to
            }
            for _ in 0..<60 {
                let lower = 20_000 * 86_400 + Int64.random(in: -5..<50, using: &generator)
                let window = lower..<lower + Int64.random(in: 1..<30, using: &generator)
                for type in TimeRangeType.allCases {
                    var expected: [SummaryCandidate] = []
                    for (number, trace) in model {
                        guard let root = trace.root else { continue }
                        let clocks: [Micros] =
                            switch type {
                            case .traceID: [root]
                            case .event: trace.receipts
                            case .service: trace.ends
                            }
                        let inside = clocks.filter { window.contains($0 / 1_000_000) }
                        if let clock = inside.max() { expected.append(SummaryCandidate(id: traceID(number), clock: clock)) }
                    }
                    expected.sort { ($1.clock, $0.id) < ($0.clock, $1.id) }
                    var found: [SummaryCandidate] = []
                    let size = Int.random(in: 1...40, using: &generator)
                    while true {
                        let page = try await store.summaryPage(account: account, rangeType: type, window: window, after: found.last, limit: size)
                        found += page
                        if page.count < size { break }
                    }
                    #expect(found == expected)
                }
            }
        }
    }

    // If this fails, an account's traces cannot be read after its dictionary was trained, or by another node.
    @Test func `documents written before, with and after a dictionary are read by every node`() async throws {
        var options = TraceStoreOptions()
        options.dictionarySampleBytes = 100_000
        options.dictionaryBytes = 16 << 10
        try await withStore(options) { (store, states, configuration) async throws in
            func text(_ number: Int) -> String {
                """
                {"trace_id":"1-5759e988-\(number)","id":"\(number &* 7_919)","name":"service-\(number % 7)","start_time":1.\(number),\
                "http":{"request":{"method":"GET","url":"https://example.com/items/\(number)"},"response":{"status":200}}}
                """
            }
            var position = states[0].move(to: 0)
            var number = 0
            func commitOne() async throws {
                let changes = (number..<number + 50).map { change($0, documents: [document(text($0), offset: Int64($0)), document(text($0) + "!", offset: Int64($0))]) }
                number += 50
                position.to += 1
                #expect(try await store.commit(batch([position], changes)) == .committed)
                position.from = position.to
            }
            // The second one is of documents of a longer time.
            for id: Int32 in 1...2 {
                #expect(
                    try await eventually {
                        try await commitOne()
                        return try await store.dictionaries.current(of: [account])[account]?.id == id
                    })
            }
            try await commitOne()
            let ids = (0..<number).map { traceID($0) }
            let second = TraceStore(database: configuration, logger: quietLogger)
            for node in [store, second] {
                let traces = try await node.storedTraces(account: account, ids: ids)
                #expect(traces.count == number)
                let byID = Dictionary(uniqueKeysWithValues: traces.map { ($0.id, $0) })
                for number in 0..<number {
                    #expect(byID[traceID(number)]?.documents.map { String(decoding: $0.bytes, as: UTF8.self) } == [text(number), text(number) + "!"])
                }
            }
            await second.close()
        }
    }

    // If this fails, merging quiet minutes changes the numbers of the service graph.
    @Test func `merging the rows of a minute keeps their sum and leaves other partitions alone`() async throws {
        try await withStore { (store, states, _) async throws in
            var position = states[0].move(to: 0)
            for number in 1...6 {
                position.to = Int64(number)
                var next = batch([position])
                next.blocks = [1, 2].map {
                    GraphBlockDelta(account: account, minute: $0, partition: 0, lastOffset: Int64(number - 1), bytes: [UInt8](repeating: UInt8(number), count: number == 3 ? 5_000 : 1))
                }
                #expect(try await store.commit(next) == .committed)
                position.from = position.to
            }
            var other = batch([states[1].move(to: 1)])
            other.blocks = [GraphBlockDelta(account: account, minute: 1, partition: 1, lastOffset: 0, bytes: [100])]
            #expect(try await store.commit(other) == .committed)
            func sum(_ minute: Int64) async throws -> Int {
                try await store.graphBlocks(account: account, minutes: minute..<minute + 1).reduce(0) { $0 + $1.bytes.reduce(0) { $0 + Int($1) } }
            }
            let before = [try await sum(1), try await sum(2)]
            let removed = try await store.compactGraphBlocks(partition: 0, minutes: 0..<10) { Array($0.joined()) }
            #expect(removed == 10)
            #expect([try await sum(1), try await sum(2)] == before)
            #expect(try await store.graphBlocks(account: account, minutes: 0..<10).count == 3)
            #expect(try await store.compactGraphBlocks(partition: 0, minutes: 0..<10) { Array($0.joined()) } == 0)
        }
    }

    // If this fails, links that a trace no longer has keep making edges.
    @Test func `the links of a consumer are replaced and found from both ends`() async throws {
        try await withStore { (store, states, _) async throws in
            var position = states[0].move(to: 1)
            func link(_ target: Int, _ facts: [UInt8]?) -> StoredLink {
                StoredLink(consumer: traceID(1), target: traceID(target), entity: EntityID(rawValue: .max), facts: facts)
            }
            for links in [[link(2, nil), link(3, [1, 2])], [link(3, [3])]] {
                var next = batch([position])
                next.links = [LinkReplacement(account: account, consumer: traceID(1), links: links)]
                #expect(try await store.commit(next) == .committed)
                position.from = position.to
                position.to += 1
                #expect(Set(try await store.links(account: account, ofConsumers: [traceID(1)])) == Set(links))
            }
            #expect(try await store.links(account: account, toTargets: [traceID(2)]).isEmpty)
            #expect(try await store.links(account: account, toTargets: [traceID(2), traceID(3)]) == [link(3, [3])])
            #expect(try await store.links(account: AccountID(rawValue: 5), toTargets: [traceID(3)]).isEmpty)
        }
    }

    // If this fails, the disk fills up, or retention removes what it must keep.
    @Test func `retention removes old days and nothing else`() async throws {
        try await withStore { (store, states, _) async throws in
            let old = today - 10 * 86_400_000_000
            var next = batch([states[0].move(to: 5)], [
                change(1, documents: [document("old", receivedAt: old)]),
                change(2, documents: [document("older", receivedAt: old), document("new")]),
                change(3, documents: [document("new")]),
            ])
            #expect(try await store.commit(next) == .committed)
            // Observations dated long ago stay when any of their minute was received of late.
            let minute = old / 60_000_000
            let blocks: [(offset: Int64, receipt: Micros, minutes: [(minute: Int64, byte: UInt8)])] = [
                (5, old, [(minute, 1), (minute + 1, 3)]), (6, today, [(minute + 1, 4), (today / 60_000_000, 2)]),
            ]
            for written in blocks {
                next = batch([
                    PositionMove(
                        partition: 0, from: written.offset, to: written.offset + 1, ownerEpoch: states[0].ownerEpoch,
                        receivedThrough: written.receipt)
                ])
                next.blocks = written.minutes.map {
                    GraphBlockDelta(
                        account: account, minute: $0.minute, partition: 0, lastOffset: written.offset, bytes: [$0.byte])
                }
                #expect(try await store.commit(next) == .committed)
            }
            try await store.appendTelemetry([TelemetryRecord(account: account, receivedAt: old, document: [1])])
            try await store.removeDays(before: 20_000 - 5)
            let traces = try await store.storedTraces(account: account, ids: [traceID(1), traceID(2), traceID(3)])
            #expect(Set(traces.map(\.id)) == [traceID(2), traceID(3)])
            #expect(traces.allSatisfy { $0.documents.map { String(decoding: $0.bytes, as: UTF8.self) } == ["new"] })
            #expect(try await store.graphBlocks(account: account, minutes: 0..<Int64.max).map(\.bytes) == [[3], [4], [2]])
            #expect(try await store.tableSizes().contains { $0.table == "trace_documents" && $0.indexBytes > 0 })
            // The owner still has trace 1 in its cache.
            var stale = states[0].move(to: 8)
            stale.from = 7
            let key = TraceKey(account: account, id: traceID(1))
            #expect(try await store.commit(batch([stale], [change(1, version: 1, documents: [document("x")])])) == .versionConflict([key]))
        }
    }

    // If this fails, readers are not told what retention took from them, or are told of what is still there.
    @Test func `what retention removes is remembered by every clock`() async throws {
        try await withStore { (store, states, _) async throws in
            let day = Micros(86_400_000_000)
            let old = today - 10 * day
            var next = batch([states[0].move(to: 5)], [
                // The clocks of a trace need not agree: its root starts two days before its receipt, an end lies an hour before.
                change(1, documents: [document("a", receivedAt: old)], ends: [old - day - 3_600_000_000, old - day], root: old - 2 * day),
                change(2, documents: [document("b", receivedAt: old)], root: nil),
                change(3, documents: [document("c")], root: old - 2 * day),
            ])
            #expect(try await store.commit(next) == .committed)
            func removed(_ data: RetainedData, _ from: Micros, _ to: Micros, since number: Int64 = 0, of account: AccountID = account)
                async throws -> Bool
            {
                try await store.hasRemoved(data, account: account, seconds: from / 1_000_000..<to / 1_000_000, since: number)
            }
            let all = (Micros(0), today + day)
            #expect(try await store.lastRemoval(account: account) == 0)
            try await store.removeDays(before: 20_000 - 20)
            try await store.removeDays(before: 20_000 - 8, isServing: false)
            #expect(try await store.lastRemoval(account: account) == 0, "nothing that readers saw is gone")

            next = batch([states[0].move(to: 6)], [change(4, documents: [document("d", receivedAt: old)], ends: [old - 2 * day, old], root: old - 3 * day)])
            next.positions[0].from = 5
            next.positions[0].receivedThrough = old
            next.blocks = [GraphBlockDelta(account: account, minute: old / 60_000_000, partition: 0, lastOffset: 5, bytes: [1])]
            #expect(try await store.commit(next) == .committed)
            try await store.removeDays(before: 20_000 - 8)
            let number = try await store.lastRemoval(account: account)
            #expect(number > 0)
            let second = Micros(1_000_000)
            #expect(try await removed(.rootStarts, old - 3 * day, old - 3 * day + second))
            #expect(try await !removed(.rootStarts, old - 2 * day, all.1), "trace 3 is there")
            #expect(try await removed(.receipts, old, old + second))
            #expect(try await !removed(.receipts, all.0, old))
            #expect(try await removed(.ends, old - 2 * day, old - 2 * day + second), "not only the newest end")
            #expect(try await removed(.ends, old, old + second))
            #expect(try await !removed(.ends, old - day - second, old - day + second), "between them nothing")
            #expect(try await store.graphBlocks(account: account, minutes: 0..<Int64.max).isEmpty)
            #expect(try await removed(.graph, old / 60_000_000 * 60_000_000 + 59 * second, all.1))
            #expect(try await !removed(.graph, all.0, old / 60_000_000 * 60_000_000))
            #expect(try await !removed(.groups, all.0, all.1))
            for data in [RetainedData.rootStarts, .receipts, .ends, .graph] {
                #expect(try await !removed(data, all.0, all.1, since: number))
                #expect(try await !removed(data, all.0, all.1, of: AccountID(rawValue: 5)))
            }
        }
    }

    // If this fails, a read after an acknowledgement does not see it, or waits its full time for nothing.
    @Test func `waiting for positions ends when another process commits`() async throws {
        try await withStore { (store, states, configuration) async throws in
            let other = TraceStore(database: configuration, logger: quietLogger)
            #expect(try await other.waitForPositions([(0, 0), (5, 0)], timeout: .zero))
            #expect(try await other.waitForPositions([(0, 1)], timeout: .milliseconds(30)) == false)
            async let reached = other.waitForPositions([(0, 3), (1, 2)], timeout: .seconds(20))
            #expect(try await store.commit(batch([states[0].move(to: 3), states[1].move(to: 2)])) == .committed)
            #expect(try await reached)
            await other.close()
        }
    }

    // If this fails, an upgrade or a second start breaks the schema, or an old program works on a new schema.
    @Test func `migrating twice changes nothing, and an unknown schema is refused with the remedy`() async throws {
        try await withDatabase { (configuration) async throws in
            let store = TraceStore(database: configuration, logger: quietLogger)
            let error = await #expect(throws: TraceStoreError.self) { try await store.checkSchema() }
            #expect(error?.code == .schemaMismatch)
            #expect(error?.message.contains("beamline migrate") == true)
            try await TraceStore.migrate(database: configuration)
            try await TraceStore.migrate(database: configuration)
            try await store.checkSchema()
            await store.close()
        }
    }

    // If this fails, a disabled or deleted key goes on working, or a key of one account works for another.
    @Test func `accounts and keys are kept, disabled and deleted`() async throws {
        try await withStore { (store, _, _) async throws in
            let key = StoredAccessKey(
                id: "AKIAEXAMPLE234567ABC", account: account, principalARN: "arn:aws:iam::123456789012:root", role: .admin,
                createdAt: 5, encryptedSecret: [9, 0, 9])
            let missing = await #expect(throws: TraceStoreError.self) { try await store.createAccessKey(key) }
            #expect(missing?.code == .unknown)
            try await store.createAccount(Account(id: account, name: "main", createdAt: 1))
            let twice = await #expect(throws: TraceStoreError.self) { try await store.createAccount(Account(id: account, name: "x", createdAt: 1)) }
            #expect(twice?.code == .exists)
            try await store.createAccessKey(key)
            let taken = await #expect(throws: TraceStoreError.self) { try await store.createAccessKey(key) }
            #expect(taken?.code == .exists)
            #expect(try await store.accessKeys(account: nil) == [key])
            func directory() -> StoredCredentialDirectory {
                store.credentialDirectory(cacheTime: .zero) { SecretKey(String(decoding: $0.encryptedSecret.map { $0 + 48 }, as: UTF8.self)) }
            }
            let credential = try #require(try await directory().credential(for: key.id))
            #expect(credential.secret.text == "909" && credential.account == account && credential.role == .admin && credential.isActive)
            #expect(try await directory().credential(for: "AKIAUNKNOWN") == nil)
            try await store.setAccessKeyActive(key.id, false)
            try await store.setAccountState(account, .suspended)
            let disabled = try #require(try await directory().credential(for: key.id))
            #expect(!disabled.isActive && disabled.accountState == .suspended)
            #expect(try await directory().accountState(of: account) == .suspended)
            #expect(try await directory().accountState(of: AccountID(rawValue: 1)) == nil)
            try await store.deleteAccessKey(key.id)
            #expect(try await directory().credential(for: key.id) == nil)
            let gone = await #expect(throws: TraceStoreError.self) { try await store.deleteAccessKey(key.id) }
            #expect(gone?.code == .unknown)
            try await store.setSetting(account: account, name: "n", value: [1])
            try await store.setSetting(account: account, name: "n", value: [2])
            #expect(try await store.setting(account: account, name: "n") == [2])
            try await store.setSetting(account: account, name: "n", value: nil)
            #expect(try await store.setting(account: account, name: "n") == nil)
        }
    }
}
