// Documents as text in, the trace they fold into out: the shortest way for a test to say what arrived.

import Foundation
import Segments
import Testing

@testable import TraceAssembly

let receivingAccount = AccountID(rawValue: 111_122_223_333)
let traceIDText = "1-65536f00-0123456789abcdef01234567"

struct FoldedTrace {
    var trace: Trace
    /// The documents that changed the trace, and their receipts beside it in the trace.
    var stored: [[UInt8]] = []
    var results: [FoldResult] = []
    let limits: TraceLimits
    private let parser = SegmentParser()

    init(_ documents: [String], limits: TraceLimits = .unlimited, firstReceipt: Micros = 1_700_000_100_000_000) throws {
        trace = Trace(id: try #require(TraceID(parsing: traceIDText)), account: receivingAccount)
        self.limits = limits
        for (position, document) in documents.enumerated() {
            try receive(document, at: firstReceipt + Micros(position) * 1_000_000)
        }
    }

    mutating func receive(_ document: String, at time: Micros) throws {
        let bytes = Array(document.utf8)
        let parsed = try parser.parse(bytes)
        let result = bytes.withUnsafeBytes { trace.fold(parsed, bytes: $0, receivedAt: time, limits: limits) }
        results.append(result)
        if result == .changed { stored.append(bytes) }
    }

    /// What a cache miss does: the same trace from its stored documents alone.
    func refolded() throws -> FoldedTrace {
        var copy = try FoldedTrace([])
        copy.trace = Trace(id: trace.id, account: trace.account, limitExceeded: trace.limitExceeded)
        for (position, document) in stored.enumerated() {
            try copy.receive(String(decoding: document, as: UTF8.self), at: trace.receipts[position])
        }
        return copy
    }

    var forest: Forest { Forest(trace) }

    func index(_ id: String) throws -> Int32 {
        let id = try #require(EntityID(parsing: id))
        return try #require(trace.indexes[id])
    }

    func summary() throws -> TraceSummary { try #require(TraceSummary(forest: forest)) }

    func documents() -> [TraceDocument] { traceDocuments(forest: forest, documents: stored) }

    /// The returned document of an entity, as objects.
    func document(_ id: String) throws -> NSDictionary {
        let found = try #require(documents().first { $0.id.description == id })
        return try #require(try object(found.document) as? NSDictionary)
    }
}

func object(_ json: [UInt8]) throws -> Any {
    try JSONSerialization.jsonObject(with: Data(json), options: .fragmentsAllowed)
}

func object(_ json: String) throws -> NSObject { try #require(try object(Array(json.utf8)) as? NSObject) }

extension Forest {
    /// Links by id, independent of the order of arrival.
    var describedLinks: [String] {
        (0..<Int32(count)).map { index in
            func name(_ index: Int32) -> String { index < 0 ? "-" : self[index].id.description }
            let below = children(of: index).map { name($0) }.joined(separator: ",")
            return "\(name(index)) in \(name(owner[Int(index)])) under \(name(parent[Int(index)])) over \(below) "
                + "\(isLeafCall(index)) \(isResolvedCall(index)) \(isSegment(index) ? serviceDuration(of: index) ?? -1 : -2)"
        }.sorted() + [
            "root \(root < 0 ? "-" : self[root].id.description) \(isPartial) \(String(describing: traceDuration))"
        ]
    }
}

func same(_ a: Trace, _ b: Trace) -> Bool {
    a.id == b.id && a.account == b.account && a.indexes == b.indexes && a.revision == b.revision
        && a.limitExceeded == b.limitExceeded
        && a.storedBytes == b.storedBytes && a.receipts == b.receipts && a.contentHashes == b.contentHashes
        && String(reflecting: a.entities) == String(reflecting: b.entities)
}

// MARK: Documents

/// An id of 16 digits that shows its number.
func id(_ number: Int) -> String {
    let digits = String(number, radix: 16)
    return String(repeating: "0", count: 16 - digits.count) + digits
}

/// A segment at `start`…`end` seconds after 1,700,000,000; open without an end. `more` = further members, with a comma in front;
/// where the name is left out, they may stand in its place (here and below).
func segment(
    _ number: Int, _ name: String = "web", from start: Double = 0, to end: Double? = 1, parent: Int? = nil,
    _ more: String = ""
)
    -> String
{
    "{\"trace_id\":\"\(traceIDText)\"," + members(number, name, start, end, unnamed: "web")
        + (parent.map { ",\"parent_id\":\"\(id($0))\"" } ?? "") + more + "}"
}

/// An independent subsegment.
func subsegment(
    _ number: Int, _ name: String = "work", from start: Double = 0, to end: Double? = 1, parent: Int,
    _ more: String = ""
)
    -> String
{
    "{\"type\":\"subsegment\",\"trace_id\":\"\(traceIDText)\",\"parent_id\":\"\(id(parent))\","
        + members(number, name, start, end, unnamed: "work") + more + "}"
}

/// An embedded subsegment.
func embedded(_ number: Int, _ name: String = "work", from start: Double = 0, to end: Double? = 1, _ more: String = "")
    -> String
{
    "{" + members(number, name, start, end, unnamed: "work") + more + "}"
}

func subsegments(_ list: String...) -> String { ",\"subsegments\":[\(list.joined(separator: ","))]" }

private func members(_ number: Int, _ nameOrMore: String, _ start: Double, _ end: Double?, unnamed: String) -> String {
    let name = nameOrMore.hasPrefix(",") ? unnamed + "\"" + nameOrMore : nameOrMore + "\""
    return "\"id\":\"\(id(number))\",\"name\":\"\(name),\"start_time\":\(time(start)),"
        + (end.map { "\"end_time\":\(time($0))" } ?? "\"in_progress\":true")
}

private func time(_ seconds: Double) -> String { (1_700_000_000 + seconds).description }
