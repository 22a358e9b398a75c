// Groups, tags, indexing settings and retrieval jobs against a real PostgreSQL.

import PostgreSQL
import Segments
import Testing

@testable import TraceStore

private func group(_ name: String, key: Int64, filter: String = "fault", version: Int = 1) -> TraceGroup {
    TraceGroup(
        name: name, arn: "arn:aws:xray:us-east-1:123456789012:group/\(name)/ID\(key)", key: key, version: version,
        filter: filter, createdAt: today)
}

private func other(_ account: AccountID) -> AccountID { AccountID(rawValue: account.rawValue + 1) }

@Suite struct GroupStoreTests {
    // If this fails, Terraform does not find what it has just written, or sees another account's groups.
    @Test func `groups are there as soon as they are written, sorted, with Default`() async throws {
        try await withStore { (store, _, _) async throws in
            #expect(try await store.groups(account: account) == GroupSet(revision: 0, groups: [.defaultGroup]))
            let tags = [ResourceTag(key: "b", value: "1"), ResourceTag(key: "B", value: "")]
            #expect(try await store.putGroup(group("zoo", key: 7), tags: tags, account: account, revision: 0))
            #expect(try await store.putGroup(group("Apple", key: 8), account: account, revision: 1))
            let set = try await store.groups(account: account)
            #expect(set.revision == 2 && set.groups.map(\.name) == ["Apple", "Default", "zoo"])
            #expect(set.groups[2] == group("zoo", key: 7))
            #expect(try await store.tags(account: account, resource: "group/zoo/ID7").map(\.key) == ["B", "b"])
            #expect(try await store.groups(account: other(account)).groups == [.defaultGroup])
            #expect(
                try await store.rules(of: [account, other(account)])[account]?.groups.map(\.name) == ["Apple", "zoo"])
            #expect(try await store.rules(of: [other(account)]).isEmpty)
        }
    }

    // If this fails, two calls at once make a 26th group, or two of one name.
    @Test func `a change decided on an old set writes nothing`() async throws {
        try await withStore { (store, _, _) async throws in
            #expect(try await store.putGroup(group("a", key: 1), account: account, revision: 0))
            #expect(try await !store.putGroup(group("b", key: 2), account: account, revision: 0))
            #expect(try await !store.deleteGroup(group("a", key: 1), account: account, revision: 0))
            #expect(try await store.groups(account: account).groups.map(\.name) == ["Default", "a"])
            let outcomes = try await withThrowingTaskGroup(of: Bool.self) { tasks in
                for key in 10..<18 {
                    tasks.addTask {
                        try await store.putGroup(group("g\(key)", key: Int64(key)), account: account, revision: 1)
                    }
                }
                return try await tasks.reduce(into: [Bool]()) { $0.append($1) }
            }
            #expect(outcomes.count { $0 } == 1)
        }
    }

    // If this fails, a group's tags or traces go over to another one of its name.
    @Test func `a deleted group leaves nothing`() async throws {
        try await withStore { (store, states, _) async throws in
            let one = group("a", key: 1)
            #expect(
                try await store.putGroup(one, tags: [ResourceTag(key: "k", value: "v")], account: account, revision: 0))
            var commit = batch([states[0].move(to: 1)], [change(1, documents: [document("{}")])])
            commit.groups.members = [
                GroupMember(
                    account: account, trace: traceID(1), groupKey: 1, version: 1, minute: 5, outcome: 3, links: [9])
            ]
            let delta = GraphBlockDelta(account: account, minute: 5, partition: 0, lastOffset: 0, bytes: [1, 2, 3])
            commit.groups.blocks = [GroupBlockDelta(groupKey: 1, version: 1, delta: delta)]
            var counts = GroupCounts()
            counts.ok = 1
            commit.groups.counts = [
                GroupCountDelta(account: account, groupKey: 1, minute: 5, partition: 0, counts: counts)
            ]
            #expect(try await store.commit(commit) == .committed)
            #expect(
                try await store.groupMembers(account: account, traces: [traceID(1), traceID(2)])
                    == commit.groups.members)
            #expect(try await store.memberIDs(account: account, groupKey: 1, after: nil, limit: 9) == [traceID(1)])
            let rows = try await store.groupBlocks(account: account, groupKey: 1, minutes: 0..<10)
            #expect(rows == [GroupBlockRow(version: 1, minute: 5, bytes: [1, 2, 3])])
            #expect(try await store.groupCounts(minute: 5).map(\.counts) == [counts])
            try await store.removeDeletedGroups()
            #expect(try await store.groupBlocks(account: account, groupKey: 1, minutes: 0..<10).count == 1)

            #expect(try await store.deleteGroup(one, account: account, revision: 1))
            #expect(try await store.groups(account: account).groups == [.defaultGroup])
            #expect(try await store.tags(account: account, resource: one.resource).isEmpty)
            #expect(try await store.groupMembers(account: account, traces: [traceID(1)]).isEmpty)
            #expect(try await store.groupCounts(minute: 5).isEmpty)
            try await store.removeDeletedGroups()
            #expect(try await store.groupBlocks(account: account, groupKey: 1, minutes: 0..<10).isEmpty)
            #expect(try await store.memberIDs(account: account, groupKey: 1, after: nil, limit: 9).isEmpty)
        }
    }

    // If this fails, a batch that is repeated counts its traces twice, or a fenced one counts them at all.
    @Test func `counts are added once per batch`() async throws {
        try await withStore { (store, states, _) async throws in
            #expect(try await store.putGroup(group("a", key: 1), account: account, revision: 0))
            func commit(from: Int64, to: Int64, ok: Int64, fault: Int64) async throws -> CommitOutcome {
                var move = states[0].move(to: to)
                move.from = from
                var commit = batch([move])
                var counts = GroupCounts()
                counts.ok = ok
                counts.fault = fault
                commit.groups.counts = [
                    GroupCountDelta(account: account, groupKey: 1, minute: 9, partition: 0, counts: counts)
                ]
                return try await store.commit(commit)
            }
            #expect(try await commit(from: 0, to: 5, ok: 3, fault: 0) == .committed)
            #expect(try await commit(from: 0, to: 5, ok: 3, fault: 0) == .fenced)
            #expect(try await commit(from: 5, to: 6, ok: -1, fault: 1) == .committed)
            let counts = try #require(try await store.groupCounts(minute: 9).first).counts
            #expect(counts.ok == 2 && counts.fault == 1 && counts.total == 3)
        }
    }

    // If this fails, a group's graph grows with every batch, or its versions run into each other.
    @Test func `blocks of a group are merged within their version`() async throws {
        try await withStore { (store, states, _) async throws in
            var from: Int64 = 0
            for offset in 1...4 as ClosedRange<Int64> {
                var move = states[0].move(to: offset)
                move.from = from
                from = offset
                var commit = batch([move])
                commit.groups.blocks = (1...2).map { version in
                    GroupBlockDelta(
                        groupKey: 1, version: version,
                        delta: GraphBlockDelta(
                            account: account, minute: 5, partition: 0, lastOffset: offset - 1,
                            bytes: [UInt8(version), UInt8(offset)]))
                }
                #expect(try await store.commit(commit) == .committed)
            }
            let removed = try await store.compactGraphBlocks(partition: 0, minutes: 0..<10) { $0.flatMap { $0 } }
            #expect(removed == 6)
            let rows = try await store.groupBlocks(account: account, groupKey: 1, minutes: 0..<10)
            #expect(
                rows.sorted { $0.version < $1.version }.map(\.bytes) == [
                    [1, 1, 1, 2, 1, 3, 1, 4], [2, 1, 2, 2, 2, 3, 2, 4],
                ])
        }
    }

    // If this fails, a trace that the rule left out comes up in a search.
    @Test func `a trace that is not indexed is found by its id only`() async throws {
        try await withStore { (store, states, _) async throws in
            var left = change(1, documents: [document("{}")], ends: [today], root: nil)
            left.isIndexed = false
            #expect(
                try await store.commit(
                    batch([states[0].move(to: 2)], [left, change(2, documents: [document("{}")], ends: [today])]))
                    == .committed)
            let stored = try await store.storedTraces(account: account, ids: [traceID(1), traceID(2)])
            #expect(
                stored.first { $0.id == traceID(1) }?.isIndexed == false
                    && stored.first { $0.id == traceID(2) }?.isIndexed == true)
            for type in TimeRangeType.allCases {
                let page = try await store.summaryPage(
                    account: account, rangeType: type, window: 0..<1 << 40, after: nil, limit: 9)
                #expect(page.map(\.id) == [traceID(2)])
            }
        }
    }
}

