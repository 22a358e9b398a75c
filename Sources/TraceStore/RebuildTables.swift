// The second set of derived tables: a schema `<schema>_rebuild` beside the one that serves, filled by the same statements
// through sessions that look there first, and at the end exchanged for the old ones in one transaction
// (`RebuildTables+Exchange`). What is needed to go on after a crash stands in the schema itself and goes with it.

import Logging
import PostgreSQL
import Segments

/// What a rebuild set out to do.
public struct RebuildPlan: Sendable, Equatable {
    /// Microseconds since 1970.
    public var begunAt: Micros
    /// What `--from` asked for.
    public var from: Micros?
    /// Per partition, the first record that is replayed; what the tables have from earlier ones comes from stored documents.
    public var startOffsets: [Int: Int64]
    /// The stored documents are folded.
    public var hasDocuments = false
    /// The indexes that nobody needs while tables are filled are there.
    public var hasIndexes = false

    /// Below all offsets, and 2^32 names apart from that of a rebuild begun in another second (good until 2090).
    var generation: Int64 { (1_600_000_000 - begunAt / 1_000_000) << 32 }

    public init(begunAt: Micros, from: Micros?, startOffsets: [Int: Int64]) {
        self.begunAt = begunAt
        self.from = from
        self.startOffsets = startOffsets
    }
}

/// One process at a time has the second set, by an advisory lock that ends with its connection.
public final class RebuildTables: Sendable {
    /// The guard of work that does not come from a partition of the log, and names its graph blocks.
    public static let workPartition = -1

    /// For the store that fills the new tables: it finds them first, and everything else in the serving schema.
    public let database: PostgresConfiguration
    let serving: String
    let session: PostgresSession
    /// As far as the schema has them.
    let derived: [DerivedTable]

    var building: String { serving + "_rebuild" }
    var retired: String { serving + "_retired" }

    private init(
        database: PostgresConfiguration, serving: String, session: PostgresSession, derived: [DerivedTable]
    ) {
        self.serving = serving
        self.session = session
        self.derived = derived
        var database = database
        database.settings["search_path"] = "\(quoted(serving + "_rebuild")),\(quoted(serving))"
        // What a crash of PostgreSQL may take is folded again: positions and rows are lost together.
        database.settings["synchronous_commit"] = "off"
        self.database = database
    }

    /// - Throws: `.exists` when another rebuild is at work, `.refused` when the schema has tables this program does not know.
    public static func open(database: PostgresConfiguration) async throws(TraceStoreError) -> RebuildTables {
        var patient = database
        patient.queueTimeout = .seconds(10)
        patient.statementTimeout = .seconds(4 * 3_600)
        // Comparisons go through whole tables.
        patient.settings = patient.settings.filter { !$0.key.hasPrefix("enable_") }
        patient.settings["work_mem"] = "65536"
        // Milliseconds; a rebuild that was killed does not leave the server making its indexes.
        patient.settings["client_connection_check_interval"] = "1000"
        let session = PostgresSession(patient)
        do {
            // Numbers of our own choosing: what, and which schema.
            let lock = PostgresStatement(
                "SELECT current_schema()::text, pg_try_advisory_lock(73057169, hashtext(current_schema()))",
                isPrepared: false)
            var rows = try await session.run(lock)
            let deadline = ContinuousClock.now + .seconds(5)
            while !rows.bool(0, 1) {
                // Of one that was just killed the server may still be finding out.
                guard ContinuousClock.now < deadline else {
                    throw TraceStoreError(.exists, "another rebuild of this database is at work")
                }
                try? await Task.sleep(for: .milliseconds(100))
                rows = try await session.run(lock)
            }
            let derived = try await derivedTables(of: rows.text(0, 0), session)
            return RebuildTables(database: database, serving: rows.text(0, 0), session: session, derived: derived)
        } catch {
            await session.close()
            if let error = error as? TraceStoreError { throw error }
            throw (error as? PostgresError).map { TraceStoreError($0, "cannot begin the rebuild") }
                ?? TraceStoreError(.refused, "cannot begin the rebuild: \(error)")
        }
    }

    public func close() async { await session.close() }

    // MARK: Statements

    func script(_ sql: String, _ what: String = "cannot prepare the new tables") async throws(TraceStoreError) {
        do {
            try await session.runScript(sql, timeout: .seconds(4 * 3_600))
        } catch {
            throw TraceStoreError(error, what)
        }
    }

    func query(_ sql: String, _ what: String = "cannot read the new tables") async throws(TraceStoreError)
        -> PostgresResult
    {
        do {
            return try await session.run(PostgresStatement(sql, isPrepared: false))
        } catch {
            throw TraceStoreError(error, what)
        }
    }

    func name(_ table: String, in schema: String) -> String { "\(quoted(schema)).\(quoted(table))" }
    func old(_ table: String) -> String { name(table, in: serving) }
    func new(_ table: String) -> String { name(table, in: building) }

