// The settings of a server process, checked. Made from flags, environment and file before anything is started. Every role
// has the same names; what a role does not have keeps its default and is not used.

import APIServer
import AccessControl
import Foundation
import Glibc
import Segments
import TraceStore

struct ServerSettings {
    var role: NodeRole
    /// Of `standalone`.
    var dataFolder: String
    /// A libpq connection string or URL; nil: a private PostgreSQL in the data folder, `standalone` only.
    var databaseURL: String?
    /// Nil: that of the data folder (`standalone`), or the role needs none.
    var masterKeyPath: String?
    var nodeName: String
    var api: ListenAddress?
    var daemon: ListenAddress?
    var metrics: ListenAddress?
    var account: AccountID
    var region: String
    var hostSuffix: String?
    /// Origins of web pages that may call the API from a browser.
    var allowedOrigins: [String]
    var tls: TLSFiles?
    /// Bytes; 0 = no limit.
    var maxTraceBytes: Int
    var retentionDays: Int
    var logRetentionDays: Int
    var log: LogSettings
    /// Documents per second and account; 0 = no limit.
    var ingestRate: Int
    /// Requests per second and account, of the other classes; 0 = no limit.
    var queryRate: Int
    var controlRate: Int
    var samplingRate: Int
    /// Of a request, on the wire.
    var maxBodyBytes: Int
    var logLevel: String
    /// One line for each listener that was asked for and does not exist in this release.
    var notices: [String] = []

    /// Of any role.
    static let names = Set([
        "data-dir", "database-url", "master-key", "node-name", "api", "daemon", "console", "metrics", "otlp-http",
        "otlp-grpc", "account", "region", "host-suffix", "cors-allowed-origins", "max-trace-bytes", "retention-days",
        "log-retention-days",
        "ingest-rate", "query-rate", "control-rate", "sampling-rate", "max-body-bytes", "tls-certificate", "tls-key",
        "log-level", "config",
    ]).union(LogSettings.names)

