// Roles (`api.md` §2), target accounts (`auth-and-accounts.md` §6) and the denials of §3.

import Segments
import Testing

@testable import AccessControl

private let own = AccountID(rawValue: 111_122_223_333)
private let other = AccountID(rawValue: 210_987_654_321)
private let suspended = AccountID(rawValue: 999_900_001_111)
private let unknown = AccountID(rawValue: 5)

private struct AccountDirectory: CredentialDirectory {
    func credential(for accessKeyID: String) async throws -> Credential? { nil }
    func accountState(of account: AccountID) async throws -> AccountState? {
        [own: .active, other: .active, suspended: .suspended][account]
    }
}

private func decide(_ role: Role, _ action: String, in account: AccountID, state: AccountState = .active) async throws
    -> String?
{
    let caller = Caller(
        principalARN: "arn:aws:iam::111122223333:user/app", account: own, accessKeyID: "AKIAEXAMPLE000000001",
        role: role)
    do {
        try await Authorization.check(
            caller, accountState: state, action: action, in: account, directory: AccountDirectory())
        return nil
    } catch let refusal as AccessRefusal {
        #expect(refusal.name == "AccessDeniedException")
        #expect(refusal.status == 403)
        return refusal.message
    }
}

@Suite struct AccountAndRoleTests {
    private static let writes = [
        "PutTraceSegments", "PutTelemetryRecords", "GetSamplingRules", "GetSamplingTargets",
        "GetSamplingStatisticSummaries",
    ]
    private static let reads = [
        "GetSamplingRules", "GetSamplingTargets", "GetSamplingStatisticSummaries", "BatchGetTraces",
        "BatchGetTraceSummaryById", "GetDistinctTraceGraphs", "GetServiceGraph", "GetTraceGraph", "GetTraceSummaries",
        "GetGroups", "GetGroup", "ListTagsForResource", "ListResourcePolicies", "GetTimeSeriesServiceStatistics",
        "GetInsightSummaries", "GetInsight", "GetInsightEvents", "GetInsightImpactGraph",
    ]
    private static let neither = [
        "GetEncryptionConfig", "PutEncryptionConfig", "CreateGroup", "UpdateSamplingRule", "StartTraceRetrieval",
        "PutSpans",
    ]

    // If this fails, a daemon's key can read traces, or a reader's key can write them.
    @Test func `a role allows the actions of its policy and no others`() {
        for action in Set(Self.writes + Self.reads + Self.neither) {
            #expect(Role.write.isAllowed(action) == Self.writes.contains(action), "\(action)")
            #expect(Role.read.isAllowed(action) == Self.reads.contains(action), "\(action)")
            #expect(Role.admin.isAllowed(action), "\(action)")
        }
    }

    // If this fails, a denied user is not told which right is missing.
    @Test func `a missing right is named`() async throws {
        #expect(try await decide(.write, "PutTraceSegments", in: own) == nil)
        #expect(
            try await decide(.write, "GetTraceSummaries", in: own)
                == "User: arn:aws:iam::111122223333:user/app is not authorized to perform: xray:GetTraceSummaries on resource: * because no identity-based policy allows the xray:GetTraceSummaries action"
        )
    }

    // If this fails, accounts are not walls.
    @Test func `another account is denied, and unknown ones cannot be told from suspended ones`() async throws {
        #expect(
            try await decide(.admin, "PutTraceSegments", in: other)
                == "User: arn:aws:iam::111122223333:user/app is not authorized to perform: xray:PutTraceSegments on resource: * because no resource-based policy allows the xray:PutTraceSegments action"
        )
        #expect(
            try await decide(.read, "PutTraceSegments", in: other)
                == "User: arn:aws:iam::111122223333:user/app is not authorized to perform: xray:PutTraceSegments on resource: * because no identity-based policy allows the xray:PutTraceSegments action"
        )
        #expect(try await decide(.admin, "PutTraceSegments", in: suspended) == "Account 999900001111 is not available")
        #expect(try await decide(.admin, "PutTraceSegments", in: unknown) == "Account 000000000005 is not available")
    }

    // If this fails, a suspended customer keeps writing.
    @Test func `credentials of a suspended account are denied`() async throws {
        #expect(
            try await decide(.admin, "PutTraceSegments", in: own, state: .suspended)
                == "Account 111122223333 is not available")
    }

    // If this fails, clients with the path form of the endpoint write into the wrong account.
    @Test func `the path prefix names an account`() {
        #expect(AccountPath("/TraceSegments") == .none)
        #expect(AccountPath("/accounts") == .none)
        #expect(AccountPath("/account/210987654321/TraceSegments") == .account(other, rest: "/TraceSegments"))
        #expect(AccountPath("/account/000000000005/v1/traces") == .account(unknown, rest: "/v1/traces"))
        #expect(AccountPath("/account/210987654321") == .account(other, rest: ""))
        for path in [
            "/account/", "/account/21098765432/X", "/account/2109876543210/X", "/account/21098765432a/X",
            "/account/me/X",
        ] {
            #expect(AccountPath(path[...]) == .malformed, "\(path)")
        }
    }

    // If this fails, clients with the host form of the endpoint write into the wrong account.
    @Test(arguments: [
        ("210987654321.xray.example.test", true), ("210987654321.XRay.Example.Test:2000", true),
        ("xray.example.test", false),
        ("21098765432.xray.example.test", false), ("2109876543210.xray.example.test", false),
        ("a.210987654321.xray.example.test", false), ("210987654321.xray.example.test.evil", false),
        ("210987654321xray.example.test", false), ("210987654321", false), ("", false),
    ])
    func `the host names an account under the configured suffix`(host: String, isNamed: Bool) {
        #expect(TargetAccount.named(byHost: host, suffix: "xray.example.test") == (isNamed ? other : nil))
        #expect(TargetAccount.named(byHost: host, suffix: nil) == nil)
    }

    // If this fails, two contradicting names are resolved silently.
    @Test func `path and host must agree`() throws {
        #expect(try TargetAccount.resolve(path: .none, host: nil) == nil)
        #expect(try TargetAccount.resolve(path: .none, host: other) == other)
        #expect(try TargetAccount.resolve(path: .account(other, rest: ""), host: nil) == other)
        #expect(try TargetAccount.resolve(path: .account(other, rest: ""), host: other) == other)
        for (path, host) in [(AccountPath.account(other, rest: ""), own), (.malformed, own), (.malformed, nil)]
            as [(AccountPath, AccountID?)]
        {
            do {
                _ = try TargetAccount.resolve(path: path, host: host)
                Issue.record("accepted")
            } catch {
                #expect(error.name == "InvalidRequestException")
                #expect(error.status == 400)
            }
        }
    }
}
