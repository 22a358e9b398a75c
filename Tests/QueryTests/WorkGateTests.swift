import Synchronization
import Testing
import XRayAPI

@testable import Query

@Suite struct WorkGateTests {
    // If this fails, many large reads at once take more memory than there is.
    @Test func `no more units are out than there are, and everybody gets their turn`() async throws {
        let gate = WorkGate(capacity: 5, maxWaiters: 1_000)
        let held = Held()
        try await withThrowingTaskGroup(of: Void.self) { group in
            for index in 0..<200 {
                let units = index % 7 + 1
                group.addTask {
                    try await gate.withUnits(units) { () async throws(APIError) in
                        held.counts.withLock {
                            $0.now += min(units, 5)
                            $0.most = max($0.most, $0.now)
                        }
                        await Task.yield()
                        held.counts.withLock {
                            $0.now -= min(units, 5)
                            $0.done += 1
                        }
                    }
                }
            }
            try await group.waitForAll()
        }
        #expect(held.counts.withLock { $0.most } <= 5)
        #expect(held.counts.withLock { $0.done } == 200)
    }

    // If this fails, requests pile up without bound, or a client that went away keeps its place.
    @Test func `a full queue refuses, a cancelled waiter leaves`() async throws {
        let gate = WorkGate(capacity: 1, maxWaiters: 1)
        let (entered, enter) = AsyncStream.makeStream(of: Void.self)
        let (released, release) = AsyncStream.makeStream(of: Void.self)
        let holder = Task {
            try await gate.withUnits(1) { () async throws(APIError) in
                enter.yield()
                for await _ in released { break }
            }
        }
        for await _ in entered { break }
        let waiter = Task { try await gate.withUnits(1) { () async throws(APIError) in 1 } }
        while gate.waiterCount == 0 { await Task.yield() }
        await #expect(throws: APIError.self) { try await gate.withUnits(1) { () async throws(APIError) in 2 } }
        waiter.cancel()
        await #expect(throws: APIError.self) { try await waiter.value }
        #expect(gate.waiterCount == 0)
        release.yield()
        try await holder.value
        #expect(try await gate.withUnits(1) { () async throws(APIError) in 3 } == 3)
    }
}

private final class Held: Sendable {
    let counts = Mutex((now: 0, most: 0, done: 0))
}
