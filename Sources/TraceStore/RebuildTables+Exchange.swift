// The end of a rebuild: hold the aggregators still, compare the old rows with the new ones, exchange the tables in one
// transaction. The fence is that transaction: it holds a lock on the positions that lets everybody read and nobody write, so
// a commit of an aggregator waits, and then finds that its epoch is over. If the connection breaks, the fence is gone and
// nothing has happened; a statement that would come too late finds another transaction and fails.

import PostgreSQL
import Segments

/// The transaction in which the positions stand still.
public struct RebuildFence: Sendable {
    /// How far the tables that serve are; nobody moves it until the fence goes.
    public var positions: [PartitionState]
    var transaction: String
    /// Names the rows of this rebuild.
    var generation: Int64
}

/// What the comparison of a table found.
public struct RowComparison: Sendable, Equatable {
    public var table: String
    public var oldCount: Int
    public var newCount: Int
    /// Rows that are missing on one side or differ.
    public var differing: Int
    /// Further ones that had to differ: retention has removed a part of what they came from.
    public var cut: Int
    public var examples: [String]

    public init(table: String, oldCount: Int, newCount: Int, differing: Int, cut: Int = 0, examples: [String] = []) {
        self.table = table
        self.oldCount = oldCount
        self.newCount = newCount
        self.differing = differing
        self.cut = cut
        self.examples = examples
    }
}

/// A link whose facts are not the same in both sets of tables.
public struct DifferingLink: Sendable {
    public var account: AccountID
    /// As the serving tables have it.
    public var old: StoredLink
    public var newFacts: [UInt8]?
}

extension RebuildTables {
    // MARK: Fence

    /// Holds every commit of an aggregator from here on. A commit under way is waited for.
    public func raiseFence(_ plan: RebuildPlan) async throws(TraceStoreError) -> RebuildFence {
        let what = "cannot hold the aggregators still"
        do {
            try await script("BEGIN; LOCK TABLE \(old("log_positions")) IN SHARE ROW EXCLUSIVE MODE", what)
            let transaction = try await query("SELECT pg_current_xact_id()::text", what)
            let rows = try await query(
                """
                SELECT partition, position, checked_position, owner_epoch, received_through FROM \(old("log_positions"))
                WHERE partition >= 0 ORDER BY partition
                """, what)
            return RebuildFence(positions: TraceStore.partitionStates(rows), transaction: transaction.text(0, 0), generation: plan.generation)
        } catch {
            await lowerFence()
            throw error
        }
    }

    /// Lets the aggregators go on as if nothing had been.
    public func lowerFence() async { try? await script("ROLLBACK") }

    // MARK: Comparison

    /// Compares the tables that are compared row by row. Nobody else may be filling the new ones.
    /// - Parameter firstDay: documents received before this day (since 1970) are gone from the serving tables.
    public func compareRows(firstDay: Int) async throws(TraceStoreError) -> [RowComparison] {
        var result: [RowComparison] = []
        for table in derived {
            guard case .rows(let key, let ignored, let condition) = table.comparison else { continue }
            result.append(try await compareRows(table.name, key, ignored, condition, firstDay: firstDay))
        }
        return result
    }

    private func compareRows(
        _ table: String, _ key: [String], _ ignored: Set<String>, _ condition: String, firstDay: Int
    ) async throws(TraceStoreError) -> RowComparison {
        let what = "cannot compare the table \(table)"
        let rows = try await query(
            """
            SELECT attname::text FROM pg_attribute WHERE attrelid = \(literal(old(table)))::regclass AND attnum > 0
                AND NOT attisdropped ORDER BY attnum
            """, what)
        let columns = (0..<rows.rowCount).map { rows.text($0, 0) }.filter { !ignored.contains($0) }.map(quoted)
        func side(_ schema: String) -> String {
            let rows = condition.replacing("$schema$", with: quoted(schema))
            return "(SELECT r.* FROM \(name(table, in: schema)) r WHERE \(rows))"
        }
        let join = key.map { "o.\(quoted($0)) = n.\(quoted($0))" }.joined(separator: " AND ")
        let differs = """
            (\(columns.map { "o." + $0 }.joined(separator: ", "))) IS DISTINCT FROM \
            (\(columns.map { "n." + $0 }.joined(separator: ", ")))
            """
        // What is left of such a trace gives another row than the whole of it gave.
        let isCut = table == "traces" ? "coalesce(o.first_day < \(firstDay), false)" : "false"
        let both = "FROM \(side(serving)) o FULL JOIN \(side(building)) n ON \(join)"
        let first = quoted(key[0])
        let counts = try await query(
            """
            SELECT count(o.\(first)), count(n.\(first)), count(*) FILTER (WHERE \(differs) AND NOT \(isCut)),
                count(*) FILTER (WHERE \(differs) AND \(isCut)) \(both)
            """, what)
        var found = RowComparison(
            table: table, oldCount: Int(counts.int(0, 0)), newCount: Int(counts.int(0, 1)),
            differing: Int(counts.int(0, 2)), cut: Int(counts.int(0, 3)))
        guard found.differing > 0 else { return found }
        let names = key.map { Self.text(of: $0) }.joined(separator: ", ")
        let examples = try await query(
            """
            SELECT concat_ws(' ', \(names), CASE WHEN n.\(first) IS NULL THEN '(only in the old)'
                WHEN o.\(first) IS NULL THEN '(only in the new)' END)
            \(both) WHERE \(differs) AND NOT \(isCut) LIMIT 5
            """, what)
        found.examples = (0..<examples.rowCount).map { examples.text($0, 0) }
        return found
    }

