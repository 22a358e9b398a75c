// Stored documents to traces, for one request: the same fold the aggregator does, over the documents that changed the
// trace, so a summary cannot disagree with the documents it is made of.

import Segments
import TraceAssembly
import TraceStore

/// A trace read for a query.
struct FoldedTrace {
    let forest: Forest
    /// The documents by the numbers the trace's entities refer to (`TraceEntity.document`).
    let documents: [[UInt8]]
}

/// Folds the traces of one request. Not to be shared between tasks.
struct TraceFolder {
    // Documents were checked when they came in; a limit lowered since then must not hide them.
    private let parser = SegmentParser(limits: SegmentLimits(documentBytes: .max))

    /// - Parameter keepsDocuments: the texts are needed (`BatchGetTraces`).
    func fold(_ stored: StoredTrace, account: AccountID, keepsDocuments: Bool = false) -> FoldedTrace {
        var trace = Trace(id: stored.id, account: account, limitExceeded: stored.limitExceeded)
        var documents: [[UInt8]] = []
        for document in stored.documents {
            let result = document.bytes.withUnsafeBytes { bytes -> FoldResult in
                guard let parsed = try? parser.parse(bytes) else { return .ignored }
                return trace.fold(parsed, bytes: bytes, receivedAt: document.receivedAt)
            }
            if keepsDocuments, result == .changed { documents.append(Array(document.bytes)) }
        }
        return FoldedTrace(forest: Forest(trace), documents: documents)
    }
}
