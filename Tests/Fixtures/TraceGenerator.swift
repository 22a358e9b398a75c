// Random traces as segment documents: realistic ones (services calling services, tables, queues) and odd ones (missing
// parents, cycles, ends before starts, names that are equal only canonically). Same seed, same documents.
// Property tests of assembly, graph, store and aggregation draw from here.

/// One trace: its documents in a plausible order of arrival, each a JSON object.
public struct GeneratedTrace: Sendable {
    /// `1-…-…`.
    public var id: String
    public var documents: [String]
    /// Ids of all entities in them, 16 hex digits.
    public var entityIDs: [String]
}

public struct TraceGenerator: Sendable {
    public struct Oddities: Sendable {
        /// Percent of traces and entities that are odd in a way that does not depend on the order of arrival.
        public var percent: Int
        /// Also what depends on it: cycles, different completions of one id.
        public var orderMatters: Bool
        public static let none = Oddities(percent: 0, orderMatters: false)
        public init(percent: Int, orderMatters: Bool) {
            self.percent = percent
            self.orderMatters = orderMatters
        }
    }

    public var random: SeededGenerator
    public var oddities: Oddities
    /// Traces start within this many seconds after `startSecond`.
    public var spreadSeconds: Int64 = 180
    private var made: [GeneratedTrace] = []

    public init(random: SeededGenerator, oddities: Oddities = .none) {
        self.random = random
        self.oddities = oddities
    }

    /// `count` traces; some consumers link to entities of earlier ones among them.
    public mutating func traces(_ count: Int, startSecond: Int64) -> [GeneratedTrace] {
        made = []
        return (0..<count).map { _ in trace(startSecond: startSecond) }
    }

    /// All documents of some traces in a random order, some of them twice.
    public mutating func shuffledLog(of traces: [GeneratedTrace], duplicatePercent: Int = 20) -> [String] {
        var log = traces.flatMap(\.documents)
        for document in log where random.chance(duplicatePercent) { log.append(document) }
        log.shuffle(using: &random)
        return log
    }

    /// The documents of some traces as a log would have them: traces interleaved, each in its own order.
    public mutating func interleavedLog(of traces: [GeneratedTrace]) -> [String] {
        var rest = traces.map { ArraySlice($0.documents) }.filter { !$0.isEmpty }
        var log: [String] = []
        while !rest.isEmpty {
            let index = Int.random(in: 0..<rest.count, using: &random)
            if let next = rest[index].popFirst() { log.append(next) }
            if rest[index].isEmpty { rest.remove(at: index) }
        }
        return log
    }
}

// MARK: - One trace

extension TraceGenerator {
    private struct Node {
        var id: String
        var name: String
        var start: Int64
        /// Nil: never completes.
        var end: Int64?
        var isSegment: Bool
        var parentID: String?
        var fields: [String] = []
        var children: [Node] = []
    }

    private static let services: [(name: String, origin: String?)] = [
        ("web", "AWS::EC2::Instance"), ("orders", "AWS::ECS::Container"), ("billing", nil),
        ("stock", "AWS::EKS::Container"),
        ("worker", "AWS::Lambda"), ("worker", "AWS::Lambda::Function"), ("caf\u{e9}", nil),
    ]
    private static let oddServices: [(name: String, origin: String?)] = [
        ("cafe\u{301}", nil), ("web", "client"), ("pay.example.com", "remote"), ("jobs", "AWS::DynamoDB::Table"),
        ("web", nil),
    ]
    private static let awsCalls = [
        #""name":"DynamoDB","aws":{"operation":"GetItem","table_name":"orders-table"}"#,
        #""name":"AmazonDynamoDBv2","aws":{"operation":"PutItem","table_names":["jobs"]}"#,
        #""name":"dynamodb","aws":{"operation":"ListTables"}"#,
        #""name":"S3","aws":{"operation":"GetObject","bucket_name":"images"}"#,
        #""name":"SQS","aws":{"operation":"SendMessage","queue_url":"https://sqs.us-east-1.amazonaws.com/1/jobs"}"#,
        #""name":"sns","aws":{"operation":"Publish","topic_arn":"arn:aws:sns:us-east-1:1:news"}"#,
        #""name":"Lambda","aws":{"operation":"Invoke","function_name":"resize"}"#,
        #""name":"kinesis","aws":{"operation":"PutRecords"}"#,
        #""name":"DynamoDB","aws":{"operation":"Query","table_name":"orders-table","account_id":"999988887777"}"#,
    ]
    private static let hosts = ["orders.internal", "pay.example.com", "stock.internal", "orders@db.internal"]

