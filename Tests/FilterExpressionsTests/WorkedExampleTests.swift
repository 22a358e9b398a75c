// The worked examples of the specification (`filter-expressions.md` §11), by number.

import Segments
import Testing
import TraceAssembly

@testable import FilterExpressions

struct WorkedExample: CustomTestStringConvertible {
    var number: Int
    var expressions: [String]
    /// Names of the sample traces that match.
    var matches: String

    init(_ number: Int, _ expressions: String..., matches: String) {
        self.number = number
        self.expressions = expressions
        self.matches = matches
    }

    var testDescription: String { "row \(number)" }
}

private let all = "T1 T2 T3 T4 T5 T6 T7 T8"

let workedExamples = [
    WorkedExample(1, "", " \n\t", matches: all),
    WorkedExample(2, "ok", matches: "T1 T2 T6 T7 T8"),
    WorkedExample(3, "!ok", "ok = false", matches: "T3 T4 T5"),
    WorkedExample(4, "error", matches: "T3"),
    WorkedExample(5, "throttle", matches: "T4"),
    WorkedExample(6, "fault OR error", matches: "T3 T5"),
    WorkedExample(7, #"error OR fault AND http.method = "GET""#, matches: "T3"),
    WorkedExample(8, "partial", matches: "T6"),
    WorkedExample(9, "inferred", matches: "T1 T2 T5 T8"),
    WorkedExample(10, "http.status != 200", matches: "T3 T4 T5 T7"),
    WorkedExample(11, "http.status >= 400 AND http.status < 500", matches: "T3 T4"),
    WorkedExample(12, "!http.status", matches: "T6"),
    WorkedExample(13, "responsetime > 5", matches: "T5"),
    WorkedExample(14, "duration >= 5 AND duration <= 8", matches: "T5 T7"),
    WorkedExample(15, "responseTime <= 0.05", matches: "T3 T4"),
    WorkedExample(16, "ok !partial duration < 3", matches: "T1 T8"),
    WorkedExample(17, "ok AND responsetime < 1 OR fault", matches: "T1 T5 T7"),
    WorkedExample(18, "ok AND (responsetime < 1 OR fault)", matches: "T1 T7"),
    WorkedExample(19, #"http.url CONTAINS "/api/""#, matches: "T1 T2 T4 T5 T7"),
    WorkedExample(
        20, #"http.url BEGINSWITH "http://shop.example.com/api/" AND http.url CONTAINS "/v2/""#, matches: "T2"),
    WorkedExample(21, #"http.url ENDSWITH "/orders""#, matches: "T4 T5"),
    WorkedExample(22, #"http.method != "POST""#, matches: "T1 T2 T3 T6"),
    WorkedExample(23, #"!(http.method = "POST")"#, matches: "T1 T2 T3 T6 T8"),
    WorkedExample(24, "http.clientip", matches: "T1"),
    WorkedExample(25, #"user CONTAINS """#, matches: "T1 T2 T4 T5 T6"),
    WorkedExample(26, "!user", matches: "T3 T7 T8"),
    WorkedExample(27, #"user != "alice""#, matches: "T2 T5 T6"),
    WorkedExample(28, #"instance.id = "i-01" OR availabilityzone = "us-west-2b""#, matches: "T1"),
    WorkedExample(29, #"resource.arn ENDSWITH ":function:thumb""#, matches: "T8"),
    WorkedExample(30, #"annotation.tenant = "acme""#, #"group.name = "acme""#, matches: "T1 T4"),
    WorkedExample(31, "annotation.age", matches: "T1 T3"),
    WorkedExample(32, "!annotation.age", matches: "T2 T4 T5 T6 T7 T8"),
    WorkedExample(33, "annotation.age > 29", matches: "T1"),
    WorkedExample(
        34, #"annotation.age = "31""#, #"annotation[tenant] = "ACME""#, "annotation.vip = false", matches: ""),
    WorkedExample(35, "annotation.vip", matches: "T1"),
    WorkedExample(36, #"annotation[aws.local.operation] = "POST /report""#, matches: "T7"),
    WorkedExample(37, #"service("orders")"#, matches: "T1 T5 T7"),
    WorkedExample(38, #"!service("orders") AND ok"#, matches: "T2 T6 T8"),
    WorkedExample(39, #"service("orders") { fault }"#, matches: "T5"),
    WorkedExample(40, #"service("orders") { !fault }"#, matches: "T1 T7"),
    WorkedExample(41, "service() { fault }", matches: "T2 T5"),
    WorkedExample(42, #"service("orders") { responsetime > 1 }"#, matches: "T5 T7"),
    WorkedExample(
        43, #"service("orders") { fault = true OR responsetime > 2.5 } AND http.method = "POST""#, matches: "T5 T7"),
    WorkedExample(44, #"service("orders-table") { ok }"#, matches: "T1"),
    WorkedExample(45, #"service("DynamoDB")"#, matches: ""),
    WorkedExample(46, #"service(id(type: "AWS::DynamoDB::Table")) { fault }"#, matches: "T5"),
    WorkedExample(47, #"service("thumb") { error }"#, matches: "T8"),
    WorkedExample(48, #"service(id(name: "thumb", type: "AWS::Lambda")) { error }"#, matches: ""),
    WorkedExample(49, #"service(id(name: "thumb", type: "AWS::Lambda::Function")) { error }"#, matches: "T8"),
    WorkedExample(50, #"service(id(account.id: "444455556666"))"#, matches: "T8"),
    WorkedExample(51, #"service("web") { root = true AND fault = true }"#, matches: "T5"),
    WorkedExample(52, #"service("orders") { root }"#, matches: ""),
    WorkedExample(53, "service() { inferred AND error }", matches: "T8"),
    WorkedExample(54, #"service("orders") { annotation.step = "render" }"#, matches: "T7"),
    WorkedExample(55, #"service(id(type: "client"))"#, matches: all),
    WorkedExample(56, #"edge("web", "orders")"#, matches: "T1 T5 T7"),
    WorkedExample(57, #"edge("orders", "web")"#, matches: ""),
    WorkedExample(58, #"edge("web", "orders") { responsetime > 0.29 }"#, matches: "T1 T5"),
    WorkedExample(59, #"edge("web", "pay.example.com") { http.status = 503 }"#, matches: "T2"),
    WorkedExample(60, #"edge(id(type: "client"), "web") { throttle }"#, matches: "T4"),
    WorkedExample(61, #"edge("web","orders") { destination.annotation.step = "render" }"#, matches: "T7"),
    WorkedExample(62, #"group.name != "slow""#, matches: "T1 T2 T3 T4 T6 T7 T8"),
    WorkedExample(63, #"(service(id(name:"web"))) AND (Annotation[tenant] = "globex")"#, matches: "T2"),
    WorkedExample(64, #"rootcause.fault.service { name = "orders" }"#, matches: "T5"),
    WorkedExample(65, #"rootcause.fault.service { last and type = "AWS::DynamoDB::Table" }"#, matches: "T5"),
    WorkedExample(66, #"rootcause.fault.service { inferred and type = "remote" }"#, matches: "T2"),
    WorkedExample(67, #"rootcause.fault.exception { message = "storage failure" }"#, matches: "T5"),
    WorkedExample(68, #"rootcause.fault.entity { remote and name = "DynamoDB" }"#, matches: "T5"),
    WorkedExample(69, #"rootcause.error.exception { last and name = "AccessDenied" }"#, matches: "T8"),
    WorkedExample(70, "rootcause.responsetime.entity { remote and coverage > 0.9 }", matches: "T5"),
    WorkedExample(71, #"rootcause.responsetime.service { first and type = "AWS::Lambda" }"#, matches: "T8"),
    WorkedExample(
        72,
        #"rootcause.json = #[{"Services":[{"Name":"web"},{"Name":"orders","EntityPath":[{"Name":"orders"},{"Name":"DynamoDB"}]}]}]"#,
        matches: "T5"),
    WorkedExample(73, #"rootcause.json = #[{"ClientImpacting":false}]"#, matches: "T2 T8"),
]

@Suite struct WorkedExampleTests {
    // If this fails, a filter that works at AWS finds other traces here.
    @Test(arguments: workedExamples)
    func `the sample traces match as the specification says`(_ example: WorkedExample) throws {
        for text in example.expressions {
            #expect(try matchingSamples(text).joined(separator: " ") == example.matches, "\(text)")
        }
    }

    // If this fails, saving and showing a filter in another form changes what it finds.
    @Test(arguments: workedExamples)
    func `the canonical text means the same`(_ example: WorkedExample) throws {
        for text in example.expressions {
            let expression = try FilterExpression(parsing: text)
            #expect(try FilterExpression(parsing: expression.canonical) == expression)
            #expect(try matchingSamples(expression.canonical).joined(separator: " ") == example.matches)
        }
    }

    // If this fails, the table above lost rows.
    @Test func `all seventy-three examples are here`() {
        #expect(workedExamples.map(\.number) == Array(1...73))
    }

    // If this fails, a trace that is filtered without its summary at hand is judged by other root causes.
    @Test func `facts without a summary are the same`() throws {
        for example in workedExamples {
            for text in example.expressions {
                let expression = try FilterExpression(parsing: text)
                let matches = try sampleTraces.filter {
                    expression.matches(TraceFacts(forest: try folded($0.documents)), groups: try sampleGroups())
                }
                #expect(matches.map(\.name).joined(separator: " ") == example.matches, "\(text)")
            }
        }
    }
}
