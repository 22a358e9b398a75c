// The log in PostgreSQL, default of `standalone`. Requests are queued; one writer takes whatever arrived while its last
// commit ran, writes it with one statement, and only then answers them. Readers get recent records from memory.

import Logging
import PostgreSQL
import Segments
import Synchronization

public struct PostgresLogOptions: Sendable {
    /// Used when the log is created; a log that has more partitions keeps them, one that has fewer gets the missing ones.
    public var partitionCount = 4
    /// Bound of what waits to be written; beyond it `append` throws `.full`.
    public var queueBytes = 64 << 20
    /// Most that one commit takes (one request is never divided).
    public var commitBytes = 4 << 20
    /// When the last commit ended less than `linger` ago and less than this waits, the writer waits that long for more:
    /// under load fewer and larger commits, for a lone request none of it.
    public var lingerBytes = 192 << 10
    public var linger: Duration = .milliseconds(3)
    /// Recent records kept in memory for the reader in the same process.
    public var tailBytes = 16 << 20
    /// How often a waiting reader looks for records appended by other nodes.
    public var pollInterval: Duration = .milliseconds(100)
    /// How often a log without waiting readers looks for new partitions.
    public var growthInterval: Duration = .seconds(2)
    /// How long a commit may take before PostgreSQL counts as away.
    public var commitTimeout: Duration = .seconds(4)

    public init() {}
}

public final class PostgresLog: SegmentLog {
    private struct Pending {
        var records: LogRecordBatch
        var continuation: UnsafeContinuation<SegmentLogError?, Never>
    }

    private struct Queue {
        var pending: [Pending] = []
        var byteCount = 0
        var isClosed = false
        /// The writer, when it has nothing to do.
        var writer: UnsafeContinuation<Void, Never>?
    }

    /// Grows when another node, opened with more partitions, has added rows to `log_partitions`.
    public var partitionCount: Int { knownPartitions.load(ordering: .relaxed) }
    private let knownPartitions: Atomic<Int>
    private let options: PostgresLogOptions
    private let logger: Logger
    private let pool: PostgresPool
    private let session: PostgresSession
    private let queue = Mutex(Queue())
    private let tail: LogTail
    private let ends = OffsetWatch()
    /// When the ends were last asked for, to answer "nothing new" without a round trip.
    private let lastPoll = Mutex<ContinuousClock.Instant?>(nil)
    private let clock = ContinuousClock()

    private init(
        partitionCount: Int, options: PostgresLogOptions, pool: PostgresPool, session: PostgresSession, logger: Logger
    ) {
        knownPartitions = Atomic(partitionCount)
        self.options = options
        self.pool = pool
        self.session = session
        self.logger = logger
        tail = LogTail(limit: options.tailBytes)
    }

    // MARK: Opening and closing

    /// Creates or upgrades the log's tables; safe to be called by several processes at once.
    public static func migrate(database: PostgresConfiguration) async throws(SegmentLogError) {
        do {
            try await PostgresMigrator.migrate(component: LogSchema.component, LogSchema.migrations, database: database)
        } catch {
            throw SegmentLogError(error, "cannot migrate the log")
        }
    }

    /// Connects and makes sure that the partitions exist. The caller runs `run()` and ends with `close()`.
    public static func open(
        database: PostgresConfiguration, options: PostgresLogOptions = .init(), logger: Logger
    ) async throws(SegmentLogError) -> PostgresLog {
        var writing = database
        writing.statementTimeout = options.commitTimeout
        let pool = PostgresPool(database, sessionCount: 2)
        let session = PostgresSession(writing)
        do {
            var create = PostgresStatement("""
                INSERT INTO log_partitions (partition) SELECT generate_series(0, $1 - 1) ON CONFLICT DO NOTHING
                """)
            create.bind(Int32(max(1, options.partitionCount)))
            let results = try await pool.run([create, PostgresStatement(LogSchema.bounds)])
            let log = PostgresLog(
                partitionCount: results[1].rowCount, options: options, pool: pool, session: session, logger: logger)
            try await log.prepareDays()
            return log
        } catch {
            await pool.close()
            await session.close()
            throw SegmentLogError(error, "cannot open the log")
        }
    }

    public func close() async {
        refuseAppends()
        failPending(SegmentLogError(.closed, "the log was closed"))
        await pool.close()
        await session.close()
    }

    // MARK: Appending

