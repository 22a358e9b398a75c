// What the directory knows about an access key and about an account, and the protocol by which the server asks for it.
// The store implements `CredentialDirectory` over PostgreSQL and caches answers for at most 30 s.

import Segments

/// A secret access key in the clear. Printing, interpolating or dumping it shows nothing.
public struct SecretKey: Hashable, Sendable, CustomStringConvertible, CustomDebugStringConvertible, CustomReflectable {
    /// The 40 characters. Only signing, encryption and the one-time output of `key create` read it.
    public let text: String

    public init(_ text: String) { self.text = text }

    public var description: String { "(secret)" }
    public var debugDescription: String { "(secret)" }
    public var customMirror: Mirror { Mirror(self, children: []) }
}

public enum AccountState: String, Hashable, Sendable {
    case active
    /// Its credentials answer `AccessDeniedException`; nobody can write into it; data stay until retention ends.
    case suspended
}

/// An access key with everything a decision needs: one row of the directory.
public struct Credential: Hashable, Sendable {
    public var accessKeyID: String
    public var secret: SecretKey
    public var principalARN: String
    public var account: AccountID
    public var role: Role
    /// False for a disabled key: its requests are answered like those of an unknown key.
    public var isActive: Bool
    public var accountState: AccountState

    public init(
        accessKeyID: String, secret: SecretKey, principalARN: String, account: AccountID, role: Role,
        isActive: Bool = true, accountState: AccountState = .active
    ) {
        self.accessKeyID = accessKeyID
        self.secret = secret
        self.principalARN = principalARN
        self.account = account
        self.role = role
        self.isActive = isActive
        self.accountState = accountState
    }
}

/// The server's own directory of accounts and keys (`auth-and-accounts.md` §1).
public protocol CredentialDirectory: Sendable {
    /// The credential of an access key id, whatever its state; nil when there is none.
    /// - Throws: when the directory cannot be read; the request is then answered 503, never let through.
    func credential(for accessKeyID: String) async throws -> Credential?

    /// The state of an account; nil when there is none.
    func accountState(of account: AccountID) async throws -> AccountState?
}
