// `beamline verify` without its command line: recount, fetch what is served, compare; again when they differ, because
// documents may arrive between the two readings.

import JSONText
import LoadGeneration
import Segments
import ServiceGraph
import TraceStore
import XRayAPI

public struct VerificationResult: Sendable {
    public var account: AccountID
    public var traces = 0
    /// Groups that were compared too.
    public var groups = 0
    public var documents = 0
    public var observations = 0
    public var differences: [String] = []
}

public enum GraphVerification {
    /// Documents of the tables against the graph blocks of the tables; then the same for the members of each group.
    /// - Parameter window: whole seconds since 1970.
    public static func run(_ store: TraceStore, account: AccountID, window: Range<Int64>) async throws -> VerificationResult {
        let minutes = floorDivide(window.lowerBound, by: 60)..<(floorDivide(window.upperBound - 1, by: 60) + 1)
        var result = try await untilSettled {
            let source = StoreDocumentSource(store: store, account: account)
            return try await compare(source, account: account, window: window) {
                try await store.graphBlocks(account: account, minutes: minutes).map(\.bytes)
            }
        }
        for group in try await store.groups(account: account).groups where !group.isDefault {
            let ofGroup = try await untilSettled {
                let source = StoreDocumentSource(store: store, account: account, groupKey: group.key)
                return try await compare(source, account: account, window: window) {
                    try await store.groupBlocks(account: account, groupKey: group.key, minutes: minutes).map(\.bytes)
                }
            }
            result.groups += 1
            result.observations += ofGroup.observations
            result.differences += ofGroup.differences.map { "group \(group.name): \($0)" }
        }
        return result
    }

    private static func compare(
        _ source: StoreDocumentSource, account: AccountID, window: Range<Int64>, blocks: () async throws -> [[UInt8]]
    ) async throws -> VerificationResult {
        var source = source
        let recount = try await GraphRecount.count(&source, account: account, window: window)
        var builder = ServiceGraphBuilder(receivingAccount: account, window: window)
        for block in try await blocks() { try builder.add(block) }
        let served = GetTraceGraphResponse(graph: try builder.build()).body
        return try compare(recount, served: [served], account: account)
    }

    /// Documents as `BatchGetTraces` returns them against `GetServiceGraph`.
    /// - Parameter window: whole seconds since 1970, at most 24 hours.
    public static func run(
        _ client: APIClient, account: AccountID, window: Range<Int64>, lookBackSeconds: Int64
    ) async throws -> VerificationResult {
        try await untilSettled {
            var source = APIDocumentSource(client: client, window: window, lookBackSeconds: lookBackSeconds)
            let recount = try await GraphRecount.count(&source, account: account, window: window)
            var pages: [[UInt8]] = []
            var token: String?
            repeat {
                var request = JSONWriter()
                request.beginObject()
                request.key("StartTime")
                request.int(window.lowerBound)
                request.key("EndTime")
                request.int(window.upperBound)
                if let token {
                    request.key("NextToken")
                    request.string(token)
                }
                request.endObject()
                let answer = try client.read("/ServiceGraph", request.bytes, fresh: true).body
                token = try JSONParser().parse(answer).member("NextToken")?.string?.string
                pages.append(answer)
            } while token != nil
            return try compare(recount, served: pages, account: account)
        }
    }

    private static func compare(_ recount: GraphRecount, served: [[UInt8]], account: AccountID) throws -> VerificationResult {
        let counted = GetTraceGraphResponse(graph: try recount.graph()).body
        let comparison = try GraphComparison(recounted: [counted], served: served)
        return VerificationResult(
            account: account, traces: recount.traceCount, documents: recount.documentCount,
            observations: comparison.observations, differences: comparison.differences)
    }

    /// A difference that is real is the same one again; one that came from reading in between is not.
    private static func untilSettled(_ body: () async throws -> VerificationResult) async throws -> VerificationResult {
        var last = try await body()
        for _ in 0..<3 where !last.differences.isEmpty {
            let again = try await body()
            if again.differences == last.differences { return again }
            last = again
        }
        return last
    }

    private static func floorDivide(_ value: Int64, by divisor: Int64) -> Int64 {
        let quotient = value / divisor
        return value % divisor < 0 ? quotient - 1 : quotient
    }
}
