// Certificates of the moment, made with the `openssl` command, and other commands that tests run.

import APIServer
import Foundation

/// Runs a command without input on a thread of its own.
/// - Returns: its standard output; its standard error is part of the failure.
@discardableResult
func runCommand(_ arguments: [String]) async throws -> String {
    try await onThread {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        process.arguments = arguments
        process.standardInput = FileHandle.nullDevice
        let (output, errors) = (Pipe(), Pipe())
        process.standardOutput = output
        process.standardError = errors
        try process.run()
        let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        let complaints = String(decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        guard process.terminationStatus == 0 else {
            throw RawClientError(
                description:
                    "\(arguments.joined(separator: " ")) ended with \(process.terminationStatus): \(complaints)")
        }
        return text
    }
}

/// A folder with a certificate that is its own authority, for 127.0.0.1.
struct TestCertificate: Sendable {
    let folder: String

    var files: TLSFiles { TLSFiles(certificatePath: folder + "/certificate.pem", keyPath: folder + "/key.pem") }

    /// Writes a new key and certificate over the old ones.
    func make(name: String = "beamline-test") async throws {
        try await runCommand([
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days",
            "2",
            "-keyout", files.keyPath, "-out", files.certificatePath, "-subj", "/CN=\(name)", "-addext",
            "subjectAltName=IP:127.0.0.1,DNS:localhost",
        ])
    }

    func write(_ text: String, to path: String) throws {
        try text.write(toFile: path, atomically: true, encoding: .utf8)
    }
}

/// A certificate for the duration of a test.
func withCertificate<Result>(_ use: (TestCertificate) async throws -> Result) async throws -> Result {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("beamline-tls-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: folder) }
    let certificate = TestCertificate(folder: folder.path)
    try await certificate.make()
    return try await use(certificate)
}
