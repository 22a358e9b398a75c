// The certificate and key of the TLS listener: read from two PEM files at start, and again whenever the service is told
// to, so that a renewed certificate needs no restart. Connections keep the one they began with.

import Glibc
import Logging
import NIOCore
import NIOSSL
import ServiceLifecycle
import Synchronization
import UnixSignals

/// Where the certificate and its key are.
public struct TLSFiles: Sendable, Hashable {
    /// PEM: the server's certificate, then the intermediate ones.
    public var certificatePath: String
    /// PEM, not encrypted.
    public var keyPath: String

    public init(certificatePath: String, keyPath: String) {
        self.certificatePath = certificatePath
        self.keyPath = keyPath
    }

    /// For a start that fails before anything else is begun.
    public func check() throws(TLSFilesError) { _ = try ServerCertificate(self, shutdownSeconds: 1) }
}

/// Why the certificate or the key cannot be used.
public struct TLSFilesError: Error, CustomStringConvertible {
    public var description: String
}

final class ServerCertificate: Sendable {
    private let files: TLSFiles
    private let shutdownSeconds: Double
    private let current: Mutex<NIOSSLContext>

    /// - Parameter shutdownSeconds: how long a closing connection waits for the client's goodbye.
    init(_ files: TLSFiles, shutdownSeconds: Double) throws(TLSFilesError) {
        self.files = files
        self.shutdownSeconds = shutdownSeconds
        current = Mutex(try Self.load(files, shutdownSeconds: shutdownSeconds))
    }

    /// For the next connection.
    var context: NIOSSLContext { current.withLock { $0 } }

    /// Reads the files again. When they cannot be used the certificate stays as it is.
    func reload() throws(TLSFilesError) {
        let context = try Self.load(files, shutdownSeconds: shutdownSeconds)
        current.withLock { $0 = context }
    }

    private static func load(_ files: TLSFiles, shutdownSeconds: Double) throws(TLSFilesError) -> NIOSSLContext {
        let chain: [NIOSSLCertificate]
        do {
            chain = try NIOSSLCertificate.fromPEMFile(files.certificatePath)
        } catch {
            try requireFile(files.certificatePath, of: "--tls-certificate")
            throw TLSFilesError(
                description: "cannot read the certificate \(files.certificatePath) (--tls-certificate): "
                    + "\(reason(error)); it must be a PEM file with the server's certificate first")
        }
        guard !chain.isEmpty else {
            throw TLSFilesError(
                description: "the file \(files.certificatePath) (--tls-certificate) has no certificate in PEM format")
        }
        let key: NIOSSLPrivateKey
        do {
            key = try NIOSSLPrivateKey(file: files.keyPath, format: .pem)
        } catch {
            try requireFile(files.keyPath, of: "--tls-key")
            throw TLSFilesError(
                description: "cannot read the private key \(files.keyPath) (--tls-key): "
                    + "\(reason(error)); it must be a PEM file with one key that is not encrypted")
        }
        var configuration = TLSConfiguration.makeServerConfiguration(
            certificateChain: chain.map { .certificate($0) }, privateKey: .privateKey(key))
        configuration.minimumTLSVersion = .tlsv12
        configuration.applicationProtocols = ["h2", "http/1.1"]
        configuration.shutdownTimeout = .nanoseconds(Int64(shutdownSeconds * 1_000_000_000))
        do {
            return try NIOSSLContext(configuration: configuration)
        } catch {
            throw TLSFilesError(
                description:
                    "the certificate \(files.certificatePath) (--tls-certificate) and the key \(files.keyPath) "
                    + "(--tls-key) do not belong together: \(reason(error))")
        }
    }

    /// What the library says of a file that it cannot open leaves that out.
    private static func requireFile(_ path: String, of flag: String) throws(TLSFilesError) {
        guard access(path, R_OK) != 0 else { return }
        let reason = errno == ENOENT ? "the file does not exist" : String(cString: strerror(errno))
        throw TLSFilesError(description: "cannot read \(path) (\(flag)): \(reason)")
    }

    private static func reason(_ error: any Error) -> String {
        switch error {
        case let error as IOError: error.errnoCode == 2 ? "there is no such file" : "\(error)"
        case NIOSSLError.failedToLoadCertificate: "no certificate in it can be read"
        case NIOSSLError.failedToLoadPrivateKey: "no key in it can be read"
        default: "\(error)"
        }
    }
}

/// Reads the certificate again at every SIGHUP, as the tools that renew certificates expect.
public struct CertificateReload: Service {
    private let services: [APIService]

    public init(_ services: [APIService]) { self.services = services }

    public func run() async throws {
        let signals = await UnixSignalsSequence(trapping: .sighup)
        for await _ in signals.cancelOnGracefulShutdown() {
            for service in services { service.reloadCertificates() }
        }
    }
}
