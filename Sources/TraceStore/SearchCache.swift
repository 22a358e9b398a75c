// What plans let through of segments, in memory: segments never change, so this never lies. Bounded by bytes; the plans
// that were not asked for longest go first.

import SearchIndex
import Segments
import Synchronization

final class SearchCache: Sendable {
    private struct Key: Hashable {
        var account: AccountID
        var plan: SearchPlan
    }

    private struct Entry {
        var sets: [SegmentKey: TraceSet] = [:]
        var lastUse = 0
        var bytes = 0
    }

    private struct State {
        var entries: [Key: Entry] = [:]
        var bytes = 0
        var uses = 0
    }

    private let state = Mutex(State())
    private let maxBytes: Int

    init(maxBytes: Int = 16 << 20) { self.maxBytes = maxBytes }

    func sets(of plan: SearchPlan, account: AccountID) -> [SegmentKey: TraceSet] {
        state.withLock { state in
            state.uses += 1
            let key = Key(account: account, plan: plan)
            state.entries[key]?.lastUse = state.uses
            return state.entries[key]?.sets ?? [:]
        }
    }

    func add(_ sets: [(SegmentKey, TraceSet)], plan: SearchPlan, account: AccountID) {
        let key = Key(account: account, plan: plan)
        state.withLock { state in
            state.uses += 1
            var entry = state.entries.removeValue(forKey: key) ?? Entry()
            state.bytes -= entry.bytes
            for (segment, set) in sets where entry.sets[segment] == nil {
                entry.sets[segment] = set
                entry.bytes += set.words.count * 8 + 100
            }
            entry.lastUse = state.uses
            // One plan over very many segments, some of which have been merged since.
            if entry.bytes > maxBytes / 2 { entry = Entry() }
            state.entries[key] = entry
            state.bytes += entry.bytes
            while state.bytes > maxBytes, let oldest = state.entries.min(by: { $0.value.lastUse < $1.value.lastUse }) {
                state.entries[oldest.key] = nil
                state.bytes -= oldest.value.bytes
            }
        }
    }
}
