// Read your writes (ruling 4): before a read, find out up to which receipt time every acknowledged document will be in
// its answer, and for some reads wait until that is now. Goes into the header `x-beamline-complete-to`.

import SegmentLog
import Segments
import Synchronization

/// How a read treats documents that are acknowledged but not yet in the tables.
enum ReadConsistency {
    /// Answer at once and say how complete the answer is.
    case atOnce
    /// Wait, bounded, until everything acknowledged before the read is in the tables.
    case fresh
}

final class Completeness: Sendable {
    private let reading: any TraceReading
    /// Longest wait of a fresh read.
    private let waitLimit: Duration
    /// The last answer about all partitions. It stays true: what is in the tables stays there.
    private let lastOfAll = Mutex<Micros>(0)

    init(reading: any TraceReading, waitLimit: Duration) {
        self.reading = reading
        self.waitLimit = waitLimit
    }

    /// To be called before the data is read.
    /// - Parameters:
    ///   - partitions: those whose documents the answer depends on; nil = all.
    ///   - now: the time at which the read started.
    /// - Returns: the receipt time up to which every acknowledged document is in what is read afterwards. While the log
    ///   cannot be asked, reads go on, and say what was known before.
    func reached(partitions: Set<Int>?, consistency: ReadConsistency, now: Micros) async throws -> Micros {
        do {
            let reached = try await ask(partitions: partitions, consistency: consistency, now: now)
            if partitions == nil { lastOfAll.withLock { $0 = max($0, reached) } }
            return reached
        } catch let error as SegmentLogError where error.isRetriable {
            return lastOfAll.withLock { $0 }
        }
    }

    private func ask(partitions: Set<Int>?, consistency: ReadConsistency, now: Micros) async throws -> Micros {
        if consistency == .fresh {
            let ends = try await reading.endOffsets()
            let targets = ends.indices.filter { partitions?.contains($0) ?? true }
                .map { LogPosition(partition: $0, offset: ends[$0]) }
            // Everything acknowledged before `now` lies before these offsets.
            if try await reading.waitForPositions(targets, timeout: waitLimit) { return now }
        }
        let positions = try await reading.positions().filter { partitions?.contains($0.partition) ?? true }
        let waiting = try await reading.backlog(beyond: positions)
        // One microsecond less: the oldest waiting document itself is not in the answer.
        return waiting.compactMap(\.oldestReceipt).map { $0 - 1 }.reduce(now, min)
    }
}
