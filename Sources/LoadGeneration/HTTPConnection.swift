// One HTTP/1.1 connection over a blocking socket, for the worker threads of the load generator and the commands that
// read the API. Hand-written because the generator's processor time is part of what it measures. Plain HTTP only.

import Glibc

/// Where the API listens: `http://host:port[/prefix]`.
public struct Endpoint: Sendable, Equatable {
    public var host: String
    public var port: UInt16
    /// Path in front of every operation's path; empty or `/…` without a trailing slash.
    public var pathPrefix: String
    /// The `Host` header: with the port unless it is 80.
    public var authority: String { port == 80 ? host : "\(host):\(port)" }

    /// - Throws: `LoadError` with a sentence that names what is wrong.
    public init(parsing text: String) throws(LoadError) {
        guard text.hasPrefix("http://") else {
            throw LoadError(
                text.hasPrefix("https://")
                    ? "endpoint \(text): load and verify speak plain HTTP only; give a plain address of the same server (of a node, or behind the TLS proxy), or verify the tables with --database-url or --data-dir"
                    : "endpoint \(text): expected http://host:port")
        }
        let rest = text.dropFirst("http://".count)
        let slash = rest.firstIndex(of: "/") ?? rest.endIndex
        var path = String(rest[slash...])
        while path.hasSuffix("/") { path.removeLast() }
        pathPrefix = path
        let authority = rest[..<slash]
        if let colon = authority.lastIndex(of: ":"), !authority.hasSuffix("]") {
            guard let number = UInt16(authority[authority.index(after: colon)...]) else {
                throw LoadError("endpoint \(text): \(authority) has no port number from 1 to 65535")
            }
            port = number
            host = String(authority[..<colon])
        } else {
            port = 80
            host = String(authority)
        }
        guard !host.isEmpty else { throw LoadError("endpoint \(text): no host") }
    }
}

/// A failure of the load generator or of a call it made, as one sentence.
public struct LoadError: Error, CustomStringConvertible, Sendable {
    public var description: String
    public init(_ description: String) { self.description = description }
}

/// Status, head and body of one answer; the bytes belong to the connection and live until its next exchange.
struct RawResponse {
    var status: Int
    var head: UnsafeRawBufferPointer
    var body: UnsafeRawBufferPointer

    /// Value of a header by its lower-case name.
    func header(_ name: String) -> String? {
        for line in String(decoding: head, as: UTF8.self).split(separator: "\r\n").dropFirst() {
            guard let colon = line.firstIndex(of: ":"), line[..<colon].lowercased() == name else { continue }
            return String(line[line.index(after: colon)...].drop(while: { $0 == " " }))
        }
        return nil
    }
}

/// Not Sendable: one thread uses it.
final class HTTPConnection {
    private let endpoint: Endpoint
    private let timeoutSeconds: Int
    private var socket: Int32 = -1
    private var buffer: UnsafeMutablePointer<UInt8>
    private var capacity = 64 * 1024

    init(to endpoint: Endpoint, timeoutSeconds: Int = 60) {
        self.endpoint = endpoint
        self.timeoutSeconds = timeoutSeconds
        buffer = .allocate(capacity: capacity)
    }

    deinit {
        close()
        buffer.deallocate()
    }

    func close() {
        if socket >= 0 { Glibc.close(socket) }
        socket = -1
    }

    /// Sends head and body, reads one whole answer. Opens the connection when it is closed; after any failure it is closed.
    func exchange(head: UnsafeRawBufferPointer, body: UnsafeRawBufferPointer) throws(LoadError) -> RawResponse {
        do {
            if socket < 0 { try connect() }
            try send(head, body)
            return try receive()
        } catch {
            close()
            throw error
        }
    }

    /// Opens the connection ahead of the first exchange, to learn whether anybody is there.
    func open() throws(LoadError) { if socket < 0 { try connect() } }

    private static func setTimeouts(of socket: Int32, seconds: Int) {
        var limit = timeval(tv_sec: seconds, tv_usec: 0)
        setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
        setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    }

    /// socket(7): SO_SNDTIMEO bounds connect as well, which then fails with EINPROGRESS.
    private static let connectSeconds = 5

    private func connect() throws(LoadError) {
        var hints = addrinfo()
        hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        var found: UnsafeMutablePointer<addrinfo>?
        let host = endpoint.host.hasPrefix("[") ? String(endpoint.host.dropFirst().dropLast()) : endpoint.host
        guard getaddrinfo(host, "\(endpoint.port)", &hints, &found) == 0, let first = found else {
            throw LoadError("cannot resolve host \(endpoint.host)")
        }
        defer { freeaddrinfo(found) }
        var candidate: UnsafeMutablePointer<addrinfo>? = first
        var reason: Int32 = 0
        while let address = candidate?.pointee {
            let opened = Glibc.socket(address.ai_family, address.ai_socktype | Int32(SOCK_CLOEXEC.rawValue), address.ai_protocol)
            if opened >= 0 {
                Self.setTimeouts(of: opened, seconds: Self.connectSeconds)
                if Glibc.connect(opened, address.ai_addr, address.ai_addrlen) == 0 {
                    var on: Int32 = 1
                    setsockopt(opened, Int32(IPPROTO_TCP), TCP_NODELAY, &on, socklen_t(MemoryLayout<Int32>.size))
                    Self.setTimeouts(of: opened, seconds: timeoutSeconds)
                    socket = opened
                    return
                }
                reason = errno
                Glibc.close(opened)
            } else {
                reason = errno
            }
            candidate = address.ai_next
        }
        let text =
            reason == EINPROGRESS ? "no answer within \(Self.connectSeconds) s" : String(cString: strerror(reason))
        throw LoadError("cannot connect to \(endpoint.authority): \(text); is the address right, and does the server run?")
    }