    public func append(_ records: LogRecordBatch) async throws(SegmentLogError) {
        guard !records.isEmpty else { return }
        let error = await withUnsafeContinuation { (continuation: UnsafeContinuation<SegmentLogError?, Never>) in
            let (refusal, writer) = queue.withLock {
                queue -> (SegmentLogError?, UnsafeContinuation<Void, Never>?) in
                if queue.isClosed { return (SegmentLogError(.closed, "the log is shutting down"), nil) }
                if queue.byteCount > 0, queue.byteCount + records.byteCount > options.queueBytes {
                    return (SegmentLogError(.full, "the log's queue is full (\(queue.byteCount) bytes)"), nil)
                }
                queue.pending.append(Pending(records: records, continuation: continuation))
                queue.byteCount += records.byteCount
                defer { queue.writer = nil }
                return (nil, queue.writer)
            }
            if let refusal { continuation.resume(returning: refusal) }
            writer?.resume()
        }
        if let error { throw error }
    }

    /// Bytes that wait to be written, for metrics.
    public var queuedBytes: Int { queue.withLock { $0.byteCount } }

    /// Round trips made so far, for metrics.
    public var roundTrips: Int { pool.roundTrips + commits.load(ordering: .relaxed) }
    private let commits = Atomic<Int>(0)

    public func run() async {
        await withTaskGroup(of: Void.self) { group in
            group.addTask { await self.write() }
            group.addTask { await self.watch() }
            await group.waitForAll()
        }
    }

    private func refuseAppends() {
        let writer = queue.withLock { queue in
            queue.isClosed = true
            defer { queue.writer = nil }
            return queue.writer
        }
        writer?.resume()
    }

    /// The writer: waits for requests, writes them, answers them; ends when the log is closed and the queue empty.
    private func write() async {
        let compressor = LogCompressor()
        var lastCommit = clock.now - .seconds(1)
        await withTaskCancellationHandler {
            while await waitForPending() {
                if clock.now - lastCommit < options.linger, queuedBytes < options.lingerBytes {
                    try? await Task.sleep(for: options.linger)
                }
                let pending = takePending()
                let error = await commit(pending, with: compressor)
                lastCommit = clock.now
                for request in pending { request.continuation.resume(returning: error) }
                if let error {
                    logger.error("cannot append to the log", metadata: ["reason": "\(error)"])
                    if error.code == .unavailable { failPending(error) }
                }
            }
        } onCancel: {
            self.refuseAppends()
        }
    }

    /// - Returns: false when the log is closed and nothing is left to write.
    private func waitForPending() async -> Bool {
        await withUnsafeContinuation { continuation in
            let isDue = queue.withLock { queue in
                if !queue.pending.isEmpty || queue.isClosed { return true }
                queue.writer = continuation
                return false
            }
            if isDue { continuation.resume() }
        }
        return queue.withLock { !$0.pending.isEmpty }
    }

    private func takePending() -> [Pending] {
        queue.withLock { queue in
            var count = 0
            var bytes = 0
            while count < queue.pending.count, count == 0 || bytes + queue.pending[count].records.byteCount <= options.commitBytes {
                bytes += queue.pending[count].records.byteCount
                count += 1
            }
            let taken = Array(queue.pending.prefix(count))
            queue.pending.removeFirst(count)
            queue.byteCount -= bytes
            return taken
        }
    }

    /// PostgreSQL is away: those who waited meanwhile have waited long enough.
    private func failPending(_ error: SegmentLogError) {
        let pending = queue.withLock { queue in
            defer {
                queue.pending.removeAll()
                queue.byteCount = 0
            }
            return queue.pending
        }
        for request in pending { request.continuation.resume(returning: error) }
    }

