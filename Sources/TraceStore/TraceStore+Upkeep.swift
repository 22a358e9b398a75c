// What operators and housekeeping need: the inbox of refused documents, telemetry, settings, sizes. Retention has a file of
// its own.

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
