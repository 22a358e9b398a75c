// New access keys. The generator is a parameter; the server passes `SystemRandomNumberGenerator`, which is the
// kernel's. Source: `auth-and-accounts.md` §1.

/// An access key that was just made. The secret is shown to its owner once and stored encrypted (`SecretEncryption`).
public struct AccessKey: Hashable, Sendable {
    /// `AKIA` and 16 characters of `A-Z2-7`.
    public var id: String
    /// 40 characters of the base64 alphabet.
    public var secret: SecretKey

    public init(id: String, secret: SecretKey) {
        self.id = id
        self.secret = secret
    }

    public static func generate(using generator: inout some RandomNumberGenerator) -> AccessKey {
        let id = "AKIA" + random(16, of: "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", using: &generator)
        return AccessKey(id: id, secret: generateSecret(using: &generator))
    }

    public static func generate() -> AccessKey {
        var generator = SystemRandomNumberGenerator()
        return generate(using: &generator)
    }

    static func generateSecret(using generator: inout some RandomNumberGenerator) -> SecretKey {
        let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        return SecretKey(random(40, of: alphabet, using: &generator))
    }

    private static func random(_ count: Int, of alphabet: String, using generator: inout some RandomNumberGenerator)
        -> String
    {
        let characters = Array(alphabet.utf8)
        let text = (0..<count).map { _ in characters[Int.random(in: 0..<characters.count, using: &generator)] }
        return String(decoding: text, as: UTF8.self)
    }
}
