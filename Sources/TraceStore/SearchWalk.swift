// One page of a filtered search: which traces of which segments the plan lets through, and the next ones in the order of
// the clock. Sets are kept in memory (`SearchCache`): a segment never changes, so the pages of a walk read it once.

import PostgreSQL
import SearchIndex
import Segments

enum SearchWalkError: Error {
    /// A segment was merged or removed after it had been listed.
    case segmentGone
    case store(TraceStoreError)
}

struct SearchWalk {
    let store: TraceStore
    let account: AccountID
    let plan: SearchPlan
    let window: Range<Int64>
    let after: SummaryCandidate?
    let limit: Int

    /// Segments evaluated at once; more candidates of a moving clock than this are not sorted, but found by walking.
    private static let segmentsAtOnce = 64
    private static let mostMoving = 50_000

    private func ask(_ statement: PostgresStatement) async throws(SearchWalkError) -> PostgresResult {
        do { return try await store.ask(statement) } catch { throw .store(error) }
    }

    // MARK: Root starts

    /// A block of a segment with candidates.
    private struct Block {
        var newest: Micros
        var segment: Int
        var number: Int
        var count: Int
    }

    /// Blocks are taken newest first until they hold a page; what is newer than everything not yet taken is in order.
    func byRootStart(_ all: [SegmentInfo]) async throws(SearchWalkError) -> SearchPage {
        let upper = min(after?.clock ?? .max, window.upperBound * 1_000_000 - 1)
        let lower = window.lowerBound * 1_000_000
        let infos = all.filter { $0.oldest <= upper }.sorted { $0.newest > $1.newest }
        var evaluated = 0
        var sets: [TraceSet] = []
        var pending: [Block] = []
        var pendingCount = 0
        var found: [SummaryCandidate] = []
        var seen: Set<TraceID> = []
        while true {
            while evaluated < infos.count,
                pendingCount < limit || (pending.first?.newest ?? .min) < min(infos[evaluated].newest, upper)
            {
                let group = Array(infos[evaluated..<min(evaluated + Self.segmentsAtOnce, infos.count)])
                for (offset, set) in try await evaluate(group).sets.enumerated() {
                    let marks = group[offset].marks
                    for number in marks.indices {
                        // Roots of a block lie between its mark and the next one.
                        let oldest = number + 1 < marks.count ? marks[number + 1] : group[offset].oldest
                        guard marks[number] >= lower, oldest <= upper else { continue }
                        let count = set.count(inBlock: number)
                        guard count > 0 else { continue }
                        pending.append(
                            Block(
                                newest: min(marks[number], upper), segment: evaluated + offset, number: number,
                                count: count))
                        pendingCount += count
                    }
                    sets.append(set)
                }
                evaluated += group.count
                pending.sort { $0.newest > $1.newest }
            }
            let unread = evaluated < infos.count ? min(infos[evaluated].newest, upper) : Micros.min
            var places: [(segment: Int, ordinal: Int)] = []
            var taken = 0
            while taken < pending.count, places.count < limit, pending[taken].newest >= unread {
                let block = pending[taken]
                places += sets[block.segment].members(inBlock: block.number).map { (block.segment, $0) }
                pendingCount -= block.count
                taken += 1
            }
            pending.removeFirst(taken)
            for candidate in try await candidates(places, infos) where isWanted(candidate) {
                if seen.insert(candidate.id).inserted { found.append(candidate) }
            }
            let bound = max(pending.first?.newest ?? .min, unread)
            let isLast = pending.isEmpty && evaluated == infos.count
            let settled = isLast ? found.count : found.count { $0.clock > bound }
            if settled >= limit || isLast {
                found.sort { ($1.clock, $0.id) < ($0.clock, $1.id) }
                return SearchPage(
                    candidates: Array(found.prefix(min(limit, settled))), isLast: isLast && found.count <= limit)
            }
        }
    }

    private func isWanted(_ candidate: SummaryCandidate) -> Bool {
        guard candidate.clock >= window.lowerBound * 1_000_000, candidate.clock < window.upperBound * 1_000_000 else {
            return false
        }
        guard let after else { return true }
        return (after.clock, candidate.id) > (candidate.clock, after.id)
    }

