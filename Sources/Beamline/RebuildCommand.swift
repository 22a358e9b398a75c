// `beamline rebuild`: everything that came from the log, folded again and exchanged for what serves.

import Aggregation
import ArgumentParser
import Foundation
import Observability
import PostgreSQL
import SegmentLog
import Segments
import TraceStore

struct RebuildCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "rebuild",
        abstract: "Rebuild every table that came from the log, while the old ones serve, and exchange them.",
        discussion: """
            The servers go on, ingest included; none needs a restart. At the end the aggregators wait for a moment, the old and the \
            new tables are compared, and exchanged in one transaction if nothing differs. When something does, it is listed, the old \
            tables go on serving (exit code 1), and the same command with --accept-differences has only to catch up. A rebuild that \
            was killed goes on when the command is given again. What the log no longer has comes from the stored documents.
            It prints, for each kind of row, how many the old and the new tables have and how many differ: `documents` are the \
            stored documents trace by trace, `graph minutes` the sums of each minute of the service graph, `facts of links` what \
            traces know of the traces linked to them; other lines bear the name of their table.
            """)

    @OptionGroup var database: DatabaseOptions
    @OptionGroup var log: LogOptions
    @Option(
        help: """
            Replay the records received from then on; what came before is taken from the stored documents. Seconds since 1970, \
            2024-05-01T12:00:00Z, or a distance from now such as 6h. (default: all records of the log)
            """)
    var from: String?
    @Flag(help: "Throw away what an earlier run has begun.") var restart = false
    @Flag(help: "Exchange the tables also when they differ.") var acceptDifferences = false
    @Option(parsing: .unconditional, help: "As of the aggregators: bytes of a trace, 0 = no limit.") var maxTraceBytes = 512_000
    @Option(parsing: .unconditional, help: "As of the aggregators: days counted from receipt.") var retentionDays = 30

    func validate() throws {
        if maxTraceBytes < 0 { throw ValidationError("--max-trace-bytes must be at least 0") }
        if !(1...100_000).contains(retentionDays) { throw ValidationError("--retention-days must be from 1 to 100000") }
    }

    func run() async throws {
        var options = RebuildOptions()
        options.maxTraceBytes = maxTraceBytes
        options.retentionDays = retentionDays
        options.isRestarting = restart
        options.acceptsDifferences = acceptDifferences
        if let from {
            options.from =
                try VerifyCommand.seconds(from, name: "--from", now: Int64(Date().timeIntervalSince1970)) * 1_000_000
        }
        let isExchanged = try await database.withStore { store in
            try await database.withLog(log, store: store) { log in
                try await database.withDatabase { try await rebuild(log, $0, options) }
            }
        }
        if !isExchanged { throw ExitCode.failure }
    }

    /// - Returns: whether the new tables serve.
    private func rebuild(
        _ log: any SegmentLog, _ configuration: PostgresConfiguration, _ options: RebuildOptions
    ) async throws -> Bool {
        let display = ProgressDisplay()
        let outcome: RebuildOutcome
        do {
            outcome = try await Rebuild(
                log: log, database: configuration, options: options, logger: commandLogger,
                clock: { Micros(Date().timeIntervalSince1970 * 1_000_000) }, report: { display.show($0) }
            ).run()
        } catch {
            display.end()
            if let known = error as? TraceStoreError { throw CommandFailure(known.message) }
            if let known = error as? RebuildError { throw CommandFailure(known.description) }
            throw error
        }
        display.end()
        print(outcome, isContinued: outcome.isContinued)
        return outcome.isExchanged
    }

    private func print(_ outcome: RebuildOutcome, isContinued: Bool) {
        if isContinued {
            let begun = Date(timeIntervalSince1970: Double(outcome.plan.begunAt) / 1e6).formatted(.iso8601)
            Swift.print("went on with the rebuild begun at \(begun)")
        }
        var table = [["compared", "old", "new", "differ", ""]]
        for line in outcome.comparisons {
            let cut = line.cut > 0 ? "\(line.cut) more are cut by retention" : ""
            table.append([line.table, "\(line.oldCount)", "\(line.newCount)", "\(line.differing)", cut])
        }
        let widths = (0..<4).map { column in table.map { $0[column].count }.max() ?? 0 }
        for line in table {
            let cells = zip(line, widths).enumerated().map { index, cell in
                let padding = String(repeating: " ", count: cell.1 - cell.0.count)
                return index == 0 ? cell.0 + padding : padding + cell.0
            }
            Swift.print((cells + [line[4]]).joined(separator: "  ").trimmingCharacters(in: .newlines))
        }
        for line in outcome.comparisons where line.differing > 0 {
            for example in line.examples { Swift.print("  \(line.table): \(example)") }
            if line.differing > line.examples.count {
                Swift.print("  \(line.table): … and \(line.differing - line.examples.count) more")
            }
        }
        let seconds = outcome.replayTime.inSeconds
        let rate = seconds > 0 ? " (\(Int(Double(outcome.recordCount) / seconds)) per second)" : ""
        let stored =
            outcome.documentedTraceCount > 0 ? ", \(outcome.documentedTraceCount) traces from stored documents" : ""
        Swift.print("\(outcome.recordCount) records replayed\(rate)\(stored)")
        if outcome.isExchanged {
            let difference = outcome.isIdentical ? "identical" : "different, as accepted"
            Swift.print(
                "exchanged: the new tables (\(difference)) serve; aggregation waited for \(Int(outcome.fencedTime.inSeconds * 1000)) ms"
            )
        } else {
            Swift.print(
                "not exchanged: the old tables serve. Give the command again with --accept-differences to exchange them, or --restart to begin anew"
            )
        }
    }
}
