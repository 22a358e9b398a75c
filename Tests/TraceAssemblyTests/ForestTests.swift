// Parents, owners, roots, durations (`traces.md` §1, §2).

import Fixtures
import Segments
import Testing

@testable import TraceAssembly

@Suite struct ForestTests {
    // If this fails, a callee that reports before its caller never joins the map.
    @Test func `children that arrive before their parents are joined all the same`() throws {
        let folded = try FoldedTrace([
            segment(4, "orders", parent: 3), subsegment(3, parent: 2, ",\"namespace\":\"remote\""),
            subsegment(2, parent: 1), segment(1),
        ])
        let forest = folded.forest
        #expect(forest.root == 3)
        #expect(forest.owner == [0, 3, 3, 3])
        #expect(forest.parent == [1, 2, 3, -1])
        #expect(forest.isResolvedCall(1))
        #expect(!forest.isLeafCall(1))
        #expect(forest.callees(of: 1) == [0])
        #expect(!forest.isPartial)
    }

    // If this fails, a subsegment whose segment never came shows up in durations, counts or documents.
    @Test func `a subsegment without its segment is kept but stands outside everything`() throws {
        var folded = try FoldedTrace([
            segment(1), subsegment(3, from: -100, to: 100, parent: 2), subsegment(4, parent: 3),
        ])
        var forest = folded.forest
        #expect(!forest.isAttached(1))
        #expect(forest.parent[2] == -1)
        #expect(forest.traceDuration == 1_000_000)
        #expect(forest.isPartial)
        #expect(folded.documents().count == 1)
        try folded.receive(subsegment(2, parent: 1), at: 5)
        forest = folded.forest
        #expect(forest.isAttached(1) && forest.isAttached(2))
        #expect(forest.traceDuration == 200_000_000)
        #expect(!forest.isPartial)
    }

    // If this fails, a callee hangs on a call nobody can see (ruling R-01).
    @Test func `an unattached subsegment is nobody's parent`() throws {
        var folded = try FoldedTrace([
            subsegment(2, parent: 1, ",\"namespace\":\"remote\""), segment(3, "orders", parent: 2),
        ])
        var forest = folded.forest
        #expect(forest.parent == [-1, -1])
        #expect(forest.root == 1)
        #expect(forest.hasUnknownParent(1))
        #expect(forest.isPartial)
        #expect(!forest.isResolvedCall(0))
        try folded.receive(segment(1), at: 3)
        forest = folded.forest
        #expect(forest.root == 2)
        #expect(forest.isResolvedCall(0))
        #expect(!forest.isPartial)
    }

