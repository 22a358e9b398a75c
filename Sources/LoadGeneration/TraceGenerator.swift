// Traces of the made-up system (`Topology`) as segment documents of about 1.1 KB, about six a trace. Each trace is
// planned first (a call tree with times, outcomes and ids), then written document by document from fixed pieces of
// text, callee before caller as real SDKs send them. Used by one worker thread each; no I/O, the clock is a parameter.

import Segments

public struct TraceShape: Sendable {
    /// Services of the made-up system.
    public var services = 20
    /// Documents of a trace: uniformly distributed around this.
    public var documentsPerTrace = 6
    public var seed: UInt64 = 1
    /// Joined to every name; empty for none.
    public var tag = ""
    /// Different users.
    public var users = 5000
    /// Roots carry an annotation `campaign` of 200 values, of which `campaign-000` to `campaign-009` are rare: one in 10,000 each.
    public var hasCampaigns = false
    /// Every how many traces one is kept to be read back; 0 = none.
    public var sampleEvery = 0

    public init() {}
}

public final class TraceGenerator {
    private let topology: Topology
    private let shape: TraceShape
    private let pieces: Pieces
    private let texts: Texts
    /// Separates the ids of runs with the same seed, and the streams of the workers of a run.
    private let runSalt: UInt64
    private let worker: Int
    private var traceNumber: UInt64 = 0

    // The plan of the current trace; arrays are reused.
    private var traceHigh: UInt64 = 0
    private var traceLow: UInt64 = 0
    private var segments: [PlannedSegment] = []
    private var leafCalls: [PlannedLeaf] = []
    private var random: Randomness
    /// Next segment to write, counting down; negative when the trace is finished.
    private var nextSegment = -1

    private var documents = 0
    private var documentBytes = 0
    private var traces = 0
    private var nodeCounts: [ClassCounts]
    private var leafCounts: [ClassCounts]
    private var clientCounts: [ClassCounts]
    private var callCounts: [ClassCounts]
    private var leafEdgeCounts: [ClassCounts]
    private var tracesByRootSecond: [Int64: Int] = [:]
    private var currentSecond: Int64 = 0
    private var currentSecondTraces = 0
    private var sample: [ExpectedTrace] = []
    private var firstEnd = Micros.max
    private var lastEnd = Micros.min

    private struct PlannedSegment {
        var service: Int
        var id: UInt64
        /// Index in the plan of the caller; -1 for the root.
        var caller: Int
        /// The caller's subsegment that made this call.
        var callID: UInt64
        var start: Micros
        var end: Micros
        var callStart: Micros
        var callEnd: Micros
        var outcome: OutcomeClass
        var status: Int
        var leaves: Range<Int>
    }

    private struct PlannedLeaf {
        var leaf: Int
        var id: UInt64
        var start: Micros
        var end: Micros
        var outcome: OutcomeClass
        var status: Int
    }

    /// - Parameter worker: number of this stream within the run; streams do not overlap.
    /// - Parameter startedAt: makes the ids of this run differ from those of another run with the same seed.
    /// - Parameter escaped: write documents as the contents of JSON strings, as `PutTraceSegments` wants them.
    public init(shape: TraceShape, worker: Int, startedAt: Micros, escaped: Bool) {
        self.shape = shape
        self.worker = worker
        topology = Topology(services: shape.services, seed: shape.seed, tag: shape.tag)
        pieces = Pieces(escaped: escaped)
        texts = Texts(topology, in: pieces)
        runSalt = Randomness.mix(UInt64(bitPattern: startedAt) &+ UInt64(worker) &* 0x1_0000_0001)
        random = Randomness(shape.seed, UInt64(worker))
        let services = topology.services.count
        let leaves = topology.leaves.count
        nodeCounts = Array(repeating: ClassCounts(), count: services)
        leafCounts = Array(repeating: ClassCounts(), count: leaves)
        clientCounts = Array(repeating: ClassCounts(), count: services)
        callCounts = Array(repeating: ClassCounts(), count: services * services)
        leafEdgeCounts = Array(repeating: ClassCounts(), count: services * leaves)
    }

    /// True between traces: everything planned so far has been written.
    public var isBetweenTraces: Bool { nextSegment < 0 }
    public var traceCount: Int { traces }
    public var documentCount: Int { documents }
    /// Sum of the sizes of the documents written so far, unescaped.
    public var byteCount: Int { documentBytes }

