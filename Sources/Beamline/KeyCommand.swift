// `beamline key`: access keys of a server's accounts. A disabled or deleted key stops working within 30 s.

import APIServer
import AccessControl
import ArgumentParser
import Segments
import TraceStore

struct KeyCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "key", abstract: "Create, list, disable and delete access keys.",
        subcommands: [Create.self, List.self, Disable.self, Enable.self, Delete.self])

    struct Create: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Create an access key and show it, once.")
        @OptionGroup var database: DatabaseOptions
        @Argument(help: "The account, 12 digits.") var account: AccountID
        @Option(help: "What the key may do: write (send), read (query), read-plus (also retrieval and settings) or admin (everything).") var role: Role = .admin
        @Option(help: "Name of the user it belongs to. (default: the root for admin, else the role's name)") var user:
            String?
        @OptionGroup var credentials: CredentialsOptions

        func validate() throws {
            let allowed = "+=,.@_-/"
            if let user,
                user.isEmpty || user.utf8.count > 512 || user.hasPrefix("/") || user.hasSuffix("/")
                    || !user.unicodeScalars.allSatisfy({
                        $0.isASCII
                            && ($0.properties.isAlphabetic || ("0"..."9").contains($0)
                                || allowed.unicodeScalars.contains($0))
                    })
            {
                throw ValidationError("--user must be a name of letters, digits and \(allowed), not `\(user)`")
            }
        }

        func run() async throws {
            let target = credentials.target
            try await database.withStore { store in
                guard try await store.accounts().contains(where: { $0.id == account }) else {
                    throw CommandFailure(
                        "there is no account \(account); create it with `beamline account create \(account)`")
                }
                let masterKey = try await database.masterKey(of: store)
                let key = try await Directory(store: store, masterKey: masterKey).createKey(
                    account: account, user: user ?? (role == .admin ? nil : role.rawValue), role: role,
                    credentials: target, now: SystemClock.now())
                if let target {
                    print("wrote key \(key.id) to \(target.file.path), profile \(target.profile)")
                } else {
                    print(credentialsText(of: key, profile: credentials.profile), terminator: "")
                }
            }
        }
    }

    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List access keys.")
        @OptionGroup var database: DatabaseOptions
        @Option(help: "Only of this account.") var account: AccountID?

        func run() async throws {
            try await database.withStore { store in
                if let account { try await store.requireAccount(account) }
                for key in try await store.accessKeys(account: account) {
                    print(
                        "\(key.id)  \(key.account)  \(key.role.rawValue)  \(key.isActive ? "active" : "disabled")  \(key.principalARN)"
                    )
                }
            }
        }
    }

    struct Disable: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Disable an access key.")
        @OptionGroup var database: DatabaseOptions
        @Argument(help: "Access key id.") var key: String

        func run() async throws {
            try await database.withStore { try await $0.setAccessKeyActive(key, false) }
            print("disabled key \(key)")
        }
    }

    struct Enable: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Make a disabled access key active again.")
        @OptionGroup var database: DatabaseOptions
        @Argument(help: "Access key id.") var key: String

        func run() async throws {
            try await database.withStore { try await $0.setAccessKeyActive(key, true) }
            print("enabled key \(key)")
        }
    }

    struct Delete: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Delete an access key.")
        @OptionGroup var database: DatabaseOptions
        @Argument(help: "Access key id.") var key: String

        func run() async throws {
            try await database.withStore { try await $0.deleteAccessKey(key) }
            print("deleted key \(key)")
        }
    }
}
