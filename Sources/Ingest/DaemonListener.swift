// The X-Ray daemon's UDP port (`daemon.md` §1 and §8 rows 1 to 5 and 13): SDKs send unsigned datagrams, one document
// each; they go straight into the intake as documents of the account the listener was configured with. Nothing is ever
// sent back, so every loss is counted. A service of the process; the sampling calls on TCP are not here.

import Glibc
import Logging
import Observability
import SegmentLog
import Segments
import ServiceLifecycle
import Synchronization

public final class DaemonListener: Service, Sendable {
    private let intake: DocumentIntake
    private let account: AccountID
    private let metrics: Metrics
    private let logger: Logger
    private let socket: Int32
    private let queue: DatagramQueue
    private let stopping = Atomic<Bool>(false)
    private let lastComplaint = Mutex<ContinuousClock.Instant?>(nil)

    /// After the first datagram in an idle queue, how long to wait for others of the same moment before a commit is
    /// spent on it. The official daemon waits a second; here a reader may already be asking.
    private static let gathering: Duration = .milliseconds(10)
    /// Batches on their way to the log at once.
    private static let deliverers = 8

    /// Binds the socket: the port is ours, or the start fails.
    /// - Parameters:
    ///   - host: an address or a name; not a bracketed literal.
    ///   - queueBytes: bound of what waits for the log.
    public init(
        host: String, port: Int, account: AccountID, intake: DocumentIntake, metrics: Metrics, logger: Logger,
        queueBytes: Int = 64 << 20
    ) throws(DaemonListenerError) {
        self.intake = intake
        self.account = account
        self.metrics = metrics
        self.logger = logger
        queue = DatagramQueue(capacityBytes: queueBytes)
        socket = try Self.bind(host: host, port: port)
        for outcome in [Metrics.DatagramOutcome.received, .accepted, .refused, .dropped] {
            metrics.datagrams(0, outcome)
        }
        let inode = Self.inode(of: socket)
        metrics.sampled(
            "beamline_daemon_kernel_dropped_total", "Datagrams the kernel dropped because the receive buffer was full.",
            kind: .counter
        ) { Self.kernelDrops(inode: inode) }
    }

    deinit { close(socket) }

    /// The port that was bound; differs from the one asked for when that was 0.
    public var port: Int {
        var address = sockaddr_storage()
        var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
        let known = withUnsafeMutableBytes(of: &address) { bytes in
            bytes.baseAddress.map { getsockname(socket, $0.assumingMemoryBound(to: sockaddr.self), &length) } ?? -1
        }
        guard known == 0 else { return 0 }
        // Port and family stand in the same place in both address families.
        return withUnsafeBytes(of: &address) { Int($0[2]) << 8 | Int($0[3]) }
    }

    /// Receives and delivers until shutdown; then stops reading and delivers what waits, for at most 4 s.
    public func run() async throws {
        // A task's result says whether it was the one that watches the time.
        await withTaskGroup(of: Bool.self) { group in
            group.addTask {
                await self.receive()
                return false
            }
            for _ in 0..<Self.deliverers {
                group.addTask {
                    await self.deliver()
                    return false
                }
            }
            try? await gracefulShutdown()
            stopping.store(true, ordering: .relaxed)
            queue.close()
            group.addTask {
                try? await Task.sleep(for: .seconds(4))
                return true
            }
            var working = Self.deliverers + 1
            while working > 0, let isTimeOver = await group.next() {
                guard isTimeOver else {
                    working -= 1
                    continue
                }
                let lost = queue.dropAll()
                if lost > 0 { drop(lost) }
                group.cancelAll()
            }
            group.cancelAll()
        }
    }

    // MARK: Receiving

    /// The receive loop has a thread of its own: it blocks in the kernel and does nothing but split and copy.
    private func receive() async {
        await withCheckedContinuation { (ended: CheckedContinuation<Void, Never>) in
            let body = ThreadBody { [self] in
                receiveLoop()
                ended.resume()
            }
            body.start(named: "daemon-udp")
        }
    }

