import Testing

@testable import Ingest

private func put(_ text: String, into queue: DatagramQueue) -> Int {
    Array(text.utf8).withUnsafeBytes { queue.put($0) }
}

private func documents(of batch: DatagramBatch?) -> [String] {
    batch?.withDocuments { $0.map { String(decoding: $0, as: UTF8.self) } } ?? []
}

// If this fails, a burst makes the process grow until it is killed, or the newest documents are lost instead of the oldest.
@Test func `a full queue drops its oldest batch and says how many documents that were`() {
    let document = String(repeating: "x", count: 1_000)
    let queue = DatagramQueue(capacityBytes: 200_000)
    var dropped = 0
    for number in 0..<1_000 { dropped += put("\(number % 10)" + document, into: queue) }
    #expect(queue.byteCount <= 200_000)
    var left = 0
    while let batch = queue.take() {
        left += batch.count
        queue.delivered(batch)
    }
    #expect(dropped + left == 1_000)
    #expect(left >= 150)
    #expect(queue.byteCount == 0)
}

// If this fails, memory in use by slow deliveries is not part of the bound.
@Test func `documents being delivered count until they are delivered`() throws {
    let queue = DatagramQueue(capacityBytes: 100)
    #expect(put(String(repeating: "a", count: 60), into: queue) == 0)
    let batch = try #require(queue.take())
    #expect(put(String(repeating: "b", count: 60), into: queue) == 1)
    queue.delivered(batch)
    #expect(put(String(repeating: "b", count: 60), into: queue) == 0)
}

// If this fails, documents are mixed up, or more than 50 go in one call.
@Test func `documents come out in order, at most fifty at a time`() {
    let queue = DatagramQueue()
    for number in 0..<120 { #expect(put("doc\(number)", into: queue) == 0) }
    var seen: [String] = []
    while let batch = queue.take() {
        #expect(batch.count <= 50)
        seen += documents(of: batch)
    }
    #expect(seen == (0..<120).map { "doc\($0)" })
}

// If this fails, what was received before SIGTERM is lost, or the shutdown hangs.
@Test func `a closed queue gives out what it has, then ends every wait`() async {
    let queue = DatagramQueue()
    let waiter = Task { await queue.wait() }
    #expect(put("last", into: queue) == 0)
    queue.close()
    #expect(put("late", into: queue) == 1)
    _ = await waiter.value
    #expect(documents(of: queue.take()) == ["last"])
    #expect(await queue.wait() == .closed)
}
