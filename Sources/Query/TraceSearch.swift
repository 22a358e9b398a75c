// `GetTraceSummaries` (`traces.md` §7): scan the traces of the window newest first, keep what the sampling keeps, render
// the summaries of the page from the documents. Work for one page is bounded: 5,000 traces scanned, 100 rendered.
//
// With a filter the search index says which traces may match; those are folded, and the filter decides. "Scanned" are
// then the traces that were looked at so: those the index leaves out cost nothing and are not counted.

import FilterExpressions
import SearchIndex
import Segments
import TraceAssembly
import TraceStore
import XRayAPI

extension QueryService {
    public func getTraceSummaries(
        body: [UInt8], account: AccountID, isFresh: Bool = false
    ) async throws(APIError) -> QueryAnswer {
        let request = try GetTraceSummariesRequest(body: body)
        var position = SearchPosition()
        if let text = request.nextToken {
            let bytes = try tokens.position(
                in: text, operation: GetTraceSummariesRequest.operation, account: account, requestHash: request.hash,
                now: now())
            guard let opened = SearchPosition(bytes) else { throw PageToken.invalid(text) }
            position = opened
            try await checkIsStored(position, token: text, account: account)
        } else {
            position.lastRemoval = try await lastRemoval(account: account)
        }
        let completeTo = try await completeTo(nil, isFresh ? .fresh : .atOnce)
        var response = GetTraceSummariesResponse(timeRangeType: request.timeRangeType)
        guard request.filter == .everything else {
            let scan = try await filteredScan(request, from: position, account: account, into: &response)
            try await checkNothingWasRemoved(request, position, account: account)
            return try answer(request, scan, &response, account: account, completeTo: completeTo)
        }
        let scan = try await scan(request, from: position, account: account)
        let chunks = scan.kept.chunks(of: limits.chunkTraces)
        try await inOrder(chunks) { (chunk) async throws(APIError) in
            // No root any more cannot be: entities are never removed. A trace removed by retention is skipped.
            try await self.folded(chunk, token: request.nextToken, account: account) { TraceSummary(forest: $0) }
        } use: { _, summaries in
            for case let summary? in summaries { response.append(summary) }
            return true
        }
        try await checkNothingWasRemoved(request, position, account: account)
        return try answer(request, scan, &response, account: account, completeTo: completeTo)
    }

    /// A token points to a trace, and only retention removes traces.
    private func checkIsStored(_ position: SearchPosition, token: String, account: AccountID) async throws(APIError) {
        guard let last = position.last, try await traces([last.id], account: account).isEmpty else { return }
        throw PageToken.pointsToRemoved(token)
    }

    /// A token promises what lay behind its position when the walk began. Asked after the page is read: what was removed
    /// while it was read counts as well.
    private func checkNothingWasRemoved(
        _ request: GetTraceSummariesRequest, _ start: SearchPosition, account: AccountID
    ) async throws(APIError) {
        guard let token = request.nextToken, let last = start.last else { return }
        let end = min(last.clock / 1_000_000 + 1, request.window.upperBound)
        try await checkNothingWasRemoved(
            RetainedData(TimeRangeType(request.timeRangeType)),
            seconds: request.window.lowerBound..<max(end, request.window.lowerBound), since: start.lastRemoval,
            token: token, account: account)
    }

    private func answer(
        _ request: GetTraceSummariesRequest, _ scan: SearchScan, _ response: inout GetTraceSummariesResponse,
        account: AccountID, completeTo: Micros
    ) throws(APIError) -> QueryAnswer {
        var nextToken: String?
        if scan.outcome == .pageFull {
            let token = PageToken(
                operation: GetTraceSummariesRequest.operation, account: account, requestHash: request.hash,
                position: scan.position.bytes)
            nextToken = try tokens.seal(token, now: now())
        }
        let body = response.finish(
            approximateTime: scan.approximateTime(of: request), tracesProcessedCount: scan.scannedTraces,
            nextToken: nextToken)
        return QueryAnswer(body: body, completeTo: completeTo)
    }

    /// Walks the index from a position until the page is full, its work is done, or there are no more traces.
    private func scan(
        _ request: GetTraceSummariesRequest, from start: SearchPosition, account: AccountID
    ) async throws(APIError) -> SearchScan {
        var scan = SearchScan(position: start)
        guard !request.window.isEmpty else { return scan }
        let rate = request.sampling.rate
        let scanLimit =
            request.sampling == .partialScan
            ? limits.partialScanTraces - start.scannedTraces : Int.max
        let budget = min(limits.pageScannedTraces, scanLimit)
        let rangeType = TimeRangeType(request.timeRangeType)

        while true {
            let missing = limits.pageSummaries - scan.kept.count
            let room = budget - scan.scannedTraces
            guard missing > 0, room > 0 else {
                scan.outcome = scan.scannedTraces >= scanLimit ? .scanLimitReached : .pageFull
                return scan
            }
            // About as many as the sampling needs to give what is missing.
            let wanted = min(room, max(missing, Int(min(Double(room), Double(missing) / max(rate, 1e-9)))))
            let after = scan.position.last
            // One more than wanted tells whether the page after this one would be empty.
            let candidates = try await read("search index") {
                try await reading.summaryPage(
                    account: account, rangeType: rangeType, window: request.window, after: after, limit: wanted + 1)
            }
            for (index, candidate) in candidates.prefix(wanted).enumerated() {
                scan.take(candidate, isKept: rate >= 1 || candidate.id.samplingFraction < rate)
                if scan.kept.count == limits.pageSummaries, index + 1 < candidates.count {
                    scan.outcome = scan.scannedTraces >= scanLimit ? .scanLimitReached : .pageFull
                    return scan
                }
            }
            if candidates.count <= wanted { return scan }
        }
    }
}

