// A PostgreSQL cluster that belongs to one data folder and one Beamline process: made at the first start, configured,
// started, watched, restarted when it dies, stopped with the process. Used by `standalone`; the other commands only
// ask where it listens. It does not speak SQL.
//
// PostgreSQL refuses to run as root. Started by root, the cluster belongs to the user `postgres`, who may not be able
// to reach the data folder (below /root, or the 0700 data folder itself). So the folder is opened here and handed over
// as a descriptor: `postgres -D /proc/self/fd/9` needs no right on the folders above it.

import Foundation
import Glibc
import Logging
import ServiceLifecycle
import Synchronization

public final class PrivateCluster: Service, Sendable {
    private enum Phase {
        case idle
        case running(pid_t)
        case restarting
        case ended
    }

    private struct State {
        var phase = Phase.idle
        var stopping = false
        var stopWaiters: [CheckedContinuation<Void, Never>] = []
        var restarts = 0
    }

    /// The data folder of Beamline; the cluster is in `postgres` below it, its messages in `postgres.log`.
    public let dataFolder: String
    private let logger: Logger
    private let state = Mutex(State())

    public init(dataFolder: String, logger: Logger) {
        self.dataFolder = dataFolder
        self.logger = logger
    }

    /// How often PostgreSQL died and was started again.
    public var restarts: Int { state.withLock { $0.restarts } }

    /// The process id of the running postmaster, or nil.
    public var processID: Int32? { state.withLock { if case .running(let pid) = $0.phase { pid } else { nil } } }

