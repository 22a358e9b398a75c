// Histograms of the service graph (`service-graph.md` §4, rulings ): buckets to count in, entries to show.

import Segments

/// Bucket numbers: 1 ms wide below 1 s, 10 ms below 10 s, 100 ms below 100 s, 1 s above. Borders are [k·width, (k+1)·width)
/// of the exact microseconds.
enum HistogramBucket {
    @inline(__always)
    static func of(_ micros: Micros) -> Int64 {
        if micros < 1_000_000 { return max(0, micros) / 1_000 }
        if micros < 10_000_000 { return 900 + micros / 10_000 }
        if micros < 100_000_000 { return 1_800 + micros / 100_000 }
        return 2_700 + micros / 1_000_000
    }

    /// Smallest value of a bucket. Wraps around for numbers no bucket has: blocks come from outside.
    @inline(__always)
    static func lowerBound(_ bucket: Int64) -> Micros {
        if bucket < 1_000 { return bucket &* 1_000 }
        if bucket < 1_900 { return (bucket &- 900) &* 10_000 }
        if bucket < 2_800 { return (bucket &- 1_800) &* 100_000 }
        return (bucket &- 2_700) &* 1_000_000
    }
}

/// One entry of a histogram as shown: `{"Value":seconds,"Count":n}`.
public struct HistogramEntry: Sendable, Hashable {
    /// Mean of the entry's observations, rounded half up to whole milliseconds, in microseconds.
    public var value: Micros
    public var count: Int64

    public init(value: Micros, count: Int64) {
        self.value = value
        self.count = count
    }
}

/// Observations that fell into one bucket: how many, and the sum of their exact values.
struct BucketSum {
    var count: Int64
    var sum: Micros
}

extension HistogramEntry {
    /// Most entries a histogram is shown with.
    static let limit = 100

    /// What is shown for the non-empty buckets of a histogram, which stand in ascending order.
    static func entries(of buckets: [BucketSum]) -> [HistogramEntry] {
        guard buckets.count > limit else { return buckets.map(entry) }
        let total = buckets.reduce(0) { $0 &+ $1.count }
        let mergedEntries = Int64(limit - 2)
        var merged: [BucketSum] = [buckets[0]]
        var pending = BucketSum(count: 0, sum: 0)
        for bucket in buckets[1..<(buckets.count - 1)] {
            pending.count &+= bucket.count
            pending.sum &+= bucket.sum
            if pending.count &* mergedEntries >= total {
                merged.append(pending)
                pending = BucketSum(count: 0, sum: 0)
            }
        }
        if pending.count > 0 {
            // What is left over joins the last merged entry; without one (nearly all observations are in the outer
            // buckets) it is an entry of its own.
            if merged.count > 1 {
                merged[merged.count - 1].count &+= pending.count
                merged[merged.count - 1].sum &+= pending.sum
            } else {
                merged.append(pending)
            }
        }
        merged.append(buckets[buckets.count - 1])
        return merged.map(entry)
    }

    private static func entry(_ bucket: BucketSum) -> HistogramEntry {
        // Half up on the exact mean: floor(sum / (1000·count) + 1/2) milliseconds.
        let wholeMillis = bucket.sum / bucket.count / 1_000
        let rest = bucket.sum &- wholeMillis &* 1_000 &* bucket.count
        let millis = rest &* 2 >= 1_000 &* bucket.count ? wholeMillis &+ 1 : wholeMillis
        return HistogramEntry(value: millis &* 1_000, count: bucket.count)
    }
}

/// Sums per (histogram, bucket) for many histograms at once.
struct BucketTable {
    struct Slot {
        var histogram: Int64
        var bucket: Int64
        var count: Int64
        var sum: Micros
    }

    private var slots = [Slot](repeating: Slot(histogram: -1, bucket: 0, count: 0, sum: 0), count: 1_024)
    private var used = 0

    @inline(__always)
    mutating func add(histogram: Int64, bucket: Int64, count: Int64, sum: Micros) {
        let mask = slots.count &- 1
        var place = Self.place(histogram, bucket) & mask
        while true {
            let found = slots[place].histogram
            if found < 0 { break }
            if found == histogram, slots[place].bucket == bucket {
                slots[place].count &+= count
                slots[place].sum &+= sum
                return
            }
            place = (place &+ 1) & mask
        }
        slots[place] = Slot(histogram: histogram, bucket: bucket, count: count, sum: sum)
        used &+= 1
        if used &* 2 > slots.count { grow() }
    }

    private mutating func grow() {
        let old = slots
        slots = [Slot](repeating: Slot(histogram: -1, bucket: 0, count: 0, sum: 0), count: old.count * 2)
        let mask = slots.count &- 1
        for slot in old where slot.histogram >= 0 {
            var place = Self.place(slot.histogram, slot.bucket) & mask
            while slots[place].histogram >= 0 { place = (place &+ 1) & mask }
            slots[place] = slot
        }
    }

    @inline(__always)
    private static func place(_ histogram: Int64, _ bucket: Int64) -> Int {
        let key = UInt64(bitPattern: histogram) &* 0xe703_7ed1_a0b4_28db ^ UInt64(bitPattern: bucket)
        return Int(truncatingIfNeeded: (key &* 0x9e37_79b9_7f4a_7c15) >> 24)
    }

    /// The buckets with a positive count, per histogram in ascending order.
    func histograms() -> [Int64: [BucketSum]] {
        let filled = slots.filter { $0.histogram >= 0 && $0.count > 0 }
            .sorted { ($0.histogram, $0.bucket) < ($1.histogram, $1.bucket) }
        var result: [Int64: [BucketSum]] = [:]
        var start = 0
        while start < filled.count {
            var end = start
            while end < filled.count, filled[end].histogram == filled[start].histogram { end += 1 }
            result[filled[start].histogram] = filled[start..<end].map { BucketSum(count: $0.count, sum: $0.sum) }
            start = end
        }
        return result
    }
}