    init(_ reader: SettingsReader, role: NodeRole = .standalone) throws {
        self.role = role
        dataFolder = Self.absolute(try reader.string("data-dir", default: Self.defaultDataFolder))
        databaseURL = try reader.text("database-url").map { url, origin in
            try requireConnectionString(url, origin: origin)
            return url
        }
        if role != .standalone, databaseURL == nil {
            throw CommandFailure(
                "--database-url must name the PostgreSQL that all nodes share (postgresql://user@host/database)")
        }
        masterKeyPath = try reader.text("master-key").map { Self.absolute($0.value) }
        if role == .ingest || role == .query, masterKeyPath == nil {
            throw CommandFailure(
                "--master-key must name the file with the key that all nodes share (`beamline migrate --master-key FILE` makes it)"
            )
        }
        let (nodeName, nodeNameOrigin) = try reader.text("node-name") ?? (Self.hostName, "--node-name")
        guard !nodeName.isEmpty, nodeName.utf8.count <= 255,
            !nodeName.unicodeScalars.contains(where: { $0.value < 0x20 })
        else { throw CommandFailure("\(nodeNameOrigin) must be a name of 1 to 255 bytes, not `\(nodeName)`") }
        self.nodeName = nodeName
        api = role == .aggregate ? nil : try reader.address("api", default: "127.0.0.1:2000")
        daemon = role == .standalone || role == .ingest ? try reader.address("daemon", default: "127.0.0.1:2000") : nil
        metrics = try reader.address("metrics", default: "127.0.0.1:9464")
        for (setting, what) in [
            ("console", "The web console"), ("otlp-http", "OTLP over HTTP"), ("otlp-grpc", "OTLP over gRPC"),
        ] {
            if let address = try reader.address(setting, default: "off") {
                notices.append("\(what) (--\(setting) \(address)) arrives in a later release; nothing listens there.")
            }
        }

        let (accountText, accountOrigin) = try reader.text("account") ?? ("123456789012", "--account")
        guard let account = AccountID(accountText) else {
            throw CommandFailure("\(accountOrigin) must be 12 digits, not `\(accountText)`")
        }
        self.account = account

        let (region, regionOrigin) = try reader.text("region") ?? ("us-east-1", "--region")
        guard !region.isEmpty,
            region.utf8.allSatisfy({ (0x61...0x7A).contains($0) || (0x30...0x39).contains($0) || $0 == 0x2D })
        else {
            throw CommandFailure("\(regionOrigin) must be a region name such as us-east-1, not `\(region)`")
        }
        self.region = region

        if let (suffix, origin) = try reader.text("host-suffix") {
            let isName = suffix.utf8.allSatisfy {
                (0x61...0x7A).contains($0) || (0x30...0x39).contains($0) || $0 == 0x2D || $0 == 0x2E
            }
            guard isName, !suffix.isEmpty, !suffix.hasPrefix("."), !suffix.hasSuffix(".") else {
                throw CommandFailure(
                    "\(origin) must be a host name in lower case such as xray.example.test, not `\(suffix)`")
            }
            hostSuffix = suffix
        }

        allowedOrigins = try reader.list("cors-allowed-origins").map { origin, place in
            guard Self.isOrigin(origin) else {
                throw CommandFailure(
                    "\(place) must be origins as browsers send them, such as https://console.example.com, not `\(origin)`"
                )
            }
            return origin
        }

        switch (try reader.text("tls-certificate"), try reader.text("tls-key")) {
        case (let certificate?, let key?):
            tls = TLSFiles(
                certificatePath: Self.absolute(certificate.value), keyPath: Self.absolute(key.value))
        case (let certificate?, nil): throw CommandFailure("\(certificate.origin) needs --tls-key")
        case (nil, let key?): throw CommandFailure("\(key.origin) needs --tls-certificate")
        case (nil, nil): break
        }

        maxTraceBytes = try reader.integer("max-trace-bytes", default: 512_000, in: 0...1_000_000_000)
        retentionDays = try reader.integer("retention-days", default: 30, in: 1...3650)
        logRetentionDays = try reader.integer("log-retention-days", default: retentionDays, in: 1...3650)
        log = try LogSettings(reader, partitions: role == .standalone ? 4 : 12, retentionDays: logRetentionDays)
        ingestRate = try reader.integer("ingest-rate", default: 0, in: 0...100_000_000)
        queryRate = try reader.integer("query-rate", default: 0, in: 0...1_000_000)
        controlRate = try reader.integer("control-rate", default: 0, in: 0...1_000_000)
        samplingRate = try reader.integer("sampling-rate", default: 0, in: 0...1_000_000)
        // A batch of 50 documents of 64 KB must fit.
        maxBodyBytes = try reader.integer("max-body-bytes", default: 8 << 20, in: 4 << 20...1 << 30)

        let (level, levelOrigin) = try reader.text("log-level") ?? ("notice", "--log-level")
        guard Self.logLevels.contains(level) else {
            throw CommandFailure(
                "\(levelOrigin) must be one of \(Self.logLevels.joined(separator: ", ")), not `\(level)`")
        }
        logLevel = level
    }

    /// Scheme, host in lower case and perhaps a port that is not the scheme's own, nothing else: what browsers send in
    /// `Origin` is compared byte for byte.
    private static func isOrigin(_ text: String) -> Bool {
        guard let scheme = ["https://", "http://"].first(where: { text.hasPrefix($0) }) else { return false }
        let rest = text.dropFirst(scheme.count)
        let isAddress = rest.hasPrefix("[")  // of IPv6
        let end =
            isAddress ? rest.firstIndex(of: "]").map(rest.index(after:)) : rest.firstIndex(of: ":") ?? rest.endIndex
        guard let end else { return false }
        let others = isAddress ? "[]:" : "-._"
        let isHost = rest[..<end].utf8.allSatisfy {
            (0x61...0x7A).contains($0) || (0x30...0x39).contains($0) || others.utf8.contains($0)
        }
        guard isHost, end != rest.startIndex else { return false }
        let port = rest[end...]
        if port.isEmpty { return true }
        guard port.first == ":", let number = UInt16(port.dropFirst()), number > 0, ":\(number)" == port else {
            return false
        }
        return number != (scheme == "https://" ? 443 : 80)
    }

    static var hostName: String {
        var name = [CChar](repeating: 0, count: 256)
        guard gethostname(&name, name.count - 1) == 0 else { return "localhost" }
        return String(decoding: name.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    static let logLevels = ["trace", "debug", "info", "notice", "warning", "error", "critical"]

    /// /var/lib/beamline for root, else ~/.local/share/beamline.
    static var defaultDataFolder: String {
        geteuid() == 0 ? "/var/lib/beamline" : NSHomeDirectory() + "/.local/share/beamline"
    }

    static func absolute(_ path: String) -> String {
        let expanded = path.hasPrefix("~/") ? NSHomeDirectory() + path.dropFirst() : path
        return URL(fileURLWithPath: expanded).standardizedFileURL.path
    }
}
