// What a person can set, and what they are told when it is wrong.

import Foundation
import Testing
import TraceStore

@testable import Beamline

// If this fails, a listener is opened on another address than the one asked for.
@Test(arguments: [
    ("127.0.0.1:2000", "127.0.0.1", 2_000), ("[::1]:2000", "::1", 2_000), ("localhost:0", "localhost", 0),
    ("0.0.0.0:65535", "0.0.0.0", 65_535), ("[fe80::1%eth0]:9", "fe80::1%eth0", 9),
])
func `HOST:PORT is read, IPv6 in brackets`(text: String, host: String, port: Int) throws {
    let address = try #require(ListenAddress(text))
    #expect(address == ListenAddress(host: host, port: port))
    #expect(address.description == text)
}

// If this fails, a slip of the keyboard opens a port nobody wanted.
@Test(arguments: [
    "", ":", "2000", ":2000", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "::1:2000", "a b:1", "h:+1",
    "h:-1",
])
func `anything else is not an address`(text: String) {
    #expect(ListenAddress(text) == nil)
}

private func settings(_ flags: [String: String]) async throws -> ServerSettings {
    try ServerSettings(await SettingsReader(flags: flags, known: ServerSettings.names))
}

private func failure(_ flags: [String: String]) async -> String? {
    do {
        _ = try await settings(flags)
        return nil
    } catch {
        return "\(error)"
    }
}

// If this fails, the server starts with a setting that means something else than what was written.
@Test(arguments: [
    ("api", "2000"), ("daemon", "udp:1:2"), ("console", "x"), ("metrics", "localhost"), ("otlp-http", "1"),
    ("otlp-grpc", ""),
    ("account", "12345678901"), ("account", "12345678901x"), ("cors-allowed-origins", "*"), ("cors-allowed-origins", ""),
    ("cors-allowed-origins", "console.example.com"), ("cors-allowed-origins", "https://console.example.com/"),
    ("cors-allowed-origins", "https://Console.example.com"), ("cors-allowed-origins", "https://a.example,,https://b.example"),
    ("cors-allowed-origins", "https://a.example:443"), ("cors-allowed-origins", "https://[::1"),
    ("cors-allowed-origins", "https://a.example:"), ("cors-allowed-origins", "ftp://a.example"),
    ("region", "US East"), ("host-suffix", ".example.test"),
    ("max-trace-bytes", "-1"), ("max-trace-bytes", "500KB"), ("retention-days", "0"), ("partitions", "0"),
    ("partitions", "1.5"),
    ("ingest-rate", "fast"), ("query-rate", "-1"), ("control-rate", "5/s"), ("sampling-rate", "1.5"), ("max-body-bytes", "1000"), ("kafka-brokers", "broker"), ("kafka-brokers", "a:1,,b:2"), ("kafka-topic", "a b"),
    ("kafka", "acks"), ("kafka-replication", "0"), ("node-name", ""), ("log-retention-days", "0"), ("log-level", "loud"), ("config", "/nowhere/beamline.yaml"),
])
func `a wrong setting is one sentence that names it`(name: String, value: String) async throws {
    let sentence = try #require(await failure([name: value]))
    #expect(sentence.contains("--\(name)"))
    #expect(!sentence.contains("\n"))
}

// If this fails, what stands in the file is ignored, or beats what was typed.
@Test func `a flag beats the file, the file beats the default, and unknown names are refused`() async throws {
    let path = FileManager.default.temporaryDirectory.path + "/beamline-settings-\(UUID().uuidString).yaml"
    defer { try? FileManager.default.removeItem(atPath: path) }
    try "# settings\nretention-days: 7\naccount: \"000000000042\"\npartitions: 8\nconsole: 127.0.0.1:8080\n"
        .write(toFile: path, atomically: true, encoding: .utf8)
    let read = try await settings(["config": path, "partitions": "2"])
    #expect(read.retentionDays == 7)
    #expect("\(read.account)" == "000000000042")
    #expect(read.log.partitions == 2)
    #expect(read.maxTraceBytes == 512_000)
    #expect(read.notices.count == 1)

    try "retention: 7\n".write(toFile: path, atomically: true, encoding: .utf8)
    #expect(try #require(await failure(["config": path])).contains("`retention`"))
    try "retention-days: many\n".write(toFile: path, atomically: true, encoding: .utf8)
    #expect(try #require(await failure(["config": path])).contains("`retention-days` in \(path)"))
}

