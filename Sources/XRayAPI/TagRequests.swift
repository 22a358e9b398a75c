// Tags: the three operations and the list `Tags` of the creating ones (`api.md` §5.10).

import JSONText
import Segments

public struct Tag: Sendable, Hashable {
    public var key: String
    public var value: String

    public init(key: String, value: String) {
        self.key = key
        self.value = value
    }

    /// Most tags of one request.
    static let maxPerRequest = 200

    /// A list of tags; keys are distinct.
    /// - Returns: nil when the member is absent.
    static func list(_ name: StaticString, _ members: RequestMembers) throws(APIError) -> [Tag]? {
        var tags: [Tag] = []
        var count = 0
        let isPresent = try members.forEachElement(of: name) { (_, element) throws(APIError) in
            let tag = try RequestMembers(element, of: "An element of \(name)")
            let key = try tag.string("Key")
            let value = try tag.string("Value")
            count += 1
            guard count <= maxPerRequest else { return }
            guard let key else { throw RequestMembers.missing("Key") }
            guard let value else { throw RequestMembers.missing("Value") }
            tags.append(Tag(key: key, value: value))
        }
        guard count <= maxPerRequest else { throw .invalidRequest("\(name) must have at most \(maxPerRequest) items") }
        var seen: Set<ExactString> = []
        for tag in tags {
            try check(key: tag.key)
            guard tag.value.unicodeScalars.count <= 256 else {
                throw .invalidRequest("The value of tag \(tag.key.echoed(128)) must have at most 256 characters")
            }
            guard tag.value.unicodeScalars.allSatisfy(isAllowed) else {
                throw .invalidRequest("The value of tag \(tag.key.echoed(128)) has a character that is not allowed")
            }
            guard seen.insert(ExactString(tag.key)).inserted else {
                throw .invalidRequest("Tag key \(tag.key.echoed(128)) is given more than once")
            }
        }
        return isPresent ? tags : nil
    }

    static func check(key: String) throws(APIError) {
        guard (1...128).contains(key.unicodeScalars.count) else {
            throw .invalidRequest("A tag key must have between 1 and 128 characters")
        }
        guard key.unicodeScalars.allSatisfy(isAllowed) else {
            throw .invalidRequest("Tag key \(key) has a character that is not allowed")
        }
        guard !key.lowercased().utf8.starts(with: "aws:".utf8) else {
            throw .invalidRequest("Tag key \(key) must not begin with aws:")
        }
    }

    /// Letters and digits of any script, space and `_ . : / = + - @`.
    private static func isAllowed(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar {
        case " ", "_", ".", ":", "/", "=", "+", "-", "@": return true
        default: break
        }
        switch scalar.properties.generalCategory {
        case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter, .decimalNumber,
            .letterNumber, .otherNumber:
            return true
        default: return false
        }
    }

    /// - Parameter resource: the ARN or name asked for.
    public static func tooMany(_ resource: String) -> APIError {
        .tooManyTags("A resource cannot have more than 50 tags", resourceName: resource.echoed(1011))
    }
}

/// The resource of the three operations.
private func resourceARN(_ members: RequestMembers) throws(APIError) -> ResourceARN {
    guard let text = try members.string("ResourceARN", length: 1...1011) else {
        throw RequestMembers.missing("ResourceARN")
    }
    guard let arn = ResourceARN(parsing: text) else { throw .invalidRequest("ResourceARN is not an ARN") }
    return arn
}

extension ResourceARN {
    /// No such resource in the account, or one that cannot be tagged.
    public var notFound: APIError {
        let text = "arn:aws:\(service):\(region):\(account):\(resource)"
        return .resourceNotFound("Resource not found", resourceName: text)
    }
}

public struct TagResourceRequest: Sendable, Equatable {
    public static let operation = "TagResource"
    public static let responseBody = Array("{}".utf8)

    public var resource: ResourceARN
    public var tags: [Tag]

    public init(body: [UInt8]) throws(APIError) {
        (resource, tags) = try RequestMembers.decode(body) { (members) throws(APIError) in
            let tags = try Tag.list("Tags", members)
            let resource = try resourceARN(members)
            guard let tags else { throw RequestMembers.missing("Tags") }
            return (resource, tags)
        }
    }
}

public struct UntagResourceRequest: Sendable, Equatable {
    public static let operation = "UntagResource"
    public static let responseBody = Array("{}".utf8)

    public var resource: ResourceARN
    public var keys: [String]

    public init(body: [UInt8]) throws(APIError) {
        (resource, keys) = try RequestMembers.decode(body) { (members) throws(APIError) in
            let list = try members.strings("TagKeys", limit: Tag.maxPerRequest)
            let resource = try resourceARN(members)
            guard let (keys, count) = list else { throw RequestMembers.missing("TagKeys") }
            guard count <= Tag.maxPerRequest else {
                throw .invalidRequest("TagKeys must have at most \(Tag.maxPerRequest) items")
            }
            for key in keys {
                guard (1...128).contains(key.unicodeScalars.count) else {
                    throw .invalidRequest("A tag key must have between 1 and 128 characters")
                }
            }
            return (resource, keys)
        }
    }
}

public struct ListTagsForResourceRequest: Sendable, Equatable {
    public static let operation = "ListTagsForResource"

    public var resource: ResourceARN

    /// - Throws: `Invalid NextToken {token}` for any: all tags are one page.
    public init(body: [UInt8]) throws(APIError) {
        resource = try RequestMembers.decode(body) { (members) throws(APIError) in
            let token = try members.string("NextToken")
            let resource = try resourceARN(members)
            if let token { throw PageToken.invalid(token) }
            return resource
        }
    }

    /// - Parameter tags: by key.
    public static func responseBody(_ tags: [Tag]) -> [UInt8] {
        var writer = JSONWriter()
        writer.beginObject()
        writer.key("Tags")
        writer.beginArray()
        for tag in tags {
            writer.beginObject()
            writer.key("Key")
            writer.string(tag.key)
            writer.key("Value")
            writer.string(tag.value)
            writer.endObject()
        }
        writer.endArray()
        writer.endObject()
        return writer.bytes
    }
}
