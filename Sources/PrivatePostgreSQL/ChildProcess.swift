// Starting a program with posix_spawn: in a session of its own (Ctrl-C at the terminal must not reach PostgreSQL before
// Beamline has drained), with default signal handling, a minimal environment and at most one inherited folder.
// Foundation's Process can do none of these.

import Glibc

enum ChildProcess {
    /// The descriptor under which a child finds the folder it was given (`/proc/self/fd/9`). Below 10, so that the
    /// shell initdb runs its commands with keeps it open.
    static let folderDescriptor: Int32 = 9

    /// Starts `arguments[0]`, an absolute path.
    /// - Parameters:
    ///   - output: a descriptor for standard output and error.
    ///   - folder: an open folder the child gets as descriptor 9, or nil.
    static func spawn(_ arguments: [String], output: Int32, folder: Int32?) throws(ClusterError) -> pid_t {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_adddup2(&actions, output, 1)
        posix_spawn_file_actions_adddup2(&actions, output, 2)
        if let folder { posix_spawn_file_actions_adddup2(&actions, folder, folderDescriptor) }
        // Nothing else: connections of clients must end when we close them, and PostgreSQL counts what it inherits.
        for descriptor in openDescriptors() where descriptor > 2 && (folder == nil || descriptor != folderDescriptor) {
            posix_spawn_file_actions_addclose(&actions, descriptor)
        }

        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        var signals = sigset_t()
        sigfillset(&signals)
        posix_spawnattr_setsigdefault(&attributes, &signals)
        sigemptyset(&signals)
        posix_spawnattr_setsigmask(&attributes, &signals)
        let newSession: Int32 = 0x80  // POSIX_SPAWN_SETSID, behind _GNU_SOURCE in <spawn.h>
        posix_spawnattr_setflags(
            &attributes, Int16(Int32(POSIX_SPAWN_SETSIGDEF) | Int32(POSIX_SPAWN_SETSIGMASK) | newSession))

        let environment = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "TZ=UTC"]
        var argv = arguments.map { strdup($0) } + [nil]
        var envp = environment.map { strdup($0) } + [nil]
        defer { (argv + envp).forEach { free($0) } }
        var pid: pid_t = 0
        let code = posix_spawn(&pid, arguments[0], &actions, &attributes, &argv, &envp)
        guard code == 0 else { throw ClusterError("cannot start \(arguments[0])", errno: code) }
        return pid
    }

    /// Those of this process now. What other threads open meanwhile is not among them.
    private static func openDescriptors() -> [Int32] {
        guard let folder = opendir("/proc/self/fd") else { return [] }
        defer { closedir(folder) }
        var found: [Int32] = []
        while let entry = readdir(folder) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) {
                $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if let number = Int32(name), number != dirfd(folder) { found.append(number) }
        }
        return found
    }

    /// Runs a short program to its end. Blocks the calling thread.
    /// - Returns: the exit code (128 + signal for a killed one) and what it wrote.
    static func run(_ arguments: [String], folder: Int32? = nil) throws(ClusterError) -> (code: Int32, output: String) {
        var ends: [Int32] = [0, 0]
        guard pipe(&ends) == 0 else { throw ClusterError("cannot make a pipe", errno: errno) }
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        defer { close(ends[0]) }
        let pid: pid_t
        do {
            pid = try spawn(arguments, output: ends[1], folder: folder)
            close(ends[1])
        } catch {
            close(ends[1])
            throw error
        }
        var output: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 4096)
        while true {
            let count = read(ends[0], &buffer, buffer.count)
            if count > 0 { output += buffer[..<count] } else if count == 0 || errno != EINTR { break }
        }
        var status: Int32 = 0
        while waitpid(pid, &status, 0) < 0, errno == EINTR {}
        return (exitCode(status), String(decoding: output, as: UTF8.self))
    }

    /// The exit code of a wait status; 128 + signal when a signal ended the process.
    static func exitCode(_ status: Int32) -> Int32 {
        status & 0x7F == 0 ? (status >> 8) & 0xFF : 128 + (status & 0x7F)
    }
}

func errorText(_ code: Int32) -> String { String(cString: strerror(code)) }
