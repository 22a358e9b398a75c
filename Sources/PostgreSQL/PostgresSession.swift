// One connection to PostgreSQL. In: calls, each a list of statements that is one transaction. Out: their results, or one
// error. Everything that arrives in a turn of the loop is sent as one pipeline; a lost connection is opened again by
// itself, with a growing pause. Used through `PostgresPool`, or alone where the order of calls matters.

import CPostgreSQL
import Glibc

public actor PostgresSession {
    /// A call under way. Only touched on the loop's thread.
    private final class Call {
        enum Work {
            /// One implicit transaction, one Sync.
            case statements([PostgresStatement])
            /// Any number of statements as text, outside the pipeline (simple query protocol).
            case script(String)
        }

        let work: Work
        let timeout: Duration
        var deadline: ContinuousClock.Instant
        var results: [PostgresResult] = []
        var error: PostgresError?
        let continuation: UnsafeContinuation<Result<[PostgresResult], PostgresError>, Never>

        init(
            _ work: Work, timeout: Duration, deadline: ContinuousClock.Instant,
            _ continuation: UnsafeContinuation<Result<[PostgresResult], PostgresError>, Never>
        ) {
            self.work = work
            self.timeout = timeout
            self.deadline = deadline
            self.continuation = continuation
        }
    }

    /// What the server's answers belong to, in order of sending.
    private enum Step {
        case prepare(Call, sql: String)
        case endOfPrepare
        case statement(Call, index: Int)
        case endOfCall(Call)
        case script(Call)
    }

    private enum State {
        /// No connection; the next attempt is due at the instant.
        case idle(retryAt: ContinuousClock.Instant)
        case connecting(deadline: ContinuousClock.Instant)
        case ready
        case closed
    }

    private let configuration: PostgresConfiguration
    private let loop: PostgresEventLoop
    private let clock = ContinuousClock()

    private var state: State
    private var connection: OpaquePointer?
    private var socket: Int32 = -1
    private var lastConnectError = "no attempt yet"
    private var failedAttempts = 0

    /// Calls not yet sent.
    private var waiting: [Call] = []
    private var steps: [Step] = []
    private var stepIndex = 0
    /// The current step's result has come; libpq still owes the NULL that ends it.
    private var prepared: [String: String] = [:]
    private var preparedCount = 0
    private var isTicking = false
    private var isTurnRequested = false
    private var wantsWrite = false
    private var mustReset = false

    public nonisolated var unownedExecutor: UnownedSerialExecutor { loop.asUnownedSerialExecutor() }

    public init(_ configuration: PostgresConfiguration, loop: PostgresEventLoop = .shared) {
        self.configuration = configuration
        self.loop = loop
        state = .idle(retryAt: clock.now)
    }

    // MARK: Calls

    /// Runs the statements as one transaction, in one round trip: all of them take effect, or none.
    /// - Parameter timeout: how long the server may take; nil = `PostgresConfiguration.statementTimeout`.
    /// - Returns: one result per statement.
    @discardableResult
    public func run(_ statements: [PostgresStatement], timeout: Duration? = nil) async throws(PostgresError) -> [PostgresResult] {
        try await submit(.statements(statements), timeout: timeout ?? configuration.statementTimeout)
    }

    /// Runs one statement.
    @discardableResult
    public func run(_ statement: PostgresStatement, timeout: Duration? = nil) async throws(PostgresError) -> PostgresResult {
        let results = try await run([statement], timeout: timeout)
        guard let result = results.first else { throw PostgresError(.unexpected, "a statement without a result") }
        return result
    }

    /// Runs a text of several statements without parameters (migrations). Without BEGIN it is one transaction.
    public func runScript(_ sql: String, timeout: Duration = .seconds(300)) async throws(PostgresError) {
        _ = try await submit(.script(sql), timeout: timeout)
    }

    /// Ends the session: calls under way fail with `.closed`.
    public func close() {
        fail(PostgresError(.closed, "the session was closed"))
        state = .closed
    }

    private func submit(_ work: Call.Work, timeout: Duration) async throws(PostgresError) -> [PostgresResult] {
        if case .closed = state { throw PostgresError(.closed, "the session is closed") }
        let result = await withUnsafeContinuation { continuation in
            waiting.append(Call(work, timeout: timeout, deadline: clock.now + configuration.queueTimeout, continuation))
            requestTurn()
            startTicking()
        }
        return try result.get()
    }

    private func requestTurn() {
        guard !isTurnRequested else { return }
        isTurnRequested = true
        loop.needsEndOfTurn(self)
    }

    private func startTicking() {
        guard !isTicking else { return }
        isTicking = true
        loop.needsTicks(self)
    }

    // MARK: Connecting

    private func connect() {
        let options = configuration.settings.sorted { $0.key < $1.key }
            .map { "-c \($0.key)=\($0.value)" }
        let milliseconds = configuration.statementTimeout.components.seconds * 1_000
        let pairs: [(String, String)] = [
            ("dbname", configuration.connectionString),
            ("application_name", configuration.applicationName),
            ("options", (options + ["-c statement_timeout=\(milliseconds)"]).joined(separator: " ")),
            ("client_encoding", "UTF8"), ("keepalives_idle", "5"), ("keepalives_interval", "3"),
            ("keepalives_count", "3"),
        ]
        let keywords = pairs.map { strdup($0.0) }
        let values = pairs.map { strdup($0.1) }
        defer { (keywords + values).forEach { free($0) } }
        connection = PQconnectStartParams(
            keywords.map { UnsafePointer($0) } + [nil], values.map { UnsafePointer($0) } + [nil], 1)
        guard let connection, PQstatus(connection) != CONNECTION_BAD else { return connectFailed() }
        PQsetNoticeProcessor(connection, { _, _ in }, nil)
        state = .connecting(deadline: clock.now + configuration.connectTimeout)
        watch(EPOLLOUT.rawValue)
    }

    private func continueConnecting() {
        guard let connection else { return }
        switch PQconnectPoll(connection) {
        case PGRES_POLLING_READING: watch(EPOLLIN.rawValue)
        case PGRES_POLLING_WRITING: watch(EPOLLOUT.rawValue)
        case PGRES_POLLING_OK:
            guard PQsetnonblocking(connection, 1) == 0, PQenterPipelineMode(connection) == 1 else {
                return connectFailed()
            }
            state = .ready
            failedAttempts = 0
            wantsWrite = false
            watch(EPOLLIN.rawValue)
            send()
        default: connectFailed()
        }
    }

    private func connectFailed() {
        lastConnectError = connection.map { errorText(of: $0) } ?? "out of memory"
        dropConnection()
        failedAttempts += 1
        // 50 ms, 100 ms, … 1 s: quick enough for a restart of PostgreSQL, slow enough not to drown one that struggles.
        state = .idle(retryAt: clock.now + .milliseconds(min(1_000, 25 << min(failedAttempts, 6))))
        startTicking()
    }

    private func watch(_ events: UInt32) {
        guard let connection else { return }
        let current = PQsocket(connection)
        if current != socket, socket >= 0 { loop.unwatch(socket) }
        socket = current
        if socket >= 0 { loop.watch(socket, events, for: self) }
    }

    private func dropConnection() {
        if socket >= 0 { loop.unwatch(socket) }
        socket = -1
        if let connection { PQfinish(connection) }
        connection = nil
        prepared.removeAll()
        steps.removeAll()
        stepIndex = 0
        mustReset = false
    }

    private func errorText(of connection: OpaquePointer) -> String {
        guard let text = PQerrorMessage(connection) else { return "" }
        var message = String(cString: text)
        while message.last?.isNewline == true { message.removeLast() }
        return message
    }

    /// Gives the connection up; calls that were sent fail, calls that were not wait for the next one.
    private func lose(_ error: PostgresError) {
        var calls: [Call] = []
        for step in steps[stepIndex...] {
            switch step {
            case .endOfCall(let call), .script(let call): calls.append(call)
            case .prepare, .endOfPrepare, .statement: break
            }
        }
        dropConnection()
        if case .closed = state { return }
        state = .idle(retryAt: clock.now)
        for call in calls { call.continuation.resume(returning: .failure(error)) }
        requestTurn()
        startTicking()
    }

    private func fail(_ error: PostgresError) {
        lose(error)
        let calls = waiting
        waiting.removeAll()
        for call in calls { call.continuation.resume(returning: .failure(error)) }
    }

    // MARK: Sending

    private func send() {
        guard case .ready = state, let connection, !waiting.isEmpty, !mustReset else { return }
        var index = 0
        sending: while index < waiting.count {
            let call = waiting[index]
            switch call.work {
            case .script(let sql):
                // The simple protocol needs the connection for itself.
                guard stepIndex == steps.count else { break sending }
                index += 1
                call.deadline = clock.now + call.timeout
                steps.append(.script(call))
                guard PQexitPipelineMode(connection) == 1, PQsendQuery(connection, sql) == 1 else {
                    waiting.removeFirst(index)
                    return lose(PostgresError(.connectionLost, errorText(of: connection)))
                }
                break sending
            case .statements(let statements):
                if case .script? = steps.last, stepIndex < steps.count { break sending }
                index += 1
                call.deadline = clock.now + call.timeout
                guard enqueue(statements, of: call, on: connection) else {
                    steps.append(.endOfCall(call))
                    waiting.removeFirst(index)
                    return lose(PostgresError(.connectionLost, errorText(of: connection)))
                }
            }
        }
        waiting.removeFirst(index)
        flush()
    }

    private func enqueue(_ statements: [PostgresStatement], of call: Call, on connection: OpaquePointer) -> Bool {
        // Preparing has a Sync of its own: an error inside the call must not undo what later calls rely on.
        for statement in statements where statement.isPrepared && prepared[statement.sql] == nil {
            preparedCount += 1
            let name = "s\(preparedCount)"
            prepared[statement.sql] = name
            let isQueued = statement.withParameters { count, _, _, _, types in
                PQsendPrepare(connection, name, statement.sql, count, types)
            }
            guard isQueued == 1, PQpipelineSync(connection) == 1 else { return false }
            steps.append(.prepare(call, sql: statement.sql))
            steps.append(.endOfPrepare)
        }
        for (index, statement) in statements.enumerated() {
            let isQueued = statement.withParameters { count, values, lengths, formats, types in
                if statement.isPrepared, let name = prepared[statement.sql] {
                    return PQsendQueryPrepared(connection, name, count, values, lengths, formats, 1)
                }
                return PQsendQueryParams(connection, statement.sql, count, types, values, lengths, formats, 1)
            }
            guard isQueued == 1 else { return false }
            steps.append(.statement(call, index: index))
        }
        guard PQpipelineSync(connection) == 1 else { return false }
        steps.append(.endOfCall(call))
        return true
    }

    private func flush() {
        guard case .ready = state, let connection else { return }
        let status = PQflush(connection)
        if status < 0 { return lose(PostgresError(.connectionLost, errorText(of: connection))) }
        let needsWrite = status == 1
        guard needsWrite != wantsWrite else { return }
        wantsWrite = needsWrite
        watch(needsWrite ? EPOLLIN.rawValue | EPOLLOUT.rawValue : EPOLLIN.rawValue)
    }

    // MARK: Receiving

    private func receive() {
        guard let connection else { return }
        guard PQconsumeInput(connection) == 1 else {
            return lose(PostgresError(.connectionLost, errorText(of: connection)))
        }
        while stepIndex < steps.count, PQisBusy(connection) == 0 {
            let step = steps[stepIndex]
            guard let raw = PQgetResult(connection) else {
                // NULL ends the results of a statement; a Sync has none.
                if PQstatus(connection) == CONNECTION_BAD { break }
                switch step {
                case .prepare, .statement: stepIndex += 1
                case .script(let call):
                    stepIndex += 1
                    guard PQenterPipelineMode(connection) == 1 else {
                        steps.append(.endOfCall(call))
                        return lose(PostgresError(.connectionLost, errorText(of: connection)))
                    }
                    finish(call)
                case .endOfPrepare, .endOfCall: break
                }
                continue
            }
            take(PostgresResult(owning: raw), status: PQresultStatus(raw), raw: raw, for: step)
            if PQstatus(connection) == CONNECTION_BAD { break }
        }
        if PQstatus(connection) == CONNECTION_BAD {
            return lose(PostgresError(.connectionLost, "the connection to PostgreSQL broke: \(errorText(of: connection))"))
        }
        if stepIndex == steps.count {
            steps.removeAll(keepingCapacity: true)
            stepIndex = 0
            if mustReset { return lose(PostgresError(.connectionLost, "the session was reset")) }
        }
        if !waiting.isEmpty { send() } else { flush() }
    }

    private func take(_ result: PostgresResult, status: ExecStatusType, raw: OpaquePointer, for step: Step) {
        switch (status, step) {
        case (PGRES_PIPELINE_SYNC, .endOfPrepare):
            stepIndex += 1
        case (PGRES_PIPELINE_SYNC, .endOfCall(let call)):
            stepIndex += 1
            finish(call)
        case (PGRES_FATAL_ERROR, .prepare(let call, let sql)):
            prepared[sql] = nil
            call.error = call.error ?? serverError(raw, statement: sql)
        case (PGRES_FATAL_ERROR, .statement(let call, let index)):
            guard call.error == nil else { return }
            var sql = ""
            if case .statements(let statements) = call.work { sql = statements[index].sql }
            let error = serverError(raw, statement: sql)
            call.error = error
            // A plan or a name the server no longer honours: start over with a clean session.
            if error.sqlState == "0A000" || error.sqlState == "26000" { mustReset = true }
        case (PGRES_FATAL_ERROR, .script(let call)):
            call.error = call.error ?? serverError(raw, statement: "a script")
        case (PGRES_TUPLES_OK, .statement(let call, _)), (PGRES_COMMAND_OK, .statement(let call, _)),
            (PGRES_EMPTY_QUERY, .statement(let call, _)):
            call.results.append(result)
        default:
            // PGRES_PIPELINE_ABORTED after an error, results of a script: nothing to keep.
            break
        }
    }

    private func serverError(_ raw: OpaquePointer, statement: String) -> PostgresError {
        func field(_ code: Character) -> String? {
            PQresultErrorField(raw, Int32(code.asciiValue ?? 0)).map { String(cString: $0) }
        }
        // Field codes: PostgreSQL manual, "Error and Notice Message Fields".
        let message = field("M") ?? "PostgreSQL gave an error without a message"
        guard let state = field("C") else { return PostgresError(.connectionLost, message) }
        let details = [field("D"), field("H"), field("W"), statement].compactMap { $0 }.joined(separator: " | ")
        return PostgresError(.server, message, sqlState: state, constraint: field("n"), detail: details)
    }

    private func finish(_ call: Call) {
        if let error = call.error {
            call.continuation.resume(returning: .failure(error))
        } else {
            call.continuation.resume(returning: .success(call.results))
        }
    }

    // MARK: Turns and ticks

    private func turnEnded() {
        isTurnRequested = false
        if case .idle(let retryAt) = state, !waiting.isEmpty, clock.now >= retryAt { connect() }
        send()
    }

    private func ticked() -> Bool {
        let now = clock.now
        switch state {
        case .connecting(let deadline) where now >= deadline:
            connectFailed()
            lastConnectError = "no answer for \(configuration.connectTimeout)"
        case .idle(let retryAt) where now >= retryAt && !waiting.isEmpty: connect()
        case .ready:
            if stepIndex < steps.count, let deadline = deadline(of: steps[stepIndex]), now >= deadline + .seconds(1) {
                lose(PostgresError(.timedOut, "PostgreSQL did not answer in time; the connection was given up"))
            }
        default: break
        }
        // A call that waits for a running script is not waiting for a connection.
        if case .ready = state {} else {
            let expired = waiting.prefix { $0.deadline <= now }
            waiting.removeFirst(expired.count)
            for call in expired {
                call.continuation.resume(
                    returning: .failure(PostgresError(.cannotConnect, "cannot connect to PostgreSQL: \(lastConnectError)")))
            }
        }
        var isNeeded = !waiting.isEmpty || stepIndex < steps.count
        if case .connecting = state { isNeeded = true }
        isTicking = isNeeded
        return isNeeded
    }

    private func deadline(of step: Step) -> ContinuousClock.Instant? {
        switch step {
        case .prepare(let call, _), .statement(let call, _), .endOfCall(let call), .script(let call): call.deadline
        case .endOfPrepare: nil
        }
    }
}

// The loop calls on its own thread, which is this actor's executor.
extension PostgresSession: EventLoopMember {
    nonisolated func socketIsReady(_ events: UInt32) {
        assumeIsolated {
            switch $0.state {
            case .connecting: $0.continueConnecting()
            case .ready:
                if events & EPOLLOUT.rawValue != 0 { $0.flush() }
                $0.receive()
            case .idle, .closed: break
            }
        }
    }

    nonisolated func endTurn() { assumeIsolated { $0.turnEnded() } }

    nonisolated func tick() -> Bool { assumeIsolated { $0.ticked() } }
}
