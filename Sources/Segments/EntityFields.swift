// Where the fields of one segment or subsegment stand in the parsed document. One pass over the members fills it, so
// duplicate keys resolve themselves (the last wins) and validation and extraction see the same values.

import JSONText

/// Positions (`JSONValue.index`) of the known top-level fields of one entity; 0 = absent.
struct EntityFields {
    var id: Int32 = 0
    var name: Int32 = 0
    var traceID: Int32 = 0
    var parentID: Int32 = 0
    var startTime: Int32 = 0
    var endTime: Int32 = 0
    var inProgress: Int32 = 0
    var type: Int32 = 0
    var subsegments: Int32 = 0
    var namespace: Int32 = 0
    var origin: Int32 = 0
    var resourceARN: Int32 = 0
    var user: Int32 = 0
    var http: Int32 = 0
    var aws: Int32 = 0
    var error: Int32 = 0
    var fault: Int32 = 0
    var throttle: Int32 = 0
    var cause: Int32 = 0
    var annotations: Int32 = 0
    var links: Int32 = 0
    var traced: Int32 = 0

    init(of entity: JSONValue) {
        for (key, value) in entity.members {
            let position = Int32(truncatingIfNeeded: value.index)
            // By length first: at most two comparisons for a known key, none for most unknown ones.
            switch key.count {
            case 2: if key == "id" { id = position }
            case 3: if key == "aws" { aws = position }
            case 4:
                if key == "name" {
                    name = position
                } else if key == "http" {
                    http = position
                } else if key == "type" {
                    type = position
                } else if key == "user" {
                    user = position
                }
            case 5:
                if key == "fault" {
                    fault = position
                } else if key == "error" {
                    error = position
                } else if key == "cause" {
                    cause = position
                } else if key == "links" {
                    links = position
                }
            case 6:
                if key == "origin" { origin = position } else if key == "traced" { traced = position }
            case 8:
                if key == "trace_id" {
                    traceID = position
                } else if key == "end_time" {
                    endTime = position
                } else if key == "throttle" {
                    throttle = position
                }
            case 9:
                if key == "parent_id" { parentID = position } else if key == "namespace" { namespace = position }
            case 10: if key == "start_time" { startTime = position }
            case 11:
                if key == "in_progress" {
                    inProgress = position
                } else if key == "subsegments" {
                    subsegments = position
                } else if key == "annotations" {
                    annotations = position
                }
            case 12: if key == "resource_arn" { resourceARN = position }
            default: break
            }
        }
    }
}

extension JSONValue {
    /// The field at `position`; nil when it is absent or null.
    @inline(__always)
    func field(_ position: Int32) -> JSONValue? {
        guard position != 0 else { return nil }
        let value = at(Int(position))
        return value.isNull ? nil : value
    }

    /// A non-empty string field; absent, empty and any other type are nil (`segments.md` §14, "Tolerated").
    @inline(__always)
    func text(_ position: Int32) -> JSONString? {
        guard position != 0, let text = at(Int(position)).string, !text.isEmpty else { return nil }
        return text
    }

    @inline(__always)
    func flag(_ position: Int32) -> Bool { position != 0 && at(Int(position)).bool == true }

    /// A time field in µs; nil unless it is a number the system can compute with.
    @inline(__always)
    func time(_ position: Int32) -> Micros? {
        guard position != 0, let seconds = at(Int(position)).double else { return nil }
        return micros(fromSeconds: seconds)
    }
}
