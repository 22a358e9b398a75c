// Reads the blocks of a window: whole minutes as roll-ups where they are kept, the rest as the rows of the store. What comes
// out adds up to exactly what the rows alone add up to.
//
// Why a roll-up that is used is never out of date: the answer is made from one statement, which sees one snapshot of the
// store and says the names of the rows of **all** minutes of the window in it. A roll-up is used only if its rows had the
// very same names. A name is (minute, version, partition, level, last offset, xmin) and the server's start:
// - Two versions of a row of the same key never have the same xmin. A row is never updated in the transaction that wrote it,
//   and of several that one transaction wrote under one key only the last is ever seen. Transaction numbers are used once in
//   a cluster, so this holds for tables that a rebuild exchanged, too. (They come around after 2^32 transactions: the very
//   same number would have to write the very same key again, while a node still keeps the sum.)
// - A server restored from a backup, or one that takes over from another, may use numbers again that were seen before. It has
//   another start. A standby that is promoted has lost nothing that it ever showed; nor has a server that recovers from a
//   crash without a new start: commits of blocks are on disk before anybody sees them (`synchronous_commit`).
// Rows that come and go are other names, whatever brought them: late documents, merges, retention, a rebuild. That makes no
// difference between old transactions and young ones: names are compared of what a snapshot sees, not of what has committed.

import Observability
import Segments
import ServiceGraph
import TraceStore
import XRayAPI

/// Part of a window.
enum WindowPart {
    /// All rows of some minutes, in order of minute.
    case rows([GroupBlockRow])
    /// Of whole minutes.
    case sum(SpanSum)
}

/// What of the store's blocks an operation reads.
struct WindowQuestion {
    var account: AccountID
    /// Nil: all traces.
    var group: TraceGroup?
    var subject: RollUpCache.Subject
    /// All that are read.
    var minutes: Range<Int64>
    /// Those of which seconds do not matter; within `minutes`.
    var wholeMinutes: Range<Int64>

    init(
        account: AccountID, group: TraceGroup?, subject: RollUpCache.Subject, minutes: Range<Int64>,
        wholeMinutes: Range<Int64>
    ) {
        self.account = account
        self.group = group
        self.subject = subject
        self.minutes = minutes
        self.wholeMinutes = wholeMinutes
    }

    /// - Parameter window: seconds since 1970, which may cut its first and last minute.
    init(graphOf group: TraceGroup?, window: Range<Int64>, account: AccountID) {
        let firstWhole = floorDivide(window.lowerBound + 59, 60)
        self.init(
            account: account, group: group, subject: .graph,
            minutes: floorDivide(window.lowerBound, 60)..<floorDivide(window.upperBound + 59, 60),
            wholeMinutes: firstWhole..<max(firstWhole, floorDivide(window.upperBound, 60)))
    }

    /// Of members that an older version of the group's filter admitted.
    func isOld(_ row: GroupBlockRow) -> Bool { group.map { row.version < $0.version } ?? false }

    /// The minutes in which such members were observed.
    /// - Parameter rows: all of some minutes.
    func oldMinutes(of rows: [GroupBlockRow]) throws -> [Int64] {
        let old = rows.filter(isOld)
        return old.isEmpty ? [] : try SeriesMinutes(of: old.map(\.bytes), .clientEdges).observedMinutes()
    }

    func key(_ span: MinuteSpan) -> RollUpCache.Key {
        RollUpCache.Key(
            account: account, groupKey: group?.key ?? 0, groupVersion: group?.version ?? 0, subject: subject, span: span
        )
    }
}

extension QueryService {
    /// A minute that ended less than this ago still gets documents: its sum would not last until the next question.
    private static let unsettledMinutes: Int64 = 1

    /// Minutes whose rows are in memory at once while they are summed; more than the borders of a window have.
    private static let minutesAtOnce = 10

    /// The parts of a window in order of time, all of one snapshot of the store.
    func parts(of question: WindowQuestion) async throws(APIError) -> [WindowPart] {
        guard rollUps.maxBytes > 0 else { return try await rowsAlone(of: question) }
        var reader = RollUpReader(
            question, rollUps, settledBefore: floorDivide(now(), 60_000_000) - Self.unsettledMinutes)
        reader.findHeld()
        // All of it may have to be summed; unless much changes meanwhile, so many rounds and a few more are enough.
        for _ in 0..<(question.minutes.count / Self.minutesAtOnce + 10) {
            let isComplete = try await round(&reader, question)
            if isComplete { return reader.parts }
        }
        return try await rowsAlone(of: question)
    }

