// `beamline doctor`: is everything there that a server needs? One line for each question; exit code 1 if one of them
// has the wrong answer. It changes nothing.

import APIServer
import AccessControl
import ArgumentParser
import Foundation
import Observability
import PostgreSQL
import SegmentLog
import Segments
import TraceStore

struct DoctorCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "doctor",
        abstract: "Check the database, the log, the master key and the clocks; exit code 1 on a failure.")
    @OptionGroup var database: DatabaseOptions
    @OptionGroup var log: LogOptions

    func run() async throws {
        var report = DoctorReport()
        do {
            try await database.withDatabase { configuration in await examine(configuration, &report) }
        } catch {
            report.fail("database", "\(error)")
        }
        if report.failures > 0 { throw ExitCode.failure }
    }

    private func examine(_ configuration: PostgresConfiguration, _ report: inout DoctorReport) async {
        var options = TraceStoreOptions()
        options.readerCount = 1
        options.writerCount = 1
        let store = TraceStore(database: configuration, options: options, logger: commandLogger)
        let asked = SystemClock.now()
        do {
            let health = try await store.serverHealth()
            report.pass("database", "PostgreSQL \(health.version) answers")
            report.judgeClock(difference: health.serverTime - (asked + SystemClock.now()) / 2)
            report.judgeConnections(health)
        } catch {
            report.fail("database", "\(error)")
            await store.close()
            return
        }
        do {
            try await store.checkSchema()
            report.pass("schema", "the tables are those of beamline \(beamlineVersion)")
            await examineKey(store, &report)
            await examineLog(store, &report)
            await examineLeases(store, &report)
        } catch {
            report.fail("schema", "\(error)")
        }
        await store.close()
    }

    private func examineKey(_ store: TraceStore, _ report: inout DoctorReport) async {
        do {
            let encryption = SecretEncryption(masterKey: try database.masterKey())
            let keys = try await store.accessKeys(account: nil)
            let sealed = keys.filter { (try? encryption.open($0.encryptedSecret, accessKeyID: $0.id)) == nil }
            if let first = sealed.first {
                report.fail(
                    "master key",
                    "it does not open \(sealed.count) of \(counted(keys.count, "stored secret")) (such as that of \(first.id)): is it the file that belongs to this database?"
                )
            } else {
                report.pass("master key", keys.isEmpty ? "there is no stored secret yet" : "it opens all of \(counted(keys.count, "stored secret"))")
            }
        } catch {
            report.fail("master key", "\(error)")
        }
    }

    private func examineLog(_ store: TraceStore, _ report: inout DoctorReport) async {
        do {
            try await database.withLog(log, store: store) { log in
                let ends = try await log.endOffsets()
                report.pass("log", "it answers and has \(counted(ends.count, "partition"))")
                let states = try await store.positions()
                for state in states
                where !ends.indices.contains(state.partition) || state.position > ends[state.partition] {
                    report.fail(
                        "log",
                        "the tables hold partition \(state.partition) up to offset \(state.position), the log ends at \(ends.indices.contains(state.partition) ? ends[state.partition] : 0): it has lost records, or it is another log"
                    )
                }
            }
        } catch {
            report.fail("log", "\(error)")
        }
    }

    /// Partitions change hands when an aggregator comes, goes or dies, and have no owner for some seconds then: that is
    /// no failure unless it lasts.
    private func examineLeases(_ store: TraceStore, _ report: inout DoctorReport) async {
        let patience = Duration.seconds(8)
        let deadline = ContinuousClock.now + patience
        do {
            var view = try await store.clusterView()
            while !view.workers.isEmpty, !view.leases.allSatisfy(\.isLive), ContinuousClock.now < deadline {
                try await Task.sleep(for: .milliseconds(250))
                view = try await store.clusterView()
            }
            let free = view.leases.count(where: \.owner.isEmpty)
            let expired = view.leases.count { !$0.owner.isEmpty && !$0.isLive }
            if view.workers.isEmpty {
                report.warn("leases", "no aggregator is alive; what is sent now is folded when one is started")
            } else if free + expired > 0 {
                report.fail(
                    "leases",
                    "of the partitions \(expired) have an owner that is gone and \(free) have none, for \(patience.components.seconds) s now, though there is an aggregator (\(view.workers.count)): look at their logs"
                )
            } else {
                report.pass(
                    "leases",
                    "all of \(counted(view.leases.count, "partition")) have a live owner (\(counted(view.workers.count, "aggregator")))"
                )
            }
        } catch {
            report.fail("leases", "\(error)")
        }
    }
}

/// The lines of `doctor`.
struct DoctorReport {
    private(set) var failures = 0

    func pass(_ subject: String, _ text: String) { line("ok", subject, text) }
    func warn(_ subject: String, _ text: String) { line("note", subject, text) }
    mutating func fail(_ subject: String, _ text: String) {
        failures += 1
        line("FAIL", subject, text)
    }

    private func line(_ verdict: String, _ subject: String, _ text: String) {
        let oneLine = text.split(whereSeparator: \.isNewline).map { $0.trimmingCharacters(in: .whitespaces) }
        print(
            verdict.padding(toLength: 6, withPad: " ", startingAt: 0) + subject + ": " + oneLine.joined(separator: " "))
    }

    /// Receipt times are those of the nodes; days of the log are PostgreSQL's. Signatures allow 5 minutes.
    /// - Parameter difference: PostgreSQL's clock minus ours.
    mutating func judgeClock(difference: Micros) {
        let text = String(format: "PostgreSQL's is %+.3f s from this machine's", Double(difference) / 1e6)
        if abs(difference) > 2_000_000 {
            fail("clock", text + "; set both by NTP")
        } else {
            pass("clock", text)
        }
    }

    mutating func judgeConnections(_ health: TraceStore.ServerHealth) {
        let free = health.maxConnections - health.connections
        let text = "\(free) of \(health.maxConnections) are free"
        // A node has about ten.
        if free < 10 {
            fail("connections", text + "; raise max_connections")
        } else {
            pass("connections", text)
        }
        if health.oldestTransaction > .seconds(600) {
            warn(
                "transactions",
                "one has been open for \(Int(health.oldestTransaction.inSeconds)) s: nothing can be cleaned up behind it"
            )
        }
    }
}
