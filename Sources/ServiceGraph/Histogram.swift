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

/// Sums per (histogram, bucket) for many histograms at once. Pages of buckets are made when something falls into them: most
/// histograms use a few of thousands of buckets, and neighbours are used together.
struct BucketTable {
    private static let pageBits: Int64 = 6
    private static let pagesPerHistogram = 44
    /// Buckets below this number (times below 116 s) live in pages, the others in `rare`.
    private static let pagedBuckets = Int64(pagesPerHistogram) << pageBits

    private struct RareKey: Hashable {
        var histogram: Int
        var bucket: Int64
    }

    /// Per histogram its first place in `directory`, -1 while it is empty.
    private var histograms: [Int32] = []
    /// Number of each page of a histogram, -1 while it is empty.
    private var directory: [Int32] = []
    private var pages: [BucketSum] = []
    private var rare: [RareKey: BucketSum] = [:]

    /// Room for histograms 0..<count.
    mutating func grow(to count: Int) {
        while histograms.count < count { histograms.append(-1) }
    }

    @inline(__always)
    mutating func add(histogram: Int, bucket: Int64, count: Int64, sum: Micros) {
        guard bucket >= 0, bucket < Self.pagedBuckets else {
            return addRare(RareKey(histogram: histogram, bucket: bucket), count: count, sum: sum)
        }
        let page = Int(bucket >> Self.pageBits)
        var number = histograms[histogram] < 0 ? -1 : directory[Int(histograms[histogram]) &+ page]
        if number < 0 { number = makePage(histogram, page) }
        let place = Int(number) << Int(Self.pageBits) | Int(bucket & ((1 << Self.pageBits) - 1))
        pages[place].count &+= count
        pages[place].sum &+= sum
    }

    private mutating func makePage(_ histogram: Int, _ page: Int) -> Int32 {
        if histograms[histogram] < 0 {
            histograms[histogram] = Int32(directory.count)
            directory.append(contentsOf: repeatElement(-1, count: Self.pagesPerHistogram))
        }
        let number = Int32(pages.count >> Int(Self.pageBits))
        pages.append(contentsOf: repeatElement(BucketSum(count: 0, sum: 0), count: 1 << Int(Self.pageBits)))
        directory[Int(histograms[histogram]) + page] = number
        return number
    }

    private mutating func addRare(_ key: RareKey, count: Int64, sum: Micros) {
        let known = rare[key] ?? BucketSum(count: 0, sum: 0)
        rare[key] = BucketSum(count: known.count &+ count, sum: known.sum &+ sum)
    }

    /// The buckets of every histogram that are not zero, with their numbers, in ascending order.
    func numbered() -> [[GraphGroup.Bucket]] {
        var result = histograms.map { first -> [GraphGroup.Bucket] in
            guard first >= 0 else { return [] }
            var buckets: [GraphGroup.Bucket] = []
            for page in 0..<Self.pagesPerHistogram where directory[Int(first) + page] >= 0 {
                let start = Int(directory[Int(first) + page]) << Int(Self.pageBits)
                for offset in 0..<(1 << Int(Self.pageBits)) {
                    let sum = pages[start + offset]
                    guard sum.count != 0 || sum.sum != 0 else { continue }
                    let number = Int64(page) << Self.pageBits + Int64(offset)
                    buckets.append(GraphGroup.Bucket(bucket: number, count: sum.count, sum: sum.sum))
                }
            }
            return buckets
        }
        for (key, sum) in rare.sorted(by: { $0.key.bucket < $1.key.bucket }) where sum.count != 0 || sum.sum != 0 {
            result[key.histogram].append(GraphGroup.Bucket(bucket: key.bucket, count: sum.count, sum: sum.sum))
        }
        return result
    }

    /// The buckets with a positive count of every histogram, in ascending order.
    func filled() -> [[BucketSum]] {
        var result = histograms.map { first -> [BucketSum] in
            guard first >= 0 else { return [] }
            var buckets: [BucketSum] = []
            for page in directory[Int(first)..<(Int(first) + Self.pagesPerHistogram)] where page >= 0 {
                let start = Int(page) << Int(Self.pageBits)
                for bucket in pages[start..<(start + (1 << Int(Self.pageBits)))] where bucket.count > 0 {
                    buckets.append(bucket)
                }
            }
            return buckets
        }
        for (key, sum) in rare.sorted(by: { $0.key.bucket < $1.key.bucket }) where sum.count > 0 {
            result[key.histogram].append(sum)
        }
        return result
    }
}
