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
        guard Self.takeLock(of: file) else {
            let holder = Self.holder(of: file)
            close(file)
            throw InUse(
                "the data folder \(path) is in use by another beamline\(holder.map { " (process \($0))" } ?? "")")
        }
        let process = Array("\(getpid())\n".utf8)
        ftruncate(file, 0)
        pwrite(file, process, process.count, 0)
        lock = file
    }

    deinit { close(lock) }

    /// A process that was just killed holds its lock until the kernel has taken it apart: we wait for that, at most 2 s,
    /// but not for one that lives.
    private static func takeLock(of file: Int32) -> Bool {
        for _ in 0..<200 {
            if flock(file, LOCK_EX | LOCK_NB) == 0 { return true }
            if let process = holder(of: file), isAlive(process) { return false }
            usleep(10_000)
        }
        return false
    }

    /// The process that wrote its id into the lock file.
    private static func holder(of file: Int32) -> pid_t? {
        var text = [UInt8](repeating: 0, count: 20)
        let count = max(0, pread(file, &text, text.count, 0))
        return pid_t(String(decoding: text[..<count].prefix { $0 != 0x0A }, as: UTF8.self))
    }

    /// Neither gone nor on its way out. The state follows the name in parentheses in /proc/PID/stat.
    private static func isAlive(_ process: pid_t) -> Bool {
        guard kill(process, 0) == 0 || errno == EPERM,
            let line = try? String(contentsOfFile: "/proc/\(process)/stat", encoding: .utf8),
            let state = line[(line.lastIndex(of: ")") ?? line.startIndex)...].dropFirst(2).first
        else { return false }
        return state != "Z" && state != "X"
    }

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
