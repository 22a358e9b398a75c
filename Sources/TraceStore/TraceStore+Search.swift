// The search index in the store: writing segments with a commit, finding candidates, merging, sizes for `explain`.
// What a plan lets through is decided by `SearchIndex`; here its parts are read, and candidates are brought into the
// order of a page. Which segment says what of a trace, and why a candidate whose root start differs from its row's is
// left out, is in SearchIndex.docc/SearchIndex.md.

import PostgreSQL
import SearchIndex
import Segments

/// What a commit adds to the search index.
public struct SearchSegmentDelta: Sendable, Equatable {
    public var account: AccountID
    /// `SearchSegment.hour(ofRootStart:)` of all its traces.
    public var hour: Int64
    /// With the offset of a record of the batch in that partition, distinct within the batch: names the segment.
    public var partition: Int
    public var lastOffset: Int64
    public var segment: SearchSegment

    public init(account: AccountID, hour: Int64, partition: Int, lastOffset: Int64, segment: SearchSegment) {
        self.account = account
        self.hour = hour
        self.partition = partition
        self.lastOffset = lastOffset
        self.segment = segment
    }
}

/// Candidates of a filtered search, in page order.
public struct SearchPage: Sendable {
    public var candidates: [SummaryCandidate]
    /// No candidate follows.
    public var isLast: Bool

    public init(candidates: [SummaryCandidate], isLast: Bool) {
        self.candidates = candidates
        self.isLast = isLast
    }
}

/// What a plan comes to over a window, for `beamline explain`.
public struct SearchExplanation: Sendable {
    public var segmentCount = 0
    public var indexedTraces = 0
    /// Traces the plan lets through, older versions of some counted again.
    public var candidates = 0
    public var bytesRead = 0
    /// Traces stored before there was an index may lie in the window: every trace is looked at.
    public var isUnindexed = false
}

struct SegmentKey: Hashable, Sendable {
    var hour: Int64
    var partition: Int32
    var level: Int16
    var lastOffset: Int64
}

/// A segment without its large parts.
struct SegmentInfo: Sendable {
    var key: SegmentKey
    var traceCount: Int
    var sliceBits: Int
    var hasAllFields: Bool
    var rootFirst: Int64
    var rootLast: Int64
    var marks: [Micros]

    /// Microseconds; no trace of the segment started later (earlier).
    var newest: Micros { marks.first ?? (rootLast + 1) * 1_000_000 }
    var oldest: Micros { rootFirst * 1_000_000 }
}

extension TraceStore {
    // MARK: Writing

    func searchStatements(_ segments: [SearchSegmentDelta]) -> [PostgresStatement] {
        segments.map {
            insertStatement(
                $0.segment, account: $0.account,
                key: SegmentKey(
                    hour: $0.hour, partition: Int32(clamping: $0.partition), level: 0, lastOffset: $0.lastOffset))
        }
    }

    private func insertStatement(_ segment: SearchSegment, account: AccountID, key: SegmentKey) -> PostgresStatement {
        var statement = PostgresStatement(
            """
            INSERT INTO search_segments (account, hour, partition, level, last_offset, root_first, root_last, receipt_first,
                receipt_last, end_first, end_last, trace_count, slice_bits, has_all_fields, marks, slice_offsets, records,
                columns, postings)
            VALUES ($1, $2, $3, $4::int4, $5, $6, $7, $8, $9, $10, $11, $12, $13::int4, $14, $15, $16, $17, $18, $19)
            """)
        statement.bind(account)
        statement.bind(key.hour)
        statement.bind(key.partition)
        statement.bind(Int32(key.level))
        statement.bind(key.lastOffset)
        statement.bind(segment.roots.first)
        statement.bind(segment.roots.last)
        statement.bind(segment.receipts.first)
        statement.bind(segment.receipts.last)
        if let ends = segment.ends {
            statement.bind(ends.first)
            statement.bind(ends.last)
        } else {
            statement.bindNull(.int8)
            statement.bindNull(.int8)
        }
        statement.bind(Int32(segment.traceCount))
        statement.bind(Int32(segment.sliceBits))
        statement.bind(segment.hasAllFields)
        var marks: [UInt8] = []
        for mark in segment.marks { withUnsafeBytes(of: mark.littleEndian) { marks.append(contentsOf: $0) } }
        statement.bind(bytes: marks)
        var offsets = PostgresArray.int4
        for offset in segment.sliceOffsets { offsets.append(offset) }
        statement.bind(offsets)
        statement.bind(bytes: segment.records)
        statement.bind(bytes: segment.columns)
        statement.bind(bytes: segment.postings)
        return statement
    }

