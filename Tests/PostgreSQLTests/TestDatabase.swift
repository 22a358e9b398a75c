// A real PostgreSQL for the tests of the adapters: the server of BEAMLINE_TEST_DATABASE_URL, or a private one that lives
// as long as the test process. Every test gets a schema of its own. The other test targets link to this file.

import Dispatch
import Glibc
import Logging
import PostgreSQL
import PrivatePostgreSQL
import Synchronization

actor TestServer {
    static let shared = TestServer()

    private var starting: Task<String, any Error>?

    /// A connection string; the server is started by the first caller.
    func connectionString() async throws -> String {
        if let url = getenv("BEAMLINE_TEST_DATABASE_URL") { return String(cString: url) }
        let task = starting ?? Task { try await PrivateServer.start().connectionString }
        starting = task
        return try await task.value
    }
}

/// A cluster in a fresh folder, removed when the process ends.
struct PrivateServer: Sendable {
    let cluster: PrivateCluster
    let folder: String

    var connectionString: String { PrivateCluster.connectionString(dataFolder: folder) }

    static func start() async throws -> PrivateServer {
        var template = Array("/tmp/beamline-test-XXXXXX".utf8CString)
        guard let path = mkdtemp(&template) else { throw PostgresError(.unexpected, "mkdtemp failed: \(errno)") }
        let folder = String(cString: path)
        var logger = Logger(label: "test-postgresql")
        logger.logLevel = .critical
        let server = PrivateServer(cluster: PrivateCluster(dataFolder: folder, logger: logger), folder: folder)
        try await server.cluster.start()
        ExitWork.add(server)
        return server
    }

    /// Of the postmaster, nil while it is being restarted.
    var processID: Int32? { cluster.processID }

    func stop() async { await cluster.stop() }

    /// Removes the folder of a server that has ended.
    fileprivate func remove() {
        var pid = pid_t()
        let words: [String] = ["rm", "-rf", folder]
        var arguments: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) }
        arguments.append(nil)
        defer { arguments.forEach { free($0) } }
        if posix_spawnp(&pid, "rm", nil, nil, arguments, environ) == 0 { waitpid(pid, nil, 0) }
    }
}

/// Servers to be ended when the test process exits: nothing of a test run stays behind.
private enum ExitWork {
    static let servers = Mutex<[PrivateServer]>([])
    static let registered: Void = {
        atexit {
            let ended = DispatchSemaphore(value: 0)
            let servers = ExitWork.servers.withLock { $0 }
            for server in servers {
                Task.detached {
                    await server.stop()
                    ended.signal()
                }
            }
            for _ in servers { _ = ended.wait(timeout: .now() + 10) }
            for server in servers { server.remove() }
        }
    }()

    static func add(_ server: PrivateServer) {
        registered
        servers.withLock { $0.append(server) }
    }
}

private func database(_ given: String?) async throws -> String {
    if let given { return given }
    return try await TestServer.shared.connectionString()
}

/// Runs the body with an empty schema of its own and drops it afterwards.
func withDatabase(
    on connectionString: String? = nil, _ body: (PostgresConfiguration) async throws -> Void
) async throws {
    var configuration = PostgresConfiguration(
        try await database(connectionString))
    configuration.queueTimeout = .seconds(20)
    let schema = "test_\(UInt64.random(in: 0 ... .max))"
    let owner = PostgresSession(configuration)
    try await owner.runScript("CREATE SCHEMA \(schema)")
    configuration.settings["search_path"] = schema
    do {
        try await body(configuration)
    } catch {
        try? await owner.runScript("DROP SCHEMA \(schema) CASCADE")
        await owner.close()
        throw error
    }
    try await owner.runScript("DROP SCHEMA \(schema) CASCADE")
    await owner.close()
}

let quietLogger: Logger = {
    var logger = Logger(label: "test")
    logger.logLevel = .critical
    return logger
}()

/// Waits until a condition holds, at most 20 s.
func eventually(_ condition: () async throws -> Bool) async throws -> Bool {
    let deadline = ContinuousClock.now + .seconds(20)
    while ContinuousClock.now < deadline {
        if try await condition() { return true }
        try await Task.sleep(for: .milliseconds(10))
    }
    return false
}
