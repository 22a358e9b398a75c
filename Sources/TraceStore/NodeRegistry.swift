// The processes of a cluster and who of them owns which partition of the log. Each process has one registry with a
// connection of its own, so that neither a slow commit nor a burst of reads keeps it from saying that it is alive.
// What is to be claimed or released is decided elsewhere (`LeasePolicy`); here are the rows.

import PostgreSQL
import Segments

/// What a process does.
public enum NodeRole: String, Sendable, CaseIterable {
    case standalone, ingest, aggregate, query

    /// Whether it owns partitions.
    public var aggregates: Bool { self == .standalone || self == .aggregate }
}

/// A process as it presents itself.
public struct Node: Sendable, Equatable {
    /// Unique for the life of a process. One that starts again under the same id takes its leases back at once, so it
    /// must be sure that its former self is gone.
    public var id: String
    public var role: NodeRole
    /// For people.
    public var name: String
    public var host: String
    public var processID: Int32
    /// What it listens on, for people: `api 127.0.0.1:2000, metrics 127.0.0.1:9464`.
    public var addresses: String
    public var version: String

    public init(
        id: String, role: NodeRole, name: String, host: String, processID: Int32, addresses: String, version: String
    ) {
        self.id = id
        self.role = role
        self.name = name
        self.host = host
        self.processID = processID
        self.addresses = addresses
        self.version = version
    }

    /// PostgreSQL shows this name for the connections that commit: whoever takes over an expired lease can end them.
    public static func applicationName(of id: String) -> String { "beamline \(id)" }
}

/// Who is there and who owns what, as of one moment.
public struct ClusterView: Sendable, Equatable {
    public struct Lease: Sendable, Equatable {
        public var partition: Int
        /// Id of a node; empty: nobody.
        public var owner: String
        public var epoch: Int64
        /// The owner is alive.
        public var isLive: Bool

        public init(partition: Int, owner: String, epoch: Int64, isLive: Bool) {
            self.partition = partition
            self.owner = owner
            self.epoch = epoch
            self.isLive = isLive
        }
    }

    /// Ids of the live nodes that aggregate, in order of rank: the longest alive first.
    public var workers: [String]
    /// Partitions that somebody has claimed once, in order of number.
    public var leases: [Lease]

    public init(workers: [String], leases: [Lease]) {
        self.workers = workers
        self.leases = leases
    }
}

/// A node as the others see it.
public struct NodeState: Sendable, Equatable {
    public var node: Node
    /// Microseconds since 1970, by PostgreSQL's clock.
    public var startedAt: Micros
    public var heartbeatAge: Duration
    public var isLive: Bool
}

/// One per process. Safe to call from any task.
public final class NodeRegistry: Sendable {
    public let node: Node
    /// How long the node counts as alive after a heartbeat.
    public let leaseDuration: Duration
    private let pool: PostgresPool

    public init(node: Node, leaseDuration: Duration = .seconds(3), database: PostgresConfiguration) {
        self.node = node
        self.leaseDuration = leaseDuration
        var own = database
        own.applicationName = "beamline-node \(node.id)"
        own.statementTimeout = .seconds(2)
        pool = PostgresPool(own, sessionCount: 1)
    }

    public func close() async { await pool.close() }

    /// Makes the node known and gives free what a former process of the same id owned. Forgets nodes long gone.
    public func register() async throws(TraceStoreError) {
        var release = PostgresStatement("UPDATE log_positions SET owner = '' WHERE owner = $1")
        release.bind(text: node.id)
        let forget = PostgresStatement("DELETE FROM nodes WHERE expires_at < clock_timestamp() - interval '1 hour'")
        var insert = PostgresStatement("""
            INSERT INTO nodes (id, role, name, host, pid, addresses, version, started_at, heartbeat_at, expires_at)
            SELECT $1, $2, $3, $4, $5, $6, $7, t, t, t + $8 * interval '1 microsecond' FROM clock_timestamp() AS t
            ON CONFLICT (id) DO UPDATE SET role = excluded.role, name = excluded.name, host = excluded.host,
                pid = excluded.pid, addresses = excluded.addresses, version = excluded.version,
                started_at = excluded.started_at, heartbeat_at = excluded.heartbeat_at, expires_at = excluded.expires_at
            """)
        insert.bind(text: node.id)
        insert.bind(text: node.role.rawValue)
        insert.bind(text: node.name)
        insert.bind(text: node.host)
        insert.bind(node.processID)
        insert.bind(text: node.addresses)
        insert.bind(text: node.version)
        insert.bind(leaseMicros)
        try await run([release, forget, insert], "cannot register the node")
    }

