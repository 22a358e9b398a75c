// The fold: first completion wins, order of the log decides, nothing arrives twice.

import Fixtures
import Segments
import Testing

@testable import TraceAssembly

@Suite struct TraceFoldTests {
    // If this fails, a retried upload rewrites a finished segment (ruling 10).
    @Test func `the first completion of a segment wins`() throws {
        let folded = try FoldedTrace([segment(1, "web"), segment(1, "other"), segment(1, "other", to: nil)])
        #expect(folded.results == [.changed, .ignored, .ignored])
        #expect(folded.trace.entities[0].entity.name == "web")
        #expect(folded.trace.revision == 1)
    }

    // If this fails, a running request never finishes on the trace page.
    @Test func `an open segment is replaced by an open one and completed by a complete one`() throws {
        let folded = try FoldedTrace([segment(1, "a", to: nil), segment(1, "b", to: nil), segment(1, "c", to: 2)])
        #expect(folded.results == [.changed, .changed, .changed])
        #expect(folded.trace.entities.count == 1)
        #expect(folded.trace.entities[0].entity.name == "c")
        #expect(folded.trace.entities[0].document == 2)
        #expect(folded.trace.revision == 3)
    }

    // If this fails, a daemon that sends a batch twice makes revisions (and graph corrections) out of nothing (ruling R-19).
    @Test func `an open document that comes again byte for byte changes nothing`() throws {
        let open = segment(1, to: nil, subsegments(embedded(2), embedded(3, to: nil)))
        let folded = try FoldedTrace([open, open, segment(1, "renamed", to: nil), segment(1, "renamed", to: nil)])
        #expect(folded.results == [.changed, .ignored, .changed, .ignored])
        #expect(folded.trace.revision == 2)
        #expect(folded.trace.receipts == [1_700_000_100_000_000, 1_700_000_102_000_000])
    }

    // If this fails, a duplicate of a finished segment smuggles in subsegments.
    @Test func `a finished segment that comes again is ignored with its whole embedded tree`() throws {
        let folded = try FoldedTrace([segment(1), segment(1, "web", subsegments(embedded(2)))])
        #expect(folded.results == [.changed, .ignored])
        #expect(folded.trace.entities.count == 1)
        // An independent one for a finished segment is news, though.
        let late = try FoldedTrace([segment(1), subsegment(2, parent: 1)])
        #expect(late.results == [.changed, .changed])
    }

    // If this fails, work below an already streamed subsegment is lost (ruling R-18).
    @Test func `an embedded subsegment that is complete is skipped and what is new below it is taken`() throws {
        let folded = try FoldedTrace([
            subsegment(2, "streamed", parent: 1),
            segment(1, "web", subsegments(embedded(2, "again", subsegments(embedded(3))))),
        ])
        #expect(folded.trace.entities.map(\.entity.name) == ["streamed", "web", "work"])
        let forest = folded.forest
        #expect(try forest.parent[Int(folded.index(id(3)))] == folded.index(id(2)))
    }

    // If this fails, SDKs that stream finished children (all of them) lose those children when the segment ends.
    @Test func `replacing an open segment keeps the subsegments received for it`() throws {
        let folded = try FoldedTrace([segment(1, to: nil), subsegment(2, parent: 1), segment(1, to: 5)])
        #expect(folded.trace.entities.count == 2)
        #expect(folded.forest.children(of: 0) == [1])
    }

    // If this fails, one mistaken document turns a service of the map into a call, or back.
    @Test func `the kind of first sight stays and a document of the other kind is ignored`() throws {
        let folded = try FoldedTrace([segment(1, to: nil), subsegment(1, parent: 9), segment(1, to: 2)])
        #expect(folded.results == [.changed, .ignored, .changed])
        #expect(folded.trace.entities[0].entity.kind == .segment)
        let reverse = try FoldedTrace([subsegment(1, to: nil, parent: 9), segment(1, "web", subsegments(embedded(2)))])
        #expect(reverse.results == [.changed, .ignored])
        #expect(reverse.trace.entities.count == 1)
    }

    // If this fails, a runaway trace fills the disk, or a trace at its limit stays "in progress" for ever (ruling R-21).
    @Test func `over the byte limit new entities are left out and completions are still taken`() throws {
        let open = segment(1, to: nil)
        let room = TraceLimits(traceBytes: open.utf8.count + 10)
        let completion = segment(1, to: 3, subsegments(embedded(2)))
        let folded = try FoldedTrace([open, subsegment(3, parent: 1), completion, segment(4)], limits: room)
        #expect(folded.results == [.changed, .overLimit, .changed, .overLimit])
        #expect(folded.trace.limitExceeded)
        #expect(folded.trace.entities.map(\.entity.id.rawValue) == [1, 2])
        #expect(folded.trace.storedBytes == open.utf8.count + completion.utf8.count)
        #expect(try same(folded.trace, folded.refolded().trace))
    }

