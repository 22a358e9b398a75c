// A server on a free port with one account, one key and a few operations, for the duration of a test.

import APIServer
import AccessControl
import Crypto
import Logging
import NIOCore
import Segments
import ServiceLifecycle
import Synchronization
import XRayAPI

let ownAccount = AccountID(rawValue: 111_122_223_333)
let otherAccount = AccountID(rawValue: 210_987_654_321)

struct TestDirectory: CredentialDirectory {
    static let adminKey = AccessKey(id: "AKIAADMIN00000000001", secret: SecretKey("admin-secret"))
    static let writeKey = AccessKey(id: "AKIAWRITE00000000001", secret: SecretKey("write-secret"))
    /// The directory fails when it is asked for this key.
    static let brokenKey = AccessKey(id: "AKIABROKEN0000000001", secret: SecretKey("broken-secret"))

    struct Unreachable: Error {}

    func credential(for accessKeyID: String) async throws -> Credential? {
        if accessKeyID == Self.brokenKey.id { throw Unreachable() }
        for (key, role) in [(Self.adminKey, Role.admin), (Self.writeKey, Role.write)] where key.id == accessKeyID {
            return Credential(
                accessKeyID: key.id, secret: key.secret, principalARN: PrincipalARN.root(of: ownAccount),
                account: ownAccount, role: role)
        }
        return nil
    }

    func accountState(of account: AccountID) async throws -> AccountState? {
        account == ownAccount || account == otherAccount ? .active : nil
    }
}

/// Opened by a test to let waiting handlers go on; remembers who waits.
final class Gate: Sendable {
    private struct State {
        var isOpen = false
        var waiting: [CheckedContinuation<Void, Never>] = []
        var arrivals = 0
        var observers: [(count: Int, continuation: CheckedContinuation<Void, Never>)] = []
    }

    private let state = Mutex(State())

    func pass() async {
        await withCheckedContinuation { continuation in
            let (resumed, passes) = state.withLock { state in
                state.arrivals += 1
                let reached = state.observers.filter { $0.count <= state.arrivals }.map(\.continuation)
                state.observers.removeAll { $0.count <= state.arrivals }
                if !state.isOpen { state.waiting.append(continuation) }
                return (reached, state.isOpen)
            }
            for continuation in resumed { continuation.resume() }
            if passes { continuation.resume() }
        }
    }

    func open() {
        let waiting = state.withLock { state in
            state.isOpen = true
            defer { state.waiting = [] }
            return state.waiting
        }
        for continuation in waiting { continuation.resume() }
    }

    /// Waits until that many handlers have come to the gate.
    func arrived(_ count: Int) async {
        await withCheckedContinuation { continuation in
            let isThere = state.withLock { state in
                if state.arrivals >= count { return true }
                state.observers.append((count, continuation))
                return false
            }
            if isThere { continuation.resume() }
        }
    }
}

/// Waits until a condition holds, at most 20 s.
func eventually(_ condition: () -> Bool) async -> Bool {
    let deadline = ContinuousClock.now + .seconds(20)
    while !condition() {
        if ContinuousClock.now > deadline { return false }
        try? await Task.sleep(for: .milliseconds(5))
    }
    return true
}

final class Observations: Sendable {
    private let all = Mutex<[String]>([])
    func add(_ operation: String, _ status: Int) { all.withLock { $0.append("\(operation) \(status)") } }
    var list: [String] { all.withLock { $0 } }
}

/// Collects lines like `error cannot …`.
final class Logs: LogHandler, Sendable {
    private let lines = Mutex<[String]>([])
    var list: [String] { lines.withLock { $0 } }

    var logLevel: Logger.Level {
        get { .info }
        set {}
    }
    var metadata: Logger.Metadata {
        get { [:] }
        set {}
    }
    subscript(metadataKey _: String) -> Logger.Metadata.Value? {
        get { nil }
        set {}
    }
    func log(event: LogEvent) { lines.withLock { $0.append("\(event.level) \(event.message)") } }
}

struct TestServer: Sendable {
    var port: Int
    var gate: Gate
    var observations: Observations
    var bytesInFlight: @Sendable () -> Int
    var logs: Logs
    var reloadCertificates: @Sendable () -> Void
    /// Begins graceful shutdown.
    var shutDown: @Sendable () async -> Void

    func connect() throws -> RawClient { try RawClient(port: port) }

