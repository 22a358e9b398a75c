// Folds records of some partitions into the new tables, on a thread of its own: batches as large as memory allows, one
// partition at a time, so that most traces are folded and written in one piece. While one batch is folded the one before is
// committed and the next is read.

import SegmentLog
import Segments
import TraceAssembly
import TraceStore

actor ReplayWorker {
    private nonisolated let thread = WorkerThread(name: "rebuild")
    nonisolated var unownedExecutor: UnownedSerialExecutor { thread.asUnownedSerialExecutor() }

    private let log: any SegmentLog
    private let store: TraceStore
    private let options: RebuildOptions
    private let fold: BatchFold
    private var commitUnderWay: Task<Void, any Error>?
    private var changed: Set<TraceKey> = []

    /// - Parameter newRecords: number of records to come, if nobody has written a trace of these partitions before; else nil.
    init(log: any SegmentLog, store: TraceStore, options: RebuildOptions, newRecords: Int?) {
        self.log = log
        self.store = store
        self.options = options
        fold = BatchFold(
            store: store, limits: TraceLimits(traceBytes: options.maxTraceBytes), segmentLimits: options.segmentLimits,
            cacheCapacity: options.cacheEntities)
        fold.stored = newRecords.map { TraceFilter(recordCount: $0) }
    }

    /// Replays up to the targets.
    /// - Parameters:
    ///   - targets: offsets, by partition.
    ///   - collectsKeys: whether to return the traces of all records.
    ///   - progress: is told how many records were committed.
    /// - Returns: the new states, and those traces.
    func replay(
        _ partitions: [PartitionState], to targets: [Int: Int64], collectsKeys: Bool,
        progress: @escaping @Sendable (Int) -> Void
    ) async throws -> (states: [PartitionState], keys: Set<TraceKey>) {
        changed = []
        var states = partitions
        do {
            var ahead: (index: Int, reading: Task<LogBatch, any Error>)?
            var last = states.count - 1
            while true {
                try Task.checkCancellation()
                let current: (index: Int, reading: Task<LogBatch, any Error>)
                if let ahead {
                    current = ahead
                } else if let next = Self.next(after: last, of: states, to: targets) {
                    current = (next, read(states[next], to: targets))
                } else {
                    break
                }
                let batch = try await current.reading.value
                last = current.index
                guard batch.nextOffset > states[last].position else {
                    throw RebuildError.logEnded(partition: batch.partition, offset: batch.from)
                }
                var planned = states
                planned[last].position = batch.nextOffset
                ahead = Self.next(after: last, of: planned, to: targets).map { ($0, read(planned[$0], to: targets)) }

                let move = PositionMove(
                    partition: batch.partition, from: states[last].position, to: batch.nextOffset,
                    ownerEpoch: states[last].ownerEpoch, receivedThrough: batch.entries.map(\.receivedAt).max(),
                    checkedPosition: batch.nextOffset)
                if collectsKeys {
                    for entry in batch.entries { changed.insert(TraceKey(account: entry.account, id: entry.traceID)) }
                }
                let folded = try await fold.fold([batch], moves: [move])
                try await settle()
                states[last].position = move.to
                commit(folded.rows, recordCount: batch.entries.count, progress: progress)
            }
            try await settle()
        } catch {
            _ = await commitUnderWay?.result
            commitUnderWay = nil
            fold.cache.removeAll()
            throw error
        }
        return (states, changed)
    }

    /// Links were evaluated by somebody else: what is in memory is out of date.
    func forget() { fold.cache.removeAll() }

    /// The next partition with something left, taking turns.
    private static func next(after last: Int, of states: [PartitionState], to targets: [Int: Int64]) -> Int? {
        for step in 1...max(states.count, 1) where !states.isEmpty {
            let index = (last + step) % states.count
            if states[index].position < targets[states[index].partition] ?? 0 { return index }
        }
        return nil
    }

    private func read(_ state: PartitionState, to targets: [Int: Int64]) -> Task<LogBatch, any Error> {
        let (log, options) = (log, options)
        let target = targets[state.partition] ?? state.position
        return Task {
            do {
                let batch = try await log.read(
                    partition: state.partition, from: state.position, maxRecords: options.batchRecords,
                    maxBytes: options.batchBytes)
                return Self.trimmed(batch, to: target)
            } catch let error as SegmentLogError {
                guard case .trimmed(let first) = error.code else { throw error }
                throw RebuildError.logWasCut(partition: state.partition, offset: state.position, first: first)
            }
        }
    }

    /// Without what lies behind the target, and ending with the day: a batch's graph blocks bear the day of its newest record,
    /// by which retention removes them.
    static func trimmed(_ batch: LogBatch, to target: Int64) -> LogBatch {
        var batch = batch
        let day = batch.entries.first.map { Self.day(of: $0.receivedAt) } ?? 0
        let end = batch.entries.firstIndex { $0.offset >= target || Self.day(of: $0.receivedAt) > day }
        if let end {
            batch.nextOffset = min(batch.entries[end].offset, target)
            batch.entries.removeSubrange(end...)
        }
        batch.nextOffset = min(batch.nextOffset, target)
        return batch
    }

    private static func day(of receipt: Micros) -> Int64 { receipt / 86_400_000_000 }

    private func commit(_ rows: AggregationBatch, recordCount: Int, progress: @escaping @Sendable (Int) -> Void) {
        let store = store
        commitUnderWay = Task {
            try await store.commitRebuilt(rows)
            progress(recordCount)
        }
    }

    private func settle() async throws {
        guard let task = commitUnderWay else { return }
        commitUnderWay = nil
        try await task.value
    }
}

extension TraceStore {
    /// A commit into the new tables: nobody else should be at work on them.
    func commitRebuilt(_ rows: AggregationBatch) async throws {
        switch try await commit(rows) {
        case .committed: break
        case .fenced: throw RebuildError.fenced
        case .versionConflict: throw RebuildError.conflict
        }
    }
}
