// `GetTimeSeriesServiceStatistics` (`service-graph.md` §9): the blocks of the minutes, summed for the selected node or edge.

import FilterExpressions
import Segments
import ServiceGraph
import TraceStore
import XRayAPI

extension QueryService {
    public func getTimeSeries(
        body: [UInt8], account: AccountID, isFresh: Bool = false
    ) async throws(APIError) -> QueryAnswer {
        let request = try GetTimeSeriesServiceStatisticsRequest(body: body)
        let selector = try Self.selector(request.selector)
        if request.hasForecast {
            guard case .nodes = selector else { throw GetTimeSeriesServiceStatisticsRequest.selectorRequired }
        }
        let group = try await memberGroup(request.group, account: account)
        let hash = requestHash(request.hash, groupKey: group?.key ?? 0)
        var window = request.window
        let removal: Int64
        if let text = request.nextToken {
            let bytes = try tokens.position(
                in: text, operation: GetTimeSeriesServiceStatisticsRequest.operation, account: account,
                requestHash: hash, now: now())
            // Labels of the next page lie below this one; a bucket's own minutes are never cut.
            guard bytes.count == 16 else { throw PageToken.invalid(text) }
            let numbers = [bytes[..<8], bytes[8...]].map { bytes in
                Int64(bitPattern: bytes.reduce(UInt64(0)) { $0 << 8 | UInt64($1) })
            }
            window = window.lowerBound..<min(max(numbers[0], window.lowerBound), window.upperBound)
            removal = numbers[1]
        } else {
            removal = try await lastRemoval(account: account)
        }
        let completeTo = try await completeTo(nil, isFresh ? .fresh : .atOnce)
        let series = try await series(
            selector, window: window, request: request, group: group, account: account)
        if let token = request.nextToken {
            try await checkNothingWasRemoved(
                group == nil ? .graph : .groups, seconds: window, since: removal, token: token, account: account)
        }
        let points = series.points.prefix(GetTimeSeriesServiceStatisticsRequest.pagePoints)
        var nextToken: String?
        if points.count < series.points.count, let last = points.last {
            // The newest minute of the next bucket is at the start of this one.
            let bound = last.time - request.period + 1
            let token = PageToken(
                operation: GetTimeSeriesServiceStatisticsRequest.operation, account: account, requestHash: hash,
                position: [bound, removal].flatMap { withUnsafeBytes(of: $0.bigEndian) { Array($0) } })
            nextToken = try tokens.seal(token, now: now())
        }
        var isOfService = false
        if case .nodes = selector { isOfService = true }
        let response = GetTimeSeriesServiceStatisticsResponse(
            points: Array(points), isOfService: isOfService, containsOldGroupVersions: series.isOld,
            nextToken: nextToken)
        return QueryAnswer(body: response.body, completeTo: completeTo)
    }

    private func series(
        _ selector: SeriesSelector, window: Range<Int64>, request: GetTimeSeriesServiceStatisticsRequest,
        group: TraceGroup?, account: AccountID
    ) async throws(APIError) -> (points: [TimeSeriesPoint], isOld: Bool) {
        try await gate.withUnits(limits.chunkTraces) { () async throws(APIError) in
            var builder = TimeSeriesBuilder(
                selector: selector, window: window, period: request.period, hasForecast: request.hasForecast)
            // Minutes of the window, not of the forecast, with traces that an older version of the filter made members.
            let shownMinutes = TimeSeriesBuilder(
                selector: selector, window: window, period: request.period, hasForecast: false
            ).minutes
            guard !builder.minutes.isEmpty else { return ([], false) }
            var oldMinutes: [Int64] = []
            let question = WindowQuestion(
                account: account, group: group, subject: .series(selector), minutes: builder.minutes,
                wholeMinutes: builder.minutes)
            for part in try await parts(of: question) {
                try await read("graph block") {
                    switch part {
                    case .rows(let rows):
                        for row in rows { try builder.add(row.bytes) }
                        oldMinutes += try question.oldMinutes(of: rows)
                    case .sum(.series(let minutes, let old)):
                        try builder.add(minutes)
                        oldMinutes += old
                    case .sum(.graph): break
                    }
                }
                await Task.yield()
            }
            return (builder.build(), oldMinutes.contains { shownMinutes.contains($0) })
        }
    }

    static func selector(_ text: String?) throws(APIError) -> SeriesSelector {
        guard let text else { return .clientEdges }
        let parsed: EntitySelector
        do {
            parsed = try EntitySelector(parsing: text)
        } catch {
            throw .invalidRequest("Invalid entity selector expression")
        }
        switch parsed {
        case .service(let node): return .nodes(NodePattern(node))
        case .edge(let source, let destination):
            return .edges(source: NodePattern(source), destination: NodePattern(destination))
        }
    }
}

extension NodePattern {
    init(_ selector: NodeSelector) {
        self.init(name: selector.name, type: selector.type, account: selector.accountID)
    }
}

// MARK: - Groups

extension QueryService {
    /// The group whose members a request asks about; nil: all traces.
    func memberGroup(_ identifier: GroupIdentifier?, account: AccountID) async throws(APIError) -> TraceGroup? {
        guard let identifier else { return nil }
        let found = try await group(identifier, account: account)
        return found.isDefault ? nil : found
    }
}
