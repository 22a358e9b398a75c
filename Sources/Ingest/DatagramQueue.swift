// Documents between the receiving thread and the log. Never blocks the thread that puts: when the bound is reached the
// oldest batch is dropped and counted (`daemon.md` §8 row 3). Documents lie in batches of one buffer each, so a
// document costs a copy and no allocation of its own.

import Synchronization

/// Up to 50 documents in one buffer.
struct DatagramBatch: Sendable {
    static let maxDocuments = 50
    static let maxBytes = 2 << 20

    private(set) var bytes: [UInt8] = []
    private(set) var ends: [Int] = []

    var count: Int { ends.count }
    var byteCount: Int { bytes.count }
    var isFull: Bool { count >= Self.maxDocuments || byteCount >= Self.maxBytes - 65_536 }

    mutating func append(_ document: UnsafeRawBufferPointer) {
        bytes.append(contentsOf: document)
        ends.append(bytes.count)
    }

    /// The documents, as views that are valid during the call.
    func withDocuments<Result>(_ body: ([UnsafeRawBufferPointer]) -> Result) -> Result {
        bytes.withUnsafeBytes { all in
            var start = 0
            return body(
                ends.map { end in
                    defer { start = end }
                    return UnsafeRawBufferPointer(rebasing: all[start..<end])
                })
        }
    }
}

final class DatagramQueue: Sendable {
    enum Next: Sendable {
        /// A batch is full: take it at once.
        case full
        /// Documents arrived in an idle queue: more may follow within moments.
        case first
        /// Closed, and nothing is left.
        case closed
    }

    private struct State {
        var batches: [DatagramBatch] = []
        var filling = DatagramBatch()
        /// Bytes in the queue and in the hands of those who deliver.
        var bytes = 0
        var isClosed = false
        var waiters: [CheckedContinuation<Next, Never>] = []
        /// Somebody was told of the documents in `filling`.
        var fillingAnnounced = false
    }

    let capacityBytes: Int
    private let state = Mutex(State())

    init(capacityBytes: Int = 64 << 20) { self.capacityBytes = capacityBytes }

    var byteCount: Int { state.withLock { $0.bytes } }

    /// Adds a document; makes room by dropping the oldest batch.
    /// - Returns: how many documents were dropped for it (the new one itself when the queue is closed or everything
    ///   that fills it is being delivered).
    func put(_ document: UnsafeRawBufferPointer) -> Int {
        let (dropped, waiter, next) = state.withLock { state -> (Int, CheckedContinuation<Next, Never>?, Next) in
            guard !state.isClosed else { return (1, nil, .first) }
            var dropped = 0
            while state.bytes + document.count > capacityBytes {
                guard !state.batches.isEmpty else { return (dropped + 1, nil, .first) }
                let oldest = state.batches.removeFirst()
                dropped += oldest.count
                state.bytes -= oldest.byteCount
            }
            state.filling.append(document)
            state.bytes += document.count
            if state.filling.isFull {
                state.batches.append(state.filling)
                state.filling = DatagramBatch()
                state.fillingAnnounced = false
                return (dropped, state.waiters.popLast(), .full)
            }
            guard !state.fillingAnnounced, let waiter = state.waiters.popLast() else { return (dropped, nil, .first) }
            state.fillingAnnounced = true
            return (dropped, waiter, .first)
        }
        waiter?.resume(returning: next)
        return dropped
    }

    /// Waits for documents. Several may wait; each batch wakes one.
    func wait() async -> Next {
        await withCheckedContinuation { continuation in
            let next = state.withLock { state -> Next? in
                if !state.batches.isEmpty { return .full }
                if state.filling.count > 0, !state.fillingAnnounced || state.isClosed {
                    state.fillingAnnounced = true
                    return .first
                }
                if state.isClosed { return .closed }
                state.waiters.append(continuation)
                return nil
            }
            if let next { continuation.resume(returning: next) }
        }
    }

    /// The oldest batch. Its bytes count against the bound until `delivered`.
    func take() -> DatagramBatch? {
        state.withLock { state in
            if !state.batches.isEmpty { return state.batches.removeFirst() }
            guard state.filling.count > 0 else { return nil }
            defer {
                state.filling = DatagramBatch()
                state.fillingAnnounced = false
            }
            return state.filling
        }
    }

    /// Gives back the room of a batch that was taken, whatever became of it.
    func delivered(_ batch: DatagramBatch) { state.withLock { $0.bytes -= batch.byteCount } }

    /// Refuses what comes from now on; what is there can still be taken.
    func close() {
        let waiters = state.withLock { state in
            state.isClosed = true
            defer { state.waiters = [] }
            return state.waiters
        }
        waiters.forEach { $0.resume(returning: .first) }
    }

    /// Drops what is left.
    /// - Returns: the number of documents.
    func dropAll() -> Int {
        state.withLock { state in
            let count = state.batches.reduce(state.filling.count) { $0 + $1.count }
            state.bytes -= state.batches.reduce(state.filling.byteCount) { $0 + $1.byteCount }
            state.batches = []
            state.filling = DatagramBatch()
            return count
        }
    }
}
