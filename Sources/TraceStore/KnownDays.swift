// Day partitions this process has seen or made, so that a commit asks PostgreSQL only for a new day.

import Segments
import Synchronization

final class KnownDays: Sendable {
    private let days = Mutex<Set<Int32>>([])

    func missing(of wanted: Set<Int32>) -> [Int32] { days.withLock { known in wanted.filter { !known.contains($0) } } }
    func add(_ new: [Int32]) { days.withLock { $0.formUnion(new) } }
    func forgetAll() { days.withLock { $0.removeAll() } }

    /// Day since 1970 of a receipt; receipts come from our own clocks, so anything else is cut to what a date can be.
    static func day(of receipt: Micros) -> Int32 {
        Int32(clamping: min(max(ClockSplit(receipt).second / 86_400, 0), 2_000_000))
    }
}

/// A time as whole second (floor) and microseconds within it.
struct ClockSplit: Equatable {
    var second: Int64
    var micros: Int32

    init(_ time: Micros) {
        var second = time / 1_000_000
        var rest = time % 1_000_000
        if rest < 0 {
            second -= 1
            rest += 1_000_000
        }
        self.second = second
        micros = Int32(rest)
    }
}

/// Times of a trace as its row keeps them.
struct ClockMoments {
    /// Newest time of each distinct second, newest second first.
    let moments: [ClockSplit]

    init(_ times: [Micros]) {
        var newest: [ClockSplit] = []
        for time in times.sorted(by: >) {
            let split = ClockSplit(time)
            if newest.last?.second != split.second { newest.append(split) }
        }
        moments = newest
    }

    var newest: ClockSplit? { moments.first }
    /// The second newest, when it is also the last and near: a search for traces on both sides of the end of its window
    /// looks back this far and no further.
    var previous: ClockSplit? { moments.count == 2 && !isWide ? moments[1] : nil }

    /// Needs rows in `trace_moments`.
    var isWide: Bool {
        guard moments.count == 2 else { return moments.count > 2 }
        return moments[0].second - moments[1].second > Self.nearSeconds
    }

    static let nearSeconds: Int64 = 4
}
