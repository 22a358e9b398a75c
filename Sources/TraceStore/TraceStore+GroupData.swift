// What is derived from the log for groups: members, their blocks, counts by the minute. Written with the batch that
// changed them, behind the same guard.

import PostgreSQL
import Segments

/// What a batch changes for groups.
public struct GroupChanges: Sendable {
    /// Every membership that is new or whose row changes.
    public var members: [GroupMember] = []
    /// At most one per (account, group, version, minute, partition).
    public var blocks: [GroupBlockDelta] = []
    public var counts: [GroupCountDelta] = []

    public init() {}

    public var isEmpty: Bool { members.isEmpty && blocks.isEmpty && counts.isEmpty }
}

/// A trace that a group's filter matched.
public struct GroupMember: Sendable, Equatable {
    public var account: AccountID
    public var trace: TraceID
    public var groupKey: Int64
    /// Of the filter that matched.
    public var version: Int
    /// Minutes since 1970: receipt of the document with which it matched.
    public var minute: Int64
    /// `OutcomeClass.rawValue` of the root as it is counted now.
    public var outcome: UInt8
    /// Facts of the links that resolve within the group; nil = none. Opaque here.
    public var links: [UInt8]?

    public init(
        account: AccountID, trace: TraceID, groupKey: Int64, version: Int, minute: Int64, outcome: UInt8,
        links: [UInt8]?
    ) {
        self.account = account
        self.trace = trace
        self.groupKey = groupKey
        self.version = version
        self.minute = minute
        self.outcome = outcome
        self.links = links
    }
}

/// A `GraphBlockDelta` of a group.
public struct GroupBlockDelta: Sendable, Equatable {
    public var groupKey: Int64
    public var version: Int
    public var delta: GraphBlockDelta

    public init(groupKey: Int64, version: Int, delta: GraphBlockDelta) {
        self.groupKey = groupKey
        self.version = version
        self.delta = delta
    }
}

/// What a batch adds to the member counts of a minute; may be negative.
public struct GroupCountDelta: Sendable, Equatable {
    public var account: AccountID
    public var groupKey: Int64
    public var minute: Int64
    public var partition: Int
    public var counts: GroupCounts

    public init(account: AccountID, groupKey: Int64, minute: Int64, partition: Int, counts: GroupCounts) {
        self.account = account
        self.groupKey = groupKey
        self.minute = minute
        self.partition = partition
        self.counts = counts
    }
}

/// `ApproximateTraceCount` of a group and minute, by the class of the traces' roots.
public struct GroupCounts: Sendable, Equatable {
    public var ok: Int64 = 0
    public var error: Int64 = 0
    public var fault: Int64 = 0
    public var throttle: Int64 = 0
    public var total: Int64 { ok + error + fault + throttle }

    public init() {}
}

/// An encoded block of a group; all rows of a minute have to be added up, those of all versions too.
public struct GroupBlockRow: Sendable, Equatable {
    public var version: Int
    public var minute: Int64
    public var bytes: [UInt8]

    public init(version: Int, minute: Int64, bytes: [UInt8]) {
        self.version = version
        self.minute = minute
        self.bytes = bytes
    }
}

extension TraceStore {
    // MARK: Commit

    func groupStatements(
        _ changes: GroupChanges, receivedDay: @autoclosure () -> Int32
    ) throws(TraceStoreError) -> [PostgresStatement] {
        guard !changes.isEmpty else { return [] }
        var statements: [PostgresStatement] = []
        if !changes.members.isEmpty { statements.append(memberStatement(changes.members)) }
        if !changes.blocks.isEmpty {
            statements.append(try groupBlockStatement(changes.blocks, receivedDay: receivedDay()))
        }
        if !changes.counts.isEmpty { statements.append(countStatement(changes.counts)) }
        return statements
    }

    private func memberStatement(_ members: [GroupMember]) -> PostgresStatement {
        var accounts = PostgresArray.int8
        var ids = PostgresArray.uuid
        var keys = PostgresArray.int8
        var versions = PostgresArray.int4
        var minutes = PostgresArray.int8
        var outcomes = PostgresArray.int2
        var links = PostgresArray.bytea
        for member in members {
            accounts.append(member.account)
            ids.append(member.trace)
            keys.append(member.groupKey)
            versions.append(Int32(clamping: member.version))
            minutes.append(member.minute)
            outcomes.append(Int16(member.outcome))
            if let bytes = member.links { links.append(bytes: bytes) } else { links.appendNull() }
        }
        var statement = PostgresStatement(
            """
            INSERT INTO group_members (account, trace_id, group_key, version, minute, outcome, links)
            SELECT * FROM unnest($1::int8[], $2::uuid[], $3::int8[], $4::int4[], $5::int8[], $6::int2[], $7::bytea[])
            ON CONFLICT (account, trace_id, group_key) DO UPDATE SET outcome = excluded.outcome, links = excluded.links
            """)
        for column in [accounts, ids, keys, versions, minutes, outcomes, links] { statement.bind(column) }
        return statement
    }