    /// Writes one document: the rest of the current trace first, then a new trace that ends at `now`.
    public func writeDocument(into out: OutputBuffer, now: Micros) {
        if nextSegment < 0 { planTrace(now: now) }
        out.reserve(8 * 1024)
        let before = out.count
        let quotes = write(segment: nextSegment, into: out)
        nextSegment -= 1
        documents += 1
        documentBytes += out.count - before - (pieces.escaped ? quotes : 0)
    }

    /// Totals of everything planned so far.
    public func expectation() -> Expectation {
        var result = Expectation()
        result.documents = documents
        result.documentBytes = documentBytes
        result.traces = traces
        result.tracesByRootSecond = tracesByRootSecond
        if currentSecondTraces > 0 { result.tracesByRootSecond[currentSecond, default: 0] += currentSecondTraces }
        result.sample = sample
        result.firstEnd = firstEnd
        result.lastEnd = lastEnd
        func node(_ service: Int) -> ExpectedNode {
            ExpectedNode(name: topology.services[service].name, type: topology.services[service].origin)
        }
        func add(_ counts: ClassCounts, to found: ExpectedNode) {
            if counts.total > 0 { result.nodes[found, default: ClassCounts()].add(counts) }
        }
        func add(_ counts: ClassCounts, from source: ExpectedNode, to destination: ExpectedNode) {
            guard counts.total > 0 else { return }
            result.edges[ExpectedEdge(source: source, destination: destination), default: ClassCounts()].add(counts)
        }
        let services = topology.services.count
        for service in 0..<services {
            add(nodeCounts[service], to: node(service))
            let client = ExpectedNode(name: topology.services[service].name, type: "client")
            add(clientCounts[service], from: client, to: node(service))
            for callee in 0..<services {
                add(callCounts[service * services + callee], from: node(service), to: node(callee))
            }
            for leaf in 0..<topology.leaves.count {
                add(
                    leafEdgeCounts[service * topology.leaves.count + leaf], from: node(service),
                    to: topology.leaves[leaf].node)
            }
        }
        for leaf in 0..<topology.leaves.count { add(leafCounts[leaf], to: topology.leaves[leaf].node) }
        return result
    }

    // MARK: - Planning

    private func planTrace(now: Micros) {
        traceNumber += 1
        // The shape of the trace comes from the seed, its id from the run as well.
        random = Randomness(shape.seed, UInt64(worker), traceNumber)
        let salt = Randomness.mix(runSalt &+ traceNumber)
        traceLow = Randomness.mix(salt)
        traceHigh = UInt64(now / 1_000_000) << 32 | (Randomness.mix(traceLow) >> 32)

        segments.removeAll(keepingCapacity: true)
        leafCalls.removeAll(keepingCapacity: true)
        let spread = max(1, shape.documentsPerTrace / 2)
        let size = max(1, shape.documentsPerTrace - spread + random.below(2 * spread + 1))

        var duration = 20_000 + Int64(random.below(180_000))
        let tail = random.below(1000)
        if tail < 5 { duration *= 12 } else if tail < 50 { duration *= 3 }
        let start = now - duration
        let entrance = topology.entrances[random.below(topology.entrances.count)]
        segments.append(
            PlannedSegment(
                service: entrance, id: random.next(), caller: -1, callID: 0, start: start, end: now, callStart: start,
                callEnd: now, outcome: .ok, status: 200, leaves: 0..<0))
        while segments.count < size {
            var caller = random.below(segments.count)
            if topology.services[segments[caller].service].callees.isEmpty { caller = 0 }
            let callees = topology.services[segments[caller].service].callees
            guard !callees.isEmpty else { break }
            let callee = callees[random.below(callees.count)]
            // The call lies within its caller, the callee within its call.
            let available = segments[caller].end - segments[caller].start
            let length = max(400, available * Int64(25 + random.below(50)) / 100)
            let callStart = segments[caller].start + Int64(random.below(Int(max(1, available - length))))
            let callEnd = callStart + length
            let network = 40 + Int64(random.below(60))
            segments.append(
                PlannedSegment(
                    service: callee, id: random.next(), caller: caller, callID: random.next(),
                    start: callStart + network, end: callEnd - network, callStart: callStart, callEnd: callEnd, outcome: .ok,
                    status: 200, leaves: 0..<0))
        }
        planOutcomes()
        for index in segments.indices { planLeafCalls(of: index) }
        nextSegment = segments.count - 1
        record(start: start)
    }

