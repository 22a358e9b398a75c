// Keys, their encryption, the master key file, and the forms of time.

import Crypto
import Glibc
import Segments
import Testing

@testable import AccessControl

private func withFolder(_ use: (String) throws -> Void) throws {
    var template = Array("/tmp/beamline-access-XXXXXX".utf8CString)
    _ = template.withUnsafeMutableBufferPointer { $0.baseAddress.map { mkdtemp($0) } }
    let folder = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    defer {
        unlink(folder + "/master.key")
        rmdir(folder)
    }
    try use(folder)
}

private struct CountingGenerator: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        return state
    }
}

@Suite struct SecretTests {
    // If this fails, generated keys are refused by SDKs or by our own verification.
    @Test func `generated keys have the shape of AWS keys`() {
        var generator = CountingGenerator(state: 1)
        var ids: Set<String> = []
        for _ in 0..<200 {
            let key = AccessKey.generate(using: &generator)
            ids.insert(key.id)
            #expect(key.id.utf8.count == 20 && key.id.hasPrefix("AKIA"))
            #expect(key.id.dropFirst(4).allSatisfy { "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567".contains($0) })
            #expect(key.secret.text.utf8.count == 40)
            #expect(
                key.secret.text.allSatisfy { $0.isASCII && ($0.isLetter || $0.isNumber || $0 == "+" || $0 == "/") })
        }
        #expect(ids.count == 200)
        #expect(AccessKey.generate() != AccessKey.generate())
    }

    // If this fails, a log line or a crash report shows a secret.
    @Test func `a secret does not print itself`() {
        let credential = Credential(
            accessKeyID: "AKIA", secret: SecretKey("hush"), principalARN: "", account: .init(rawValue: 1), role: .read)
        var dumped = ""
        dump(credential, to: &dumped)
        for text in ["\(credential)", String(reflecting: credential), dumped] { #expect(!text.contains("hush")) }
    }

    // If this fails, keys stop working after a restart, or a stolen row can be used for another key.
    @Test func `a sealed secret opens only for its key id and master key`() throws {
        let masterKey = MasterKey.generate()
        let encryption = SecretEncryption(masterKey: masterKey)
        let secret = AccessKey.generate().secret
        let sealed = try encryption.seal(secret, accessKeyID: "AKIA1")
        #expect(try SecretEncryption(masterKey: masterKey).open(sealed, accessKeyID: "AKIA1") == secret)
        #expect(try encryption.seal(secret, accessKeyID: "AKIA1") != sealed)

        var damaged = sealed
        damaged[sealed.count / 2] ^= 1
        #expect(throws: SecretEncryptionError.self) { try encryption.open(sealed, accessKeyID: "AKIA2") }
        #expect(throws: SecretEncryptionError.self) { try encryption.open(damaged, accessKeyID: "AKIA1") }
        #expect(throws: SecretEncryptionError.self) { try encryption.open([], accessKeyID: "AKIA1") }
        #expect(throws: SecretEncryptionError.self) {
            try SecretEncryption(masterKey: .generate()).open(sealed, accessKeyID: "AKIA1")
        }
    }

    // If this fails, a restart makes a new master key and every stored secret is lost, or others can read it.
    @Test func `the master key file is made once, for its owner only`() throws {
        try withFolder { folder in
            let path = folder + "/master.key"
            #expect(throws: MasterKeyError.self) { try MasterKey.load(at: path) }
            let first = try MasterKey.loadOrCreate(at: path)
            let second = try MasterKey.loadOrCreate(at: path)
            #expect(first.key == second.key)
            #expect(try MasterKey.load(at: path).key == first.key)
            #expect(first.derivedKey(for: "a") != first.derivedKey(for: "b"))
            var information = stat()
            #expect(stat(path, &information) == 0)
            #expect(information.st_mode & 0o777 == 0o600)
            #expect(information.st_size == 32)
        }
    }

    // If this fails, a wrong key file is used silently, or the reason is a number.
    @Test func `a wrong master key file is refused with a sentence`() throws {
        try withFolder { folder in
            let path = folder + "/master.key"
            _ = try MasterKey.loadOrCreate(at: path)
            chmod(path, 0o644)
            #expect { try MasterKey.loadOrCreate(at: path) } throws: { "\($0)".contains("run: chmod 600 \(path)") }
            chmod(path, 0o600)
            #expect(truncate(path, 31) == 0)
            #expect { try MasterKey.loadOrCreate(at: path) } throws: { "\($0)".contains("exactly 32 bytes") }
        }
        #expect { try MasterKey.loadOrCreate(at: "/nowhere/master.key") } throws: {
            "\($0)".contains("No such file or directory")
        }
        #expect(MasterKey(bytes: [1, 2, 3]) == nil)
    }

    // If this fails, nodes in Kubernetes refuse their key, or a key that anybody can read is accepted.
    @Test(
        arguments: [
            (0o600, 10001, true), (0o400, 10001, true), (0o440, 10001, false), (0o640, 10001, false),
            (0o600, 0, true), (0o440, 0, true), (0o640, 0, true), (0o660, 0, false), (0o444, 0, false),
            (0o444, 10001, false),
        ] as [(mode_t, uid_t, Bool)])
    func `a key file of root may be readable by its group, no other by anybody else`(
        mode: mode_t, owner: uid_t, isPrivate: Bool
    ) {
        #expect(MasterKey.isPrivate(mode: 0o100000 | mode, owner: owner) == isPrivate)
    }

    // If this fails, SDKs compute a wrong clock skew from our `Date` header, or valid signatures look expired.
    @Test(
        arguments: [
            (0, "19700101T000000Z", "Thu, 01 Jan 1970 00:00:00 GMT"),
            (951_782_400, "20000229T000000Z", "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_714_564_800, "20240501T120000Z", "Wed, 01 May 2024 12:00:00 GMT"),
            (1_735_689_599, "20241231T235959Z", "Tue, 31 Dec 2024 23:59:59 GMT"),
            (-1, "19691231T235959Z", "Wed, 31 Dec 1969 23:59:59 GMT"),
            (253_402_300_799, "99991231T235959Z", "Fri, 31 Dec 9999 23:59:59 GMT"),
        ] as [(Int64, String, String)])
    func `times are written and read`(seconds: Int64, basic: String, http: String) {
        #expect(UTCTime.basic(seconds) == basic)
        #expect(UTCTime.httpDate(seconds) == http)
        #expect(UTCTime.parseBasic(basic.utf8) == seconds)
        #expect(UTCTime.parseHTTPDate(http.utf8) == seconds)
    }

    // If this fails, some day of some year is off by one.
    @Test func `every day of 400 years is read back and follows the day before`() {
        for day in stride(from: Int64(-25_000), through: 121_000, by: 1) {
            let seconds = day * 86_400 + 43_200
            #expect(UTCTime.parseBasic(UTCTime.basic(seconds).utf8) == seconds)
            if day % 97 == 0 { #expect(UTCTime.parseHTTPDate(UTCTime.httpDate(seconds).utf8) == seconds) }
        }
    }

    // If this fails, a malformed date crashes the server or passes as another one.
    @Test(arguments: [
        "", "20240501T120000", "20240501 120000Z", "20240532T120000Z", "20230229T000000Z", "20241301T000000Z",
        "20240501T250000Z", "2024050aT120000Z", "20240501T120000z",
    ])
    func `what is no date is none`(text: String) {
        #expect(UTCTime.parseBasic(text.utf8) == nil)
        #expect(UTCTime.parseHTTPDate(text.utf8) == nil)
    }
}
