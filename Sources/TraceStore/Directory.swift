// Accounts and access keys in PostgreSQL (`auth-and-accounts.md` §1). Secrets come in and go out encrypted: the
// directory only stores bytes; who holds the master key decrypts.

import AccessControl
import PostgreSQL
import Segments
import Synchronization

public struct Account: Sendable, Equatable {
    public var id: AccountID
    public var name: String
    public var state: AccountState
    public var createdAt: Micros

    public init(id: AccountID, name: String, state: AccountState = .active, createdAt: Micros) {
        self.id = id
        self.name = name
        self.state = state
        self.createdAt = createdAt
    }
}

/// A row of the directory; the secret is as encrypted by the caller.
public struct StoredAccessKey: Sendable, Equatable {
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

extension TraceStore {
    /// All accounts in order of id.
    public func accounts() async throws(TraceStoreError) -> [Account] {
        let rows = try await ask(
            PostgresStatement("SELECT account, name, state, created_at FROM accounts ORDER BY account"))
        return (0..<rows.rowCount).map { row in
            Account(
                id: AccountID(rawValue: UInt64(bitPattern: rows.int(row, 0))), name: rows.text(row, 1),
                state: AccountState(rawValue: rows.text(row, 2)) ?? .suspended, createdAt: rows.int(row, 3))
        }
    }

    /// - Throws: `.exists`.
    public func createAccount(_ account: Account) async throws(TraceStoreError) {
        var statement = PostgresStatement("""
            INSERT INTO accounts (account, name, state, created_at) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING
            """)
        statement.bind(account.id)
        statement.bind(text: account.name)
        statement.bind(text: account.state.rawValue)
        statement.bind(account.createdAt)
        if try await change(statement)[0].affectedRows == 0 {
            throw TraceStoreError(.exists, "account \(account.id.rawValue) exists already")
        }
    }

    /// - Throws: `.unknown`.
    public func setAccountState(_ id: AccountID, _ state: AccountState) async throws(TraceStoreError) {
        var statement = PostgresStatement("UPDATE accounts SET state = $2 WHERE account = $1")
        statement.bind(id)
        statement.bind(text: state.rawValue)
        try await changeOne(statement, "account \(id.rawValue)")
    }

    /// Removes an account and its keys from the directory; its data stay until retention ends.
    /// - Throws: `.unknown`.
    public func deleteAccount(_ id: AccountID) async throws(TraceStoreError) {
        var statement = PostgresStatement("DELETE FROM accounts WHERE account = $1")
        statement.bind(id)
        try await changeOne(statement, "account \(id.rawValue)")
    }

    /// Whether anything is stored for an account, be it there or deleted.
    public func hasTraces(account: AccountID) async throws(TraceStoreError) -> Bool {
        var statement = PostgresStatement("SELECT 1 FROM traces WHERE account = $1 LIMIT 1")
        statement.bind(account)
        return try await ask(statement).rowCount > 0
    }

    /// Keys of an account (nil = of all) in order of creation.
    public func accessKeys(account: AccountID?) async throws(TraceStoreError) -> [StoredAccessKey] {
        var statement = PostgresStatement("""
            SELECT \(Self.keyColumns) FROM access_keys k
            WHERE $1::int8 IS NULL OR k.account = $1 ORDER BY k.account, k.created_at, k.id
            """)
        if let account { statement.bind(account) } else { statement.bindNull(.int8) }
        let rows = try await ask(statement)
        return (0..<rows.rowCount).map { Self.key(rows, $0) }
    }

    /// - Throws: `.exists` when the key id is taken, `.unknown` when there is no such account.
    public func createAccessKey(_ key: StoredAccessKey) async throws(TraceStoreError) {
        var statement = PostgresStatement("""
            INSERT INTO access_keys (account, id, principal_arn, role, is_active, created_at, encrypted_secret)
            SELECT $1, $2, $3, $4, $5, $6, $7 WHERE EXISTS (SELECT FROM accounts WHERE account = $1)
            """)
        statement.bind(key.account)
        statement.bind(text: key.id)
        statement.bind(text: key.principalARN)
        statement.bind(text: key.role.rawValue)
        statement.bind(key.isActive)
        statement.bind(key.createdAt)
        statement.bind(bytes: key.encryptedSecret)
        do {
            let result = try await writers.run(statement)
            if result.affectedRows == 0 {
                throw TraceStoreError(.unknown, "there is no account \(key.account.rawValue)")
            }
        } catch let error as PostgresError {
            if error.sqlState == "23505" { throw TraceStoreError(.exists, "access key \(key.id) exists already") }
            throw TraceStoreError(error, "cannot create the access key")
        } catch let error as TraceStoreError {
            throw error
        } catch {
            throw TraceStoreError(.refused, "\(error)")
        }
    }

