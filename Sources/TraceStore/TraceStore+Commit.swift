// The aggregator's side: taking partitions over, and committing a batch. One batch is one pipeline, one transaction, one
// round trip; its first statement is the guard that makes "exactly once" true whatever crashes.

import PostgreSQL
import Segments

extension TraceStore {
    /// SQLSTATEs of our own, raised by `commit_requires`.
    private enum Guard {
        static let fenced = "BL001"
        static let version = "BL002"
    }

    // MARK: Ownership

    /// Takes partitions over: their epoch grows by one, so that a former owner can commit nothing more.
    /// - Parameter owner: a name for people, `host:pid`.
    /// - Returns: the state of each partition, in order of number; unknown partitions begin at 0.
    public func claim(partitions: [Int], owner: String) async throws(TraceStoreError) -> [PartitionState] {
        var numbers = PostgresArray.int4
        for partition in partitions { numbers.append(Int32(clamping: partition)) }
        var create = PostgresStatement(
            "INSERT INTO log_positions (partition) SELECT unnest($1::int4[]) ON CONFLICT DO NOTHING")
        create.bind(numbers)
        var claim = PostgresStatement(
            """
            UPDATE log_positions SET owner_epoch = owner_epoch + 1, owner = $2 WHERE partition = ANY ($1::int4[])
            RETURNING partition, position, checked_position, owner_epoch, received_through
            """)
        claim.bind(numbers)
        claim.bind(text: owner)
        let results = try await change(create, claim)
        return Self.partitionStates(results[1]).sorted { $0.partition < $1.partition }
    }

    /// Records that links have been re-checked up to `position`.
    /// - Returns: false when the partition has another owner.
    public func setChecked(partition: Int, position: Int64, ownerEpoch: Int64) async throws(TraceStoreError) -> Bool {
        var statement = PostgresStatement(
            """
            UPDATE log_positions SET checked_position = greatest(checked_position, $2)
            WHERE partition = $1 AND owner_epoch = $3
            """)
        statement.bind(Int32(clamping: partition))
        statement.bind(position)
        statement.bind(ownerEpoch)
        return try await change(statement)[0].affectedRows == 1
    }

    static func partitionStates(_ rows: PostgresResult) -> [PartitionState] {
        (0..<rows.rowCount).map { row in
            PartitionState(
                partition: Int(rows.int(row, 0)), position: rows.int(row, 1), checkedPosition: rows.int(row, 2),
                ownerEpoch: rows.int(row, 3), receivedThrough: rows.optionalInt(row, 4))
        }
    }

    // MARK: Commit

    /// Writes a batch, all of it or nothing. While PostgreSQL is away it tries again (`commitPatience`); the guard makes
    /// a repetition harmless, and a commit whose acknowledgement was lost is recognised.
    /// - Throws: `.unavailable` when PostgreSQL stays away: whether the batch was written is then unknown; claim the
    ///   partitions again and go on from their positions. `.refused` when PostgreSQL does not take the data.
    public func commit(_ batch: AggregationBatch) async throws(TraceStoreError) -> CommitOutcome {
        let statements = try await self.statements(for: batch)
        let clock = ContinuousClock()
        let deadline = clock.now + options.commitPatience
        var pause = Duration.milliseconds(20)
        var isOutcomeUnknown = false
        while true {
            do {
                try await writers.run(statements)
                return committed(batch)
            } catch {
                switch error.sqlState {
                case Guard.fenced?:
                    if isOutcomeUnknown, try await isApplied(batch) { return committed(batch) }
                    return .fenced
                case Guard.version?:
                    return .versionConflict(try await conflicts(in: batch))
                case "23505"? where error.constraint == "traces_pkey":
                    return .versionConflict(try await conflicts(in: batch))
                case "23514"?:
                    // A day partition was dropped or never made.
                    days.forgetAll()
                    try await prepareDays(of: batch)
                default:
                    guard error.isRetriable else { throw TraceStoreError(error, "cannot commit") }
                    if error.code == .connectionLost || error.code == .timedOut { isOutcomeUnknown = true }
                }
                guard clock.now < deadline, !Task.isCancelled else { throw TraceStoreError(error, "cannot commit") }
                try? await Task.sleep(for: pause)
                pause = min(pause * 2, .milliseconds(500))
            }
        }
    }

