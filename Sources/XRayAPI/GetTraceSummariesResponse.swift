// `GetTraceSummaries`, the answer: every field of `traces.md` §4–6 as JSON. Summaries are written one by one, so that a
// page never needs all of its traces in memory at once.

import JSONText
import Segments
import TraceAssembly

/// A page under construction.
public struct GetTraceSummariesResponse {
    private var writer: JSONWriter
    private let hasMatchedEventTime: Bool

    /// `MatchedEventTime` is sent unless the traces were searched by `TraceId`.
    public init(timeRangeType: GetTraceSummariesRequest.TimeRangeType) {
        hasMatchedEventTime = timeRangeType != .traceID
        writer = JSONWriter(reservingCapacity: 64 << 10)
        writer.beginObject()
        writer.key("TraceSummaries")
        writer.beginArray()
    }

    public mutating func append(_ summary: TraceSummary) {
        writer.summary(summary, hasMatchedEventTime: hasMatchedEventTime)
    }

    /// - Parameters:
    ///   - approximateTime: seconds since 1970.
    ///   - tracesProcessedCount: traces scanned for this page.
    /// - Returns: the body.
    public consuming func finish(approximateTime: Int64, tracesProcessedCount: Int, nextToken: String?) -> [UInt8] {
        writer.endArray()
        writer.key("ApproximateTime")
        writer.int(approximateTime)
        writer.key("TracesProcessedCount")
        writer.int(tracesProcessedCount)
        if let nextToken {
            writer.key("NextToken")
            writer.string(nextToken)
        }
        writer.endObject()
        return writer.bytes
    }
}

extension JSONWriter {
    mutating func summary(_ summary: TraceSummary, hasMatchedEventTime: Bool) {
        beginObject()
        key("Id")
        string(summary.id)
        key("StartTime")
        seconds(micros: summary.startTime)
        if let duration = summary.duration {
            key("Duration")
            seconds(micros: duration)
        }
        if let responseTime = summary.responseTime {
            key("ResponseTime")
            seconds(micros: responseTime)
        }
        key("HasFault")
        bool(summary.hasFault)
        key("HasError")
        bool(summary.hasError)
        key("HasThrottle")
        bool(summary.hasThrottle)
        key("IsPartial")
        bool(summary.isPartial)
        key("Http")
        http(summary.http)
        key("Annotations")
        annotations(summary.annotations)
        key("Users")
        beginArray()
        for user in summary.users {
            beginObject()
            key("UserName")
            string(user.name)
            serviceIDs(user.serviceIDs)
            endObject()
        }
        endArray()
        serviceIDs(summary.serviceIDs)
        objects("ResourceARNs", "ARN", summary.resourceARNs)
        objects("InstanceIds", "Id", summary.instanceIDs)
        objects("AvailabilityZones", "Name", summary.availabilityZones)
        key("EntryPoint")
        serviceID(summary.entryPoint)
        rootCauses("FaultRootCauses", summary.faultRootCauses)
        rootCauses("ErrorRootCauses", summary.errorRootCauses)
        rootCauses("ResponseTimeRootCauses", summary.responseTimeRootCauses)
        key("Revision")
        int(summary.revision)
        if hasMatchedEventTime {
            key("MatchedEventTime")
            seconds(micros: summary.newestReceipt)
        }
        endObject()
    }

    private mutating func http(_ http: HTTPSummary) {
        beginObject()
        optional("HttpURL", http.url)
        if let status = http.status {
            key("HttpStatus")
            int(status)
        }
        optional("HttpMethod", http.method)
        optional("UserAgent", http.userAgent)
        optional("ClientIp", http.clientIP)
        endObject()
    }

    private mutating func annotations(_ annotations: [AnnotationSummary]) {
        beginObject()
        for annotation in annotations {
            key(string: annotation.key)
            beginArray()
            for item in annotation.values {
                beginObject()
                key("AnnotationValue")
                beginObject()
                switch item.value {
                case .string(let text):
                    key("StringValue")
                    string(text.value)
                case .number(let number):
                    key("NumberValue")
                    double(number)
                case .bool(let flag):
                    key("BooleanValue")
                    bool(flag)
                }
                endObject()
                serviceIDs(item.serviceIDs)
                endObject()
            }
            endArray()
        }
        endObject()
    }

    private mutating func serviceIDs(_ services: [ServiceID]) {
        key("ServiceIds")
        beginArray()
        for service in services { serviceID(service) }
        endArray()
    }

    private mutating func serviceID(_ service: ServiceID) {
        beginObject()
        nameAndNames(service.name.value)
        optional("AccountId", service.account?.value)
        optional("Type", service.type?.value)
        endObject()
    }

    private mutating func rootCauses(_ name: StaticString, _ causes: [RootCause]) {
        key(name)
        beginArray()
        for cause in causes {
            beginObject()
            key("ClientImpacting")
            bool(cause.isClientImpacting)
            key("Services")
            beginArray()
            for service in cause.services { rootCauseService(service) }
            endArray()
            endObject()
        }
        endArray()
    }

    private mutating func rootCauseService(_ service: RootCauseService) {
        beginObject()
        nameAndNames(service.service.name.value)
        // Some clients look into the type without checking: `""` when unknown (`traces.md` §5).
        key("Type")
        string(service.service.type?.value ?? "")
        optional("AccountId", service.service.account?.value)
        key("Inferred")
        bool(service.isInferred)
        key("EntityPath")
        beginArray()
        for entity in service.path { rootCauseEntity(entity) }
        endArray()
        endObject()
    }

    private mutating func rootCauseEntity(_ entity: RootCauseEntity) {
        beginObject()
        key("Name")
        string(entity.name)
        key("Remote")
        bool(entity.isRemote)
        if let coverage = entity.coverage {
            key("Coverage")
            double(coverage)
        } else {
            key("Exceptions")
            beginArray()
            for exception in entity.exceptions {
                beginObject()
                optional("Name", exception.name)
                optional("Message", exception.message)
                endObject()
            }
            endArray()
        }
        endObject()
    }

    private mutating func objects(_ list: StaticString, _ member: StaticString, _ values: [String]) {
        key(list)
        beginArray()
        for value in values {
            beginObject()
            key(member)
            string(value)
            endObject()
        }
        endArray()
    }

    private mutating func optional(_ name: StaticString, _ value: String?) {
        guard let value else { return }
        key(name)
        string(value)
    }
}