    // If this fails, a trace that just fits is cut.
    @Test func `a document that fills the limit exactly is taken`() throws {
        let first = segment(1)
        let second = segment(2)
        let folded = try FoldedTrace(
            [first, second, segment(3)], limits: TraceLimits(traceBytes: first.utf8.count + second.utf8.count))
        #expect(folded.results == [.changed, .changed, .overLimit])
    }

    // If this fails, Revision depends on how uploads were batched, or misses a subsegment that waits for its parent.
    @Test func `Revision counts the documents that changed the trace, unattached ones too`() throws {
        let folded = try FoldedTrace([subsegment(5, parent: 4), segment(1), segment(1), subsegment(2, parent: 1)])
        #expect(folded.trace.revision == 3)
        #expect(folded.trace.receipts.count == 3)
    }

    // If this fails, an id used twice in one document crashes the aggregator or flips state at every retry.
    @Test func `an id used twice in one document is settled by document order`() throws {
        let document = subsegment(1, "outer", to: nil, parent: 9, subsegments(embedded(1, "inner", to: nil)))
        let folded = try FoldedTrace([document, document])
        #expect(folded.results == [.changed, .ignored])
        #expect(folded.trace.entities.map(\.entity.name) == ["inner"])
        #expect(folded.trace.entities[0].ordinal == 1)
    }

    // If this fails, a trace read from the database differs from the one in the aggregator's cache.
    @Test func `refolding the stored documents gives the identical trace, whatever arrived`() throws {
        var generator = SeededGenerator(printingSeedFor: "documents at odds with each other")
        for _ in 0..<60 {
            // Few ids, any parent, any state: collisions, cycles and repeats are the rule.
            let documents = (0..<30).map { _ in anyDocument(using: &generator) }
            let limit = TraceLimits(traceBytes: Bool.random(using: &generator) ? 0 : 1_500)
            var folded = try FoldedTrace(documents.prefix(10).map { $0 }, limits: limit)
            #expect(try same(folded.trace, folded.refolded().trace))
            // A cache miss in the middle, then on.
            let middle = try folded.refolded()
            var resumed = try FoldedTrace([], limits: limit)
            resumed.trace = middle.trace
            for (position, document) in documents.dropFirst(10).enumerated() {
                try folded.receive(document, at: Micros(position))
                try resumed.receive(document, at: Micros(position))
            }
            #expect(same(folded.trace, resumed.trace))
            #expect(try same(folded.trace, folded.refolded().trace))
            // Replaying what was stored last changes nothing more than once.
            let forest = folded.forest
            for index in 0..<Int32(forest.count) where forest.parent[Int(index)] >= 0 {
                #expect(forest.isAttached(forest.parent[Int(index)]))
            }
            for document in folded.documents() { _ = try object(document.document) }
            _ = TraceSummary(forest: forest)
        }
    }

    // If this fails, a trace of a few thousand spans stalls its partition: folding must not cost more as the trace grows.
    @Test func `folding documents one by one takes time in proportion to their number`() throws {
        let parser = SegmentParser()
        func seconds(_ count: Int) throws -> Double {
            var documents = [try parser.parse(Array(segment(1).utf8))]
            for number in 2...count {
                documents.append(try parser.parse(Array(subsegment(number, parent: number - 1).utf8)))
            }
            var best = Double.infinity
            for _ in 0..<3 {
                var trace = Trace(id: TraceID(high: 1, low: 2), account: receivingAccount)
                let elapsed = ContinuousClock().measure {
                    for document in documents {
                        _ = trace.fold(document, receivedAt: 1, byteCount: 100, contentHash: 0)
                    }
                    _ = Forest(trace)
                }
                best = min(best, elapsed / .seconds(1))
                #expect(trace.entities.count == count)
            }
            return best
        }
        // 32 times the documents: about 32 times the work (and some cache misses), 1,024 times were it quadratic.
        let small = try seconds(500)
        let large = try seconds(16_000)
        #expect(large < small * 320)
    }
}

/// A document over eight ids, valid by itself, often at odds with the others.
private func anyDocument(using generator: inout SeededGenerator) -> String {
    func number() -> Int { Int.random(in: 1...8, using: &generator) }
    func end() -> Double? { Bool.random(using: &generator) ? nil : Double(Int.random(in: 0...9, using: &generator)) }
    func start() -> Double { Double(Int.random(in: 0...4, using: &generator)) }
    let flags =
        Bool.random(using: &generator)
        ? ",\"fault\":true,\"cause\":\"\(id(number()))\"" : ",\"namespace\":\"remote\",\"fault\":true"
    let inner = embedded(number(), "inner\(number())", from: start(), to: end(), flags)
    let below = Bool.random(using: &generator) ? subsegments(inner, embedded(number(), from: start(), to: end())) : ""
    if Bool.random(using: &generator) {
        let parent = Bool.random(using: &generator) ? number() : nil
        return segment(number(), "service\(number())", from: start(), to: end(), parent: parent, flags + below)
    }
    return subsegment(number(), "call\(number())", from: start(), to: end(), parent: number(), flags + below)
}