    private func committed(_ batch: AggregationBatch) -> CommitOutcome {
        watch.report(batch.positions.map { ($0.partition, $0.to) })
        return .committed
    }

    /// Whether the positions are where this batch would have moved them, and still ours: then it was us who did.
    private func isApplied(_ batch: AggregationBatch) async throws(TraceStoreError) -> Bool {
        let states = try await positions()
        return batch.positions.allSatisfy { move in
            states.contains {
                $0.partition == move.partition && $0.position == move.to && $0.ownerEpoch == move.ownerEpoch
            }
        }
    }

    /// Which traces of the batch are not at the expected version; all of them if the other commit is not visible yet.
    private func conflicts(in batch: AggregationBatch) async throws(TraceStoreError) -> [TraceKey] {
        var accounts = PostgresArray.int8
        var ids = PostgresArray.uuid
        var versions = PostgresArray.int4
        for change in batch.traces {
            accounts.append(change.account)
            ids.append(change.id)
            versions.append(Int32(clamping: change.expectedVersion))
        }
        var statement = PostgresStatement(
            """
            SELECT w.account, w.id FROM unnest($1::int8[], $2::uuid[], $3::int4[]) AS w (account, id, version)
            LEFT JOIN traces t ON t.account = w.account AND t.trace_id = w.id
            WHERE coalesce(t.version, 0) <> w.version
            """)
        for column in [accounts, ids, versions] { statement.bind(column) }
        let rows = try await ask(statement)
        let keys = (0..<rows.rowCount).map {
            TraceKey(account: AccountID(rawValue: UInt64(bitPattern: rows.int($0, 0))), id: TraceID(rows.uuid($0, 1)))
        }
        return keys.isEmpty ? batch.traces.map { TraceKey(account: $0.account, id: $0.id) } : keys
    }

    /// The day partitions of the batch's documents exist after this.
    private func prepareDays(of batch: AggregationBatch) async throws(TraceStoreError) {
        var wanted: Set<Int32> = []
        for change in batch.traces {
            for document in change.newDocuments { wanted.insert(KnownDays.day(of: document.receivedAt)) }
        }
        try await createDays(days.missing(of: wanted))
    }

    func createDays(_ missing: [Int32]) async throws(TraceStoreError) {
        guard !missing.isEmpty else { return }
        var numbers = PostgresArray.int4
        for day in missing.sorted() { numbers.append(day) }
        var statement = PostgresStatement(
            """
            SELECT day_partition_create('trace_documents', day) FROM unnest($1::int4[]) AS day
            """)
        statement.bind(numbers)
        try await change(statement)
        days.add(missing)
    }

    // MARK: Statements

    private func statements(for batch: AggregationBatch) async throws(TraceStoreError) -> [PostgresStatement] {
        try await prepareDays(of: batch)
        var statements = [guardStatement(batch.positions)]
        statements += traceStatements(batch.traces)
        if let documents = try await documentStatement(batch.traces, isThorough: batch.hasTime) {
            statements.append(documents)
        }
        statements += momentStatements(batch.traces)
        if !batch.blocks.isEmpty {
            statements.append(try blockStatement(batch.blocks, receivedDay: receivedDay(of: batch)))
        }
        statements += linkStatements(batch.links)
        statements += try groupStatements(batch.groups, receivedDay: receivedDay(of: batch))
        if !batch.inbox.isEmpty { statements.append(inboxStatement(batch.inbox)) }
        statements += searchStatements(batch.searchSegments)
        return statements
    }

    private func guardStatement(_ moves: [PositionMove]) -> PostgresStatement {
        var partitions = PostgresArray.int4
        var from = PostgresArray.int8
        var to = PostgresArray.int8
        var epochs = PostgresArray.int8
        var received = PostgresArray.int8
        var checked = PostgresArray.int8
        for move in moves.sorted(by: { $0.partition < $1.partition }) {
            partitions.append(Int32(clamping: move.partition))
            from.append(move.from)
            to.append(move.to)
            epochs.append(move.ownerEpoch)
            received.append(optional: move.receivedThrough)
            checked.append(optional: move.checkedPosition)
        }
        var statement = PostgresStatement(
            """
            WITH moved AS (
                UPDATE log_positions p SET position = m.next,
                    received_through = CASE WHEN m.received IS NULL THEN p.received_through
                                            ELSE greatest(p.received_through, m.received) END,
                    checked_position = greatest(p.checked_position, coalesce(m.checked, p.checked_position))
                FROM unnest($1::int4[], $2::int8[], $3::int8[], $4::int8[], $5::int8[], $6::int8[])
                    AS m (partition, previous, next, epoch, received, checked)
                WHERE p.partition = m.partition AND p.position = m.previous AND p.owner_epoch = m.epoch
                RETURNING 1)
            SELECT commit_requires(count(*) = cardinality($1::int4[]), 'BL001') FROM moved
            """)
        for column in [partitions, from, to, epochs, received, checked] { statement.bind(column) }
        return statement
    }

