// The name a downstream call gives to the service it called, as long as that service has not reported itself
// (`service-graph.md` §3). In: a remote call. Callers: summaries, inferred segments, the service graph.

import Segments

/// The node a remote call stands for while it is a leaf, and the alias of its edge once it is resolved.
public struct InferredService: Sendable {
    public var name: String
    /// `remote`, `AWS::<service>` or the type of a resource.
    public var type: String
    /// The name is that of a table, bucket, queue, topic or function, not of a service.
    public var isNamedResource: Bool

    /// - Parameter call: a remote call (`Entity.isRemoteCall`).
    /// Source: `service-graph.md` §3, ruling R-11 (names outside the table stay as sent).
    public init(of call: Entity) {
        self.init(name: call.name, namespace: call.namespace, awsCall: call.awsCall)
    }

    /// The same from what decides it: an `Entity` is large to hand over.
    public init(name: String, namespace: Entity.Namespace, awsCall: AWSCall?) {
        guard namespace == .aws else {
            self.init(name: name, type: "remote", isNamedResource: false)
            return
        }
        guard let service = KnownService(named: name) else {
            self.init(name: name, type: "AWS::" + name, isNamedResource: false)
            return
        }
        guard let details = awsCall, details.operation != nil, let resource = service.resource(in: details) else {
            self.init(name: service.rawValue, type: service.serviceType, isNamedResource: false)
            return
        }
        self.init(name: resource, type: service.resourceType, isNamedResource: true)
    }

    private init(name: String, type: String, isNamedResource: Bool) {
        self.name = name
        self.type = type
        self.isNamedResource = isNamedResource
    }
}

/// The services whose spelling is settled and whose resources are nodes of their own.
private enum KnownService: String {
    case dynamoDB = "DynamoDB"
    case s3 = "S3"
    case sqs = "SQS"
    case sns = "SNS"
    case lambda = "Lambda"

    /// Ignores case, a leading `Amazon` or `AWS` and a trailing version (`v2`): SDKs spell one service in many ways.
    init?(named name: String) {
        if let exact = KnownService(rawValue: name) {
            self = exact
            return
        }
        var spelling: [UInt8] = name.utf8.map { (0x41...0x5A).contains($0) ? $0 | 0x20 : $0 }
        for prefix in ["amazon", "aws"] where spelling.starts(with: prefix.utf8) {
            spelling.removeFirst(prefix.utf8.count)
            break
        }
        if let v = spelling.lastIndex(of: UInt8(ascii: "v")), v + 1 < spelling.count,
            spelling[(v + 1)...].allSatisfy({ (0x30...0x39).contains($0) })
        {
            spelling.removeSubrange(v...)
        }
        while spelling.first == 0x20 { spelling.removeFirst() }
        while spelling.last == 0x20 { spelling.removeLast() }
        switch String(decoding: spelling, as: UTF8.self) {
        case "dynamodb": self = .dynamoDB
        case "s3": self = .s3
        case "sqs": self = .sqs
        case "sns": self = .sns
        case "lambda": self = .lambda
        default: return nil
        }
    }

    var serviceType: String {
        switch self {
        case .dynamoDB: "AWS::DynamoDB"
        case .s3: "AWS::S3"
        case .sqs: "AWS::SQS"
        case .sns: "AWS::SNS"
        case .lambda: "AWS::Lambda"
        }
    }

    var resourceType: String {
        switch self {
        case .dynamoDB: "AWS::DynamoDB::Table"
        case .s3: "AWS::S3::Bucket"
        case .sqs: "AWS::SQS::Queue"
        case .sns: "AWS::SNS"
        case .lambda: "AWS::Lambda"
        }
    }

    func resource(in call: AWSCall) -> String? {
        switch self {
        case .dynamoDB: call.tableName
        case .s3: call.bucketName
        case .sqs: call.queueURL
        case .sns: call.topicARN
        case .lambda: call.functionName
        }
    }
}
