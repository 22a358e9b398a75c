// HOST:PORT of a listener, or off.

import Glibc

/// Where a listener is; the text forms are `127.0.0.1:2000`, `[::1]:2000`, `name:2000`.
struct ListenAddress: Equatable, CustomStringConvertible {
    /// Without brackets.
    var host: String
    /// 0 lets the system choose.
    var port: Int

    init(host: String, port: Int) {
        self.host = host
        self.port = port
    }

    /// nil when the text is not HOST:PORT.
    init?(_ text: String) {
        guard let colon = text.lastIndex(of: ":") else { return nil }
        var host = String(text[..<colon])
        if host.hasPrefix("["), host.hasSuffix("]") {
            host = String(host.dropFirst().dropLast())
        } else if host.contains(":") {
            return nil  // an IPv6 address without brackets: which colon is the last one?
        }
        let digits = text[text.index(after: colon)...]
        guard !host.isEmpty, !host.contains(where: { $0.isWhitespace || $0 == "/" }),
            !digits.isEmpty, digits.utf8.allSatisfy({ (0x30...0x39).contains($0) }), let port = Int(digits),
            port <= 65_535
        else { return nil }
        self.init(host: host, port: port)
    }

    var description: String { host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)" }

    /// Nobody on another machine reaches it.
    var isLoopback: Bool { host == "localhost" || host == "::1" || host.hasPrefix("127.") }

    /// An address a client on this machine can use: the loopback address when the listener is on all of them.
    var reachable: ListenAddress {
        switch host {
        case "0.0.0.0": ListenAddress(host: "127.0.0.1", port: port)
        case "::": ListenAddress(host: "::1", port: port)
        default: self
        }
    }
}

/// Binds the address for a moment.
/// - Throws: one sentence, when that fails: the port is taken, or the address is none of this machine.
func requireFree(_ address: ListenAddress, _ type: __socket_type, setting: String) throws {
    var hints = addrinfo()
    hints.ai_socktype = Int32(type.rawValue)
    hints.ai_flags = AI_PASSIVE
    var found: UnsafeMutablePointer<addrinfo>?
    let code = getaddrinfo(address.host, String(address.port), &hints, &found)
    guard code == 0, let first = found else {
        throw CommandFailure("cannot resolve \(address.host) (--\(setting)): \(String(cString: gai_strerror(code)))")
    }
    defer { freeaddrinfo(first) }
    var failure: Int32 = EADDRINUSE
    // A process that was just killed has its port until the kernel has taken it apart.
    for attempt in 0..<50 where failure == EADDRINUSE {
        if attempt > 0 { usleep(20_000) }
        let descriptor = socket(first.pointee.ai_family, Int32(type.rawValue), 0)
        defer { close(descriptor) }
        var yes: Int32 = 1
        // As the servers do: connections of an earlier process that are still closing do not hold the port.
        if type == SOCK_STREAM {
            setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &yes, socklen_t(MemoryLayout<Int32>.size))
        }
        let isBound = descriptor >= 0 && bind(descriptor, first.pointee.ai_addr, first.pointee.ai_addrlen) == 0
        failure = isBound ? 0 : errno
    }
    guard failure == 0 else {
        let hint = failure == EADDRINUSE ? "; choose another port or end the program that has it" : ""
        throw CommandFailure("cannot listen on \(address) (--\(setting)): \(String(cString: strerror(failure)))\(hint)")
    }
}
