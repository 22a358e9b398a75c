// The errors of the API as clients see them: a name, a status, a message (`api.md` §1.4, `auth-and-accounts.md` §3).
// Thrown by request decoding, by the operations and by the HTTP server; the server renders `body` and sends `name` as
// `x-amzn-ErrorType`. SDKs tell errors apart by the exact name, so names exist only as the constructors below.

import JSONText

/// An error answer. Everything in it is shown to the caller.
public struct APIError: Error, Hashable, Sendable {
    /// The bare error name: header `x-amzn-ErrorType` and member `__type`.
    public var name: String
    /// The HTTP status.
    public var status: Int
    public var message: String
    /// Further string members of the body, in order (`ResourceName`).
    public var members: [Member]
    /// Header `Retry-After`, whole seconds; set on 429 and 503.
    public var retryAfterSeconds: Int?

    public struct Member: Hashable, Sendable {
        public var name: String
        public var value: String
        public init(name: String, value: String) {
            self.name = name
            self.value = value
        }
    }

    public init(
        name: String, status: Int, message: String, members: [Member] = [], retryAfterSeconds: Int? = nil
    ) {
        self.name = name
        self.status = status
        self.message = message
        self.members = members
        self.retryAfterSeconds = retryAfterSeconds
    }
}

// MARK: - Errors of the operations

extension APIError {
    /// A member is missing or out of its range, a name is unknown or taken, a token is bad. The service has no `ValidationException`.
    public static func invalidRequest(_ message: String) -> APIError {
        APIError(name: "InvalidRequestException", status: 400, message: message)
    }

    public static func resourceNotFound(_ message: String, resourceName: String) -> APIError {
        APIError(
            name: "ResourceNotFoundException", status: 404, message: message,
            members: [Member(name: "ResourceName", value: resourceName)])
    }

    public static func tooManyTags(_ message: String, resourceName: String) -> APIError {
        APIError(
            name: "TooManyTagsException", status: 400, message: message,
            members: [Member(name: "ResourceName", value: resourceName)])
    }

    public static func ruleLimitExceeded(_ message: String) -> APIError {
        APIError(name: "RuleLimitExceededException", status: 400, message: message)
    }

    public static func malformedPolicyDocument(_ message: String) -> APIError {
        APIError(name: "MalformedPolicyDocumentException", status: 400, message: message)
    }

    public static func lockoutPrevention(_ message: String) -> APIError {
        APIError(name: "LockoutPreventionException", status: 400, message: message)
    }

    public static func invalidPolicyRevisionID(_ message: String) -> APIError {
        APIError(name: "InvalidPolicyRevisionIdException", status: 400, message: message)
    }

    public static func policySizeLimitExceeded(_ message: String) -> APIError {
        APIError(name: "PolicySizeLimitExceededException", status: 400, message: message)
    }

    public static func policyCountLimitExceeded(_ message: String) -> APIError {
        APIError(name: "PolicyCountLimitExceededException", status: 400, message: message)
    }

    /// Go v2 retries by this name only, not by the status.
    public static func throttled(_ message: String = "Rate exceeded", retryAfterSeconds: Int = 1) -> APIError {
        APIError(name: "ThrottledException", status: 429, message: message, retryAfterSeconds: retryAfterSeconds)
    }
}

// MARK: - Errors of the protocol

extension APIError {
    /// The body is not JSON or a member has the wrong type.
    public static func serialization(_ message: String) -> APIError {
        APIError(name: "SerializationException", status: 400, message: message)
    }

    /// The body cannot be decompressed, or bad framing.
    public static func malformedHTTPRequest(_ message: String) -> APIError {
        APIError(name: "MalformedHttpRequestException", status: 400, message: message)
    }

    public static func requestEntityTooLarge(_ message: String = "Request body is too large") -> APIError {
        APIError(name: "RequestEntityTooLargeException", status: 413, message: message)
    }

    public static func unknownOperation(_ message: String = "Unknown operation") -> APIError {
        APIError(name: "UnknownOperationException", status: 404, message: message)
    }

    public static func requestTimeout(_ message: String = "The request body was not received in time") -> APIError {
        APIError(name: "RequestTimeoutException", status: 408, message: message)
    }

    /// A bug or a storage failure before the request was accepted.
    public static func internalFailure(_ message: String = "Internal failure") -> APIError {
        APIError(name: "InternalFailure", status: 500, message: message)
    }

    /// Overload, a dependency is down, or the process is shutting down.
    public static func serviceUnavailable(
        _ message: String = "Service is temporarily unavailable", retryAfterSeconds: Int = 1
    ) -> APIError {
        APIError(name: "ServiceUnavailable", status: 503, message: message, retryAfterSeconds: retryAfterSeconds)
    }
}

// MARK: - Errors of authentication and authorization (`auth-and-accounts.md` §3)

extension APIError {
    public static let missingAuthenticationToken = APIError(
        name: "MissingAuthenticationTokenException", status: 403, message: "Missing Authentication Token")

    public static func incompleteSignature(_ message: String) -> APIError {
        APIError(name: "IncompleteSignatureException", status: 403, message: message)
    }

    public static let unrecognizedClient = APIError(
        name: "UnrecognizedClientException", status: 403,
        message: "The security token included in the request is invalid.")

    public static let expiredToken = APIError(
        name: "ExpiredTokenException", status: 403, message: "The security token included in the request is expired")

    public static func invalidSignature(_ message: String) -> APIError {
        APIError(name: "InvalidSignatureException", status: 403, message: message)
    }

    public static func accessDenied(_ message: String) -> APIError {
        APIError(name: "AccessDeniedException", status: 403, message: message)
    }
}

// MARK: - Rendering

extension APIError {
    /// `{"__type":…,"message":…,"Message":…}`: all three spellings, because every SDK looks for another one.
    public var body: [UInt8] {
        var writer = JSONWriter(reservingCapacity: 64 + 2 * message.utf8.count)
        writer.beginObject()
        writer.key("__type")
        writer.string(name)
        writer.key("message")
        writer.string(message)
        writer.key("Message")
        writer.string(message)
        for member in members {
            writer.key(string: member.name)
            writer.string(member.value)
        }
        writer.endObject()
        return writer.bytes
    }
}

extension APIError: CustomStringConvertible {
    public var description: String { "\(name) (\(status)): \(message)" }
}
