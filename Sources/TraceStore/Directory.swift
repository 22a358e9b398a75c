// Accounts and access keys in PostgreSQL (`auth-and-accounts.md` §1). Secrets come in and go out encrypted: the
// directory only stores bytes; who holds the master key decrypts.

import AccessControl
import Segments

public struct Account: Sendable, Equatable {
    public var id: AccountID
    public var name: String
    public var state: AccountState
    public var createdAt: Micros

    public init(id: AccountID, name: String, state: AccountState, createdAt: Micros) {
        self.id = id
        self.name = name
        self.state = state
        self.createdAt = createdAt
    }
}

/// A row of the directory; the secret is as encrypted by the caller.
public struct AccessKey: Sendable, Equatable {
    public var id: String
    public var account: AccountID
    public var principalARN: String
    public var role: Role
    public var isActive: Bool
    public var createdAt: Micros
    public var encryptedSecret: [UInt8]

    public init(
        id: String, account: AccountID, principalARN: String, role: Role, isActive: Bool = true, createdAt: Micros,
        encryptedSecret: [UInt8]
    ) {
        self.id = id
        self.account = account
        self.principalARN = principalARN
        self.role = role
        self.isActive = isActive
        self.createdAt = createdAt
        self.encryptedSecret = encryptedSecret
    }
}