    private func commit(_ pending: [Pending], with compressor: borrowing LogCompressor) async -> SegmentLogError? {
        var chunks: [Int: LogChunk] = [:]
        let partitionCount = partitionCount
        for request in pending {
            request.records.bytes.withUnsafeBytes { source in
                for entry in request.records.entries {
                    chunks[LogPartition.of(entry.traceID, count: partitionCount), default: LogChunk()]
                        .append(entry, from: source)
                }
            }
        }
        let written = chunks.sorted { $0.key < $1.key }
        do {
            var partitions = PostgresArray.int4
            var counts = PostgresArray.int4
            var minReceipts = PostgresArray.int8
            var maxReceipts = PostgresArray.int8
            var sizes = PostgresArray.int4
            var records = PostgresArray.bytea
            for (partition, chunk) in written {
                partitions.append(Int32(partition))
                counts.append(Int32(chunk.count))
                minReceipts.append(chunk.minReceipt)
                maxReceipts.append(chunk.maxReceipt)
                sizes.append(Int32(clamping: chunk.bytes.count))
                records.append(bytes: try compressor.compress(chunk.bytes))
            }
            var statement = PostgresStatement(LogSchema.append)
            for column in [partitions, counts, minReceipts, maxReceipts, sizes, records] { statement.bind(column) }
            let result = try await insert(statement)
            guard result.rowCount == written.count else {
                return SegmentLogError(.corrupt, "a partition of the log has no row in log_partitions")
            }
            var reached: [(partition: Int, offset: Int64)] = []
            for row in 0..<result.rowCount {
                let partition = Int(result.int(row, 0))
                guard let chunk = chunks[partition] else { continue }
                let firstOffset = result.int(row, 1)
                tail.append(partition: partition, firstOffset: firstOffset, count: chunk.count, bytes: chunk.bytes)
                reached.append((partition, firstOffset + Int64(chunk.count)))
            }
            ends.report(reached)
            return nil
        } catch let error as SegmentLogError {
            return error
        } catch {
            return SegmentLogError(.unavailable, "cannot write to the log: \(error)")
        }
    }

    private func insert(_ statement: PostgresStatement) async throws -> PostgresResult {
        commits.wrappingAdd(1, ordering: .relaxed)
        do {
            return try await session.run(statement)
        } catch where error.sqlState == "23514" {
            // The first append of a day that nobody prepared.
            try await prepareDays()
            return try await session.run(statement)
        }
    }

    // MARK: Reading

    public func read(
        partition: Int, from offset: Int64, maxRecords: Int = 2_000, maxBytes: Int = 4 << 20
    ) async throws(SegmentLogError) -> LogBatch {
        var entries: [LogEntry] = []
        var byteCount = 0
        let known = ends.offset(of: partition)
        let recent = tail.chunks(partition: partition, from: offset, maxRecords: maxRecords, maxBytes: maxBytes)
        if let known, !recent.isEmpty || (known == offset && isPollFresh) {
            for chunk in recent {
                try LogChunk.decode(
                    chunk.bytes, firstOffset: chunk.firstOffset, from: offset, maxRecords: maxRecords,
                    maxBytes: maxBytes, byteCount: &byteCount, into: &entries)
            }
            let next = entries.last.map { $0.offset + 1 } ?? offset
            return LogBatch(
                partition: partition, from: offset, nextOffset: next, endOffset: max(known, next), entries: entries)
        }

        var statement = PostgresStatement(LogSchema.read)
        statement.bind(Int32(clamping: partition))
        statement.bind(offset)
        statement.bind(Int64(maxRecords))
        statement.bind(Int64(maxBytes))
        let rows = try await ask(statement)
        guard rows.rowCount > 0 else { throw SegmentLogError(.corrupt, "the log has no partition \(partition)") }
        let start = rows.int(0, 0)
        let end = rows.int(0, 1)
        if offset < start {
            throw SegmentLogError(
                .trimmed(firstAvailable: start),
                "offset \(offset) of partition \(partition) was removed by retention; the log begins at \(start)")
        }
        if offset > end {
            throw SegmentLogError(
                .beyondEnd(end: end), "partition \(partition) of the log ends at \(end), before offset \(offset)")
        }
        var expected = offset
        for row in 0..<rows.rowCount where !rows.isNull(row, 2) {
            let firstOffset = rows.int(row, 2)
            guard firstOffset <= expected else { break }
            let size = Int(rows.int(row, 3))
            let bytes = try rows.withBytes(row, 4) { source throws(SegmentLogError) in
                try LogCompressor.decompress(source, size: size)
            }
            try LogChunk.decode(
                bytes, firstOffset: firstOffset, from: offset, maxRecords: maxRecords, maxBytes: maxBytes,
                byteCount: &byteCount, into: &entries)
            expected = entries.last.map { $0.offset + 1 } ?? offset
        }
        if entries.isEmpty && offset < end {
            throw SegmentLogError(.corrupt, "offset \(offset) of partition \(partition) is missing before the end \(end)")
        }
        ends.report([(partition, end)])
        return LogBatch(partition: partition, from: offset, nextOffset: expected, endOffset: end, entries: entries)
    }

