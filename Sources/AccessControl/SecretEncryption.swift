// Secrets of access keys at rest: AES-256-GCM under the server's master key. SigV4 needs secrets in the clear, so they
// cannot be hashed. The store keeps what `seal` returns; the access key id is bound to it, so rows cannot be swapped.

import Crypto

/// Encrypts and decrypts the secrets of access keys.
public struct SecretEncryption: Sendable {
    private let key: SymmetricKey

    public init(masterKey: MasterKey) { key = masterKey.key }

    /// Nonce (12 bytes), ciphertext and tag (16 bytes), one after the other.
    public func seal(_ secret: SecretKey, accessKeyID: String) throws -> [UInt8] {
        let box = try AES.GCM.seal(Array(secret.text.utf8), using: key, authenticating: Array(accessKeyID.utf8))
        return Array(box.nonce) + Array(box.ciphertext) + Array(box.tag)
    }

    /// - Throws: `SecretEncryptionError` when the bytes were not sealed by this master key for this access key.
    public func open(_ sealed: [UInt8], accessKeyID: String) throws(SecretEncryptionError) -> SecretKey {
        do {
            let box = try AES.GCM.SealedBox(combined: sealed)
            let secret = try AES.GCM.open(box, using: key, authenticating: Array(accessKeyID.utf8))
            return SecretKey(String(decoding: secret, as: UTF8.self))
        } catch {
            throw SecretEncryptionError(accessKeyID: accessKeyID)
        }
    }
}

public struct SecretEncryptionError: Error, Hashable, Sendable, CustomStringConvertible {
    public var accessKeyID: String

    public var description: String {
        "cannot decrypt the secret of access key \(accessKeyID): it was stored under another master key; "
            + "put the master key file of this database back, or delete the key and create a new one"
    }
}
