// What a batch adds to the search index: every trace it changed, as it is after the batch, one segment for each account
// and hour of root starts.

import SearchIndex
import Segments
import TraceAssembly
import TraceStore

struct SearchDeltas {
    private struct Place: Hashable {
        var account: AccountID
        var hour: Int64
    }

    private var builders: [Place: SearchSegmentBuilder] = [:]
    private var finished: [(place: Place, segment: SearchSegment)] = []

    mutating func add(_ forest: Forest, version: Int, clocks: SummaryClocks) {
        guard let start = clocks.rootStart else { return }
        let place = Place(account: forest.trace.account, hour: SearchSegment.hour(ofRootStart: start))
        builders[place, default: SearchSegmentBuilder()].add(forest, version: version, clocks: clocks)
        guard builders[place]?.isFull == true else { return }
        if let segment = builders.removeValue(forKey: place)?.finish() { finished.append((place, segment)) }
    }

    /// Segments of the same account and hour are named by different records of the batch; a full one needs thousands.
    mutating func finish(positions: [PositionMove]) -> [SearchSegmentDelta] {
        guard let move = positions.first(where: { $0.to > $0.from }) else { return [] }
        for (place, builder) in builders {
            if let segment = builder.finish() { finished.append((place, segment)) }
        }
        builders = [:]
        var counts: [Place: Int64] = [:]
        return finished.map { place, segment in
            let number = counts[place, default: 0]
            counts[place] = number + 1
            return SearchSegmentDelta(
                account: place.account, hour: place.hour, partition: move.partition, lastOffset: move.to - 1 - number,
                segment: segment)
        }
    }
}
