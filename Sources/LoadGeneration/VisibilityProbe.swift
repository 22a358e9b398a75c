// How long after its acknowledgement a document shows in summaries and in the service graph, under the load of the run.
// Sends single-segment traces dated decades back, each in a minute of its own, so that the reads that look for them are
// small and nobody's current map shows them; then reads until both show it.

import Histogram
import JSONText
import Segments
import Synchronization

public struct VisibilityResult: Sendable {
    public var probes = 0
    /// Not visible within 20 s.
    public var timedOut = 0
    public var summaries = Histogram<UInt64>(highestTrackableValue: 60_000_000, numberOfSignificantValueDigits: .three)
    public var graph = Histogram<UInt64>(highestTrackableValue: 60_000_000, numberOfSignificantValueDigits: .three)
}

final class VisibilityProbe: Sendable {
    private let options: LoadOptions
    private let startedAt: Micros
    private let state = Mutex(State())

    private struct State {
        var isStopped = false
        var result = VisibilityResult()
    }

    init(_ options: LoadOptions, startedAt: Micros) {
        self.options = options
        self.startedAt = startedAt
    }

    var result: VisibilityResult { state.withLock { $0.result } }
    func stop() { state.withLock { $0.isStopped = true } }
    private var isStopped: Bool { state.withLock { $0.isStopped } }

    /// One probe after the other, at most five a second, until stopped.
    func run() {
        let client = APIClient(endpoint: options.endpoint, credentials: options.credentials, region: options.region)
        let parser = JSONParser()
        var random = Randomness(UInt64(bitPattern: startedAt), 0x9806_0be5)
        while !isStopped {
            let began = currentMicros()
            probe(client, parser, &random)
            sleepUntil(began + 200_000)
        }
    }

    private func probe(_ client: APIClient, _ parser: JSONParser, _ random: inout Randomness) {
        // A minute between 1980 and 2004.
        let second = 315_532_800 + Int64(random.below(12_600_000)) * 60
        let id = OutputBuffer(capacity: 64)
        id.appendHex(random.next(), digits: 8)
        id.append(45)
        id.appendHex(random.next(), digits: 8)
        id.appendHex(random.next())
        let traceID = "1-" + String(decoding: id.bytes, as: UTF8.self)
        let document =
            #"{\"trace_id\":\"\#(traceID)\",\"id\":\"\#(traceID.suffix(16))\",\"name\":\"visibility-probe\",\"start_time\":\#(second).25,\"end_time\":\#(second).75}"#
        guard let put = try? client.call("/TraceSegments", Array(#"{"TraceSegmentDocuments":["\#(document)"]}"#.utf8)), put.status == 200
        else { return }
        let acknowledged = currentMicros()
        let window = Array(#"{"StartTime":\#(second),"EndTime":\#(second + 1)}"#.utf8)
        var inSummaries: Micros?
        var inGraph: Micros?
        while inSummaries == nil || inGraph == nil {
            if inSummaries == nil, hasMembers("TraceSummaries", of: try? client.call("/TraceSummaries", window), parser) {
                inSummaries = currentMicros()
            }
            if inGraph == nil, hasMembers("Services", of: try? client.call("/ServiceGraph", window), parser) {
                inGraph = currentMicros()
            }
            let now = currentMicros()
            if now > acknowledged + 20_000_000 { break }
            if inSummaries == nil || inGraph == nil { sleepUntil(now + 10_000) }
        }
        let summaries = inSummaries
        let graph = inGraph
        state.withLock { state in
            state.result.probes += 1
            if let summaries { state.result.summaries.record(UInt64(summaries - acknowledged)) }
            if let graph { state.result.graph.record(UInt64(graph - acknowledged)) }
            if summaries == nil || graph == nil { state.result.timedOut += 1 }
        }
    }

    private func hasMembers(_ list: StaticString, of answer: APIAnswer?, _ parser: JSONParser) -> Bool {
        guard let answer, answer.status == 200, let value = try? parser.parse(answer.body) else { return false }
        var found = false
        value.member(list)?.forEachElement { _ in found = true }
        return found
    }
}
