// `GetTimeSeriesServiceStatistics`, request and answer (`service-graph.md` §9, `api.md` §5.2).

import JSONText
import Segments
import ServiceGraph

public struct GetTimeSeriesServiceStatisticsRequest: Sendable, Equatable {
    public static let operation = "GetTimeSeriesServiceStatistics"
    /// Buckets of one page.
    public static let pagePoints = 1_000

    /// Whole seconds since 1970, end excluded.
    public var window: Range<Int64>
    public var group: GroupIdentifier?
    /// Nil: every root request.
    public var selector: String?
    /// 60 or 300 seconds.
    public var period: Int64
    public var hasForecast: Bool
    public var nextToken: String?
    /// What a page token is bound to: every member but the token.
    public var hash: [UInt8]

    /// - Throws: `SerializationException`, `InvalidRequestException`. Whether the selector parses is the service's to say.
    public init(body: [UInt8]) throws(APIError) {
        self = try RequestMembers.decode(body) { (members) throws(APIError) in try Self(members) }
    }

    private init(_ members: RequestMembers) throws(APIError) {
        let startTime = try members.timestamp("StartTime")
        let endTime = try members.timestamp("EndTime")
        let givenPeriod = try members.integer("Period")
        hasForecast = try members.bool("ForecastStatistics") ?? false
        nextToken = try members.string("NextToken")
        group = try GroupIdentifier.read(members)
        selector = try members.string("EntitySelectorExpression", length: 1...500)

        window = try TimeWindow.read(members)
        period = givenPeriod ?? 60
        guard period == 60 || period == 300 else { throw .invalidRequest("Time period must be one of [60, 300]") }

        var hash = RequestHash()
        hash.add(startTime ?? -1)
        hash.add(endTime ?? -1)
        hash.add(group?.name)
        hash.add(group?.arn)
        hash.add(selector)
        hash.add(period)
        hash.add(hasForecast ? 1 : 0)
        self.hash = hash.finalized()
    }

    public static let selectorRequired = APIError.invalidRequest("EntitySelectorExpression is required for forecast")
}

public struct GetTimeSeriesServiceStatisticsResponse {
    /// Newest first.
    public var points: [TimeSeriesPoint]
    /// The statistics are those of a service, not of an edge.
    public var isOfService: Bool
    public var containsOldGroupVersions: Bool
    public var nextToken: String?

    public init(points: [TimeSeriesPoint], isOfService: Bool, containsOldGroupVersions: Bool, nextToken: String?) {
        self.points = points
        self.isOfService = isOfService
        self.containsOldGroupVersions = containsOldGroupVersions
        self.nextToken = nextToken
    }

    public var body: [UInt8] {
        var writer = JSONWriter(reservingCapacity: 256 + points.count * 384)
        writer.beginObject()
        writer.key("TimeSeriesServiceStatistics")
        writer.beginArray()
        for point in points {
            writer.beginObject()
            writer.key("Timestamp")
            writer.int(point.time)
            if point.summary.totalCount > 0 {
                if isOfService { writer.key("ServiceSummaryStatistics") } else { writer.key("EdgeSummaryStatistics") }
                writer.statistics(point.summary)
            }
            writer.key("ServiceForecastStatistics")
            writer.beginObject()
            if let forecast = point.faultForecast {
                writer.key("FaultCountHigh")
                writer.int(forecast.upperBound)
                writer.key("FaultCountLow")
                writer.int(forecast.lowerBound)
            }
            writer.endObject()
            if point.summary.totalCount > 0 {
                writer.key("ResponseTimeHistogram")
                writer.histogram(point.responseTimeHistogram)
            }
            writer.endObject()
        }
        writer.endArray()
        writer.key("ContainsOldGroupVersions")
        writer.bool(containsOldGroupVersions)
        if let nextToken {
            writer.key("NextToken")
            writer.string(nextToken)
        }
        writer.endObject()
        return writer.bytes
    }
}
