// An AWS shared-credentials file that a new key is written into: one profile of it is made or, when asked, given another
// key. Everything else in the file stays as it is: it may be somebody's ~/.aws/credentials.

import AccessControl
import ArgumentParser
import Foundation
import Glibc

struct CredentialsFile {
    let path: String

    /// - Parameter path: where to write; of a symbolic link, the file it leads to.
    init(_ path: String) {
        let absolute = ServerSettings.absolute(path)
        let real = realpath(absolute, nil)
        self.path = real.map { String(cString: $0) } ?? absolute
        free(real)
    }

    private static let keyNames: Set<String> = [
        "aws_access_key_id", "aws_secret_access_key", "aws_session_token", "aws_security_token",
    ]

    /// Access key id by profile; nil for a profile without one.
    func profiles() throws -> [String: String?] {
        var found: [String: String?] = [:]
        var current: String?
        for line in try lines() {
            if let name = Self.profile(openedBy: line) {
                current = name
                found[name] = found[name] ?? .some(nil)
            } else if let current, let (name, value) = Self.setting(line), name == "aws_access_key_id" {
                found[current] = value
            }
        }
        return found
    }

    /// - Throws: one sentence when the profile is there and may not be replaced, or the file cannot be read.
    func requireFree(_ profile: String, isReplacing: Bool) throws {
        guard !isReplacing, try profiles()[profile] != nil else { return }
        throw CommandFailure(
            "\(path) has a profile `\(profile)` already; give another --profile NAME, or --force to replace its key")
    }

    /// Writes the key as a profile, at the end of the file, or in place of the key that the profile has.
    func write(_ key: AccessKey, profile: String, isReplacing: Bool) throws {
        try requireFree(profile, isReplacing: isReplacing)
        let own = ["aws_access_key_id = \(key.id)", "aws_secret_access_key = \(key.secret.text)"]
        var result: [String] = []
        var isInside = false
        var isWritten = false
        for line in try lines() {
            if let name = Self.profile(openedBy: line) {
                isInside = name == profile
                result.append(line)
                if isInside, !isWritten {
                    result += own
                    isWritten = true
                }
            } else if isInside, let (name, _) = Self.setting(line), Self.keyNames.contains(name) {
                continue
            } else {
                result.append(line)
            }
        }
        if !isWritten {
            if let last = result.last, !last.isEmpty { result.append("") }
            result += ["[\(profile)]"] + own
        }
        try writePrivateFile(result.joined(separator: "\n") + "\n", to: path)
    }

    private func lines() throws -> [String] {
        guard access(path, F_OK) == 0 else { return [] }
        let bytes: Data
        do {
            bytes = try Data(contentsOf: URL(fileURLWithPath: path))
        } catch {
            throw CommandFailure("cannot read \(path): \(String(cString: strerror(errno)))")
        }
        guard let text = String(data: bytes, encoding: .utf8) else {
            throw CommandFailure("\(path) is not a credentials file: it is not text")
        }
        var lines = text.split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
        if lines.last == "" { lines.removeLast() }
        return lines
    }

    private static func profile(openedBy line: String) -> String? {
        let content = line.trimmingCharacters(in: .whitespaces)
        guard content.hasPrefix("["), let end = content.firstIndex(of: "]") else { return nil }
        return content[content.index(after: content.startIndex)..<end].trimmingCharacters(in: .whitespaces)
    }

    private static func setting(_ line: String) -> (name: String, value: String)? {
        guard let equals = line.firstIndex(of: "=") else { return nil }
        let name = line[..<equals].trimmingCharacters(in: .whitespaces).lowercased()
        return (name, line[line.index(after: equals)...].trimmingCharacters(in: .whitespacesAndNewlines))
    }

    /// A name that stands between brackets and on a command line.
    static func isProfileName(_ name: String) -> Bool {
        !name.isEmpty && name.utf8.count <= 128
            && name.utf8.allSatisfy {
                (0x61...0x7A).contains($0) || (0x41...0x5A).contains($0) || (0x30...0x39).contains($0)
                    || "_.-+@/:,".utf8.contains($0)
            }
    }
}

/// Where a new key goes.
struct CredentialsOptions: ParsableArguments {
    @Option(
        help:
            "Write the key into this file, AWS shared-credentials format, mode 600; other profiles in it stay. (default: key create shows the secret)"
    )
    var credentials: String?
    @Option(help: "With --credentials: the profile to write.") var profile = "default"
    @Flag(help: "With --credentials: replace the key of a profile that is there.") var force = false

    func validate() throws {
        guard CredentialsFile.isProfileName(profile) else {
            throw ValidationError("--profile must be a name of letters, digits and _.-+@/:, not `\(profile)`")
        }
    }

    /// Nil: no file was asked for.
    var target: CredentialsTarget? {
        credentials.map { CredentialsTarget(file: CredentialsFile($0), profile: profile, isReplacing: force) }
    }
}

/// A profile of a file.
struct CredentialsTarget {
    var file: CredentialsFile
    var profile: String
    var isReplacing = false

    func requireFree() throws { try file.requireFree(profile, isReplacing: isReplacing) }

    func write(_ key: AccessKey) throws { try file.write(key, profile: profile, isReplacing: isReplacing) }
}
