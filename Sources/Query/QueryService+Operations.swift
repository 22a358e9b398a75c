// The read operations as the server registers them: decode, call, encode; nothing else.

import APIServer
import Segments
import TraceStore
import XRayAPI

extension QueryService {
    /// Request header with which summaries and graphs wait for everything acknowledged so far (ruling 4).
    public static let consistencyHeader = "x-beamline-consistency"
    /// Response header of every read: RFC 3339 UTC, the receipt time up to which the answer is complete.
    public static let completeToHeader = "x-beamline-complete-to"

    public var operations: [Operation] {
        [
            operation(BatchGetTracesRequest.operation, "/Traces") { (service, request) async throws(APIError) in
                try await service.batchGetTraces(body: request.bodyBytes, account: request.account)
            },
            operation(GetTraceSummariesRequest.operation, "/TraceSummaries") {
                (service, request) async throws(APIError) in
                try await service.getTraceSummaries(
                    body: request.bodyBytes, account: request.account, isFresh: request.wantsFreshRead)
            },
            operation(GetServiceGraphRequest.operation, "/ServiceGraph") { (service, request) async throws(APIError) in
                try await service.getServiceGraph(
                    body: request.bodyBytes, account: request.account, isFresh: request.wantsFreshRead)
            },
            operation(GetTraceGraphRequest.operation, "/TraceGraph") { (service, request) async throws(APIError) in
                try await service.getTraceGraph(body: request.bodyBytes, account: request.account)
            },
            operation(GetEncryptionConfigRequest.operation, "/EncryptionConfig") {
                (service, request) async throws(APIError) in
                try service.getEncryptionConfig(body: request.bodyBytes)
            },
            operation(GetTimeSeriesServiceStatisticsRequest.operation, "/TimeSeriesServiceStatistics") {
                (service, request) async throws(APIError) in
                try await service.getTimeSeries(
                    body: request.bodyBytes, account: request.account, isFresh: request.wantsFreshRead)
            },
            operation(GroupRequest.getOperation, "/GetGroup") { (service, request) async throws(APIError) in
                try await service.getGroup(body: request.bodyBytes, account: request.account)
            },
            operation(GetGroupsRequest.operation, "/Groups") { (service, request) async throws(APIError) in
                try await service.getGroups(body: request.bodyBytes, account: request.account)
            },
        ] + (control.map(controlOperations) ?? [])
    }

    /// The operations on tables of their own.
    private func controlOperations(_ store: TraceStore) -> [Operation] {
        typealias Answer =
            @Sendable (QueryService) -> @Sendable (_ body: [UInt8], AccountID, TraceStore) async throws(APIError) ->
            QueryAnswer
        func control(
            _ name: String, _ path: String, _ operationClass: OperationClass, _ answer: @escaping Answer
        ) -> Operation {
            operation(name, path, operationClass) { (service, request) async throws(APIError) in
                try await answer(service)(request.bodyBytes, request.account, store)
            }
        }
        return [
            operation(CreateGroupRequest.operation, "/CreateGroup", .control) {
                (service, request) async throws(APIError) in
                try await service.createGroup(
                    body: request.bodyBytes, account: request.account, caller: request.caller, in: store)
            },
            control(UpdateGroupRequest.operation, "/UpdateGroup", .control, QueryService.updateGroup),
            control(GroupRequest.deleteOperation, "/DeleteGroup", .control, QueryService.deleteGroup),
            control(TagResourceRequest.operation, "/TagResource", .control, QueryService.tagResource),
            control(UntagResourceRequest.operation, "/UntagResource", .control, QueryService.untagResource),
            control(ListTagsForResourceRequest.operation, "/ListTagsForResource", .query, QueryService.listTagsForResource),
            control(
                GetTraceSegmentDestinationRequest.operation, "/GetTraceSegmentDestination", .query,
                QueryService.getDestination),
            control(
                UpdateTraceSegmentDestinationRequest.operation, "/UpdateTraceSegmentDestination", .control,
                QueryService.updateDestination),
            control(GetIndexingRulesRequest.operation, "/GetIndexingRules", .query, QueryService.getIndexingRules),
            control(UpdateIndexingRuleRequest.operation, "/UpdateIndexingRule", .control, QueryService.updateIndexingRule),
            control(
                StartTraceRetrievalRequest.operation, "/StartTraceRetrieval", .query, QueryService.startTraceRetrieval),
            control(
                ListRetrievedTracesRequest.operation, "/ListRetrievedTraces", .query, QueryService.listRetrievedTraces),
            control(
                GetRetrievedTracesGraphRequest.operation, "/GetRetrievedTracesGraph", .query,
                QueryService.getRetrievedTracesGraph),
            control(
                CancelTraceRetrievalRequest.operation, "/CancelTraceRetrieval", .query,
                QueryService.cancelTraceRetrieval),
        ]
    }

    private func operation(
        _ name: String, _ path: String, _ operationClass: OperationClass = .query,
        _ answer: @escaping @Sendable (QueryService, OperationRequest) async throws(APIError) -> QueryAnswer
    ) -> Operation {
        Operation(name: name, path: path, class: operationClass) { [self] (request) async throws(APIError) in
            let answer = try await answer(self, request)
            guard let completeTo = answer.completeTo else { return OperationResponse(body: answer.body) }
            let header = (name: Self.completeToHeader, value: TimestampText.rfc3339(completeTo))
            return OperationResponse(body: answer.body, headers: [header])
        }
    }
}

extension OperationRequest {
    fileprivate var bodyBytes: [UInt8] { withBody { Array($0) } }

    fileprivate var wantsFreshRead: Bool { header(QueryService.consistencyHeader)?.lowercased() == "fresh" }
}
