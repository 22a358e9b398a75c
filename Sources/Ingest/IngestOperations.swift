// The two operations that take something in: `PutTraceSegments` and `PutTelemetryRecords` (`api.md` §5.1).
// Made once by the executable and given to the API server.

import APIServer
import AccessControl
import Logging
import NIOCore
import Observability
import SegmentLog
import Segments
import XRayAPI

public struct IngestOperations: Sendable {
    /// Keeps one call's telemetry. Arguments: account, time of receipt, the request's body.
    public typealias TelemetryKeeper = @Sendable (AccountID, Micros, [UInt8]) async throws -> Void

    private let intake: DocumentIntake
    private let metrics: Metrics
    private let logger: Logger
    private let keepTelemetry: TelemetryKeeper

    public init(intake: DocumentIntake, metrics: Metrics, logger: Logger, keepTelemetry: @escaping TelemetryKeeper) {
        self.intake = intake
        self.metrics = metrics
        self.logger = logger
        self.keepTelemetry = keepTelemetry
    }

    public var operations: [Operation] {
        [
            Operation(name: "PutTraceSegments", path: "/TraceSegments", class: .ingest) { (request) throws(APIError) in
                try await putTraceSegments(request)
            },
            Operation(name: "PutTelemetryRecords", path: "/TelemetryRecords", class: .sampling) {
                (request) throws(APIError) in
                try await putTelemetryRecords(request)
            },
        ]
    }

    /// 200 means: every document that is not in the answer is durable. When the log cannot take them the whole call is
    /// refused, so that the sender repeats it; documents that were appended all the same do no harm.
    private func putTraceSegments(_ request: OperationRequest) async throws(APIError) -> OperationResponse {
        let origin = DocumentOrigin(
            account: request.account, callerARN: request.caller.principalARN, source: .http,
            receivedAt: request.receivedAt)
        let checked = try request.withBody { (body) throws(APIError) in
            try intake.check(putTraceSegments: body, from: origin)
        }
        do {
            try await intake.append(checked, source: .http)
        } catch {
            logger.debug("documents refused", metadata: ["reason": "\(error)", "request": "\(request.requestID)"])
            throw APIError.serviceUnavailable()
        }
        return OperationResponse(
            body: PutTraceSegmentsResponse(refusals: checked.refusals).body,
            cost: checked.accepted.count + checked.refusals.count)
    }

    private func putTelemetryRecords(_ request: OperationRequest) async throws(APIError) -> OperationResponse {
        let body = Array(request.body.readableBytesView)
        let telemetry = try PutTelemetryRecordsRequest(body: body)
        do {
            try await keepTelemetry(request.account, request.receivedAt, body)
        } catch {
            logger.warning(
                "telemetry records cannot be stored",
                metadata: ["reason": "\(error)", "request": "\(request.requestID)"])
            throw APIError.serviceUnavailable()
        }
        metrics.telemetryRecordsReceived(telemetry.records.count)
        return OperationResponse(body: PutTelemetryRecordsRequest.responseBody)
    }
}
