import Segments
import Testing
import XRayAPI

private func bytes(_ text: String) -> [UInt8] { Array(text.utf8) }

private func message(_ body: () throws -> Void) -> String? {
    do {
        try body()
        return nil
    } catch let error as APIError {
        return error.message
    } catch {
        return "\(error)"
    }
}

@Suite struct GroupRequestTests {
    // If this fails, a group of the CLI's or Terraform's making is another one than was asked for.
    @Test func `a captured CreateGroup is read whole`() throws {
        let request = try CreateGroupRequest(body: bytes(CapturedExamples.createGroup))
        #expect(request.name == "slow-checkout" && request.filter == #"service("checkout") { responsetime > 2 }"#)
        #expect(request.insights.insightsEnabled == true && request.insights.notificationsEnabled == false)
        #expect(request.tags == [Tag(key: "team", value: "pay"), Tag(key: "Stufe", value: "")])
        let bare = try CreateGroupRequest(body: bytes(#"{"GroupName":"a","FilterExpression":null}"#))
        #expect(bare.filter.isEmpty && bare.tags.isEmpty)
        let updated = try UpdateGroupRequest(
            body: bytes(#"{"GroupName":"a","InsightsConfiguration":{"InsightsEnabled":true}}"#))
        #expect(updated.filter == nil && updated.insights?.insightsEnabled == true)
    }

    // If this fails, clients are told the wrong thing, or a name gets in that no ARN can carry.
    @Test(arguments: [
        ("{}", "GroupName is required"), (#"{"GroupName":""}"#, "GroupName must have between 1 and 32 characters"),
        (#"{"GroupName":"a b"}"#, "GroupName may consist of letters, digits, '_' and '-' only"),
        (#"{"GroupName":"é"}"#, "GroupName may consist of letters, digits, '_' and '-' only"),
        (
            #"{"GroupName":"a","InsightsConfiguration":{"NotificationsEnabled":true}}"#,
            "NotificationsEnabled requires InsightsEnabled"
        ),
        (#"{"GroupName":"a","FilterExpression":"a\u0000"}"#, "FilterExpression must not contain U+0000"),
        (#"{"GroupName":"a","Tags":[{"Key":"k"}]}"#, "Value is required"),
        (
            #"{"GroupName":"a","Tags":[{"Key":"k","Value":"1"},{"Key":"k","Value":"2"}]}"#,
            "Tag key k is given more than once"
        ),
        (#"{"GroupName":"a","Tags":[{"Key":"AWS:k","Value":"1"}]}"#, "Tag key AWS:k must not begin with aws:"),
        (#"{"GroupName":"a","Tags":[{"Key":"a*b","Value":"1"}]}"#, "Tag key a*b has a character that is not allowed"),
        (
            #"{"GroupName":"a","Tags":[{"Key":"k","Value":"<"}]}"#,
            "The value of tag k has a character that is not allowed"
        ),
        (#"{"GroupName":"a","Tags":[{"Key":"","Value":"1"}]}"#, "A tag key must have between 1 and 128 characters"),
    ])
    func `bad groups are refused by name`(body: String, expected: String) {
        #expect(message { _ = try CreateGroupRequest(body: bytes(body)) } == expected)
    }

    // If this fails, a limit of the API is one off.
    @Test func `names, filters and tags at and over their limits`() throws {
        func create(name: Int = 1, filter: Int = 0, key: Int = 1, value: Int = 0, tags: Int = 1) throws {
            let list = (0..<tags).map {
                #"{"Key":"\#(String(repeating: "k", count: key - 1))\#(Unicode.Scalar(UInt32(0x4e00 + $0)).map(Character.init) ?? "x")","Value":"\#(String(repeating: "v", count: value))"}"#
            }
            _ = try CreateGroupRequest(
                body: bytes(
                    #"{"GroupName":"\#(String(repeating: "n", count: name))","FilterExpression":"\#(String(repeating: " ", count: filter))","Tags":[\#(list.joined(separator: ","))]}"#
                ))
        }
        #expect(throws: Never.self) { try create(name: 32, filter: 2_000, key: 128, value: 256, tags: 200) }
        #expect(throws: APIError.self) { try create(name: 33) }
        #expect(throws: APIError.self) { try create(filter: 2_001) }
        #expect(throws: APIError.self) { try create(key: 129) }
        #expect(throws: APIError.self) { try create(value: 257) }
        #expect(throws: APIError.self) { try create(tags: 201) }
    }

    @Test func `wrong types are SerializationExceptions`() {
        for body in [
            #"{"GroupName":1}"#, #"{"GroupName":"a","FilterExpression":[]}"#,
            #"{"GroupName":"a","InsightsConfiguration":true}"#,
            #"{"GroupName":"a","InsightsConfiguration":{"InsightsEnabled":"true"}}"#, #"{"GroupName":"a","Tags":{}}"#,
            #"{"GroupName":"a","Tags":["x"]}"#, #"{"GroupName":"a","Tags":[{"Key":1,"Value":"v"}]}"#,
        ] {
            let error = #expect(throws: APIError.self) { try CreateGroupRequest(body: bytes(body)) }
            #expect(error?.name == "SerializationException")
        }
    }

    @Test func `a reference needs a name or an ARN`() throws {
        #expect(message { _ = try GroupRequest(body: []) } == "GroupName or GroupARN is required")
        #expect(
            message { _ = try UpdateGroupRequest(body: bytes(#"{"FilterExpression":"ok"}"#)) }
                == "GroupName or GroupARN is required")
        #expect(try GroupRequest(body: bytes(#"{"GroupARN":"x"}"#)).group == GroupIdentifier(name: nil, arn: "x"))
        #expect(message { _ = try GetGroupsRequest(body: bytes(#"{"NextToken":"t"}"#)) } == "Invalid NextToken t")
        #expect(throws: Never.self) { try GetGroupsRequest(body: bytes(#"{"NextToken":null}"#)) }
    }

    // If this fails, clients index into members that are not there.
    @Test func `a group has all its members`() {
        let group = GroupDescription(
            name: "slow-checkout", arn: "arn:aws:xray:us-east-1:111122223333:group/slow-checkout/K3",
            filter: #"service("checkout")"#, insightsEnabled: true, notificationsEnabled: false)
        let json =
            #"{"GroupName":"slow-checkout","GroupARN":"arn:aws:xray:us-east-1:111122223333:group/slow-checkout/K3","FilterExpression":"service(\"checkout\")","InsightsConfiguration":{"InsightsEnabled":true,"NotificationsEnabled":false}}"#
        #expect(String(decoding: group.body, as: UTF8.self) == #"{"Group":\#(json)}"#)
        #expect(String(decoding: GroupDescription.body(of: [group]), as: UTF8.self) == #"{"Groups":[\#(json)]}"#)
        #expect(String(decoding: GroupDescription.body(of: []), as: UTF8.self) == #"{"Groups":[]}"#)
    }
}

@Suite struct TagRequestTests {
    private let arn = "arn:aws:xray:us-east-1:111122223333:group/a/B"

    @Test func `resources are ARNs of the service and the account`() throws {
        let own = AccountID(rawValue: 111_122_223_333)
        #expect(
            try ListTagsForResourceRequest(body: bytes(#"{"ResourceARN":"\#(arn)"}"#)).resource.resource(of: own)
                == "group/a/B")
        #expect(ResourceARN(parsing: "arn:aws:xray:eu-west-1:111122223333:group/a/B")?.resource(of: own) == "group/a/B")
        #expect(ResourceARN(parsing: "arn:aws:xray:us-east-1:999922223333:group/a/B")?.resource(of: own) == nil)
        #expect(ResourceARN(parsing: "arn:aws:s3:us-east-1:111122223333:group/a/B")?.resource(of: own) == nil)
        for text in [
            "x", "group/a", "arn:aws:xray:us-east-1:111122223333", "arn:aws:xray:us-east-1:111122223333:",
            "ARN:aws:xray:r:a:x",
        ] {
            #expect(ResourceARN(parsing: text) == nil)
        }
        #expect(
            message { _ = try TagResourceRequest(body: bytes(#"{"ResourceARN":"x","Tags":[]}"#)) }
                == "ResourceARN is not an ARN")
        #expect(
            message { _ = try TagResourceRequest(body: bytes(#"{"ResourceARN":"\#(arn)"}"#)) } == "Tags is required")
        #expect(
            message { _ = try UntagResourceRequest(body: bytes(#"{"ResourceARN":"\#(arn)"}"#)) }
                == "TagKeys is required")
        #expect(message { _ = try UntagResourceRequest(body: bytes(#"{"TagKeys":[]}"#)) } == "ResourceARN is required")
        #expect(
            try UntagResourceRequest(body: bytes(#"{"ResourceARN":"\#(arn)","TagKeys":["a","aws:b"]}"#)).keys == [
                "a", "aws:b",
            ])
    }

    @Test func `tags are listed as pairs`() {
        let body = ListTagsForResourceRequest.responseBody([Tag(key: "a", value: ""), Tag(key: "b", value: "é")])
        #expect(String(decoding: body, as: UTF8.self) == #"{"Tags":[{"Key":"a","Value":""},{"Key":"b","Value":"é"}]}"#)
    }
}

@Suite struct IndexingRequestTests {
    @Test func `destinations and rules are read and written`() throws {
        #expect(
            try UpdateTraceSegmentDestinationRequest(body: bytes(#"{"Destination":"CloudWatchLogs"}"#)).destination
                == .cloudWatchLogs)
        #expect(message { _ = try UpdateTraceSegmentDestinationRequest(body: []) } == "Destination is required")
        #expect(
            message { _ = try UpdateTraceSegmentDestinationRequest(body: bytes(#"{"Destination":"xray"}"#)) }
                == "Destination must be one of [XRay, CloudWatchLogs]")
        #expect(
            String(decoding: SegmentDestination.xray.body(isPending: false), as: UTF8.self)
                == #"{"Destination":"XRay","Status":"ACTIVE"}"#)
        func rule(_ percentage: String, name: String = "Default") throws -> Double {
            try UpdateIndexingRuleRequest(
                body: bytes(
                    #"{"Name":"\#(name)","Rule":{"Probabilistic":{"DesiredSamplingPercentage":\#(percentage)}}}"#)
            ).desiredSamplingPercentage
        }
        #expect(try rule("0") == 0 && rule("100") == 100 && rule("2.5") == 2.5)
        for bad in ["-0.1", "100.1", "1e999"] { #expect(throws: APIError.self) { try rule(bad) } }
        #expect(throws: APIError.resourceNotFound("Indexing rule not found", resourceName: "x")) {
            try rule("1", name: "x")
        }
        #expect(
            message { _ = try UpdateIndexingRuleRequest(body: bytes(#"{"Name":"Default","Rule":{}}"#)) }
                == "Rule must have exactly one member: Probabilistic")
        let shown = IndexingRuleDescription(percentage: 1, modifiedAt: 1_700_000_000_125_000)
        #expect(
            String(decoding: shown.listBody, as: UTF8.self)
                == #"{"IndexingRules":[{"Name":"Default","ModifiedAt":1700000000.125,"Rule":{"Probabilistic":{"DesiredSamplingPercentage":1,"ActualSamplingPercentage":1}}}]}"#
        )
    }
}
