// `beamline explain`: what a filter expression costs, before a dashboard asks for it every minute.

import ArgumentParser
import FilterExpressions
import Foundation
import SearchIndex
import Segments
import TraceAssembly
import TraceStore

struct ExplainCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "explain",
        abstract: "Show how a filter expression is searched for: the plan, what the index lets through, what matches.",
        discussion: """
            The plan lists what the index is asked for; traces it lets through are looked at one by one, newest first. Times: seconds \
            since 1970, 2024-05-01T12:00:00Z, or a distance from now such as 90s, 15m, 6h, 7d. Clocks as in TimeRangeType: TraceId \
            (start of the root), Event (receipt), Service (end of a segment). Groups are not known here: group.name is false.
            """)

    @Argument(help: "The filter expression.") var expression: String
    @Option(help: "Start of the window, included.") var from: String
    @Option(help: "End of the window, not included. (default: now)") var to: String?
    @Option(help: "TraceId, Event or Service.") var clock = "TraceId"
    @OptionGroup var database: DatabaseOptions
    @Option(help: "The account whose traces are searched.") var account = AccountID(rawValue: 123_456_789_012)
    @Option(help: "Look at no more than so many candidates.") var limit = 5_000

    func validate() throws {
        if limit < 1 { throw ValidationError("--limit must be at least 1") }
        if rangeType == nil { throw ValidationError("--clock must be TraceId, Event or Service, not `\(clock)`") }
    }

    private var rangeType: TimeRangeType? {
        switch clock.lowercased() {
        case "traceid": .traceID
        case "event": .event
        case "service": .service
        default: nil
        }
    }

    func run() async throws {
        let now = Int64(Date().timeIntervalSince1970)
        let start = try VerifyCommand.seconds(from, name: "--from", now: now)
        let end = try to.map { try VerifyCommand.seconds($0, name: "--to", now: now) } ?? now + 1
        guard start < end else { throw CommandFailure("--from must lie before --to") }
        let filter: FilterExpression
        do {
            filter = try FilterExpression(parsing: expression)
        } catch {
            throw CommandFailure(error.description)
        }
        let plan = SearchPlan(filter, groups: .none)
        print("plan")
        for line in plan.description.split(separator: "\n") { print("  " + line) }
        guard let rangeType else { return }
        try await database.withStore { store in
            try await store.requireAccount(account)
            let explanation = try await store.explainSearch(
                account: account, rangeType: rangeType, window: start..<end, plan: plan)
            if explanation.isUnindexed {
                print("index       not used: traces stored before it was made may lie in the window")
            } else if plan == .all {
                print("index       not used: it does not narrow this expression, so every trace of the window is looked at")
            } else if plan == .none {
                print("index       not used: no trace can match")
            } else {
                print(
                    "index       \(explanation.segmentCount) segments with \(explanation.indexedTraces) traces, \(explanation.bytesRead) bytes read"
                )
                print("candidates  \(explanation.candidates) (traces outside the window and older versions counted)")
            }
            let found = try await look(store, filter, plan, rangeType, start..<end)
            let more = found.isComplete ? "" : ", then stopped (--limit)"
            print("looked at   \(found.candidates) traces\(more), \(found.documents) documents")
            print("matches     \(found.matches)")
            print("time        \(found.milliseconds) ms")
        }
    }

    private struct Findings {
        var candidates = 0
        var documents = 0
        var matches = 0
        var isComplete = false
        var milliseconds: Int64 = 0
    }

    private func look(
        _ store: TraceStore, _ filter: FilterExpression, _ plan: SearchPlan, _ rangeType: TimeRangeType,
        _ window: Range<Int64>
    ) async throws -> Findings {
        let began = ContinuousClock.now
        let parser = SegmentParser(limits: SegmentLimits(documentBytes: .max))
        let endedIn = rangeType == .service ? window.lowerBound * 1_000_000..<window.upperBound * 1_000_000 : nil
        var findings = Findings()
        var after: SummaryCandidate?
        while findings.candidates < limit, !findings.isComplete {
            let wanted = min(100, limit - findings.candidates)
            let candidates: [SummaryCandidate]
            if let page = try await store.searchPage(
                account: account, rangeType: rangeType, window: window, plan: plan, after: after, limit: wanted)
            {
                candidates = page.candidates
                findings.isComplete = page.isLast
            } else {
                candidates = try await store.summaryPage(
                    account: account, rangeType: rangeType, window: window, after: after, limit: wanted)
                findings.isComplete = candidates.count < wanted
            }
            after = candidates.last ?? after
            findings.candidates += candidates.count
            for stored in try await store.storedTraces(account: account, ids: candidates.map(\.id)) {
                var trace = Trace(id: stored.id, account: account, limitExceeded: stored.limitExceeded)
                findings.documents += stored.documents.count
                for document in stored.documents {
                    document.bytes.withUnsafeBytes { bytes in
                        guard let parsed = try? parser.parse(bytes) else { return }
                        _ = trace.fold(parsed, bytes: bytes, receivedAt: document.receivedAt)
                    }
                }
                if filter.matches(TraceFacts(forest: Forest(trace)), endedIn: endedIn) { findings.matches += 1 }
            }
        }
        findings.milliseconds = Int64(began.duration(to: .now) / .milliseconds(1))
        return findings
    }
}
