// Where PostgreSQL's programs are: Debian keeps them outside PATH, one folder per major version.

import Glibc

struct Binaries: Sendable {
    /// The folder with `postgres` and `initdb`.
    var folder: String
    var major: Int

    var postgres: String { folder + "/postgres" }
    var initdb: String { folder + "/initdb" }

    /// The newest PostgreSQL, or the one of a given major version (an existing cluster can be opened by no other).
    static func find(major wanted: Int?) throws(ClusterError) -> Binaries {
        let oldest = 13
        var found: [Binaries] = []
        for name in entries(of: "/usr/lib/postgresql") {
            if let major = Int(name) { found.append(Binaries(folder: "/usr/lib/postgresql/\(name)/bin", major: major)) }
        }
        found.sort { $0.major > $1.major }
        let path = getenv("PATH").map { String(cString: $0) } ?? ""
        for folder in path.split(separator: ":").map(String.init) where access(folder + "/postgres", X_OK) == 0 {
            guard let major = try majorVersion(of: folder + "/postgres") else { continue }
            found.append(Binaries(folder: folder, major: major))
        }
        for binaries in found where binaries.major == wanted ?? binaries.major && binaries.major >= oldest {
            if access(binaries.postgres, X_OK) == 0, access(binaries.initdb, X_OK) == 0 { return binaries }
        }
        let advice =
            "install it (Debian: apt-get install postgresql\(wanted.map { "-\($0)" } ?? "")) or use --database-url"
        if let wanted {
            throw ClusterError("PostgreSQL \(wanted), which made the data in this folder, is not installed: \(advice)")
        }
        throw ClusterError("PostgreSQL \(oldest) or newer is not installed: \(advice)")
    }

    /// From `postgres (PostgreSQL) 15.8 (Debian 15.8-0+deb12u1)`.
    private static func majorVersion(of program: String) throws(ClusterError) -> Int? {
        let (code, output) = try ChildProcess.run([program, "--version"])
        guard code == 0, let version = output.split(separator: " ").dropFirst(2).first else { return nil }
        return Int(version.prefix { $0.isNumber })
    }
}

/// The names in a folder, without `.` and `..`; empty when it cannot be read.
func entries(of folder: String) -> [String] {
    guard let handle = opendir(folder) else { return [] }
    defer { closedir(handle) }
    var names: [String] = []
    while let entry = readdir(handle) {
        let name = withUnsafePointer(to: &entry.pointee.d_name) {
            $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
        }
        if name != ".", name != ".." { names.append(name) }
    }
    return names
}
