// What can go wrong between us and PostgreSQL, with what a caller must know to decide: is it worth a repetition?

public struct PostgresError: Error, Sendable, Equatable, CustomStringConvertible, CustomDebugStringConvertible {
    public enum Code: Sendable, Equatable {
        /// No connection within the time a call may wait for one.
        case cannotConnect
        /// The connection broke while the call was under way; whether it took effect is unknown.
        case connectionLost
        /// No answer in time; the connection was given up.
        case timedOut
        /// The server refused a statement (`sqlState`); nothing of the call took effect.
        case server
        /// The session was closed by us.
        case closed
        /// An answer could not be understood.
        case unexpected
    }

    public var code: Code
    /// Five characters; only with `.server`. Source: PostgreSQL manual, appendix A.
    public var sqlState: String?
    /// Name of the constraint that was violated.
    public var constraint: String?
    public var message: String
    /// Details for a log, never for a user: the statement, the server's hint.
    public var detail: String

    public init(_ code: Code, _ message: String, sqlState: String? = nil, constraint: String? = nil, detail: String = "") {
        self.code = code
        self.message = message
        self.sqlState = sqlState
        self.constraint = constraint
        self.detail = detail
    }

    /// Whether the same call may succeed a little later.
    public var isRetriable: Bool {
        switch code {
        case .cannotConnect, .connectionLost, .timedOut: return true
        case .closed, .unexpected: return false
        case .server:
            guard let sqlState else { return false }
            // Serialization failure, deadlock, lock not available, cancelled, stale prepared statement; then by class:
            // connection, insufficient resources (disk full, too many connections), operator intervention, system.
            if ["40001", "40P01", "55P03", "57014", "0A000", "26000"].contains(sqlState) { return true }
            return ["08", "53", "57", "58"].contains(sqlState.prefix(2))
        }
    }

    public var description: String {
        sqlState.map { "\(message) (SQLSTATE \($0))" } ?? message
    }

    public var debugDescription: String { detail.isEmpty ? description : "\(description): \(detail)" }
}
