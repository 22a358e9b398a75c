// Root causes (`traces.md` §5, §6): the worked example and one example per rule.

import Foundation
import Segments
import Testing

@testable import TraceAssembly

@Suite struct RootCauseTests {
    private let fault = ",\"fault\":true"
    private let remote = ",\"namespace\":\"remote\""
    private func exceptions(_ type: String = "E", id: Int? = nil) -> String {
        ",\"cause\":{\"exceptions\":[{\(id.map { "\"id\":\"\(TraceAssemblyTests.id($0))\"," } ?? "")\"type\":\"\(type)\",\"message\":\"m\"}]}"
    }

    // If this fails, the root-cause panel differs from AWS for the most ordinary failure: a table behind two services.
    @Test func `the worked example of a failing table comes out exactly`() throws {
        let folded = try FoldedTrace([
            segment(
                1, "web", from: 0, to: 5.5,
                fault + ",\"origin\":\"AWS::EC2::Instance\""
                    + subsegments(embedded(2, "orders", from: 0.1, to: 5.4, fault + remote))),
            segment(
                3, "orders", from: 0.2, to: 5.3, parent: 2,
                fault + ",\"origin\":\"AWS::ECS::Container\""
                    + subsegments(
                        embedded(
                            4, "DynamoDB", from: 0.3, to: 5.2,
                            fault + """
                                ,"namespace":"aws","aws":{"operation":"GetItem","table_name":"orders-table"},
                                "cause":{"exceptions":[{"id":"00000000000000ff","type":"InternalServerError","message":"storage failure"}]}
                                """))),
        ])
        let summary = try folded.summary()
        let rendered: NSDictionary = [
            "FaultRootCauses": summary.faultRootCauses.map { render($0) },
            "ResponseTimeRootCauses": summary.responseTimeRootCauses.map { render($0) },
        ]
        let expected = try object(
            """
            {"FaultRootCauses":[{"ClientImpacting":true,"Services":[
              {"Name":"web","Names":["web"],"Type":"AWS::EC2::Instance","Inferred":false,"EntityPath":[{"Name":"web","Remote":false,"Exceptions":[]},{"Name":"orders","Remote":true,"Exceptions":[]}]},
              {"Name":"orders","Names":["orders"],"Type":"AWS::ECS::Container","Inferred":false,"EntityPath":[{"Name":"orders","Remote":false,"Exceptions":[]},{"Name":"DynamoDB","Remote":true,"Exceptions":[{"Name":"InternalServerError","Message":"storage failure"}]}]},
              {"Name":"orders-table","Names":["orders-table"],"Type":"AWS::DynamoDB::Table","Inferred":true,"EntityPath":[{"Name":"DynamoDB","Remote":false,"Exceptions":[]}]}]}],
            "ResponseTimeRootCauses":[{"ClientImpacting":true,"Services":[
              {"Name":"web","Names":["web"],"Type":"AWS::EC2::Instance","Inferred":false,"EntityPath":[{"Name":"web","Remote":false,"Coverage":1},{"Name":"orders","Remote":true,"Coverage":0.964}]},
              {"Name":"orders","Names":["orders"],"Type":"AWS::ECS::Container","Inferred":false,"EntityPath":[{"Name":"orders","Remote":false,"Coverage":0.927},{"Name":"DynamoDB","Remote":true,"Coverage":0.891}]},
              {"Name":"orders-table","Names":["orders-table"],"Type":"AWS::DynamoDB::Table","Inferred":true,"EntityPath":[{"Name":"DynamoDB","Remote":false,"Coverage":0.891}]}]}]}
            """)
        #expect(rendered == expected)
        #expect(summary.errorRootCauses.isEmpty)
    }

    // If this fails, a handled failure of a dependency is blamed on the client's request, or not shown at all.
    @Test func `a handled failure of a leaf call is one cause with the inferred service alone`() throws {
        let folded = try FoldedTrace([
            segment(
                1,
                subsegments(
                    embedded(
                        2, "pay.example.com",
                        fault + remote + exceptions() + ",\"http\":{\"response\":{\"status\":503}}")))
        ])
        let causes = try folded.summary().faultRootCauses
        let expected = try object(
            """
            [{"ClientImpacting":false,"Services":[{"Name":"pay.example.com","Names":["pay.example.com"],"Type":"remote","Inferred":true,
            "EntityPath":[{"Name":"pay.example.com","Remote":false,"Exceptions":[]}]}]}]
            """)
        #expect(causes.map { render($0) } as NSArray == expected)
    }

    // If this fails, a leaf failure inside an unflagged step of a failing service is lost (ruling R-23).
    @Test func `a leaf call is a head when its own parent is not flagged, whatever its owner`() throws {
        let folded = try FoldedTrace([
            segment(
                1,
                fault + exceptions()
                    + subsegments(embedded(2, "step", subsegments(embedded(3, "host", fault + remote)))))
        ])
        let causes = try folded.summary().faultRootCauses
        #expect(causes.map(\.isClientImpacting) == [true, false])
        #expect(causes.map { $0.services.map(\.service.name.value) } == [["web"], ["host"]])
    }

    // If this fails, every request that merely returned 500 shows an empty root cause.
    @Test func `flags alone give no cause, an exception in an internal step does`() throws {
        #expect(
            try FoldedTrace([segment(1, fault + subsegments(embedded(2, fault)))]).summary().faultRootCauses.isEmpty)
        let causes = try FoldedTrace([segment(1, fault + subsegments(embedded(2, "step", fault + exceptions("Boom"))))])
            .summary().faultRootCauses
        #expect(causes.count == 1)
        #expect(causes[0].services[0].path.map(\.name) == ["web", "step"])
        #expect(causes[0].services[0].path[1].exceptions == [RootCauseException(name: "Boom", message: "m")])
        // An internal subsegment starts nothing by itself.
        #expect(
            try FoldedTrace([segment(1, subsegments(embedded(2, fault + exceptions())))]).summary().faultRootCauses
                .isEmpty)
        // Error and fault are looked for apart.
        let both = try FoldedTrace([segment(1, ",\"error\":true,\"fault\":false" + exceptions())]).summary()
        #expect(both.errorRootCauses.count == 1 && both.faultRootCauses.isEmpty)
    }

    // If this fails, the wrong one of several failing steps is blamed.
    @Test func `failing leaf calls go before other failing steps, and the first that yields wins`() throws {
        let causes = try FoldedTrace([
            segment(
                1,
                fault
                    + subsegments(
                        embedded(2, "early", from: 0, fault + exceptions()),
                        embedded(3, "late call", from: 0.8, fault + remote),
                        embedded(4, "call", from: 0.5, fault + remote)))
        ]).summary().faultRootCauses
        #expect(causes.map { $0.services.flatMap { $0.path.map(\.name) } } == [["web", "call", "call"]])
        let steps = try FoldedTrace([
            segment(
                1,
                fault
                    + subsegments(
                        embedded(2, "silent", from: 0, fault), embedded(3, "loud", from: 0.5, fault + exceptions())))
        ]).summary().faultRootCauses
        #expect(steps[0].services[0].path.map(\.name) == ["web", "loud"])
    }

    // If this fails, a cause that points at a deeper exception is shown on the wrong branch (ruling R-35).
    @Test func `a reference is followed to the exception it names, and only there`() throws {
        let inner =
            embedded(2, "wrong", from: 0, fault + exceptions(id: 0xa1)) + ","
            + embedded(3, "right", from: 0.5, fault + exceptions("Right", id: 0xa2))
        func cause(_ cause: String, _ inner: String) throws -> [RootCause] {
            try FoldedTrace([segment(1, fault + ",\"cause\":\(cause),\"subsegments\":[\(inner)]")]).summary()
                .faultRootCauses
        }
        #expect(try cause("\"\(id(0xa2))\"", inner)[0].services[0].path.map(\.name) == ["web", "right"])
        // Exception ids first, then entity ids; only in the object form.
        #expect(
            try cause("{\"id\":\"\(id(0xa2))\",\"exceptions\":[]}", inner)[0].services[0].path.map(\.name) == [
                "web", "right",
            ])
        #expect(
            try cause("{\"id\":\"\(id(3))\",\"exceptions\":[{\"type\":\"own\"}]}", inner)[0].services[0].path.map(
                \.name) == ["web", "right"])
        #expect(try cause("\"\(id(3))\"", inner).isEmpty)
        #expect(try cause("\"not an id\"", inner).isEmpty)
        #expect(try cause("{\"id\":\"\(id(0xff))\",\"exceptions\":[{\"type\":\"own\"}]}", inner).isEmpty)
        // The child that leads there is not flagged.
        #expect(try cause("\"\(id(0xa3))\"", inner + "," + embedded(4, exceptions(id: 0xa3))).isEmpty)
    }

    // If this fails, the panel shows one service as two in a row (ruling R-34), or a callee's failure as a cause of its own.
    @Test func `a service that calls itself stays one element of the path`() throws {
        let folded = try FoldedTrace([
            segment(1, fault + subsegments(embedded(2, "self", fault + remote))),
            segment(3, "web", from: 0.1, parent: 2, fault + exceptions()),
        ])
        let causes = try folded.summary().faultRootCauses
        #expect(causes.count == 1)
        #expect(causes[0].services.count == 1)
        #expect(causes[0].services[0].path.map(\.name) == ["web", "self", "web"])
    }

    // If this fails, a callee whose caller handled the failure shows no cause.
    @Test func `a flagged callee behind an unflagged caller is a head and not client impacting`() throws {
        let folded = try FoldedTrace([
            segment(1, subsegments(embedded(2, "call", fault + remote))),
            segment(3, "orders", from: 0.1, parent: 2, fault + exceptions()),
        ])
        let causes = try folded.summary().faultRootCauses
        #expect(causes.map(\.isClientImpacting) == [false])
        #expect(causes[0].services.map(\.service.name.value) == ["orders"])
    }

    // If this fails, slow requests point at steps that do not explain them (recorded: 0.25 and 0.5 out, 0.75 in).
    @Test(arguments: [(1.0, false), (2.0, false), (3.0, true), (4.0, true), (5.0, false)])
    func `a child explains the response time when it took more than half and at most all of it`(
        seconds: Double, isCause: Bool
    ) throws {
        let folded = try FoldedTrace([
            segment(1, from: 0, to: 4, subsegments(embedded(2, "step", from: 0, to: seconds)))
        ])
        let causes = try folded.summary().responseTimeRootCauses
        #expect(causes.count == (isCause ? 1 : 0))
        if isCause {
            #expect(causes[0].services[0].path.map(\.coverage) == [1, seconds / 4])
            #expect(causes[0].isClientImpacting)
        }
    }

    private func render(_ cause: RootCause) -> NSDictionary {
        ["ClientImpacting": cause.isClientImpacting, "Services": cause.services.map { render($0) }]
    }

    private func render(_ service: RootCauseService) -> NSDictionary {
        let path: [NSDictionary] = service.path.map { entity in
            var members: [String: Any] = ["Name": entity.name, "Remote": entity.isRemote]
            if let coverage = entity.coverage {
                members["Coverage"] = coverage
            } else {
                members["Exceptions"] = entity.exceptions.map { ["Name": $0.name ?? "", "Message": $0.message ?? ""] }
            }
            return NSDictionary(dictionary: members)
        }
        return [
            "Name": service.service.name.value, "Names": [service.service.name.value],
            "Type": service.service.type?.value ?? "",
            "Inferred": service.isInferred, "EntityPath": path,
        ]
    }
}
