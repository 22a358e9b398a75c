// Groups in the aggregator: who is a member, and that a group's blocks are those of its members whatever the batches.

import FilterExpressions
import Fixtures
import SegmentLog
import Segments
import ServiceGraph
import Testing
import TraceAssembly
import TraceStore

@testable import Aggregation

private func group(_ name: String, key: Int64, filter: String, version: Int = 1) -> TraceGroup {
    TraceGroup(
        name: name, arn: "arn:aws:xray:us-east-1:\(account):group/\(name)/X", key: key, version: version,
        filter: filter,
        createdAt: 0)
}

private func put(_ group: TraceGroup, in store: TraceStore) async throws {
    let set = try await store.groups(account: account)
    #expect(try await store.putGroup(group, account: account, revision: set.revision))
}

/// What a group must be for a log, by the pure functions, one document after the other (ruling R-39).
private struct ExpectedGroup {
    var members: Set<TraceID> = []
    var blocks: [Int64: [UInt8]] = [:]
    var counts = GroupCounts()

    init(_ log: [LogBatch], filter: String) throws {
        let expression = try FilterExpression(parsing: filter)
        let parser = SegmentParser()
        var traces: [TraceID: Trace] = [:]
        for entry in log.flatMap(\.entries) where entry.kind == .document {
            let document = try entry.value.withUnsafeBytes { try parser.parse($0) }
            var trace = traces.removeValue(forKey: entry.traceID) ?? Trace(id: entry.traceID, account: account)
            let result = entry.value.withUnsafeBytes {
                trace.fold(document, bytes: $0, receivedAt: entry.receivedAt, limits: TraceLimits(traceBytes: 512_000))
            }
            if result == .changed, !members.contains(trace.id), expression.matches(TraceFacts(forest: Forest(trace))) {
                members.insert(trace.id)
            }
            traces[entry.traceID] = trace
        }
        let forests = traces.filter { members.contains($0.key) }.mapValues { Forest($0) }
        func isMember(_ link: Link) -> Bool {
            guard let producer = forests[link.traceID], let index = producer.trace.indexes[link.entityID] else {
                return false
            }
            return producer.isAttached(index)
        }
        var sum = Contributions()
        for forest in forests.values {
            var facts: [Link: LinkFacts] = [:]
            for link in linksInUse(of: forest.trace) {
                guard let producer = forests[link.traceID] else { continue }
                facts[link] = linkFacts(
                    of: link.entityID, in: producer, rootIsLinked: rootIsLinked(producer, isResolved: isMember))
            }
            sum.add(forest, links: facts)
            switch forest[forest.root].outcome.countedAs {
            case .ok: counts.ok += 1
            case .error: counts.error += 1
            case .fault: counts.fault += 1
            case .throttle: counts.throttle += 1
            }
        }
        for block in sum.blocks() { blocks[block.minute] = block.bytes }
    }
}

extension AggregationWorld {
    private func allMembers(_ key: Int64) async throws -> Set<TraceID> {
        Set(try await store.memberIDs(account: account, groupKey: key, after: nil, limit: 1_000_000))
    }

    private func groupBlocks(_ key: Int64) async throws -> [Int64: [UInt8]] {
        let rows = try await store.groupBlocks(account: account, groupKey: key, minutes: allMinutes)
        return try Dictionary(grouping: rows, by: \.minute).compactMapValues {
            try GraphBlock.merge($0.map(\.bytes))?.bytes
        }
    }

    /// Minutes of receipt that the tests use.
    private func groupCounts(_ name: String) async throws -> GroupCounts {
        var sum = GroupCounts()
        for minute in now / 60_000_000..<now / 60_000_000 + 60 {
            for entry in try await store.groupCounts(minute: minute) where entry.group == name {
                sum.ok += entry.counts.ok
                sum.error += entry.counts.error
                sum.fault += entry.counts.fault
                sum.throttle += entry.counts.throttle
            }
        }
        return sum
    }

    fileprivate func expectGroup(_ group: TraceGroup, filter: String? = nil, _ comment: Comment? = nil) async throws {
        let expected = try ExpectedGroup(try await everything(), filter: filter ?? group.filter)
        #expect(try await allMembers(group.key) == expected.members, comment)
        #expect(try await groupBlocks(group.key) == expected.blocks, comment)
        #expect(try await groupCounts(group.name) == expected.counts, comment)
    }
}