    /// Columns of `traces` for an `unnest`, in the order of `traceColumns`.
    private struct TraceColumns {
        var accounts = PostgresArray.int8
        var ids = PostgresArray.uuid
        var rootSeconds = PostgresArray.int8
        var rootMicros = PostgresArray.int4
        var eventSeconds = PostgresArray.int8
        var eventMicros = PostgresArray.int4
        var eventPreviousSeconds = PostgresArray.int8
        var eventPreviousMicros = PostgresArray.int4
        var endSeconds = PostgresArray.int8
        var endMicros = PostgresArray.int4
        var endPreviousSeconds = PostgresArray.int8
        var endPreviousMicros = PostgresArray.int4
        var firstDays = PostgresArray.int4
        var versions = PostgresArray.int4
        var revisions = PostgresArray.int4
        var storedBytes = PostgresArray.int4
        var flags = PostgresArray.int2

        mutating func append(_ change: TraceChange, _ receipts: ClockMoments, _ ends: ClockMoments) {
            let root = change.rootStart.map { ClockSplit($0) }
            accounts.append(change.account)
            ids.append(change.id)
            rootSeconds.append(optional: root?.second)
            rootMicros.append(optional: root?.micros)
            eventSeconds.append(receipts.newest?.second ?? 0)
            eventMicros.append(receipts.newest?.micros ?? 0)
            eventPreviousSeconds.append(optional: receipts.previous?.second)
            eventPreviousMicros.append(optional: receipts.previous?.micros)
            endSeconds.append(optional: ends.newest?.second)
            endMicros.append(optional: ends.newest?.micros)
            endPreviousSeconds.append(optional: ends.previous?.second)
            endPreviousMicros.append(optional: ends.previous?.micros)
            firstDays.append(KnownDays.day(of: change.receipts.min() ?? 0))
            versions.append(Int32(clamping: change.expectedVersion + 1))
            revisions.append(Int32(clamping: change.revision))
            storedBytes.append(Int32(clamping: change.storedBytes))
            flags.append(
                Int16(
                    (receipts.isWide ? 1 : 0) | (ends.isWide ? 2 : 0) | (change.limitExceeded ? 4 : 0)
                        | (change.isIndexed ? 0 : 8)))
        }

        func bind(to statement: inout PostgresStatement) {
            for column in [
                accounts, ids, rootSeconds, rootMicros, eventSeconds, eventMicros, eventPreviousSeconds,
                eventPreviousMicros, endSeconds, endMicros, endPreviousSeconds, endPreviousMicros, firstDays, versions,
                revisions, storedBytes, flags,
            ] { statement.bind(column) }
        }
    }

    private static let traceColumns = """
        account, trace_id, root_second, root_micros, event_second, event_micros, event_prev_second, event_prev_micros,
        end_second, end_micros, end_prev_second, end_prev_micros, first_day, version, revision, stored_bytes, flags
        """

    private static let traceInput = """
        unnest($1::int8[], $2::uuid[], $3::int8[], $4::int4[], $5::int8[], $6::int4[], $7::int8[], $8::int4[],
            $9::int8[], $10::int4[], $11::int8[], $12::int4[], $13::int4[], $14::int4[], $15::int4[], $16::int4[],
            $17::int2[])
        """

