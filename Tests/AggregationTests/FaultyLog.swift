// A log whose calls can be held up or made to fail: what the aggregator sees of a crash between two steps.

import SegmentLog
import Segments
import Synchronization

/// Passes everything on to another log, after the hooks.
struct FaultyLog: SegmentLog {
    let base: any SegmentLog
    /// Before every append; the aggregator appends nothing but touches.
    var beforeAppend: @Sendable () async throws(SegmentLogError) -> Void = { () throws(SegmentLogError) in }
    var beforeRead: @Sendable () async throws(SegmentLogError) -> Void = { () throws(SegmentLogError) in }
    /// Whether a partition can be read from an offset.
    var check: @Sendable (Int, Int64) throws(SegmentLogError) -> Void = { (_, _) throws(SegmentLogError) in }
    var afterRead: @Sendable () async -> Void = {}
    /// What the reader gets instead of what was read.
    var transform: @Sendable (LogBatch) -> LogBatch = { $0 }

    var partitionCount: Int { base.partitionCount }
    var queuedBytes: Int { base.queuedBytes }

    func append(_ records: LogRecordBatch) async throws(SegmentLogError) {
        try await beforeAppend()
        try await base.append(records)
    }

    func read(
        partition: Int, from offset: Int64, maxRecords: Int, maxBytes: Int
    ) async throws(SegmentLogError) -> LogBatch {
        try await beforeRead()
        try check(partition, offset)
        let batch = try await base.read(partition: partition, from: offset, maxRecords: maxRecords, maxBytes: maxBytes)
        if !batch.entries.isEmpty { await afterRead() }
        return transform(batch)
    }

    func endOffsets() async throws(SegmentLogError) -> [Int64] { try await base.endOffsets() }
    func startOffsets() async throws(SegmentLogError) -> [Int64] { try await base.startOffsets() }
    func backlog(beyond positions: [LogPosition]) async throws(SegmentLogError) -> [LogBacklog] {
        try await base.backlog(beyond: positions)
    }
    func waitForRecords(beyond positions: [LogPosition], timeout: Duration) async {
        await base.waitForRecords(beyond: positions, timeout: timeout)
    }
    func removeRecords(receivedBefore time: Micros) async throws(SegmentLogError) {
        try await base.removeRecords(receivedBefore: time)
    }
    func positionsCommitted(_ positions: [LogPosition]) { base.positionsCommitted(positions) }
    func run() async {}
    func close() async {}
}

/// Holds whoever comes until it is opened.
actor Gate {
    private var isOpen = false
    private var waiting: [CheckedContinuation<Void, Never>] = []
    private(set) var arrivals = 0

    func pass() async {
        arrivals += 1
        if isOpen { return }
        await withCheckedContinuation { waiting.append($0) }
    }

    func open() {
        isOpen = true
        for continuation in waiting { continuation.resume() }
        waiting = []
    }
}
