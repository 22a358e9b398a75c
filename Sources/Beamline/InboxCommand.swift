// `beamline inbox`: documents that were acknowledged and could not be used later, each with its reason.

import ArgumentParser
import Foundation
import Segments
import TraceStore

struct InboxCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "inbox",
        abstract: "Show (or clear) the rejected-document inbox: one JSON object per line, newest first.")
    @OptionGroup var database: DatabaseOptions
    @Option(help: "Only of this account.") var account: AccountID?
    @Option(help: "At most so many.") var limit = 100
    @Flag(help: "Delete the account's entries instead of showing them.") var clear = false

    func validate() throws {
        if clear && account == nil { throw ValidationError("--clear needs --account") }
        if limit < 1 { throw ValidationError("--limit must be at least 1") }
    }

    func run() async throws {
        try await database.withStore { store in
            if let account { try await store.requireAccount(account) }
            if clear, let account {
                print("deleted \(try await store.clearInbox(account: account)) documents from the inbox of \(account)")
                return
            }
            for entry in try await store.inbox(account: account, limit: limit) { print(try Self.line(entry)) }
        }
    }

    private static func line(_ entry: InboxEntry) throws -> String {
        var object: [String: Any] = [
            "account": "\(entry.account)", "topic": entry.topic, "partition": entry.partition, "offset": entry.offset,
            "received_at": Double(entry.receivedAt) / 1e6, "code": entry.code, "reason": entry.reason,
            "document": String(decoding: entry.document, as: UTF8.self),
        ]
        if let trace = entry.traceID { object["trace_id"] = "\(trace)" }
        return String(
            decoding: try JSONSerialization.data(
                withJSONObject: object, options: [.sortedKeys, .withoutEscapingSlashes]), as: UTF8.self)
    }
}