    private func planOutcomes() {
        let chance = random.below(1000)
        guard chance < 70 else { return }
        var index = random.below(segments.count)
        if chance < 25 {
            // A fault, which callers mostly pass on.
            while true {
                segments[index].outcome = .fault
                segments[index].status = chance < 12 ? 500 : 503
                guard segments[index].caller >= 0, random.below(100) < 75 else { return }
                index = segments[index].caller
            }
        } else if chance < 65 {
            segments[index].outcome = .error
            segments[index].status = 404
        } else {
            segments[index].outcome = .throttle
            segments[index].status = 429
        }
    }

    private func planLeafCalls(of index: Int) {
        let segment = segments[index]
        let used = topology.services[segment.service].leaves
        let first = leafCalls.count
        let wanted = min(used.count, (1 + random.below(4)) / 2)
        for number in 0..<wanted {
            let leaf = used[number]
            let available = segment.end - segment.start
            let length = max(50, available * Int64(5 + random.below(30)) / 100)
            let start = segment.start + Int64(random.below(Int(max(1, available - length))))
            var outcome = OutcomeClass.ok
            var status = 200
            if segment.outcome == .fault, number == 0, random.below(100) < 40 {
                outcome = .fault
                status = 500
            } else if random.below(200) == 0 {
                outcome = .error
                status = 400
            }
            // SQL calls carry no HTTP status: a flag makes their class.
            leafCalls.append(
                PlannedLeaf(leaf: leaf, id: random.next(), start: start, end: start + length, outcome: outcome, status: status))
        }
        segments[index].leaves = first..<leafCalls.count
    }

    private func record(start: Micros) {
        traces += 1
        let second = start / 1_000_000
        if second != currentSecond {
            if currentSecondTraces > 0 { tracesByRootSecond[currentSecond, default: 0] += currentSecondTraces }
            currentSecond = second
            currentSecondTraces = 0
        }
        currentSecondTraces += 1
        let services = topology.services.count
        let leaves = topology.leaves.count
        for segment in segments {
            let outcome = segment.outcome
            nodeCounts[segment.service].record(outcome, micros: segment.end - segment.start)
            if segment.caller < 0 {
                clientCounts[segment.service].record(outcome, micros: segment.end - segment.start)
            } else {
                let edge = segments[segment.caller].service * services + segment.service
                callCounts[edge].record(outcome, micros: segment.callEnd - segment.callStart)
            }
            firstEnd = min(firstEnd, segment.end)
            lastEnd = max(lastEnd, segment.callEnd)
            for index in segment.leaves {
                let call = leafCalls[index]
                leafCounts[call.leaf].record(call.outcome, micros: call.end - call.start)
                leafEdgeCounts[segment.service * leaves + call.leaf].record(call.outcome, micros: call.end - call.start)
                firstEnd = min(firstEnd, call.end)
                lastEnd = max(lastEnd, call.end)
            }
        }
        if shape.sampleEvery > 0, traces % shape.sampleEvery == 1 % shape.sampleEvery, sample.count < 200 {
            sample.append(
                ExpectedTrace(
                    id: TraceID(high: traceHigh, low: traceLow), segmentIDs: Set(segments.map { EntityID(rawValue: $0.id) }),
                    leafCalls: leafCalls.count, startMicros: start))
        }
    }

    // MARK: - Writing