    // If this fails, the trace list shows the wrong URL and status: those come from the root.
    @Test func `the root is the earliest segment without a parent, the smaller id first`() throws {
        #expect(try FoldedTrace([segment(9, from: 1), segment(8, from: 1), segment(7, from: 2)]).forest.root == 1)
        // A segment with an unknown parent is root only when there is no other.
        #expect(try FoldedTrace([segment(1, from: 0, parent: 99), segment(2, from: 5)]).forest.root == 1)
        #expect(
            try FoldedTrace([segment(1, from: 3, parent: 99), segment(2, from: 2, to: 4, parent: 98)]).forest.root == 1)
        #expect(try FoldedTrace([subsegment(1, parent: 99)]).forest.root == -1)
        #expect(try TraceSummary(forest: FoldedTrace([subsegment(1, parent: 99)]).forest) == nil)
    }

    // If this fails, a hostile or buggy sender hangs the aggregator (ruling R-26).
    @Test func `a cycle is cut at its latest member, which does not make the trace partial`() throws {
        let own = try FoldedTrace([segment(1, parent: 1)])
        #expect(own.forest.root == 0)
        #expect(own.forest.parent == [-1])
        #expect(!own.forest.isPartial)

        let two = try FoldedTrace([segment(1, from: 5, to: 6, parent: 2), segment(2, parent: 1)])
        #expect(two.forest.parent == [-1, 0].reversed() || two.forest.parent == [1, -1])
        #expect(two.forest.root == 1)
        #expect(!two.forest.isPartial)

        let calls = try FoldedTrace([
            segment(1), subsegment(2, parent: 3), subsegment(3, parent: 2), subsegment(4, parent: 2),
        ])
        #expect(calls.forest.owner == [0, -1, -1, -1])
        #expect(!calls.forest.isPartial)

        let self2 = try FoldedTrace([segment(1), subsegment(2, parent: 2)])
        #expect(self2.forest.owner == [0, -1])
        #expect(!self2.forest.isPartial)
    }

    // If this fails, waterfall rows jump around between reads.
    @Test func `children are ordered by start, then id, whatever their order of arrival`() throws {
        let folded = try FoldedTrace([
            segment(1), subsegment(9, from: 0.5, parent: 1), segment(5, "callee", from: 0.2, parent: 1),
            subsegment(8, from: 0.5, parent: 1),
            subsegment(7, from: 0.1, parent: 1),
        ])
        let forest = folded.forest
        #expect(forest.children(of: 0).map { forest[$0].id.rawValue } == [7, 5, 8, 9])
    }

    // If this fails, "partial" hides that a called service did not report, or marks every local timing as broken (R-37).
    @Test func `an awaited callee makes the trace partial until it is there, on remote calls only`() throws {
        let awaited = ",\"namespace\":\"remote\",\"http\":{\"request\":{\"traced\":true}}"
        var folded = try FoldedTrace([segment(1, subsegments(embedded(2, awaited)))])
        #expect(folded.forest.isPartial)
        try folded.receive(segment(3, parent: 2), at: 2)
        #expect(!folded.forest.isPartial)
        #expect(try !FoldedTrace([segment(1, subsegments(embedded(2, ",\"traced\":true")))]).forest.isPartial)
        #expect(try FoldedTrace([segment(1, to: nil)]).forest.isPartial)
        #expect(try FoldedTrace([segment(1, subsegments(embedded(2, to: nil)))]).forest.isPartial)
    }

    // If this fails, the latency of a node with asynchronous work is wrong (ruling R-09).
    @Test func `service duration reaches to the latest valid end of a segment's own subsegments`() throws {
        let folded = try FoldedTrace([
            segment(1, from: 0, to: 1, subsegments(embedded(2, from: 0.5, to: 3), embedded(3, from: 9, to: 8))),
            segment(4, "callee", from: 0.6, to: 50, parent: 2),
            segment(5, "open", from: 1, to: nil, subsegments(embedded(6, from: 1, to: 2))),
        ])
        let forest = folded.forest
        #expect(forest.serviceDuration(of: 0) == 3_000_000)
        #expect(try forest.serviceDuration(of: folded.index(id(5))) == nil)
        #expect(forest.traceDuration == 50_000_000)
    }

    // If this fails, durations become negative or null for senders with broken clocks (ruling R-08).
    @Test func `a trace whose every end is before its start lasts 0, one without an end has no duration`() throws {
        let backwards = try FoldedTrace([segment(1, from: 5, to: 4)])
        #expect(backwards.forest.traceDuration == 0)
        #expect(backwards.forest.responseTime(of: 0) == 0)
        #expect(backwards.forest.serviceDuration(of: 0) == 0)
        let open = try FoldedTrace([segment(1, to: nil)])
        #expect(open.forest.traceDuration == nil)
        let half = try FoldedTrace([segment(1, to: nil, subsegments(embedded(2, from: 0.5, to: 2)))])
        #expect(half.forest.traceDuration == 2_000_000)
        #expect(try half.summary().duration == nil)
    }

    // If this fails, a generated chain of calls kills the process by stack overflow, or takes minutes.
    @Test func `a chain of 8,500 nested subsegments is assembled, summarised and written`() throws {
        let count = 8_500
        let more = ",\"fault\":true,\"cause\":{\"id\":\"\(id(count))\"}"
        var documents = [segment(1, to: 10, more)]
        for number in 2...count {
            documents.append(
                subsegment(
                    number, "call", from: 0, to: 9, parent: number - 1,
                    number == count ? ",\"namespace\":\"remote\",\"fault\":true" : more))
        }
        let folded = try FoldedTrace(documents.reversed())
        let forest = folded.forest
        #expect(forest.owner.allSatisfy { $0 == Int32(count - 1) })
        let summary = try folded.summary()
        #expect(summary.faultRootCauses.first?.services.first?.path.count == count)
        #expect(summary.responseTimeRootCauses.first?.services.last?.isInferred == true)
        let written = folded.documents()
        #expect(written.count == 2)
        #expect(written[0].document.count { $0 == UInt8(ascii: "{") } >= count)
    }

    // If this fails, what a user sees depends on which daemon was faster.
    @Test func `any order of arrival with any duplicates gives the same trace`() throws {
        var generator = SeededGenerator(printingSeedFor: "documents in any order")
        for _ in 0..<40 {
            let documents = consistentDocuments(using: &generator)
            let first = try FoldedTrace(documents)
            let links = first.forest.describedLinks
            let summary = TraceSummary(forest: first.forest).map(withoutArrival)
            let written = first.documents().map(\.document)
            for _ in 0..<5 {
                let again = (documents + documents.filter { _ in Bool.random(using: &generator) }).shuffled(
                    using: &generator)
                let folded = try FoldedTrace(again)
                #expect(folded.forest.describedLinks == links)
                #expect(TraceSummary(forest: folded.forest).map(withoutArrival) == summary)
                #expect(folded.documents().map(\.document) == written)
                #expect(SummaryClocks(forest: folded.forest).ends == SummaryClocks(forest: first.forest).ends)
            }
        }
    }
}

