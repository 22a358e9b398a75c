// What a rebuild reads and how its store differs: documents whether or not their trace has a row, links one page after the
// other, graph blocks minute by minute.

import Logging
import PostgreSQL
import Segments

extension TraceStore {
    /// The store that fills the new tables of a rebuild.
    public static func rebuilding(_ tables: RebuildTables, writerCount: Int, logger: Logger) -> TraceStore {
        var options = TraceStoreOptions()
        options.writerCount = writerCount
        var database = tables.database
        database.statementTimeout = .seconds(300)
        return TraceStore(database: database, options: options, logger: logger)
    }

    /// Accounts that have documents.
    public func accountsWithDocuments() async throws(TraceStoreError) -> [AccountID] {
        let rows = try await ask(
            PostgresStatement(
                """
                WITH RECURSIVE found AS (
                    (SELECT account FROM trace_documents ORDER BY account LIMIT 1)
                    UNION ALL
                    SELECT (SELECT b.account FROM trace_documents b WHERE b.account > f.account ORDER BY b.account LIMIT 1)
                    FROM found f WHERE f.account IS NOT NULL)
                SELECT account FROM found WHERE account IS NOT NULL ORDER BY account
                """))
        return (0..<rows.rowCount).map { AccountID(rawValue: UInt64(bitPattern: rows.int($0, 0))) }
    }

    /// Traces that have documents, in order of id, whatever their rows say.
    /// - Parameter first: ids from this one on.
    public func documentedTraces(
        account: AccountID, from first: TraceID, limit: Int
    ) async throws(TraceStoreError) -> [StoredTrace] {
        var statement = PostgresStatement(
            """
            SELECT d.trace_id, coalesce(t.version, 0), coalesce(t.revision, 0), coalesce(t.flags, 0), d.day, d.version,
                d.dictionary, d.documents
            FROM (SELECT DISTINCT trace_id FROM trace_documents WHERE account = $1 AND trace_id >= $2
                  ORDER BY trace_id LIMIT $3) w
            CROSS JOIN LATERAL (SELECT * FROM trace_documents WHERE account = $1 AND trace_id = w.trace_id OFFSET 0) d
            LEFT JOIN traces t ON t.account = $1 AND t.trace_id = d.trace_id
            ORDER BY d.trace_id, d.version, d.day
            """)
        statement.bind(account)
        statement.bind(first)
        statement.bind(Int64(limit))
        return try await decodedTraces(try await ask(statement), account: account)
    }

    /// The traces named, as above.
    public func documentedTraces(account: AccountID, ids: [TraceID]) async throws(TraceStoreError) -> [StoredTrace] {
        var statement = PostgresStatement(
            """
            SELECT d.trace_id, coalesce(t.version, 0), coalesce(t.revision, 0), coalesce(t.flags, 0), d.day, d.version,
                d.dictionary, d.documents
            FROM unnest($2::uuid[]) AS w (trace_id)
            CROSS JOIN LATERAL (SELECT * FROM trace_documents WHERE account = $1 AND trace_id = w.trace_id OFFSET 0) d
            LEFT JOIN traces t ON t.account = $1 AND t.trace_id = d.trace_id
            ORDER BY d.trace_id, d.version, d.day
            """)
        statement.bind(account)
        statement.bind(ids)
        return try await decodedTraces(try await ask(statement), account: account)
    }

    /// Links of all accounts in the order of their key.
    /// - Parameter after: the last one of the page before.
    public func linkPage(
        after: (account: AccountID, link: StoredLink)?, limit: Int
    ) async throws(TraceStoreError) -> [(account: AccountID, link: StoredLink)] {
        var statement = PostgresStatement(
            """
            SELECT account, consumer_trace, target_trace, target_entity, facts FROM links
            WHERE (account, consumer_trace, target_trace, target_entity) > ($1::int8, $2::uuid, $3::uuid, $4::int8)
            ORDER BY account, consumer_trace, target_trace, target_entity LIMIT $5
            """)
        let none = TraceID(high: 0, low: 0)
        if let account = after?.account { statement.bind(account) } else { statement.bind(Int64.min) }
        statement.bind(after?.link.consumer ?? none)
        statement.bind(after?.link.target ?? none)
        statement.bind(Int64(bitPattern: after?.link.entity.rawValue ?? 0))
        statement.bind(Int64(limit))
        let rows = try await ask(statement)
        return (0..<rows.rowCount).map { row in
            (
                AccountID(rawValue: UInt64(bitPattern: rows.int(row, 0))),
                StoredLink(
                    consumer: TraceID(rows.uuid(row, 1)), target: TraceID(rows.uuid(row, 2)),
                    entity: EntityID(rawValue: UInt64(bitPattern: rows.int(row, 3))),
                    facts: rows.isNull(row, 4) ? nil : rows.bytes(row, 4))
            )
        }
    }

    /// Accounts that have graph blocks or links.
    public func accountsWithGraphs() async throws(TraceStoreError) -> [AccountID] {
        let rows = try await ask(
            PostgresStatement(
                """
                WITH RECURSIVE found AS (
                    (SELECT account FROM graph_blocks ORDER BY account LIMIT 1)
                    UNION ALL
                    SELECT (SELECT b.account FROM graph_blocks b WHERE b.account > f.account ORDER BY b.account LIMIT 1)
                    FROM found f WHERE f.account IS NOT NULL)
                SELECT account FROM found WHERE account IS NOT NULL ORDER BY account
                """))
        return (0..<rows.rowCount).map { AccountID(rawValue: UInt64(bitPattern: rows.int($0, 0))) }
    }

    /// Minutes (since 1970) of an account that have blocks, with their sizes in bytes, in order.
    public func graphMinutes(account: AccountID) async throws(TraceStoreError) -> [(minute: Int64, byteCount: Int)] {
        var statement = PostgresStatement(
            """
            SELECT minute, sum(octet_length(block))::int8 FROM graph_blocks WHERE account = $1 GROUP BY minute ORDER BY minute
            """)
        statement.bind(account)
        let rows = try await ask(statement)
        return (0..<rows.rowCount).map { (rows.int($0, 0), Int(rows.int($0, 1))) }
    }
}

extension TraceStore {
    /// Number of documents, as the traces' rows count them.
    public func revisionSum() async throws(TraceStoreError) -> Int {
        Int(try await ask(PostgresStatement("SELECT coalesce(sum(revision), 0)::int8 FROM traces")).int(0, 0))
    }
}
