// Kafka brokers for the tests, each a process of its own on loopback that ends with the test process: noida-db (from PyPI;
// real topics, retention, admin calls) and `MockKafka` (librdkafka's mock brokers, which fail on command).

import CKafka
import Foundation
import Glibc
import Synchronization

@testable import SegmentLog

struct TestKafkaError: Error, CustomStringConvertible {
    var description: String
}

/// A child process that reads commands from a pipe, and so notices when we are gone.
final class BrokerProcess: @unchecked Sendable {
    // Used by one test at a time.
    private var pid = pid_t()
    private let ours: Int32

    init(_ words: [String]) throws {
        var ends: [Int32] = [-1, -1]
        // Not inherited by other children, or the end of one's input would never come.
        guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &ends) == 0 else {
            throw TestKafkaError(description: "no socket: \(errno)")
        }
        ours = ends[0]
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_adddup2(&actions, ends[1], 0)
        posix_spawn_file_actions_adddup2(&actions, ends[1], 1)
        posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0)
        var arguments: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) } + [nil]
        defer { arguments.forEach { free($0) } }
        // Threads of the Swift runtime block signals, and a child inherits that.
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var noSignals = sigset_t()
        sigemptyset(&noSignals)
        posix_spawnattr_setsigmask(&attributes, &noSignals)
        posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK))
        let failure = posix_spawnp(&pid, words[0], &actions, &attributes, &arguments, environ)
        close(ends[1])
        if failure != 0 { throw TestKafkaError(description: "\(words[0]) does not start: \(failure)") }
    }

    var isRunning: Bool { kill(pid, 0) == 0 && waitpid(pid, nil, WNOHANG) == 0 }

    func readLine() -> String {
        var line: [UInt8] = []
        var byte: UInt8 = 0
        while read(ours, &byte, 1) == 1, byte != UInt8(ascii: "\n") { line.append(byte) }
        return String(decoding: line, as: UTF8.self)
    }

    func write(_ line: String) {
        let bytes = Array((line + "\n").utf8)
        _ = send(ours, bytes, bytes.count, Int32(MSG_NOSIGNAL))
    }

    func stop() {
        kill(pid, SIGKILL)
        waitpid(pid, nil, 0)
        close(ours)
    }
}

/// librdkafka's mock brokers.
final class MockKafka: Sendable {
    let brokers: String
    private let process: BrokerProcess

    init(brokerCount: Int, topics: [(name: String, partitions: Int)] = []) throws {
        let folder = Bundle.main.executableURL?.deletingLastPathComponent().path ?? "."
        let candidates = [folder, FileManager.default.currentDirectoryPath + "/.build/debug"]
        guard let path = candidates.map({ $0 + "/MockKafka" }).first(where: FileManager.default.isExecutableFile) else {
            throw TestKafkaError(description: "MockKafka is not built")
        }
        process = try BrokerProcess([path, "\(brokerCount)"] + topics.flatMap { [$0.name, "\($0.partitions)"] })
        brokers = process.readLine()
        if brokers.isEmpty { throw TestKafkaError(description: "MockKafka does not start") }
    }

    /// See `MockKafka/main.c`.
    func command(_ line: String) throws {
        process.write(line)
        let answer = process.readLine()
        if answer != "ok" { throw TestKafkaError(description: "MockKafka: \(line): \(answer)") }
    }

    func stop() { process.stop() }
}

