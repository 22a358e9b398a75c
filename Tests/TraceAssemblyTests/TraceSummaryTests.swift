// Every field of a trace summary (`traces.md` §4) and the clocks it is found by (§7).

import Segments
import Testing

@testable import TraceAssembly

@Suite struct TraceSummaryTests {
    // If this fails, the columns of the trace list are wrong.
    @Test func `a summary tells about the root, the times and the places`() throws {
        let folded = try FoldedTrace([
            segment(
                1, "web", from: 0, to: 1,
                """
                ,"origin":"AWS::EC2::Instance","user":"ada","resource_arn":"arn:a","http":{"request":{"url":"https://x/","method":"GET",
                "user_agent":"curl","client_ip":"::1"},"response":{"status":503}},
                "aws":{"ec2":{"instance_id":"i-1","availability_zone":"us-east-1a"}},
                "subsegments":[\(embedded(2, "orders.internal", from: 0.1, to: 0.9, ",\"namespace\":\"remote\"")),
                \(embedded(3, "DynamoDB", from: 0.2, to: 0.3, ",\"namespace\":\"aws\",\"aws\":{\"operation\":\"GetItem\",\"table_name\":\"t\",\"account_id\":\"999900001111\"}"))]
                """),
            segment(
                4, "orders", from: 0.15, to: 1.5004, parent: 2,
                """
                ,"user":"ada","resource_arn":"arn:a","aws":{"account_id":"111122223333","ec2":{"instance_id":"i-2","availability_zone":"us-east-1a"}}
                """),
        ])
        let summary = try folded.summary()
        #expect(summary.id.description == traceIDText)
        #expect(summary.startTime == 1_700_000_000_000_000)
        #expect(summary.responseTime == 1_000_000)
        #expect(summary.duration == 1_500_400)
        #expect(roundedSeconds(1_500_400) == 1.5)
        #expect(summary.hasFault && !summary.hasError && !summary.hasThrottle && !summary.isPartial)
        #expect(
            summary.http
                == HTTPSummary(url: "https://x/", method: "GET", userAgent: "curl", clientIP: "::1", status: 503))
        let web = ServiceID(name: "web", type: "AWS::EC2::Instance", account: nil)
        let orders = ServiceID(name: "orders", type: nil, account: nil)
        #expect(summary.entryPoint == web)
        #expect(
            summary.serviceIDs == [
                web, ServiceID(name: "web", type: "client", account: nil), orders,
                ServiceID(name: "t", type: "AWS::DynamoDB::Table", account: "999900001111"),
            ])
        #expect(summary.users == [UserSummary(name: "ada", serviceIDs: [web, orders])])
        #expect(summary.resourceARNs == ["arn:a"])
        #expect(summary.instanceIDs == ["i-1", "i-2"])
        #expect(summary.availabilityZones == ["us-east-1a"])
        #expect(summary.revision == 2)
        #expect(summary.newestReceipt == 1_700_000_101_000_000)
    }

    // If this fails, a throttled request is listed as a plain error, or a downstream failure as the request's own.
    @Test func `outcome is that of the root only, throttle masks error, open is ok`() throws {
        let throttled = try FoldedTrace([
            segment(1, ",\"error\":true,\"throttle\":true,\"http\":{\"response\":{\"status\":429}}")
        ]).summary()
        #expect(throttled.hasThrottle && !throttled.hasError && !throttled.hasFault)
        let below = try FoldedTrace([segment(1, subsegments(embedded(2, ",\"throttle\":true,\"fault\":true")))])
            .summary()
        #expect(!below.hasThrottle && !below.hasError && !below.hasFault)
        let open = try FoldedTrace([segment(1, to: nil, ",\"fault\":true")]).summary()
        #expect(!open.hasFault && open.responseTime == nil && open.duration == nil && open.isPartial)
    }

    // If this fails, annotation filters find values of other types or miss the 50th pair (ruling R-10).
    @Test func `annotations are distinct by exact value and type, with the services that carry them`() throws {
        let folded = try FoldedTrace([
            segment(
                1, "web", from: 0,
                ",\"annotations\":{\"k\":1,\"z\":\"1\"},\"subsegments\":[\(embedded(2, from: 0.5, ",\"annotations\":{\"k\":\"1\"}"))]"
            ),
            segment(
                3, "orders", from: 0.2, parent: 2,
                ",\"annotations\":{\"k\":1.0,\"a\":true,\"e\\u0301\":1,\"\\u00e9\":1}"),
        ])
        let web = ServiceID(name: "web", type: nil, account: nil)
        let orders = ServiceID(name: "orders", type: nil, account: nil)
        let annotations = try folded.summary().annotations
        #expect(
            annotations.map { ExactString($0.key) } == ["k", "z", "a", "e\u{301}", "\u{e9}"].map { ExactString($0) })
        #expect(
            annotations[0].values == [
                .init(value: .number(1), serviceIDs: [web, orders]), .init(value: .string("1"), serviceIDs: [web]),
            ])
        #expect(annotations[2].values == [.init(value: .bool(true), serviceIDs: [orders])])
    }

    // If this fails, a chatty trace makes the index grow without bound, or an orphan crowds out visible annotations.
    @Test func `fifty pairs by first sight, an entity before its subsegments, attached ones only`() throws {
        func pairs(_ range: Range<Int>) -> String {
            ",\"annotations\":{" + range.map { "\"k\($0)\":\($0)" }.joined(separator: ",") + "}"
        }
        let folded = try FoldedTrace([
            subsegment(9, parent: 8, pairs(500..<540)),
            segment(1, from: 1, to: 2, pairs(0..<30) + subsegments(embedded(2, from: 0, to: 1, pairs(25..<45)))),
            segment(3, from: 0.5, pairs(40..<60)),
        ])
        let indexed = folded.forest.indexedAnnotations()
        #expect(Set(indexed.map(\.key.value)) == Set((0..<50).map { "k\($0)" }))
        // k40…k44 are carried by two entities.
        #expect(indexed.count { $0.key == "k41" } == 2)
    }

    // If this fails, a long value cannot be found, or is found only in full.
    @Test func `strings are indexed by their first 1,000 code points`() throws {
        let text = String(repeating: "e\u{301}", count: 600)
        let folded = try FoldedTrace([segment(1, ",\"annotations\":{\"k\":\"\(text)\"}")])
        let value = try #require(folded.forest.indexedAnnotations().first?.value)
        #expect(value == .string(ExactString(String(repeating: "e\u{301}", count: 500))))
        #expect(folded.trace.entities[0].entity.annotations.count == 1)
    }

    // If this fails, durations on a page do not add up with what filters compare.
    @Test(arguments: [
        (499, 0.0), (500, 0.001), (1_499, 0.001), (1_500, 0.002), (1_700_000_000_125_500, 1_700_000_000.126),
    ])
    func `times are rounded half up to milliseconds`(micros: Int64, seconds: Double) {
        #expect(roundedSeconds(micros) == seconds)
    }

    // If this fails, a trace is missing from searches by arrival or by end time (ruling R-22).
    @Test func `clocks are the root's start, the receipts of changes and the ends of segments and leaf calls`() throws {
        let leaf = embedded(2, from: 0.1, to: 3.5, ",\"namespace\":\"remote\"")
        var folded = try FoldedTrace([segment(1, from: 0, to: nil, subsegments(leaf, embedded(3, from: 0.1, to: 9)))])
        try folded.receive(segment(1, from: 0, to: nil, subsegments(leaf)), at: 1_700_000_100_900_000)
        try folded.receive(segment(4, from: 2, to: 3.25, parent: 1), at: 1_700_000_200_000_000)
        try folded.receive(segment(4, from: 2, to: 3.25, parent: 1), at: 1_700_000_300_000_000)
        let clocks = SummaryClocks(forest: folded.forest)
        #expect(clocks.rootStart == 1_700_000_000_000_000)
        #expect(clocks.receipts == [1_700_000_100_900_000, 1_700_000_200_000_000])
        #expect(clocks.ends == [1_700_000_003_500_000])
        try folded.receive(segment(1, from: 0, to: 7), at: 1_700_000_050_000_000)
        #expect(SummaryClocks(forest: folded.forest).ends == [1_700_000_003_500_000, 1_700_000_007_000_000])
        #expect(SummaryClocks(forest: folded.forest).receipts.first == 1_700_000_050_000_000)
        #expect(try SummaryClocks(forest: FoldedTrace([subsegment(2, parent: 1)]).forest).rootStart == nil)
    }
}
