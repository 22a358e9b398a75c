// Every fact Beamline counts about itself, one function each: the only place where a metric has a name.
// Roles call these functions from any thread; the cost is a lock and a dictionary access, so once per batch or request,
// never once per document. `GET /metrics` of the metrics listener answers `text()`.

/// The metrics of one process.
public final class Metrics: Sendable {
    public let registry = MetricRegistry()

    // Ingest.
    let accepted: Counter
    let refused: Counter
    let telemetryRecords: Counter
    let datagrams: Counter
    let daemonQueueBytes: Gauge
    // Log.
    let appendSeconds: Histogram
    let appendRecords: Histogram
    let appendFailures: Counter
    // Aggregation.
    let foldSeconds: Histogram
    let commitSeconds: Histogram
    let batchRecords: Histogram
    let commits: Counter
    let lagRecords: Gauge
    let lagSeconds: Gauge
    let retractions: Counter
    let inboxed: Counter
    let inboxDocuments: Gauge
    let groupTraces: Gauge
    // Cluster.
    let leaseMoves: Counter
    let partitionsOwned: Gauge
    let workersLive: Gauge
    let lostRecords: Counter
    let partitionsUnreadable: Gauge
    // API.
    let requests: Counter
    let requestSeconds: Histogram
    let connections: Gauge
    // Query.
    let graphRollUps: Counter

