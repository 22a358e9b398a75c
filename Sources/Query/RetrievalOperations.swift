// Trace retrieval (`api.md` §5.3): an asynchronous `BatchGetTraces` over the same store. A job is stored; the first call
// that asks for its results finds its traces. What it found is kept with their revisions, so all pages of one job show the
// traces as they were then, whichever node answers.

import Segments
import ServiceGraph
import TraceAssembly
import TraceStore
import XRayAPI

extension QueryService {
    func startTraceRetrieval(
        body: [UInt8], account: AccountID, in store: TraceStore
    ) async throws(APIError) -> QueryAnswer {
        let request = try StartTraceRetrievalRequest(body: body)
        let now = now()
        let isEmpty = request.traceIDs.isEmpty
        let job = RetrievalJob(
            id: TraceID(high: .random(in: .min ... .max), low: .random(in: .min ... .max)),
            status: isEmpty ? .complete : .scheduled, createdAt: now, startTime: request.startTime,
            endTime: request.endTime, wanted: request.traceIDs, finishedAt: isEmpty ? now : nil)
        let isStored = try await read("retrievals") {
            try await store.createRetrieval(
                job, account: account, limit: StartTraceRetrievalRequest.maxJobs, now: now)
        }
        guard isStored else {
            throw .throttled("More than \(StartTraceRetrievalRequest.maxJobs) retrievals are not finished")
        }
        let token = PageToken(
            operation: StartTraceRetrievalRequest.operation, account: account, requestHash: Self.noHash,
            position: job.id.uuidBytes)
        return QueryAnswer(
            body: StartTraceRetrievalRequest.responseBody(token: try tokens.seal(token, now: now)), completeTo: nil)
    }

    func cancelTraceRetrieval(
        body: [UInt8], account: AccountID, in store: TraceStore
    ) async throws(APIError) -> QueryAnswer {
        let request = try CancelTraceRetrievalRequest(body: body)
        let job = try await job(request.token, account: account, in: store)
        try await read("retrievals") {
            try await store.finishRetrieval(account: account, id: job.id, status: .cancelled, now: now())
        }
        return QueryAnswer(body: CancelTraceRetrievalRequest.responseBody, completeTo: nil)
    }

    func listRetrievedTraces(
        body: [UInt8], account: AccountID, in store: TraceStore
    ) async throws(APIError) -> QueryAnswer {
        let request = try ListRetrievedTracesRequest(body: body)
        let job = try await advancedJob(request.token, account: account, in: store)
        var position = RetrievalPosition()
        if let text = request.nextToken {
            let bytes = try tokens.position(
                in: text, operation: ListRetrievedTracesRequest.operation, account: account, requestHash: request.hash,
                now: now(), lifetime: RetrievalJob.lifetime)
            guard let opened = RetrievalPosition(bytes) else { throw PageToken.invalid(text) }
            position = opened
        }
        let status = job.status(now: now())
        var response = ListRetrievedTracesResponse(status: status.rawValue, format: request.format)
        guard status == .complete else { return QueryAnswer(body: response.body, completeTo: nil) }
        let wanted = job.found.dropFirst(position.trace).prefix(ListRetrievedTracesRequest.pageTraces)
        try await gate.withUnits(wanted.count) { () async throws(APIError) in
            let stored = try await retrieved(Array(wanted), account: account)
            for found in wanted {
                guard let trace = stored[found.id] else {
                    // Removed by retention since.
                    if let token = request.nextToken { throw PageToken.pointsToRemoved(token) }
                    position = RetrievalPosition(trace: position.trace + 1)
                    continue
                }
                let spans = Self.spans(of: trace, format: request.format)
                let page = spans.dropFirst(position.span).prefix(ListRetrievedTracesRequest.pageSpans)
                response.traces.append(.init(id: found.id, duration: trace.forest.traceDuration, spans: Array(page)))
                await Task.yield()
                if page.endIndex < spans.endIndex {
                    position.span = page.endIndex
                    return
                }
                position = RetrievalPosition(trace: position.trace + 1)
            }
        }
        if position.trace < job.found.count {
            let token = PageToken(
                operation: ListRetrievedTracesRequest.operation, account: account, requestHash: request.hash,
                position: position.bytes)
            response.nextToken = try tokens.seal(token, now: now())
        }
        return QueryAnswer(body: response.body, completeTo: nil)
    }

    func getRetrievedTracesGraph(
        body: [UInt8], account: AccountID, in store: TraceStore
    ) async throws(APIError) -> QueryAnswer {
        let request = try GetRetrievedTracesGraphRequest(body: body)
        let job = try await advancedJob(request.token, account: account, in: store)
        var first = 0
        if let text = request.nextToken {
            let bytes = try tokens.position(
                in: text, operation: GetRetrievedTracesGraphRequest.operation, account: account,
                requestHash: request.hash, now: now(), lifetime: RetrievalJob.lifetime)
            guard let opened = RetrievalPosition(bytes) else { throw PageToken.invalid(text) }
            first = opened.trace
        }
        let status = job.status(now: now())
        var response = GetRetrievedTracesGraphResponse(status: status.rawValue)
        guard status == .complete else { return QueryAnswer(body: response.body, completeTo: nil) }
        try await gate.withUnits(job.found.count) { () async throws(APIError) in
            var forests: [Forest] = []
            for chunk in job.found.chunks(of: limits.chunkTraces) {
                let stored = try await retrieved(chunk, account: account)
                if let token = request.nextToken, stored.count < chunk.count { throw PageToken.pointsToRemoved(token) }
                forests += chunk.compactMap { stored[$0.id]?.forest }
                await Task.yield()
            }
            let links = traceLinks(of: forests)
            let services = traceGraph(of: forests, account: account).services
            let page = services.dropFirst(first).prefix(GetRetrievedTracesGraphRequest.pageServices)
            response.services = page.map { service in
                .init(service: service, links: links[service.identity(receivingAccount: account)] ?? [])
            }
            if page.endIndex < services.endIndex {
                let token = PageToken(
                    operation: GetRetrievedTracesGraphRequest.operation, account: account, requestHash: request.hash,
                    position: RetrievalPosition(trace: page.endIndex).bytes)
                response.nextToken = try tokens.seal(token, now: now())
            }
        }
        return QueryAnswer(body: response.body, completeTo: nil)
    }

