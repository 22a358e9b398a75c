// What operators and housekeeping need: the inbox of refused documents, telemetry, settings, sizes, day partitions and
// retention.

import PostgreSQL
import Segments

extension TraceStore {
    // MARK: Inbox

    /// Refused documents, newest first.
    /// - Parameter account: nil = of all accounts (for the operator's command line only).
    public func inbox(account: AccountID?, limit: Int) async throws(TraceStoreError) -> [InboxEntry] {
        var statement = PostgresStatement("""
            SELECT account, topic, partition, log_offset, received_at, code, reason, trace_id, document FROM inbox
            WHERE $1::int8 IS NULL OR account = $1 ORDER BY received_at DESC, partition, log_offset LIMIT $2
            """)
        if let account { statement.bind(account) } else { statement.bindNull(.int8) }
        statement.bind(Int64(limit))
        let rows = try await ask(statement)
        return (0..<rows.rowCount).map { row in
            InboxEntry(
                account: AccountID(rawValue: UInt64(bitPattern: rows.int(row, 0))), topic: rows.text(row, 1),
                partition: Int(rows.int(row, 2)), offset: rows.int(row, 3), receivedAt: rows.int(row, 4),
                code: rows.text(row, 5), reason: rows.text(row, 6),
                traceID: rows.isNull(row, 7) ? nil : TraceID(rows.uuid(row, 7)), document: rows.bytes(row, 8))
        }
    }

    /// Number of refused documents of all accounts, for metrics.
    public func inboxCount() async throws(TraceStoreError) -> Int {
        Int(try await ask(PostgresStatement("SELECT count(*) FROM inbox")).int(0, 0))
    }

    /// Also remembers how far, so that a rebuild does not bring the entries back.
    /// - Returns: number of entries removed.
    public func clearInbox(account: AccountID) async throws(TraceStoreError) -> Int {
        var statement = PostgresStatement("""
            WITH gone AS (DELETE FROM inbox WHERE account = $1 RETURNING topic, partition, log_offset),
            remembered AS (
                INSERT INTO inbox_cleared AS c (account, topic, partition, through_offset)
                SELECT $1, topic, partition, max(log_offset) FROM gone GROUP BY topic, partition
                ON CONFLICT (account, topic, partition)
                DO UPDATE SET through_offset = greatest(c.through_offset, excluded.through_offset))
            SELECT count(*) FROM gone
            """)
        statement.bind(account)
        return Int(try await change(statement)[0].int(0, 0))
    }

    // MARK: Telemetry, settings

    public func appendTelemetry(_ records: [TelemetryRecord]) async throws(TraceStoreError) {
        guard !records.isEmpty else { return }
        var accounts = PostgresArray.int8
        var received = PostgresArray.int8
        var documents = PostgresArray.bytea
        for record in records {
            accounts.append(record.account)
            received.append(record.receivedAt)
            documents.append(bytes: record.document)
        }
        var statement = PostgresStatement("""
            INSERT INTO telemetry_records (account, received_at, document)
            SELECT * FROM unnest($1::int8[], $2::int8[], $3::bytea[])
            """)
        for column in [accounts, received, documents] { statement.bind(column) }
        try await change(statement)
    }

    /// An account's setting as stored; nil when it was never set.
    public func setting(account: AccountID, name: String) async throws(TraceStoreError) -> [UInt8]? {
        var statement = PostgresStatement("SELECT value FROM settings WHERE account = $1 AND name = $2")
        statement.bind(account)
        statement.bind(text: name)
        let rows = try await ask(statement)
        return rows.rowCount == 0 ? nil : rows.bytes(0, 0)
    }

    /// - Parameter value: nil removes the setting.
    public func setSetting(account: AccountID, name: String, value: [UInt8]?) async throws(TraceStoreError) {
        guard let value else {
            var delete = PostgresStatement("DELETE FROM settings WHERE account = $1 AND name = $2")
            delete.bind(account)
            delete.bind(text: name)
            try await change(delete)
            return
        }
        var upsert = PostgresStatement("""
            INSERT INTO settings (account, name, value) VALUES ($1, $2, $3)
            ON CONFLICT (account, name) DO UPDATE SET value = excluded.value
            """)
        upsert.bind(account)
        upsert.bind(text: name)
        upsert.bind(bytes: value)
        try await change(upsert)
    }

    // MARK: Sizes

    /// Bytes on disk of every table (also the log's), largest first.
    public func tableSizes() async throws(TraceStoreError) -> [TableSize] {
        let rows = try await ask(
            PostgresStatement("""
                SELECT coalesce(p.relname, c.relname)::text, sum(pg_table_size(c.oid))::int8, sum(pg_indexes_size(c.oid))::int8
                FROM pg_class c
                LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
                LEFT JOIN pg_class p ON p.oid = i.inhparent
                WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace
                GROUP BY 1 ORDER BY 2 DESC
                """))
        return (0..<rows.rowCount).map {
            TableSize(table: rows.text($0, 0), rowBytes: Int(rows.int($0, 1)), indexBytes: Int(rows.int($0, 2)))
        }
    }

