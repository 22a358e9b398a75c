// A client that sends exactly the bytes a test wants and reads answers with a time limit. Blocking sockets on threads
// of their own (`onThread`), so that waiting tests do not occupy the threads the server needs.

import AccessControl
import Glibc
import Synchronization

struct RawClientError: Error, CustomStringConvertible {
    var description: String
}

struct RawResponse: Sendable {
    var status: Int
    /// Names in lower case.
    var headers: [String: String]
    var body: String

    var errorType: String? { headers["x-amzn-errortype"] }
}

final class RawClient: @unchecked Sendable {
    // Unchecked: each test uses its client from one thread at a time.
    private let socketDescriptor: Int32
    private var received: [UInt8] = []

    init(port: Int) throws {
        socketDescriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = in_port_t(UInt16(port)).bigEndian
        address.sin_addr.s_addr = inet_addr("127.0.0.1")
        let status = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(socketDescriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        guard status == 0 else { throw RawClientError(description: "connect: errno \(errno)") }
        // A server that stops reading must fail a test, not hang it.
        var limit = timeval(tv_sec: 30, tv_usec: 0)
        setsockopt(socketDescriptor, SOL_SOCKET, SO_SNDTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    }

    deinit { close(socketDescriptor) }

    func send(_ text: String) throws { try send(Array(text.utf8)) }

    func send(_ bytes: [UInt8]) throws {
        var sent = 0
        while sent < bytes.count {
            let count = bytes[sent...].withUnsafeBytes {
                Glibc.send(socketDescriptor, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
            }
            guard count > 0 else { throw RawClientError(description: "send: errno \(errno)") }
            sent += count
        }
    }

    /// Says that nothing more will be sent.
    func shutDownOutput() { shutdown(socketDescriptor, Int32(SHUT_WR)) }

    /// The next response. A `100 Continue` is one of its own.
    func response(seconds: Int = 20, hasBody: Bool = true) throws -> RawResponse {
        while true {
            if let end = received.firstRange(of: Array("\r\n\r\n".utf8)) {
                let lines = String(decoding: received[..<end.lowerBound], as: UTF8.self).split(separator: "\r\n")
                let status = lines.first.flatMap { Int($0.split(separator: " ")[1]) } ?? 0
                var headers: [String: String] = [:]
                for line in lines.dropFirst() {
                    let parts = line.split(separator: ":", maxSplits: 1)
                    headers[parts[0].lowercased()] = String(parts[1].drop { $0 == " " })
                }
                let length = hasBody ? headers["content-length"].flatMap(Int.init) ?? 0 : 0
                if received.count >= end.upperBound + length {
                    let body = String(decoding: received[end.upperBound..<(end.upperBound + length)], as: UTF8.self)
                    received.removeFirst(end.upperBound + length)
                    return RawResponse(status: status, headers: headers, body: body)
                }
            }
            guard try receive(seconds: seconds) else {
                throw RawClientError(description: "closed after \(received.count) bytes")
            }
        }
    }

    /// Whether the server closes its side within the time, without sending anything more.
    func isClosed(seconds: Int = 20) throws -> Bool {
        let before = received.count
        return try !receive(seconds: seconds) && received.count == before
    }

    /// Like `isClosed`, or reset: what the kernel does when the server closes with bytes of ours unread.
    func isCutOff(seconds: Int = 20) throws -> Bool {
        var descriptor = pollfd(fd: socketDescriptor, events: Int16(POLLIN), revents: 0)
        guard poll(&descriptor, 1, Int32(seconds * 1000)) == 1 else {
            throw RawClientError(description: "nothing for \(seconds) s")
        }
        var byte: UInt8 = 0
        let count = recv(socketDescriptor, &byte, 1, 0)
        return count == 0 || count < 0 && errno == ECONNRESET
    }

    /// - Returns: false at the end of the stream.
    private func receive(seconds: Int) throws -> Bool {
        var descriptor = pollfd(fd: socketDescriptor, events: Int16(POLLIN), revents: 0)
        guard poll(&descriptor, 1, Int32(seconds * 1000)) == 1 else {
            throw RawClientError(description: "nothing for \(seconds) s")
        }
        var buffer = [UInt8](repeating: 0, count: 64 << 10)
        let count = recv(socketDescriptor, &buffer, buffer.count, 0)
        guard count >= 0 else { throw RawClientError(description: "recv: errno \(errno)") }
        received += buffer[..<count]
        return count > 0
    }
}
