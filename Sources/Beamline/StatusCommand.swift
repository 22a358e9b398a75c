// `beamline status`: who is there, who owns which partition, and how far behind the tables are.

import APIServer
import ArgumentParser
import Foundation
import Observability
import SegmentLog
import Segments
import TraceStore
import XRayAPI

struct StatusCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "status", abstract: "Show the nodes, the owners of the log's partitions, and the lag.")
    @OptionGroup var database: DatabaseOptions
    @OptionGroup var log: LogOptions
    @Flag(help: "One JSON object instead of tables.") var json = false

    func run() async throws {
        let status = try await database.withStore { store in
            try await database.withLog(log, store: store) { log in try await ClusterStatus(store: store, log: log) }
        }
        print(json ? try status.json() : status.text(), terminator: json ? "\n" : "")
    }
}

/// What `status` shows.
struct ClusterStatus {
    struct Partition {
        var number: Int
        /// Name of the node; nil: nobody.
        var owner: String?
        var epoch: Int64
        var position: Int64
        var end: Int64
        var lagRecords: Int64
        var lagSeconds: Double
    }

    var nodes: [NodeState]
    var partitions: [Partition]
    var completeTo: Micros
    var now: Micros

    init(store: TraceStore, log: any SegmentLog) async throws {
        now = SystemClock.now()
        nodes = try await store.nodes()
        let view = try await store.clusterView()
        let states = try await store.positions()
        let names = Dictionary(nodes.map { ($0.node.id, $0.node.name) }) { $1 }
        let numbers = 0..<max(log.partitionCount, (states.map(\.partition).max() ?? -1) + 1)
        // A partition that nobody has claimed yet is at the start of the log.
        let positions = numbers.map { number in
            LogPosition(partition: number, offset: states.first { $0.partition == number }?.position ?? 0)
        }
        let backlog = try await log.backlog(beyond: positions)
        completeTo = backlog.compactMap(\.oldestReceipt).map { $0 - 1 }.reduce(now, min)
        partitions = []
        for position in positions {
            let lease = view.leases.first { $0.partition == position.partition }
            let waiting = backlog.first { $0.partition == position.partition }
            partitions.append(
                Partition(
                    number: position.partition,
                    owner: lease.flatMap { $0.isLive ? names[$0.owner] ?? $0.owner : nil }, epoch: lease?.epoch ?? 0,
                    position: position.offset, end: waiting?.endOffset ?? position.offset,
                    lagRecords: waiting?.recordCount ?? 0,
                    lagSeconds: waiting?.oldestReceipt.map { max(0, Double(now - $0) / 1e6) } ?? 0))
        }
    }

    func json() throws -> String {
        let object: [String: Any] = [
            "nodes": nodes.map { state in
                [
                    "id": state.node.id, "role": state.node.role.rawValue, "name": state.node.name,
                    "host": state.node.host, "pid": Int(state.node.processID), "addresses": state.node.addresses,
                    "version": state.node.version, "started_at": TimestampText.rfc3339(state.startedAt),
                    "heartbeat_age_seconds": state.heartbeatAge.inSeconds, "live": state.isLive,
                ] as [String: Any]
            },
            "partitions": partitions.map { partition in
                [
                    "partition": partition.number, "owner": partition.owner ?? NSNull(), "epoch": partition.epoch,
                    "position": partition.position, "end": partition.end, "lag_records": partition.lagRecords,
                    "lag_seconds": partition.lagSeconds,
                ] as [String: Any]
            },
            "complete_to": TimestampText.rfc3339(completeTo),
        ]
        return String(
            decoding: try JSONSerialization.data(
                withJSONObject: object, options: [.sortedKeys, .withoutEscapingSlashes]), as: UTF8.self)
    }

    func text() -> String {
        let nodeRows = nodes.map { state in
            [
                state.node.role.rawValue, state.node.name, "\(state.node.host):\(state.node.processID)",
                state.node.addresses, state.node.version,
                String(format: "%.1f s ago", state.heartbeatAge.inSeconds) + (state.isLive ? "" : " (gone)"),
            ]
        }
        let partitionRows = partitions.map { partition in
            [
                "\(partition.number)", partition.owner ?? "nobody", "\(partition.epoch)", "\(partition.position)",
                "\(partition.end)", "\(partition.lagRecords)", String(format: "%.1f s", partition.lagSeconds),
            ]
        }
        return table(["role", "name", "process", "listens on", "version", "heartbeat"], nodeRows) + "\n"
            + table(["partition", "owner", "epoch", "position", "end", "records behind", "behind"], partitionRows)
            + "\n"
            + "complete to \(TimestampText.rfc3339(completeTo))\n"
    }
}

/// Columns padded to their widest cell, two spaces between them.
func table(_ header: [String], _ rows: [[String]]) -> String {
    let widths = header.indices.map { column in ([header] + rows).map { $0[column].count }.max() ?? 0 }
    var text = ""
    for row in [header] + rows {
        let cells = zip(row, widths).map { $0.padding(toLength: $1, withPad: " ", startingAt: 0) }
        var line = cells.joined(separator: "  ")
        while line.last == " " { line.removeLast() }
        text += line + "\n"
    }
    return text
}