    /// A complete signed request.
    func signed(
        _ target: String, body: [UInt8] = Array("{}".utf8), headers: [HeaderField] = [],
        key: AccessKey = TestDirectory.adminKey,
        method: String = "POST", host: String? = nil
    ) -> [UInt8] {
        let head = signedHead(target, body: body, headers: headers, key: key, method: method, host: host)
        return Array((head + "Content-Length: \(body.count)\r\n\r\n").utf8) + body
    }

    /// The request line and headers without the framing of the body and the empty line.
    func signedHead(
        _ target: String, body: [UInt8] = Array("{}".utf8), headers: [HeaderField] = [],
        key: AccessKey = TestDirectory.adminKey,
        method: String = "POST", host: String? = nil
    ) -> String {
        let host = host ?? "127.0.0.1:\(port)"
        let added = RequestSigner(accessKeyID: key.id, secret: key.secret).headers(
            method: method, target: target, host: host, headers: headers, body: body, now: SystemClock.now())
        let lines = ([("Host", host)] + headers + added).map { "\($0.0): \($0.1)\r\n" }
        return "\(method) \(target) HTTP/1.1\r\n" + lines.joined()
    }

    /// Sends bytes on a connection of their own and returns the first response.
    func exchange(_ bytes: [UInt8]) async throws -> RawResponse {
        try await onThread {
            let client = try connect()
            try client.send(bytes)
            return try client.response()
        }
    }

    func exchange(_ text: String) async throws -> RawResponse { try await exchange(Array(text.utf8)) }
}

func withServer<Result: Sendable>(
    _ change: (inout APIServiceConfiguration) -> Void = { _ in }, isReady: @escaping @Sendable () -> Bool = { true },
    _ use: @escaping @Sendable (TestServer) async throws -> Result
) async throws -> Result {
    var configuration = APIServiceConfiguration(port: 0)
    configuration.hostSuffix = "xray.example.test"
    change(&configuration)

    let gate = Gate()
    let observations = Observations()
    let logs = Logs()
    let operations = [
        Operation(name: "PutTraceSegments", path: "/TraceSegments", class: .ingest) { request in
            OperationResponse(
                body: Array("{\"length\":\(request.body.readableBytes),\"account\":\"\(request.account)\"}".utf8),
                cost: 3)
        },
        Operation(name: "GetTraceSummaries", path: "/TraceSummaries", class: .query) { request in
            await gate.pass()
            return OperationResponse(
                body: request.withBody { Array($0) }, headers: [("x-beamline-complete-to", "2024-05-01T12:00:00Z")])
        },
        Operation(name: "GetServiceGraph", path: "/ServiceGraph", class: .query) { _ throws(APIError) in
            throw .invalidRequest("Group not found.")
        },
        Operation(name: "GetTraceGraph", path: "/TraceGraph", class: .query) { _ throws(APIError) in
            throw .internalFailure()
        },
        Operation(name: "BatchGetTraces", path: "/Traces", class: .query) { _ in
            OperationResponse(body: [UInt8](repeating: UInt8(ascii: " "), count: 8 << 20) + Array("{}".utf8))
        },
    ]
    let (ports, port) = AsyncStream.makeStream(of: Int.self)
    let service = APIService(
        operations: operations, directory: TestDirectory(), configuration: configuration, isReady: isReady,
        observe: { operation, status, seconds in
            precondition(seconds >= 0)
            observations.add(operation, status)
        },
        onListening: { _, bound in port.yield(bound) },
        logger: Logger(label: "test") { _ in logs })
    let group = ServiceGroup(
        configuration: .init(services: [service], logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() }))
    return try await withThrowingTaskGroup(of: Result?.self) { tasks in
        tasks.addTask {
            try await group.run()
            port.finish()
            return nil
        }
        tasks.addTask {
            var iterator = ports.makeAsyncIterator()
            guard let bound = await iterator.next() else {
                throw RawClientError(description: "the server did not start")
            }
            defer { gate.open() }
            let server = TestServer(
                port: bound, gate: gate, observations: observations, bytesInFlight: { service.bytesInFlight },
                logs: logs, reloadCertificates: { service.reloadCertificates() },
                shutDown: { await group.triggerGracefulShutdown() })
            do {
                let result = try await use(server)
                gate.open()
                await group.triggerGracefulShutdown()
                return result
            } catch {
                gate.open()
                await group.triggerGracefulShutdown()
                throw error
            }
        }
        var result: Result?
        while let finished = try await tasks.next() { result = finished ?? result }
        guard let result else { throw RawClientError(description: "the server ended before the test") }
        return result
    }
}
