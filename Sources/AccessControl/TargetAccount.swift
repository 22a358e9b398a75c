// Which account a request works on: the caller's own, or the one named by the path prefix `/account/{id}` or by the
// host `{id}.{suffix}` (`auth-and-accounts.md` §6), and whether the caller may do the action there. Called by the
// server after authentication and before the operation.

import Segments

/// A request path split into the account it names and the operation path after it.
public enum AccountPath: Equatable, Sendable {
    /// No prefix: the whole path is the operation path.
    case none
    /// `/account/{12 digits}` and the rest, which is empty or starts with `/`.
    case account(AccountID, rest: Substring)
    /// Starts with `/account/` but does not fit.
    case malformed

    /// - Parameter path: without the query.
    public init(_ path: Substring) {
        let prefix = "/account/"
        guard path.utf8.starts(with: prefix.utf8) else {
            self = .none
            return
        }
        let text = path.utf8.dropFirst(prefix.utf8.count)
        let digits = text.prefix(12)
        let rest = text[digits.endIndex...]
        guard let account = AccountID(String(decoding: digits, as: UTF8.self)),
            rest.isEmpty || rest.first == UInt8(ascii: "/")
        else {
            self = .malformed
            return
        }
        self = .account(account, rest: path[digits.endIndex...])
    }
}

public enum TargetAccount {
    /// The account named by a host: `^([0-9]{12})\.` + suffix, lower case, without port. Nil for every other host.
    /// - Parameter suffix: lower case, without a leading dot; nil turns the host form off.
    public static func named(byHost host: String, suffix: String?) -> AccountID? {
        guard let suffix, !suffix.isEmpty else { return nil }
        let lowercased = host.lowercased()
        let name = lowercased.utf8.prefix { $0 != UInt8(ascii: ":") }
        let digits = name.prefix(12)
        guard let account = AccountID(String(decoding: digits, as: UTF8.self)) else { return nil }
        let rest = name[digits.endIndex...]
        guard rest.first == UInt8(ascii: "."), rest.dropFirst().elementsEqual(suffix.utf8) else { return nil }
        return account
    }

    /// - Returns: the account both forms agree on; nil when neither names one.
    /// - Throws: `invalidRequest` when they differ or the path form is malformed.
    public static func resolve(path: AccountPath, host: AccountID?) throws(AccessRefusal) -> AccountID? {
        switch path {
        case .malformed:
            throw .invalidRequest("The path must be /account/ with 12 digits, followed by the path of an operation")
        case .none:
            return host
        case .account(let account, _):
            guard let host, host != account else { return account }
            throw .invalidRequest("The host names account \(host), the path names account \(account)")
        }
    }
}

/// The decision whether a caller may do an action in an account.
public enum Authorization {
    /// - Parameters:
    ///   - accountState: the state of the caller's own account, as authentication found it.
    ///   - resource: the ARN the action works on, or `*`.
    /// - Throws: `AccessRefusal.accessDenied`, or what the directory throws. Only the caller's own account can be
    ///   reached: an unknown and a suspended account look the same, and another account lacks the resource-based half
    ///   of the decision.
    public static func check(
        _ caller: Caller, accountState: AccountState, action: String, resource: String = "*", in account: AccountID,
        directory: any CredentialDirectory
    ) async throws {
        if accountState != .active { throw AccessRefusal.accountNotAvailable(caller.account) }
        if account != caller.account {
            guard try await directory.accountState(of: account) == .active else {
                throw AccessRefusal.accountNotAvailable(account)
            }
        }
        guard caller.role.isAllowed(action) else {
            throw AccessRefusal.notAuthorized(caller, action: action, resource: resource, missing: .identity)
        }
        guard account == caller.account else {
            throw AccessRefusal.notAuthorized(caller, action: action, resource: resource, missing: .resource)
        }
    }
}
