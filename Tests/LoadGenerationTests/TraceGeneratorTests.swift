import JSONText
import Segments
import Testing

@testable import LoadGeneration

struct TraceGeneratorTests {
    private let now: Micros = 1_700_000_000_000_000

    private func documents(_ count: Int, shape: TraceShape, worker: Int = 0, startedAt: Micros? = nil) -> [[UInt8]] {
        let generator = TraceGenerator(shape: shape, worker: worker, startedAt: startedAt ?? now, escaped: false)
        return (0..<count).map { _ in
            let out = OutputBuffer(capacity: 16)
            generator.writeDocument(into: out, now: now)
            return Array(out.bytes)
        }
    }

    // If this fails, a load run measures how fast the server refuses nonsense.
    @Test(arguments: [5, 20, 50])
    func `every generated document is accepted`(services: Int) throws {
        var shape = TraceShape()
        shape.services = services
        let parser = SegmentParser(limits: SegmentLimits())
        for document in documents(2000, shape: shape) {
            _ = try document.withUnsafeBytes { bytes in try parser.parse(bytes) }
        }
    }

    // If this fails, figures per document are not comparable with the targets, which speak of 1.1 KB.
    @Test func `documents average about one kilobyte and traces about six documents`() {
        let generator = TraceGenerator(shape: TraceShape(), worker: 0, startedAt: now, escaped: false)
        let out = OutputBuffer()
        for _ in 0..<20_000 {
            out.removeAll()
            generator.writeDocument(into: out, now: now)
        }
        let average = generator.byteCount / generator.documentCount
        #expect((1050...1180).contains(average), "average \(average) bytes")
        let perTrace = Double(generator.documentCount) / Double(generator.traceCount)
        #expect((5.0...7.0).contains(perTrace), "\(perTrace) documents a trace")
    }

    // If this fails, the bytes sent inside JSON strings are not the documents that were counted.
    @Test func `the escaped form holds exactly the plain form`() throws {
        let plain = TraceGenerator(shape: TraceShape(), worker: 3, startedAt: now, escaped: false)
        let escaped = TraceGenerator(shape: TraceShape(), worker: 3, startedAt: now, escaped: true)
        let parser = JSONParser()
        for _ in 0..<500 {
            let document = OutputBuffer()
            plain.writeDocument(into: document, now: now)
            let wrapped = OutputBuffer()
            wrapped.append(#"{"d":""#)
            escaped.writeDocument(into: wrapped, now: now)
            wrapped.append(#""}"#)
            let inside = try parser.parse(wrapped.bytes).member("d")?.string?.string
            #expect(inside == String(decoding: document.bytes, as: UTF8.self))
        }
        #expect(plain.byteCount == escaped.byteCount)
    }

    // If this fails, two runs with one seed cannot be compared, or the second is swallowed as a repetition of the first.
    @Test func `a seed fixes the traffic and the start fixes the ids`() {
        let shape = TraceShape()
        #expect(documents(200, shape: shape) == documents(200, shape: shape))
        let parser = SegmentParser(limits: SegmentLimits())
        func ids(_ documents: [[UInt8]]) -> Set<TraceID> {
            Set(documents.compactMap { document in document.withUnsafeBytes { try? parser.validate($0) } })
        }
        let first = ids(documents(200, shape: shape))
        #expect(first.isDisjoint(with: ids(documents(200, shape: shape, startedAt: now + 1))))
        #expect(first.isDisjoint(with: ids(documents(200, shape: shape, worker: 1))))
    }

    // If this fails, `--check` compares the server with wrong totals.
    @Test func `the expected totals are those of the documents`() throws {
        var shape = TraceShape()
        shape.services = 12
        shape.sampleEvery = 10
        let generator = TraceGenerator(shape: shape, worker: 0, startedAt: now, escaped: false)
        let parser = SegmentParser(limits: SegmentLimits())
        var segments: [ExpectedNode: ClassCounts] = [:]
        var traces = Set<TraceID>()
        while generator.traceCount < 500 || !generator.isBetweenTraces {
            let out = OutputBuffer()
            generator.writeDocument(into: out, now: now)
            let document = try parser.parse(out.bytes)
            traces.insert(document.traceID)
            let segment = document.entities[0]
            segments[ExpectedNode(name: segment.name, type: segment.origin), default: ClassCounts()]
                .record(segment.outcome.countedAs, micros: (segment.end ?? 0) - segment.start)
        }
        let expected = generator.expectation()
        #expect(expected.traces == traces.count)
        #expect(expected.tracesByRootSecond.values.reduce(0, +) == traces.count)
        #expect(Set(expected.sample.map(\.id)).isSubset(of: traces))
        #expect(expected.sample.count == (traces.count + 9) / 10, "the first one, and every tenth after it")
        for (node, counts) in segments { #expect(expected.nodes[node] == counts) }
        let throughEdges = expected.edges.values.reduce(0) { $0 + $1.total }
        let atNodes = expected.nodes.values.reduce(0) { $0 + $1.total }
        #expect(throughEdges == atNodes, "every segment and leaf call has exactly one edge leading to it")
    }
}

struct LoadPartsTests {
    // If this fails, the wait for completeness ends too early or never.
    @Test func `times of the completeness header are read exactly`() {
        #expect(parseRFC3339("1970-01-01T00:00:00Z") == 0)
        #expect(parseRFC3339("2023-11-14T22:13:20.123456Z") == 1_700_000_000_123_456)
        #expect(parseRFC3339("2024-02-29T00:00:00.5Z") == 1_709_164_800_500_000)
        #expect(parseRFC3339("soon") == nil)
    }

    // If this fails, the credentials file that standalone writes cannot be used as it is.
    @Test func `a shared credentials file gives the key of its profile`() throws {
        let text = "[other]\naws_access_key_id = A\n[default]\naws_access_key_id=AKIDEXAMPLE\naws_secret_access_key = s/e+c=ret \n"
        let key = try SigningCredentials.parse(text, profile: "default", file: "f")
        #expect(key.accessKeyID == "AKIDEXAMPLE")
        #expect(key.secretAccessKey == "s/e+c=ret")
        #expect(throws: LoadError.self) { try SigningCredentials.parse(text, profile: "other", file: "f") }
    }

    // If this fails, a mistyped endpoint ends in a puzzling network error.
    @Test func `an endpoint is taken apart or refused with a sentence`() throws {
        let endpoint = try Endpoint(parsing: "http://127.0.0.1:2000/account/123456789012/")
        #expect(endpoint.host == "127.0.0.1")
        #expect(endpoint.port == 2000)
        #expect(endpoint.pathPrefix == "/account/123456789012")
        #expect(endpoint.authority == "127.0.0.1:2000")
        #expect(throws: LoadError.self) { try Endpoint(parsing: "https://example.com") }
        #expect(throws: LoadError.self) { try Endpoint(parsing: "http://host:port") }
        #expect(throws: LoadError.self) { try Endpoint(parsing: "localhost") }
    }
}
