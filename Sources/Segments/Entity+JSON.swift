// The facts of one validated entity, out of its JSON. Rule for every optional field: null, an empty string and a wrong
// type are as if the field were absent (`segments.md` §14, "Tolerated").

import JSONText

/// Appends the entity and fills it in place: an `Entity` is large, and a copy would retain each of its strings.
func appendEntity(
    _ value: JSONValue, _ fields: EntityFields, _ head: SegmentParser.EntityHead, kind: Entity.Kind,
    parentID: EntityID?, to entities: inout [Entity]
) {
    entities.append(
        Entity(
            id: head.id, parentID: parentID, kind: kind, name: limitedName(head.name), start: head.start, end: head.end)
    )
    readFacts(value, fields, into: &entities[entities.count - 1])
}

private func readFacts(_ value: JSONValue, _ fields: EntityFields, into entity: inout Entity) {
    entity.hasErrorFlag = value.flag(fields.error)
    entity.hasFaultFlag = value.flag(fields.fault)
    entity.hasThrottleFlag = value.flag(fields.throttle)
    if entity.kind == .subsegment {
        if let namespace = value.text(fields.namespace) {
            entity.namespace = namespace == "aws" ? .aws : namespace == "remote" ? .remote : .none
        }
        entity.isTraced = value.flag(fields.traced)
    } else {
        entity.origin = value.text(fields.origin)?.string
        entity.resourceARN = value.text(fields.resourceARN)?.string
        entity.user = value.text(fields.user)?.string
        if let links = value.field(fields.links) { entity.links = readLinks(links) }
    }
    if let http = value.field(fields.http) { readHTTP(http, into: &entity) }
    if let aws = value.field(fields.aws) { readAWS(aws, into: &entity) }
    if let annotations = value.field(fields.annotations) { entity.annotations = readAnnotations(annotations) }
    if let cause = value.field(fields.cause) { entity.cause = readCause(cause) }
}

/// The first 200 code points (ruling R-32).
private func limitedName(_ name: JSONString) -> String {
    let text = name.string
    guard name.count > 200, text.unicodeScalars.count > 200 else { return text }
    return String(text.unicodeScalars.prefix(200))
}

extension JSONValue {
    /// The non-empty text of a string value.
    fileprivate var nonEmptyString: String? {
        guard let text = string, !text.isEmpty else { return nil }
        return text.string
    }
}

// MARK: http

private func readHTTP(_ http: JSONValue, into entity: inout Entity) {
    // The last of equal keys counts, as a whole: a replaced `request` leaves nothing behind.
    var request: JSONValue?
    var response: JSONValue?
    for (key, value) in http.members {
        if key == "request" { request = value } else if key == "response" { response = value }
    }
    if let request { readRequest(request, into: &entity) }
    if let status = response?.member("status") { entity.httpStatus = integer(status) }
}

private func readRequest(_ request: JSONValue, into entity: inout Entity) {
    var http = HTTPRequest()
    var isTraced = false
    for (key, value) in request.members {
        switch key.count {
        case 3: if key == "url" { http.url = value.nonEmptyString }
        case 6:
            if key == "method" {
                http.method = value.nonEmptyString
            } else if key == "traced" {
                isTraced = value.bool == true
            }
        case 9: if key == "client_ip" { http.clientIP = value.nonEmptyString }
        case 10: if key == "user_agent" { http.userAgent = value.nonEmptyString }
        default: break
        }
    }
    if isTraced && entity.kind == .subsegment { entity.isTraced = true }
    if http.url != nil || http.method != nil || http.userAgent != nil || http.clientIP != nil { entity.http = http }
}

/// A whole number, written `404`, `404.0` or as a string of digits (`segments.md` §5, rulings "Small print").
private func integer(_ value: JSONValue) -> Int? {
    if let number = value.wholeNumber { return Int(number) }
    guard let text = value.string, (1...19).contains(text.count) else { return nil }
    var number = 0
    let isNegative = text.utf8[0] == UInt8(ascii: "-")
    let digits = text.utf8.dropFirst(isNegative ? 1 : 0)
    guard !digits.isEmpty else { return nil }
    for byte in digits {
        guard (0x30...0x39).contains(byte) else { return nil }
        let (tens, overflow) = number.multipliedReportingOverflow(by: 10)
        let (sum, carry) = tens.addingReportingOverflow(Int(byte) - 0x30)
        guard !overflow && !carry else { return nil }
        number = sum
    }
    return isNegative ? -number : number
}

// MARK: aws

