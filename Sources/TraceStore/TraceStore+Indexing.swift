// Where an account's traces go and which of them are indexed (`api.md` §5.9). The aggregator reads the effective rule with
// `rules(of:)`.

import PostgreSQL
import Segments

/// The destination of an account's segments and its one indexing rule.
public struct IndexingSettings: Sendable, Equatable {
    public enum Destination: String, Sendable, CaseIterable {
        /// Every trace is indexed.
        case xray = "XRay"
        /// The rule decides which traces are indexed.
        case cloudWatchLogs = "CloudWatchLogs"
    }

    public var destination = Destination.xray
    /// Nil: never changed.
    public var destinationChangedAt: Micros?
    /// 0...100, of the traces.
    public var percentage = 1.0
    /// When the percentage was set last; before that, when the account was made.
    public var modifiedAt: Micros = 0

    public init() {}
}

extension TraceStore {
    public func indexingSettings(account: AccountID) async throws(TraceStoreError) -> IndexingSettings {
        var statement = PostgresStatement(
            """
            SELECT coalesce(r.destination, 'XRay'), r.destination_changed_at, coalesce(r.percentage, 1)::text,
                coalesce(r.modified_at, d.created_at, 0)
            FROM (SELECT $1::int8 AS account) a
            LEFT JOIN indexing_rules r ON r.account = a.account LEFT JOIN accounts d ON d.account = a.account
            """)
        statement.bind(account)
        let rows = try await change(statement)[0]
        var settings = IndexingSettings()
        settings.destination = IndexingSettings.Destination(rawValue: rows.text(0, 0)) ?? .xray
        settings.destinationChangedAt = rows.optionalInt(0, 1)
        settings.percentage = Double(rows.text(0, 2)) ?? 1
        settings.modifiedAt = rows.int(0, 3)
        return settings
    }

    /// Traces that are new from now on go by it.
    /// - Returns: whether it was another one before.
    public func setDestination(
        _ destination: IndexingSettings.Destination, account: AccountID, now: Micros
    ) async throws(TraceStoreError) -> Bool {
        var create = PostgresStatement("INSERT INTO indexing_rules (account) VALUES ($1) ON CONFLICT DO NOTHING")
        create.bind(account)
        var update = PostgresStatement(
            """
            UPDATE indexing_rules SET destination = $2, destination_changed_at = $3
            WHERE account = $1 AND destination <> $2
            """)
        update.bind(account)
        update.bind(text: destination.rawValue)
        update.bind(now)
        return try await change(create, update, Self.historyStatement(account, now))[1].affectedRows == 1
    }

    /// - Parameter percentage: finite.
    public func setIndexedPercentage(
        _ percentage: Double, account: AccountID, now: Micros
    ) async throws(TraceStoreError) {
        var statement = PostgresStatement(
            """
            INSERT INTO indexing_rules (account, percentage, modified_at) VALUES ($1, $2::text::float8, $3)
            ON CONFLICT (account) DO UPDATE SET percentage = excluded.percentage, modified_at = excluded.modified_at
            """)
        statement.bind(account)
        statement.bind(text: "\(percentage)")
        statement.bind(now)
        try await change(statement, Self.historyStatement(account, now))
    }

    /// Records what is effective from now on, if it is another rule than before.
    private static func historyStatement(_ account: AccountID, _ now: Micros) -> PostgresStatement {
        var statement = PostgresStatement(
            """
            INSERT INTO indexing_history (account, changed_at, percentage)
            SELECT r.account, $2, n.percentage FROM indexing_rules r
            CROSS JOIN LATERAL (
                SELECT CASE WHEN r.destination = 'CloudWatchLogs' THEN r.percentage END AS percentage) n
            WHERE r.account = $1 AND n.percentage IS DISTINCT FROM (
                SELECT h.percentage FROM indexing_history h WHERE h.account = $1 ORDER BY h.changed_at DESC LIMIT 1)
            ON CONFLICT (account, changed_at) DO UPDATE SET percentage = excluded.percentage
            """)
        statement.bind(account)
        statement.bind(now)
        return statement
    }
}
