// Blocks of observations, the links between traces, and the positions of the partitions: what the graph is made from and
// how far it is complete. Also the merging of a minute's many deltas into one block.

import PostgreSQL
import Segments

extension TraceStore {
    /// All blocks of the minutes; several rows of a minute add up.
    /// - Parameter minutes: minutes since 1970.
    public func graphBlocks(account: AccountID, minutes: Range<Int64>) async throws(TraceStoreError) -> [GraphBlockRow] {
        var statement = PostgresStatement("""
            SELECT minute, encoding, block FROM graph_blocks WHERE account = $1 AND minute >= $2 AND minute < $3
            ORDER BY minute
            """)
        statement.bind(account)
        statement.bind(minutes.lowerBound)
        statement.bind(minutes.upperBound)
        let rows = try await ask(statement)
        let blocks = try decodeBlocks(rows, encoding: 1, block: 2)
        return blocks.enumerated().map { GraphBlockRow(minute: rows.int($0.offset, 0), bytes: $0.element) }
    }

    /// Blocks of some of the minutes, and for all of them the names of the rows they have, of one snapshot.
    /// - Parameters:
    ///   - groupKey: blocks of this group's members, of all versions; nil: of all traces (their version is 0).
    ///   - minutes: minutes since 1970.
    ///   - wanted: the minutes whose blocks are read; ranges that do not overlap.
    public func namedGraphBlocks(
        account: AccountID, groupKey: Int64?, minutes: Range<Int64>, reading wanted: [Range<Int64>]
    ) async throws(TraceStoreError) -> NamedGraphBlocks {
        let table = groupKey == nil ? BlockTable.graph : .group
        let version = groupKey == nil ? "0::int4" : "g.version"
        let isOfGroup = groupKey == nil ? "$2::int8 = 0" : "g.group_key = $2::int8"
        // A row's transaction belongs to its name, and the server's start: nothing that is written anew is taken for what
        // was there before. Rows come in the order of the key; in another one they would only have another name.
        var statement = PostgresStatement("""
            SELECT 0::int4 AS kind, g.minute, \(version) AS version, g.encoding, g.block
            FROM unnest($5::int8[], $6::int8[]) AS w (first, past)
            JOIN \(table.name) g ON g.account = $1 AND \(isOfGroup) AND g.minute >= w.first AND g.minute < w.past
            UNION ALL
            SELECT 1, n.minute, 0, NULL, sha256(
                timestamptz_send(pg_postmaster_start_time()) || int8send(n.minute) || string_agg(
                    int4send(n.version) || int4send(n.partition) || int2send(n.level) || int8send(n.last_offset)
                        || xidsend(n.xmin), ''::bytea))
            FROM (
                SELECT g.minute, \(version) AS version, g.partition, g.level, g.last_offset, g.xmin
                FROM \(table.name) g WHERE g.account = $1 AND \(isOfGroup) AND g.minute >= $3 AND g.minute < $4
                ORDER BY g.minute, \(version), g.partition, g.level, g.last_offset) AS n
            GROUP BY n.minute
            ORDER BY kind, minute
            """)
        statement.bind(account)
        statement.bind(groupKey ?? 0)
        statement.bind(minutes.lowerBound)
        statement.bind(minutes.upperBound)
        var firsts = PostgresArray.int8
        var pasts = PostgresArray.int8
        for range in wanted {
            firsts.append(range.lowerBound)
            pasts.append(range.upperBound)
        }
        statement.bind(firsts)
        statement.bind(pasts)
        let rows = try await ask(statement)
        return try codec.withDecompressor { decompressor throws(TraceStoreError) in
            var result = NamedGraphBlocks(minutesRead: wanted)
            for row in 0..<rows.rowCount {
                let minute = rows.int(row, 1)
                if rows.int(row, 0) == 1 {
                    result.names[minute] = rows.bytes(row, 4)
                } else {
                    let bytes = try BlockEncoding.decode(row, encoding: 3, block: 4, of: rows, with: decompressor)
                    result.rows.append(GroupBlockRow(version: Int(rows.int(row, 2)), minute: minute, bytes: bytes))
                }
            }
            return result
        }
    }

    func decodeBlocks(_ rows: PostgresResult, encoding: Int, block: Int) throws(TraceStoreError) -> [[UInt8]] {
        try codec.withDecompressor { decompressor throws(TraceStoreError) in
            var blocks: [[UInt8]] = []
            blocks.reserveCapacity(rows.rowCount)
            for row in 0..<rows.rowCount {
                blocks.append(
                    try BlockEncoding.decode(row, encoding: encoding, block: block, of: rows, with: decompressor))
            }
            return blocks
        }
    }

    // MARK: Compaction

    /// Where blocks are: all of them, or those of groups, which the version of a group's filter keeps apart.
    enum BlockTable {
        case graph, group