// MARK: - With a filter

extension QueryService {
    /// Looks at the candidates of the filter until the page is full, its work is done, or there are no more.
    private func filteredScan(
        _ request: GetTraceSummariesRequest, from start: SearchPosition, account: AccountID,
        into response: inout GetTraceSummariesResponse
    ) async throws(APIError) -> SearchScan {
        var scan = SearchScan(position: start)
        guard !request.window.isEmpty else { return scan }
        var groups = GroupResolver.none
        if !request.filter.groupReferences.isEmpty {
            groups = try await read("groups") { try await reading.groups(account: account) }
        }
        let search = FilteredSearch(
            filter: request.filter, groups: groups, plan: SearchPlan(request.filter, groups: groups),
            endedIn: request.timeRangeType == .service
                ? request.window.lowerBound * 1_000_000..<request.window.upperBound * 1_000_000 : nil)
        let scanLimit =
            request.sampling == .partialScan
            ? limits.partialScanTraces - start.scannedTraces : Int.max
        let budget = min(limits.pageScannedTraces, scanLimit)
        var wanted = limits.pageSummaries
        var matchCount = 0

        while true {
            let room = budget - scan.scannedTraces
            guard room > 0 else {
                scan.outcome = scan.scannedTraces >= scanLimit ? .scanLimitReached : .pageFull
                return scan
            }
            let page = try await candidates(
                request, search.plan, after: scan.position.last, limit: min(wanted, room), account: account)
            try await inOrder(page.candidates.chunks(of: limits.chunkTraces)) { (chunk) async throws(APIError) in
                try await self.look(at: chunk, request, search, account: account)
            } use: { chunk, matching in
                for candidate in chunk {
                    scan.take(candidate, isKept: false)
                    guard let summary = matching[candidate.id] else { continue }
                    response.append(summary)
                    matchCount += 1
                    if matchCount == limits.pageSummaries { return false }
                }
                return true
            }
            let isPageRead = page.candidates.isEmpty || scan.position.last == page.candidates.last
            if page.isLast, isPageRead { return scan }
            if matchCount == limits.pageSummaries {
                scan.outcome = scan.scannedTraces >= scanLimit ? .scanLimitReached : .pageFull
                return scan
            }
            // Few matched: fewer, larger reads.
            wanted = min(wanted * 2, 1_000)
        }
    }

    private func candidates(
        _ request: GetTraceSummariesRequest, _ plan: SearchPlan, after: SummaryCandidate?, limit: Int, account: AccountID
    ) async throws(APIError) -> SearchPage {
        let rangeType = TimeRangeType(request.timeRangeType)
        return try await read("search index") {
            if let page = try await reading.searchPage(
                account: account, rangeType: rangeType, window: request.window, plan: plan, after: after, limit: limit)
            {
                return page
            }
            let all = try await reading.summaryPage(
                account: account, rangeType: rangeType, window: request.window, after: after, limit: limit + 1)
            return SearchPage(candidates: Array(all.prefix(limit)), isLast: all.count <= limit)
        }
    }

    /// The summaries of those candidates that the sampling keeps and the filter lets through.
    private func look(
        at candidates: [SummaryCandidate], _ request: GetTraceSummariesRequest, _ search: FilteredSearch, account: AccountID
    ) async throws(APIError) -> [TraceID: TraceSummary] {
        let rate = request.sampling.rate
        let kept = candidates.map(\.id).filter { rate >= 1 || $0.samplingFraction < rate }
        guard !kept.isEmpty else { return [:] }
        let matching = try await folded(kept, token: request.nextToken, account: account) { forest in
            search.filter.matches(TraceFacts(forest: forest), groups: search.groups, endedIn: search.endedIn)
                ? TraceSummary(forest: forest) : nil
        }
        return Dictionary(matching.compactMap { $0.map { ($0.id, $0) } }, uniquingKeysWith: { first, _ in first })
    }