    // MARK: Days and retention

    /// Creates the day partitions from the day before to two days after.
    /// - Parameter day: days since 1970.
    public func prepareDays(around day: Int) async throws(TraceStoreError) {
        try await createDays((day - 1...day + 2).map { Int32(clamping: $0) })
    }

    /// Removes what is older than a day: documents by receipt, traces by their newest receipt (their links and moments
    /// with them), graph blocks by the minute of the observations, search segments by their newest receipt, inbox and telemetry by receipt. In small steps.
    /// - Parameter day: days since 1970; this and later days stay.
    public func removeDays(before day: Int) async throws(TraceStoreError) {
        // Dropping a child locks the parent for a moment; if a long reader is in the way, the next round tries again.
        let timeout = PostgresStatement("SELECT set_config('lock_timeout', '2000', true)")
        var drop = PostgresStatement("SELECT day_partitions_drop('trace_documents', $1)")
        drop.bind(Int32(clamping: day))
        try await change(timeout, drop)
        days.forgetAll()

        let second = Int64(day) * 86_400
        let steps: [(sql: String, bound: Int64)] = [
            ("""
             WITH old AS MATERIALIZED (
                 SELECT account, trace_id FROM traces WHERE account = $1 AND event_second < $2 LIMIT 2000),
             gone AS (
                 DELETE FROM traces t USING old WHERE t.account = old.account AND t.trace_id = old.trace_id
                   AND t.event_second < $2 RETURNING t.account, t.trace_id),
             moments AS (
                 DELETE FROM trace_moments m USING gone WHERE m.account = gone.account AND m.trace_id = gone.trace_id),
             links AS (
                 DELETE FROM links l USING gone WHERE l.account = gone.account AND l.consumer_trace = gone.trace_id),
             members AS (
                 DELETE FROM group_members m USING gone WHERE m.account = gone.account AND m.trace_id = gone.trace_id)
             SELECT count(*) FROM gone
             """, second),
            // A minute goes as a whole, when nothing of it was received within the retention: parts of it would be a wrong sum.
            (Self.removeBlocks("graph_blocks", sameSum: ""), Int64(day)),
            (Self.removeBlocks("group_blocks", sameSum: " AND o.group_key = b.group_key"), Int64(day)),
            (Self.remove("group_counts", "minute"), Int64(day) * 1440),
            (Self.remove("retrievals", "created_at"), second * 1_000_000),
            // All its traces have gone; of a segment that has others too, candidates without a trace are left out.
            (Self.remove("search_segments", "receipt_last"), second),
            (Self.remove("inbox", "received_at"), second * 1_000_000),
            (Self.remove("telemetry_records", "received_at"), second * 1_000_000),
        ]
        for account in try await accountsWithData() {
            for step in steps {
                var removed: Int64 = 1
                while removed > 0, !Task.isCancelled {
                    var statement = PostgresStatement(step.sql)
                    statement.bind(account)
                    statement.bind(step.bound)
                    removed = try await change(statement)[0].int(0, 0)
                }
            }
        }
    }

    private static func removeBlocks(_ table: String, sameSum: String) -> String {
        """
        WITH gone AS (
            DELETE FROM \(table) WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM \(table) b WHERE account = $1 AND minute < $2 * 1440 AND NOT EXISTS (
                    SELECT FROM \(table) o
                    WHERE o.account = b.account AND o.minute = b.minute\(sameSum) AND o.received_day >= $2)
                LIMIT 2000)) RETURNING 1)
        SELECT count(*) FROM gone
        """
    }

    private static func remove(_ table: String, _ column: String) -> String {
        """
        WITH gone AS (
            DELETE FROM \(table) WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM \(table) WHERE account = $1 AND \(column) < $2 LIMIT 2000)) RETURNING 1)
        SELECT count(*) FROM gone
        """
    }

    /// Accounts found in the data, whether the directory knows them or not.
    public func accountsWithData() async throws(TraceStoreError) -> [AccountID] {
        let hops = ["traces", "graph_blocks", "inbox", "telemetry_records", "retrievals"].map { table in
            """
            (WITH RECURSIVE found AS (
                (SELECT account FROM \(table) ORDER BY account LIMIT 1)
                UNION ALL
                SELECT (SELECT b.account FROM \(table) b WHERE b.account > f.account ORDER BY b.account LIMIT 1)
                FROM found f WHERE f.account IS NOT NULL)
            SELECT account FROM found WHERE account IS NOT NULL)
            """
        }
        let rows = try await ask(PostgresStatement(hops.joined(separator: " UNION ")))
        return (0..<rows.rowCount).map { AccountID(rawValue: UInt64(bitPattern: rows.int($0, 0))) }
    }
}