    private func send(_ head: UnsafeRawBufferPointer, _ body: UnsafeRawBufferPointer) throws(LoadError) {
        var sent = 0
        let total = head.count + body.count
        while sent < total {
            let headRest = UnsafeRawBufferPointer(rebasing: head[min(sent, head.count)...])
            let bodyRest = UnsafeRawBufferPointer(rebasing: body[max(0, sent - head.count)...])
            var parts = (
                iovec(iov_base: UnsafeMutableRawPointer(mutating: headRest.baseAddress), iov_len: headRest.count),
                iovec(iov_base: UnsafeMutableRawPointer(mutating: bodyRest.baseAddress), iov_len: bodyRest.count)
            )
            let socket = socket
            let written = withUnsafeMutablePointer(to: &parts) { parts in
                parts.withMemoryRebound(to: iovec.self, capacity: 2) { vectors in
                    var message = msghdr()
                    message.msg_iov = vectors
                    message.msg_iovlen = 2
                    return sendmsg(socket, &message, Int32(MSG_NOSIGNAL))
                }
            }
            if written < 0 {
                if errno == EINTR { continue }
                throw LoadError("sending to \(endpoint.authority) failed: \(String(cString: strerror(errno)))")
            }
            sent += written
        }
    }

    private func receive() throws(LoadError) -> RawResponse {
        var filled = 0
        var headEnd = -1
        var scanned = 0
        while headEnd < 0 {
            filled += try read(at: filled)
            headEnd = end(of: filled, from: scanned)
            scanned = max(0, filled - 3)
        }
        let head = UnsafeRawBufferPointer(start: buffer, count: headEnd)
        // "HTTP/1.1 200 …"
        guard head.count >= 12, head[0] == 72, head[1] == 84 else {
            throw LoadError("\(endpoint.authority) does not answer in HTTP")
        }
        let status = head[9..<12].reduce(0) { $0 * 10 + Int($1) - 48 }
        guard let length = contentLength(head) else {
            throw LoadError("\(endpoint.authority) answered \(status) without Content-Length")
        }
        let wanted = headEnd + length
        reserve(wanted)
        while filled < wanted { filled += try read(at: filled) }
        let response = RawResponse(
            status: status, head: UnsafeRawBufferPointer(start: buffer, count: headEnd),
            body: UnsafeRawBufferPointer(start: buffer + headEnd, count: length))
        if let connection = response.header("connection"), connection.lowercased() == "close" { close() }
        return response
    }

    private func reserve(_ wanted: Int) {
        guard wanted > capacity else { return }
        let larger = max(wanted, capacity * 2)
        let moved = UnsafeMutablePointer<UInt8>.allocate(capacity: larger)
        moved.update(from: buffer, count: capacity)
        buffer.deallocate()
        buffer = moved
        capacity = larger
    }

    private func read(at offset: Int) throws(LoadError) -> Int {
        reserve(offset + 1)
        while true {
            let count = recv(socket, buffer + offset, capacity - offset, 0)
            if count > 0 { return count }
            if count == 0 { throw LoadError("\(endpoint.authority) closed the connection") }
            if errno == EINTR { continue }
            if errno == EAGAIN { throw LoadError("\(endpoint.authority) did not answer within \(timeoutSeconds) s") }
            throw LoadError("reading from \(endpoint.authority) failed: \(String(cString: strerror(errno)))")
        }
    }

    /// Offset behind the first empty line, or -1.
    private func end(of filled: Int, from start: Int) -> Int {
        guard filled >= 4 else { return -1 }
        var index = start
        while index + 3 < filled {
            if buffer[index] == 13, buffer[index + 1] == 10, buffer[index + 2] == 13, buffer[index + 3] == 10 { return index + 4 }
            index += 1
        }
        return -1
    }

    /// Without making strings: this runs once per call of the load.
    private func contentLength(_ head: UnsafeRawBufferPointer) -> Int? {
        let name: StaticString = "\r\ncontent-length:"
        let count = name.utf8CodeUnitCount
        var index = 0
        while index + count < head.count {
            var matched = 0
            while matched < count {
                var byte = head[index + matched]
                if byte >= 65, byte <= 90 { byte |= 32 }
                if byte != name.utf8Start[matched] { break }
                matched += 1
            }
            if matched == count {
                var value = 0
                for byte in head[(index + count)...] {
                    if byte == 32 { continue }
                    guard byte >= 48, byte <= 57, value < 1 << 40 else { break }
                    value = value * 10 + Int(byte - 48)
                }
                return value
            }
            index += 1
        }
        return nil
    }
}