    /// What `body` makes of each of the traces that are stored, in their order; the traces are let go.
    /// - Parameter token: of the request: retention removes documents before traces, so one without any is being removed.
    private func folded<Value: Sendable>(
        _ ids: [TraceID], token: String?, account: AccountID, _ body: (Forest) -> Value
    ) async throws(APIError) -> [Value] {
        try await gate.withUnits(ids.count) { () async throws(APIError) in
            let folder = TraceFolder()
            var results: [Value] = []
            for (index, trace) in try await traces(ids, account: account).enumerated() {
                if let token, trace.documents.isEmpty { throw PageToken.pointsToRemoved(token) }
                results.append(body(folder.fold(trace, account: account).forest))
                // Giving way wakes another thread: not after every small trace.
                if index % 8 == 7 || trace.documents.count > 100 { await Task.yield() }
            }
            return results
        }
    }

    /// Runs `work` on the chunks, two at a time, so that one is read while another is folded; hands its results to `use` in
    /// the order of the chunks until that returns false.
    private func inOrder<Chunk: Sendable, Value: Sendable>(
        _ chunks: [Chunk], _ work: @escaping @Sendable (Chunk) async throws(APIError) -> Value,
        use: (Chunk, Value) -> Bool
    ) async throws(APIError) {
        guard chunks.count > 1 else {
            for chunk in chunks { _ = use(chunk, try await work(chunk)) }
            return
        }
        let failure: APIError? = await withTaskGroup(of: (Int, Result<Value, APIError>).self) { group in
            var results: [Int: Result<Value, APIError>] = [:]
            var started = 0
            for next in chunks.indices {
                while results[next] == nil {
                    while started < chunks.count, started < next + 2 {
                        let (number, chunk) = (started, chunks[started])
                        group.addTask {
                            do throws(APIError) {
                                return (number, .success(try await work(chunk)))
                            } catch {
                                return (number, .failure(error))
                            }
                        }
                        started += 1
                    }
                    guard let (number, result) = await group.next() else { return nil }
                    results[number] = result
                }
                switch results.removeValue(forKey: next) {
                case .success(let value)?: if !use(chunks[next], value) { return nil }
                case .failure(let error)?: return error
                case nil: return nil
                }
            }
            return nil
        }
        if let failure { throw failure }
    }
}

/// What all pages of a filtered search have in common.
private struct FilteredSearch {
    var filter: FilterExpression
    var groups: GroupResolver
    var plan: SearchPlan
    /// For the clock `Service`: selectors only see what ended in the window.
    var endedIn: Range<Micros>?
}

extension GetTraceSummariesRequest.Sampling {
    fileprivate var rate: Double {
        if case .fixedRate(let rate) = self { rate } else { 1 }
    }
}

extension TimeRangeType {
    init(_ type: GetTraceSummariesRequest.TimeRangeType) {
        switch type {
        case .traceID: self = .traceID
        case .event: self = .event
        case .service: self = .service
        }
    }
}

/// What one page's walk found.
private struct SearchScan {
    enum Outcome { case windowExhausted, pageFull, scanLimitReached }

    var position: SearchPosition
    var kept: [TraceID] = []
    var scannedTraces = 0
    var outcome = Outcome.windowExhausted

    init(position: SearchPosition) { self.position = position }

    mutating func take(_ candidate: SummaryCandidate, isKept: Bool) {
        scannedTraces += 1
        position.scannedTraces += 1
        position.last = candidate
        if isKept { kept.append(candidate.id) }
    }

    /// How far back the page reached, seconds: the clock of the last scanned trace; with the window exhausted its start,
    /// for `Service` 60 s earlier (recorded behaviour).
    func approximateTime(of request: GetTraceSummariesRequest) -> Int64 {
        if outcome != .windowExhausted, let last = position.last { return last.clock / 1_000_000 }
        return request.window.lowerBound - (request.timeRangeType == .service ? 60 : 0)
    }
}

/// Position of a page token of `GetTraceSummaries`: the last scanned trace, how many were scanned on all pages so far, and
/// the last removal by retention before the first page.
struct SearchPosition: Equatable {
    var last: SummaryCandidate?
    var scannedTraces = 0
    var lastRemoval: Int64 = 0

    init() {}

    init?(_ bytes: [UInt8]) {
        guard bytes.count == 40, let id = TraceID(uuidBytes: bytes[8..<24]) else { return nil }
        func number(_ range: Range<Int>) -> Int64 {
            Int64(bitPattern: bytes[range].reduce(UInt64(0)) { $0 << 8 | UInt64($1) })
        }
        last = SummaryCandidate(id: id, clock: number(0..<8))
        scannedTraces = Int(number(24..<32))
        lastRemoval = number(32..<40)
    }

    var bytes: [UInt8] {
        func bytes(_ number: Int64) -> [UInt8] { withUnsafeBytes(of: number.bigEndian) { Array($0) } }
        return bytes(last?.clock ?? 0) + (last?.id ?? TraceID(high: 0, low: 0)).uuidBytes + bytes(Int64(scannedTraces))
            + bytes(lastRemoval)
    }
}
