// Random filter expressions as text, and the fields of random traces that they ask for: values that some traces have,
// values that none has, and values that only look alike.

public struct FilterTexts: Sendable {
    public var random: SeededGenerator

    public init(random: SeededGenerator) { self.random = random }

    private static let users = ["alice", "bob", "user-17", "user-171", "caf\u{e9}", "cafe\u{301}"]
    private static let urls = [
        "http://shop.example.com/api/orders/17", "http://shop.example.com/api/orders/171?x=1",
        "http://shop.example.com/",
        "http://a/b", "", "http://shop.example.com/api/v2/cart",
    ]
    private static let parts = [
        "/api/", "orders/17", "orders/171", "0171", "7", "17", "x=", "", "shop", "http://shop.example.com/api/orders/1",
        "zzz",
    ]
    private static let methods = ["GET", "POST", "PUT"]
    private static let keys = ["tenant", "age", "vip", "aws.local.operation", "load"]
    private static let texts = ["acme", "globex", "tenant-12", "tenant-120", "31", "true", ""]
    private static let numbers = ["31", "25", "0", "-3.5", "1000000", "0.1", "12.75", "13"]
    private static let names = [
        "web", "orders", "billing", "stock", "worker", "caf\u{e9}", "cafe\u{301}", "orders-table", "jobs", "DynamoDB",
        "images",
        "orders.internal", "pay.example.com", "orders@db.internal", "nowhere",
    ]
    private static let types = [
        "AWS::EC2::Instance", "AWS::ECS::Container", "AWS::Lambda", "AWS::DynamoDB::Table", "remote", "client",
        "AWS::S3::Bucket",
    ]
    private static let accounts = ["123456789012", "444455556666", "999988887777"]

    // MARK: Fields

