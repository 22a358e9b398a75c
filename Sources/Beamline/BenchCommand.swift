// `beamline bench-bare`: the floor `deploy/bench` measures ingest against. A Hummingbird handler that reads the same bodies
// and answers 200, and nothing else: no signature, no parsing, no log.

import ArgumentParser
import Hummingbird

struct BenchBareCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "bench-bare", abstract: "Serve a handler that reads bodies and answers 200.", shouldDisplay: false)

    @Option var port = 21_900

    func run() async throws {
        let router = Router()
        let answer = ByteBuffer(string: #"{"UnprocessedTraceSegments":[]}"#)
        router.post("TraceSegments") { request, _ -> Response in
            _ = try await request.body.collect(upTo: 8 << 20)
            return Response(status: .ok, headers: [.contentType: "application/json"], body: .init(byteBuffer: answer))
        }
        let application = Application(router: router, configuration: .init(address: .hostname("127.0.0.1", port: port)))
        try await application.runService()
    }
}