private func readAWS(_ aws: JSONValue, into entity: inout Entity) {
    guard aws.isObject else { return }
    let isCall = entity.kind == .subsegment && entity.namespace == .aws
    var call = AWSCall()
    var onlyTableName: String?
    var ec2: JSONValue?
    for (key, value) in aws.members {
        switch key.count {
        case 3: if key == "ec2" { ec2 = value }
        case 9:
            if isCall {
                if key == "operation" {
                    call.operation = value.nonEmptyString
                } else if key == "queue_url" {
                    call.queueURL = value.nonEmptyString
                } else if key == "topic_arn" {
                    call.topicARN = value.nonEmptyString
                }
            }
        case 10:
            if key == "account_id" {
                entity.accountID = value.nonEmptyString
            } else if isCall && key == "table_name" {
                call.tableName = value.nonEmptyString
            }
        case 11:
            if isCall {
                if key == "table_names" {
                    onlyTableName = onlyElement(value)
                } else if key == "bucket_name" {
                    call.bucketName = value.nonEmptyString
                }
            }
        case 13: if isCall && key == "function_name" { call.functionName = value.nonEmptyString }
        default: break
        }
    }
    if isCall {
        call.tableName = call.tableName ?? onlyTableName
        entity.awsCall = call
    }
    guard entity.kind == .segment, let ec2 else { return }
    for (key, value) in ec2.members {
        if key == "instance_id" {
            entity.instanceID = value.nonEmptyString
        } else if key == "availability_zone" {
            entity.availabilityZone = value.nonEmptyString
        }
    }
}

/// `table_names` names a table only when it has one entry (`service-graph.md` §3).
private func onlyElement(_ list: JSONValue) -> String? {
    var elements = list.elements
    guard let first = elements.next(), elements.next() == nil else { return nil }
    return first.nonEmptyString
}

// MARK: annotations

/// Indexable entries in document order; of equal keys the last, at its place.
private func readAnnotations(_ annotations: JSONValue) -> [Annotation] {
    var entries: [(key: JSONString, value: JSONValue)] = []
    entries.reserveCapacity(annotations.count)
    for (key, value) in annotations.members { entries.append((key, value)) }
    dropRepeatedKeys(&entries)

    var result: [Annotation] = []
    result.reserveCapacity(entries.count)
    for (key, value) in entries {
        let indexed: AnnotationValue
        switch value.kind {
        case .string:
            guard let text = value.string else { continue }
            indexed = .string(text.string)
        case .integer, .double:
            guard let number = value.double else { continue }
            indexed = .number(number)
        case .bool: indexed = .bool(value.bool == true)
        case .null, .array, .object, .hugeNumber: continue
        }
        guard !key.isEmpty else { continue }
        let name = key.string
        guard key.count <= 500 || name.unicodeScalars.count <= 500 else { continue }
        result.append(Annotation(key: name, value: indexed))
    }
    return result
}

private func dropRepeatedKeys(_ entries: inout [(key: JSONString, value: JSONValue)]) {
    if entries.count <= 16 {
        var last = entries.count - 1
        while last > 0 {
            for earlier in stride(from: last - 1, through: 0, by: -1) where entries[earlier].key == entries[last].key {
                entries.remove(at: earlier)
                last -= 1
            }
            last -= 1
        }
    } else {
        var seen = Set<ExactString>()
        var kept: [(key: JSONString, value: JSONValue)] = []
        for entry in entries.reversed() where seen.insert(ExactString(entry.key.string)).inserted { kept.append(entry) }
        entries = kept.reversed()
    }
}

// MARK: cause

private func readCause(_ cause: JSONValue) -> Cause? {
    if let text = cause.string {
        guard !text.isEmpty else { return nil }
        return EntityID(utf8: text.utf8).map { .exceptionReference($0) } ?? .unresolvable
    }
    guard cause.isObject else { return nil }
    var reference: EntityID?
    var exceptions: [ExceptionDescription] = []
    for (key, value) in cause.members {
        if key == "id" {
            reference = value.string.flatMap { EntityID(utf8: $0.utf8) }
        } else if key == "exceptions" {
            exceptions = value.elements.map(readException)
        }
    }
    return reference.map { .reference($0, exceptions: exceptions) } ?? .exceptions(exceptions)
}

/// An element that is no object is an exception without name and message (`segments.md` §10).
private func readException(_ exception: JSONValue) -> ExceptionDescription {
    var description = ExceptionDescription()
    for (key, value) in exception.members {
        if key == "id" {
            description.id = value.string.flatMap { EntityID(utf8: $0.utf8) }
        } else if key == "type" {
            description.type = value.nonEmptyString
        } else if key == "message" {
            description.message = value.nonEmptyString
        }
    }
    return description
}

// MARK: links

/// Valid and distinct links in document order, of the first 20 traces (`segments.md` §13).
private func readLinks(_ links: JSONValue) -> [Link] {
    var result: [Link] = []
    var seen = Set<Link>()
    var traces = Set<TraceID>()
    for element in links.elements {
        guard let traceID = element.member("trace_id")?.string.flatMap({ TraceID(utf8: $0.utf8) }),
            let entityID = element.member("id")?.string.flatMap({ EntityID(utf8: $0.utf8) })
        else { continue }
        if traces.count == 20 && !traces.contains(traceID) { continue }
        traces.insert(traceID)
        let link = Link(traceID: traceID, entityID: entityID)
        if seen.insert(link).inserted { result.append(link) }
    }
    return result
}