    // MARK: Finding

    /// Traces that may match a plan and whose clock lies in the window, newest clock first, then by id; those that match
    /// are all among them.
    /// - Parameters:
    ///   - window: seconds since 1970.
    ///   - after: the last candidate looked at; nil: from the newest.
    ///   - limit: more are not returned; fewer only when `isLast`.
    /// - Returns: nil when the index does not narrow the search: then `summaryPage` has the candidates.
    public func searchPage(
        account: AccountID, rangeType: TimeRangeType, window: Range<Int64>, plan: SearchPlan, after: SummaryCandidate?,
        limit: Int
    ) async throws(TraceStoreError) -> SearchPage? {
        guard !window.isEmpty, limit > 0, plan != .none else { return SearchPage(candidates: [], isLast: true) }
        guard plan != .all else { return nil }
        // A segment may be merged away between two reads: begin again with those that are there now.
        for _ in 0..<10 {
            guard let infos = try await segments(account: account, rangeType: rangeType, window: window) else {
                return nil
            }
            let walk = SearchWalk(store: self, account: account, plan: plan, window: window, after: after, limit: limit)
            do {
                switch rangeType {
                case .traceID: return try await walk.byRootStart(infos)
                case .event: return try await walk.byMovingClock("event", kind: 1, infos)
                case .service: return try await walk.byMovingClock("end", kind: 2, infos)
                }
            } catch {
                if case .store(let error) = error { throw error }
            }
        }
        throw TraceStoreError(.unavailable, "the search index changes too fast to be read", isRetriable: true)
    }

    /// What the plan reads and lets through.
    public func explainSearch(
        account: AccountID, rangeType: TimeRangeType, window: Range<Int64>, plan: SearchPlan
    ) async throws(TraceStoreError) -> SearchExplanation {
        var result = SearchExplanation()
        guard let infos = try await segments(account: account, rangeType: rangeType, window: window) else {
            result.isUnindexed = true
            return result
        }
        result.segmentCount = infos.count
        result.indexedTraces = infos.reduce(0) { $0 + $1.traceCount }
        // Nothing is read for these: `searchPage` answers one without the index, and leaves the other to `summaryPage`.
        if plan == .none { return result }
        if plan == .all {
            result.candidates = result.indexedTraces
            return result
        }
        let walk = SearchWalk(store: self, account: account, plan: plan, window: window, after: nil, limit: 1)
        do {
            let (sets, bytes) = try await walk.evaluate(infos)
            result.candidates = sets.reduce(0) { $0 + $1.count }
            result.bytesRead = bytes
        } catch {
            if case .store(let error) = error { throw error }
            throw TraceStoreError(.unavailable, "the search index changed meanwhile", isRetriable: true)
        }
        return result
    }