    /// The document with a user, a request and annotations put in front of its other members.
    public mutating func decorate(_ document: String) -> String {
        var fields: [String] = []
        if random.chance(50) { fields.append(#""user":"\#(random.pick(Self.users))""#) }
        if random.chance(40) {
            let status = random.pick([200, 200, 202, 404, 429, 500, 503])
            fields.append(
                #""http":{"request":{"url":"\#(random.pick(Self.urls))","method":"\#(random.pick(Self.methods))","user_agent":"curl/8.\#(Int.random(in: 0...2, using: &random))","client_ip":"10.0.0.\#(Int.random(in: 0...3, using: &random))"},"response":{"status":\#(status)}}"#
            )
        }
        if random.chance(30) {
            fields.append(
                #""aws":{"ec2":{"instance_id":"i-0\#(Int.random(in: 0...3, using: &random))","availability_zone":"us-west-2a"}}"#
            )
        }
        if random.chance(20) { fields.append(#""resource_arn":"arn:aws:lambda:us-west-2:1:function:thumb""#) }
        if random.chance(15) {
            fields.append(
                #""cause":{"exceptions":[{"id":"00000000000000ab","type":"HttpError","message":"upstream 503"}]}"#)
        }
        if random.chance(60) {
            let values = (0..<Int.random(in: 1...3, using: &random)).map { _ in
                #""\#(random.pick(Self.keys))":\#(value())"#
            }
            fields.append(#""annotations":{\#(values.joined(separator: ","))}"#)
        }
        guard !fields.isEmpty else { return document }
        return "{" + fields.joined(separator: ",") + "," + document.dropFirst()
    }

    private mutating func value() -> String {
        switch Int.random(in: 0..<5, using: &random) {
        case 0: random.pick(["true", "false"])
        case 1, 2: random.pick(Self.numbers)
        default: #""\#(random.pick(Self.texts))""#
        }
    }

    // MARK: Expressions

    public mutating func expression(depth: Int = 0) -> String {
        switch depth < 3 ? Int.random(in: 0..<10, using: &random) : 9 {
        case 0: return "!(\(expression(depth: depth + 1)))"
        case 1, 2: return "(\(expression(depth: depth + 1))) AND (\(expression(depth: depth + 1)))"
        case 3, 4: return "(\(expression(depth: depth + 1))) OR (\(expression(depth: depth + 1)))"
        default: break
        }
        switch Int.random(in: 0..<12, using: &random) {
        case 0, 1: return "service(\(random.chance(20) ? "" : node()))\(body(isEdge: false, depth))"
        case 2: return "edge(\(random.chance(20) ? "" : node() + "," + node()))\(body(isEdge: true, depth))"
        case 3: return cause()
        default: return test()
        }
    }

    private mutating func node() -> String {
        if random.chance(60) { return #""\#(random.pick(Self.names))""# }
        var parts: [String] = []
        if random.chance(60) { parts.append(#"name: "\#(random.pick(Self.names))""#) }
        if random.chance(60) { parts.append(#"type: "\#(random.pick(Self.types))""#) }
        if random.chance(20) { parts.append(#"account.id: "\#(random.pick(Self.accounts))""#) }
        return parts.isEmpty ? #"id(type: "client")"# : "id(\(parts.joined(separator: ", ")))"
    }

    private mutating func body(isEdge: Bool, _ depth: Int) -> String {
        guard random.chance(65) else { return "" }
        return " { \(bodyTest(isEdge: isEdge, depth: depth)) }"
    }

    private mutating func bodyTest(isEdge: Bool, depth: Int) -> String {
        if depth < 3 {
            switch Int.random(in: 0..<8, using: &random) {
            case 0: return "!(\(bodyTest(isEdge: isEdge, depth: depth + 1)))"
            case 1:
                return "\(bodyTest(isEdge: isEdge, depth: depth + 1)) AND \(bodyTest(isEdge: isEdge, depth: depth + 1))"
            case 2:
                return "\(bodyTest(isEdge: isEdge, depth: depth + 1)) OR \(bodyTest(isEdge: isEdge, depth: depth + 1))"
            default: break
            }
        }
        if isEdge, random.chance(20) { return "\(random.pick(["source", "destination"])).\(annotation())" }
        if !isEdge, random.chance(25) {
            return random.pick(["inferred", "root", #"name = "orders""#, #"name != "orders""#, #"type = "remote""#])
        }
        let scoped = test()
        return scoped.hasPrefix("inferred") || scoped.hasPrefix("account.id") ? "fault" : scoped
    }

    private mutating func cause() -> String {
        let kind = random.pick(["fault", "error", "responsetime"])
        let level = random.pick(kind == "responsetime" ? ["service", "entity"] : ["service", "entity", "exception"])
        let tests = [#"name = "\#(random.pick(Self.names))""#, "first", "last", "index > 0", "!(first)"]
        let more = level == "exception" ? [#"name = "HttpError""#, #"message CONTAINS "503""#] : []
        return "rootcause.\(kind).\(level) { \(random.pick(tests + more)) }"
    }

    private mutating func annotation() -> String {
        let key = "annotation[\(random.pick(Self.keys))]"
        switch Int.random(in: 0..<6, using: &random) {
        case 0: return key
        case 1: return "\(key) = \(random.pick(["true", "false"]))"
        case 2: return "\(key) \(random.pick(["=", "!=", "<", "<=", ">", ">="])) \(random.pick(Self.numbers))"
        default:
            return
                #"\#(key) \#(random.pick(["=", "!=", "CONTAINS", "BEGINSWITH", "ENDSWITH"])) "\#(random.pick(Self.texts))""#
        }
    }

    private mutating func test() -> String {
        let equality = random.pick(["=", "!=", "CONTAINS", "BEGINSWITH", "ENDSWITH"])
        let order = random.pick(["=", "!=", "<", "<=", ">", ">="])
        switch Int.random(in: 0..<16, using: &random) {
        case 0, 1: return random.pick(["ok", "fault", "error", "throttle", "partial", "inferred"])
        case 2:
            return
                "\(random.pick(["ok", "fault", "partial"])) \(random.pick(["=", "!="])) \(random.pick(["true", "false"]))"
        case 3, 4:
            return
                "\(random.pick(["responsetime", "duration"])) \(order) \(random.pick(["0", "0.05", "0.2", "1", "5.5", "60", "0.399"]))"
        case 5:
            return random.pick([
                "responsetime", "duration", "http.status", "user", "http.url", "http.method", "instance.id",
            ])
        case 6: return "http.status \(order) \(random.pick(["200", "404", "429", "500", "404.5"]))"
        case 7: return #"http.url \#(equality) "\#(random.pick(Self.urls + Self.parts))""#
        case 8: return #"http.method \#(equality) "\#(random.pick(Self.methods))""#
        case 9, 10: return #"user \#(equality) "\#(random.pick(Self.users + Self.parts))""#
        case 11: return #"instance.id \#(equality) "i-0\#(Int.random(in: 0...4, using: &random))""#
        case 12: return #"account.id \#(equality) "\#(random.pick(Self.accounts))""#
        case 13:
            return random.pick([
                #"resource.arn ENDSWITH ":thumb""#, #"availabilityzone = "us-west-2a""#, #"http.clientip = "10.0.0.1""#,
                #"http.useragent BEGINSWITH "curl""#,
            ])
        default: return annotation()
        }
    }
}