    /// A table that this program does not know must not be lost, and must not be written twice.
    private static func derivedTables(of schema: String, _ session: PostgresSession) async throws -> [DerivedTable] {
        var statement = PostgresStatement(
            """
            SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = $1 AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY 1
            """, isPrepared: false)
        statement.bind(text: schema)
        let rows = try await session.run(statement)
        let found = (0..<rows.rowCount).map { rows.text($0, 0) }
        let known = StoreSchema.keptTables.union(StoreSchema.derivedTables.map(\.name))
        let unknown = found.filter { !known.contains($0) }
        guard unknown.isEmpty else {
            throw TraceStoreError(
                .refused,
                "the schema \(schema) has tables that are not Beamline's: \(unknown.joined(separator: ", ")); "
                    + "move them to another schema")
        }
        return StoreSchema.derivedTables.filter { found.contains($0.name) }
    }

    // MARK: Beginning and going on

    /// The rebuild that was begun and neither finished nor thrown away. Tidies up after one that was finished.
    /// - Throws: `.schemaMismatch` when it was begun by a release with other tables.
    public func begun() async throws(TraceStoreError) -> RebuildPlan? {
        try await script("DROP SCHEMA IF EXISTS \(quoted(retired)) CASCADE", "cannot remove the tables of before")
        let found = try await query("SELECT to_regclass(\(literal(new("rebuild_state")))) IS NOT NULL")
        guard found.bool(0, 0) else { return nil }
        let rows = try await query("SELECT name, value FROM \(new("rebuild_state"))")
        var values: [String: Int64] = [:]
        for row in 0..<rows.rowCount { values[rows.text(row, 0)] = rows.int(row, 1) }
        guard values["version"] == Int64(StoreSchema.version) else {
            throw TraceStoreError(
                .schemaMismatch, "the rebuild was begun by another release of beamline; throw it away with --restart")
        }
        var plan = RebuildPlan(begunAt: values["begun"] ?? 0, from: values["from"], startOffsets: [:])
        for (name, value) in values where name.hasPrefix("start ") {
            if let partition = Int(name.dropFirst(6)) { plan.startOffsets[partition] = value }
        }
        plan.hasDocuments = values["documents"] != nil
        plan.hasIndexes = values["indexes"] != nil
        return plan
    }

    /// Throws away what a rebuild has made; the tables that serve stay as they are.
    public func discard() async throws(TraceStoreError) {
        try await script("DROP SCHEMA IF EXISTS \(quoted(building)) CASCADE", "cannot remove the tables of the rebuild")
    }

    /// Makes empty tables by the same migrations, and whatever of the inbox no record replayed will bring.
    /// The plan is written last: without it, what is there is thrown away.
    public func begin(_ plan: RebuildPlan) async throws(TraceStoreError) {
        try await discard()
        try await script("CREATE SCHEMA \(quoted(building))")
        var alone = database
        alone.settings["search_path"] = quoted(building)
        try await TraceStore.migrate(database: alone)
        var sql = "BEGIN;"
        for table in StoreSchema.keptTables.sorted() where table != "schema_version" {
            sql += "DROP TABLE IF EXISTS \(new(table)) CASCADE;\n"
        }
        sql += """
            CREATE TABLE \(new("rebuild_state")) (name text PRIMARY KEY, value int8 NOT NULL);
            CREATE TABLE \(new("rebuild_indexes")) (number int4 PRIMARY KEY, name text NOT NULL, definition text NOT NULL);
            """
        let deferring = derived.filter(\.defersIndexes).map { literal(new($0.name)) + "::regclass" }
        sql += """
            INSERT INTO \(new("rebuild_indexes"))
            SELECT row_number() OVER (ORDER BY indexrelid), indexrelid::regclass, pg_get_indexdef(indexrelid) FROM pg_index
            WHERE indrelid IN (\(deferring.joined(separator: ", "))) AND NOT indisunique;
            DO $$ DECLARE i record; BEGIN
                FOR i IN SELECT name FROM \(new("rebuild_indexes")) LOOP EXECUTE 'DROP INDEX ' || i.name; END LOOP;
            END $$;
            """
        for (partition, offset) in plan.startOffsets.sorted(by: { $0.key < $1.key }) {
            sql += """
                INSERT INTO \(new("log_positions")) (partition, position, checked_position)
                VALUES (\(partition), \(offset), \(offset));
                INSERT INTO \(new("inbox")) SELECT * FROM \(old("inbox"))
                WHERE topic = 'segments' AND partition = \(partition) AND log_offset < \(offset);
                INSERT INTO \(new("rebuild_state")) VALUES ('start \(partition)', \(offset));
                """
        }
        if let from = plan.from { sql += "INSERT INTO \(new("rebuild_state")) VALUES ('from', \(from));" }
        sql +=
            "INSERT INTO \(new("rebuild_state")) VALUES ('begun', \(plan.begunAt)), ('version', \(StoreSchema.version));"
        try await script(sql + "COMMIT")
    }