    /// Segments with a trace whose clock may lie in the window, newest root first.
    /// - Returns: nil when traces older than the index may lie in it.
    private func segments(
        account: AccountID, rangeType: TimeRangeType, window: Range<Int64>
    ) async throws(TraceStoreError) -> [SegmentInfo]? {
        let clock =
            switch rangeType {
            case .traceID: "root"
            case .event: "receipt"
            case .service: "end"
            }
        var find = PostgresStatement(
            """
            SELECT hour, partition, level, last_offset, trace_count, slice_bits, has_all_fields, root_first, root_last, marks
            FROM search_segments WHERE account = $1 AND \(clock)_last >= $2 AND \(clock)_first < $3
            ORDER BY root_last DESC, hour, partition, level, last_offset
            """)
        find.bind(account)
        find.bind(window.lowerBound)
        find.bind(window.upperBound)
        // A trace received before is found by its root start or end wherever that lies.
        var starts = PostgresStatement(
            """
            SELECT 1 FROM search_starts s WHERE s.account = $1
                AND EXISTS (SELECT FROM traces t WHERE t.account = $1 AND t.event_second <= s.unindexed_through)
            """)
        starts.bind(account)
        let results: [PostgresResult]
        do {
            results = try await readers.run([starts, find])
        } catch {
            throw TraceStoreError(error, "cannot read the search index")
        }
        guard results[0].rowCount == 0 else { return nil }
        let rows = results[1]
        return (0..<rows.rowCount).map { row in
            SegmentInfo(
                key: SegmentKey(
                    hour: rows.int(row, 0), partition: Int32(rows.int(row, 1)), level: Int16(rows.int(row, 2)),
                    lastOffset: rows.int(row, 3)),
                traceCount: Int(rows.int(row, 4)), sliceBits: Int(rows.int(row, 5)), hasAllFields: rows.bool(row, 6),
                rootFirst: rows.int(row, 7), rootLast: rows.int(row, 8),
                marks: rows.withBytes(row, 9) { bytes in
                    (0..<bytes.count / 8).map {
                        Int64(littleEndian: bytes.loadUnaligned(fromByteOffset: $0 * 8, as: Int64.self))
                    }
                })
        }
    }

    // MARK: Merging

    /// Merges segments of one size of an hour into one, each in a transaction of its own, so that every trace is rewritten
    /// a few times at most. Readers see the old rows or the new one. May run anywhere, several at once.
    /// - Parameters:
    ///   - now: hours since 1970; small segments of hours that are over are merged however few they are.
    /// - Returns: number of rows that went.
    public func mergeSearchSegments(now: Int64) async throws -> Int {
        let crowds = try await ask(
            PostgresStatement(
                """
                SELECT account, hour, count(*) FROM search_segments WHERE trace_count < \(SearchSegment.maxTraces / 2)
                GROUP BY account, hour HAVING count(*) > 1 ORDER BY count(*) DESC LIMIT 500
                """))
        var removed = 0
        for row in 0..<crowds.rowCount where !Task.isCancelled {
            let account = AccountID(rawValue: UInt64(bitPattern: crowds.int(row, 0)))
            let hour = crowds.int(row, 1)
            if crowds.int(row, 2) < Self.mergedAtOnce, hour >= now - 1 { continue }
            removed += try await mergeHour(account: account, hour: hour, isOver: hour < now - 1)
        }
        return removed
    }

    private static let mergedAtOnce = 8

    private func mergeHour(account: AccountID, hour: Int64, isOver: Bool) async throws -> Int {
        var read = PostgresStatement(
            """
            SELECT partition, level, last_offset, trace_count FROM search_segments
            WHERE account = $1 AND hour = $2 AND trace_count < \(SearchSegment.maxTraces / 2)
            ORDER BY trace_count, last_offset, partition
            """)
        read.bind(account)
        read.bind(hour)
        let rows = try await ask(read)
        let all = (0..<rows.rowCount).map { row in
            (
                key: SegmentKey(
                    hour: hour, partition: Int32(rows.int(row, 0)), level: Int16(rows.int(row, 1)),
                    lastOffset: rows.int(row, 2)), count: Int(rows.int(row, 3))
            )
        }
        var removed = 0
        var group: [SegmentKey] = []
        var sum = 0
        var smallest = 0
        func isWorthIt(_ group: [SegmentKey]) -> Bool { group.count >= (isOver ? 2 : Self.mergedAtOnce) }
        for segment in all {
            // Segments of about one size; a large one waits until the small ones have become as large.
            let isMuchLarger = !group.isEmpty && segment.count > max(smallest * 8, sum * (isOver ? 4 : 1))
            if sum + segment.count > SearchSegment.maxTraces || isMuchLarger || group.count >= 256 {
                if isWorthIt(group) { removed += try await merge(group, account: account) }
                (group, sum) = ([], 0)
            }
            if group.isEmpty { smallest = segment.count }
            group.append(segment.key)
            sum += segment.count
        }
        if isWorthIt(group) { removed += try await merge(group, account: account) }
        return removed
    }

