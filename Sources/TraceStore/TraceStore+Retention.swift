// Day partitions and retention: what is older than a day goes, and what went is remembered for a while, so that whoever is
// reading page by page is told that a part of what was still to come is gone.

import PostgreSQL
import Segments

/// What retention removes, by the clock that readers find it by.
public enum RetainedData: Int16, Sendable {
    /// Traces by the start of their root, by their receipts, by the ends of their segments.
    case rootStarts = 0
    case receipts = 1
    case ends = 2
    /// Observations by their minute: of the account, of its groups.
    case graph = 3
    case groups = 4

    public init(_ rangeType: TimeRangeType) {
        switch rangeType {
        case .traceID: self = .rootStarts
        case .event: self = .receipts
        case .service: self = .ends
        }
    }
}

extension StoreSchema {
    static let removals = PostgresMigration(
        6, "remember-removals",
        """
        -- Why: a page token says where to go on, not what was there. With this table a query node knows whether retention has
        -- taken something that a token had yet to give. Written in the transaction that removes: per 2,000 traces, or minutes of
        -- the graph, one row for each clock and hour; kept for an hour, tokens live five minutes. So hundreds of rows, around
        -- midnight. clock: 0 root, 1 receipts, 2 ends, 3 graph, 4 graphs of groups. number grows with each removal of an account.
        -- Older programs remove without a row: their tokens end early, as they did.
        CREATE TABLE retention_removals (
            account int8 NOT NULL,
            number int8 NOT NULL,
            clock int2 NOT NULL,
            first_second int8 NOT NULL,
            last_second int8 NOT NULL,
            PRIMARY KEY (account, number, clock, first_second)
        );
        """)
}

// MARK: - Days

extension TraceStore {
    /// Creates the day partitions from the day before to two days after.
    /// - Parameter day: days since 1970.
    public func prepareDays(around day: Int) async throws(TraceStoreError) {
        try await createDays((day - 1...day + 2).map { Int32(clamping: $0) })
    }

    /// Removes what is older than a day: documents by receipt, traces by their newest receipt (their links and moments
    /// with them), graph blocks by the minute of the observations, search segments by their newest receipt, inbox and
    /// telemetry by receipt. In small steps.
    /// - Parameters:
    ///   - day: days since 1970; this and later days stay.
    ///   - isServing: readers see these tables, so it is remembered what went.
    public func removeDays(before day: Int, isServing: Bool = true) async throws(TraceStoreError) {
        // Dropping a child locks the parent for a moment; if a long reader is in the way, the next round tries again.
        let timeout = PostgresStatement("SELECT set_config('lock_timeout', '2000', true)")
        var drop = PostgresStatement("SELECT day_partitions_drop('trace_documents', $1)")
        drop.bind(Int32(clamping: day))
        try await change(timeout, drop)
        days.forgetAll()

        let second = Int64(day) * 86_400
        let steps: [(sql: String, bound: Int64, isRemembered: Bool)] = [
            (Self.removeTraces, second, true),
            // A minute goes as a whole, when nothing of it was received within the retention: parts of it would be a wrong sum.
            (Self.removeBlocks("graph_blocks", .graph, sameSum: ""), Int64(day), true),
            (Self.removeBlocks("group_blocks", .groups, sameSum: " AND o.group_key = b.group_key"), Int64(day), true),
            (Self.remove("group_counts", "minute"), Int64(day) * 1440, false),
            (Self.remove("retrievals", "created_at"), second * 1_000_000, false),
            // All its traces have gone; of a segment that has others too, candidates without a trace are left out.
            (Self.remove("search_segments", "receipt_last"), second, false),
            (Self.remove("inbox", "received_at"), second * 1_000_000, false),
            (Self.remove("telemetry_records", "received_at"), second * 1_000_000, false),
        ]
        for account in try await accountsWithData() {
            if isServing { try await forgetRemovals(account: account) }
            for step in steps {
                var removed: Int64 = 1
                while removed > 0, !Task.isCancelled {
                    var statement = PostgresStatement(step.sql)
                    statement.bind(account)
                    statement.bind(step.bound)
                    if step.isRemembered { statement.bind(isServing) }
                    removed = try await change(statement)[0].int(0, 0)
                }
            }
        }
    }

