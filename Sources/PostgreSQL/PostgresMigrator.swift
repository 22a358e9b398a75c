// Brings a schema from any earlier version to the newest: numbered SQL texts, each applied once, in one transaction under
// an advisory lock, so that several processes may start at once. The log and the store have a list each.

/// One step of a schema. A shipped one is never edited: the fix is the next one.
public struct PostgresMigration: Sendable {
    public var version: Int
    /// A verb and what it is about: `add-trace-links`.
    public var name: String
    public var sql: String

    public init(_ version: Int, _ name: String, _ sql: String) {
        self.version = version
        self.name = name
        self.sql = sql
    }
}

public enum PostgresMigrator {
    /// Applies the missing migrations of a component. Runs on a session of its own.
    /// - Parameter component: `log` or `store`: versions are counted per component.
    public static func migrate(
        component: String, _ migrations: [PostgresMigration], database: PostgresConfiguration
    ) async throws(PostgresError) {
        var patient = database
        patient.queueTimeout = .seconds(10)
        patient.statementTimeout = .seconds(600)
        let session = PostgresSession(patient)
        do {
            try await apply(component: component, migrations, on: session)
        } catch {
            // Closing the connection rolls the transaction back and gives the lock free.
            await session.close()
            throw error
        }
        await session.close()
    }

    /// The version of a component's schema; 0 when there is none.
    public static func version(of component: String, on pool: PostgresPool) async throws(PostgresError) -> Int {
        var statement = PostgresStatement("SELECT coalesce(max(version), 0) FROM schema_version WHERE component = $1")
        statement.bind(text: component)
        do {
            let result = try await pool.run(statement)
            return Int(result.int(0, 0))
        } catch where error.sqlState == "42P01" {
            return 0
        }
    }

    private static func apply(
        component: String, _ migrations: [PostgresMigration], on session: PostgresSession
    ) async throws(PostgresError) {
        // A number of our own choosing for the advisory lock of all migrations.
        try await session.runScript("BEGIN; SELECT pg_advisory_xact_lock(7305716932054)")
        try await session.runScript(
            """
            CREATE TABLE IF NOT EXISTS schema_version (
                component text NOT NULL, version int4 NOT NULL, name text NOT NULL,
                applied_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (component, version))
            """)
        try await applyMissing(of: "days", PostgresDays.migrations, on: session)
        try await applyMissing(of: component, migrations, on: session)
        try await session.runScript("COMMIT")
    }

    private static func applyMissing(
        of component: String, _ migrations: [PostgresMigration], on session: PostgresSession
    ) async throws(PostgresError) {
        var query = PostgresStatement(
            "SELECT coalesce(max(version), 0) FROM schema_version WHERE component = $1", isPrepared: false)
        query.bind(text: component)
        let current = Int(try await session.run(query).int(0, 0))
        for migration in migrations where migration.version > current {
            try await session.runScript(migration.sql)
            var record = PostgresStatement(
                "INSERT INTO schema_version (component, version, name) VALUES ($1, $2, $3)", isPrepared: false)
            record.bind(text: component)
            record.bind(Int32(migration.version))
            record.bind(text: migration.name)
            try await session.run(record)
        }
    }
}
