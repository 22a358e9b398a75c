// The text that Prometheus scrapes, family by family.

import Observability
import Testing

// If this fails, Prometheus refuses the whole page or shows wrong numbers.
@Test func `a counter, a gauge and a histogram are written in the Prometheus text format`() {
    let registry = MetricRegistry()
    let counter = registry.counter("beamline_things_total", "Things.")
    let gauge = registry.gauge("beamline_level", "Level.", labels: ["partition"])
    let histogram = registry.histogram("beamline_wait_seconds", "Wait.", bounds: [0.1, 1])
    counter.add(3)
    gauge.set(1.5, ["0"])
    histogram.observe(0.1)
    histogram.observe(0.5)
    histogram.observe(7)
    #expect(
        registry.text() == """
            # HELP beamline_things_total Things.
            # TYPE beamline_things_total counter
            beamline_things_total 3
            # HELP beamline_level Level.
            # TYPE beamline_level gauge
            beamline_level{partition="0"} 1.5
            # HELP beamline_wait_seconds Wait.
            # TYPE beamline_wait_seconds histogram
            beamline_wait_seconds_bucket{le="0.1"} 1
            beamline_wait_seconds_bucket{le="1"} 2
            beamline_wait_seconds_bucket{le="+Inf"} 3
            beamline_wait_seconds_sum 7.6
            beamline_wait_seconds_count 3

            """)
}

// If this fails, a label value with a quote breaks every metric after it.
@Test func `label values are escaped`() {
    let registry = MetricRegistry()
    registry.counter("a_total", "A.", labels: ["reason"]).add(1, ["say \"no\"\\\n"])
    #expect(registry.text().hasSuffix("a_total{reason=\"say \\\"no\\\"\\\\\\n\"} 1\n"))
}

// If this fails, a label fed from outside makes the page, and the memory, grow without end.
@Test func `a family stops at its limit of series and adds up the rest`() {
    let counter = MetricRegistry().counter("a_total", "A.", labels: ["name"])
    for number in 0..<1_000 { counter.add(1, ["n\(number)"]) }
    #expect(counter.value(["n0"]) == 1)
    #expect(counter.value(["n999"]) == 0)
    #expect(counter.value(["other"]) == 800)
}

// If this fails, groups disappear from the page, others at each scrape, once a cluster has some forty of them.
@Test func `every group of every account has its series`() {
    let metrics = Metrics()
    let groups = (0..<1_500).map {
        (account: "\(700_000_000_000 + $0 / 25)", group: "g\($0)", total: 9, ok: 4, error: 3, fault: 2, throttle: 1)
    }
    metrics.groupTraces(groups)
    let lines = metrics.text().split(separator: "\n").filter { $0.hasPrefix("beamline_group_traces{") }
    #expect(Set(lines).count == 7_500)
    #expect(lines.contains("beamline_group_traces{account=\"700000000059\",group=\"g1499\",outcome=\"fault\"} 2"))
}

// If this fails, what does not fit on the page is missing from its sums.
@Test func `values beyond the limit are added up, always the same ones`() {
    let gauge = MetricRegistry().gauge("a", "A.", labels: ["name"], limit: 3)
    for _ in 0..<20 {
        gauge.setAll(["a": 1, "b": 2, "c": 3, "d": 4, "e": 5].reduce(into: [:]) { $0[[$1.key]] = $1.value })
        #expect(["a", "b", "c", "d", "e", "other"].map { gauge.value([$0]) } == [1, 2, 3, 0, 0, 9])
    }
}

// If this fails, an operator cannot see the process's memory or the daemon port's losses.
@Test func `the process page names memory, documents and datagrams`() throws {
    let metrics = Metrics()
    metrics.documentsAccepted(25, source: "http")
    metrics.documentsRefused(source: "udp", reason: "MissingName")
    metrics.datagrams(4, .dropped)
    metrics.requestAnswered(operation: "PutTraceSegments", status: 200, took: .milliseconds(3))
    metrics.lag([(partition: 2, records: 7, age: .seconds(2))])
    let text = metrics.text()
    for line in [
        "beamline_documents_accepted_total{source=\"http\"} 25",
        "beamline_documents_refused_total{source=\"udp\",reason=\"MissingName\"} 1",
        "beamline_daemon_datagrams_total{outcome=\"dropped\"} 4",
        "beamline_requests_total{operation=\"PutTraceSegments\",status=\"200\"} 1",
        "beamline_request_seconds_bucket{operation=\"PutTraceSegments\",le=\"0.005\"} 1",
        "beamline_lag_records{partition=\"2\"} 7",
        "beamline_lag_seconds{partition=\"2\"} 2",
    ] {
        #expect(text.contains(line + "\n"), "\(line)")
    }
    #expect(try #require(residentBytes()) > 1_000_000)
    #expect(text.contains("\nbeamline_resident_bytes "))
}
