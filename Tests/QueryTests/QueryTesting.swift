// A query service over memory, and answers as JSON values.

import JSONText
import Logging
import Query
import Segments
import Synchronization
import Testing
import XRayAPI

let account = AccountID(rawValue: 111_122_223_333)
let otherAccount = AccountID(rawValue: 999_988_887_777)
let startSeconds: Int64 = 1_700_000_000

struct QueryBench {
    let traces = InMemoryTraces()
    let service: QueryService
    let clock: TestClock

    init(limits: QueryLimits = QueryLimits(), secret: String = "secret") {
        let clock = TestClock()
        self.clock = clock
        service = QueryService(
            reading: traces, tokens: PageTokenSealer(secret: Array(secret.utf8)), limits: limits,
            logger: Logger(label: "test") { _ in SwiftLogNoOpLogHandler() },
            now: { clock.now })
    }

    /// A trace of one segment: number n starts n seconds after `startSeconds` and lasts half a second.
    func addTrace(_ number: Int, account: AccountID = account, name: String = "web", receivedAt: Micros? = nil) throws {
        try traces.append(
            document(number, name: name), account: account,
            receivedAt: receivedAt ?? (startSeconds + Int64(number)) * 1_000_000)
    }

    func document(_ number: Int, name: String = "web") -> String {
        let start = startSeconds + Int64(number)
        return
            #"{"trace_id":"\#(traceID(number))","id":"a000000000000001","name":"\#(name)","start_time":\#(start),"end_time":\#(start).5}"#
    }
}

final class TestClock: Sendable {
    private let time = Mutex<Micros>((startSeconds + 100_000) * 1_000_000)
    var now: Micros { time.withLock { $0 } }
    func advance(seconds: Int64) { time.withLock { $0 += seconds * 1_000_000 } }
}

func traceID(_ number: Int) -> TraceID { TraceID(high: 0x65_53_6f_00 << 32, low: UInt64(number)) }

func bytes(_ text: String) -> [UInt8] { Array(text.utf8) }

func text(_ answer: QueryAnswer) -> String { String(decoding: answer.body, as: UTF8.self) }

/// What a page of `GetTraceSummaries` says.
struct SummaryPage {
    var ids: [String] = []
    var approximateTime: Int64?
    var processed: Int64?
    var nextToken: String?

    init(_ answer: QueryAnswer) throws {
        let parser = JSONParser()
        let root = try parser.parse(answer.body)
        root.member("TraceSummaries")?.forEachElement { if let id = $0.member("Id")?.string { ids.append(id.string) } }
        approximateTime = root.member("ApproximateTime")?.int64
        processed = root.member("TracesProcessedCount")?.int64
        nextToken = root.member("NextToken")?.string?.string
    }
}

extension QueryBench {
    /// All pages of a search.
    func allPages(_ members: String, account: AccountID = account, mostPages: Int = 300) async throws -> [SummaryPage] {
        var pages: [SummaryPage] = []
        var token: String?
        repeat {
            let next = token.map { ",\"NextToken\":\"\($0)\"" } ?? ""
            pages.append(
                try SummaryPage(
                    try await service.getTraceSummaries(body: bytes("{\(members)\(next)}"), account: account)))
            token = pages.last?.nextToken
        } while token != nil && pages.count < mostPages
        return pages
    }
}

/// Services of a graph answer by ReferenceId, and the token.
struct GraphPage {
    var services: [Int64] = []
    var names: [String] = []
    var nextToken: String?

    init(_ answer: QueryAnswer) throws {
        let parser = JSONParser()
        let root = try parser.parse(answer.body)
        root.member("Services")?.forEachElement {
            services.append($0.member("ReferenceId")?.int64 ?? -1)
            names.append($0.member("Name")?.string?.string ?? "")
        }
        nextToken = root.member("NextToken")?.string?.string
    }
}