    /// - Returns: whether the parts of the window are there, all of one snapshot.
    private func round(_ reader: inout RollUpReader, _ question: WindowQuestion) async throws(APIError) -> Bool {
        var wanted: [MinuteSpan] = []
        var count = 0
        let missing = reader.missing
        for span in missing where count < Self.minutesAtOnce {
            wanted.append(span)
            count += Int(span.length)
        }
        // Names are asked of all minutes only when this can be the last round.
        let isLast = wanted.count == missing.count
        let minutes =
            isLast ? question.minutes : (wanted.first?.first ?? 0)..<(wanted.last?.minutes.upperBound ?? 0)
        let stored = try await read("graph blocks") {
            try await reading.graphBlocks(
                account: question.account, groupKey: question.group?.key, minutes: minutes,
                reading: reader.minutes(of: wanted, withBorders: isLast))
        }
        let counts = try await read("graph blocks") { try reader.take(stored, minutes: minutes) }
        metrics?.rollUps(counts.made, .made)
        metrics?.rollUps(counts.stale, .stale)
        guard isLast, reader.missing.isEmpty else { return false }
        metrics?.rollUps(reader.foundCount, .hit)
        return true
    }

    private func rowsAlone(of question: WindowQuestion) async throws(APIError) -> [WindowPart] {
        let stored = try await read("graph blocks") {
            try await reading.graphBlocks(
                account: question.account, groupKey: question.group?.key, minutes: question.minutes,
                reading: [question.minutes])
        }
        return [.rows(stored.rows)]
    }
}

/// Puts one window together.
private struct RollUpReader {
    private let question: WindowQuestion
    private let cache: RollUpCache
    /// They cover the settled ones of the whole minutes.
    private let spans: [MinuteSpan]
    private let before: Range<Int64>
    private let after: Range<Int64>
    private var held: [MinuteSpan: RollUp] = [:]
    private var found: Set<MinuteSpan> = []
    private var borderRows: [GroupBlockRow] = []

    init(_ question: WindowQuestion, _ cache: RollUpCache, settledBefore: Int64) {
        self.question = question
        self.cache = cache
        let whole = question.wholeMinutes
        let first = min(max(whole.lowerBound, question.minutes.lowerBound), question.minutes.upperBound)
        let past = max(first, min(whole.upperBound, settledBefore))
        spans = MinuteSpan.covering(first..<past)
        before = question.minutes.lowerBound..<first
        after = past..<max(past, question.minutes.upperBound)
    }

    /// Spans of the answer that were found, not made.
    var foundCount: Int { spans.count { found.contains($0) } }

    mutating func findHeld() { for span in spans { find(span) } }

    /// Looks for a span, and for its parts when it is not there.
    private mutating func find(_ span: MinuteSpan) {
        if held[span] != nil { return }
        if let known = cache.rollUp(for: question.key(span)) {
            held[span] = known
            found.insert(span)
        } else {
            for part in span.parts { find(part) }
        }
    }

    /// What is to be summed from rows, ascending: ten minutes or one.
    var missing: [MinuteSpan] { spans.flatMap(missing) }

    private func missing(in span: MinuteSpan) -> [MinuteSpan] {
        if held[span] != nil { return [] }
        return span.length <= 10 ? [span] : span.parts.flatMap(missing)
    }

    /// The minutes to read, as ranges that do not touch; ascending.
    func minutes(of wanted: [MinuteSpan], withBorders: Bool) -> [Range<Int64>] {
        var unread: [Range<Int64>] = withBorders ? [before] : []
        for span in wanted {
            unread +=
                span.length == 1 ? [span.minutes] : span.parts.filter { held[$0] == nil }.map(\.minutes)
        }
        if withBorders { unread.append(after) }
        var joined: [Range<Int64>] = []
        for range in unread where !range.isEmpty {
            if let last = joined.last, last.upperBound == range.lowerBound {
                joined[joined.count - 1] = last.lowerBound..<range.upperBound
            } else {
                joined.append(range)
            }
        }
        return joined
    }

    /// Drops what is held of the minutes under other names, and sums what was read.
    /// - Parameter minutes: of which the names were asked.
    mutating func take(_ stored: NamedGraphBlocks, minutes: Range<Int64>) throws -> (made: Int, stale: Int) {
        var stale = 0
        for span in spans { stale += check(span, stored, minutes: minutes) }
        let rows = Dictionary(grouping: stored.rows, by: \.minute)
        var read = Set<Int64>()
        for range in stored.minutesRead { read.formUnion(range) }
        var made = 0
        for span in spans where span.minutes.overlaps(minutes) { _ = try sum(span, rows, read, stored.names, &made) }
        borderRows = stored.rows.filter { before.contains($0.minute) || after.contains($0.minute) }
        return (made, stale)
    }

