// A small Prometheus registry: families of counters, gauges and histograms, and their text form.
// In: plain numbers from any thread. Out: the page that `GET /metrics` answers. It knows no metric of Beamline by name;
// those are in `Metrics.swift`. Label values come from small known sets; a family stops at 200 series and adds up the rest.

import Synchronization

/// Every metric family of one process (or of one test).
public final class MetricRegistry: Sendable {
    private let families = Mutex<[any MetricFamily]>([])

    public init() {}

    /// A family that only grows. `labels` are the label names, `add` takes their values in the same order.
    public func counter(_ name: String, _ help: String, labels: [String] = []) -> Counter {
        register(Counter(name: name, help: help, labels: labels))
    }

    /// A family of current values. `limit`: most series of it, where what users make (groups, partitions) gives the labels.
    public func gauge(_ name: String, _ help: String, labels: [String] = [], limit: Int = seriesLimit) -> Gauge {
        register(Gauge(name: name, help: help, labels: labels, limit: limit))
    }

    /// A family of distributions over fixed upper bounds (ascending, without +Inf).
    public func histogram(_ name: String, _ help: String, labels: [String] = [], bounds: [Double]) -> Histogram {
        register(Histogram(name: name, help: help, labels: labels, bounds: bounds))
    }

    /// A value that somebody else keeps, read when the page is asked for. `read` must not block.
    public func sampled(
        _ name: String, _ help: String, kind: SampledKind = .gauge, read: @escaping @Sendable () -> Double?
    ) {
        _ = register(Sampled(name: name, help: help, kind: kind, read: read))
    }

    /// The page in the Prometheus text format, version 0.0.4, families in the order of registration.
    public func text() -> String {
        var page = ""
        page.reserveCapacity(16_384)
        for family in families.withLock({ $0 }) { family.write(to: &page) }
        return page
    }

    private func register<Family: MetricFamily>(_ family: Family) -> Family {
        families.withLock { $0.append(family) }
        return family
    }
}

protocol MetricFamily: Sendable {
    func write(to page: inout String)
}

/// Most series of a family that sets no limit of its own. A label set that grows past it is a mistake of ours; the page stays
/// small all the same.
public let seriesLimit = 200

public final class Counter: MetricFamily {
    private let head: FamilyHead
    private let unlabelled = Atomic<UInt64>(0)
    private let series = Mutex<[[String]: Double]>([:])

    init(name: String, help: String, labels: [String]) {
        head = FamilyHead(name: name, help: help, type: "counter", labels: labels)
    }

    /// Adds to the one series of a family without labels.
    public func add(_ count: Int = 1) {
        if count > 0 { unlabelled.wrappingAdd(UInt64(count), ordering: .relaxed) }
    }

    /// Adding 0 makes the series appear.
    public func add(_ amount: Double, _ values: [String]) {
        guard amount >= 0 else { return }
        series.withLock { $0[head.admitted(values, among: $0), default: 0] += amount }
    }

    /// The value of one series now; 0 when it was never touched.
    public func value(_ values: [String] = []) -> Double {
        head.labels.isEmpty ? Double(unlabelled.load(ordering: .relaxed)) : series.withLock { $0[values] ?? 0 }
    }

    func write(to page: inout String) {
        head.write(to: &page)
        if head.labels.isEmpty {
            head.line(to: &page, values: [], value: Double(unlabelled.load(ordering: .relaxed)))
        } else {
            for (values, value) in series.withLock({ $0 }).sorted(by: { $0.key.lexicographicallyPrecedes($1.key) }) {
                head.line(to: &page, values: values, value: value)
            }
        }
    }
}

public final class Gauge: MetricFamily {
    private let head: FamilyHead
    private let series = Mutex<[[String]: Double]>([:])

    init(name: String, help: String, labels: [String], limit: Int) {
        head = FamilyHead(name: name, help: help, type: "gauge", labels: labels, limit: limit)
    }

    public func set(_ value: Double, _ values: [String] = []) {
        series.withLock { $0[head.admitted(values, among: $0)] = value }
    }

    public func add(_ delta: Double, _ values: [String] = []) {
        series.withLock { $0[head.admitted(values, among: $0), default: 0] += delta }
    }

    /// Replaces all series. Beyond the limit they are added up, always the same ones.
    public func setAll(_ values: [[String]: Double]) {
        let sorted = values.sorted { $0.key.lexicographicallyPrecedes($1.key) }
        series.withLock { series in
            series.removeAll()
            for (labels, value) in sorted { series[head.admitted(labels, among: series), default: 0] += value }
        }
    }

    public func value(_ values: [String] = []) -> Double { series.withLock { $0[values] ?? 0 } }

