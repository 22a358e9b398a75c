import Glibc
import PostgreSQL
import Testing

struct PostgresSessionTests {
    // If this fails, a value is stored as something else than what was given.
    @Test func `every type of parameter comes back as it was bound`() async throws {
        try await withDatabase { (configuration) async throws in
            let session = PostgresSession(configuration)
            var statement = PostgresStatement(
                "SELECT $1::int8, $2::int4, $3::bool, $4::uuid, $5::bytea, $6::text, $7::bytea, $8::int8, $9::text")
            statement.bind(Int64.min)
            statement.bind(Int32(-7))
            statement.bind(true)
            statement.bind(uuid: 0xfedc_ba98_7654_3210, 1)
            statement.bind(bytes: [0, 255, 10])
            statement.bind(text: "ä\u{0}ü")
            statement.bind(bytes: [UInt8]())
            statement.bindNull(.int8)
            statement.bind(text: "")
            let row = try await session.run(statement)
            #expect(row.rowCount == 1)
            #expect(row.int(0, 0) == .min)
            #expect(row.int(0, 1) == -7)
            #expect(row.bool(0, 2))
            #expect(row.uuid(0, 3) == (0xfedc_ba98_7654_3210, 1))
            #expect(row.bytes(0, 4) == [0, 255, 10])
            #expect(row.text(0, 5) == "ä\u{FFFD}ü")
            #expect(!row.isNull(0, 6) && row.bytes(0, 6).isEmpty)
            #expect(row.optionalInt(0, 7) == nil)
            #expect(row.text(0, 8).isEmpty && !row.isNull(0, 8))
            await session.close()
        }
    }

    // If this fails, rows of a batch get each other's values, or NULL turns into something.
    @Test func `arrays go through unnest with nulls and when empty`() async throws {
        try await withDatabase { (configuration) async throws in
            let session = PostgresSession(configuration)
            var numbers = PostgresArray.int8
            var texts = PostgresArray.text
            var bytes = PostgresArray.bytea
            for index in 0..<1_000 {
                numbers.append(optional: index % 3 == 0 ? nil : Int64(index))
                texts.append(text: "row \(index)")
                bytes.append(bytes: [UInt8](repeating: UInt8(index & 255), count: index))
            }
            var statement = PostgresStatement("SELECT * FROM unnest($1::int8[], $2::text[], $3::bytea[])")
            for column in [numbers, texts, bytes] { statement.bind(column) }
            let rows = try await session.run(statement)
            #expect(rows.rowCount == 1_000)
            for index in 0..<rows.rowCount {
                #expect(rows.optionalInt(index, 0) == (index % 3 == 0 ? nil : Int64(index)))
                #expect(rows.text(index, 1) == "row \(index)")
                #expect(rows.bytes(index, 2) == [UInt8](repeating: UInt8(index & 255), count: index))
            }
            var empty = PostgresStatement("SELECT * FROM unnest($1::uuid[])")
            empty.bind(PostgresArray.uuid)
            #expect(try await session.run(empty).rowCount == 0)
            await session.close()
        }
    }