    /// Inserts what the clocks of `\(source)` (clock, second) say, if $3. Numbers grow, also after the table was emptied.
    private static func remember(_ source: String) -> String {
        """
        remembered AS (
            INSERT INTO retention_removals (account, number, clock, first_second, last_second)
            SELECT $1, n.number, c.clock, min(c.second), max(c.second) FROM (\(source)) c
            CROSS JOIN (
                SELECT greatest(coalesce(max(number), 0) + 1, (extract(epoch FROM clock_timestamp()) * 1000000)::int8) AS number
                FROM retention_removals WHERE account = $1) n
            WHERE $3 AND c.second IS NOT NULL GROUP BY n.number, c.clock, c.second / 3600)
        """
    }

    /// Those without a root were in no answer.
    private static let removeTraces = """
        WITH old AS MATERIALIZED (
            SELECT account, trace_id FROM traces WHERE account = $1 AND event_second < $2 ORDER BY event_second LIMIT 2000),
        gone AS (
            DELETE FROM traces t USING old WHERE t.account = old.account AND t.trace_id = old.trace_id
              AND t.event_second < $2 RETURNING t.*),
        moments AS (
            DELETE FROM trace_moments m USING gone WHERE m.account = gone.account AND m.trace_id = gone.trace_id
            RETURNING m.kind, m.second),
        links AS (
            DELETE FROM links l USING gone WHERE l.account = gone.account AND l.consumer_trace = gone.trace_id),
        members AS (
            DELETE FROM group_members m USING gone WHERE m.account = gone.account AND m.trace_id = gone.trace_id),
        \(remember("""
            SELECT 0 AS clock, root_second AS second FROM gone
            UNION ALL SELECT clock, second FROM gone CROSS JOIN LATERAL (VALUES
                (1, event_second), (1, event_prev_second), (2, end_second), (2, end_prev_second)) v (clock, second)
                WHERE root_second IS NOT NULL
            UNION ALL SELECT kind, second FROM moments
            """))
        SELECT count(*) FROM gone
        """

    private static func removeBlocks(_ table: String, _ data: RetainedData, sameSum: String) -> String {
        """
        WITH gone AS (
            DELETE FROM \(table) WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM \(table) b WHERE account = $1 AND minute < $2 * 1440 AND NOT EXISTS (
                    SELECT FROM \(table) o
                    WHERE o.account = b.account AND o.minute = b.minute\(sameSum) AND o.received_day >= $2)
                LIMIT 2000)) RETURNING minute),
        \(remember("""
            SELECT \(data.rawValue) AS clock, minute * 60 + edge AS second FROM gone CROSS JOIN (VALUES (0), (59)) v (edge)
            """))
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

    // MARK: What went

    /// Removals older than an hour interest nobody.
    private func forgetRemovals(account: AccountID) async throws(TraceStoreError) {
        var statement = PostgresStatement(
            """
            DELETE FROM retention_removals
            WHERE account = $1 AND number < (extract(epoch FROM clock_timestamp() - interval '1 hour') * 1000000)::int8
            """)
        statement.bind(account)
        try await change(statement)
    }

    /// The number of the newest removal; those that come have greater ones.
    public func lastRemoval(account: AccountID) async throws(TraceStoreError) -> Int64 {
        var statement = PostgresStatement(
            "SELECT coalesce(max(number), 0) FROM retention_removals WHERE account = $1")
        statement.bind(account)
        return try await ask(statement).int(0, 0)
    }

    /// Whether retention has removed something there, to the hour, since a removal.
    /// - Parameter seconds: since 1970.
    public func hasRemoved(
        _ data: RetainedData, account: AccountID, seconds: Range<Int64>, since number: Int64
    ) async throws(TraceStoreError) -> Bool {
        var statement = PostgresStatement(
            """
            SELECT EXISTS (SELECT FROM retention_removals
                WHERE account = $1 AND number > $2 AND clock = $3 AND first_second < $4 AND last_second >= $5)
            """)
        statement.bind(account)
        statement.bind(number)
        statement.bind(Int64(data.rawValue))
        statement.bind(seconds.upperBound)
        statement.bind(seconds.lowerBound)
        return try await ask(statement).bool(0, 0)
    }
}