    /// - Returns: number of roll-ups that were out of date.
    private mutating func check(_ span: MinuteSpan, _ stored: NamedGraphBlocks, minutes: Range<Int64>) -> Int {
        guard span.minutes.overlaps(minutes) else { return 0 }
        var stale = 0
        if let known = held[span], span.minutes.clamped(to: minutes) == span.minutes {
            if known.names == span.minutes.flatMap({ stored.names[$0] ?? [] }) { return 0 }
            held[span] = nil
            found.remove(span)
            cache.drop(question.key(span))
            stale = 1
            // Most of its parts are what they were.
            find(span)
        }
        if held[span] == nil { for part in span.parts { stale += check(part, stored, minutes: minutes) } }
        return stale
    }

    /// The sum of a span if all of it is held or was read; it is kept.
    private mutating func sum(
        _ span: MinuteSpan, _ rows: [Int64: [GroupBlockRow]], _ read: Set<Int64>, _ names: [Int64: [UInt8]],
        _ made: inout Int
    ) throws -> RollUp? {
        if let known = held[span] { return known }
        var parts: [WindowPart] = []
        var partNames: [UInt8] = []
        var isWhole = true
        for part in span.length == 1 ? [span] : span.parts {
            if part.length == 1, held[part] == nil {
                guard read.contains(part.first) else { return nil }
                parts.append(.rows(rows[part.first] ?? []))
                partNames += names[part.first] ?? []
            } else if let known = try sum(part, rows, read, names, &made) {
                parts.append(.sum(known.sum))
                partNames += known.names
            } else {
                // The others are summed nevertheless: they were read.
                isWhole = false
            }
        }
        guard isWhole else { return nil }
        let rollUp = RollUp(names: partNames, sum: try question.sum(of: parts, in: span))
        held[span] = rollUp
        cache.keep(rollUp, for: question.key(span))
        made += 1
        return rollUp
    }

    /// When nothing is missing.
    var parts: [WindowPart] {
        [.rows(borderRows.filter { before.contains($0.minute) })]
            + spans.compactMap { held[$0].map { .sum($0.sum) } }
            + [.rows(borderRows.filter { after.contains($0.minute) })]
    }
}

// MARK: - Sums

extension WindowQuestion {
    /// - Parameter parts: the rows and sums of all minutes of the span, ascending.
    fileprivate func sum(of parts: [WindowPart], in span: MinuteSpan) throws -> SpanSum {
        switch subject {
        case .graph: try graph(of: parts, in: span)
        case .series(let selector): try series(of: parts, selector)
        }
    }

    private func graph(of parts: [WindowPart], in span: MinuteSpan) throws -> SpanSum {
        var blocks: [[UInt8]] = []
        var old: [[UInt8]] = []
        var hasOld = false
        for part in parts {
            switch part {
            case .rows(let rows):
                blocks += rows.map(\.bytes)
                old += rows.filter(isOld).map(\.bytes)
            case .sum(.graph(let block, let isOld)):
                if let block { blocks.append(block) }
                hasOld = hasOld || isOld
            case .sum(.series): break
            }
        }
        if !hasOld, !old.isEmpty {
            var builder = ServiceGraphBuilder(receivingAccount: account, window: nil)
            for block in old { try builder.add(block) }
            hasOld = try !builder.build().services.isEmpty
        }
        let sum = try GraphBlock.rollUp(blocks, baseSecond: span.first * 60, spanSeconds: span.length * 60)
        return .graph(block: sum?.bytes, hasOld: hasOld)
    }

    private func series(of parts: [WindowPart], _ selector: SeriesSelector) throws -> SpanSum {
        var minutes = SeriesMinutes()
        var oldMinutes: [Int64] = []
        for part in parts {
            switch part {
            case .rows(let rows):
                minutes.append(try SeriesMinutes(of: rows.map(\.bytes), selector))
                oldMinutes += try self.oldMinutes(of: rows)
            case .sum(.series(let sum, let old)):
                minutes.append(sum)
                oldMinutes += old
            case .sum(.graph): break
            }
        }
        return .series(minutes, oldMinutes: oldMinutes)
    }
}
