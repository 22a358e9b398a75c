// `beamline account`: the accounts of a server.

import APIServer
import AccessControl
import ArgumentParser
import Segments
import TraceStore

struct AccountCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "account", abstract: "Create, list, disable and delete accounts.",
        subcommands: [Create.self, List.self, Disable.self, Enable.self, Delete.self])

    struct Create: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Create an account, with a root key if --credentials is given.",
            discussion: "An account that was deleted and is created again sees its old traces, as long as they are kept.")
        @OptionGroup var database: DatabaseOptions
        @Argument(help: "12 digits.") var account: AccountID
        @Option(help: "A name to show.") var name: String?
        @OptionGroup var key: CredentialsOptions

        func run() async throws {
            let target = key.target
            try await database.withStore { store in
                // Before anything is stored: an account whose key cannot be made would have to be repaired by hand.
                try target?.requireFree()
                let masterKey = target == nil ? nil : try await database.masterKey(of: store)
                try await store.createAccount(
                    Account(id: account, name: name ?? "\(account)", state: .active, createdAt: SystemClock.now()))
                print("created account \(account)")
                if try await store.hasTraces(account: account) {
                    print(
                        "traces of a deleted account \(account) are still stored: the new account sees them until their retention ends"
                    )
                }
                guard let target, let masterKey else { return }
                let key = try await Directory(store: store, masterKey: masterKey)
                    .createKey(account: account, user: nil, role: .admin, credentials: target, now: SystemClock.now())
                print("wrote root key \(key.id) to \(target.file.path), profile \(target.profile)")
            }
        }
    }

    struct List: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "List the accounts.")
        @OptionGroup var database: DatabaseOptions

        func run() async throws {
            try await database.withStore { store in
                for account in try await store.accounts() {
                    print("\(account.id)  \(account.state.rawValue)  \(account.name)")
                }
            }
        }
    }

    struct Disable: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract: "Suspend an account: its keys are refused within 30 s, its data stay.")
        @OptionGroup var database: DatabaseOptions
        @Argument(help: "12 digits.") var account: AccountID

        func run() async throws {
            try await database.withStore { try await $0.setAccountState(account, .suspended) }
            print("disabled account \(account)")
        }
    }

    struct Enable: AsyncParsableCommand {
        static let configuration = CommandConfiguration(abstract: "Make a suspended account active again.")
        @OptionGroup var database: DatabaseOptions
        @Argument(help: "12 digits.") var account: AccountID

        func run() async throws {
            try await database.withStore { try await $0.setAccountState(account, .active) }
            print("enabled account \(account)")
        }
    }

    struct Delete: AsyncParsableCommand {
        static let configuration = CommandConfiguration(
            abstract:
                "Delete an account and its keys, refused within 30 s; its traces end with their retention.",
            discussion: "Whoever creates the account again before that sees them.")
        @OptionGroup var database: DatabaseOptions
        @Argument(help: "12 digits.") var account: AccountID

        func run() async throws {
            try await database.withStore { try await $0.deleteAccount(account) }
            print("deleted account \(account)")
        }
    }
}

extension AccountID: ExpressibleByArgument {
    public init?(argument: String) { self.init(argument) }
}

extension Role: ExpressibleByArgument {}
