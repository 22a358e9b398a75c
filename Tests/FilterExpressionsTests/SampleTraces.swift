// The sample traces of the specification (`filter-expressions.md` §10) as documents, folded as the aggregator would.

import Segments
import Testing
import TraceAssembly

@testable import FilterExpressions

let receivingAccount = AccountID(rawValue: 111_122_223_333)

/// The trace that documents fold into. They carry the id of `traceIDText`.
func folded(_ documents: [String], id: String = traceIDText) throws -> Forest {
    let parser = SegmentParser()
    var trace = Trace(id: try #require(TraceID(parsing: id)), account: receivingAccount)
    for (position, document) in documents.enumerated() {
        let bytes = Array(document.utf8)
        let parsed = try parser.parse(bytes)
        _ = bytes.withUnsafeBytes {
            trace.fold(parsed, bytes: $0, receivedAt: 1_700_000_100_000_000 + Micros(position))
        }
    }
    return Forest(trace)
}

let traceIDText = "1-65536f00-0123456789abcdef01234567"

/// The time of a second of the sample traces.
func sampleTime(_ seconds: Double) -> Micros { 1_700_000_000_000_000 + Micros((seconds * 1_000_000).rounded()) }

struct SampleTrace: CustomTestStringConvertible {
    var name: String
    var documents: [String]
    var testDescription: String { name }

    func facts() throws -> TraceFacts {
        let forest = try folded(documents)
        return TraceFacts(forest: forest, summary: TraceSummary(forest: forest))
    }
}

/// A segment, or a subsegment inside another document, from `start` to `end` seconds; open without an end.
func entity(
    _ id: Int, _ name: String, _ start: Double, _ end: Double?, parent: Int? = nil, isEmbedded: Bool = false,
    _ more: [String] = []
) -> String {
    func hex(_ id: Int) -> String { String(repeating: "0", count: 14) + String(id + 16, radix: 16) }
    var members = [
        #""id":"\#(hex(id))""#, #""name":"\#(name)""#, #""start_time":\#(1_700_000_000 + start)"#,
        end.map { #""end_time":\#(1_700_000_000 + $0)"# } ?? #""in_progress":true"#,
    ]
    if !isEmbedded { members.append(#""trace_id":"\#(traceIDText)""#) }
    if let parent { members.append(#""parent_id":"\#(hex(parent))""#) }
    return "{" + (members + more).joined(separator: ",") + "}"
}

func http(_ method: String, _ url: String, _ status: Int?, _ more: String = "") -> String {
    let response = status.map { #","response":{"status":\#($0)}"# } ?? ""
    return #""http":{"request":{"method":"\#(method)","url":"\#(url)"\#(more)}\#(response)}"#
}

private func call(_ id: Int, _ name: String, _ start: Double, _ end: Double, _ more: String...) -> String {
    entity(id, name, start, end, isEmbedded: true, [#""namespace":"remote""#] + more)
}

private func dynamoDB(_ id: Int, _ operation: String, _ start: Double, _ end: Double, _ more: String...) -> String {
    let aws = #""aws":{"operation":"\#(operation)","table_name":"orders-table"}"#
    return entity(id, "DynamoDB", start, end, isEmbedded: true, [#""namespace":"aws""#, aws] + more)
}

private func status(_ status: Int) -> String { #""http":{"response":{"status":\#(status)}}"# }
private func exception(_ type: String, _ message: String) -> String {
    #""cause":{"exceptions":[{"id":"00000000000000ee","type":"\#(type)","message":"\#(message)"}]}"#
}
private func subsegments(_ list: String...) -> String { #""subsegments":[\#(list.joined(separator: ","))]"# }
private let ec2 = #""origin":"AWS::EC2::Instance""#
private let ecs = #""origin":"AWS::ECS::Container""#
private let isFault = #""fault":true"#
private let isError = #""error":true"#

let sampleTraces = [
    SampleTrace(
        name: "T1",
        documents: [
            entity(
                1, "web", 0, 0.4,
                [
                    ec2, #""user":"alice""#,
                    http(
                        "GET", "http://shop.example.com/api/orders/17", 200,
                        #","user_agent":"curl/8.0","client_ip":"198.51.100.7""#),
                    #""annotations":{"tenant":"acme","vip":true,"age":31}"#,
                    #""aws":{"ec2":{"instance_id":"i-01","availability_zone":"us-west-2a"}}"#,
                    subsegments(call(2, "orders", 0.05, 0.35, http("GET", "http://orders/17", 200))),
                ]),
            entity(
                3, "orders", 0.1, 0.3, parent: 2,
                [
                    ecs, http("GET", "http://orders/17", 200),
                    subsegments(dynamoDB(4, "GetItem", 0.12, 0.2, status(200))),
                ]
            ),
        ]),
    SampleTrace(
        name: "T2",
        documents: [
            entity(
                1, "web", 0, 3,
                [
                    ec2, #""user":"bob""#, http("GET", "http://shop.example.com/api/v2/cart", 200),
                    #""annotations":{"tenant":"globex"}"#,
                    subsegments(
                        call(
                            2, "pay.example.com", 0.2, 2.6, status(503), isFault, exception("HttpError", "upstream 503")
                        )),
                ])
        ]),
    SampleTrace(
        name: "T3",
        documents: [
            entity(
                1, "web", 0, 0.05,
                [ec2, isError, http("GET", "http://shop.example.com/missing", 404), #""annotations":{"age":25}"#])
        ]),
    SampleTrace(
        name: "T4",
        documents: [
            entity(
                1, "web", 0, 0.02,
                [
                    ec2, isError, #""throttle":true"#, #""user":"alice""#, #""annotations":{"tenant":"acme"}"#,
                    http("POST", "http://shop.example.com/api/orders", 429),
                ])
        ]),
    SampleTrace(
        name: "T5",
        documents: [
            entity(
                1, "web", 0, 5.5,
                [
                    ec2, isFault, #""user":"carol""#, http("POST", "http://shop.example.com/api/orders", 500),
                    subsegments(call(2, "orders", 0.1, 5.4, isFault, http("POST", "http://orders/", 500))),
                ]),
            entity(
                3, "orders", 0.2, 5.3, parent: 2,
                [
                    ecs, isFault, http("POST", "http://orders/", 500),
                    subsegments(
                        dynamoDB(
                            4, "PutItem", 0.3, 5.2, status(500), isFault,
                            exception("InternalServerError", "storage failure"))),
                ]),
        ]),
    SampleTrace(
        name: "T6",
        documents: [
            entity(1, "web", 0, nil, [ec2, #""user":"dave""#, http("GET", "http://shop.example.com/export", nil)])
        ]),
    SampleTrace(
        name: "T7",
        documents: [
            entity(
                1, "web", 0, 0.3,
                [
                    ec2, http("POST", "http://shop.example.com/api/report", 202),
                    subsegments(call(2, "orders", 0.2, 0.28, http("POST", "http://orders.internal/report", 202))),
                ]),
            entity(
                3, "orders", 0.25, 7, parent: 2,
                [
                    ecs, http("POST", "http://orders.internal/report", 202),
                    #""annotations":{"step":"render","aws.local.operation":"POST /report"}"#,
                ]),
        ]),
    SampleTrace(
        name: "T8",
        documents: [
            entity(
                1, "thumb", 0, 1.2,
                [
                    #""origin":"AWS::Lambda""#, status(200),
                    #""resource_arn":"arn:aws:lambda:us-west-2:111122223333:function:thumb""#,
                ]),
            entity(
                2, "thumb", 0.3, 1.1, parent: 1,
                [
                    #""origin":"AWS::Lambda::Function""#, isError, #""aws":{"account_id":"444455556666"}"#,
                    subsegments(
                        entity(
                            3, "S3", 0.4, 0.9, isEmbedded: true,
                            [
                                #""namespace":"aws""#, #""aws":{"operation":"GetObject","bucket_name":"images"}"#,
                                status(403), isError, exception("AccessDenied", "Access Denied"),
                            ])),
                ]),
        ]),
]

/// The groups of the specification's examples.
func sampleGroups() throws -> GroupResolver {
    GroupResolver(
        try [("slow", "responsetime > 5"), ("acme", #"annotation.tenant = "acme""#)].map { name, text in
            GroupResolver.Group(
                name: name, arn: "arn:aws:xray:us-east-1:111122223333:group/\(name)",
                expression: try FilterExpression(parsing: text))
        })
}

/// Names of the sample traces that satisfy an expression.
func matchingSamples(_ text: String) throws -> [String] {
    let expression = try FilterExpression(parsing: text)
    let groups = try sampleGroups()
    return try sampleTraces.filter { expression.matches(try $0.facts(), groups: groups) }.map(\.name)
}