    private func mark(_ step: String, with sql: String) async throws(TraceStoreError) {
        try await script("BEGIN; \(sql); INSERT INTO \(new("rebuild_state")) VALUES ('\(step)', 1); COMMIT")
    }

    // MARK: Stored documents

    /// Traces that have documents in the tables that serve: what the first part has to go through, roughly.
    public func storedTraceCount() async throws(TraceStoreError) -> Int {
        Int(try await query("SELECT count(*) FROM \(old("traces"))").int(0, 0))
    }

    /// Traces in the new tables, and the last one of them: where the first part goes on.
    public func rebuiltTraces() async throws(TraceStoreError) -> (count: Int, last: TraceKey?) {
        let count = try await query("SELECT count(*) FROM \(new("traces"))").int(0, 0)
        let rows = try await query(
            "SELECT account, trace_id FROM \(new("traces")) ORDER BY account DESC, trace_id DESC LIMIT 1")
        guard rows.rowCount == 1 else { return (Int(count), nil) }
        let account = AccountID(rawValue: UInt64(bitPattern: rows.int(0, 0)))
        return (Int(count), TraceKey(account: account, id: TraceID(rows.uuid(0, 1))))
    }

    /// The first part is done. Traces of which nothing but refused documents came before the replay have their row, too.
    public func documentsAreDone(_ plan: RebuildPlan) async throws(TraceStoreError) {
        let starts = plan.startOffsets.map { "(\($0.key), \($0.value)::int8)" }.joined(separator: ", ")
        let refused =
            plan.startOffsets.isEmpty
            ? ""
            : """
            INSERT INTO \(new("traces"))
            SELECT t.* FROM \(old("traces")) t WHERE t.revision = 0 AND EXISTS (
                SELECT FROM \(old("inbox")) i JOIN (VALUES \(starts)) AS s (partition, start) ON s.partition = i.partition
                WHERE i.account = t.account AND i.trace_id = t.trace_id AND i.log_offset < s.start
                    AND i.code = 'TraceSizeLimitExceeded')
            ON CONFLICT DO NOTHING
            """
        try await mark("documents", with: refused)
    }

    // MARK: When everything is loaded

    /// Makes the indexes that were left out.
    public func createIndexes() async throws(TraceStoreError) {
        let rows = try await query("SELECT definition FROM \(new("rebuild_indexes")) ORDER BY number")
        let definitions = (0..<rows.rowCount).map { rows.text($0, 0) }
        try await script("SET maintenance_work_mem = '128MB'")
        try await mark("indexes", with: definitions.joined(separator: ";\n"))
    }

    /// Gives rows that are named by the offsets of their batch names that no other row ever had or will have. A reader that
    /// has listed rows, or a process that is merging some, must not find others under the same names after the exchange.
    func renamingStatements(_ generation: Int64) -> [String] {
        derived.filter(\.isNamedByPartition).map { table in
            """
            UPDATE \(new(table.name)) r SET partition = greatest(r.partition, 0), last_offset = \(generation) - n.number
            FROM (SELECT ctid, row_number() OVER () + (SELECT count(*) FROM \(new(table.name)) WHERE last_offset < 0) AS number
                  FROM \(new(table.name)) WHERE last_offset >= 0) n
            WHERE r.ctid = n.ctid
            """
        }
    }

    /// The days that the serving tables have, the names of rows (most of them; the exchange names the rest), and statistics for
    /// the planner.
    public func finishLoading(_ plan: RebuildPlan) async throws(TraceStoreError) {
        try await script(renamingStatements(plan.generation).joined(separator: ";\n"))
        try await script(
            """
            BEGIN;
            SET LOCAL search_path = \(quoted(building)), \(quoted(serving));
            DO $$ BEGIN
                PERFORM day_partition_create('trace_documents', d.day) FROM (
                    SELECT to_date(right(c.relname::text, 10), 'YYYY_MM_DD') - date '1970-01-01' AS day
                    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                    WHERE i.inhparent = \(literal(old("trace_documents")))::regclass) d;
            END $$;
            COMMIT
            """)
        let tables = derived.map { new($0.name) }.joined(separator: ", ")
        try await script("ANALYZE \(tables)")
    }

    /// Inbox entries that a person has deleted stay deleted; those that came another way than through the log come along.
    static func inboxStatements(old: String, new: String, cleared: String) -> [String] {
        [
            """
            DELETE FROM \(new) n USING \(cleared) c
            WHERE c.account = n.account AND c.topic = n.topic AND c.partition = n.partition AND n.log_offset <= c.through_offset
            """,
            "INSERT INTO \(new) SELECT * FROM \(old) WHERE topic <> 'segments' ON CONFLICT DO NOTHING",
        ]
    }
}

func quoted(_ name: String) -> String { "\"" + name.replacing("\"", with: "\"\"") + "\"" }
func literal(_ text: String) -> String { "'" + text.replacing("'", with: "''") + "'" }