    /// Says that the node is alive, which renews its leases, and looks around.
    /// - Returns: nil when the node is not known (any more): register.
    public func beat() async throws(TraceStoreError) -> ClusterView? {
        // A beat that a crash of PostgreSQL forgets is no loss: no need to wait for the disk twice a second.
        let relaxed = PostgresStatement("SELECT set_config('synchronous_commit', 'off', true)")
        var beat = PostgresStatement("""
            UPDATE nodes SET heartbeat_at = clock_timestamp(),
                expires_at = clock_timestamp() + $2 * interval '1 microsecond' WHERE id = $1
            """)
        beat.bind(text: node.id)
        beat.bind(leaseMicros)
        let results = try await run(
            [relaxed, beat, PostgresStatement(Self.workers), PostgresStatement(Self.leases)], "cannot beat")
        return results[1].affectedRows == 1 ? Self.view(workers: results[2], leases: results[3]) : nil
    }

    /// Takes over free partitions and those whose owner's lease has expired: their epoch grows by one, so that a former
    /// owner can commit nothing more. What a commit has locked at the moment is left for the next time.
    /// - Parameters:
    ///   - limit: at most so many, lowest number first.
    ///   - count: partitions of the log.
    ///   - held: those this process works on: others under its name are left-overs and may be claimed.
    public func claim(
        atMost limit: Int, partitionCount count: Int, held: [Int]
    ) async throws(TraceStoreError) -> [PartitionState] {
        var create = PostgresStatement("""
            INSERT INTO log_positions (partition) SELECT n FROM generate_series(0, $1 - 1) AS n
            WHERE NOT EXISTS (SELECT FROM log_positions p WHERE p.partition = n) ON CONFLICT DO NOTHING
            """)
        create.bind(Int32(clamping: count))
        var numbers = PostgresArray.int4
        for partition in held { numbers.append(Int32(clamping: partition)) }
        var claim = PostgresStatement("""
            WITH free AS (
                SELECT p.partition FROM log_positions p
                WHERE p.partition < $1 AND CASE WHEN p.owner = $2 THEN p.partition <> ALL ($4::int4[])
                    ELSE NOT EXISTS (
                        SELECT FROM nodes n WHERE n.id = p.owner AND n.expires_at > clock_timestamp()) END
                ORDER BY p.partition LIMIT $3 FOR UPDATE OF p SKIP LOCKED)
            UPDATE log_positions p SET owner_epoch = p.owner_epoch + 1, owner = $2
            FROM free WHERE p.partition = free.partition
            RETURNING p.partition, p.position, p.checked_position, p.owner_epoch, p.received_through
            """)
        claim.bind(Int32(clamping: count))
        claim.bind(text: node.id)
        claim.bind(Int64(limit))
        claim.bind(numbers)
        let results = try await run([create, claim], "cannot claim partitions")
        return TraceStore.partitionStates(results[1]).sorted { $0.partition < $1.partition }
    }

    /// Gives partitions back, as far as they are still this node's.
    public func release(_ partitions: [PartitionState]) async throws(TraceStoreError) {
        var numbers = PostgresArray.int4
        var epochs = PostgresArray.int8
        for state in partitions {
            numbers.append(Int32(clamping: state.partition))
            epochs.append(state.ownerEpoch)
        }
        var release = PostgresStatement("""
            UPDATE log_positions p SET owner = '' FROM unnest($1::int4[], $2::int8[]) AS r (partition, epoch)
            WHERE p.partition = r.partition AND p.owner_epoch = r.epoch AND p.owner = $3
            """)
        release.bind(numbers)
        release.bind(epochs)
        release.bind(text: node.id)
        try await run([release], "cannot release partitions")
    }

