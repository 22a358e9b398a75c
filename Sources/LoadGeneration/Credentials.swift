// The key a run signs with: given, from the environment, or from a shared-credentials file such as `DIR/credentials`.

import Glibc

public struct SigningCredentials: Sendable {
    public var accessKeyID: String
    public var secretAccessKey: String
    public var sessionToken: String?

    public init(accessKeyID: String, secretAccessKey: String, sessionToken: String? = nil) {
        self.accessKeyID = accessKeyID
        self.secretAccessKey = secretAccessKey
        self.sessionToken = sessionToken
    }

    /// From a file in the AWS shared-credentials format, else from `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.
    /// - Throws: `LoadError` that says which of them is missing what.
    public static func load(file: String?, profile: String = "default") throws(LoadError) -> SigningCredentials {
        if let file { return try read(file: file, profile: profile) }
        if let key = environment("AWS_ACCESS_KEY_ID"), let secret = environment("AWS_SECRET_ACCESS_KEY") {
            return SigningCredentials(
                accessKeyID: key, secretAccessKey: secret, sessionToken: environment("AWS_SESSION_TOKEN"))
        }
        if let file = environment("AWS_SHARED_CREDENTIALS_FILE") { return try read(file: file, profile: profile) }
        throw LoadError(
            "no credentials: give --credentials FILE (standalone writes DIR/credentials) or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    }

    private static func environment(_ name: String) -> String? {
        guard let value = getenv(name) else { return nil }
        let text = String(cString: value)
        return text.isEmpty ? nil : text
    }

    private static func read(file: String, profile: String) throws(LoadError) -> SigningCredentials {
        guard let opened = fopen(file, "r") else {
            throw LoadError("cannot read credentials file \(file): \(String(cString: strerror(errno)))")
        }
        defer { fclose(opened) }
        var bytes: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 4096)
        while true {
            let count = fread(&chunk, 1, chunk.count, opened)
            if count == 0 { break }
            bytes += chunk[..<count]
        }
        return try parse(String(decoding: bytes, as: UTF8.self), profile: profile, file: file)
    }

    static func parse(_ text: String, profile: String, file: String) throws(LoadError) -> SigningCredentials {
        func trimmed(_ text: Substring) -> String {
            var rest = text.drop(while: { $0 == " " || $0 == "\t" })
            while let last = rest.last, last == " " || last == "\t" || last == "\r" { rest.removeLast() }
            return String(rest)
        }
        var values: [String: String] = [:]
        var isInside = false
        for line in text.split(separator: "\n") {
            let content = trimmed(line)
            if content.hasPrefix("[") {
                isInside = content == "[\(profile)]"
            } else if isInside, let equals = content.firstIndex(of: "=") {
                values[trimmed(content[..<equals])] = trimmed(content[content.index(after: equals)...])
            }
        }
        guard let key = values["aws_access_key_id"], let secret = values["aws_secret_access_key"] else {
            throw LoadError("credentials file \(file) has no aws_access_key_id and aws_secret_access_key under [\(profile)]")
        }
        return SigningCredentials(accessKeyID: key, secretAccessKey: secret, sessionToken: values["aws_session_token"])
    }
}