        var name: String { self == .graph ? "graph_blocks" : "group_blocks" }
        /// What names the sum a row belongs to, beside account and minute.
        var group: String { self == .graph ? "0::int8, 0" : "g.group_key, g.version" }
        /// With the parameters $1 and $2.
        var isOfGroup: String { self == .graph ? "$1::int8 = 0 AND $2::int4 = 0" : "g.group_key = $1 AND g.version = $2" }
    }

    /// A minute of an account (and a group) with several rows of one partition.
    private struct Crowd {
        var table: BlockTable
        var account: AccountID
        var minute: Int64
        var groupKey: Int64
        var groupVersion: Int32
    }

    /// Merges the rows a partition has for the same minute of an account into one, each minute in a transaction of its
    /// own; likewise those of each group. Readers see either the old rows or the new one; rows that the partition's writer
    /// adds meanwhile stay. To be called by the partition's owner, for minutes that are quiet.
    /// - Parameters:
    ///   - minutes: minutes since 1970.
    ///   - minimumRows: minutes with fewer rows are left alone.
    ///   - maximumRows: rows merged by one call.
    ///   - merge: adds blocks up to one; nil: everything cancelled out.
    /// - Returns: number of rows that went.
    public func compactGraphBlocks(
        partition: Int, minutes: Range<Int64>, minimumRows: Int = 2, maximumRows: Int = 2_000,
        merge: @Sendable ([[UInt8]]) throws -> [UInt8]?
    ) async throws -> Int {
        var removed = 0
        for table in [BlockTable.graph, .group] where removed < maximumRows {
            let crowds = try await crowds(
                of: table, partition: partition, minutes: minutes, minimumRows: minimumRows, limit: maximumRows)
            for crowd in crowds where removed < maximumRows {
                removed += try await compact(crowd, partition: partition, merge: merge)
            }
        }
        return removed
    }

    private func crowds(
        of table: BlockTable, partition: Int, minutes: Range<Int64>, minimumRows: Int, limit: Int
    ) async throws -> [Crowd] {
        // Accounts are found by hopping from one to the next in the key's index.
        var find = PostgresStatement("""
            WITH RECURSIVE found AS (
                (SELECT account FROM \(table.name) ORDER BY account LIMIT 1)
                UNION ALL
                SELECT (SELECT b.account FROM \(table.name) b WHERE b.account > f.account ORDER BY b.account LIMIT 1)
                FROM found f WHERE f.account IS NOT NULL)
            SELECT b.account, b.minute, b.group_key, b.version FROM found f
            CROSS JOIN LATERAL (
                SELECT g.account, g.minute, \(table.group), count(*) FROM \(table.name) g
                WHERE g.account = f.account AND g.minute >= $2 AND g.minute < $3 AND g.partition = $1
                GROUP BY 1, 2, 3, 4 HAVING count(*) >= $4) AS b (account, minute, group_key, version, rows)
            WHERE f.account IS NOT NULL
            ORDER BY b.rows DESC LIMIT $5
            """)
        find.bind(Int32(clamping: partition))
        find.bind(minutes.lowerBound)
        find.bind(minutes.upperBound)
        find.bind(Int64(max(2, minimumRows)))
        find.bind(Int64(max(1, limit)))
        let rows = try await ask(find)
        return (0..<rows.rowCount).map { row in
            Crowd(
                table: table, account: AccountID(rawValue: UInt64(bitPattern: rows.int(row, 0))), minute: rows.int(row, 1),
                groupKey: rows.int(row, 2), groupVersion: Int32(truncatingIfNeeded: rows.int(row, 3)))
        }
    }

    private func compact(
        _ crowd: Crowd, partition: Int, merge: @Sendable ([[UInt8]]) throws -> [UInt8]?
    ) async throws -> Int {
        var read = PostgresStatement("""
            SELECT level, last_offset, encoding, block, received_day FROM \(crowd.table.name) g
            WHERE \(crowd.table.isOfGroup) AND account = $3 AND minute = $4 AND partition = $5
            ORDER BY level, last_offset
            """)
        read.bind(crowd.groupKey)
        read.bind(crowd.groupVersion)
        read.bind(crowd.account)
        read.bind(crowd.minute)
        read.bind(Int32(clamping: partition))
        let rows = try await ask(read)
        guard rows.rowCount > 1 else { return 0 }
        let merged = try merge(try decodeBlocks(rows, encoding: 2, block: 3))
        let isReplaced = try await replace(rows, of: crowd, partition: partition, by: merged)
        return isReplaced ? rows.rowCount - (merged == nil ? 0 : 1) : 0
    }