extension AggregationTests {
    // If this fails, the graph of a group is not that of its traces.
    @Test(arguments: 1...3)
    func `groups hold the contributions of their members whatever the batches`(run: Int) async throws {
        let random = SeededGenerator(printingSeedFor: "groups, run \(run)")
        var generator = TraceGenerator(random: random, oddities: .init(percent: 8, orderMatters: true))
        let traces = generator.traces(50, startSecond: startSecond)
        let log = generator.interleavedLog(of: traces)
        let groups = [
            group("faults", key: 1, filter: "fault OR error"), group("partial", key: 2, filter: "partial"),
            group("all", key: 3, filter: ""), group("slow", key: 4, filter: "responsetime > 0.2"),
            group("both", key: 5, filter: #"group.name = "faults" AND !partial"#),
            group("nobody", key: 6, filter: #"user = "nobody""#),
        ]
        try await withWorld(partitionCount: 3) { (world) async throws in
            for group in groups { try await put(group, in: world.store) }
            var rest = log[...]
            while !rest.isEmpty {
                let part = rest.prefix(Int.random(in: 1...60, using: &generator.random))
                rest = rest.dropFirst(part.count)
                try await world.append(Array(part))
                var options = AggregatorOptions.quick
                options.batchRecords = Int.random(in: 1...40, using: &generator.random)
                options.cacheEntities = generator.random.pick([0, 20, 100_000])
                try await world.foldEverything(options)
            }
            try await world.expectAgreement("seed \(generator.random.seed)")
            for group in groups {
                let filter = group.name == "both" ? "(fault OR error) AND !partial" : group.filter
                try await world.expectGroup(group, filter: filter, "group \(group.name), seed \(generator.random.seed)")
            }
        }
    }

    // If this fails, a queue's edge is missing in a group that has both of its traces, or is there in one that has not.
    @Test(arguments: LinkScenario.all)
    func `links resolve within groups whatever comes first`(scenario: LinkScenario) async throws {
        try await withWorld { (world) async throws in
            let groups = [
                group("all", key: 1, filter: ""),
                group("workers", key: 2, filter: #"service("worker") OR service("second")"#),
            ]
            for group in groups { try await put(group, in: world.store) }
            for (index, order) in [scenario.documents(100), scenario.documents(200).reversed()].enumerated() {
                for document in order {
                    try await world.append(document)
                    var options = AggregatorOptions.quick
                    if index == 1 { options.cacheEntities = 0 }
                    try await world.foldEverything(options)
                }
            }
            try await world.foldEverything()
            for group in groups { try await world.expectGroup(group, "group \(group.name)") }
        }
    }

    // If this fails, a change of a filter reaches back, or a deleted group goes on taking traces.
    @Test func `filters apply from their version on`() async throws {
        try await withWorld { (world) async throws in
            var one = group("g", key: 1, filter: #"service("a")"#)
            try await world.append(document(trace: 1, id: 1, name: "a"))
            try await world.foldEverything()
            try await put(one, in: world.store)
            try await world.append(document(trace: 2, id: 2, name: "a"), document(trace: 3, id: 3, name: "b"))
            try await world.foldEverything()
            (one.filter, one.version) = (#"service("b")"#, 2)
            try await put(one, in: world.store)
            // Trace 1 changes now, and matches only what was; trace 3 changes and matches what is.
            try await world.append(
                document(trace: 1, id: 11, name: "x", parent: 1), document(trace: 3, id: 13, name: "x", parent: 3),
                document(trace: 4, id: 4, name: "a"), document(trace: 5, id: 5, name: "b"))
            try await world.foldEverything()
            func versions() async throws -> [Int: Int] {
                let members = try await world.store.groupMembers(account: account, traces: (1...9).map(traceID))
                return Dictionary(uniqueKeysWithValues: members.map { (Int($0.trace.low & 0xff), $0.version) })
            }
            #expect(try await versions() == [2: 1, 3: 2, 5: 2])
            let set = try await world.store.groups(account: account)
            #expect(try await world.store.deleteGroup(one, account: account, revision: set.revision))
            try await world.append(
                document(trace: 6, id: 6, name: "b"), document(trace: 2, id: 12, name: "x", parent: 2))
            try await world.foldEverything()
            #expect(
                try await world.store.memberIDs(account: account, groupKey: 1, after: nil, limit: 9)
                    == [2, 3, 5].map(traceID))
            try await world.expectAgreement()
        }
    }

    // If this fails, the map counts traces that have no summary, or what was decided once is decided again.
    @Test func `a trace that the rule leaves out contributes nothing but is a target of links`() async throws {
        try await withWorld { (world) async throws in
            #expect(try await world.store.setDestination(.cloudWatchLogs, account: account, now: now - 2))
            try await world.store.setIndexedPercentage(0, account: account, now: now - 1)
            try await put(group("all", key: 1, filter: ""), in: world.store)
            try await world.append(document(trace: 1, id: 1, name: "hidden"))
            try await world.foldEverything()
            try await world.store.setIndexedPercentage(100, account: account, now: now + 300_000)
            try await world.append(
                document(trace: 1, id: 3, name: "hidden too", parent: 1),
                document(trace: 2, id: 2, name: "shown", start: 3, end: 4, links: [(1, 1)]))
            try await world.foldEverything()
            let graph = try await world.servedGraph()
            // The link names its source; the source itself counts nothing, and the consumer is a linked root.
            #expect(graph.services.map(\.name) == ["hidden", "shown"])
            #expect(graph.services.map { $0.statistics?.summary.totalCount } == [0, 1])
            #expect(
                try await world.store.memberIDs(account: account, groupKey: 1, after: nil, limit: 9) == [traceID(2)])
            let page = try await world.store.summaryPage(
                account: account, rangeType: .service, window: 0..<1 << 40, after: nil, limit: 9)
            #expect(page.map(\.id) == [traceID(2)])
        }
    }
}
