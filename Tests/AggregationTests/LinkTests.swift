import Aggregation
import SegmentLog
import Segments
import ServiceGraph
import Synchronization
import Testing
import TraceStore

/// How linked traces can come in. `documents` gives them for traces numbered from a base.
struct LinkScenario: Sendable, CustomTestStringConvertible {
    var testDescription: String
    /// Edges of type link that are there in the end, per set of documents: "source → destination".
    var linkEdges: [String]
    /// Services that have no client node in the end.
    var notRoots: [String]
    var documents: @Sendable (_ base: Int) -> [String]

    static let queueCall = #""namespace":"aws","aws":{"operation":"SendMessage","queue_url":"jobs"}"#

    static let all = [
        LinkScenario(
            testDescription: "a queue between two traces", linkEdges: ["jobs → worker"], notRoots: ["worker"],
            documents: { base in
                [
                    document(
                        trace: base, id: 1, name: "shop",
                        more:
                            #""subsegments":[{"id":"\#(entityName(2))","name":"SQS","start_time":\#(startSecond + 1),"end_time":\#(startSecond + 2),\#(queueCall)}]"#
                    ),
                    document(trace: base + 1, id: 3, name: "worker", start: 5, end: 6, links: [(base, 2)]),
                ]
            }),
        LinkScenario(
            testDescription: "a target that is unattached at first and open at first", linkEdges: ["jobs → worker"],
            notRoots: ["worker"],
            documents: { base in
                [
                    document(trace: base, id: 2, name: "SQS", end: nil, parent: 1, isSubsegment: true, more: queueCall),
                    document(trace: base, id: 2, name: "SQS", end: 3, parent: 1, isSubsegment: true, more: queueCall),
                    document(trace: base, id: 1, name: "shop", end: 4),
                    document(trace: base + 1, id: 3, name: "worker", start: 5, end: 6, links: [(base, 2)]),
                ]
            }),
        LinkScenario(
            testDescription: "a chain of linked roots", linkEdges: ["first → second", "second → third"],
            notRoots: ["second", "third"],
            documents: { base in
                [
                    document(trace: base, id: 1, name: "first", end: nil),
                    document(trace: base, id: 1, name: "first"),
                    document(trace: base + 1, id: 2, name: "second", start: 3, end: 4, links: [(base, 1)]),
                    document(trace: base + 2, id: 3, name: "third", start: 5, end: 6, links: [(base + 1, 2)]),
                ]
            }),
        LinkScenario(
            testDescription: "two traces that link to each other, and one to itself",
            linkEdges: ["left → right", "right → left", "self → self"], notRoots: ["left", "right", "self"],
            documents: { base in
                [
                    document(trace: base, id: 1, name: "left", links: [(base + 1, 2)]),
                    document(trace: base + 1, id: 2, name: "right", start: 3, end: 4, links: [(base, 1)]),
                    document(trace: base + 2, id: 3, name: "self", links: [(base + 2, 3)]),
                ]
            }),
        LinkScenario(
            testDescription: "a target that gets a callee later", linkEdges: ["orders → worker"],
            notRoots: ["worker", "orders"],
            documents: { base in
                [
                    document(
                        trace: base, id: 1, name: "web",
                        more:
                            #""subsegments":[{"id":"\#(entityName(2))","name":"orders.internal","start_time":\#(startSecond + 1),"end_time":\#(startSecond + 2),"namespace":"remote"}]"#
                    ),
                    document(trace: base, id: 4, name: "orders", parent: 2),
                    document(trace: base + 1, id: 3, name: "worker", start: 5, end: 6, links: [(base, 2)]),
                ]
            }),
    ]
}

/// All orders of a few things.
private func permutations<T>(_ list: [T]) -> [[T]] {
    guard list.count > 1 else { return [list] }
    return list.indices.flatMap { index in
        var rest = list
        let first = rest.remove(at: index)
        return permutations(rest).map { [first] + $0 }
    }
}

/// Link edges as "source → destination", and names that have a client node.
private func linkEdges(_ graph: ServiceGraphResult) -> [String: Int64] {
    var edges: [String: Int64] = [:]
    for service in graph.services {
        for edge in service.edges where edge.isLink {
            edges["\(service.name) → \(graph.services[edge.referenceID].name)"] = edge.summary.totalCount
        }
    }
    return edges
}

private func clients(_ graph: ServiceGraphResult) -> Set<String> {
    Set(graph.services.filter { $0.type == "client" }.map(\.name))
}

