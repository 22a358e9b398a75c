// The made-up system whose traffic the load generator sends: services that call each other without cycles, and the
// tables, buckets, queues, databases and partners they use. The same seed and number of services give the same system.

/// SplitMix64: small, fast, and any stream can be started anywhere.
struct Randomness {
    private var state: UInt64

    init(_ parts: UInt64...) {
        state = 0x9E37_79B9_7F4A_7C15
        for part in parts { state = Randomness.mix(state &+ part) }
    }

    static func mix(_ value: UInt64) -> UInt64 {
        var z = value &+ 0x9E37_79B9_7F4A_7C15
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }

    @inline(__always)
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }

    /// 0 ..< bound.
    @inline(__always)
    mutating func below(_ bound: Int) -> Int { Int(((next() >> 32) &* UInt64(bound)) >> 32) }
}

/// A node of the made-up system as the service graph will name it.
public struct ExpectedNode: Hashable, Sendable {
    public var name: String
    /// Nil when the service sends no `origin`.
    public var type: String?
}

struct Topology {
    struct Service {
        var name: String
        var origin: String?
        var route: String
        /// Indexes of services; always larger than its own, so there are no cycles.
        var callees: [Int]
        var leaves: [Int]
    }

    enum LeafKind: Int, CaseIterable { case dynamoDB, sql, remote, sqs, s3 }

    struct Leaf {
        var kind: LeafKind
        /// The name of the subsegment.
        var callName: String
        /// Table, bucket, queue URL; unused for SQL and partners.
        var resource: String
        var node: ExpectedNode
    }

    var services: [Service]
    var leaves: [Leaf]
    /// Services that requests enter by.
    var entrances: [Int]

    /// - Parameter tag: joined to every name, so that the nodes of one run can be told from those of others; may be empty.
    init(services serviceCount: Int, seed: UInt64, tag: String) {
        var random = Randomness(seed, 0x70_70)
        let count = max(2, serviceCount)
        let suffix = tag.isEmpty ? "" : "-" + tag
        let origins = ["AWS::ECS::Container", "AWS::EC2::Instance", "AWS::EKS::Container", "AWS::Lambda::Function", nil]

        leaves = (0..<max(3, count)).map { index in
            let kind = LeafKind.allCases[index % LeafKind.allCases.count]
            let word = Topology.words[index % Topology.words.count] + (index >= Topology.words.count ? "\(index)" : "") + suffix
            switch kind {
            case .dynamoDB:
                return Leaf(
                    kind: kind, callName: "DynamoDB", resource: word + "-table",
                    node: ExpectedNode(name: word + "-table", type: "AWS::DynamoDB::Table"))
            case .s3:
                return Leaf(
                    kind: kind, callName: "S3", resource: word + "-bucket",
                    node: ExpectedNode(name: word + "-bucket", type: "AWS::S3::Bucket"))
            case .sqs:
                let url = "https://sqs.us-east-1.amazonaws.com/123456789012/" + word + "-queue"
                return Leaf(
                    kind: kind, callName: "SQS", resource: url, node: ExpectedNode(name: url, type: "AWS::SQS::Queue"))
            case .sql:
                let name = word + "@db.internal.example"
                return Leaf(kind: kind, callName: name, resource: "", node: ExpectedNode(name: name, type: "remote"))
            case .remote:
                let name = word + ".partner.example"
                return Leaf(kind: kind, callName: name, resource: "", node: ExpectedNode(name: name, type: "remote"))
            }
        }

        let entranceCount = 1 + count / 12
        entrances = Array(0..<entranceCount)
        var made: [Service] = []
        for index in 0..<count {
            let word = Topology.words[index % Topology.words.count]
            let name = (index < Topology.words.count ? word : "\(word)\(index)") + suffix
            var callees: [Int] = []
            let first = max(index + 1, entranceCount)
            if first < count {
                // Entrances fan out widely; services further back call a few near neighbours or nobody.
                let wanted = index < entranceCount ? 2 + random.below(4) : random.below(4)
                for _ in 0..<wanted {
                    let callee = first + random.below(min(count - first, index < entranceCount ? count : 8))
                    if !callees.contains(callee) { callees.append(callee) }
                }
                if index < entranceCount, callees.isEmpty { callees.append(first) }
            }
            var used: [Int] = []
            for _ in 0..<(1 + random.below(3)) {
                let leaf = random.below(leaves.count)
                if !used.contains(leaf) { used.append(leaf) }
            }
            made.append(
                Service(
                    name: name, origin: origins[index % origins.count], route: word, callees: callees, leaves: used))
        }
        services = made
    }

    private static let words = [
        "storefront", "checkout", "cart", "orders", "payments", "inventory", "catalog", "pricing", "shipping", "accounts",
        "identity", "sessions", "search", "recommend", "reviews", "wishlist", "promotions", "taxes", "invoices", "ledger",
        "fraud", "risk", "notify", "email", "sms", "push", "audit", "reports", "analytics", "events",
        "media", "thumbnails", "uploads", "translate", "geo", "routing", "warehouse", "picking", "returns", "refunds",
        "loyalty", "giftcards", "subscriptions", "billing", "support", "chat", "tickets", "partners", "webhooks", "gateway",
    ]
}
