// The server's master key: 32 random bytes in a file of mode 0600 in the data folder. Read once at start.
// Creation is atomic (a complete file appears or none), so a crash or two starts at once cannot leave half a key.

import Crypto
import Glibc

/// The key under which secrets and page tokens are encrypted.
public struct MasterKey: Sendable {
    public static let byteCount = 32

    let key: SymmetricKey

    /// - Precondition: 32 bytes.
    init(key: SymmetricKey) { self.key = key }

    public init?(bytes: [UInt8]) {
        guard bytes.count == Self.byteCount else { return nil }
        key = SymmetricKey(data: bytes)
    }

    public static func generate() -> MasterKey { MasterKey(key: SymmetricKey(size: .bits256)) }

    /// A key for one other purpose, so that no two uses share key material (HKDF-SHA256).
    /// - Parameter purpose: a constant such as `page tokens`.
    public func derivedKey(for purpose: String) -> SymmetricKey {
        HKDF<SHA256>.deriveKey(inputKeyMaterial: key, info: Array(purpose.utf8), outputByteCount: Self.byteCount)
    }

    /// Reads the key file, or makes one when there is none.
    public static func loadOrCreate(at path: String) throws(MasterKeyError) -> MasterKey {
        if let key = try loadIfPresent(at: path) { return key }
        try create(at: path)
        return try load(at: path)
    }

    /// Reads the key file.
    public static func load(at path: String) throws(MasterKeyError) -> MasterKey {
        guard let key = try loadIfPresent(at: path) else {
            throw MasterKeyError(
                "there is no master key file \(path); put that of the database there, or, for a new database, `beamline migrate --master-key \(path)` makes it"
            )
        }
        return key
    }

    /// Reads the key file; nil when there is none.
    public static func loadIfPresent(at path: String) throws(MasterKeyError) -> MasterKey? {
        let file = Glibc.open(path, O_RDONLY | O_CLOEXEC)
        guard file >= 0 else {
            if errno == ENOENT { return nil }
            throw MasterKeyError("cannot open the master key file \(path): \(lastErrorText())")
        }
        defer { close(file) }
        var information = stat()
        guard fstat(file, &information) == 0 else {
            throw MasterKeyError("cannot look at the master key file \(path): \(lastErrorText())")
        }
        guard isPrivate(mode: information.st_mode, owner: information.st_uid) else {
            throw MasterKeyError("the master key file \(path) is open to other users; run: chmod 600 \(path)")
        }
        var bytes = [UInt8](repeating: 0, count: byteCount + 1)
        var count = 0
        while count < bytes.count {
            let received = bytes.withUnsafeMutableBytes {
                read(file, $0.baseAddress.map { $0 + count }, $0.count - count)
            }
            if received < 0 && errno == EINTR { continue }
            guard received >= 0 else {
                throw MasterKeyError("cannot read the master key file \(path): \(lastErrorText())")
            }
            if received == 0 { break }
            count += received
        }
        guard count == byteCount, let key = MasterKey(bytes: Array(bytes.prefix(byteCount))) else {
            throw MasterKeyError(
                "the master key file \(path) must have exactly \(byteCount) bytes; restore it from a backup")
        }
        return key
    }

    /// Readable by its owner alone, or, when root owns it, by its group as well: that is how Kubernetes hands a secret to a
    /// process that is not root. PostgreSQL has the same rule for its server key (`ssl_key_file`).
    static func isPrivate(mode: mode_t, owner: uid_t) -> Bool {
        mode & 0o077 == 0 || (owner == 0 && mode & 0o037 == 0)
    }

    private static func create(at path: String) throws(MasterKeyError) {
        let temporary = "\(path).\(getpid())"
        unlink(temporary)
        let file = Glibc.open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard file >= 0 else { throw MasterKeyError("cannot create the master key file \(path): \(lastErrorText())") }
        defer {
            close(file)
            unlink(temporary)
        }
        let bytes = generate().key.withUnsafeBytes { Array($0) }
        guard write(file, bytes, bytes.count) == bytes.count, fsync(file) == 0 else {
            throw MasterKeyError("cannot write the master key file \(path): \(lastErrorText())")
        }
        // `link` does not replace: of two processes that start together one wins, and both read the winner's key.
        guard link(temporary, path) == 0 || errno == EEXIST else {
            throw MasterKeyError("cannot create the master key file \(path): \(lastErrorText())")
        }
        syncFolder(of: path)
    }

    private static func syncFolder(of path: String) {
        let folder = path.lastIndex(of: "/").map { $0 == path.startIndex ? "/" : String(path[..<$0]) } ?? "."
        let descriptor = Glibc.open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { return }
        fsync(descriptor)
        close(descriptor)
    }

    private static func lastErrorText() -> String { String(cString: strerror(errno)) }
}

/// One sentence for the user of the command line.
public struct MasterKeyError: Error, Hashable, Sendable, CustomStringConvertible {
    public var message: String

    init(_ message: String) { self.message = message }

    public var description: String { message }
}