    /// - Returns: number of rows that went; 0 when somebody else was faster.
    private func merge(_ keys: [SegmentKey], account: AccountID) async throws -> Int {
        let segments = try await wholeSegments(keys, account: account)
        guard segments.count == keys.count, let merged = try SearchSegment.merge(segments),
            let newest = keys.max(by: { ($0.lastOffset, $0.partition) < ($1.lastOffset, $1.partition) })
        else { return 0 }
        var key = newest
        key.level = (keys.map(\.level).max() ?? 0) + 1
        var delete = PostgresStatement(
            """
            WITH gone AS (
                DELETE FROM search_segments s USING unnest($2::int8[], $3::int4[], $4::int2[], $5::int8[])
                    AS k (hour, partition, level, last_offset)
                WHERE s.account = $1 AND s.hour = k.hour AND s.partition = k.partition AND s.level = k.level
                  AND s.last_offset = k.last_offset RETURNING 1)
            SELECT commit_requires(count(*) = cardinality($2::int8[]), 'BL003') FROM gone
            """)
        delete.bind(account)
        delete.bindKeys(keys)
        do {
            try await writers.run([delete, insertStatement(merged, account: account, key: key)])
        } catch  where error.sqlState == "BL003" || error.sqlState == "23505" || error.sqlState == "40P01" {
            return 0
        } catch {
            throw TraceStoreError(error, "cannot merge the search index")
        }
        return keys.count - 1
    }

    private func wholeSegments(_ keys: [SegmentKey], account: AccountID) async throws(TraceStoreError)
        -> [SearchSegment]
    {
        var read = PostgresStatement(
            """
            SELECT s.trace_count, s.slice_bits, s.has_all_fields, s.root_first, s.root_last, s.receipt_first, s.receipt_last,
                s.end_first, s.end_last, array_to_string(s.slice_offsets, ','), s.records, s.columns, s.postings
            FROM unnest($2::int8[], $3::int4[], $4::int2[], $5::int8[]) AS k (hour, partition, level, last_offset)
            JOIN search_segments s ON s.account = $1 AND s.hour = k.hour AND s.partition = k.partition
                AND s.level = k.level AND s.last_offset = k.last_offset
            """)
        read.bind(account)
        read.bindKeys(keys)
        let rows = try await ask(read)
        return (0..<rows.rowCount).map { row in
            SearchSegment(
                traceCount: Int(rows.int(row, 0)), sliceBits: Int(rows.int(row, 1)),
                sliceOffsets: rows.text(row, 9).utf8.split(separator: 44).map { Int32(Substring($0)) ?? 0 }, marks: [],
                records: rows.bytes(row, 10), columns: rows.bytes(row, 11), postings: rows.bytes(row, 12),
                hasAllFields: rows.bool(row, 2), roots: .init(first: rows.int(row, 3), last: rows.int(row, 4)),
                receipts: .init(first: rows.int(row, 5), last: rows.int(row, 6)),
                ends: rows.optionalInt(row, 7).map { .init(first: $0, last: rows.int(row, 8)) })
        }
    }
}

extension PostgresStatement {
    mutating func bindKeys(_ keys: [SegmentKey]) {
        var hours = PostgresArray.int8
        var partitions = PostgresArray.int4
        var levels = PostgresArray.int2
        var offsets = PostgresArray.int8
        for key in keys {
            hours.append(key.hour)
            partitions.append(key.partition)
            levels.append(key.level)
            offsets.append(key.lastOffset)
        }
        for column in [hours, partitions, levels, offsets] { bind(column) }
    }
}
