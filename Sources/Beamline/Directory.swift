// Accounts and keys as the commands make them: generate, encrypt, store, write the credentials file.

import AccessControl
import Foundation
import Segments
import TraceStore

struct Directory {
    let store: TraceStore
    let masterKey: MasterKey

    /// Makes a key for the root of an account or one of its users, and stores it.
    /// - Parameters:
    ///   - user: path and name of the user; nil: the root, who may do everything.
    ///   - credentials: where to write the key. Written before the key is stored: a crash in between leaves a key that
    ///     does not work instead of one that nobody knows.
    func createKey(
        account: AccountID, user: String?, role: Role, credentials: CredentialsTarget?, now: Micros
    ) async throws -> AccessKey {
        try credentials?.requireFree()
        let principal = user.map { PrincipalARN.user($0, of: account) } ?? PrincipalARN.root(of: account)
        let active = try await store.accessKeys(account: account).filter { $0.principalARN == principal && $0.isActive }
        guard active.count < 2 else {
            throw CommandFailure(
                "\(principal) has two active keys already; disable or delete one first (beamline key list)")
        }
        let key = AccessKey.generate()
        let sealed = try SecretEncryption(masterKey: masterKey).seal(key.secret, accessKeyID: key.id)
        try credentials?.write(key)
        try await store.createAccessKey(
            .init(
                id: key.id, account: account, principalARN: principal, role: role, createdAt: now,
                encryptedSecret: sealed))
        return key
    }

    /// Creates an account.
    func createAccount(_ id: AccountID, name: String, now: Micros) async throws {
        try await store.createAccount(Account(id: id, name: name, state: .active, createdAt: now))
    }
}

/// A profile of an AWS shared-credentials file.
func credentialsText(of key: AccessKey, profile: String) -> String {
    """
    [\(profile)]
    aws_access_key_id = \(key.id)
    aws_secret_access_key = \(key.secret.text)

    """
}
