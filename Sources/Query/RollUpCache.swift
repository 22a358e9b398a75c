// Sums of whole minutes of an account's observations, kept in memory: a graph or a series over hours then reads only the
// borders of its window. Each sum is kept with the names of the rows it was made of; whether these are still what the store
// has is asked anew for every answer (`RollUpReader`). So losing one costs time, and keeping one too long costs nothing else.

import Segments
import ServiceGraph
import Synchronization
import TraceStore

/// Minutes that are summed together.
struct MinuteSpan: Hashable {
    /// Since 1970.
    var first: Int64
    /// 1, 10 or 60.
    var length: Int64

    var minutes: Range<Int64> { first..<(first + length) }

    /// Whole hours where there are, tens of minutes at their sides, minutes at the ends; ascending.
    static func covering(_ minutes: Range<Int64>) -> [MinuteSpan] {
        var spans: [MinuteSpan] = []
        var next = minutes.lowerBound
        while next < minutes.upperBound {
            let length: Int64 = [60, 10].first { next % $0 == 0 && next + $0 <= minutes.upperBound } ?? 1
            spans.append(MinuteSpan(first: next, length: length))
            next += length
        }
        return spans
    }

    /// What it is summed from: an hour from tens, ten minutes from minutes, a minute from rows.
    var parts: [MinuteSpan] {
        let partLength: Int64 = length == 60 ? 10 : 1
        if length == 1 { return [] }
        return stride(from: first, to: first + length, by: Int64.Stride(partLength)).map {
            MinuteSpan(first: $0, length: partLength)
        }
    }
}

/// What one operation shows of minutes, without their seconds.
enum SpanSum {
    /// - Parameters:
    ///   - block: nil when nothing was observed.
    ///   - hasOld: whether something was observed of members that an older version of the group's filter admitted.
    case graph(block: [UInt8]?, hasOld: Bool)
    /// - Parameter oldMinutes: those with such members.
    case series(SeriesMinutes, oldMinutes: [Int64])

    var byteCount: Int {
        switch self {
        case .graph(let block, _): block?.count ?? 0
        case .series(let minutes, let oldMinutes): minutes.byteCount + oldMinutes.count * 8
        }
    }
}

/// The sum of a span, and of which rows.
struct RollUp {
    /// Of the rows of its minutes, one after the other (`NamedGraphBlocks.names`).
    var names: [UInt8]
    var sum: SpanSum
}

/// The roll-ups of one process, up to a number of bytes; those not used for longest give way.
final class RollUpCache: Sendable {
    enum Subject: Hashable {
        case graph
        case series(SeriesSelector)

        var byteCount: Int {
            guard case .series(let selector) = self else { return 0 }
            return selector.byteCount
        }
    }

    struct Key: Hashable {
        var account: AccountID
        /// Zero: all traces.
        var groupKey: Int64
        /// Of the group's filter: it decides what is old.
        var groupVersion: Int
        var subject: Subject
        var span: MinuteSpan
    }

    private struct Entry {
        var rollUp: RollUp
        var byteCount: Int
        var lastUse: Int64
    }

    private struct State {
        var entries: [Key: Entry] = [:]
        var byteCount = 0
        var uses: Int64 = 0

        mutating func remove(_ key: Key) {
            if let entry = entries.removeValue(forKey: key) { byteCount -= entry.byteCount }
        }
    }

    private let state = Mutex(State())
    let maxBytes: Int

    init(maxBytes: Int) { self.maxBytes = maxBytes }

    var byteCount: Int { state.withLock { $0.byteCount } }

    /// Whether it still holds is for the caller to find out.
    func rollUp(for key: Key) -> RollUp? {
        state.withLock { state in
            state.uses += 1
            state.entries[key]?.lastUse = state.uses
            return state.entries[key]?.rollUp
        }
    }

    func keep(_ rollUp: RollUp, for key: Key) {
        // What a dictionary of such entries takes beside the arrays.
        let byteCount = rollUp.names.count + rollUp.sum.byteCount + key.subject.byteCount + 300
        guard byteCount <= maxBytes else { return drop(key) }
        state.withLock { state in
            state.remove(key)
            state.uses += 1
            state.entries[key] = Entry(rollUp: rollUp, byteCount: byteCount, lastUse: state.uses)
            state.byteCount += byteCount
            guard state.byteCount > maxBytes else { return }
            // Down to seven eighths, so that not every further entry sorts all of them.
            for (key, _) in state.entries.sorted(by: { $0.value.lastUse < $1.value.lastUse }) {
                if state.byteCount <= maxBytes / 8 * 7 { break }
                state.remove(key)
            }
        }
    }

    func drop(_ key: Key) { state.withLock { $0.remove(key) } }
}