// If this fails, a page that was allowed is refused.
@Test func `origins are parted by commas, or a list of the file`() async throws {
    let origins = ["https://console.example.com", "http://localhost:3000", "http://[::1]:8080", "http://[::1]"]
    #expect(try await settings([:]).allowedOrigins == [])
    #expect(try await settings(["cors-allowed-origins": origins.joined(separator: " , ")]).allowedOrigins == origins)
    let path = FileManager.default.temporaryDirectory.path + "/beamline-settings-\(UUID().uuidString).yaml"
    defer { try? FileManager.default.removeItem(atPath: path) }
    try "cors-allowed-origins: https://a.example, https://b.example\n"
        .write(toFile: path, atomically: true, encoding: .utf8)
    #expect(try await settings(["config": path]).allowedOrigins == ["https://a.example", "https://b.example"])
    try "cors-allowed-origins:\n  - https://a.example\n  - https://b.example\n"
        .write(toFile: path, atomically: true, encoding: .utf8)
    #expect(try await settings(["config": path]).allowedOrigins == ["https://a.example", "https://b.example"])
    try "cors-allowed-origins:\n  - b.example\n".write(toFile: path, atomically: true, encoding: .utf8)
    #expect(try #require(await failure(["config": path])).contains("`cors-allowed-origins` in \(path)"))
}

// If this fails, two servers write into one data folder.
@Test func `a data folder has one process at a time and is closed to others`() throws {
    let path = FileManager.default.temporaryDirectory.path + "/beamline-folder-\(UUID().uuidString)"
    defer { try? FileManager.default.removeItem(atPath: path) }
    var first: DataFolder? = try DataFolder(path: path)
    #expect(first?.path == path)
    #expect(try FileManager.default.attributesOfItem(atPath: path)[.posixPermissions] as? Int == 0o700)
    #expect(throws: DataFolder.InUse.self) { try DataFolder(path: path) }
    first = nil
    _ = try DataFolder(path: path)
}

// If this fails, the secret can be read by every user of the machine.
@Test func `private files are written whole and only for their owner`() throws {
    let path = FileManager.default.temporaryDirectory.path + "/beamline-credentials-\(UUID().uuidString)"
    defer { try? FileManager.default.removeItem(atPath: path) }
    try writePrivateFile("one", to: path)
    try writePrivateFile("two\n", to: path)
    #expect(try String(contentsOfFile: path, encoding: .utf8) == "two\n")
    #expect(try FileManager.default.attributesOfItem(atPath: path)[.posixPermissions] as? Int == 0o600)
}

// If this fails, a role starts without what it needs, or with the settings of another role.
@Test func `each role has its settings, and passes over those of the others`() async throws {
    func read(_ role: NodeRole, _ flags: [String: String]) async throws -> ServerSettings {
        try ServerSettings(await SettingsReader(flags: flags, known: ServerSettings.names), role: role)
    }
    let common = ["database-url": "postgresql://x@127.0.0.1/y", "master-key": "/k", "api": "127.0.0.1:1", "daemon": "127.0.0.1:2"]
    for role in [NodeRole.ingest, .aggregate, .query] {
        let settings = try await read(role, common)
        #expect((settings.api != nil) == (role != .aggregate))
        #expect((settings.daemon != nil) == (role == .ingest))
        #expect(settings.log.partitions == 12)
        await #expect(throws: CommandFailure.self) { try await read(role, ["master-key": "/k"]) }
    }
    await #expect(throws: CommandFailure.self) { try await read(.query, ["database-url": "host=x"]) }
    #expect(try await read(.aggregate, ["database-url": "host=x"]).masterKeyPath == nil)
    let kafka = try await read(
        .aggregate,
        ["database-url": "host=x", "kafka-brokers": "a:1,[::1]:2", "kafka": "security.protocol=ssl\nssl.ca.location=/a=b; client.rack=x"])
    #expect(kafka.log.kafkaProperties.map(\.name) == ["security.protocol", "ssl.ca.location", "client.rack"])
    #expect(kafka.log.kafkaProperties.map(\.value) == ["ssl", "/a=b", "x"])
    #expect(kafka.log.source == "kafka topic beamline.segments")
}
