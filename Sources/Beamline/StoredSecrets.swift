// The master key and the database belong together: a server that has another key answers 503 to everything, and a key
// that is made beside stored secrets hides that the right one is missing. So both are looked at before anything serves.

import AccessControl
import Logging
import Segments
import TraceStore

/// Reads the master key that a database's secrets are stored under. Only a database without secrets gets a new one.
/// - Parameter isMade: whether a key file that is missing is made.
/// - Throws: one sentence: the file is missing, or it is that of another database.
func openMasterKey(at path: String, store: TraceStore, isMade: Bool, logger: Logger) async throws -> MasterKey {
    let stored = try await store.accessKeys(account: nil)
    if !isMade || !stored.isEmpty {
        guard let key = try MasterKey.loadIfPresent(at: path) else {
            guard stored.isEmpty else {
                throw CommandFailure(
                    "there is no master key file \(path), and the database has \(counted(stored.count, "access key")) stored under one: put that file back from the backup"
                )
            }
            return try MasterKey.load(at: path)
        }
        try requireOpening(stored, key, path, logger)
        return key
    }
    return try MasterKey.loadOrCreate(at: path)
}

/// Secrets that do not open one by one are a matter of their accounts; when none opens it is the wrong key.
private func requireOpening(_ stored: [StoredAccessKey], _ key: MasterKey, _ path: String, _ logger: Logger) throws {
    let encryption = SecretEncryption(masterKey: key)
    let sealed = stored.filter { (try? encryption.open($0.encryptedSecret, accessKeyID: $0.id)) == nil }
    guard let first = sealed.first else { return }
    guard sealed.count < stored.count else {
        throw CommandFailure(
            "the master key \(path) opens none of \(counted(stored.count, "stored access key")): it belongs to another database; put the right file back from the backup"
        )
    }
    logger.error(
        "the master key does not open some stored access keys; they do not work: delete them and make new ones",
        metadata: ["count": "\(sealed.count)", "of": "\(stored.count)", "such_as": "\(first.id)"])
}

extension TraceStore {
    /// - Throws: one sentence when there is no such account: what is asked of it would find nothing and seem to be well.
    func requireAccount(_ account: AccountID) async throws {
        guard try await accounts().contains(where: { $0.id == account }) else {
            throw CommandFailure("there is no account \(account) (beamline account list)")
        }
    }
}