@Suite struct ControlStoreTests {
    // If this fails, a resource gets more than fifty tags, or a refused call leaves some behind.
    @Test func `tags are set all or none`() async throws {
        try await withStore { (store, _, _) async throws in
            func tags(_ range: Range<Int>, value: String = "v") -> [ResourceTag] {
                range.map { ResourceTag(key: "k\($0)", value: value) }
            }
            #expect(try await store.setTags(tags(0..<50), account: account, resource: "r"))
            #expect(try await !store.setTags(tags(49..<51, value: "w"), account: account, resource: "r"))
            #expect(try await store.setTags(tags(49..<50, value: "w"), account: account, resource: "r"))
            #expect(try await store.setTags(tags(0..<1), account: account, resource: "s"))
            #expect(try await store.setTags(tags(0..<1), account: other(account), resource: "r"))
            let found = try await store.tags(account: account, resource: "r")
            #expect(found.count == 50 && found.first { $0.key == "k49" }?.value == "w")
            try await store.removeTags(["k1", "absent"], account: account, resource: "r")
            #expect(try await store.tags(account: account, resource: "r").count == 49)
            #expect(try await store.tags(account: other(account), resource: "r").count == 1)
        }
    }

    @Test func `the indexing rule is effective for CloudWatchLogs only`() async throws {
        try await withStore { (store, _, _) async throws in
            #expect(try await store.indexingSettings(account: account) == IndexingSettings())
            try await store.setIndexedPercentage(12.5, account: account, now: 7)
            #expect(try await store.rules(of: [account]).isEmpty)
            #expect(try await store.setDestination(.cloudWatchLogs, account: account, now: 8))
            #expect(try await !store.setDestination(.cloudWatchLogs, account: account, now: 9))
            let settings = try await store.indexingSettings(account: account)
            #expect(settings.destination == .cloudWatchLogs && settings.destinationChangedAt == 8)
            #expect(settings.percentage == 12.5 && settings.modifiedAt == 7)
            try await store.setIndexedPercentage(50, account: account, now: 10)
            #expect(try await store.setDestination(.xray, account: account, now: 20))
            try await store.setIndexedPercentage(60, account: account, now: 30)
            // What was in force when: a trace goes by the rule at its first document, also when it is folded again.
            let rules = try #require(try await store.rules(of: [account])[account])
            #expect(rules.indexing.map(\.changedAt) == [8, 10, 20])
            #expect([7, 8, 9, 10, 19, 20, 99].map { rules.indexedPercentage(at: $0) } == [nil, 12.5, 12.5, 50, 50, nil, nil])
            #expect(try await store.rules(of: [other(account)]).isEmpty)
        }
    }