    /// - Throws: `.unknown`.
    public func setAccessKeyActive(_ id: String, _ isActive: Bool) async throws(TraceStoreError) {
        var statement = PostgresStatement("UPDATE access_keys SET is_active = $2 WHERE id = $1")
        statement.bind(text: id)
        statement.bind(isActive)
        try await changeOne(statement, "access key \(id)")
    }

    /// - Throws: `.unknown`.
    public func deleteAccessKey(_ id: String) async throws(TraceStoreError) {
        var statement = PostgresStatement("DELETE FROM access_keys WHERE id = $1")
        statement.bind(text: id)
        try await changeOne(statement, "access key \(id)")
    }

    private func changeOne(_ statement: PostgresStatement, _ what: String) async throws(TraceStoreError) {
        if try await change(statement)[0].affectedRows == 0 {
            throw TraceStoreError(.unknown, "there is no \(what)")
        }
    }

    fileprivate static let keyColumns =
        "k.id, k.account, k.principal_arn, k.role, k.is_active, k.created_at, k.encrypted_secret"

    fileprivate static func key(_ rows: PostgresResult, _ row: Int) -> StoredAccessKey {
        // A role this program does not know may do the least.
        StoredAccessKey(
            id: rows.text(row, 0), account: AccountID(rawValue: UInt64(bitPattern: rows.int(row, 1))),
            principalARN: rows.text(row, 2), role: Role(rawValue: rows.text(row, 3)) ?? .write,
            isActive: rows.bool(row, 4) && Role(rawValue: rows.text(row, 3)) != nil, createdAt: rows.int(row, 5),
            encryptedSecret: rows.bytes(row, 6))
    }

    /// The directory as the API server asks it.
    /// - Parameters:
    ///   - cacheTime: how long an answer is believed; a disabled key works at most that long. At most 30 s.
    ///   - decrypt: the clear secret of a key; called once per cached answer.
    public func credentialDirectory(
        cacheTime: Duration = .seconds(10), decrypt: @escaping @Sendable (StoredAccessKey) throws -> SecretKey
    ) -> StoredCredentialDirectory {
        StoredCredentialDirectory(store: self, cacheTime: min(cacheTime, .seconds(30)), decrypt: decrypt)
    }
}

/// Credentials from PostgreSQL with a short memory, also for unknown keys, so that guessing costs no round trip twice.
public final class StoredCredentialDirectory: CredentialDirectory {
    private static let cacheLimit = 10_000

    private struct Cached<Value: Sendable>: Sendable {
        var value: Value?
        var until: ContinuousClock.Instant
    }

    private struct Cache {
        var credentials: [String: Cached<Credential>] = [:]
        var states: [AccountID: Cached<AccountState>] = [:]
    }

    private let store: TraceStore
    private let cacheTime: Duration
    private let decrypt: @Sendable (StoredAccessKey) throws -> SecretKey
    private let cache = Mutex(Cache())
    private let clock = ContinuousClock()

    init(store: TraceStore, cacheTime: Duration, decrypt: @escaping @Sendable (StoredAccessKey) throws -> SecretKey) {
        self.store = store
        self.cacheTime = cacheTime
        self.decrypt = decrypt
    }

    public func credential(for accessKeyID: String) async throws -> Credential? {
        let now = clock.now
        if let known = cache.withLock({ $0.credentials[accessKeyID] }), known.until > now { return known.value }
        var statement = PostgresStatement("""
            SELECT \(TraceStore.keyColumns), a.state FROM access_keys k JOIN accounts a ON a.account = k.account
            WHERE k.id = $1
            """)
        statement.bind(text: accessKeyID)
        let rows = try await store.ask(statement)
        var credential: Credential?
        if rows.rowCount == 1 {
            let key = TraceStore.key(rows, 0)
            credential = Credential(
                accessKeyID: key.id, secret: try decrypt(key), principalARN: key.principalARN, account: key.account,
                role: key.role, isActive: key.isActive,
                accountState: AccountState(rawValue: rows.text(0, 7)) ?? .suspended)
        }
        let answer = Cached(value: credential, until: now + cacheTime)
        cache.withLock { cache in
            if cache.credentials.count >= Self.cacheLimit { cache.credentials.removeAll() }
            cache.credentials[accessKeyID] = answer
        }
        return credential
    }

    public func accountState(of account: AccountID) async throws -> AccountState? {
        let now = clock.now
        if let known = cache.withLock({ $0.states[account] }), known.until > now { return known.value }
        var statement = PostgresStatement("SELECT state FROM accounts WHERE account = $1")
        statement.bind(account)
        let rows = try await store.ask(statement)
        let state = rows.rowCount == 0 ? nil : AccountState(rawValue: rows.text(0, 0)) ?? .suspended
        let answer = Cached(value: state, until: now + cacheTime)
        cache.withLock { cache in
            if cache.states.count >= Self.cacheLimit { cache.states.removeAll() }
            cache.states[account] = answer
        }
        return state
    }
}
