// Why a request is refused before its operation runs: name and message as in `auth-and-accounts.md` §3, byte for byte.
// SDKs refresh credentials or correct their clock by the name, so a name or a text must not change.

import Segments

/// A refusal of authentication or authorization; all but `invalidRequest` are HTTP 403.
public enum AccessRefusal: Error, Hashable, Sendable {
    case missingAuthenticationToken
    /// Names the part of the signature that is missing or malformed.
    case incompleteSignature(String)
    case unrecognizedClient
    case expiredToken
    case invalidSignature(String)
    case accessDenied(String)
    /// 400: the request names its target account in a way that does not fit (`auth-and-accounts.md` §6 rule 2).
    case invalidRequest(String)

    public var name: String {
        switch self {
        case .missingAuthenticationToken: "MissingAuthenticationTokenException"
        case .incompleteSignature: "IncompleteSignatureException"
        case .unrecognizedClient: "UnrecognizedClientException"
        case .expiredToken: "ExpiredTokenException"
        case .invalidSignature: "InvalidSignatureException"
        case .accessDenied: "AccessDeniedException"
        case .invalidRequest: "InvalidRequestException"
        }
    }

    public var status: Int {
        switch self {
        case .invalidRequest: 400
        default: 403
        }
    }

    public var message: String {
        switch self {
        case .missingAuthenticationToken: "Missing Authentication Token"
        case .unrecognizedClient: "The security token included in the request is invalid."
        case .expiredToken: "The security token included in the request is expired"
        case .incompleteSignature(let text), .invalidSignature(let text), .accessDenied(let text),
            .invalidRequest(let text):
            text
        }
    }
}

extension AccessRefusal {
    static let signatureMismatch = AccessRefusal.invalidSignature(
        "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key "
            + "and signing method. Consult the service documentation for details.")

    static func wrongService(expected service: String) -> AccessRefusal {
        .invalidSignature("Credential should be scoped to correct service: '\(service)'.")
    }

    static let wrongRegion = AccessRefusal.invalidSignature("Credential should be scoped to a valid region.")

    /// - Parameters: times in seconds since 1970.
    static func signatureExpired(signedAt: Int64, now: Int64) -> AccessRefusal {
        let limit = UTCTime.basic(now - Authenticator.clockSkewSeconds)
        return .invalidSignature(
            "Signature expired: \(UTCTime.basic(signedAt)) is now earlier than \(limit) (\(UTCTime.basic(now)) - 5 min.)"
        )
    }

    static func signatureNotYetCurrent(signedAt: Int64, now: Int64) -> AccessRefusal {
        let limit = UTCTime.basic(now + Authenticator.clockSkewSeconds)
        return .invalidSignature(
            "Signature not yet current: \(UTCTime.basic(signedAt)) is still later than \(limit) "
                + "(\(UTCTime.basic(now)) + 5 min.)")
    }

    /// The half of the decision that lacked an `Allow`.
    enum MissingAllow: String {
        case identity = "identity-based"
        case resource = "resource-based"
    }

    static func notAuthorized(_ caller: Caller, action: String, resource: String, missing: MissingAllow)
        -> AccessRefusal
    {
        .accessDenied(
            "User: \(caller.principalARN) is not authorized to perform: xray:\(action) on resource: \(resource) "
                + "because no \(missing.rawValue) policy allows the xray:\(action) action")
    }

    /// The same text for an unknown and for a suspended account, so that accounts cannot be probed.
    static func accountNotAvailable(_ account: AccountID) -> AccessRefusal {
        .accessDenied("Account \(account) is not available")
    }
}