/// One noida-db for all tests of the process.
actor NoidaKafka {
    static let shared = NoidaKafka()
    private var starting: Task<String, any Error>?

    func brokers() async throws -> String {
        let task = starting ?? Task { try await Self.start() }
        starting = task
        return try await task.value
    }

    private static func start() async throws -> String {
        let own = FileManager.default.currentDirectoryPath + "/.build/python/bin/python3"
        let python = FileManager.default.isExecutableFile(atPath: own) ? own : "python3"
        let find = """
            import noida_db, os
            path = os.path.join(os.path.dirname(noida_db.__file__), "noida-db")
            os.chmod(path, 0o755)
            print(path)
            """
        let finder = try BrokerProcess([python, "-c", find])
        let program = finder.readLine()
        finder.stop()
        guard !program.isEmpty else {
            throw TestKafkaError(description: "noida-db is not installed: run deploy/install-dependencies test")
        }
        let port = try freePort()
        let script = """
            folder=$(mktemp -d /tmp/beamline-noida-XXXXXX)
            "$0" start --data-dir "$folder" --only kafka --kafka-port "$1" >/dev/null 2>&1 &
            server=$!
            cat >/dev/null
            kill -9 "$server"; wait "$server"; rm -rf "$folder"
            """
        let process = try BrokerProcess(["/bin/sh", "-c", script, program, "\(port)"])
        running.withLock { $0.append(process) }
        for _ in 0..<1_000 {
            if canConnect(port) { return "127.0.0.1:\(port)" }
            guard process.isRunning else { break }
            try await Task.sleep(for: .milliseconds(10))
        }
        throw TestKafkaError(description: "noida-db does not start")
    }

    private static let running = Mutex<[BrokerProcess]>([])

    /// Below the ports that the kernel gives to clients.
    private static func freePort() throws -> Int {
        for _ in 0..<100 {
            let port = Int.random(in: 20_000..<32_000)
            if !canConnect(port) { return port }
        }
        throw TestKafkaError(description: "no free port")
    }

    private static func canConnect(_ port: Int) -> Bool {
        let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        defer { close(descriptor) }
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = in_port_t(port).bigEndian
        address.sin_addr.s_addr = inet_addr("127.0.0.1")
        return withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) == 0
            }
        }
    }
}

/// A plain client, to do what Beamline does not: write odd records, remove records.
final class PlainKafka: @unchecked Sendable {
    // librdkafka guards its handle.
    let client: OpaquePointer
    let brokers: String
    let topic: String
    private var isTransactional = false

    init(brokers: String, topic: String, settings: [String: String] = [:]) throws {
        let configuration = rd_kafka_conf_new()
        for (name, value) in settings.merging(["bootstrap.servers": brokers], uniquingKeysWith: { $1 }) {
            guard rd_kafka_conf_set(configuration, name, value, nil, 0) == RD_KAFKA_CONF_OK else {
                throw TestKafkaError(description: "setting \(name)")
            }
        }
        rd_kafka_conf_set_log_cb(configuration, nil)
        guard let client = rd_kafka_new(RD_KAFKA_PRODUCER, configuration, nil, 0) else {
            throw TestKafkaError(description: "no client")
        }
        self.client = client
        self.brokers = brokers
        self.topic = topic
    }

    deinit { rd_kafka_destroy(client) }

    /// Writes one record as it is.
    func write(partition: Int, key: [UInt8]?, value: [UInt8]?, headers: [(String, String?)] = []) throws {
        let handle = rd_kafka_topic_new(client, topic, nil)
        defer { rd_kafka_topic_destroy(handle) }
        let names = headers.map { strdup($0.0) }
        let texts = headers.map { $0.1.map { Array($0.utf8) + [0] } }
        defer { names.forEach { free($0) } }
        let kept = texts.map { text in
            text.map { text in
                let copy = UnsafeMutableBufferPointer<UInt8>.allocate(capacity: text.count)
                _ = copy.initialize(from: text)
                return copy
            }
        }
        defer { kept.forEach { $0?.deallocate() } }
        var list = zip(names, kept).map { name, text in
            ckafka_header(name: name, value: UnsafeRawPointer(text?.baseAddress), size: max(0, (text?.count ?? 1) - 1))
        }
        let dummy: [UInt8] = [0]
        let code = dummy.withUnsafeBytes { dummy in
            (key ?? []).withUnsafeBytes { keyBytes in
                (value ?? []).withUnsafeBytes { valueBytes in
                    ckafka_produce(
                        client, handle, Int32(partition), key == nil ? nil : keyBytes.baseAddress ?? dummy.baseAddress,
                        keyBytes.count,
                        value == nil ? nil : valueBytes.baseAddress ?? dummy.baseAddress, valueBytes.count,
                        1_700_000_000_000,
                        &list, list.count, nil)
                }
            }
        }
        guard code == RD_KAFKA_RESP_ERR_NO_ERROR else {
            throw TestKafkaError(description: "produce: \(KafkaClient.text(code))")
        }
    }

