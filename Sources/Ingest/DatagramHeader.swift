// The first line of a daemon datagram (`daemon.md` §1): `{"format":"json","version":1}`, a line feed, then one document
// that is not looked at here. Called by the receiving thread for every datagram.

import JSONText

/// Splits datagrams; keeps a JSON parser for headers that are spelled unusually. One per thread.
final class DatagramHeader {
    private let parser = JSONParser()

    /// What the SDKs send, byte for byte: Java and Go / Python and Node.
    private static let usual = [#"{"format":"json","version":1}"#, #"{"format": "json", "version": 1}"#].map {
        Array($0.utf8)
    }

    /// - Returns: the document (everything behind the first line feed), or nil when the datagram is refused: no line
    ///   feed, nothing behind it, a header that is not a JSON object, another format or version.
    func document(in datagram: UnsafeRawBufferPointer) -> UnsafeRawBufferPointer? {
        guard let end = datagram.firstIndex(of: 0x0A), end + 1 < datagram.count else { return nil }
        let header = UnsafeRawBufferPointer(rebasing: datagram[..<end])
        guard Self.usual.contains(where: { header.elementsEqual($0) }) || isAccepted(header) else { return nil }
        return UnsafeRawBufferPointer(rebasing: datagram[(end + 1)...])
    }

    private func isAccepted(_ header: UnsafeRawBufferPointer) -> Bool {
        guard let root = try? parser.parse(header), root.isObject,
            let format = root.member("format")?.string, format.count == 4,
            zip(format.utf8, "json".utf8).allSatisfy({ $0 | 0x20 == $1 }),
            let version = root.member("version")?.double
        else { return false }
        return version == 1
    }
}
