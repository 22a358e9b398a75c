// Rendered service graphs that are longer than one page, kept for as long as their page tokens live, so that all pages of
// one walk come from one graph and cost one computation. Losing one is harmless: the next page is computed again, and
// refused when the nodes have changed since (`GetServiceGraph`).

import Segments
import Synchronization
import XRayAPI

final class GraphSnapshots: Sendable {
    struct Key: Hashable {
        var account: AccountID
        var requestHash: [UInt8]
        /// `ServiceGraphPages.digest`.
        var digest: [UInt8]
    }

    private struct Snapshot {
        var key: Key
        var graph: ServiceGraphPages
        var completeTo: Micros
        var expiry: Micros
    }

    /// Oldest first.
    private let snapshots = Mutex<[Snapshot]>([])
    private let maxBytes: Int

    /// - Parameter maxBytes: sum over all snapshots; the oldest give way.
    init(maxBytes: Int) { self.maxBytes = maxBytes }

    func keep(_ graph: ServiceGraphPages, completeTo: Micros, for key: Key, now: Micros) {
        let bytes = graph.byteCount
        guard bytes <= maxBytes else { return }
        snapshots.withLock { list in
            list.removeAll { $0.key == key || $0.expiry <= now }
            list.append(Snapshot(key: key, graph: graph, completeTo: completeTo, expiry: now + PageToken.queryLifetime))
            var total = list.reduce(0) { $0 + $1.graph.byteCount }
            while total > maxBytes, !list.isEmpty { total -= list.removeFirst().graph.byteCount }
        }
    }

    func graph(for key: Key, now: Micros) -> (graph: ServiceGraphPages, completeTo: Micros)? {
        snapshots.withLock { list in
            list.first { $0.key == key && $0.expiry > now }.map { ($0.graph, $0.completeTo) }
        }
    }
}
