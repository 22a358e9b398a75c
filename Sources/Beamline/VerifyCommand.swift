// `beamline verify`: the map equals the traces, or it says where not.

import ArgumentParser
import Foundation
import LoadGeneration
import Segments
import TraceStore
import Verification

struct VerifyCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "verify",
        abstract: "Recount the service graph of a window from the stored documents and compare it with what is served.",
        discussion: """
            Reads the tables (--data-dir, --database-url), where documents are compared with the stored sums and any window is \
            allowed, or the API (--endpoint), where documents of BatchGetTraces are compared with GetServiceGraph over at most 24 \
            hours. Times: seconds since 1970, 2024-05-01T12:00:00Z, or a distance from now such as 90s, 15m, 6h, 7d. Exit code 1 on any \
            difference.
            """)

    @Option(help: "Start of the window, included.") var from: String
    @Option(help: "End of the window, not included. (default: now)") var to: String?
    @OptionGroup var database: DatabaseOptions
    @Option(help: "Only this account. (default: all accounts of the database; with --endpoint 123456789012)")
    var account: AccountID?
    @Option(help: "http://HOST:PORT of an API to verify from outside; plain HTTP, so with TLS give --database-url.") var endpoint: String?
    @Option(help: "With --endpoint: a shared-credentials file. (default: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)")
    var credentials: String?
    @Option(help: "Region to sign for.") var region = "us-east-1"
    @Option(help: "With --endpoint: also search traces whose root started so long before the window.") var lookBack = "1h"
    @Option(help: "At most so many differences are listed.") var limit = 50

    func run() async throws {
        let now = Int64(Date().timeIntervalSince1970)
        let start = try Self.seconds(from, name: "--from", now: now)
        let end = try to.map { try Self.seconds($0, name: "--to", now: now) } ?? now + 1
        guard start < end else { throw CommandFailure("--from must lie before --to") }
        let window = start..<end
        var results: [VerificationResult] = []
        if let endpoint {
            if end - start > 86_400 { throw CommandFailure("with --endpoint the window can be at most 24 hours long") }
            guard let earlier = Self.distance(lookBack) else { throw CommandFailure("--look-back must be like 90s, 15m, 6h or 7d") }
            let client = APIClient(
                endpoint: try Endpoint(parsing: endpoint), credentials: try SigningCredentials.load(file: credentials), region: region)
            let account = account ?? AccountID(rawValue: 123_456_789_012)
            results.append(try await GraphVerification.run(client, account: account, window: window, lookBackSeconds: earlier))
        } else {
            results = try await database.withStore { store in
                if let account { try await store.requireAccount(account) }
                let accounts = if let account { [account] } else { try await store.accounts().map(\.id) }
                guard !accounts.isEmpty else { throw CommandFailure("there is no account yet: nothing to verify") }
                var results: [VerificationResult] = []
                for account in accounts {
                    results.append(try await GraphVerification.run(store, account: account, window: window))
                }
                return results
            }
        }

        for result in results {
            let verdict = result.differences.isEmpty ? "no difference" : counted(result.differences.count, "difference")
            let groups = result.groups == 0 ? "" : " and for \(counted(result.groups, "group"))"
            print(
                "account \(result.account): \(counted(result.observations, "observation")) compared, recounted from \(counted(result.documents, "document")) of \(counted(result.traces, "trace"))\(groups): \(verdict)"
            )
            for difference in result.differences.prefix(limit) { print("  " + difference) }
            if result.differences.count > limit { print("  … and \(result.differences.count - limit) more") }
        }
        if results.contains(where: { !$0.differences.isEmpty }) { throw ExitCode.failure }
    }

    static func seconds(_ text: String, name: String, now: Int64) throws -> Int64 {
        if text == "now" { return now }
        if let whole = Int64(text) { return whole }
        if let distance = distance(text) { return now - distance }
        if let date = try? Date(text, strategy: .iso8601) { return Int64(date.timeIntervalSince1970.rounded(.down)) }
        throw CommandFailure("\(name) must be seconds since 1970, a time such as 2024-05-01T12:00:00Z, or a distance such as 15m, not `\(text)`")
    }

    static func distance(_ text: String) -> Int64? {
        let units: [Character: Int64] = ["s": 1, "m": 60, "h": 3600, "d": 86_400]
        guard let last = text.last, let unit = units[last], let count = Int64(text.dropLast()), count >= 0, count < 1 << 40 else { return nil }
        return count * unit
    }
}