    /// Traces by their places, less those that have gone and those of which the segment has an older root start: another
    /// segment has them in the right place.
    private func candidates(
        _ places: [(segment: Int, ordinal: Int)], _ infos: [SegmentInfo]
    ) async throws(SearchWalkError) -> [SummaryCandidate] {
        guard !places.isEmpty else { return [] }
        var statement = PostgresStatement(
            """
            SELECT p.record, t.root_second, t.root_micros
            FROM \(Self.recordsInput)
            LEFT JOIN LATERAL (
                SELECT root_second, root_micros FROM traces
                WHERE account = $1 AND trace_id = encode(substring(p.record FROM 1 FOR 16), 'hex')::uuid OFFSET 0) t ON true
            """)
        bind(places, infos, to: &statement)
        let rows = try await ask(statement)
        guard rows.rowCount == places.count else { throw .segmentGone }
        var result: [SummaryCandidate] = []
        for row in 0..<rows.rowCount where !rows.isNull(row, 1) {
            let record: SearchRecord
            do {
                record = try rows.withBytes(row, 0) { bytes throws(SearchSegmentError) in try SearchRecord(bytes) }
            } catch {
                throw .store(TraceStoreError(.corrupt, "\(error)"))
            }
            let clock = rows.int(row, 1) &* 1_000_000 &+ rows.int(row, 2)
            if clock == record.rootStart { result.append(SummaryCandidate(id: record.id, clock: clock)) }
        }
        return result
    }

    /// Records by segment and ordinal: $1 account, $2…$5 keys of segments, $6 numbers of segments, $7 ordinals.
    private static let recordsInput = """
        (SELECT substring(s.records FROM w.ordinal * \(SearchSegment.recordBytes) + 1 FOR \(SearchSegment.recordBytes)) AS record
         FROM unnest($6::int4[], $7::int4[]) AS w (number, ordinal)
         JOIN (SELECT k.number, r.records
               FROM unnest($2::int8[], $3::int4[], $4::int2[], $5::int8[]) WITH ORDINALITY
                   AS k (hour, partition, level, last_offset, number)
               CROSS JOIN LATERAL (
                   SELECT records FROM search_segments WHERE account = $1 AND hour = k.hour AND partition = k.partition
                       AND level = k.level AND last_offset = k.last_offset OFFSET 0) r) s
         ON s.number = w.number OFFSET 0) p
        """

    private func bind(
        _ places: [(segment: Int, ordinal: Int)], _ infos: [SegmentInfo], to statement: inout PostgresStatement
    ) {
        var numbers = PostgresArray.int4
        var ordinals = PostgresArray.int4
        var used: [Int: Int32] = [:]
        var keys: [SegmentKey] = []
        for place in places {
            let number: Int32
            if let known = used[place.segment] {
                number = known
            } else {
                keys.append(infos[place.segment].key)
                number = Int32(keys.count)
                used[place.segment] = number
            }
            numbers.append(number)
            ordinals.append(Int32(place.ordinal))
        }
        statement.bind(account)
        statement.bindKeys(keys)
        statement.bind(numbers)
        statement.bind(ordinals)
    }

    // MARK: Receipts and ends

