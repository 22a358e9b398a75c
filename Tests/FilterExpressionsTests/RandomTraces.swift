// Random traces with everything expressions ask for: the shared generator makes calls, outcomes and oddities; users,
// places, requests, annotations and exceptions are put into its documents here.

import Fixtures
import Segments
import TraceAssembly

@testable import FilterExpressions

struct RandomTraces {
    private var generator: TraceGenerator
    private var random: SeededGenerator

    init(seed: UInt64) {
        random = SeededGenerator(seed: seed)
        generator = TraceGenerator(
            random: SeededGenerator(seed: seed ^ 1), oddities: .init(percent: 8, orderMatters: true))
    }

    mutating func next() throws -> Forest {
        let trace = generator.trace(startSecond: 1_700_000_000)
        return try folded(trace.documents.map { decorated($0) }, id: trace.id)
    }

    private mutating func decorated(_ document: String) -> String {
        var text = "{"
        if random.chance(30) {
            text += #""user":"\#(random.pick(["alice", "web", "100%", "caf\u{e9}", "cafe\u{301}"]))","#
        }
        if random.chance(30) { text += annotations() + "," }
        if random.chance(20) { text += #""resource_arn":"arn:\#(random.pick(["web", "31"]))","# }
        text += document.dropFirst()
        text = replacingEach(#""http":{"#, in: text) { random in
            guard random.chance(50) else { return #""http":{"# }
            let url = random.pick(["http://shop.example.com/api/orders", "/api/", "true"])
            let client = random.chance(30) ? #","client_ip":"31","user_agent":"_""# : ""
            return #""http":{"request":{"method":"\#(random.pick(["GET", "POST"]))","url":"\#(url)"\#(client)},"#
        }
        text = replacingEach(#""namespace":"remote""#, in: text) { random in
            random.chance(40)
                ? #""namespace":"remote","annotations":{"age":31,"tenant":"orders"}"# : #""namespace":"remote""#
        }
        text = replacingEach(#""name":"render""#, in: text) { random in
            random.chance(50) ? #""name":"render","annotations":{"vip":true,"_":"%"}"# : #""name":"render""#
        }
        for flag in [#""fault":true"#, #""error":true"#] {
            text = replacingEach(flag, in: text) { random in
                let message = random.pick([#","message":"acme""#, ""])
                let type = random.pick([#","type":"Oops""#, #","type":"Error""#, ""])
                let exception = #"{"id":"00000000000000ee"\#(message)\#(type)}"#
                return random.chance(50) ? #"\#(flag),"cause":{"exceptions":[\#(exception),\#(exception)]}"# : flag
            }
        }
        return text
    }

    private mutating func annotations() -> String {
        let keys = ExpressionGenerator.annotationKeys.filter { !$0.contains("\"") } + [#"a \"quoted\" key"#]
        let values = [
            "true", "false", "31", "25", "0", "-1.5", #""acme""#, #""true""#, #""31""#, #""caf\u00e9""#,
            #""cafe\u0301""#, #""""#,
        ]
        let members = (0..<Int.random(in: 1...4, using: &random)).map { _ in
            "\"\(random.pick(keys))\":\(random.pick(values))"
        }
        return #""annotations":{\#(members.joined(separator: ","))}"#
    }

    private mutating func replacingEach(
        _ pattern: String, in text: String, by replacement: (inout SeededGenerator) -> String
    ) -> String {
        var result = ""
        var rest = text[...]
        while let range = rest.firstRange(of: pattern) {
            result += rest[..<range.lowerBound] + replacement(&random)
            rest = rest[range.upperBound...]
        }
        return result + rest
    }
}