    public func endOffsets() async throws(SegmentLogError) -> [Int64] { try await bounds().map(\.end) }

    public func startOffsets() async throws(SegmentLogError) -> [Int64] { try await bounds().map(\.start) }

    private func bounds() async throws(SegmentLogError) -> [(start: Int64, end: Int64)] {
        let rows = try await ask(PostgresStatement(LogSchema.bounds))
        // Rows are only ever added, and together they are 0 ..< count.
        if rows.rowCount > partitionCount {
            logger.info("the log has more partitions now", metadata: ["partitions": "\(rows.rowCount)"])
            knownPartitions.store(rows.rowCount, ordering: .relaxed)
        }
        let result = (0..<rows.rowCount).map { (start: rows.int($0, 1), end: rows.int($0, 2)) }
        ends.report(result.enumerated().map { ($0.offset, $0.element.end) })
        lastPoll.withLock { $0 = clock.now }
        return result
    }

    public func backlog(beyond positions: [LogPosition]) async throws(SegmentLogError) -> [LogBacklog] {
        var partitions = PostgresArray.int4
        var offsets = PostgresArray.int8
        for position in positions {
            partitions.append(Int32(clamping: position.partition))
            offsets.append(position.offset)
        }
        var statement = PostgresStatement(LogSchema.backlog)
        statement.bind(partitions)
        statement.bind(offsets)
        let rows = try await ask(statement)
        let byPartition = Dictionary(positions.map { ($0.partition, $0.offset) }, uniquingKeysWith: min)
        return (0..<rows.rowCount).map { row in
            let partition = Int(rows.int(row, 0))
            let end = rows.int(row, 1)
            return LogBacklog(
                partition: partition, endOffset: end, recordCount: max(0, end - (byPartition[partition] ?? end)),
                oldestReceipt: rows.optionalInt(row, 2))
        }
    }

    private func ask(_ statement: PostgresStatement) async throws(SegmentLogError) -> PostgresResult {
        do {
            return try await pool.run(statement)
        } catch {
            throw SegmentLogError(error, "cannot read the log")
        }
    }

    /// Positions are in PostgreSQL already.
    public func positionsCommitted(_ positions: [LogPosition]) {}

    // MARK: Waiting

    public func waitForRecords(beyond positions: [LogPosition], timeout: Duration) async {
        _ = await ends.wait(for: positions.map { ($0.partition, $0.offset + 1) }, all: false, timeout: timeout)
    }

    private var isPollFresh: Bool {
        lastPoll.withLock { $0.map { clock.now - $0 < options.pollInterval * 2 } ?? false }
    }

    /// Looks for records of other nodes while somebody waits. A short poll, because NOTIFY takes a lock of the whole
    /// database at each commit (PostgreSQL source, `async.c`, PreCommit_Notify).
    private func watch() async {
        var lastDay = clock.now
        var lastLook = clock.now
        while !Task.isCancelled {
            try? await Task.sleep(for: options.pollInterval)
            if ends.hasWaiters || clock.now - lastLook >= options.growthInterval {
                _ = try? await bounds()
                lastLook = clock.now
            }
            if clock.now - lastDay > .seconds(3_600) {
                lastDay = clock.now
                try? await prepareDays()
            }
        }
    }

    // MARK: Days

    private func prepareDays() async throws(PostgresError) {
        try await pool.run(
            PostgresStatement("""
                SELECT day_partition_create('log_batches', floor(extract(epoch FROM now()) / 86400)::int4 + n)
                FROM generate_series(0, 2) AS n
                """))
    }

    /// Removes whole days of the log. A record belongs to the day, by PostgreSQL's clock, at which it was appended, and
    /// that is not before it was received.
    public func removeRecords(receivedBefore time: Micros) async throws(SegmentLogError) {
        let day = max(0, time) / 86_400_000_000
        // Dropping a child locks the parent for a moment; if a long reader is in the way, the next round tries again.
        let timeout = PostgresStatement("SELECT set_config('lock_timeout', '2000', true)")
        var remove = PostgresStatement("SELECT log_remove_days($1)")
        remove.bind(Int32(clamping: day))
        do {
            try await pool.run([timeout, remove])
        } catch {
            throw SegmentLogError(error, "cannot remove old days of the log")
        }
    }
}

extension SegmentLogError {
    init(_ error: PostgresError, _ what: String) {
        self.init(error.code == .closed ? .closed : .unavailable, "\(what): \(error)")
    }
}
