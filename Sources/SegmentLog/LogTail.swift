// The newest records in memory, for the aggregator of the same process: what was just written need not be read back.
// Only durable chunks enter. Bounded by bytes, the oldest go first.

import Segments
import Synchronization

final class LogTail: Sendable {
    private struct Chunk {
        var firstOffset: Int64
        var nextOffset: Int64
        var bytes: [UInt8]
    }

    private struct State {
        var chunks: [Int: [Chunk]] = [:]
        /// Partitions in order of entering, for eviction.
        var order: [Int] = []
        var evicted = 0
        var byteCount = 0
    }

    private let state = Mutex(State())
    private let limit: Int

    init(limit: Int) { self.limit = limit }

    func append(partition: Int, firstOffset: Int64, count: Int, bytes: [UInt8]) {
        guard bytes.count <= limit else { return }
        state.withLock { state in
            state.chunks[partition, default: []].append(
                Chunk(firstOffset: firstOffset, nextOffset: firstOffset + Int64(count), bytes: bytes))
            state.order.append(partition)
            state.byteCount += bytes.count
            while state.byteCount > limit {
                let oldest = state.order[state.evicted]
                state.evicted += 1
                if let chunk = state.chunks[oldest]?.removeFirst() { state.byteCount -= chunk.bytes.count }
            }
            if state.evicted > 1_024 {
                state.order.removeFirst(state.evicted)
                state.evicted = 0
            }
        }
    }

    /// Consecutive chunks beginning with the one that holds `offset`; empty when it is not here.
    func chunks(partition: Int, from offset: Int64, maxRecords: Int, maxBytes: Int) -> [(firstOffset: Int64, bytes: [UInt8])] {
        state.withLock { state in
            guard let chunks = state.chunks[partition] else { return [] }
            var low = 0
            var high = chunks.count
            while low < high {
                let middle = (low + high) / 2
                if chunks[middle].nextOffset <= offset { low = middle + 1 } else { high = middle }
            }
            guard low < chunks.count, chunks[low].firstOffset <= offset else { return [] }
            var result: [(firstOffset: Int64, bytes: [UInt8])] = []
            var expected = chunks[low].firstOffset
            var records: Int64 = 0
            var bytes = 0
            for chunk in chunks[low...] {
                // Another node may have written in between: stop at the gap, the rest comes from the table.
                guard chunk.firstOffset == expected, result.isEmpty || records < maxRecords && bytes < maxBytes else { break }
                result.append((chunk.firstOffset, chunk.bytes))
                records += chunk.nextOffset - max(chunk.firstOffset, offset)
                bytes += chunk.bytes.count
                expected = chunk.nextOffset
            }
            return result
        }
    }
}
