// `PutTelemetryRecords` (`api.md` §5.1): what daemons report of themselves about once a minute. Empty strings are valid
// (the daemon sends them). Called by the ingest role.

import JSONText
import Segments

public struct PutTelemetryRecordsRequest: Sendable, Equatable {
    public static let maxRecords = 100

    /// Absent counts are nil.
    public struct Record: Sendable, Equatable {
        public var timestamp: Micros
        public var segmentsReceivedCount: Int64?
        public var segmentsSentCount: Int64?
        public var segmentsSpilloverCount: Int64?
        public var segmentsRejectedCount: Int64?
        public var backendConnectionErrors: BackendConnectionErrors?
    }

    public struct BackendConnectionErrors: Sendable, Equatable {
        public var timeoutCount: Int64?
        public var connectionRefusedCount: Int64?
        public var httpCode4XXCount: Int64?
        public var httpCode5XXCount: Int64?
        public var unknownHostCount: Int64?
        public var otherCount: Int64?
    }

    public var records: [Record]
    public var ec2InstanceID: String?
    public var hostname: String?
    public var resourceARN: String?

    /// - Throws: `SerializationException`, or `InvalidRequestException` naming the member that is missing or out of bounds.
    public init(body: [UInt8]) throws(APIError) {
        self = try RequestMembers.decode(body) { (members) throws(APIError) in try Self(members) }
    }

    private init(_ members: RequestMembers) throws(APIError) {
        var records: [Record] = []
        var count = 0
        let isPresent = try members.forEachElement(of: "TelemetryRecords") { (index, element) throws(APIError) in
            count += 1
            guard count <= Self.maxRecords else { return }
            let record = try RequestMembers(element, of: "TelemetryRecords[\(index)]")
            records.append(
                Record(
                    timestamp: try record.requiredTimestamp("Timestamp"),
                    segmentsReceivedCount: try record.integer("SegmentsReceivedCount"),
                    segmentsSentCount: try record.integer("SegmentsSentCount"),
                    segmentsSpilloverCount: try record.integer("SegmentsSpilloverCount"),
                    segmentsRejectedCount: try record.integer("SegmentsRejectedCount"),
                    backendConnectionErrors: try record.object("BackendConnectionErrors").map(
                        BackendConnectionErrors.init)))
        }
        guard isPresent else { throw RequestMembers.missing("TelemetryRecords") }
        guard count <= Self.maxRecords else {
            throw .invalidRequest("TelemetryRecords must have at most \(Self.maxRecords) items")
        }
        self.records = records
        ec2InstanceID = try members.string("EC2InstanceId", length: 0...20)
        hostname = try members.string("Hostname", length: 0...255)
        resourceARN = try members.string("ResourceARN", length: 0...500)
    }

    /// The answer: no members.
    public static let responseBody = Array("{}".utf8)
}

extension PutTelemetryRecordsRequest.BackendConnectionErrors {
    init(_ members: RequestMembers) throws(APIError) {
        timeoutCount = try members.integer("TimeoutCount")
        connectionRefusedCount = try members.integer("ConnectionRefusedCount")
        httpCode4XXCount = try members.integer("HTTPCode4XXCount")
        httpCode5XXCount = try members.integer("HTTPCode5XXCount")
        unknownHostCount = try members.integer("UnknownHostCount")
        otherCount = try members.integer("OtherCount")
    }
}