    private static let latencyBounds = [
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30,
    ]
    private static let sizeBounds: [Double] = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2000, 5000]

    public init() {
        let r = registry
        accepted = r.counter(
            "beamline_documents_accepted_total", "Documents acknowledged: they are in the log.", labels: ["source"])
        refused = r.counter(
            "beamline_documents_refused_total", "Documents refused at ingest, by the code the sender was told.",
            labels: ["source", "reason"])
        telemetryRecords = r.counter("beamline_telemetry_records_total", "Telemetry records received from daemons.")
        datagrams = r.counter(
            "beamline_daemon_datagrams_total",
            "Datagrams of the daemon port: received, then one of accepted (in the log), refused (bad header or document), dropped (queue full or shutdown).",
            labels: ["outcome"])
        daemonQueueBytes = r.gauge("beamline_daemon_queue_bytes", "Datagrams waiting for the log.")

        appendSeconds = r.histogram(
            "beamline_log_append_seconds", "From handing records to the log until they are durable.",
            bounds: Self.latencyBounds)
        appendRecords = r.histogram(
            "beamline_log_append_records", "Records of one request handed to the log.", bounds: Self.sizeBounds)
        appendFailures = r.counter(
            "beamline_log_append_failures_total", "Requests the log could not take.", labels: ["reason"])

        foldSeconds = r.histogram("beamline_fold_seconds", "Loading and folding one batch.", bounds: Self.latencyBounds)
        commitSeconds = r.histogram(
            "beamline_commit_seconds", "The transaction of one batch.", bounds: Self.latencyBounds)
        batchRecords = r.histogram(
            "beamline_batch_records", "Records in one batch of an aggregator.", bounds: Self.sizeBounds)
        commits = r.counter(
            "beamline_commits_total", "Batches by outcome: committed, fenced, conflict, failed.", labels: ["outcome"])
        lagRecords = r.gauge(
            "beamline_lag_records", "Records of this worker's partitions that are not yet in the tables.",
            labels: ["partition"], limit: 1_000)
        lagSeconds = r.gauge(
            "beamline_lag_seconds", "Age of the oldest record of a partition that is not yet in the tables.",
            labels: ["partition"], limit: 1_000)
        retractions = r.counter(
            "beamline_retractions_total", "Observations taken back because a later document changed them.")
        inboxed = r.counter(
            "beamline_inbox_documents_total", "Documents put into the rejected-document inbox.", labels: ["reason"])
        inboxDocuments = r.gauge("beamline_inbox_documents", "Documents in the rejected-document inbox now.")

        groupTraces = r.gauge(
            "beamline_group_traces", "ApproximateTraceCount: traces that joined a group in the last whole minute.",
            labels: ["account", "group", "outcome"], limit: 10_000)

        leaseMoves = r.counter(
            "beamline_lease_moves_total",
            "Partitions this worker claimed, released to another worker, or lost to one.", labels: ["kind"])
        partitionsOwned = r.gauge("beamline_partitions_owned", "Partitions this worker has leases for.")
        workersLive = r.gauge("beamline_workers_live", "Aggregating nodes that this node sees alive.")
        lostRecords = r.counter(
            "beamline_log_records_lost_total", "Records that the log's retention removed before they were folded.")
        partitionsUnreadable = r.gauge(
            "beamline_partitions_unreadable", "Partitions of this worker that the log cannot give: damaged or cut off.")

        requests = r.counter("beamline_requests_total", "API requests answered.", labels: ["operation", "status"])
        requestSeconds = r.histogram(
            "beamline_request_seconds", "From the request's head to the end of its answer.", labels: ["operation"],
            bounds: Self.latencyBounds)
        connections = r.gauge("beamline_connections", "Open connections.", labels: ["listener"])

        graphRollUps = r.counter(
            "beamline_graph_rollups_total",
            "Sums of minutes of the graph: hit (used by an answer, still true), made (summed from rows or smaller sums), stale (dropped, their rows had changed).",
            labels: ["result"])

        registerProcessMetrics(in: r)
    }

    /// The page of `GET /metrics`, media type `text/plain; version=0.0.4`.
    public func text() -> String { registry.text() }

    // MARK: Ingest

    /// - Parameter source: `http`, `udp` or `otlp`.
    public func documentsAccepted(_ count: Int, source: String) { accepted.add(Double(count), [source]) }

    /// - Parameter reason: the error code of `UnprocessedTraceSegments` (`MissingName`, …).
    public func documentsRefused(_ count: Int = 1, source: String, reason: String) {
        refused.add(Double(count), [source, reason])
    }

    public func telemetryRecordsReceived(_ count: Int) { telemetryRecords.add(count) }

    public enum DatagramOutcome: String, Sendable {
        case received, accepted, refused, dropped
    }
    public func datagrams(_ count: Int, _ outcome: DatagramOutcome) { datagrams.add(Double(count), [outcome.rawValue]) }
    public func datagramCount(_ outcome: DatagramOutcome) -> Int { Int(datagrams.value([outcome.rawValue])) }

    public func daemonQueue(bytes: Int) { daemonQueueBytes.set(Double(bytes)) }

    // MARK: Log

    public func logAppended(records: Int, took: Duration) {
        appendSeconds.observe(took.inSeconds)
        appendRecords.observe(Double(records))
    }

    /// - Parameter reason: `full`, `unavailable`.
    public func logAppendFailed(reason: String) { appendFailures.add(1, [reason]) }

    // MARK: Aggregation

    public enum CommitResult: String, Sendable {
        case committed, fenced, conflict, failed
    }

    /// One batch of one partition, from reading it to the end of its transaction.
    public func batch(records: Int, fold: Duration, commit: Duration, result: CommitResult) {
        batchRecords.observe(Double(records))
        foldSeconds.observe(fold.inSeconds)
        commitSeconds.observe(commit.inSeconds)
        commits.add(1, [result.rawValue])
    }

    /// Of all partitions this process owns now.
    /// - Parameter age: of the oldest record not yet committed; zero when there is none.
    public func lag(_ partitions: [(partition: Int, records: Int, age: Duration)]) {
        let known = partitions.map { ([String($0.partition)], $0) }
        lagRecords.setAll(Dictionary(known.map { ($0.0, Double($0.1.records)) }) { $1 })
        lagSeconds.setAll(Dictionary(known.map { ($0.0, $0.1.age.inSeconds) }) { $1 })
    }

    public func observationsRetracted(_ count: Int) { retractions.add(count) }

    /// - Parameter reason: the inbox code (`TraceSizeLimitExceeded`, …).
    public func documentsInboxed(_ count: Int = 1, reason: String) { inboxed.add(Double(count), [reason]) }

    public func inboxSize(_ documents: Int) { inboxDocuments.set(Double(documents)) }

    /// Traces that joined each group within a minute: `total`, then by the class of their root. Groups that are not named
    /// are gone.
    public func groupTraces(
        _ groups: [(account: String, group: String, total: Int, ok: Int, error: Int, fault: Int, throttle: Int)]
    ) {
        var values: [[String]: Double] = [:]
        for entry in groups {
            let counts = [
                ("total", entry.total), ("ok", entry.ok), ("error", entry.error), ("fault", entry.fault),
                ("throttle", entry.throttle),
            ]
            for (outcome, count) in counts { values[[entry.account, entry.group, outcome]] = Double(count) }
        }
        groupTraces.setAll(values)
    }

    // MARK: Cluster

    public enum LeaseMove: String, Sendable {
        case claimed, released, lost
    }
    public func leasesMoved(_ count: Int, _ kind: LeaseMove) { leaseMoves.add(Double(count), [kind.rawValue]) }
    public func ownedPartitions(_ count: Int) { partitionsOwned.set(Double(count)) }
    public func liveWorkers(_ count: Int) { workersLive.set(Double(count)) }
    public func recordsLost(_ count: Int) { lostRecords.add(count) }
    public func unreadablePartitions(_ count: Int) { partitionsUnreadable.set(Double(count)) }

    // MARK: Query

    public enum RollUpResult: String, Sendable, CaseIterable {
        case hit, made, stale
    }
    public func rollUps(_ count: Int, _ result: RollUpResult) {
        if count > 0 { graphRollUps.add(Double(count), [result.rawValue]) }
    }
    public func rollUpCount(_ result: RollUpResult) -> Int { Int(graphRollUps.value([result.rawValue])) }

    // MARK: API

    /// - Parameter operation: the name of a known operation, or `unknown`.
    public func requestAnswered(operation: String, status: Int, took: Duration) {
        requests.add(1, [operation, String(status)])
        requestSeconds.observe(took.inSeconds, [operation])
    }

    public func connectionOpened(listener: String) { connections.add(1, [listener]) }
    public func connectionClosed(listener: String) { connections.add(-1, [listener]) }

    /// A value that an adapter keeps itself (adapters do not know this module); read when the page is asked for.
    public func sampled(
        _ name: String, _ help: String, kind: SampledKind = .gauge, read: @escaping @Sendable () -> Double?
    ) {
        registry.sampled(name, help, kind: kind, read: read)
    }
}

extension Duration {
    /// Seconds as a floating-point number.
    public var inSeconds: Double { Double(components.seconds) + Double(components.attoseconds) * 1e-18 }
}
