// The table of `daemon.md` §1, row by row.

import Testing

@testable import Ingest

private func document(in datagram: String) -> String? {
    Array(datagram.utf8).withUnsafeBytes { bytes in
        DatagramHeader().document(in: bytes).map { String(decoding: $0, as: UTF8.self) }
    }
}

// If this fails, the X-Ray SDK of some language loses every segment.
@Test(arguments: [
    #"{"format":"json","version":1}"#,
    #"{"format": "json", "version": 1}"#,
    #"{"version":1,"format":"JSON"}"#,
    #" {"format":"Json" , "version":1.0 , "more":{"x":[1,2]}} "#,
    "{\"format\":\"json\",\"version\":1}\r",
])
func `a header with the right format and version is accepted, however it is spelled`(header: String) {
    #expect(document(in: header + "\n{}") == "{}")
}

// If this fails, something that is not a segment reaches the log, or is not counted.
@Test(arguments: [
    "", "\n", "x", #"{"format":"json","version":1}"#, "{\"format\":\"json\",\"version\":1}\n", "\n{}", "json 1\n{}",
    "{\"format\":\"json\"}\n{}", "{\"version\":1}\n{}", "{\"format\":\"json\",\"version\":2}\n{}",
    "{\"format\":\"json\",\"version\":\"1\"}\n{}", "{\"format\":\"jsonx\",\"version\":1}\n{}",
    "{\"format\":\"xml!\",\"version\":1}\n{}", "{\"format\":null,\"version\":null}\n{}",
    "[{\"format\":\"json\",\"version\":1}]\n{}",
    "{\"format\":\"json\",\"version\":1\n{}", "{\"format\":\"json\",\"version\":1}x\n{}",
])
func `any other datagram is refused`(datagram: String) {
    #expect(document(in: datagram) == nil)
}

// If this fails, a document that was pretty-printed is cut at its second line.
@Test func `the document is everything behind the first line feed`() {
    #expect(document(in: "{\"format\":\"json\",\"version\":1}\n{\n\"a\":1\n}\n") == "{\n\"a\":1\n}\n")
    #expect(document(in: "{\"format\":\"json\",\"version\":1}\n\n") == "\n")
}