    /// The node goes: its partitions are free at once.
    public func leave() async throws(TraceStoreError) {
        var release = PostgresStatement("UPDATE log_positions SET owner = '' WHERE owner = $1")
        release.bind(text: node.id)
        var delete = PostgresStatement("DELETE FROM nodes WHERE id = $1")
        delete.bind(text: node.id)
        try await run([release, delete], "cannot leave")
    }

    /// Ends the connections with which owners of expired leases commit. A process that was stopped while it sent a batch
    /// leaves a transaction open that has its partitions locked, and no time-out of PostgreSQL ends that one: the
    /// server waits for the rest of the batch.
    /// - Returns: number of connections ended.
    @discardableResult
    public func endSessionsOfExpiredOwners() async throws(TraceStoreError) -> Int {
        let end = PostgresStatement("""
            SELECT count(pg_terminate_backend(a.pid)) FROM pg_stat_activity a
            WHERE a.datname = current_database() AND a.usename = current_user AND a.application_name IN (
                SELECT 'beamline ' || p.owner FROM log_positions p WHERE p.owner <> '' AND NOT EXISTS (
                    SELECT FROM nodes n WHERE n.id = p.owner AND n.expires_at > clock_timestamp()))
            """)
        return Int(try await run([end], "cannot end the sessions of expired owners")[0].int(0, 0))
    }

    private var leaseMicros: Int64 { leaseDuration.components.seconds * 1_000_000 + leaseDuration.components.attoseconds / 1_000_000_000_000 }

    @discardableResult
    private func run(_ statements: [PostgresStatement], _ what: String) async throws(TraceStoreError) -> [PostgresResult] {
        do {
            return try await pool.run(statements)
        } catch {
            throw TraceStoreError(error, what)
        }
    }

    // MARK: Reading

    static let workers = """
        SELECT id FROM nodes WHERE role IN ('standalone', 'aggregate') AND expires_at > clock_timestamp()
        ORDER BY started_at, id
        """

    static let leases = """
        SELECT p.partition, p.owner, p.owner_epoch,
            EXISTS (SELECT FROM nodes n WHERE n.id = p.owner AND n.expires_at > clock_timestamp())
        FROM log_positions p ORDER BY p.partition
        """

    static func view(workers: PostgresResult, leases: PostgresResult) -> ClusterView {
        ClusterView(
            workers: (0..<workers.rowCount).map { workers.text($0, 0) },
            leases: (0..<leases.rowCount).map {
                ClusterView.Lease(
                    partition: Int(leases.int($0, 0)), owner: leases.text($0, 1), epoch: leases.int($0, 2),
                    isLive: leases.bool($0, 3))
            })
    }
}

extension TraceStore {
    /// Every node that was alive within the last hour, the longest alive first.
    public func nodes() async throws(TraceStoreError) -> [NodeState] {
        let rows = try await ask(
            PostgresStatement("""
                SELECT id, role, name, host, pid, addresses, version, (extract(epoch FROM started_at) * 1000000)::int8,
                    (extract(epoch FROM clock_timestamp() - heartbeat_at) * 1000000)::int8,
                    expires_at > clock_timestamp()
                FROM nodes ORDER BY role, started_at, id
                """))
        return (0..<rows.rowCount).compactMap { row in
            guard let role = NodeRole(rawValue: rows.text(row, 1)) else { return nil }
            return NodeState(
                node: Node(
                    id: rows.text(row, 0), role: role, name: rows.text(row, 2), host: rows.text(row, 3),
                    processID: Int32(clamping: rows.int(row, 4)), addresses: rows.text(row, 5),
                    version: rows.text(row, 6)),
                startedAt: rows.int(row, 7), heartbeatAge: .microseconds(rows.int(row, 8)), isLive: rows.bool(row, 9))
        }
    }

    /// Who owns what, for people; who works looks by `NodeRegistry.beat`.
    public func clusterView() async throws(TraceStoreError) -> ClusterView {
        NodeRegistry.view(
            workers: try await ask(PostgresStatement(NodeRegistry.workers)),
            leases: try await ask(PostgresStatement(NodeRegistry.leases)))
    }
}
