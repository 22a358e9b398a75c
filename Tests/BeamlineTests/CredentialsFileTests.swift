// A new key in a credentials file: nothing else in the file may change.

import AccessControl
import Foundation
import Testing

@testable import Beamline

private func withFile(_ text: String?, _ body: (CredentialsFile, _ read: () throws -> String) throws -> Void) throws {
    let folder = FileManager.default.temporaryDirectory.path + "/beamline-credentials-\(UUID().uuidString)"
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(atPath: folder) }
    let path = folder + "/credentials"
    if let text { try text.write(toFile: path, atomically: false, encoding: .utf8) }
    try body(CredentialsFile(path)) { try String(contentsOfFile: path, encoding: .utf8) }
}

// If this fails, `key create --credentials ~/.aws/credentials` destroys keys that nobody can show again.
@Test func `a key is added as a profile and everything else stays, byte for byte`() throws {
    let before =
        "# mine\n[default]\naws_access_key_id=AKIAOLD\naws_secret_access_key=old\n\n[ work ]\nregion = eu-west-1\n"
    try withFile(before) { file, read in
        let key = AccessKey.generate()
        try file.write(key, profile: "beamline", isReplacing: false)
        let after = try read()
        #expect(after.hasPrefix(before))
        #expect(
            after.dropFirst(before.count)
                == "\n[beamline]\naws_access_key_id = \(key.id)\naws_secret_access_key = \(key.secret.text)\n")
        #expect(try file.profiles() == ["default": "AKIAOLD", "work": nil, "beamline": key.id])
        let mode = try FileManager.default.attributesOfItem(atPath: file.path)[.posixPermissions] as? Int
        #expect(mode == 0o600)
    }
}

// If this fails, a key that was there is gone although nobody asked for that.
@Test(arguments: ["default", "work"])
func `a profile that is there is replaced only when asked to`(profile: String) throws {
    let before =
        "[default]\naws_access_key_id=A\n[work]\nregion = eu-west-1\naws_secret_access_key = s\naws_session_token = t\n"
    try withFile(before) { file, read in
        #expect { try file.write(.generate(), profile: profile, isReplacing: false) } throws: {
            "\($0)".contains("has a profile `\(profile)` already") && "\($0)".contains("--force")
        }
        #expect(try read() == before)
        let key = AccessKey.generate()
        try file.write(key, profile: profile, isReplacing: true)
        let profiles = try file.profiles()
        #expect(profiles[profile] == key.id)
        let after = try read()
        if profile == "work" {
            #expect(after.hasPrefix("[default]\naws_access_key_id=A\n[work]\n"))
            #expect(after.contains("region = eu-west-1") && !after.contains("aws_session_token"))
            #expect(!after.contains("= s\n"))
        } else {
            #expect(after.hasSuffix("[work]\nregion = eu-west-1\naws_secret_access_key = s\naws_session_token = t\n"))
            #expect(!after.contains("aws_access_key_id=A\n"))
        }
    }
}

// If this fails, the file of somebody who keeps it elsewhere becomes two files.
@Test func `a symbolic link is followed, and a file that is not there is made`() throws {
    try withFile(nil) { file, read in
        let link = file.path + ".link"
        try "[a]\naws_access_key_id = A\n".write(toFile: file.path, atomically: false, encoding: .utf8)
        try FileManager.default.createSymbolicLink(atPath: link, withDestinationPath: file.path)
        try CredentialsFile(link).write(.generate(), profile: "b", isReplacing: false)
        #expect(try read().hasPrefix("[a]\naws_access_key_id = A\n"))
        #expect(try FileManager.default.destinationOfSymbolicLink(atPath: link) == file.path)
        try FileManager.default.removeItem(atPath: file.path)
        let fresh = CredentialsFile(file.path)
        try fresh.write(.generate(), profile: "default", isReplacing: false)
        #expect(try read().hasPrefix("[default]\naws_access_key_id = "))
    }
}

// If this fails, a profile's name breaks the file.
@Test(arguments: ["", "a]", "a b", "a\nb", "[x", "ü"])
func `names that cannot stand between brackets are refused`(name: String) {
    #expect(!CredentialsFile.isProfileName(name))
    #expect(CredentialsFile.isProfileName("210987654321"))
}

// If this fails, a slip in the address of the database is taken for the name of one.
@Test func `a database address is a URL or settings of libpq`() {
    for good in ["postgresql://b@h/d", "postgres://h", "host=h dbname=d", "service=x"] {
        #expect(throws: Never.self) { try requireConnectionString(good, origin: "--database-url") }
    }
    for bad in ["junk", "", "https://h/d", "h:5432"] {
        #expect { try requireConnectionString(bad, origin: "--database-url") } throws: {
            "\($0)".contains("--database-url must be a URL")
        }
    }
}