    /// Returns the number of quotes written, which is what escaping adds to the size.
    private func write(segment index: Int, into out: OutputBuffer) -> Int {
        let segment = segments[index]
        let text = texts.services[segment.service]
        let pieces = pieces
        var quotes = 0
        @inline(__always) func put(_ fixed: Text) {
            out.append(fixed.piece, of: pieces)
            quotes += fixed.quotes
        }
        @inline(__always) func putTimes(_ start: Micros, _ end: Micros) {
            put(texts.start)
            out.appendSeconds(micros: start)
            put(texts.end)
            out.appendSeconds(micros: end)
        }

        put(text.name)
        out.appendHex(segment.id)
        put(texts.traceID)
        out.appendHex(traceHigh >> 32, digits: 8)
        out.append(45)
        out.appendHex(traceHigh & 0xFFFF_FFFF, digits: 8)
        out.appendHex(traceLow)
        if segment.caller >= 0 {
            put(texts.parent)
            out.appendHex(segment.callID)
        }
        put(texts.closeString)
        putTimes(segment.start, segment.end)
        put(text.environment)
        if segment.caller < 0 {
            put(texts.user)
            out.appendDecimal(Int(traceLow % UInt64(shape.users)), digits: 4)
            put(texts.closeString)
        }
        put(text.http)
        out.appendDecimal(Int(segment.id % 90_000) + 10_000)
        put(texts.clientIP)
        out.appendDecimal(Int(traceLow >> 8 & 255))
        out.append(46)
        out.appendDecimal(Int(traceLow >> 16 & 255))
        put(texts.status)
        out.appendDecimal(segment.status)
        put(texts.contentLength)
        out.appendDecimal(Int(segment.id >> 20 & 0x3FFF))
        put(texts.closeHTTP)
        put(texts.flags(segment.outcome))
        if segment.outcome == .fault {
            put(texts.cause)
            out.appendHex(segment.id ^ 0xFFFF)
            put(texts.causeRest)
        }
        if shape.hasCampaigns, segment.caller < 0 {
            let hash = Randomness.mix(traceLow)
            let rank = Int(hash % 10_000)
            put(texts.campaign)
            out.appendDecimal(rank < 10 ? rank : 10 + Int((hash >> 32) % 190), digits: 3)
            put(texts.afterCampaign)
        } else {
            put(texts.annotations)
        }
        out.appendDecimal(Int(traceLow >> 24 & 0x3FF))
        put(texts.orderValue)
        out.appendDecimal(Int(traceLow >> 34 & 0xFFF))
        out.append(46)
        out.appendDecimal(Int(segment.id & 63) + 10, digits: 2)
        put(traceLow & 7 == 0 ? texts.premium : texts.notPremium)
        put(text.metadata)
        out.appendHex(Randomness.mix(segment.id))
        out.appendHex(Randomness.mix(segment.id &+ 1))
        put(texts.metadataRest)

        var isFirst = true
        @inline(__always) func begin() {
            put(isFirst ? texts.firstSubsegment : texts.nextSubsegment)
            isFirst = false
        }
        for (callee, call) in segments.enumerated().dropFirst(index + 1) where call.caller == index {
            begin()
            out.appendHex(call.callID)
            put(texts.services[segments[callee].service].call)
            putTimes(call.callStart, call.callEnd)
            put(texts.services[segments[callee].service].callHTTP)
            out.appendDecimal(call.status)
            put(texts.closeHTTP)
            put(texts.flags(call.outcome))
            put(texts.closeObject)
        }
        for number in segment.leaves {
            let call = leafCalls[number]
            let leaf = texts.leaves[call.leaf]
            begin()
            out.appendHex(call.id)
            put(leaf.name)
            putTimes(call.start, call.end)
            put(leaf.details)
            if leaf.hasRequestID {
                out.appendHex(Randomness.mix(call.id))
                put(texts.afterRequestID)
            }
            if leaf.hasStatus {
                out.appendDecimal(call.status)
                put(texts.closeHTTP)
            }
            put(texts.flags(call.outcome))
            put(texts.closeObject)
        }
        put(isFirst ? texts.endWithoutSubsegments : texts.endWithSubsegments)
        return quotes
    }
}

/// A piece of text and the number of quotes in it.
private struct Text {
    var piece: Piece
    var quotes: Int
}

/// Every fixed stretch of the documents.
private struct Texts {
    struct Service {
        var name: Text
        var environment: Text
        var http: Text
        var metadata: Text
        var call: Text
        var callHTTP: Text
    }

    struct Leaf {
        var name: Text
        var details: Text
        /// AWS calls: `details` ends where the request id goes.
        var hasRequestID: Bool
        /// All but SQL: then the HTTP status follows.
        var hasStatus: Bool
    }

    var services: [Service] = []
    var leaves: [Leaf] = []
    let traceID, parent, closeString, start, end, user, clientIP, status, contentLength, closeHTTP: Text
    let ok, error, throttle, fault, cause, causeRest, annotations, campaign, afterCampaign, orderValue, premium, notPremium, metadataRest: Text
    let firstSubsegment, nextSubsegment, afterRequestID, closeObject, endWithoutSubsegments, endWithSubsegments: Text

