// The one way documents enter the log, whatever door they came in by: validate each, append the accepted ones, wait
// until they are durable, tell the refused ones. Called by the operations (HTTP) and by the daemon listener (UDP).

import JSONText
import Observability
import SegmentLog
import Segments
import XRayAPI

/// Where a set of documents comes from and to whom it belongs.
public struct DocumentOrigin: Sendable {
    /// The account that receives the documents.
    public var account: AccountID
    /// Who sent them, for audit; empty for datagrams.
    public var callerARN: String
    public var source: LogSource
    public var receivedAt: Micros

    public init(account: AccountID, callerARN: String, source: LogSource, receivedAt: Micros) {
        self.account = account
        self.callerARN = callerARN
        self.source = source
        self.receivedAt = receivedAt
    }
}

/// The verdict over some documents: what goes to the log and what was refused, in the order they were sent.
public struct CheckedDocuments: Sendable {
    public internal(set) var accepted: LogRecordBatch
    public internal(set) var refusals: [Refusal] = []
}

public final class DocumentIntake: Sendable {
    private let log: any SegmentLog
    private let metrics: Metrics
    private let parsers: ParserPool

    public init(log: any SegmentLog, limits: SegmentLimits = SegmentLimits(), metrics: Metrics) {
        self.log = log
        self.metrics = metrics
        parsers = ParserPool(limits: limits)
    }

    /// Splits and checks the body of `PutTraceSegments`.
    /// - Throws: what the request as a whole is refused with; refused documents are in the result.
    public func check(putTraceSegments body: UnsafeRawBufferPointer, from origin: DocumentOrigin) throws(APIError)
        -> CheckedDocuments
    {
        try parsers.withParsers { (parsers) throws(APIError) in
            let request = try PutTraceSegmentsRequest(body: body, parser: parsers.envelope)
            return check(request.documents, byteCount: body.count, from: origin, with: parsers.documents)
        }
    }

    /// Checks documents that are already apart.
    public func check(_ documents: [UnsafeRawBufferPointer], from origin: DocumentOrigin) -> CheckedDocuments {
        let byteCount = documents.reduce(0) { $0 + $1.count }
        return parsers.withParsers { check(documents, byteCount: byteCount, from: origin, with: $0.documents) }
    }

    private func check(
        _ documents: [UnsafeRawBufferPointer], byteCount: Int, from origin: DocumentOrigin, with parser: SegmentParser
    ) -> CheckedDocuments {
        var checked = CheckedDocuments(accepted: LogRecordBatch(recordCount: documents.count, byteCount: byteCount))
        for document in documents {
            do {
                let trace = try parser.validate(document)
                checked.accepted.append(
                    traceID: trace, account: origin.account, receivedAt: origin.receivedAt, source: origin.source,
                    callerARN: origin.callerARN, value: document)
            } catch {
                checked.refusals.append(error)
            }
        }
        return checked
    }

    /// Appends what was accepted; returns when it is durable. Counts both outcomes, the refused ones only with it:
    /// a request that is repeated after an error is counted once.
    public func append(_ checked: CheckedDocuments, source: LogSource) async throws(SegmentLogError) {
        if !checked.accepted.isEmpty {
            let start = ContinuousClock.now
            do {
                try await log.append(checked.accepted)
            } catch {
                metrics.logAppendFailed(
                    reason: error.code == .full ? "full" : error.code == .closed ? "closed" : "unavailable")
                throw error
            }
            metrics.logAppended(records: checked.accepted.count, took: ContinuousClock.now - start)
            metrics.documentsAccepted(checked.accepted.count, source: source.label)
        }
        for refusal in checked.refusals { metrics.documentsRefused(source: source.label, reason: refusal.code) }
    }
}

extension LogSource {
    /// The word in metrics and logs.
    var label: String {
        switch self {
        case .http: "http"
        case .udp: "udp"
        case .otlp: "otlp"
        case .aggregator: "aggregator"
        }
    }
}