    private func groupBlockStatement(
        _ blocks: [GroupBlockDelta], receivedDay: Int32
    ) throws(TraceStoreError) -> PostgresStatement {
        var accounts = PostgresArray.int8
        var keys = PostgresArray.int8
        var versions = PostgresArray.int4
        var minutes = PostgresArray.int8
        var partitions = PostgresArray.int4
        var offsets = PostgresArray.int8
        for block in blocks {
            accounts.append(block.delta.account)
            keys.append(block.groupKey)
            versions.append(Int32(clamping: block.version))
            minutes.append(block.delta.minute)
            partitions.append(Int32(clamping: block.delta.partition))
            offsets.append(block.delta.lastOffset)
        }
        let (encodings, bytes) = try encodeBlocks(blocks.map(\.delta.bytes))
        var statement = PostgresStatement(
            """
            INSERT INTO group_blocks (account, group_key, version, minute, partition, last_offset, encoding, block, level,
                received_day)
            SELECT *, 0, $9 FROM unnest($1::int8[], $2::int8[], $3::int4[], $4::int8[], $5::int4[], $6::int8[], $7::int2[],
                $8::bytea[])
            """)
        for column in [accounts, keys, versions, minutes, partitions, offsets, encodings, bytes] {
            statement.bind(column)
        }
        statement.bind(receivedDay)
        return statement
    }

    /// The guard of the commit makes adding safe: a batch is applied once, and only the partition's owner writes the row.
    private func countStatement(_ deltas: [GroupCountDelta]) -> PostgresStatement {
        var accounts = PostgresArray.int8
        var keys = PostgresArray.int8
        var minutes = PostgresArray.int8
        var partitions = PostgresArray.int4
        var oks = PostgresArray.int8
        var errors = PostgresArray.int8
        var faults = PostgresArray.int8
        var throttles = PostgresArray.int8
        for delta in deltas {
            accounts.append(delta.account)
            keys.append(delta.groupKey)
            minutes.append(delta.minute)
            partitions.append(Int32(clamping: delta.partition))
            oks.append(delta.counts.ok)
            errors.append(delta.counts.error)
            faults.append(delta.counts.fault)
            throttles.append(delta.counts.throttle)
        }
        var statement = PostgresStatement(
            """
            INSERT INTO group_counts AS c (account, group_key, minute, partition, ok_count, error_count, fault_count,
                throttle_count)
            SELECT * FROM unnest($1::int8[], $2::int8[], $3::int8[], $4::int4[], $5::int8[], $6::int8[], $7::int8[], $8::int8[])
            ON CONFLICT (account, group_key, minute, partition) DO UPDATE SET
                ok_count = c.ok_count + excluded.ok_count, error_count = c.error_count + excluded.error_count,
                fault_count = c.fault_count + excluded.fault_count,
                throttle_count = c.throttle_count + excluded.throttle_count
            """)
        for column in [accounts, keys, minutes, partitions, oks, errors, faults, throttles] { statement.bind(column) }
        return statement
    }

    // MARK: Reading

    /// Memberships of the traces in groups that exist now.
    public func groupMembers(account: AccountID, traces: [TraceID]) async throws(TraceStoreError) -> [GroupMember] {
        guard !traces.isEmpty else { return [] }
        var statement = PostgresStatement(
            """
            SELECT m.trace_id, m.group_key, m.version, m.minute, m.outcome, m.links
            FROM unnest($2::uuid[]) AS w (id)
            CROSS JOIN LATERAL (SELECT * FROM group_members WHERE account = $1 AND trace_id = w.id OFFSET 0) m
            WHERE m.group_key IN (SELECT group_key FROM groups WHERE account = $1)
            """)
        statement.bind(account)
        statement.bind(Array(Set(traces)))
        let rows = try await ask(statement)
        return (0..<rows.rowCount).map { row in
            GroupMember(
                account: account, trace: TraceID(rows.uuid(row, 0)), groupKey: rows.int(row, 1),
                version: Int(rows.int(row, 2)), minute: rows.int(row, 3),
                outcome: UInt8(truncatingIfNeeded: rows.int(row, 4)),
                links: rows.isNull(row, 5) ? nil : rows.bytes(row, 5))
        }
    }

