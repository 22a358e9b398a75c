// The read operations as the server registers them: decode, call, encode; nothing else.

import APIServer
import Segments
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
        ]
    }

    private func operation(
        _ name: String, _ path: String,
        _ answer: @escaping @Sendable (QueryService, OperationRequest) async throws(APIError) -> QueryAnswer
    ) -> Operation {
        Operation(name: name, path: path, class: .query) { [self] (request) async throws(APIError) in
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
