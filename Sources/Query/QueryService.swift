// The read operations of the API: decode, read, fold, render. Bytes of a request body go in, bytes of the answer come
// out; `QueryService+Operations` registers them with the server. All state is in the store: any node answers alike.

import Logging
import Observability
import SegmentLog
import Segments
import ServiceGraph
import TraceAssembly
import TraceStore
import XRayAPI

/// An answer and how complete it is.
public struct QueryAnswer: Sendable {
    public var body: [UInt8]
    /// Every document acknowledged with a receipt time up to this is in the answer; nil for answers that read no traces.
    public var completeTo: Micros?
}

public struct QueryLimits: Sendable {
    /// Summaries of one page, traces scanned for one page.
    public var pageSummaries = 100
    public var pageScannedTraces = 5_000
    /// Traces scanned by all pages of a partial scan.
    public var partialScanTraces = 10_000
    /// Traces held in memory at once, by one request and by all of them.
    public var chunkTraces = 20
    public var tracesInMemory = 120
    /// Requests waiting for memory; further ones are refused.
    public var waitingRequests = 1_000
    /// Rendered graphs kept for their next pages.
    public var snapshotBytes = 32 << 20
    /// Sums of minutes and hours kept for further graphs and series over them; 0: everything is read anew.
    public var rollUpBytes = 64 << 20
    /// Longest wait of a read that wants everything acknowledged so far (ruling 4).
    public var freshWait: Duration = .seconds(2)

    public init() {}
}

public final class QueryService: Sendable {
    let reading: any TraceReading
    let tokens: PageTokenSealer
    let limits: QueryLimits
    let now: @Sendable () -> Micros
    let logger: Logger
    let metrics: Metrics?
    let gate: WorkGate
    let snapshots: GraphSnapshots
    let rollUps: RollUpCache
    let completeness: Completeness
    /// The tables of the control operations; nil: they are not served.
    let control: TraceStore?
    let region: String

    /// - Parameters:
    ///   - tokens: must be made from the same secret on every node, and after every start.
    ///   - control: the store of groups, tags, indexing rules and retrievals; nil: their operations are not served.
    ///   - region: of the ARNs that are made.
    ///   - now: microseconds since 1970.
    public init(
        reading: any TraceReading, tokens: PageTokenSealer, limits: QueryLimits = QueryLimits(),
        control: TraceStore? = nil, region: String = "us-east-1", metrics: Metrics? = nil,
        logger: Logger,
        now: @escaping @Sendable () -> Micros
    ) {
        self.reading = reading
        self.tokens = tokens
        self.limits = limits
        self.control = control
        self.region = region
        self.now = now
        self.metrics = metrics
        self.logger = logger
        gate = WorkGate(capacity: limits.tracesInMemory, maxWaiters: limits.waitingRequests)
        snapshots = GraphSnapshots(maxBytes: limits.snapshotBytes)
        rollUps = RollUpCache(maxBytes: limits.rollUpBytes)
        completeness = Completeness(reading: reading, waitLimit: limits.freshWait)
    }

    /// A read of the store or the log.
    /// - Throws: `ServiceUnavailable` when it may succeed a little later, `InternalFailure` otherwise.
    func read<Value>(_ what: String, _ body: () async throws -> Value) async throws(APIError) -> Value {
        do {
            return try await body()
        } catch let error as APIError {
            throw error
        } catch let error as TraceStoreError where error.code == .unavailable || error.isRetriable {
            logger.warning("Cannot read", metadata: ["what": "\(what)", "error": "\(error)"])
            throw .serviceUnavailable()
        } catch let error as SegmentLogError where error.isRetriable || error.code == .closed {
            logger.warning("Cannot read", metadata: ["what": "\(what)", "error": "\(error)"])
            throw .serviceUnavailable()
        } catch is CancellationError {
            throw .serviceUnavailable()
        } catch {
            logger.error("Cannot read", metadata: ["what": "\(what)", "error": "\(error)"])
            throw .internalFailure()
        }
    }

    /// Where a walk over several pages begins, as retention counts.
    func lastRemoval(account: AccountID) async throws(APIError) -> Int64 {
        try await read("removals") { try await reading.lastRemoval(account: account) }
    }

    /// - Parameter seconds: what a token had yet to give.
    func checkNothingWasRemoved(
        _ data: RetainedData, seconds: Range<Int64>, since number: Int64, token: String, account: AccountID
    ) async throws(APIError) {
        let isRemoved = try await read("removals") {
            try await reading.hasRemoved(data, account: account, seconds: seconds, since: number)
        }
        if isRemoved { throw PageToken.pointsToRemoved(token) }
    }

    func completeTo(_ partitions: Set<Int>?, _ consistency: ReadConsistency) async throws(APIError) -> Micros {
        let start = now()
        return try await read("log positions") {
            try await completeness.reached(partitions: partitions, consistency: consistency, now: start)
        }
    }
}

