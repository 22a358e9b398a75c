// `TraceIds` of the read operations: the list as sent and as ids. Both spellings of an id are one id (`rulings.md`,
// small print), so ids are compared after parsing.

import JSONText
import Segments

extension String {
    /// At most `count` code points, for echoing input in a message.
    func echoed(_ count: Int = 64) -> String {
        guard unicodeScalars.count > count else { return self }
        var scalars = String.UnicodeScalarView()
        scalars.append(contentsOf: unicodeScalars.prefix(count))
        return String(scalars)
    }
}

/// `BatchGetTraces` (`traces.md` §3).
public struct BatchGetTracesRequest: Sendable, Equatable {
    public static let operation = "BatchGetTraces"
    public static let maxTraces = 5

    /// In request order, distinct.
    public var traceIDs: [TraceID]

    /// - Throws: the messages of `traces.md` §3, in the order of its table.
    public init(body: [UInt8]) throws(APIError) {
        traceIDs = try RequestMembers.decode(body) { (members) throws(APIError) in
            guard let (texts, count) = try members.strings("TraceIds", limit: Self.maxTraces) else {
                throw RequestMembers.missing("TraceIds")
            }
            let token = try members.string("NextToken")
            guard count > 0 else { throw .invalidRequest("TraceIds must have at least 1 item") }
            guard count <= Self.maxTraces else {
                throw .invalidRequest("Exceeding maximum query size: \(Self.maxTraces)")
            }
            var ids: [TraceID] = []
            for text in texts {
                guard let id = TraceID(parsing: text) else {
                    throw .invalidRequest("Invalid trace id \(text.echoed()): incorrect id format")
                }
                ids.append(id)
            }
            guard Set(ids).count == ids.count else { throw .invalidRequest("Containing duplicate trace ids") }
            guard token == nil else { throw .invalidRequest("NextToken is currently not supported") }
            return ids
        }
    }
}

/// `GetTraceGraph` (`service-graph.md` §1, §8).
public struct GetTraceGraphRequest: Sendable, Equatable {
    public static let operation = "GetTraceGraph"
    public static let maxTraces = 100

    /// In request order, distinct: an id given twice counts once.
    public var traceIDs: [TraceID]

    /// - Throws: `Zero trace ids provided`, `Invalid traceId. ErrorCode: InvalidId`, more than 100 ids.
    public init(body: [UInt8]) throws(APIError) {
        traceIDs = try RequestMembers.decode(body) { (members) throws(APIError) in
            guard let (texts, count) = try members.strings("TraceIds", limit: Self.maxTraces), count > 0 else {
                throw .invalidRequest("Zero trace ids provided")
            }
            _ = try members.string("NextToken")
            guard count <= Self.maxTraces else {
                throw .invalidRequest("TraceIds must have at most \(Self.maxTraces) items")
            }
            var seen: Set<TraceID> = []
            var ids: [TraceID] = []
            for text in texts {
                guard let id = TraceID(parsing: text) else {
                    throw .invalidRequest("Invalid traceId. ErrorCode: InvalidId")
                }
                if seen.insert(id).inserted { ids.append(id) }
            }
            return ids
        }
    }

    /// None of the traces is stored.
    public static let notFound = APIError.invalidRequest("Trace id not found")
}
