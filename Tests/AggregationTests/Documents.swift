// Short ways to write segment documents of numbered traces.

import Segments

/// `1-65536f64-…` with the number in its last digits; numbers spread over the partitions by hash.
func traceName(_ number: Int) -> String { "1-65536f64-" + hex(number, 24) }

func traceID(_ number: Int) -> TraceID {
    TraceID(parsing: traceName(number)) ?? TraceID(high: 0, low: 0)
}

func entityName(_ number: Int) -> String { hex(number, 16) }

private func hex(_ number: Int, _ digits: Int) -> String {
    let text = String(number, radix: 16)
    return String(repeating: "0", count: digits - text.count) + text
}

/// A segment or subsegment document; times are seconds after `startSecond`.
/// - Parameter end: nil = still open.
func document(
    trace: Int, id: Int, name: String, start: Double = 1, end: Double? = 2, parent: Int? = nil,
    isSubsegment: Bool = false, links: [(trace: Int, id: Int)] = [], more: String = ""
) -> String {
    var fields = [
        #""trace_id":"\#(traceName(trace))""#, #""id":"\#(entityName(id))""#, #""name":"\#(name)""#,
        #""start_time":\#(Double(startSecond) + start)"#,
    ]
    if let end {
        fields.append(#""end_time":\#(Double(startSecond) + end)"#)
    } else {
        fields.append(#""in_progress":true"#)
    }
    if let parent { fields.append(#""parent_id":"\#(entityName(parent))""#) }
    if isSubsegment { fields.append(#""type":"subsegment""#) }
    if !links.isEmpty {
        let texts = links.map { #"{"trace_id":"\#(traceName($0.trace))","id":"\#(entityName($0.id))"}"# }
        fields.append(#""links":[\#(texts.joined(separator: ","))]"#)
    }
    if !more.isEmpty { fields.append(more) }
    return "{\(fields.joined(separator: ","))}"
}