    private mutating func isOdd() -> Bool { random.chance(oddities.percent) }

    private static let hexDigits = Array("0123456789abcdef".utf8)

    private mutating func hex(_ digits: Int) -> String {
        var bytes: [UInt8] = []
        while bytes.count < digits { bytes.append(random.pick(Self.hexDigits)) }
        return String(decoding: bytes, as: UTF8.self)
    }

    private static func seconds(_ micros: Int64) -> String {
        let fraction = String(micros % 1_000_000)
        return "\(micros / 1_000_000)." + String(repeating: "0", count: 6 - fraction.count) + fraction
    }

    public mutating func trace(startSecond: Int64) -> GeneratedTrace {
        let id = "1-" + hex(8) + "-" + hex(24)
        let start =
            (startSecond + Int64.random(in: 0..<spreadSeconds, using: &random)) * 1_000_000
            + Int64.random(in: 0..<1_000_000, using: &random)
        var segments: [Node] = []
        addSegment(to: &segments, parentID: isOdd() ? hex(16) : nil, start: start, depth: 0)
        if isOdd() { addSegment(to: &segments, parentID: nil, start: start + 500, depth: 2) }
        if random.chance(25) { link(&segments[random.chance(80) ? 0 : segments.count - 1]) }
        var documents: [String] = []
        for segment in segments { emit(segment, traceID: id, into: &documents) }
        if isOdd(), documents.count > 1 { documents.remove(at: Int.random(in: 0..<documents.count, using: &random)) }
        if oddities.orderMatters, isOdd() { addOrderDependent(segments, traceID: id, into: &documents) }
        var ids: [String] = []
        for segment in segments { Self.collectIDs(segment, into: &ids) }
        let trace = GeneratedTrace(id: id, documents: documents, entityIDs: ids)
        made.append(trace)
        return trace
    }

    private mutating func duration() -> Int64 {
        if random.chance(80) { return Int64.random(in: 0..<400_000, using: &random) }
        if random.chance(90) { return Int64.random(in: 0..<12_000_000, using: &random) }
        return Int64.random(in: 0..<400_000_000, using: &random)
    }