    private func job(_ number: Int, at time: Micros = 1_000) -> RetrievalJob {
        RetrievalJob(
            id: traceID(1_000 + number), status: .scheduled, createdAt: time, startTime: 1, endTime: 2,
            wanted: [traceID(3), traceID(1), traceID(2)])
    }

    // If this fails, two nodes run one job, or a job of a node that died is never run.
    @Test func `a job is claimed once, and taken over from the dead`() async throws {
        try await withStore { (store, _, _) async throws in
            let one = job(1)
            #expect(try await store.createRetrieval(one, account: account, limit: 10, now: 1_000))
            #expect(try await store.retrieval(account: account, id: one.id) == one)
            #expect(try await store.retrieval(account: other(account), id: one.id) == nil)
            #expect(try await !store.claimRetrieval(account: other(account), id: one.id, now: 1_000))
            #expect(try await store.claimRetrieval(account: account, id: one.id, now: 1_000))
            #expect(try await !store.claimRetrieval(account: account, id: one.id, now: 1_001))
            #expect(
                try await store.claimRetrieval(account: account, id: one.id, now: 1_000 + RetrievalJob.claimLifetime))
            let found = [RetrievalJob.Found(id: traceID(1), revision: 4)]
            try await store.finishRetrieval(account: account, id: one.id, status: .complete, found: found, now: 5_000)
            try await store.finishRetrieval(account: account, id: one.id, status: .cancelled, now: 6_000)
            let finished = try #require(try await store.retrieval(account: account, id: one.id))
            #expect(finished.status == .complete && finished.found == found && finished.finishedAt == 5_000)
            #expect(finished.wanted == one.wanted)
            #expect(
                !finished.isExpired(now: 4_999 + RetrievalJob.lifetime)
                    && finished.isExpired(now: 5_000 + RetrievalJob.lifetime))
        }
    }

    @Test func `jobs that are not finished are limited, and time out`() async throws {
        try await withStore { (store, _, _) async throws in
            for number in 0..<2 {
                #expect(try await store.createRetrieval(job(number), account: account, limit: 2, now: 1_000))
            }
            #expect(try await !store.createRetrieval(job(2), account: account, limit: 2, now: 1_001))
            #expect(try await store.retrieval(account: account, id: job(2).id) == nil)
            #expect(try await store.createRetrieval(job(2), account: other(account), limit: 2, now: 1_001))
            var empty = job(3)
            empty.status = .complete
            empty.wanted = []
            empty.finishedAt = 1_002
            #expect(try await store.createRetrieval(empty, account: account, limit: 2, now: 1_002))
            #expect(try await store.retrieval(account: account, id: empty.id) == empty)
            let late = 1_000 + RetrievalJob.lifetime
            #expect(job(0).status(now: late - 1) == .scheduled && job(0).status(now: late) == .timeout)
            #expect(try await !store.claimRetrieval(account: account, id: job(0).id, now: late))
            #expect(try await store.createRetrieval(job(4, at: late), account: account, limit: 2, now: late))
        }
    }
}
