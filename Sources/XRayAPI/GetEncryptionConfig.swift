// `GetEncryptionConfig` (`api.md` §5.7): no input, and until a configuration can be put, the default.

import JSONText

public struct GetEncryptionConfigRequest: Sendable, Equatable {
    public static let operation = "GetEncryptionConfig"

    /// - Throws: `SerializationException` when the body is no JSON object.
    public init(body: [UInt8]) throws(APIError) {
        _ = try RequestMembers.decode(body) { (_) throws(APIError) in true }
    }

    public static let defaultResponseBody = Array(#"{"EncryptionConfig":{"Status":"ACTIVE","Type":"NONE"}}"#.utf8)
}