    /// New traces are inserted (a second owner's insert violates the key), known ones updated if their version is as
    /// expected. An upsert would bring a row that retention removed back without its documents.
    private func traceStatements(_ changes: [TraceChange]) -> [PostgresStatement] {
        var new = TraceColumns()
        var known = TraceColumns()
        for change in changes {
            let receipts = ClockMoments(change.receipts)
            let ends = ClockMoments(change.ends)
            if change.expectedVersion == 0 {
                new.append(change, receipts, ends)
            } else {
                known.append(change, receipts, ends)
            }
        }
        var statements: [PostgresStatement] = []
        if new.accounts.count > 0 {
            var insert = PostgresStatement(
                "INSERT INTO traces (\(Self.traceColumns)) SELECT * FROM \(Self.traceInput)")
            new.bind(to: &insert)
            statements.append(insert)
        }
        if known.accounts.count > 0 {
            // Of the columns in an index only changed values cost an index entry; see the schema.
            var update = PostgresStatement(
                """
                WITH changed AS (
                    UPDATE traces t SET root_second = n.root_second, root_micros = n.root_micros,
                        event_second = n.event_second, event_micros = n.event_micros,
                        event_prev_second = n.event_prev_second, event_prev_micros = n.event_prev_micros,
                        end_second = n.end_second, end_micros = n.end_micros,
                        end_prev_second = n.end_prev_second, end_prev_micros = n.end_prev_micros,
                        first_day = least(t.first_day, n.first_day), version = n.version, revision = n.revision,
                        stored_bytes = n.stored_bytes, flags = n.flags
                    FROM \(Self.traceInput) AS n (\(Self.traceColumns))
                    WHERE t.account = n.account AND t.trace_id = n.trace_id AND t.version = n.version - 1
                    RETURNING 1)
                SELECT commit_requires(count(*) = cardinality($1::int8[]), 'BL002') FROM changed
                """)
            known.bind(to: &update)
            statements.append(update)
        }
        return statements
    }

    private func documentStatement(
        _ changes: [TraceChange], isThorough: Bool
    ) async throws(TraceStoreError) -> PostgresStatement? {
        let writing = changes.filter { !$0.newDocuments.isEmpty }
        guard !writing.isEmpty else { return nil }
        let known: [AccountID: CompressionDictionary]
        do {
            known = try await dictionaries.current(of: Set(writing.map(\.account)))
        } catch {
            throw TraceStoreError(error, "cannot read the dictionaries")
        }
        dictionaries.learn(from: writing, known: known)
        var accounts = PostgresArray.int8
        var ids = PostgresArray.uuid
        var days = PostgresArray.int4
        var versions = PostgresArray.int4
        var used = PostgresArray.int4
        var bodies = PostgresArray.bytea
        try codec.withCompressor { compressor throws(TraceStoreError) in
            for change in writing {
                // A batch that crosses midnight has a row for each day.
                var start = 0
                while start < change.newDocuments.count {
                    let day = KnownDays.day(of: change.newDocuments[start].receivedAt)
                    var end = start + 1
                    while end < change.newDocuments.count,
                        KnownDays.day(of: change.newDocuments[end].receivedAt) == day
                    { end += 1 }
                    let dictionary = known[change.account]
                    accounts.append(change.account)
                    ids.append(change.id)
                    days.append(day)
                    versions.append(Int32(clamping: change.expectedVersion + 1))
                    used.append(dictionary?.id ?? 0)
                    bodies.append(
                        bytes: try compressor.encode(
                            change.newDocuments[start..<end], of: change.id, dictionary: dictionary,
                            isThorough: isThorough))
                    start = end
                }
            }
        }
        var statement = PostgresStatement(
            """
            INSERT INTO trace_documents (account, trace_id, day, version, dictionary, documents)
            SELECT * FROM unnest($1::int8[], $2::uuid[], $3::int4[], $4::int4[], $5::int4[], $6::bytea[])
            """)
        for column in [accounts, ids, days, versions, used, bodies] { statement.bind(column) }
        return statement
    }