    /// A key's column as people know it.
    private static func text(of column: String) -> String {
        let value = "coalesce(o.\(quoted(column)), n.\(quoted(column)))"
        if column == "account" { return "lpad(\(value)::text, 12, '0')" }
        if column.contains("trace") {
            return "'1-' || substr(\(value)::text, 1, 8) || '-' || replace(substr(\(value)::text, 10), '-', '')"
        }
        return "'\(column) ' || \(value)::text"
    }

    /// Links that both have, with other facts.
    public func differingLinks() async throws(TraceStoreError) -> [DifferingLink] {
        let rows = try await query(
            """
            SELECT o.account, o.consumer_trace, o.target_trace, o.target_entity, o.facts, n.facts
            FROM \(old("links")) o JOIN \(new("links")) n USING (account, consumer_trace, target_trace, target_entity)
            WHERE o.facts IS DISTINCT FROM n.facts ORDER BY 1, 2, 3, 4
            """, "cannot compare the links")
        return (0..<rows.rowCount).map { row in
            DifferingLink(
                account: AccountID(rawValue: UInt64(bitPattern: rows.int(row, 0))),
                old: StoredLink(
                    consumer: TraceID(rows.uuid(row, 1)), target: TraceID(rows.uuid(row, 2)),
                    entity: EntityID(rawValue: UInt64(bitPattern: rows.int(row, 3))),
                    facts: rows.isNull(row, 4) ? nil : rows.bytes(row, 4)),
                newFacts: rows.isNull(row, 5) ? nil : rows.bytes(row, 5))
        }
    }

    /// Before the comparison: what people did to the old inbox.
    public func alignInbox() async throws(TraceStoreError) {
        let statements = Self.inboxStatements(old: old("inbox"), new: new("inbox"), cleared: old("inbox_cleared"))
        // Not by the fence's transaction: a lock would outlive a failed exchange.
        let session = PostgresSession(database)
        do {
            try await session.run(statements.map { PostgresStatement($0, isPrepared: false) })
        } catch {
            await session.close()
            throw TraceStoreError(error, "cannot bring the inbox along")
        }
        await session.close()
    }

    // MARK: Exchange

    /// The new tables serve from here on, the old ones are gone. Readers wait for a moment; aggregators find that they are
    /// fenced and begin again from the same positions.
    public func exchange(_ fence: RebuildFence) async throws(TraceStoreError) {
        // Deadlocks with readers that hold one table and want the next are ours to give way in: we wait less than the second
        // after which PostgreSQL looks for one, and try again.
        try await script("SET LOCAL lock_timeout = '250ms'")
        let statements = exchangeStatements(fence).map { PostgresStatement($0, isPrepared: false) }
        var attempts = 0
        while true {
            try await script("SAVEPOINT exchange")
            do {
                try await session.run(statements)
                break
            } catch {
                guard error.sqlState == "55P03" || error.sqlState == "40P01", attempts < 200 else {
                    throw TraceStoreError(error, "cannot exchange the tables")
                }
                attempts += 1
                try await script("ROLLBACK TO SAVEPOINT exchange")
                try? await Task.sleep(for: .milliseconds(50))
            }
        }
        do {
            try await script(
                """
                DROP SCHEMA \(quoted(retired)) CASCADE;
                DROP SCHEMA IF EXISTS \(quoted(building)) CASCADE;
                """)
        } catch {
            // The tables are exchanged; what is left of the old ones goes with the next rebuild.
            return
        }
    }

    private func exchangeStatements(_ fence: RebuildFence) -> [String] {
        let tables = derived.map(\.name)
        var statements = [
            // A new connection has another transaction, and not the lock.
            "SELECT \(quoted(serving)).commit_requires(pg_current_xact_id()::text = \(literal(fence.transaction)), 'BL004')",
            "LOCK TABLE \((tables.map(old) + tables.map(new)).joined(separator: ", ")) IN ACCESS EXCLUSIVE MODE",
            """
            SELECT \(quoted(serving)).commit_requires(NOT EXISTS (
                SELECT FROM \(old("log_positions")) o FULL JOIN \(new("log_positions")) n USING (partition)
                WHERE partition >= 0 AND coalesce(o.position, 0) <> coalesce(n.position, 0)), 'BL005')
            """,
            // Positions are the same; what else a row says of its owner comes along. The epoch ends the hold of whoever has rows
            // of the old tables in memory. Links have been checked for all that is folded.
            "DELETE FROM \(new("log_positions"))",
            "INSERT INTO \(new("log_positions")) SELECT * FROM \(old("log_positions"))",
            "UPDATE \(new("log_positions")) SET owner_epoch = owner_epoch + 1, checked_position = position",
        ]
        statements += renamingStatements(fence.generation)
        statements += Self.inboxStatements(old: old("inbox"), new: new("inbox"), cleared: old("inbox_cleared"))
        statements += ["CREATE SCHEMA \(quoted(retired))"]
        for (from, to) in [(serving, retired), (building, serving)] {
            let names = tables.map(literal).joined(separator: ", ")
            statements.append(
                """
                DO $$ DECLARE t record; BEGIN
                    FOR t IN
                        SELECT c.oid::regclass AS name FROM pg_class c
                        WHERE c.relnamespace = \(literal(quoted(from)))::regnamespace AND c.relkind IN ('r', 'p')
                            AND (c.relname IN (\(names)) OR EXISTS (
                                SELECT FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent
                                WHERE i.inhrelid = c.oid AND p.relname IN (\(names))))
                    LOOP
                        EXECUTE format('ALTER TABLE %s SET SCHEMA %I', t.name, \(literal(to)));
                    END LOOP;
                END $$
                """)
        }
        // Without its state it is no rebuild to go on with.
        statements += ["DROP TABLE \(new("rebuild_state"))", "COMMIT"]
        return statements
    }
}