    // If this fails, half a batch is stored when its second half is refused.
    @Test func `the statements of a call take effect together or not at all`() async throws {
        try await withDatabase { (configuration) async throws in
            let session = PostgresSession(configuration)
            try await session.runScript("CREATE TABLE t (n int8 PRIMARY KEY); CREATE TABLE u (n int8)")
            func insert(_ value: Int64) -> PostgresStatement {
                var statement = PostgresStatement("INSERT INTO t VALUES ($1)")
                statement.bind(value)
                return statement
            }
            try await session.run([insert(1), insert(2)])
            let error = await #expect(throws: PostgresError.self) {
                try await session.run([insert(3), insert(1), insert(4)])
            }
            #expect(error?.sqlState == "23505")
            #expect(error?.constraint == "t_pkey")
            #expect(error?.isRetriable == false)
            #expect(try await session.run(PostgresStatement("SELECT count(*) FROM t")).int(0, 0) == 2)
            await session.close()
        }
    }

    // If this fails, one bad statement breaks the calls that other tasks sent in the same pipeline.
    @Test func `an error stays with the call that caused it`() async throws {
        try await withDatabase { (configuration) async throws in
            let session = PostgresSession(configuration)
            try await withThrowingTaskGroup(of: Void.self) { group in
                for index in 0..<200 {
                    group.addTask {
                        if index % 5 == 0 {
                            await #expect(throws: PostgresError.self) {
                                try await session.run(PostgresStatement("SELECT 1 / 0, \(index)"))
                            }
                        } else if index % 7 == 0 {
                            await #expect(throws: PostgresError.self) {
                                try await session.run(PostgresStatement("SELEKT \(index)"))
                            }
                        } else {
                            var statement = PostgresStatement("SELECT $1::int8 * 2")
                            statement.bind(Int64(index))
                            let row = try await session.run(statement)
                            #expect(row.int(0, 0) == Int64(index * 2))
                        }
                    }
                }
                try await group.waitForAll()
            }
            await session.close()
        }
    }

    // If this fails, a large batch stops both sides for ever (full socket buffers in both directions).
    @Test func `megabytes go both ways in one pipeline`() async throws {
        try await withDatabase { (configuration) async throws in
            let session = PostgresSession(configuration)
            let value = [UInt8](repeating: 0x61, count: 4 << 20)
            var statement = PostgresStatement("SELECT $1::bytea")
            statement.bind(bytes: value)
            let results = try await session.run([PostgresStatement](repeating: statement, count: 8))
            #expect(results.count == 8)
            #expect(results.allSatisfy { $0.bytes(0, 0) == value })
            await session.close()
        }
    }

    // If this fails, Beamline has to be restarted after every restart of PostgreSQL, or hangs while it is away.
    @Test func `a killed server fails calls with a retriable error and sessions recover by themselves`() async throws {
        let server = try await PrivateServer.start()
        var configuration = PostgresConfiguration(server.connectionString)
        configuration.queueTimeout = .milliseconds(500)
        let pool = PostgresPool(configuration, sessionCount: 2)
        try await pool.run(PostgresStatement("SELECT 1"))
        let pid = try #require(server.processID)
        let sleeping = Task { try await pool.run(PostgresStatement("SELECT pg_sleep(60)")) }
        #expect(
            try await eventually {
                try await pool.run(
                    PostgresStatement(
                        "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'"
                    )
                ).int(0, 0) == 1
            })
        kill(pid, SIGKILL)
        let error = await #expect(throws: PostgresError.self) { try await sleeping.value }
        #expect(error?.isRetriable == true)
        let isBack = try await eventually {
            do throws(PostgresError) {
                return try await pool.run(PostgresStatement("SELECT 42")).int(0, 0) == 42
            } catch {
                if !error.isRetriable { Issue.record(error) }
                return false
            }
        }
        #expect(isBack)
        await pool.close()
        await server.stop()
    }

    // If this fails, a request waits for ever on a database that is not there.
    @Test func `without a server a call fails in bounded time`() async throws {
        var configuration = PostgresConfiguration("host=/nonexistent-folder dbname=x")
        configuration.queueTimeout = .milliseconds(200)
        let session = PostgresSession(configuration)
        let start = ContinuousClock.now
        let error = await #expect(throws: PostgresError.self) { try await session.run(PostgresStatement("SELECT 1")) }
        #expect(error?.code == .cannotConnect)
        // Far more than it takes: the machine may be busy.
        #expect(ContinuousClock.now - start < .seconds(120))
        await session.close()
    }

    // If this fails, two nodes that start together break the schema, or a second start fails.
    @Test func `migrations run once, also when several processes start at once`() async throws {
        try await withDatabase { (configuration) async throws in
            let migrations = [
                PostgresMigration(1, "create-a", "CREATE TABLE a (n int8); INSERT INTO a VALUES (1)"),
                PostgresMigration(2, "extend-a", "ALTER TABLE a ADD COLUMN m int8; UPDATE a SET m = n + 1"),
            ]
            try await PostgresMigrator.migrate(component: "x", Array(migrations.prefix(1)), database: configuration)
            try await withThrowingTaskGroup(of: Void.self) { group in
                for _ in 0..<4 {
                    group.addTask {
                        try await PostgresMigrator.migrate(component: "x", migrations, database: configuration)
                    }
                }
                try await group.waitForAll()
            }
            let pool = PostgresPool(configuration, sessionCount: 1)
            let row = try await pool.run(PostgresStatement("SELECT count(*), max(n), max(m) FROM a"))
            #expect(row.int(0, 0) == 1 && row.int(0, 1) == 1 && row.int(0, 2) == 2)
            #expect(try await PostgresMigrator.version(of: "x", on: pool) == 2)
            await pool.close()
        }
    }

    // If this fails, of two nodes that start together, or both meet midnight, one ends with "already exists".
    @Test func `two sessions may make the same day at once`() async throws {
        try await withDatabase { (configuration) async throws in
            let table = PostgresMigration(1, "create-a", "CREATE TABLE a (day int4 NOT NULL) PARTITION BY RANGE (day)")
            try await PostgresMigrator.migrate(component: "x", [table], database: configuration)
            let make = PostgresStatement("SELECT day_partition_create('a', 20000)")
            let (first, second) = (PostgresSession(configuration), PostgresSession(configuration))
            let watching = PostgresPool(configuration, sessionCount: 1)
            try await first.runScript("BEGIN; SELECT day_partition_create('a', 20000)")
            async let isSecondMade = second.run(make).bool(0, 0)
            let waiting = PostgresStatement("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
            while try await watching.run(waiting).int(0, 0) == 0 { await Task.yield() }
            try await first.runScript("COMMIT")
            #expect(try await isSecondMade == false)
            try await first.runScript("INSERT INTO a VALUES (20000)")
            await first.close()
            await second.close()
            await watching.close()
        }
    }
}

struct OffsetWatchTests {
    // If this fails, a reader sleeps although there is news, or never wakes up.
    @Test func `a waiter wakes on the number it waits for and not before`() async throws {
        let watch = OffsetWatch()
        #expect(await watch.wait(for: [(0, 1)], all: false, timeout: .milliseconds(5)) == false)
        async let any = watch.wait(for: [(0, 5), (1, 5)], all: false, timeout: .seconds(20))
        async let all = watch.wait(for: [(0, 5), (1, 5)], all: true, timeout: .seconds(20))
        #expect(try await eventually { watch.hasWaiters })
        watch.report([(0, 5)])
        #expect(await any)
        watch.report([(1, 9), (0, 3)])
        #expect(await all)
        #expect(watch.offset(of: 0) == 5)
        #expect(await watch.wait(for: [(1, 9)], all: true, timeout: .zero))
    }
}