extension AggregationTests {
    // If this fails, the map misses the dashed edge of a queue, or shows it only when messages come in a lucky order.
    @Test(arguments: LinkScenario.all)
    func `links resolve whatever comes first, in one batch or in several`(scenario: LinkScenario) async throws {
        try await withWorld { (world) async throws in
            let orders = permutations(Array(scenario.documents(0).indices))
            func documents(_ index: Int, settled: Bool) -> [String] {
                let documents = scenario.documents((settled ? 50_000 : 10_000) + index * 16)
                return orders[index].map { documents[$0] }
            }
            // Each order in one batch; then one document of each order per batch, everything settled in between.
            for index in orders.indices {
                try await world.append(documents(index, settled: false))
                try await whileRunning(world.aggregator()) { () async throws in
                    #expect(try await eventually { try await world.isCaughtUp() })
                }
            }
            for step in scenario.documents(0).indices {
                try await world.append(orders.indices.map { documents($0, settled: true)[step] })
                var options = AggregatorOptions.quick
                if step % 2 == 0 { options.cacheEntities = 0 }
                try await world.foldEverything(options)
                try await world.expectAgreement("after step \(step)")
            }
            try await world.foldEverything()
            try await world.expectAgreement()
            let graph = try await world.servedGraph()
            // In an order in which an open version comes after the complete one it changes nothing.
            #expect(
                linkEdges(graph)
                    == Dictionary(uniqueKeysWithValues: scenario.linkEdges.map { ($0, Int64(orders.count * 2)) }))
            #expect(clients(graph).isDisjoint(with: scenario.notRoots))
        }
    }

    // If this fails, a crash at the wrong moment leaves a link off the map for ever.
    @Test(arguments: [true, false])
    func `a crash between a commit and its re-check is made good`(consumerFirst: Bool) async throws {
        try await withWorld { (world) async throws in
            let all = LinkScenario.all[0].documents(7)
            // Both are folded before either is committed: neither can see the other.
            try await world.append(consumerFirst ? all[1] : all[0])
            try await world.foldEverything()
            let refused = Atomic<Int>(0)
            var failing = FaultyLog(base: world.log)
            failing.beforeAppend = { () throws(SegmentLogError) in
                refused.wrappingAdd(1, ordering: .relaxed)
                throw SegmentLogError(.unavailable, "the log is away")
            }
            try await world.append(consumerFirst ? all[0] : all[1])
            try await whileRunning(world.aggregator(log: failing)) { () async throws in
                if consumerFirst {
                    #expect(try await eventually { refused.load(ordering: .relaxed) > 1 })
                } else {
                    #expect(try await eventually { try await world.isCaughtUp() })
                }
            }
            let positions = try await world.store.positions()
            if consumerFirst {
                // The producer is stored, its consumer was not told.
                #expect(try await world.isCaughtUp())
                #expect(linkEdges(try await world.servedGraph()).isEmpty)
                #expect(positions.contains { $0.checkedPosition < $0.position })
            }
            try await world.foldEverything()
            try await world.expectAgreement()
            #expect(linkEdges(try await world.servedGraph()) == ["jobs → worker": 1])
        }
    }

    // If this fails, one refused append of a touch stops the aggregator until somebody restarts it.
    @Test func `a touch that the log refuses is appended later by the same worker`() async throws {
        try await withWorld { (world) async throws in
            let all = LinkScenario.all[0].documents(7)
            let left = Atomic<Int>(3)
            var failing = FaultyLog(base: world.log)
            failing.beforeAppend = { () throws(SegmentLogError) in
                if left.wrappingSubtract(1, ordering: .relaxed).oldValue > 0 {
                    throw SegmentLogError(.full, "the queue is full")
                }
            }
            try await whileRunning(world.aggregator(log: failing)) { () async throws in
                try await world.append(all[1])
                #expect(try await eventually { try await world.isCaughtUp() })
                try await world.append(all[0])
                #expect(try await eventually { linkEdges(try await world.servedGraph()) == ["jobs → worker": 1] })
                try await world.expectAgreement()
            }
        }
    }

    // If this fails, links that no segment has any more make the aggregator work for ever.
    @Test func `a segment that completes without its links leaves none behind`() async throws {
        try await withWorld { (world) async throws in
            try await world.append(document(trace: 1, id: 1, name: "worker", end: nil, links: [(2, 2)]))
            try await world.foldEverything()
            #expect(try await world.store.links(account: account, toTargets: [traceID(2)]).count == 1)
            try await world.append(document(trace: 1, id: 1, name: "worker"))
            try await world.foldEverything()
            #expect(try await world.store.links(account: account, toTargets: [traceID(2)]).isEmpty)
            try await world.append(document(trace: 2, id: 2, name: "shop"))
            try await world.foldEverything()
            #expect(try await world.log.endOffsets().reduce(0, +) == 3)
            try await world.expectAgreement()
        }
    }

    // If this fails, a raised document limit keeps the aggregator busy for ever with one linked trace.
    @Test func `documents beyond the usual limit are read again like any other`() async throws {
        try await withWorld { (world) async throws in
            var options = AggregatorOptions.quick
            options.segmentLimits = SegmentLimits(documentBytes: 200_000)
            let metadata = #""metadata":{"a":"\#(String(repeating: "x", count: 100_000))"}"#
            try await world.append(document(trace: 2, id: 2, name: "shop", more: metadata))
            try await world.append(document(trace: 1, id: 1, name: "worker", links: [(2, 2)]))
            try await world.foldEverything(options)
            // The server is set back to the usual limit: what is stored stays what it is.
            try await world.append(document(trace: 2, id: 3, name: "stock", parent: 2))
            try await world.foldEverything()
            let graph = try await world.servedGraph()
            #expect(linkEdges(graph) == ["shop → worker": 1])
            #expect(graph.services.first { $0.name == "shop" && $0.type == nil }?.statistics?.summary.totalCount == 1)
            #expect(try await world.log.endOffsets().reduce(0, +) <= 4)
            #expect(try await world.store.inboxCount() == 0)
        }
    }
}
