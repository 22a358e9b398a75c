// Who signed a request and what that principal may do. Made by `Authenticator` from a `Credential`, carried by every
// operation request, and stored (the ARN) with each batch of documents.

import Segments

/// An authenticated principal.
public struct Caller: Hashable, Sendable {
    /// `arn:aws:iam::111122223333:root`, `arn:aws:iam::111122223333:user/path/name`, …
    public var principalARN: String
    /// The principal's own account. The account a request works on is `OperationRequest.account`.
    public var account: AccountID
    public var accessKeyID: String
    public var role: Role

    public init(principalARN: String, account: AccountID, accessKeyID: String, role: Role) {
        self.principalARN = principalARN
        self.account = account
        self.accessKeyID = accessKeyID
        self.role = role
    }
}

/// What a key may do: one of the built-in policies. Source: `api.md` §2.
public enum Role: String, CaseIterable, Hashable, Sendable {
    /// Policy W, `AWSXRayDaemonWriteAccess`: send documents and telemetry, read sampling rules.
    case write
    /// Policy R, `AWSXrayReadOnlyAccess`: search and read traces, graphs, groups and insights.
    case read
    /// Policy R+, `XRayReaderPlus`: `read`, and the reading operations that AWS's policy leaves out.
    case readPlus = "read-plus"
    /// Policy A, `AWSXrayFullAccess`: `xray:*`.
    case admin

    public var policyARN: String {
        switch self {
        case .write: "arn:aws:iam::aws:policy/AWSXRayDaemonWriteAccess"
        case .read: "arn:aws:iam::aws:policy/AWSXrayReadOnlyAccess"
        case .readPlus: "arn:aws:iam::aws:policy/XRayReaderPlus"
        case .admin: "arn:aws:iam::aws:policy/AWSXrayFullAccess"
        }
    }

    /// Whether the role's policy has an `Allow` for `xray:{action}`.
    /// - Parameter action: the operation's name without the service, `PutTraceSegments`.
    public func isAllowed(_ action: String) -> Bool {
        switch self {
        case .write: Self.writeActions.contains(action)
        case .read: Self.readActions.contains(action)
        case .readPlus: Self.readActions.contains(action) || Self.readPlusActions.contains(action)
        case .admin: true
        }
    }

    private static let samplingActions: Set<String> = [
        "GetSamplingRules", "GetSamplingTargets", "GetSamplingStatisticSummaries",
    ]

    private static let writeActions: Set<String> = samplingActions.union(["PutTraceSegments", "PutTelemetryRecords"])

    private static let readActions: Set<String> = samplingActions.union([
        "BatchGetTraces", "BatchGetTraceSummaryById", "GetDistinctTraceGraphs", "GetServiceGraph", "GetTraceGraph",
        "GetTraceSummaries", "GetGroups", "GetGroup", "ListTagsForResource", "ListResourcePolicies",
        "GetTimeSeriesServiceStatistics", "GetInsightSummaries", "GetInsight", "GetInsightEvents",
        "GetInsightImpactGraph",
    ])

    private static let readPlusActions: Set<String> = [
        "GetEncryptionConfig", "GetIndexingRules", "GetTraceSegmentDestination", "StartTraceRetrieval",
        "ListRetrievedTraces", "GetRetrievedTracesGraph", "CancelTraceRetrieval",
    ]
}

extension Caller {
    /// For an operation that needs the permission for a second action, as creating something with tags does.
    public func require(_ action: String, on resource: String) throws(AccessRefusal) {
        guard role.isAllowed(action) else {
            throw .notAuthorized(self, action: action, resource: resource, missing: .identity)
        }
    }
}

/// The ARNs of principals. Source: `auth-and-accounts.md` §1.
public enum PrincipalARN {
    public static func root(of account: AccountID) -> String { "arn:aws:iam::\(account):root" }

    /// - Parameter name: the user's path and name without the leading slash, `ci/reporter`.
    public static func user(_ name: String, of account: AccountID) -> String { "arn:aws:iam::\(account):user/\(name)" }
}