// MARK: - BatchGetTraces

extension QueryService {
    /// Waits for its traces' partitions (ruling 4).
    public func batchGetTraces(body: [UInt8], account: AccountID) async throws(APIError) -> QueryAnswer {
        let request = try BatchGetTracesRequest(body: body)
        let completeTo = try await completeTo(reading.partitions(of: request.traceIDs), .fresh)
        return try await gate.withUnits(request.traceIDs.count) { () async throws(APIError) in
            let (stored, unreadable) = try await storedTraces(request.traceIDs, account: account)
            let folder = TraceFolder()
            let traces = stored.map { trace in
                let folded = folder.fold(trace, account: account, keepsDocuments: true)
                return BatchGetTracesResponse.Trace(
                    id: trace.id, duration: folded.forest.traceDuration, limitExceeded: trace.limitExceeded,
                    segments: traceDocuments(forest: folded.forest, documents: folded.documents))
            }
            let response = BatchGetTracesResponse(traces: traces, unprocessedTraceIDs: unreadable)
            return QueryAnswer(body: response.body, completeTo: completeTo)
        }
    }

    /// Traces in the order asked for. One that cannot be read does not take the others with it.
    private func storedTraces(
        _ ids: [TraceID], account: AccountID
    ) async throws(APIError) -> (stored: [StoredTrace], unreadable: [TraceID]) {
        do {
            return (try await traces(ids, account: account), [])
        } catch  where error.status == 500 {
            var stored: [StoredTrace] = []
            var unreadable: [TraceID] = []
            for id in ids {
                do {
                    stored += try await traces([id], account: account)
                } catch  where error.status == 500 {
                    unreadable.append(id)
                }
            }
            return (stored, unreadable)
        }
    }

    /// The traces of `ids` that are stored, in that order.
    func traces(_ ids: [TraceID], account: AccountID) async throws(APIError) -> [StoredTrace] {
        let stored = try await read("traces") { try await reading.storedTraces(account: account, ids: ids) }
        let byID = Dictionary(stored.map { ($0.id, $0) }, uniquingKeysWith: { first, _ in first })
        return ids.compactMap { byID[$0] }
    }
}

// MARK: - GetTraceGraph

extension QueryService {
    /// Waits for its traces' partitions (ruling 4).
    public func getTraceGraph(body: [UInt8], account: AccountID) async throws(APIError) -> QueryAnswer {
        let request = try GetTraceGraphRequest(body: body)
        let completeTo = try await completeTo(reading.partitions(of: request.traceIDs), .fresh)
        return try await gate.withUnits(request.traceIDs.count) { () async throws(APIError) in
            let folder = TraceFolder()
            var forests: [Forest] = []
            // The documents of a chunk are let go before the next one is read; only the forests stay.
            for chunk in request.traceIDs.chunks(of: limits.chunkTraces) {
                for trace in try await traces(chunk, account: account) {
                    forests.append(folder.fold(trace, account: account).forest)
                    await Task.yield()
                }
            }
            guard !forests.isEmpty else { throw GetTraceGraphRequest.notFound }
            let response = GetTraceGraphResponse(graph: traceGraph(of: forests, account: account))
            return QueryAnswer(body: response.body, completeTo: completeTo)
        }
    }
}

extension Array {
    func chunks(of size: Int) -> [[Element]] {
        stride(from: 0, to: count, by: size).map { Array(self[$0..<Swift.min($0 + size, count)]) }
    }
}

// MARK: - GetServiceGraph

extension QueryService {
    public func getServiceGraph(
        body: [UInt8], account: AccountID, isFresh: Bool = false
    ) async throws(APIError) -> QueryAnswer {
        let request = try GetServiceGraphRequest(body: body)
        let group = try await memberGroup(request.group, account: account)
        let call = GraphCall(
            request: request, group: group, hash: requestHash(request.hash, groupKey: group?.key ?? 0), account: account,
            isFresh: isFresh)
        guard let text = request.nextToken else {
            let removal = try await lastRemoval(account: account)
            let (graph, completeTo) = try await serviceGraph(call)
            return try answer(call, page: 0, of: graph, completeTo: completeTo, lastRemoval: removal)
        }
        let bytes = try tokens.position(
            in: text, operation: GetServiceGraphRequest.operation, account: account, requestHash: call.hash, now: now())
        guard let position = GraphPosition(bytes) else { throw PageToken.invalid(text) }
        if let (graph, completeTo) = snapshots.graph(for: call.key(position.digest), now: now()),
            position.page < graph.pages.count
        {
            try await checkNothingWasRemoved(from: call, since: position.lastRemoval, token: text)
            return try answer(
                call, page: position.page, of: graph, completeTo: completeTo, lastRemoval: position.lastRemoval)
        }
        let (graph, completeTo) = try await serviceGraph(call)
        try await checkNothingWasRemoved(from: call, since: position.lastRemoval, token: text)
        // Other nodes than when the walk began: its pages do not fit together any more, the client has to start again.
        guard graph.digest == position.digest, position.page < graph.pages.count else { throw PageToken.invalid(text) }
        return try answer(
            call, page: position.page, of: graph, completeTo: completeTo, lastRemoval: position.lastRemoval)
    }

