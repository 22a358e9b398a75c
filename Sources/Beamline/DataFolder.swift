// The folder that holds everything of one standalone server: lock, master key, credentials, the private PostgreSQL.
// Only its owner may enter it. One process at a time holds its lock; the kernel gives the lock back when it dies.

import AccessControl
import Foundation
import Glibc

final class DataFolder: Sendable {
    let path: String
    private let lock: Int32

    var masterKeyPath: String { path + "/master.key" }
    var credentialsPath: String { path + "/credentials" }

    /// Creates the folder when it is not there, and takes its lock.
    /// - Throws: one sentence: not writable, or in use by another process.
    init(path: String) throws {
        self.path = path
        try Self.create(path)
        let file = open(path + "/lock", O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard file >= 0 else {
            throw CommandFailure(
                "cannot write into the data folder \(path) (--data-dir): \(String(cString: strerror(errno)))")
        }
        guard flock(file, LOCK_EX | LOCK_NB) == 0 else {
            var holder = [UInt8](repeating: 0, count: 20)
            let count = max(0, read(file, &holder, holder.count))
            close(file)
            let process = String(decoding: holder[..<count], as: UTF8.self).trimmingCharacters(
                in: .whitespacesAndNewlines)
            throw InUse(
                "the data folder \(path) is in use by another beamline\(process.isEmpty ? "" : " (process \(process))")"
            )
        }
        let process = Array("\(getpid())\n".utf8)
        ftruncate(file, 0)
        pwrite(file, process, process.count, 0)
        lock = file
    }

    deinit { close(lock) }

    /// Another process holds the lock.
    struct InUse: Error, CustomStringConvertible {
        var description: String
        init(_ description: String) { self.description = description }
    }

    /// Creates the folder, mode 0700, and those above it that are missing.
    private static func create(_ path: String) throws {
        var made = ""
        for name in path.split(separator: "/") {
            made += "/" + name
            guard access(made, F_OK) != 0, mkdir(made, made == path ? 0o700 : 0o755) != 0, errno != EEXIST else {
                continue
            }
            throw CommandFailure(
                "cannot create the data folder \(path) (--data-dir): \(made): \(String(cString: strerror(errno)))")
        }
    }
}

/// Writes a whole file of mode 0600 under a new name, then renames it: a reader sees the old or the new one.
func writePrivateFile(_ text: String, to path: String) throws {
    let temporary = "\(path).\(getpid())"
    unlink(temporary)
    let file = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
    guard file >= 0 else { throw CommandFailure("cannot write \(path): \(String(cString: strerror(errno)))") }
    let bytes = Array(text.utf8)
    let isWritten = write(file, bytes, bytes.count) == bytes.count && fsync(file) == 0
    close(file)
    guard isWritten, rename(temporary, path) == 0 else {
        let reason = String(cString: strerror(errno))
        unlink(temporary)
        throw CommandFailure("cannot write \(path): \(reason)")
    }
}