    func write(to page: inout String) {
        head.write(to: &page)
        for (values, value) in series.withLock({ $0 }).sorted(by: { $0.key.lexicographicallyPrecedes($1.key) }) {
            head.line(to: &page, values: values, value: value)
        }
    }
}

public final class Histogram: MetricFamily {
    private struct Series {
        var counts: [UInt64]
        var count: UInt64 = 0
        var sum = 0.0
    }
    private let head: FamilyHead
    private let bounds: [Double]
    private let series = Mutex<[[String]: Series]>([:])

    init(name: String, help: String, labels: [String], bounds: [Double]) {
        head = FamilyHead(name: name, help: help, type: "histogram", labels: labels)
        self.bounds = bounds
    }

    public func observe(_ value: Double, _ values: [String] = []) {
        let bucket = bounds.firstIndex { value <= $0 }
        series.withLock { all in
            let key = head.admitted(values, among: all)
            // In place through the default subscript: taking the array out of the dictionary would copy it.
            let fresh = Series(counts: [])
            if all[key, default: fresh].counts.isEmpty {
                all[key] = Series(counts: Array(repeating: 0, count: bounds.count))
            }
            if let bucket { all[key, default: fresh].counts[bucket] += 1 }
            all[key, default: fresh].count += 1
            all[key, default: fresh].sum += value
        }
    }

    public func count(_ values: [String] = []) -> UInt64 { series.withLock { $0[values]?.count ?? 0 } }

    func write(to page: inout String) {
        head.write(to: &page)
        for (values, one) in series.withLock({ $0 }).sorted(by: { $0.key.lexicographicallyPrecedes($1.key) }) {
            var running: UInt64 = 0
            for (bound, count) in zip(bounds, one.counts) {
                running += count
                head.line(
                    to: &page, suffix: "_bucket", values: values, extra: ("le", number(bound)), value: Double(running))
            }
            head.line(to: &page, suffix: "_bucket", values: values, extra: ("le", "+Inf"), value: Double(one.count))
            head.line(to: &page, suffix: "_sum", values: values, value: one.sum)
            head.line(to: &page, suffix: "_count", values: values, value: Double(one.count))
        }
    }
}

public enum SampledKind: String, Sendable {
    case gauge, counter
}

/// One value that is read from its owner when the page is written; left out when the owner has none.
final class Sampled: MetricFamily {
    private let head: FamilyHead
    private let read: @Sendable () -> Double?

    init(name: String, help: String, kind: SampledKind, read: @escaping @Sendable () -> Double?) {
        head = FamilyHead(name: name, help: help, type: kind.rawValue, labels: [])
        self.read = read
    }

    func write(to page: inout String) {
        guard let value = read() else { return }
        head.write(to: &page)
        head.line(to: &page, values: [], value: value)
    }
}

struct FamilyHead: Sendable {
    var name: String
    var help: String
    var type: String
    var labels: [String]
    var limit = seriesLimit

    /// The series a set of label values counts in: itself, or `other` once the family is full.
    func admitted<Value>(_ values: [String], among series: [[String]: Value]) -> [String] {
        assert(values.count == labels.count, "\(name) has labels \(labels)")
        if series[values] != nil || series.count < limit { return values }
        return labels.map { _ in "other" }
    }

    func write(to page: inout String) {
        page += "# HELP \(name) \(help)\n# TYPE \(name) \(type)\n"
    }

    func line(
        to page: inout String, suffix: String = "", values: [String], extra: (String, String)? = nil, value: Double
    ) {
        page += name
        page += suffix
        var pairs = zip(labels, values).map { "\($0)=\"\(escaped($1))\"" }
        if let (label, text) = extra { pairs.append("\(label)=\"\(text)\"") }
        if !pairs.isEmpty { page += "{\(pairs.joined(separator: ","))}" }
        page += " \(number(value))\n"
    }
}

/// Backslash, double quote and line feed are escaped in label values.
/// Source: Prometheus, "Exposition formats", "Comments, help text, and type information".
private func escaped(_ text: String) -> String {
    guard text.utf8.contains(where: { $0 == 0x5C || $0 == 0x22 || $0 == 0x0A }) else { return text }
    var out = ""
    for scalar in text.unicodeScalars {
        switch scalar {
        case "\\": out += "\\\\"
        case "\"": out += "\\\""
        case "\n": out += "\\n"
        default: out.unicodeScalars.append(scalar)
        }
    }
    return out
}

private func number(_ value: Double) -> String {
    if value == value.rounded(), abs(value) < 1e15 { return "\(Int64(value))" }
    if value.isNaN { return "NaN" }
    if value.isInfinite { return value < 0 ? "-Inf" : "+Inf" }
    return "\(value)"
}