private func withoutArrival(_ summary: TraceSummary) -> TraceSummary {
    var summary = summary
    summary.revision = 0
    summary.newestReceipt = 0
    return summary
}

/// Documents in which every entity has one completion at most and one open form at most, so order must not matter.
private func consistentDocuments(using generator: inout SeededGenerator) -> [String] {
    var documents: [String] = []
    var number = 0
    var parents: [Int?] = [nil, nil, 900]
    func facts() -> String {
        var more = ""
        if Bool.random(using: &generator) {
            more += ",\"namespace\":\"\(["aws", "remote", "local"].randomElement(using: &generator) ?? "")\""
        }
        if Bool.random(using: &generator) { more += ",\"fault\":true" }
        if Bool.random(using: &generator) {
            more +=
                ",\"annotations\":{\"k\(Int.random(in: 0...3, using: &generator))\":\(Int.random(in: 0...3, using: &generator))}"
        }
        if Bool.random(using: &generator) {
            more += ",\"cause\":{\"exceptions\":[{\"id\":\"\(id(500 + number))\",\"type\":\"T\(number)\"}]}"
        }
        return more
    }
    for _ in 0..<Int.random(in: 1...12, using: &generator) {
        number += 1
        let own = number
        let start = Double(Int.random(in: 0...5, using: &generator))
        let end = start + Double(Int.random(in: -1...4, using: &generator))
        var more = facts()
        var inner: [String] = []
        for _ in 0..<Int.random(in: 0...3, using: &generator) {
            number += 1
            parents.append(number)
            inner.append(embedded(number, "inner\(number % 3)", from: start, to: end + 1, facts()))
        }
        if !inner.isEmpty { more += ",\"subsegments\":[\(inner.joined(separator: ","))]" }
        // Parents are earlier entities (or unknown), so there are no cycles.
        let parent = parents.randomElement(using: &generator) ?? nil
        parents.append(own)
        let isOpenOnly = Int.random(in: 0...9, using: &generator) == 0
        if let parent, Bool.random(using: &generator) {
            if isOpenOnly || Bool.random(using: &generator) {
                documents.append(subsegment(own, "call\(own % 3)", from: start, to: nil, parent: parent))
            }
            if !isOpenOnly {
                documents.append(subsegment(own, "call\(own % 3)", from: start, to: end, parent: parent, more))
            }
        } else {
            if isOpenOnly || Bool.random(using: &generator) {
                documents.append(segment(own, "service\(own % 3)", from: start, to: nil, parent: parent))
            }
            if !isOpenOnly {
                documents.append(
                    segment(
                        own, "service\(own % 3)", from: start, to: end, parent: parent,
                        more + ",\"user\":\"u\(own % 2)\""))
            }
        }
    }
    return documents
}
