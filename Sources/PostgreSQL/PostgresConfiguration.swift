// How to reach PostgreSQL and how long to wait for it. Made by the executable, given to the log and the store.

public struct PostgresConfiguration: Sendable {
    /// A libpq URI (`postgresql://user@host/db`) or keyword string (`host=/run/x dbname=y`).
    /// Use an address or a socket folder: libpq resolves host names on the session's thread.
    public var connectionString: String
    public var applicationName = "beamline"
    /// Longest wait for one connection attempt.
    public var connectTimeout: Duration = .seconds(5)
    /// How long a call waits for a connection before it fails with `.cannotConnect`.
    public var queueTimeout: Duration = .milliseconds(1500)
    /// How long a call may run on the server before the session is given up (`statement_timeout` is set to the same).
    public var statementTimeout: Duration = .seconds(30)
    /// Server settings of each session. The defaults pin the plans to index scans: every query of ours is one, and a
    /// prepared plan made while the tables were small must not stay a sequential scan. Memoize
    /// (PostgreSQL 14) would take whole columns of search segments, megabytes each, for keys of its cache.
    public var settings: [String: String] = [
        "enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off", "enable_memoize": "off", "jit": "off",
        "max_parallel_workers_per_gather": "0", "timezone": "UTC", "client_min_messages": "warning",
    ]

    public init(_ connectionString: String) { self.connectionString = connectionString }
}
