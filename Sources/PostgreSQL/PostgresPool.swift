// Several sessions as one: a call goes to the session with the fewest calls under way. Nothing is checked out, because a
// call is a whole transaction.

import Synchronization

public final class PostgresPool: Sendable {
    private final class Member: Sendable {
        let session: PostgresSession
        let load = Atomic<Int>(0)
        init(_ session: PostgresSession) { self.session = session }
    }

    private let members: [Member]
    private let calls = Atomic<Int>(0)

    /// Connections are opened when they are first needed.
    public init(_ configuration: PostgresConfiguration, sessionCount: Int, loop: PostgresEventLoop = .shared) {
        members = (0..<max(1, sessionCount)).map { _ in Member(PostgresSession(configuration, loop: loop)) }
    }

    /// Round trips made so far, for metrics.
    public var roundTrips: Int { calls.load(ordering: .relaxed) }

    /// Runs the statements as one transaction in one round trip (`PostgresSession.run`).
    @discardableResult
    public func run(_ statements: [PostgresStatement], timeout: Duration? = nil) async throws(PostgresError) -> [PostgresResult] {
        var best = members[0]
        var bestLoad = Int.max
        for member in members {
            let load = member.load.load(ordering: .relaxed)
            if load < bestLoad { (best, bestLoad) = (member, load) }
        }
        best.load.wrappingAdd(1, ordering: .relaxed)
        calls.wrappingAdd(1, ordering: .relaxed)
        defer { best.load.wrappingSubtract(1, ordering: .relaxed) }
        return try await best.session.run(statements, timeout: timeout)
    }

    @discardableResult
    public func run(_ statement: PostgresStatement, timeout: Duration? = nil) async throws(PostgresError) -> PostgresResult {
        let results = try await run([statement], timeout: timeout)
        guard let result = results.first else { throw PostgresError(.unexpected, "a statement without a result") }
        return result
    }

    public func close() async {
        for member in members { await member.session.close() }
    }
}