    func inTransaction(commits: Bool, _ body: () throws -> Void) throws {
        func check(_ error: OpaquePointer?) throws {
            guard let error else { return }
            defer { rd_kafka_error_destroy(error) }
            throw TestKafkaError(description: String(cString: rd_kafka_error_string(error)))
        }
        if !isTransactional {
            try check(rd_kafka_init_transactions(client, 10_000))
            isTransactional = true
        }
        try check(rd_kafka_begin_transaction(client))
        try body()
        try flush()
        try check(commits ? rd_kafka_commit_transaction(client, 10_000) : rd_kafka_abort_transaction(client, 10_000))
    }

    /// Offsets committed to a consumer group.
    func committed(partitions: Int, group: String) throws -> [Int64] {
        let configuration = rd_kafka_conf_new()
        rd_kafka_conf_set(configuration, "bootstrap.servers", brokers, nil, 0)
        rd_kafka_conf_set(configuration, "group.id", group, nil, 0)
        guard let consumer = rd_kafka_new(RD_KAFKA_CONSUMER, configuration, nil, 0) else {
            throw TestKafkaError(description: "no client")
        }
        defer { rd_kafka_destroy(consumer) }
        let list = rd_kafka_topic_partition_list_new(Int32(partitions))
        defer { rd_kafka_topic_partition_list_destroy(list) }
        for partition in 0..<partitions { rd_kafka_topic_partition_list_add(list, topic, Int32(partition)) }
        let code = rd_kafka_committed(consumer, list, 10_000)
        guard code == RD_KAFKA_RESP_ERR_NO_ERROR, let list else {
            throw TestKafkaError(description: KafkaClient.text(code))
        }
        return (0..<partitions).map { list.pointee.elems[$0].offset }
    }

    func flush() throws {
        guard rd_kafka_flush(client, 10_000) == RD_KAFKA_RESP_ERR_NO_ERROR else {
            throw TestKafkaError(description: "flush")
        }
    }

    func createTopic(partitions: Int, settings: [String: String]) throws {
        var request = rd_kafka_NewTopic_new(topic, Int32(partitions), 1, nil, 0)
        defer { rd_kafka_NewTopic_destroy(request) }
        for (name, value) in settings { rd_kafka_NewTopic_set_config(request, name, value) }
        try administer { queue in rd_kafka_CreateTopics(client, &request, 1, nil, queue) }
    }

    /// Removes what lies before an offset, as retention does.
    func removeRecords(partition: Int, before offset: Int64) throws {
        let list = rd_kafka_topic_partition_list_new(1)
        defer { rd_kafka_topic_partition_list_destroy(list) }
        rd_kafka_topic_partition_list_add(list, topic, Int32(partition)).pointee.offset = offset
        var request = rd_kafka_DeleteRecords_new(list)
        defer { rd_kafka_DeleteRecords_destroy(request) }
        try administer { queue in rd_kafka_DeleteRecords(client, &request, 1, nil, queue) }
    }

    private func administer(_ send: (OpaquePointer?) -> Void) throws {
        let queue = rd_kafka_queue_new(client)
        defer { rd_kafka_queue_destroy(queue) }
        send(queue)
        guard let event = rd_kafka_queue_poll(queue, 10_000) else { throw TestKafkaError(description: "no answer") }
        defer { rd_kafka_event_destroy(event) }
        let code = rd_kafka_event_error(event)
        guard code == RD_KAFKA_RESP_ERR_NO_ERROR else { throw TestKafkaError(description: KafkaClient.text(code)) }
    }
}