    /// Rows of `trace_moments` for traces that spread over more than two seconds.
    private func momentStatements(_ changes: [TraceChange]) -> [PostgresStatement] {
        var accounts = PostgresArray.int8
        var ids = PostgresArray.uuid
        var kinds = PostgresArray.int2
        var seconds = PostgresArray.int8
        var micros = PostgresArray.int4
        var wideAccounts = PostgresArray.int8
        var wideIDs = PostgresArray.uuid
        var endIDs = PostgresArray.uuid
        var endSeconds = PostgresArray.int8
        func add(_ change: TraceChange, kind: Int16, _ moments: some Sequence<ClockSplit>) {
            for moment in moments {
                accounts.append(change.account)
                ids.append(change.id)
                kinds.append(kind)
                seconds.append(moment.second)
                micros.append(moment.micros)
            }
        }
        for change in changes {
            let receipts = ClockMoments(change.receipts)
            if receipts.isWide {
                // Receipts only grow: when the trace was wide before, the new ones are enough.
                let before = ClockMoments(Array(change.receipts.dropLast(change.newDocuments.count)))
                let first = change.newDocuments.map { ClockSplit($0.receivedAt).second }.min() ?? .min
                add(change, kind: 1, receipts.moments.filter { !before.isWide || $0.second >= first })
            }
            let ends = ClockMoments(change.ends)
            if ends.isWide {
                wideAccounts.append(change.account)
                wideIDs.append(change.id)
                add(change, kind: 2, ends.moments)
                for moment in ends.moments {
                    endIDs.append(change.id)
                    endSeconds.append(moment.second)
                }
            }
        }
        guard accounts.count > 0 else { return [] }
        var statements: [PostgresStatement] = []
        if wideAccounts.count > 0 {
            // A leaf call that got a callee is no leaf any more: its end goes.
            var delete = PostgresStatement(
                """
                DELETE FROM trace_moments m USING unnest($1::int8[], $2::uuid[]) AS w (account, id)
                WHERE m.account = w.account AND m.trace_id = w.id AND m.kind = 2
                  AND (m.trace_id, m.second) NOT IN (SELECT * FROM unnest($3::uuid[], $4::int8[]))
                """)
            for column in [wideAccounts, wideIDs, endIDs, endSeconds] { delete.bind(column) }
            statements.append(delete)
        }
        var insert = PostgresStatement(
            """
            INSERT INTO trace_moments AS m (account, trace_id, kind, second, micros)
            SELECT * FROM unnest($1::int8[], $2::uuid[], $3::int2[], $4::int8[], $5::int4[])
            ON CONFLICT (account, trace_id, kind, second) DO UPDATE SET micros = excluded.micros
            WHERE m.micros <> excluded.micros
            """)
        for column in [accounts, ids, kinds, seconds, micros] { insert.bind(column) }
        statements.append(insert)
        return statements
    }

    /// Day of the newest receipt the batch knows of.
    private func receivedDay(of batch: AggregationBatch) -> Int32 {
        let read = batch.positions.compactMap(\.receivedThrough).max() ?? 0
        let receipts = batch.traces.compactMap { $0.receipts.max() }.max() ?? 0
        return KnownDays.day(of: max(read, receipts))
    }

    private func blockStatement(
        _ blocks: [GraphBlockDelta], receivedDay: Int32
    ) throws(TraceStoreError) -> PostgresStatement {
        var accounts = PostgresArray.int8
        var minutes = PostgresArray.int8
        var partitions = PostgresArray.int4
        var offsets = PostgresArray.int8
        for block in blocks {
            accounts.append(block.account)
            minutes.append(block.minute)
            partitions.append(Int32(clamping: block.partition))
            offsets.append(block.lastOffset)
        }
        let (encodings, bytes) = try encodeBlocks(blocks.map(\.bytes))
        var statement = PostgresStatement(
            """
            INSERT INTO graph_blocks (account, minute, partition, last_offset, encoding, block, level, received_day)
            SELECT *, 0, $7 FROM unnest($1::int8[], $2::int8[], $3::int4[], $4::int8[], $5::int2[], $6::bytea[])
            """)
        for column in [accounts, minutes, partitions, offsets, encodings, bytes] { statement.bind(column) }
        statement.bind(receivedDay)
        return statement
    }

    /// Columns `encoding` and `block`.
    /// - Parameter isThorough: take more time for fewer bytes.
    func encodeBlocks(
        _ blocks: [[UInt8]], isThorough: Bool = false
    ) throws(TraceStoreError) -> (encodings: PostgresArray, bytes: PostgresArray) {
        try codec.withCompressor { compressor throws(TraceStoreError) in
            var encodings = PostgresArray.int2
            var bytes = PostgresArray.bytea
            for block in blocks {
                try BlockEncoding.append(block, isThorough: isThorough, with: &compressor, to: &encodings, &bytes)
            }
            return (encodings, bytes)
        }
    }