    init(_ topology: Topology, in pieces: Pieces) {
        func text(_ text: String) -> Text { Text(piece: pieces.add(text), quotes: text.utf8.count(where: { $0 == 34 })) }
        traceID = text(#"","trace_id":"1-"#)
        parent = text(#"","parent_id":""#)
        closeString = text(#"""#)
        start = text(#","start_time":"#)
        end = text(#","end_time":"#)
        user = text(#","user":"user-"#)
        clientIP = text(#"","user_agent":"python-requests/2.31.0","client_ip":"10.20."#)
        status = text(#""},"response":{"status":"#)
        contentLength = text(#","content_length":"#)
        closeHTTP = text("}}")
        ok = text("")
        error = text(#","error":true"#)
        throttle = text(#","error":true,"throttle":true"#)
        fault = text(#","fault":true"#)
        cause = text(#","cause":{"working_directory":"/srv/app","exceptions":[{"id":""#)
        causeRest = text(
            #"","type":"TimeoutError","message":"upstream did not answer within 2000 ms","stack":["#
                + #"{"path":"app/handlers.py","line":118,"label":"handle"},{"path":"app/client.py","line":57,"label":"call"}]}]}"#)
        annotations = text(#","annotations":{"tenant":"tenant-"#)
        campaign = text(#","annotations":{"campaign":"campaign-"#)
        afterCampaign = text(#"","tenant":"tenant-"#)
        orderValue = text(#"","order_value":"#)
        premium = text(#","premium":true}"#)
        notPremium = text(#","premium":false}"#)
        metadataRest = text(#"","attempt":1}}"#)
        firstSubsegment = text(#","subsegments":[{"id":""#)
        nextSubsegment = text(#",{"id":""#)
        afterRequestID = text(#""},"http":{"response":{"status":"#)
        closeObject = text("}")
        endWithoutSubsegments = text("}")
        endWithSubsegments = text("]}")

        for (index, service) in topology.services.enumerated() {
            let origin = service.origin.map { #","origin":"\#($0)""# } ?? ""
            let place =
                switch service.origin {
                case "AWS::EC2::Instance":
                    #""ec2":{"instance_id":"i-0a1b2c3d4e5f\#(1000 + index)","availability_zone":"us-east-1\#(index % 2 == 0 ? "a" : "b")"},"#
                case "AWS::ECS::Container": #""ecs":{"container":"ip-10-20-\#(index)-17.ec2.internal"},"#
                case "AWS::EKS::Container": #""eks":{"cluster_name":"production","pod":"\#(service.name)-7d9f6b5c4-x2k8q"},"#
                default: ""
                }
            services.append(
                Service(
                    name: text(#"{"name":"\#(service.name)","id":""#),
                    environment: text(
                        #"\#(origin),"aws":{\#(place)"xray":{"sdk":"X-Ray for Python"}},"#
                            + #""service":{"version":"1.\#(index).4"}"#),
                    http: text(
                        #","http":{"request":{"method":"\#(index % 3 == 0 ? "GET" : "POST")","url":"https://\#(service.name).example.com/api/\#(service.route)/"#
                    ),
                    metadata: text(#","metadata":{"app":{"build":"2024.11.\#(index)","correlation":""#),
                    call: text(#"","name":"\#(service.name).internal","namespace":"remote""#),
                    callHTTP: text(
                        #","http":{"request":{"method":"\#(index % 3 == 0 ? "GET" : "POST")","url":"https://\#(service.name).internal/api/\#(service.route)"},"response":{"status":"#
                    )))
        }
        for leaf in topology.leaves {
            let namespace = leaf.kind == .sql || leaf.kind == .remote ? "remote" : "aws"
            let details =
                switch leaf.kind {
                case .dynamoDB:
                    #","aws":{"operation":"GetItem","region":"us-east-1","table_name":"\#(leaf.resource)","request_id":""#
                case .s3:
                    #","aws":{"operation":"GetObject","region":"us-east-1","bucket_name":"\#(leaf.resource)","key":"objects/latest","request_id":""#
                case .sqs:
                    #","aws":{"operation":"SendMessage","region":"us-east-1","queue_url":"\#(leaf.resource)","request_id":""#
                case .sql:
                    #","sql":{"url":"postgresql://\#(leaf.callName):5432","database_type":"PostgreSQL","database_version":"15.6","#
                        + #""user":"app","preparation":"statement","sanitized_query":"SELECT id, total FROM rows WHERE tenant = $1 AND id = $2"}"#
                case .remote:
                    #","http":{"request":{"method":"POST","url":"https://\#(leaf.callName)/v2/quote"},"response":{"status":"#
                }
            leaves.append(
                Leaf(
                    name: text(#"","name":"\#(leaf.callName)","namespace":"\#(namespace)""#), details: text(details),
                    hasRequestID: namespace == "aws",
                    hasStatus: leaf.kind != .sql))
        }
    }

    func flags(_ outcome: OutcomeClass) -> Text {
        switch outcome {
        case .ok: ok
        case .error: error
        case .throttle: throttle
        case .fault: fault
        }
    }
}