    /// The clock depends on the window, so all candidates are looked up and sorted. Nil: there are too many of them.
    func byMovingClock(_ clock: String, kind: Int, _ infos: [SegmentInfo]) async throws(SearchWalkError) -> SearchPage?
    {
        var places: [(segment: Int, ordinal: Int)] = []
        var start = 0
        while start < infos.count {
            let group = Array(infos[start..<min(start + Self.segmentsAtOnce, infos.count)])
            for (offset, set) in try await evaluate(group).sets.enumerated() {
                for block in group[offset].marks.indices {
                    for ordinal in set.members(inBlock: block) { places.append((start + offset, ordinal)) }
                }
                guard places.count <= Self.mostMoving else { return nil }
            }
            start += group.count
        }
        guard !places.isEmpty else { return SearchPage(candidates: [], isLast: true) }
        var statement = PostgresStatement(
            """
            WITH found AS MATERIALIZED (SELECT substring(p.record FROM 1 FOR 16) AS id FROM \(Self.recordsInput))
            SELECT c.trace_id, c.second, c.micros, (SELECT count(*) FROM found) FROM (
                SELECT t.trace_id, m.second, m.micros FROM (SELECT DISTINCT id FROM found) f
                CROSS JOIN LATERAL (
                    SELECT * FROM traces WHERE account = $1 AND trace_id = encode(f.id, 'hex')::uuid OFFSET 0) t
                CROSS JOIN LATERAL (
                    SELECT CASE WHEN t.\(clock)_second < $9 THEN t.\(clock)_second ELSE t.\(clock)_prev_second END AS second,
                        CASE WHEN t.\(clock)_second < $9 THEN t.\(clock)_micros ELSE t.\(clock)_prev_micros END AS micros
                    WHERE t.flags & \(kind) = 0
                    UNION ALL
                    (SELECT n.second, n.micros FROM trace_moments n WHERE t.flags & \(kind) <> 0 AND n.account = $1
                         AND n.trace_id = t.trace_id AND n.kind = \(kind) AND n.second >= $8 AND n.second < $9
                     ORDER BY n.second DESC LIMIT 1)) m
                WHERE t.root_second IS NOT NULL AND m.second >= $8 AND m.second < $9
                  AND m.second <= $10 AND (m.second < $10 OR m.micros < $11 OR m.micros = $11 AND t.trace_id > $12)
                ORDER BY m.second DESC, m.micros DESC, t.trace_id LIMIT $13) c
            UNION ALL SELECT NULL, NULL, NULL, count(*) FROM found
            """)
        bind(places, infos, to: &statement)
        statement.bind(window.lowerBound)
        statement.bind(window.upperBound)
        let split = after.map { ClockSplit($0.clock) }
        statement.bind(split?.second ?? .max)
        statement.bind(split?.micros ?? 0)
        statement.bind(after?.id ?? TraceID(high: 0, low: 0))
        statement.bind(Int64(limit) + 1)
        let rows = try await ask(statement)
        guard rows.rowCount > 0, Int(rows.int(0, 3)) == places.count else { throw .segmentGone }
        var found: [SummaryCandidate] = []
        for row in 0..<rows.rowCount where !rows.isNull(row, 0) {
            found.append(
                SummaryCandidate(
                    id: TraceID(rows.uuid(row, 0)), clock: rows.int(row, 1) &* 1_000_000 &+ rows.int(row, 2)))
        }
        return SearchPage(candidates: Array(found.prefix(limit)), isLast: found.count <= limit)
    }

    // MARK: Evaluating

    /// The traces of each segment that the plan lets through, and how many bytes were read for it.
    func evaluate(_ infos: [SegmentInfo]) async throws(SearchWalkError) -> (sets: [TraceSet], bytes: Int) {
        var known = store.searchCache.sets(of: plan, account: account)
        let missing = infos.filter { known[$0.key] == nil }
        var bytes = 0
        if !missing.isEmpty {
            let (sets, read) = try await read(missing)
            for (info, set) in zip(missing, sets) { known[info.key] = set }
            bytes = read
            store.searchCache.add(zip(missing, sets).map { ($0.key, $1) }, plan: plan, account: account)
        }
        return (infos.compactMap { known[$0.key] }, bytes)
    }

    private func read(_ infos: [SegmentInfo]) async throws(SearchWalkError) -> (sets: [TraceSet], bytes: Int) {
        let needs = SearchNeeds(plan)
        var evaluations = infos.map {
            SearchEvaluation(
                plan, needs: needs, traceCount: $0.traceCount, sliceBits: $0.sliceBits, hasAllFields: $0.hasAllFields)
        }
        var bytes = 0
        let rows = try await ask(partsStatement(infos, needs))
        var present: Set<Int> = []
        do {
            for row in 0..<rows.rowCount {
                let index = Int(rows.int(row, 0)) - 1
                let part = rows.bytes(row, 3)
                bytes += part.count
                present.insert(index)
                switch rows.int(row, 1) {
                case 0: evaluations[index].setSlice(Int(rows.int(row, 2)), part)
                case 1:
                    guard let flag = SearchFlag(rawValue: Int(rows.int(row, 2))) else { continue }
                    try evaluations[index].setFlag(flag, part[...])
                case 2: try evaluations[index].setResponseSteps(part[...])
                default: try evaluations[index].setDurationSteps(part[...])
                }
            }
            guard present.count == infos.count else { throw SearchWalkError.segmentGone }
            var more: [(segment: Int, slice: Int)] = []
            for index in evaluations.indices {
                more += try evaluations[index].resolveValues().map { (index, $0) }
            }
            if !more.isEmpty {
                let rows = try await ask(slicesStatement(more, infos))
                guard rows.rowCount == more.count else { throw SearchWalkError.segmentGone }
                for row in 0..<rows.rowCount {
                    let part = rows.bytes(row, 2)
                    bytes += part.count
                    evaluations[Int(rows.int(row, 0)) - 1].setSlice(Int(rows.int(row, 1)), part)
                }
            }
            var sets: [TraceSet] = []
            for evaluation in evaluations { sets.append(try evaluation.result()) }
            return (sets, bytes)
        } catch let error as SearchWalkError {
            throw error
        } catch {
            throw .store(TraceStoreError(.corrupt, "\(error)"))
        }
    }