    // MARK: Jobs

    /// A retrieval token is bound to nothing but its account.
    private static let noHash = [UInt8](repeating: 0, count: 16)

    private func job(_ token: String, account: AccountID, in store: TraceStore) async throws(APIError) -> RetrievalJob {
        let bytes: [UInt8]
        do {
            bytes = try tokens.position(
                in: token, operation: StartTraceRetrievalRequest.operation, account: account, requestHash: Self.noHash,
                now: now(), lifetime: 2 * RetrievalJob.lifetime)
        } catch {
            throw RetrievalToken.notFound(token)
        }
        guard let id = TraceID(uuidBytes: bytes[...]) else { throw RetrievalToken.notFound(token) }
        let job = try await read("retrievals") { try await store.retrieval(account: account, id: id) }
        guard let job, !job.isExpired(now: now()) else { throw RetrievalToken.notFound(token) }
        return job
    }

    /// The job, run by this call if nobody else runs it.
    private func advancedJob(
        _ token: String, account: AccountID, in store: TraceStore
    ) async throws(APIError) -> RetrievalJob {
        let job = try await job(token, account: account, in: store)
        guard job.status(now: now()).isActive else { return job }
        let isClaimed = try await read("retrievals") {
            try await store.claimRetrieval(account: account, id: job.id, now: now())
        }
        guard isClaimed else { return try await self.job(token, account: account, in: store) }
        var status = RetrievalJob.Status.complete
        var found: [RetrievalJob.Found] = []
        do {
            found = try await find(job, account: account)
        } catch {
            // What a little time may cure is taken over by a later call.
            guard error.status == 500 else { throw error }
            status = .failed
        }
        try await read("retrievals") { [status, found] in
            try await store.finishRetrieval(account: account, id: job.id, status: status, found: found, now: now())
        }
        return try await self.job(token, account: account, in: store)
    }

    /// Those of the wanted traces that are stored and overlap the job's window.
    private func find(_ job: RetrievalJob, account: AccountID) async throws(APIError) -> [RetrievalJob.Found] {
        _ = try await completeTo(Set(job.wanted.map(reading.partition)), .fresh)
        var found: [RetrievalJob.Found] = []
        let folder = TraceFolder()
        for chunk in job.wanted.chunks(of: limits.chunkTraces) {
            try await gate.withUnits(chunk.count) { () async throws(APIError) in
                for trace in try await traces(chunk, account: account) {
                    let forest = folder.fold(trace, account: account).forest
                    guard let start = forest.earliestStart, start <= job.endTime,
                        max(start, forest.latestEnd ?? start) >= job.startTime
                    else { continue }
                    found.append(.init(id: trace.id, revision: trace.revision))
                    await Task.yield()
                }
            }
        }
        return found
    }

    /// The traces as they were when the job found them.
    private func retrieved(
        _ found: [RetrievalJob.Found], account: AccountID
    ) async throws(APIError) -> [TraceID: FoldedTrace] {
        let folder = TraceFolder()
        let revisions = Dictionary(found.map { ($0.id, $0.revision) }) { first, _ in first }
        var result: [TraceID: FoldedTrace] = [:]
        for var trace in try await traces(found.map(\.id), account: account) {
            trace.documents = Array(trace.documents.prefix(revisions[trace.id] ?? 0))
            result[trace.id] = folder.fold(trace, account: account, keepsDocuments: true)
        }
        return result
    }

    private static func spans(
        of trace: FoldedTrace, format: ListRetrievedTracesRequest.Format
    ) -> [ListRetrievedTracesResponse.Span] {
        switch format {
        case .xray:
            traceDocuments(forest: trace.forest, documents: trace.documents).map {
                .init(id: $0.id, document: $0.document)
            }
        case .otel: otlpSpans(of: trace.forest)
        }
    }
}

/// Where the next page of a job begins: which of its traces (or services), which of its spans.
private struct RetrievalPosition {
    var trace = 0
    var span = 0

    init(trace: Int = 0) { self.trace = trace }

    init?(_ bytes: [UInt8]) {
        guard bytes.count == 8 else { return nil }
        trace = bytes[..<4].reduce(0) { $0 << 8 | Int($1) }
        span = bytes[4...].reduce(0) { $0 << 8 | Int($1) }
    }

    var bytes: [UInt8] {
        [UInt32(trace), UInt32(span)].flatMap { number in withUnsafeBytes(of: number.bigEndian) { Array($0) } }
    }
}