    /// A libpq connection string for the cluster of a data folder; it does not say whether it runs.
    ///
    /// A socket's path holds at most 107 bytes. A longer folder is opened (and stays open) and reached through
    /// `/proc/self/fd`, so the string is good for this process only.
    public static func connectionString(dataFolder: String) -> String {
        var host = dataFolder + "/postgres"
        if "\(host)/.s.PGSQL.5432".utf8.count > 107 {
            let descriptor = open(host, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
            if descriptor >= 0 { host = "/proc/self/fd/\(descriptor)" }
        }
        let quoted = host.replacing("\\", with: "\\\\").replacing("'", with: "\\'")
        return "host='\(quoted)' user=beamline dbname=postgres"
    }

    /// Whether a cluster was ever made in this data folder.
    public static func exists(dataFolder: String) -> Bool { access(dataFolder + "/postgres/PG_VERSION", F_OK) == 0 }

    /// Makes the cluster when there is none, ends what a killed predecessor left running, starts PostgreSQL, and
    /// returns when it accepts connections. The caller holds the data folder's lock.
    public func start() async throws(ClusterError) {
        let result: Result<Void, ClusterError> = await withCheckedContinuation { started in
            // One thread for the life of the cluster: starting blocks, and the kernel tells PostgreSQL of our death
            // (PR_SET_PDEATHSIG) when the thread that started it ends.
            let thread = Thread { self.supervise(started) }
            thread.name = "postgres"
            thread.start()
        }
        try result.get()
    }

    /// Waits for the end of the process, then stops PostgreSQL: listed first in the ServiceGroup, so stopped last.
    public func run() async throws {
        try? await gracefulShutdown()
        await stop()
    }

    /// Fast shutdown: disconnects clients, writes a checkpoint. After 6 s without the checkpoint, after 8 s by force;
    /// nothing committed is lost by either. Returns when PostgreSQL is gone; may be called twice.
    public func stop() async {
        await withCheckedContinuation { waiter in
            let resumeNow = state.withLock { state in
                state.stopping = true
                switch state.phase {
                case .idle, .ended: return true
                case .running, .restarting:
                    state.stopWaiters.append(waiter)
                    return false
                }
            }
            if resumeNow { waiter.resume() }
        }
    }

    /// The hard end, for a process that is about to exit and can wait no longer.
    public func kill() {
        if let pid = processID { _ = Glibc.kill(pid, SIGQUIT) }
    }

    // MARK: The supervising thread

    private func supervise(_ started: CheckedContinuation<Result<Void, ClusterError>, Never>) {
        let running: Launch
        do {
            running = try launch()
        } catch {
            finish()
            started.resume(returning: .failure(error))
            return
        }
        started.resume(returning: .success(()))

        var launched = running
        var failures = 0
        while true {
            let startedAt = ContinuousClock.now
            let code = watch(launched.pid)
            if state.withLock({ $0.stopping }) { break }
            state.withLock {
                $0.phase = .restarting
                $0.restarts += 1
            }
            logger.error(
                "PostgreSQL ended, starting it again",
                metadata: ["exit_code": "\(code)", "log": "\(dataFolder)/postgres.log"])
            failures = ContinuousClock.now - startedAt > .seconds(10) ? 0 : failures + 1
            guard let next = relaunch(failures: failures) else { break }
            launched = next
        }
        finish()
    }

    /// Starts again until it works: at once the first time, then after 0.1, 0.2 … 5 s. nil when asked to stop meanwhile.
    private func relaunch(failures: Int) -> Launch? {
        var failures = failures
        while true {
            var pauseLeft = failures > 1 ? min(5_000, 100 << min(failures - 2, 6)) : 0
            while pauseLeft > 0 {
                if state.withLock({ $0.stopping }) { return nil }
                usleep(20_000)
                pauseLeft -= 20
            }
            do {
                return try launch()
            } catch {
                if state.withLock({ $0.stopping }) { return nil }
                logger.error("PostgreSQL cannot be started again yet", metadata: ["reason": "\(error)"])
                failures += 1
            }
        }
    }

    private func finish() {
        let waiters = state.withLock { state in
            state.phase = .ended
            defer { state.stopWaiters = [] }
            return state.stopWaiters
        }
        waiters.forEach { $0.resume() }
    }

    /// Looks every 20 ms whether the process has ended (one system call), and carries out a stop.
    private func watch(_ pid: pid_t) -> Int32 {
        var stoppingSince: ContinuousClock.Instant?
        var sent: Int32 = 0
        while true {
            var status: Int32 = 0
            if waitpid(pid, &status, WNOHANG) == pid { return ChildProcess.exitCode(status) }
            if state.withLock({ $0.stopping }) {
                let since = stoppingSince ?? .now
                stoppingSince = since
                let waited = ContinuousClock.now - since
                let signal = waited > .seconds(8) ? SIGKILL : waited > .seconds(6) ? SIGQUIT : SIGINT
                if signal != sent {
                    _ = Glibc.kill(pid, signal)
                    sent = signal
                }
            }
            usleep(20_000)
        }
    }

    private struct Launch {
        var pid: pid_t
    }

    /// One start: from whatever state the folder is in to a server that accepts connections.
    private func launch() throws(ClusterError) -> Launch {
        let folder = dataFolder + "/postgres"
        let user = try ServerUser.forCluster(at: folder)
        if !Self.exists(dataFolder: dataFolder) { try create(as: user) }

        let descriptor = try openFolder(folder)
        defer { close(descriptor) }
        try endLeftovers(of: descriptor, named: folder)

        let binaries = try Binaries.find(major: version(of: folder))
        try writeConfiguration(to: descriptor, as: user, major: binaries.major)
        let log = try openLog()
        defer { close(log) }
        let arguments = user.command([binaries.postgres, "-D", user.path(of: folder)], endWithParent: true)
        let pid = try ChildProcess.spawn(arguments, output: log, folder: descriptor)
        state.withLock { $0.phase = .running(pid) }
        try waitUntilReady(pid, in: folder)
        return Launch(pid: pid)
    }

    /// initdb into a folder beside, then a rename: a start that is killed halfway leaves nothing that looks finished.
    private func create(as user: ServerUser) throws(ClusterError) {
        let binaries = try Binaries.find(major: nil)
        let unfinished = dataFolder + "/postgres.new"
        try? FileManager.default.removeItem(atPath: unfinished)
        guard mkdir(unfinished, 0o700) == 0 else { throw ClusterError("cannot create \(unfinished)", errno: errno) }
        if let owner = user.switchTo, chown(unfinished, owner.uid, owner.gid) != 0 {
            throw ClusterError("cannot give \(unfinished) to user \(owner.uid)", errno: errno)
        }
        let descriptor = try openFolder(unfinished)
        defer { close(descriptor) }
        let arguments = user.command(
            [
                binaries.initdb, "-D", user.path(of: unfinished), "--username=beamline", "--auth=trust",
                "--encoding=UTF8", "--locale=C",
                "--no-sync",
            ], endWithParent: true)
        let (code, output) = try ChildProcess.run(arguments, folder: descriptor)
        guard code == 0 else {
            let reason =
                output.split(separator: "\n").last { $0.contains("error") || $0.contains("FATAL") }
                ?? "exit code \(code)"
            throw ClusterError("cannot create the PostgreSQL cluster in \(unfinished): \(reason)")
        }
        // initdb's own sync visits a thousand files; one sync of the file system does the same.
        let synced = try ChildProcess.run(["/bin/sync", "-f", unfinished])
        guard synced.code == 0, rename(unfinished, dataFolder + "/postgres") == 0 else {
            throw ClusterError("cannot create \(dataFolder)/postgres", errno: errno)
        }
    }

    private func openFolder(_ folder: String) throws(ClusterError) -> Int32 {
        let descriptor = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { throw ClusterError("cannot open \(folder)", errno: errno) }
        return descriptor
    }

    private func openLog() throws(ClusterError) -> Int32 {
        let path = dataFolder + "/postgres.log"
        let descriptor = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { throw ClusterError("cannot write \(path)", errno: errno) }
        // Append-only and read by people after trouble: kept until it is large, then begun anew at a start.
        var facts = Glibc.stat()
        if fstat(descriptor, &facts) == 0, facts.st_size > 16 << 20 { ftruncate(descriptor, 0) }
        return descriptor
    }

    private func version(of folder: String) throws(ClusterError) -> Int {
        let path = folder + "/PG_VERSION"
        guard let text = try? String(contentsOfFile: path, encoding: .utf8),
            let major = Int(text.prefix { $0.isNumber })
        else { throw ClusterError("cannot read \(path): is the data folder complete and yours?") }
        return major
    }

    /// Whole files under a new name, then renamed, so that a kill leaves the old or the new one.
    private func writeConfiguration(to folder: Int32, as user: ServerUser, major: Int) throws(ClusterError) {
        for (name, text) in [
            ("postgresql.conf", ClusterConfiguration.postgresql(name: dataFolder, major: major)),
            ("pg_hba.conf", ClusterConfiguration.hostBasedAuthentication),
        ] {
            let temporary = name + ".new"
            let file = openat(folder, temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
            guard file >= 0 else { throw ClusterError("cannot write \(dataFolder)/postgres/\(name)", errno: errno) }
            defer { close(file) }
            let bytes = Array(text.utf8)
            let written = write(file, bytes, bytes.count)
            if let owner = user.switchTo { fchown(file, owner.uid, owner.gid) }
            guard written == bytes.count, renameat(folder, temporary, folder, name) == 0 else {
                throw ClusterError("cannot write \(dataFolder)/postgres/\(name)", errno: errno)
            }
        }
    }

    /// Ready when the eighth line of postmaster.pid says so, as pg_ctl does.
    /// Source: PostgreSQL, src/include/utils/pidfile.h (LOCK_FILE_LINE_PM_STATUS).
    private func waitUntilReady(_ pid: pid_t, in folder: String) throws(ClusterError) {
        let limit = ContinuousClock.now + .seconds(300)  // crash recovery reads up to max_wal_size
        while ContinuousClock.now < limit {
            if let file = PostmasterFile(in: folder), file.pid == pid, file.isReady { return }
            var status: Int32 = 0
            if waitpid(pid, &status, WNOHANG) == pid {
                state.withLock { $0.phase = .restarting }
                throw ClusterError(
                    "PostgreSQL ended while starting (exit code \(ChildProcess.exitCode(status))): \(lastLogLine() ?? "it said nothing"); see \(dataFolder)/postgres.log"
                )
            }
            if state.withLock({ $0.stopping }) { _ = Glibc.kill(pid, SIGINT) }
            usleep(5_000)
        }
        _ = Glibc.kill(pid, SIGKILL)
        throw ClusterError("PostgreSQL was not ready after 300 s; see \(dataFolder)/postgres.log")
    }

    /// The last complaint in the log, without its time and process.
    private func lastLogLine() -> String? {
        guard let text = try? String(contentsOfFile: dataFolder + "/postgres.log", encoding: .utf8) else { return nil }
        let lines = text.utf8.count > 16_384 ? text.suffix(16_384).split(separator: "\n") : text.split(separator: "\n")
        let line = lines.last { $0.contains("FATAL:") || $0.contains("ERROR:") } ?? lines.last
        return line.map { line in
            for mark in ["FATAL:", "ERROR:", "LOG:"] {
                if let range = line.range(of: mark) {
                    return line[range.upperBound...].trimmingCharacters(in: .whitespaces)
                }
            }
            return String(line)
        }
    }
}

extension PrivateCluster {
    /// Ends every PostgreSQL process that works in this folder: a server left by a killed Beamline, or the backends of a
    /// killed server, which must be gone before the folder can be opened again. The server gets 8 s for an orderly
    /// shutdown (its checkpoint makes our start short), then 2 s for an immediate one.
    ///
    /// A process is one of them when its working folder is this folder: a process id in postmaster.pid may by now belong
    /// to somebody else.
    fileprivate func endLeftovers(of descriptor: Int32, named folder: String) throws(ClusterError) {
        var sent: Int32 = 0
        let since = ContinuousClock.now
        while true {
            let processes = Self.serverProcesses(in: descriptor)
            if processes.isEmpty { break }
            let waited = ContinuousClock.now - since
            if waited > .seconds(15) {
                throw ClusterError(
                    "process \(processes[0]) of an earlier PostgreSQL still works in \(folder) and cannot be ended")
            }
            let postmaster = PostmasterFile(in: folder)?.pid
            // Backends whose server was killed go on as long as a client keeps them busy: they are ended at once.
            let isServerAlive = postmaster.map(processes.contains) ?? true
            let signal =
                if isServerAlive {
                    waited > .seconds(10) ? SIGKILL : waited > .seconds(8) ? SIGQUIT : SIGINT
                } else {
                    waited > .seconds(2) ? SIGKILL : SIGQUIT
                }
            if signal != sent {
                logger.notice(
                    "ending an earlier PostgreSQL of this folder", metadata: ["processes": "\(processes.count)"])
                for pid in processes where signal != SIGINT || pid == postmaster || postmaster == nil {
                    _ = Glibc.kill(pid, signal)
                }
                sent = signal
            }
            usleep(10_000)
        }
        // Nobody works here, so what a killed server left is only a name that could be taken for a foreign process, or a
        // zombie that init has not reaped yet: PostgreSQL takes that for a living server and refuses to start.
        unlinkat(descriptor, "postmaster.pid", 0)
        unlinkat(descriptor, ".s.PGSQL.5432.lock", 0)
    }

    private static func serverProcesses(in descriptor: Int32) -> [pid_t] {
        var folder = Glibc.stat()
        guard fstat(descriptor, &folder) == 0 else { return [] }
        return entries(of: "/proc").compactMap { (name) -> pid_t? in
            guard let pid = pid_t(name) else { return nil }
            var working = Glibc.stat()
            guard fstatat(AT_FDCWD, "/proc/\(pid)/cwd", &working, 0) == 0, working.st_dev == folder.st_dev,
                working.st_ino == folder.st_ino,
                let command = firstLine(of: "/proc/\(pid)/comm"), command == "postgres"
            else { return nil }
            return pid
        }
    }
}

private func firstLine(of path: String) -> String? {
    guard let file = fopen(path, "r") else { return nil }
    defer { fclose(file) }
    var buffer = [CChar](repeating: 0, count: 256)
    guard fgets(&buffer, Int32(buffer.count), file) != nil else { return nil }
    return String(decoding: buffer.prefix { $0 != 0 && $0 != 10 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
}

/// What a postmaster writes about itself.
struct PostmasterFile {
    var pid: pid_t
    var isReady: Bool

    init?(in folder: String) {
        guard let text = try? String(contentsOfFile: folder + "/postmaster.pid", encoding: .utf8) else { return nil }
        let lines = text.split(separator: "\n", omittingEmptySubsequences: false)
        guard let first = lines.first, let pid = pid_t(first) else { return nil }
        self.pid = pid
        isReady = lines.count > 7 && lines[7].hasPrefix("ready")
    }
}

/// Who PostgreSQL runs as, and how it is started so.
struct ServerUser {
    /// nil: as ourselves.
    var switchTo: (uid: uid_t, gid: gid_t)?

    /// Ourselves, unless we are root: then the owner of the cluster, or `postgres` for a new one.
    static func forCluster(at folder: String) throws(ClusterError) -> ServerUser {
        guard geteuid() == 0 else { return ServerUser(switchTo: nil) }
        var facts = Glibc.stat()
        if fstatat(AT_FDCWD, folder, &facts, 0) == 0 {
            guard facts.st_uid != 0 else {
                throw ClusterError(
                    "\(folder) belongs to root, as whom PostgreSQL does not run: chown -R postgres:postgres \(folder)")
            }
            return ServerUser(switchTo: (facts.st_uid, facts.st_gid))
        }
        guard let entry = getpwnam("postgres") else {
            throw ClusterError(
                "PostgreSQL does not run as root and there is no user postgres: create one (useradd --system postgres) or start as an ordinary user"
            )
        }
        return ServerUser(switchTo: (entry.pointee.pw_uid, entry.pointee.pw_gid))
    }

    /// The folder as the server sees it.
    func path(of folder: String) -> String {
        switchTo == nil ? folder : "/proc/self/fd/\(ChildProcess.folderDescriptor)"
    }

    /// The command under this user. With `endWithParent` the kernel asks it to stop when Beamline is killed, so that
    /// no server is left running in a folder nobody serves.
    func command(_ arguments: [String], endWithParent: Bool) -> [String] {
        let candidates: [String] = ["/usr/bin/setpriv", "/bin/setpriv"]
        guard let setpriv = candidates.first(where: { access($0, X_OK) == 0 }) else { return arguments }
        var command = [setpriv]
        if let owner = switchTo { command += ["--reuid=\(owner.uid)", "--regid=\(owner.gid)", "--clear-groups"] }
        if endWithParent { command += ["--pdeathsig=INT"] }
        return command + ["--"] + arguments
    }
}
