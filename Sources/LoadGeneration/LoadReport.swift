// A result as text for people and as JSON for `deploy/bench`.

import Histogram
import JSONText

public struct LoadReport {
    private let result: LoadResult

    public init(_ result: LoadResult) { self.result = result }

    private static let percentiles: [(name: StaticString, value: Double)] = [
        ("p50", 50), ("p90", 90), ("p99", 99), ("p99.9", 99.9), ("max", 100),
    ]

    public var text: String {
        let totals = result.totals
        let seconds = result.sendingSeconds
        func rate(_ count: Int, _ seconds: Double) -> String { "\(Int(Double(count) / max(seconds, 1e-6)))" }
        func rounded(_ value: Double) -> String { "\((value * 100).rounded() / 100)" }
        var lines: [String] = []
        let averageBytes = totals.expectation.documentBytes / max(1, totals.expectation.documents)
        lines.append(
            "acknowledged \(totals.acknowledgedDocuments) documents in \(totals.acknowledgedCalls) calls in \(rounded(seconds)) s: "
                + "\(rate(totals.acknowledgedDocuments, seconds)) documents/s; \(totals.expectation.traces) traces, \(averageBytes) bytes a document")
        if let complete = result.completeAt {
            let whole = Double(complete - result.startedAt) / 1e6
            lines.append(
                "end to end (everything folded and committed) after \(rounded(whole)) s: \(rate(totals.acknowledgedDocuments, whole)) documents/s"
            )
        } else if result.options.untilComplete || result.options.check {
            lines.append("NOT complete two minutes after the last acknowledgement")
        }
        lines.append("latency of a call, ms: " + line(totals.latency))
        if let visibility = result.visibility {
            lines.append("acknowledged to visible in summaries, ms: " + line(visibility.summaries) + " (\(visibility.probes) probes)")
            lines.append("acknowledged to visible in the graph, ms: " + line(visibility.graph))
            if visibility.probes == 0 { lines.append("NO probe was acknowledged, so nothing is known of visibility") }
            if visibility.timedOut > 0 { lines.append("\(visibility.timedOut) probes were NOT visible within 20 s") }
        }
        let perDocument = Double(result.generatorCPUMicros) / Double(max(1, totals.acknowledgedDocuments))
        lines.append("processor time of the generator: \(rounded(perDocument)) µs a document")
        for (code, count) in totals.refusals.sorted(by: { $0.key < $1.key }) { lines.append("refused with \(code): \(count)") }
        for (error, count) in totals.errors.sorted(by: { $0.key < $1.key }) { lines.append("failed attempts, \(error): \(count)") }
        if result.isCutShort {
            lines.append("stopped \(LoadRun.graceSeconds) s after the time to send for: traces that had begun are not whole")
        }
        if totals.unacknowledgedDocuments > 0 {
            lines.append("\(totals.unacknowledgedDocuments) documents were never acknowledged, so the totals below cannot be exact")
        }
        for check in result.checks {
            let verdict =
                !check.differences.isEmpty
                ? "\(check.differences.count) DIFFER" : check.compared == 0 ? "NOTHING was checked" : "all equal"
            lines.append("check \(check.name): \(check.compared) compared, \(verdict)")
            lines += check.differences.prefix(20).map { "  " + $0 }
        }
        return lines.joined(separator: "\n")
    }

    private func line(_ histogram: Histogram<UInt64>) -> String {
        Self.percentiles.map { "\($0.name) \(millis(histogram, $0.value))" }.joined(separator: ", ")
    }

    private func millis(_ histogram: Histogram<UInt64>, _ percentile: Double) -> Double {
        guard histogram.totalCount > 0 else { return 0 }
        let micros = percentile == 100 ? histogram.max : histogram.valueAtPercentile(percentile)
        return Double((micros + 5) / 10) / 100
    }

    public var json: [UInt8] {
        let totals = result.totals
        var writer = JSONWriter()
        writer.beginObject()
        func number(_ key: StaticString, _ value: Int) {
            writer.key(key)
            writer.int(value)
        }
        func decimal(_ key: StaticString, _ value: Double) {
            writer.key(key)
            writer.double(value)
        }
        func latencies(_ key: StaticString, _ histogram: Histogram<UInt64>) {
            writer.key(key)
            writer.beginObject()
            for percentile in Self.percentiles {
                writer.key(percentile.name)
                writer.double(millis(histogram, percentile.value))
            }
            writer.endObject()
        }
        func counts(_ key: StaticString, _ values: [String: Int]) {
            writer.key(key)
            writer.beginObject()
            for (name, count) in values.sorted(by: { $0.key < $1.key }) {
                writer.key(string: name)
                writer.int(count)
            }
            writer.endObject()
        }
        number("documents", totals.acknowledgedDocuments)
        number("document_bytes", totals.expectation.documentBytes)
        number("traces", totals.expectation.traces)
        number("calls", totals.acknowledgedCalls)
        number("unacknowledged_documents", totals.unacknowledgedDocuments)
        decimal("seconds", result.sendingSeconds)
        decimal("documents_per_second", Double(totals.acknowledgedDocuments) / result.sendingSeconds)
        if let complete = result.completeAt {
            let whole = Double(complete - result.startedAt) / 1e6
            decimal("complete_seconds", whole)
            decimal("complete_documents_per_second", Double(totals.acknowledgedDocuments) / whole)
        }
        latencies("latency_ms", totals.latency)
        if let visibility = result.visibility {
            number("probes", visibility.probes)
            number("probes_timed_out", visibility.timedOut)
            latencies("visible_in_summaries_ms", visibility.summaries)
            latencies("visible_in_graph_ms", visibility.graph)
        }
        decimal("generator_cpu_micros_per_document", Double(result.generatorCPUMicros) / Double(max(1, totals.acknowledgedDocuments)))
        counts("refusals", totals.refusals)
        counts("errors", totals.errors)
        writer.key("checks")
        writer.beginArray()
        for check in result.checks {
            writer.beginObject()
            writer.key("name")
            writer.string(check.name)
            number("compared", check.compared)
            writer.key("differences")
            writer.beginArray()
            for difference in check.differences { writer.string(difference) }
            writer.endArray()
            writer.endObject()
        }
        writer.endArray()
        writer.key("good")
        writer.bool(result.isGood)
        writer.endObject()
        return writer.bytes
    }
}