    /// Ids of a group's members in order, for `verify`.
    /// - Returns: at most `limit` ids greater than `after`.
    public func memberIDs(
        account: AccountID, groupKey: Int64, after: TraceID?, limit: Int
    ) async throws(TraceStoreError) -> [TraceID] {
        var statement = PostgresStatement(
            """
            SELECT trace_id FROM group_members
            WHERE account = $1 AND group_key = $2 AND (NOT $3 OR trace_id > $4) ORDER BY trace_id LIMIT $5
            """)
        statement.bind(account)
        statement.bind(groupKey)
        statement.bind(after != nil)
        statement.bind(after ?? TraceID(high: 0, low: 0))
        statement.bind(Int64(limit))
        let rows = try await ask(statement)
        return (0..<rows.rowCount).map { TraceID(rows.uuid($0, 0)) }
    }

    /// All blocks of a group in the minutes, in order of minute.
    public func groupBlocks(
        account: AccountID, groupKey: Int64, minutes: Range<Int64>
    ) async throws(TraceStoreError) -> [GroupBlockRow] {
        var statement = PostgresStatement(
            """
            SELECT version, minute, encoding, block FROM group_blocks
            WHERE account = $1 AND group_key = $2 AND minute >= $3 AND minute < $4 ORDER BY minute
            """)
        statement.bind(account)
        statement.bind(groupKey)
        statement.bind(minutes.lowerBound)
        statement.bind(minutes.upperBound)
        let rows = try await ask(statement)
        let blocks = try decodeBlocks(rows, encoding: 2, block: 3)
        return blocks.enumerated().map {
            GroupBlockRow(version: Int(rows.int($0.offset, 0)), minute: rows.int($0.offset, 1), bytes: $0.element)
        }
    }

    /// Members of every group of all accounts by the minute in which they became one, for metrics.
    public func groupCounts(
        minute: Int64
    ) async throws(TraceStoreError) -> [(account: AccountID, group: String, counts: GroupCounts)] {
        var statement = PostgresStatement(
            """
            SELECT g.account, g.name, c.ok, c.error, c.fault, c.throttle FROM groups g
            CROSS JOIN LATERAL (
                SELECT coalesce(sum(ok_count), 0)::int8 AS ok, coalesce(sum(error_count), 0)::int8 AS error,
                    coalesce(sum(fault_count), 0)::int8 AS fault, coalesce(sum(throttle_count), 0)::int8 AS throttle
                FROM group_counts c WHERE c.account = g.account AND c.group_key = g.group_key AND c.minute = $1) c
            WHERE g.group_key <> 0 ORDER BY g.account, g.name
            """)
        statement.bind(minute)
        let rows = try await ask(statement)
        return (0..<rows.rowCount).map { row in
            var counts = GroupCounts()
            counts.ok = rows.int(row, 2)
            counts.error = rows.int(row, 3)
            counts.fault = rows.int(row, 4)
            counts.throttle = rows.int(row, 5)
            return (AccountID(rawValue: UInt64(bitPattern: rows.int(row, 0))), rows.text(row, 1), counts)
        }
    }

    // MARK: Deleted groups

    /// Removes what was derived for groups that are no more, in small steps. A batch that was being committed while its
    /// group was deleted may leave rows; the next call finds them.
    public func removeDeletedGroups() async throws(TraceStoreError) {
        for table in ["group_members", "group_blocks", "group_counts"] {
            // Groups are few: their keys are found by hopping from one to the next.
            let index = table == "group_members" ? "account, group_key, trace_id" : "account, group_key"
            var removed: Int64 = 1
            while removed > 0, !Task.isCancelled {
                let statement = PostgresStatement(
                    """
                    WITH RECURSIVE found AS (
                        (SELECT account, group_key FROM \(table) ORDER BY \(index) LIMIT 1)
                        UNION ALL
                        SELECT n.account, n.group_key FROM found f
                        CROSS JOIN LATERAL (
                            SELECT t.account, t.group_key FROM \(table) t
                            WHERE (t.account, t.group_key) > (f.account, f.group_key) ORDER BY \(index) LIMIT 1) n),
                    gone AS (
                        DELETE FROM \(table) WHERE ctid = ANY (ARRAY(
                            SELECT t.ctid FROM found f
                            JOIN \(table) t ON t.account = f.account AND t.group_key = f.group_key
                            WHERE NOT EXISTS (
                                SELECT FROM groups g WHERE g.account = f.account AND g.group_key = f.group_key)
                            LIMIT 2000)) RETURNING 1)
                    SELECT count(*) FROM gone
                    """)
                removed = try await change(statement)[0].int(0, 0)
            }
        }
    }
}
