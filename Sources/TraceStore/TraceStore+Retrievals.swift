// Jobs of trace retrieval (`api.md` §5.3): SCHEDULED → RUNNING → COMPLETE, or FAILED, CANCELLED, TIMEOUT. A job is claimed
// by whoever is asked for it first; a claim whose process died is taken over. So any node can serve any token, and
// nothing runs for a job that nobody asks for.

import PostgreSQL
import Segments

public struct RetrievalJob: Sendable, Equatable {
    public enum Status: String, Sendable {
        case scheduled = "SCHEDULED"
        case running = "RUNNING"
        case complete = "COMPLETE"
        case failed = "FAILED"
        case cancelled = "CANCELLED"
        /// Not complete within `RetrievalJob.lifetime`; never stored, it is seen from the times.
        case timeout = "TIMEOUT"

        public var isActive: Bool { self == .scheduled || self == .running }
    }

    /// A trace as the job found it: with its first `revision` documents.
    public struct Found: Sendable, Equatable {
        public var id: TraceID
        public var revision: Int

        public init(id: TraceID, revision: Int) {
            self.id = id
            self.revision = revision
        }
    }

    public var id: TraceID
    public var status: Status
    public var createdAt: Micros
    /// Both inclusive.
    public var startTime: Micros
    public var endTime: Micros
    public var wanted: [TraceID]
    public var found: [Found]
    public var finishedAt: Micros?

    /// Time for a job to become complete, and for its results to live afterwards.
    public static let lifetime: Micros = 3600 * 1_000_000
    /// A claim older than this belongs to a process that died.
    public static let claimLifetime: Micros = 60 * 1_000_000

    public init(
        id: TraceID, status: Status, createdAt: Micros, startTime: Micros, endTime: Micros, wanted: [TraceID],
        found: [Found] = [], finishedAt: Micros? = nil
    ) {
        self.id = id
        self.status = status
        self.createdAt = createdAt
        self.startTime = startTime
        self.endTime = endTime
        self.wanted = wanted
        self.found = found
        self.finishedAt = finishedAt
    }

    /// What the job is at a moment.
    public func status(now: Micros) -> Status {
        status.isActive && now - createdAt >= Self.lifetime ? .timeout : status
    }

    /// Its results are gone, and so is the job.
    public func isExpired(now: Micros) -> Bool {
        now >= (finishedAt ?? createdAt + Self.lifetime) + Self.lifetime
    }
}

extension TraceStore {
    private static let tooManyJobs = "BL006"

    /// Stores a new job, if fewer than `limit` of the account are active.
    /// - Returns: false when there are as many; nothing was stored.
    public func createRetrieval(
        _ job: RetrievalJob, account: AccountID, limit: Int, now: Micros
    ) async throws(TraceStoreError) -> Bool {
        var lock = PostgresStatement("SELECT pg_advisory_xact_lock(hashtextextended('retrievals', $1))")
        lock.bind(account)
        var clean = PostgresStatement("DELETE FROM retrievals WHERE account = $1 AND created_at < $2")
        clean.bind(account)
        clean.bind(now - 3 * RetrievalJob.lifetime)
        var insert = PostgresStatement(
            """
            INSERT INTO retrievals (account, id, status, created_at, start_time, end_time, wanted, finished_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
            """)
        insert.bind(account)
        insert.bind(job.id)
        insert.bind(text: job.status.rawValue)
        insert.bind(job.createdAt)
        insert.bind(job.startTime)
        insert.bind(job.endTime)
        insert.bind(job.wanted)
        if let finished = job.finishedAt { insert.bind(finished) } else { insert.bindNull(.int8) }
        var check = PostgresStatement(
            """
            SELECT commit_requires(count(*) <= $3, '\(Self.tooManyJobs)') FROM retrievals
            WHERE account = $1 AND created_at > $2 AND status IN ('SCHEDULED', 'RUNNING')
            """)
        check.bind(account)
        check.bind(now - RetrievalJob.lifetime)
        check.bind(Int64(limit))
        do {
            try await writers.run(job.status.isActive ? [lock, clean, insert, check] : [clean, insert])
            return true
        } catch {
            if error.sqlState == Self.tooManyJobs { return false }
            throw TraceStoreError(error, "cannot store the retrieval")
        }
    }

    public func retrieval(account: AccountID, id: TraceID) async throws(TraceStoreError) -> RetrievalJob? {
        // Arrays come as rows: the result reader knows scalars only.
        var statement = PostgresStatement(
            """
            SELECT r.status, r.created_at, r.start_time, r.end_time, r.finished_at, w.wanted, w.found, w.revision
            FROM retrievals r LEFT JOIN LATERAL unnest(r.wanted, r.found, r.revisions)
                WITH ORDINALITY AS w (wanted, found, revision, place) ON true
            WHERE r.account = $1 AND r.id = $2 ORDER BY w.place
            """)
        statement.bind(account)
        statement.bind(id)
        let rows = try await change(statement)[0]
        guard rows.rowCount > 0 else { return nil }
        var job = RetrievalJob(
            id: id, status: RetrievalJob.Status(rawValue: rows.text(0, 0)) ?? .failed, createdAt: rows.int(0, 1),
            startTime: rows.int(0, 2), endTime: rows.int(0, 3), wanted: [], finishedAt: rows.optionalInt(0, 4))
        for row in 0..<rows.rowCount {
            if !rows.isNull(row, 5) { job.wanted.append(TraceID(rows.uuid(row, 5))) }
            if !rows.isNull(row, 6) {
                job.found.append(.init(id: TraceID(rows.uuid(row, 6)), revision: Int(rows.int(row, 7))))
            }
        }
        return job
    }

    /// Takes a scheduled job, or one whose worker died, to run it.
    /// - Returns: whether it is the caller's now.
    public func claimRetrieval(account: AccountID, id: TraceID, now: Micros) async throws(TraceStoreError) -> Bool {
        var statement = PostgresStatement(
            """
            UPDATE retrievals SET status = 'RUNNING', claimed_at = $3
            WHERE account = $1 AND id = $2 AND created_at > $4
              AND (status = 'SCHEDULED' OR status = 'RUNNING' AND claimed_at <= $5)
            """)
        statement.bind(account)
        statement.bind(id)
        statement.bind(now)
        statement.bind(now - RetrievalJob.lifetime)
        statement.bind(now - RetrievalJob.claimLifetime)
        return try await change(statement)[0].affectedRows == 1
    }

    /// Ends a job; one that has ended already (cancelled meanwhile) stays as it is.
    /// - Parameter status: `complete`, `failed` or `cancelled`.
    public func finishRetrieval(
        account: AccountID, id: TraceID, status: RetrievalJob.Status, found: [RetrievalJob.Found] = [], now: Micros
    ) async throws(TraceStoreError) {
        var revisions = PostgresArray.int8
        for trace in found { revisions.append(Int64(trace.revision)) }
        var statement = PostgresStatement(
            """
            UPDATE retrievals SET status = $3, finished_at = $4, found = $5, revisions = $6
            WHERE account = $1 AND id = $2 AND status IN ('SCHEDULED', 'RUNNING')
            """)
        statement.bind(account)
        statement.bind(id)
        statement.bind(text: status.rawValue)
        statement.bind(now)
        statement.bind(found.map(\.id))
        statement.bind(revisions)
        try await change(statement)
    }
}