    /// - Returns: false when one of the rows has gone meanwhile (retention, a second compactor); nothing happened then.
    private func replace(
        _ rows: PostgresResult, of crowd: Crowd, partition: Int, by merged: [UInt8]?
    ) async throws(TraceStoreError) -> Bool {
        var levels = PostgresArray.int2
        var offsets = PostgresArray.int8
        for row in 0..<rows.rowCount {
            levels.append(Int16(truncatingIfNeeded: rows.int(row, 0)))
            offsets.append(rows.int(row, 1))
        }
        var delete = PostgresStatement("""
            WITH gone AS (
                DELETE FROM \(crowd.table.name) g USING unnest($6::int2[], $7::int8[]) AS w (level, last_offset)
                WHERE \(crowd.table.isOfGroup) AND g.account = $3 AND g.minute = $4 AND g.partition = $5
                  AND g.level = w.level AND g.last_offset = w.last_offset
                RETURNING 1)
            SELECT commit_requires(count(*) = cardinality($7::int8[]), 'BL003') FROM gone
            """)
        delete.bind(crowd.groupKey)
        delete.bind(crowd.groupVersion)
        delete.bind(crowd.account)
        delete.bind(crowd.minute)
        delete.bind(Int32(clamping: partition))
        delete.bind(levels)
        delete.bind(offsets)
        var statements = [delete]
        if let merged {
            let (encodings, bytes) = try encodeBlocks([merged], isThorough: true)
            let isGroup = crowd.table == .group
            var insert = PostgresStatement("""
                INSERT INTO \(crowd.table.name) (account, minute, partition, last_offset, received_day, level, encoding,
                    block\(isGroup ? ", group_key, version" : ""))
                SELECT $1, $2, $3, $4, $5, 1, m.*\(isGroup ? ", $8::int8, $9::int4" : "")
                FROM unnest($6::int2[], $7::bytea[]) AS m
                """)
            insert.bind(crowd.account)
            insert.bind(crowd.minute)
            insert.bind(Int32(clamping: partition))
            insert.bind((0..<rows.rowCount).map { rows.int($0, 1) }.max() ?? 0)
            insert.bind(Int32(clamping: (0..<rows.rowCount).map { rows.int($0, 4) }.max() ?? 0))
            insert.bind(encodings)
            insert.bind(bytes)
            if isGroup {
                insert.bind(crowd.groupKey)
                insert.bind(crowd.groupVersion)
            }
            statements.append(insert)
        }
        do {
            try await writers.run(statements)
            return true
        } catch {
            if error.sqlState == "BL003" { return false }
            throw TraceStoreError(error, "cannot merge graph blocks")
        }
    }

    // MARK: Links

    /// Links of the given consumer traces, with the facts last used.
    public func links(account: AccountID, ofConsumers ids: [TraceID]) async throws(TraceStoreError) -> [StoredLink] {
        try await links(account, ids, by: "consumer_trace")
    }

    /// Links that point at entities of the given traces.
    public func links(account: AccountID, toTargets ids: [TraceID]) async throws(TraceStoreError) -> [StoredLink] {
        try await links(account, ids, by: "target_trace")
    }

    private func links(
        _ account: AccountID, _ ids: [TraceID], by column: StaticString
    ) async throws(TraceStoreError) -> [StoredLink] {
        guard !ids.isEmpty else { return [] }
        var statement = PostgresStatement("""
            SELECT consumer_trace, target_trace, target_entity, facts FROM links
            WHERE account = $1 AND \(column) = ANY ($2::uuid[])
            """)
        statement.bind(account)
        statement.bind(ids)
        let rows = try await ask(statement)
        return (0..<rows.rowCount).map { row in
            StoredLink(
                consumer: TraceID(rows.uuid(row, 0)), target: TraceID(rows.uuid(row, 1)),
                entity: EntityID(rawValue: UInt64(bitPattern: rows.int(row, 2))),
                facts: rows.isNull(row, 3) ? nil : rows.bytes(row, 3))
        }
    }

    // MARK: Positions

    /// How far each partition is folded.
    public func positions() async throws(TraceStoreError) -> [PartitionState] {
        let rows = try await ask(
            PostgresStatement("""
                SELECT partition, position, checked_position, owner_epoch, received_through FROM log_positions
                ORDER BY partition
                """))
        let states = Self.partitionStates(rows)
        watch.report(states.map { ($0.partition, $0.position) })
        return states
    }

    /// Waits until each partition's position has reached the offset. Commits of this process are noticed at once, those
    /// of others by looking every 25 ms.
    /// - Returns: false after the time-out.
    public func waitForPositions(
        _ offsets: [(partition: Int, offset: Int64)], timeout: Duration
    ) async throws(TraceStoreError) -> Bool {
        let clock = ContinuousClock()
        let deadline = clock.now + timeout
        if await watch.wait(for: offsets, all: true, timeout: .zero) { return true }
        while true {
            let states = try await positions()
            let isReached = offsets.allSatisfy { wanted in
                wanted.offset <= 0
                    || states.contains { $0.partition == wanted.partition && $0.position >= wanted.offset }
            }
            if isReached { return true }
            let left = deadline - clock.now
            if left <= .zero || Task.isCancelled { return false }
            if await watch.wait(for: offsets, all: true, timeout: min(left, .milliseconds(25))) { return true }
        }
    }
}