    private static let segmentsInput = """
        unnest($2::int8[], $3::int4[], $4::int2[], $5::int8[]) WITH ORDINALITY AS k (hour, partition, level, last_offset, number)
        CROSS JOIN LATERAL (
            SELECT trace_count, slice_bits, slice_offsets, columns, postings, (trace_count + 63) / 64 * 8 AS bitmap
            FROM search_segments WHERE account = $1 AND hour = k.hour AND partition = k.partition AND level = k.level
                AND last_offset = k.last_offset OFFSET 0) s
        """

    private func partsStatement(_ infos: [SegmentInfo], _ needs: SearchNeeds) -> PostgresStatement {
        var statement = PostgresStatement(
            """
            SELECT k.number, p.kind, p.number, p.part FROM \(Self.segmentsInput)
            CROSS JOIN LATERAL (
                SELECT 0 AS kind, q.slice AS number,
                    substring(s.postings FROM s.slice_offsets[q.slice + 1] + 1
                              FOR s.slice_offsets[q.slice + 2] - s.slice_offsets[q.slice + 1]) AS part
                FROM (SELECT DISTINCT prefix >> (10 - s.slice_bits) AS slice FROM unnest($6::int4[]) AS prefix) q
                UNION ALL
                SELECT 1, flag, substring(s.columns FROM flag * s.bitmap + 1 FOR s.bitmap) FROM unnest($7::int4[]) AS flag
                UNION ALL
                SELECT 2, 0, substring(s.columns FROM \(SearchFlag.slots) * s.bitmap + 1 FOR s.trace_count) WHERE $8
                UNION ALL
                SELECT 3, 0, substring(s.columns FROM \(SearchFlag.slots) * s.bitmap + s.trace_count + 1 FOR s.trace_count) WHERE $9
            ) p
            """)
        statement.bind(account)
        statement.bindKeys(infos.map(\.key))
        var prefixes = PostgresArray.int4
        for prefix in needs.slicePrefixes { prefixes.append(prefix) }
        statement.bind(prefixes)
        var flags = PostgresArray.int4
        for flag in needs.flags { flags.append(Int32(flag.rawValue)) }
        statement.bind(flags)
        statement.bind(needs.needsResponseTime)
        statement.bind(needs.needsDuration)
        return statement
    }

    private func slicesStatement(_ slices: [(segment: Int, slice: Int)], _ infos: [SegmentInfo]) -> PostgresStatement {
        var statement = PostgresStatement(
            """
            SELECT k.number, w.slice,
                substring(s.postings FROM s.slice_offsets[w.slice + 1] + 1
                          FOR s.slice_offsets[w.slice + 2] - s.slice_offsets[w.slice + 1])
            FROM \(Self.segmentsInput)
            JOIN unnest($6::int4[], $7::int4[]) AS w (number, slice) ON w.number = k.number
            """)
        statement.bind(account)
        statement.bindKeys(infos.map(\.key))
        var numbers = PostgresArray.int4
        var wanted = PostgresArray.int4
        for slice in slices {
            numbers.append(Int32(slice.segment + 1))
            wanted.append(Int32(slice.slice))
        }
        statement.bind(numbers)
        statement.bind(wanted)
        return statement
    }
}