    private func linkStatements(_ replacements: [LinkReplacement]) -> [PostgresStatement] {
        guard !replacements.isEmpty else { return [] }
        var consumerAccounts = PostgresArray.int8
        var consumers = PostgresArray.uuid
        var accounts = PostgresArray.int8
        var sources = PostgresArray.uuid
        var targets = PostgresArray.uuid
        var entities = PostgresArray.int8
        var facts = PostgresArray.bytea
        for replacement in replacements {
            consumerAccounts.append(replacement.account)
            consumers.append(replacement.consumer)
            for link in replacement.links {
                accounts.append(replacement.account)
                sources.append(replacement.consumer)
                targets.append(link.target)
                entities.append(Int64(bitPattern: link.entity.rawValue))
                if let bytes = link.facts { facts.append(bytes: bytes) } else { facts.appendNull() }
            }
        }
        var delete = PostgresStatement(
            """
            DELETE FROM links l USING unnest($1::int8[], $2::uuid[]) AS w (account, consumer)
            WHERE l.account = w.account AND l.consumer_trace = w.consumer
            """)
        delete.bind(consumerAccounts)
        delete.bind(consumers)
        var insert = PostgresStatement(
            """
            INSERT INTO links (account, consumer_trace, target_trace, target_entity, facts)
            SELECT * FROM unnest($1::int8[], $2::uuid[], $3::uuid[], $4::int8[], $5::bytea[]) ON CONFLICT DO NOTHING
            """)
        for column in [accounts, sources, targets, entities, facts] { insert.bind(column) }
        return accounts.count == 0 ? [delete] : [delete, insert]
    }

    private func inboxStatement(_ entries: [InboxEntry]) -> PostgresStatement {
        var accounts = PostgresArray.int8
        var topics = PostgresArray.text
        var partitions = PostgresArray.int4
        var offsets = PostgresArray.int8
        var received = PostgresArray.int8
        var codes = PostgresArray.text
        var reasons = PostgresArray.text
        var ids = PostgresArray.uuid
        var documents = PostgresArray.bytea
        for entry in entries {
            accounts.append(entry.account)
            topics.append(text: entry.topic)
            partitions.append(Int32(clamping: entry.partition))
            offsets.append(entry.offset)
            received.append(entry.receivedAt)
            codes.append(text: entry.code)
            reasons.append(text: entry.reason)
            if let id = entry.traceID { ids.append(id) } else { ids.appendNull() }
            documents.append(bytes: entry.document)
        }
        var statement = PostgresStatement(
            """
            INSERT INTO inbox (account, topic, partition, log_offset, received_at, code, reason, trace_id, document)
            SELECT * FROM unnest($1::int8[], $2::text[], $3::int4[], $4::int8[], $5::int8[], $6::text[], $7::text[],
                $8::uuid[], $9::bytea[])
            ON CONFLICT DO NOTHING
            """)
        for column in [accounts, topics, partitions, offsets, received, codes, reasons, ids, documents] {
            statement.bind(column)
        }
        return statement
    }
}

/// How a graph block stands in its row: as it is, or compressed where that is shorter.
enum BlockEncoding {
    static let plain: Int16 = 0
    static let zstd: Int16 = 1

    static func append(
        _ block: [UInt8], isThorough: Bool, with compressor: inout DocumentCodec.Compressor,
        to encodings: inout PostgresArray, _ bytes: inout PostgresArray
    ) throws(TraceStoreError) {
        let compressed = try compressor.compress(block, dictionary: nil, isThorough: isThorough)
        if compressed.count < block.count {
            encodings.append(zstd)
            bytes.append(bytes: compressed)
        } else {
            encodings.append(plain)
            bytes.append(bytes: block)
        }
    }

    static func decode(
        _ row: Int, encoding: Int, block: Int, of rows: PostgresResult, with decompressor: DocumentCodec.Decompressor
    ) throws(TraceStoreError) -> [UInt8] {
        guard rows.int(row, encoding) == Int64(zstd) else { return rows.bytes(row, block) }
        return try rows.withBytes(row, block) { source throws(TraceStoreError) in
            try decompressor.decompress(source, dictionary: nil)
        }
    }
}
