// Destination and indexing rule (`api.md` §5.9). The effect is the aggregator's (`GroupFold.isIndexed`): a trace is decided
// on with its first document, so a change applies to traces that are new after it.

import Segments
import TraceStore
import XRayAPI

extension QueryService {
    func getDestination(body: [UInt8], account: AccountID, in store: TraceStore) async throws(APIError) -> QueryAnswer {
        _ = try GetTraceSegmentDestinationRequest(body: body)
        let settings = try await read("indexing rules") { try await store.indexingSettings(account: account) }
        let isPending = settings.destinationChangedAt.map { now() - $0 < SegmentDestination.pendingTime } ?? false
        return QueryAnswer(
            body: SegmentDestination(settings.destination).body(isPending: isPending), completeTo: nil)
    }

    func updateDestination(
        body: [UInt8], account: AccountID, in store: TraceStore
    ) async throws(APIError) -> QueryAnswer {
        let request = try UpdateTraceSegmentDestinationRequest(body: body)
        let isChanged = try await read("indexing rules") {
            try await store.setDestination(
                request.destination == .xray ? .xray : .cloudWatchLogs, account: account, now: now())
        }
        return QueryAnswer(body: request.destination.body(isPending: isChanged), completeTo: nil)
    }

    func getIndexingRules(
        body: [UInt8], account: AccountID, in store: TraceStore
    ) async throws(APIError) -> QueryAnswer {
        _ = try GetIndexingRulesRequest(body: body)
        let settings = try await read("indexing rules") { try await store.indexingSettings(account: account) }
        let rule = IndexingRuleDescription(percentage: settings.percentage, modifiedAt: settings.modifiedAt)
        return QueryAnswer(body: rule.listBody, completeTo: nil)
    }

    func updateIndexingRule(
        body: [UInt8], account: AccountID, in store: TraceStore
    ) async throws(APIError) -> QueryAnswer {
        let request = try UpdateIndexingRuleRequest(body: body)
        let now = now()
        try await read("indexing rules") {
            try await store.setIndexedPercentage(request.desiredSamplingPercentage, account: account, now: now)
        }
        let rule = IndexingRuleDescription(percentage: request.desiredSamplingPercentage, modifiedAt: now)
        return QueryAnswer(body: rule.body, completeTo: nil)
    }
}

extension SegmentDestination {
    init(_ destination: IndexingSettings.Destination) {
        switch destination {
        case .xray: self = .xray
        case .cloudWatchLogs: self = .cloudWatchLogs
        }
    }
}