    /// Of a graph: the pages that were given contain what is gone, those that are to come would not.
    private func checkNothingWasRemoved(from call: GraphCall, since number: Int64, token: String) async throws(APIError) {
        try await checkNothingWasRemoved(
            call.group == nil ? .graph : .groups, seconds: call.request.window, since: number, token: token,
            account: call.account)
    }

    private struct GraphCall {
        var request: GetServiceGraphRequest
        /// Nil: all traces.
        var group: TraceGroup?
        /// What page tokens are bound to.
        var hash: [UInt8]
        var account: AccountID
        var isFresh: Bool

        func key(_ digest: [UInt8]) -> GraphSnapshots.Key {
            GraphSnapshots.Key(account: account, requestHash: hash, digest: digest)
        }
    }

    private func serviceGraph(
        _ call: GraphCall
    ) async throws(APIError) -> (graph: ServiceGraphPages, completeTo: Micros) {
        let completeTo = try await completeTo(nil, call.isFresh ? .fresh : .atOnce)
        let window = call.request.window
        return try await gate.withUnits(limits.chunkTraces) { () async throws(APIError) in
            var builder = ServiceGraphBuilder(receivingAccount: call.account, window: window)
            // Of traces that an older version of the filter made members: is anything of them in the window?
            var old = ServiceGraphBuilder(receivingAccount: call.account, window: window)
            var hasOld = false
            let question = WindowQuestion(graphOf: call.group, window: window, account: call.account)
            for part in window.isEmpty ? [] : try await parts(of: question) {
                switch part {
                case .rows(let rows):
                    for row in rows {
                        try await read("graph block") {
                            try builder.add(row.bytes)
                            if question.isOld(row) { try old.add(row.bytes) }
                        }
                    }
                    await Task.yield()
                case .sum(.graph(let block, let isOld)):
                    if let block { try await read("roll-up") { try builder.add(block) } }
                    hasOld = hasOld || isOld
                case .sum(.series): break
                }
            }
            hasOld = try await read("graph blocks") { try !old.build().services.isEmpty } || hasOld
            let graph = ServiceGraphPages(
                try await read("graph blocks") { try builder.build() }, containsOldGroupVersions: hasOld)
            if graph.pages.count > 1 {
                snapshots.keep(graph, completeTo: completeTo, for: call.key(graph.digest), now: now())
            }
            return (graph, completeTo)
        }
    }

    private func answer(
        _ call: GraphCall, page: Int, of graph: ServiceGraphPages, completeTo: Micros, lastRemoval: Int64
    ) throws(APIError) -> QueryAnswer {
        var nextToken: String?
        if page + 1 < graph.pages.count {
            let position = GraphPosition(page: page + 1, digest: graph.digest, lastRemoval: lastRemoval)
            nextToken = try tokens.seal(
                PageToken(
                    operation: GetServiceGraphRequest.operation, account: call.account, requestHash: call.hash,
                    position: position.bytes),
                now: now())
        }
        let response = GetServiceGraphResponse(
            window: call.request.window, services: graph.pages[page],
            containsOldGroupVersions: graph.containsOldGroupVersions, nextToken: nextToken)
        return QueryAnswer(body: response.body, completeTo: completeTo)
    }
}

/// Position of a page token of `GetServiceGraph`: which page of which graph, and the last removal by retention before it.
private struct GraphPosition {
    var page: Int
    var digest: [UInt8]
    var lastRemoval: Int64

    init(page: Int, digest: [UInt8], lastRemoval: Int64) {
        self.page = page
        self.digest = digest
        self.lastRemoval = lastRemoval
    }

    init?(_ bytes: [UInt8]) {
        guard bytes.count == 28 else { return nil }
        page = bytes[..<4].reduce(0) { $0 << 8 | Int($1) }
        lastRemoval = Int64(bitPattern: bytes[4..<12].reduce(UInt64(0)) { $0 << 8 | UInt64($1) })
        digest = Array(bytes[12...])
    }

    var bytes: [UInt8] {
        withUnsafeBytes(of: UInt32(page).bigEndian) { Array($0) }
            + withUnsafeBytes(of: lastRemoval.bigEndian) { Array($0) } + digest
    }
}

// MARK: - GetEncryptionConfig

extension QueryService {
    public func getEncryptionConfig(body: [UInt8]) throws(APIError) -> QueryAnswer {
        _ = try GetEncryptionConfigRequest(body: body)
        return QueryAnswer(body: GetEncryptionConfigRequest.defaultResponseBody, completeTo: nil)
    }
}