    private mutating func outcome() -> [String] {
        switch Int.random(in: 0..<20, using: &random) {
        case 0: [#""fault":true"#, #""http":{"response":{"status":500}}"#]
        case 1: [#""error":true"#, #""http":{"response":{"status":404}}"#]
        case 2: [#""error":true,"throttle":true"#, #""http":{"response":{"status":429}}"#]
        case 3: [#""fault":true,"throttle":true"#]
        case 4: [#""http":{"response":{"status":503}}"#]
        case 5: [#""error":true"#]
        default: [#""http":{"response":{"status":200}}"#]
        }
    }

    private mutating func end(after start: Int64) -> Int64? {
        if isOdd() { return random.chance(50) ? nil : start - 700_000 }
        return start + duration()
    }

    private mutating func addSegment(to segments: inout [Node], parentID: String?, start: Int64, depth: Int) {
        let service = isOdd() ? random.pick(Self.oddServices) : random.pick(Self.services)
        var node = Node(
            id: hex(16), name: service.name, start: start, end: end(after: start), isSegment: true, parentID: parentID)
        if let origin = service.origin { node.fields.append(#""origin":"\#(origin)""#) }
        if random.chance(5) { node.fields.append(#""aws":{"account_id":"444455556666"}"#) }
        node.fields += outcome()
        node.children = calls(below: node.id, from: start, depth: depth, segments: &segments)
        // The segment itself may stand before or behind the segments it called.
        segments.insert(node, at: random.chance(70) ? 0 : segments.count)
        if isOdd() { addSegment(to: &segments, parentID: node.id, start: start + 100, depth: depth + 1) }
    }

    private mutating func calls(below parent: String, from start: Int64, depth: Int, segments: inout [Node]) -> [Node] {
        guard depth < 4 else { return [] }
        var result: [Node] = []
        for _ in 0..<Int.random(in: 0...3, using: &random) {
            let at = start + Int64.random(in: 0..<200_000, using: &random)
            var call = Node(id: hex(16), name: "", start: at, end: end(after: at), isSegment: false, parentID: parent)
            switch Int.random(in: 0..<10, using: &random) {
            case 0..<3:
                call.name = random.pick(["render", "validate", "audit-flush"])
                if random.chance(30) { call.fields.append(#""namespace":"local""#) }
                call.children = calls(below: call.id, from: at, depth: depth + 1, segments: &segments)
            case 3..<6:
                call.fields.append(#""namespace":"aws""#)
                // The name stands among the fields here.
                call.fields.append(random.pick(Self.awsCalls))
            default:
                call.name = random.pick(Self.hosts)
                call.fields.append(#""namespace":"remote""#)
                if random.chance(65) {
                    addSegment(to: &segments, parentID: call.id, start: at + 1_000, depth: depth + 1)
                }
                if isOdd() { addSegment(to: &segments, parentID: call.id, start: at + 1_000, depth: depth + 1) }
                if isOdd() { call.children = calls(below: call.id, from: at, depth: depth + 1, segments: &segments) }
            }
            call.fields += outcome()
            result.append(call)
        }
        return result
    }

    private mutating func link(_ segment: inout Node) {
        guard !made.isEmpty else { return }
        var links: [String] = []
        for _ in 0..<Int.random(in: 1...2, using: &random) {
            let producer = random.pick(made)
            let target = isOdd() ? hex(16) : random.pick(producer.entityIDs)
            links.append(#"{"trace_id":"\#(producer.id)","id":"\#(target)"}"#)
        }
        segment.fields.append(#""links":[\#(links.joined(separator: ","))]"#)
    }

    private static func collectIDs(_ node: Node, into ids: inout [String]) {
        ids.append(node.id)
        for child in node.children { collectIDs(child, into: &ids) }
    }

    private func json(_ node: Node, head: [String], isOpen: Bool, withChildren: Bool) -> String {
        var fields = head + [#""id":"\#(node.id)""#, #""start_time":\#(Self.seconds(node.start))"#]
        if !node.name.isEmpty { fields.append(#""name":"\#(node.name)""#) }
        if let end = node.end, !isOpen {
            fields.append(#""end_time":\#(Self.seconds(end))"#)
        } else {
            fields.append(#""in_progress":true"#)
        }
        fields += node.fields
        if withChildren, !node.children.isEmpty {
            let children = node.children.map { json($0, head: [], isOpen: false, withChildren: true) }
            fields.append(#""subsegments":[\#(children.joined(separator: ","))]"#)
        }
        return "{\(fields.joined(separator: ","))}"
    }

    /// The documents of one segment: all in one, or its subsegments streamed before or after; an open version first.
    private mutating func emit(_ segment: Node, traceID: String, into documents: inout [String]) {
        var head = [#""trace_id":"\#(traceID)""#]
        if let parent = segment.parentID { head.append(#""parent_id":"\#(parent)""#) }
        if random.chance(15) { documents.append(json(segment, head: head, isOpen: true, withChildren: false)) }
        guard !segment.children.isEmpty, random.chance(30) else {
            documents.append(json(segment, head: head, isOpen: false, withChildren: true))
            return
        }
        for child in segment.children { emitStreamed(child, traceID: traceID, into: &documents) }
        documents.append(json(segment, head: head, isOpen: false, withChildren: false))
    }

    private mutating func emitStreamed(_ node: Node, traceID: String, into documents: inout [String]) {
        var head = [#""type":"subsegment","trace_id":"\#(traceID)""#]
        if let parent = node.parentID { head.append(#""parent_id":"\#(parent)""#) }
        let streamsChildren = random.chance(50)
        if random.chance(15) { documents.append(json(node, head: head, isOpen: true, withChildren: false)) }
        documents.append(json(node, head: head, isOpen: false, withChildren: !streamsChildren))
        if streamsChildren { for child in node.children { emitStreamed(child, traceID: traceID, into: &documents) } }
    }

    private mutating func addOrderDependent(_ segments: [Node], traceID: String, into documents: inout [String]) {
        let head = #""trace_id":"\#(traceID)","name":"loop","start_time":\#(Self.seconds(segments[0].start))"#
        let a = hex(16)
        let b = hex(16)
        documents.append(
            #"{\#(head),"id":"\#(a)","parent_id":"\#(b)","end_time":\#(Self.seconds(segments[0].start + 9_000))}"#)
        documents.append(
            #"{\#(head),"id":"\#(b)","parent_id":"\#(a)","end_time":\#(Self.seconds(segments[0].start + 8_000))}"#)
        // A second, different completion of an id; and a subsegment that is its own parent.
        documents.append(
            #"{\#(head),"id":"\#(segments[0].id)","end_time":\#(Self.seconds(segments[0].start + 7_000)),"fault":true}"#
        )
        let c = hex(16)
        documents.append(
            #"{\#(head),"type":"subsegment","id":"\#(c)","parent_id":"\#(c)","namespace":"remote","in_progress":true}"#)
    }
}