    private func receiveLoop() {
        let header = DatagramHeader()
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 65_536, alignment: 16)
        defer { buffer.deallocate() }
        while !stopping.load(ordering: .relaxed) {
            let count = recv(socket, buffer.baseAddress, buffer.count, 0)
            // An error is the receive time-out (a look at `stopping`) or EINTR; an empty datagram does not count.
            guard count > 0 else { continue }
            metrics.datagrams(1, .received)
            guard let document = header.document(in: UnsafeRawBufferPointer(rebasing: buffer[..<count])) else {
                metrics.datagrams(1, .refused)
                metrics.documentsRefused(source: "udp", reason: "BadHeader")
                complain(
                    "datagram refused: no header line {\"format\":\"json\",\"version\":1} or no document behind it")
                continue
            }
            let dropped = queue.put(document)
            if dropped > 0 { drop(dropped) }
        }
    }

    // MARK: Delivering

    private func deliver() async {
        while true {
            switch await queue.wait() {
            case .closed: return
            case .full: break
            case .first:
                if !stopping.load(ordering: .relaxed) { try? await Task.sleep(for: Self.gathering) }
            }
            guard let batch = queue.take() else { continue }
            metrics.daemonQueue(bytes: queue.byteCount)
            await deliver(batch)
            queue.delivered(batch)
            metrics.daemonQueue(bytes: queue.byteCount)
        }
    }

    private func deliver(_ batch: DatagramBatch) async {
        let origin = DocumentOrigin(account: account, callerARN: "", source: .udp, receivedAt: wallClock())
        let checked = batch.withDocuments { intake.check($0, from: origin) }
        metrics.datagrams(checked.refusals.count, .refused)
        if let refusal = checked.refusals.first {
            complain("document refused: \(refusal.message), id \(refusal.id ?? "unknown")")
        }

        // The sender will not repeat it, so we do: 0.2 s, doubling up to 30 s, with jitter, for 5 min.
        let end = ContinuousClock.now + .seconds(300)
        var pause = 0.2
        while true {
            do {
                try await intake.append(checked, source: .udp)
                metrics.datagrams(checked.accepted.count, .accepted)
                return
            } catch {
                let mayRetry = error.isRetriable && ContinuousClock.now < end && !stopping.load(ordering: .relaxed)
                guard mayRetry else { return drop(checked.accepted.count) }
                complain("the log does not take datagrams, trying again: \(error)")
                try? await Task.sleep(for: .seconds(pause * Double.random(in: 0.75...1.25)))
                pause = min(pause * 2, 30)
            }
        }
    }

    private func drop(_ count: Int) {
        metrics.datagrams(count, .dropped)
        complain("datagrams dropped: the log does not take them fast enough, or the process is stopping")
    }

    /// At most one line in 10 s: the counters tell how many there were.
    private func complain(_ message: @autoclosure () -> String) {
        let now = ContinuousClock.now
        let isDue = lastComplaint.withLock { last in
            guard last.map({ now - $0 > .seconds(10) }) ?? true else { return false }
            last = now
            return true
        }
        guard isDue else { return }
        logger.warning(
            "\(message())",
            metadata: [
                "received": "\(metrics.datagramCount(.received))", "accepted": "\(metrics.datagramCount(.accepted))",
                "refused": "\(metrics.datagramCount(.refused))", "dropped": "\(metrics.datagramCount(.dropped))",
            ])
    }
}

// MARK: The socket

extension DaemonListener {
    private static func bind(host: String, port: Int) throws(DaemonListenerError) -> Int32 {
        var hints = addrinfo()
        hints.ai_socktype = Int32(SOCK_DGRAM.rawValue)
        hints.ai_flags = AI_PASSIVE
        var found: UnsafeMutablePointer<addrinfo>?
        let code = getaddrinfo(host, String(port), &hints, &found)
        guard code == 0, let address = found else {
            throw DaemonListenerError(
                "cannot resolve \(host) for the daemon port: \(String(cString: gai_strerror(code)))")
        }
        defer { freeaddrinfo(address) }
        let descriptor = Glibc.socket(
            address.pointee.ai_family, Int32(SOCK_DGRAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
        guard descriptor >= 0 else { throw DaemonListenerError("cannot open a UDP socket: \(errorText())") }

        // 4 MiB for bursts: the forced option (root only) passes over net.core.rmem_max.
        var size: Int32 = 4 << 20
        let forced: Int32 = 33  // SO_RCVBUFFORCE
        if setsockopt(descriptor, SOL_SOCKET, forced, &size, socklen_t(MemoryLayout<Int32>.size)) != 0 {
            setsockopt(descriptor, SOL_SOCKET, SO_RCVBUF, &size, socklen_t(MemoryLayout<Int32>.size))
        }
        // The receive loop looks this often whether it is to end.
        var timeout = timeval(tv_sec: 0, tv_usec: 100_000)
        setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &timeout, socklen_t(MemoryLayout<timeval>.size))

        guard Glibc.bind(descriptor, address.pointee.ai_addr, address.pointee.ai_addrlen) == 0 else {
            let reason = errorText()
            close(descriptor)
            throw DaemonListenerError(
                "cannot listen on UDP \(host):\(port) (--daemon): \(reason); is another X-Ray daemon running?")
        }
        return descriptor
    }

    private static func errorText() -> String { String(cString: strerror(errno)) }

    private static func inode(of descriptor: Int32) -> UInt64 {
        var facts = stat()
        return fstat(descriptor, &facts) == 0 ? UInt64(facts.st_ino) : 0
    }

    /// The last column of our line in /proc/net/udp or udp6.
    private static func kernelDrops(inode: UInt64) -> Double? {
        for path in ["/proc/net/udp", "/proc/net/udp6"] {
            guard let file = fopen(path, "r") else { continue }
            defer { fclose(file) }
            var line = [CChar](repeating: 0, count: 512)
            while fgets(&line, Int32(line.count), file) != nil {
                let text = String(decoding: line.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
                let fields = text.split { $0 == " " || $0 == "\n" }
                if fields.count > 12, UInt64(fields[9]) == inode { return Double(fields[12]) }
            }
        }
        return nil
    }
}

/// Why the daemon port cannot be opened, as one sentence.
public struct DaemonListenerError: Error, CustomStringConvertible, Sendable {
    public var description: String

    init(_ description: String) { self.description = description }
}

func wallClock() -> Micros {
    var now = timespec()
    clock_gettime(CLOCK_REALTIME, &now)
    return Micros(now.tv_sec) * 1_000_000 + Micros(now.tv_nsec) / 1_000
}
