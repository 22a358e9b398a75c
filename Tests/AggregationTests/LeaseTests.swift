import Fixtures
import Observability
import PostgreSQL
import SegmentLog
import Segments
import ServiceGraph
import Synchronization
import Testing
import TraceStore

@testable import Aggregation

/// A cluster as values: who is alive, who owns what; a claim takes what is free at that moment, as the table does.
private struct Cluster {
    var workers: [String]
    var owners: [String?]

    func view() -> (workers: [String], owners: [String?]) {
        (workers, owners.map { owner in owner.flatMap { workers.contains($0) ? $0 : nil } })
    }

    /// What a worker does after a look that may be old.
    mutating func act(_ worker: String, seeing view: (workers: [String], owners: [String?])) {
        // Its own partitions it knows exactly.
        var owners = view.owners.map { $0 == worker ? nil : $0 }
        for index in owners.indices where self.owners[index] == worker { owners[index] = worker }
        let decision = LeasePolicy.decide(worker, workers: view.workers, owners: owners)
        for partition in decision.release {
            #expect(self.owners[partition] == worker)
            self.owners[partition] = nil
        }
        let now = self.view().owners
        for partition in now.indices.filter({ now[$0] == nil }).prefix(decision.claimCount) {
            self.owners[partition] = worker
        }
    }

    var isEven: Bool {
        let counts = workers.map { worker in owners.count { $0 == worker } }
        return owners.allSatisfy { $0.map(workers.contains) ?? false }
            && (counts.max() ?? 0) - (counts.min() ?? 0) <= 1
    }
}

@Suite struct LeasePolicyTests {
    // If this fails, partitions stay without an owner, or wander about for ever.
    @Test(arguments: 1...200)
    func `from any state and any old views the split becomes even and then stands still`(run: Int) {
        var random = SeededGenerator(seed: UInt64(run))
        let names = (0..<Int.random(in: 1...9, using: &random)).map { "w\($0)" }
        let partitions = Int.random(in: 1...24, using: &random)
        var cluster = Cluster(
            workers: names.shuffled(using: &random),
            owners: (0..<partitions).map { _ in random.chance(20) ? nil : random.pick(names + ["dead"]) })
        // Joins, deaths, and workers that act on what they saw some time ago.
        var views = [cluster.view()]
        for _ in 0..<Int.random(in: 0...60, using: &random) {
            switch Int.random(in: 0..<10, using: &random) {
            case 0 where cluster.workers.count > 1:
                cluster.workers.remove(at: Int.random(in: cluster.workers.indices, using: &random))
            case 1:
                if let name = names.first(where: { !cluster.workers.contains($0) }) { cluster.workers.append(name) }
            default:
                cluster.act(random.pick(cluster.workers), seeing: random.pick(views.suffix(5)))
            }
            views.append(cluster.view())
        }
        // From here on nobody comes or goes: two rounds of fresh looks are enough to release and to claim.
        for _ in 0..<2 {
            for worker in cluster.workers.shuffled(using: &random) { cluster.act(worker, seeing: cluster.view()) }
        }
        #expect(cluster.isEven, "\(cluster)")
        let settled = cluster.owners
        for worker in cluster.workers { cluster.act(worker, seeing: cluster.view()) }
        #expect(cluster.owners == settled)
    }

    // If this fails, more or fewer partitions are handed out than there are.
    @Test func `shares add up and differ by one at most`() {
        for partitions in 0...40 {
            for workers in 1...12 {
                let shares = (0..<workers).map {
                    LeasePolicy.share(rank: $0, workerCount: workers, partitionCount: partitions)
                }
                #expect(shares.reduce(0, +) == partitions)
                #expect((shares.max() ?? 0) - (shares.min() ?? 0) <= 1)
            }
        }
    }

    @Test func `a worker that nobody has heard of does nothing`() {
        #expect(LeasePolicy.decide("new", workers: ["a"], owners: [nil, "a"]) == LeaseDecision())
        #expect(LeasePolicy.decide("a", workers: [], owners: [nil, "a"]) == LeaseDecision())
    }
}

/// Runs workers that come and go.
private actor Crew {
    private var running: [String: (worker: TestWorker, task: Task<Void, any Error>)] = [:]

    func join(_ worker: TestWorker) {
        running[worker.id] = (worker, Task { try await worker.run() })
    }

    /// Ends in order.
    func leave(_ worker: TestWorker) async throws {
        guard let member = running.removeValue(forKey: worker.id) else { return }
        member.task.cancel()
        try await member.task.value
    }

    /// Ends without giving anything free.
    func crash(_ worker: TestWorker) async throws {
        worker.leases.vanish()
        try await leave(worker)
    }

    func end() async throws {
        for member in running.values { member.task.cancel() }
        for member in running.values { try await member.task.value }
        running = [:]
    }
}

private func withCrew(_ body: (Crew) async throws -> Void) async throws {
    let crew = Crew()
    do {
        try await body(crew)
    } catch {
        try? await crew.end()
        throw error
    }
    try await crew.end()
}

/// Every partition has one of the workers as owner, in even shares, and nobody believes otherwise.
private func areEven(_ workers: [TestWorker], in world: AggregationWorld) async throws -> Bool {
    let view = try await world.store.clusterView()
    guard view.leases.count == world.log.partitionCount, view.leases.allSatisfy(\.isLive) else { return false }
    let counts = workers.map { worker in view.leases.count { $0.owner == worker.id } }
    guard counts.reduce(0, +) == view.leases.count, (counts.max() ?? 0) - (counts.min() ?? 0) <= 1 else { return false }
    return workers.allSatisfy { worker in
        worker.owned == Set(view.leases.filter { $0.owner == worker.id }.map(\.partition))
    }
}

/// Time until a condition holds.
private func time(until condition: () async throws -> Bool) async throws -> Duration {
    let started = ContinuousClock.now
    #expect(try await eventually(condition))
    return started.duration(to: .now)
}

extension AggregationTests {
    // If this fails, more workers are not faster, or partitions stand still after a deployment.
    @Test(arguments: [2, 4, 8])
    func `workers that come and go share the partitions evenly and count everything once`(count: Int) async throws {
        var random = SeededGenerator(printingSeedFor: "\(count) workers")
        var generator = TraceGenerator(random: random, oddities: .init(percent: 8, orderMatters: true))
        let traces = generator.traces(120, startSecond: startSecond)
        let documents = generator.interleavedLog(of: traces)
        try await withWorld(partitionCount: 12) { (world) async throws in
            try await withCrew { (crew) async throws in
                var options = AggregatorOptions.quick
                options.batchRecords = 40
                let appending = Task {
                    for document in documents { try await world.append(document) }
                }
                var workers = (0..<count).map { _ in world.worker(options, beat: .milliseconds(500)) }
                for worker in workers { await crew.join(worker) }
                let spread = try await time { try await areEven(workers, in: world) }
                #expect(spread < .seconds(5))
                // One leaves in order: nothing to wait for but the next look of the others.
                let leaving = workers.remove(at: Int.random(in: workers.indices, using: &random))
                try await crew.leave(leaving)
                let handOver = try await time { try await areEven(workers, in: world) }
                #expect(handOver < .seconds(2))
                // One joins.
                workers.append(world.worker(options, beat: .milliseconds(500)))
                await crew.join(workers[workers.count - 1])
                #expect(try await time { try await areEven(workers, in: world) } < .seconds(5))
                if workers.count > 1 {
                    let crashing = workers.removeFirst()
                    try await crew.crash(crashing)
                    let takeOver = try await time { try await areEven(workers, in: world) }
                    #expect(takeOver < .seconds(5))
                }
                try await appending.value
                #expect(try await eventually { try await world.isCaughtUp() })
            }
            try await world.foldEverything()
            try await world.expectAgreement("seed \(random.seed)")
        }
    }

    // If this fails, a machine that was suspended comes back and writes over the work of others.
    @Test func `a paused worker loses its partitions, writes nothing, and gets its share again`() async throws {
        let random = SeededGenerator(printingSeedFor: "pause")
        var generator = TraceGenerator(random: random, oddities: .init(percent: 8, orderMatters: true))
        let documents = generator.shuffledLog(of: generator.traces(60, startSecond: startSecond))
        try await withWorld(partitionCount: 6) { (world) async throws in
            let isPaused = Atomic<Bool>(false)
            let gate = Gate()
            let pause: @Sendable () async -> Void = {
                if isPaused.load(ordering: .sequentiallyConsistent) { await gate.pass() }
            }
            var log = FaultyLog(base: world.log)
            log.afterRead = pause
            let ownMetrics = Metrics()
            let paused = world.worker(
                log: log, metrics: ownMetrics, lease: .milliseconds(800), beat: .milliseconds(100), beforeBeat: pause)
            let other = world.worker(beat: .milliseconds(100))
            try await withCrew { (crew) async throws in
                await crew.join(paused)
                await crew.join(other)
                #expect(try await eventually { try await areEven([paused, other], in: world) })
                isPaused.store(true, ordering: .sequentiallyConsistent)
                try await world.append(documents)
                #expect(try await eventually { await gate.arrivals >= 2 })
                // Everything is the other's now, and folded by it.
                #expect(try await eventually { other.owned.count == 6 })
                #expect(try await eventually { try await world.isCaughtUp() })
                try await world.expectAgreement("seed \(random.seed), while one is paused")
                isPaused.store(false, ordering: .sequentiallyConsistent)
                await gate.open()
                #expect(try await eventually { try await areEven([paused, other], in: world) })
                #expect(!ownMetrics.text().contains("beamline_commits_total{outcome=\"committed\"}"))
                try await world.append(documents)
                try await world.expectAgreement("seed \(random.seed), both at work again")
            }
            try await world.foldEverything()
            try await world.expectAgreement("seed \(random.seed)")
        }
    }

    // If this fails, a worker that was stopped while it sent a batch blocks its partitions for everybody.
    @Test func `a transaction left open by a dead worker is ended when its partitions are taken over`() async throws {
        try await withWorld(partitionCount: 2) { (world) async throws in
            let dead = world.worker(lease: .milliseconds(300))
            try await dead.leases.registry.register()
            let claimed = try await dead.leases.registry.claim(atMost: 2, partitionCount: 2, held: [])
            #expect(claimed.count == 2)
            try await withOpenTransaction(
                of: dead.id, on: world.configuration, "SELECT FROM log_positions WHERE partition = 1 FOR UPDATE"
            ) { () async throws in
                let heir = world.worker()
                try await whileRunning(heir) { () async throws in
                    #expect(try await eventually { heir.owned == [0, 1] })
                }
            }
        }
    }
}

/// Leaves a transaction of a node open while the body runs, as a process that was stopped in the middle of a batch.
private func withOpenTransaction(
    of node: String, on database: PostgresConfiguration, _ sql: String, _ body: () async throws -> Void
) async throws {
    var own = database
    own.applicationName = Node.applicationName(of: node)
    let session = PostgresSession(own)
    do {
        try await session.runScript("BEGIN; \(sql)")
        try await body()
    } catch {
        await session.close()
        throw error
    }
    await session.close()
}

extension AggregationTests {
    // If this fails, raising the number of partitions under load counts some requests twice, or stops the workers.
    @Test func `the log grows from 4 to 8 partitions under load and every count stays exact`() async throws {
        var random = SeededGenerator(printingSeedFor: "growth")
        var generator = TraceGenerator(random: random, oddities: .init(percent: 8, orderMatters: false))
        let traces = generator.traces(150, startSecond: startSecond)
        let documents = generator.shuffledLog(of: traces)
        try await withWorld(partitionCount: 4) { (world) async throws in
            try await withCrew { (crew) async throws in
                var options = AggregatorOptions.quick
                options.batchRecords = Int.random(in: 20...400, using: &random)
                let workers = (0..<3).map { _ in world.worker(options) }
                for worker in workers { await crew.join(worker) }
                // Half of every trace is appended while there are four partitions, much of it not folded yet when the
                // rest arrives in eight: both owners of a trace write it at the same time.
                for document in documents.prefix(documents.count / 3) { try await world.append(document) }
                try await world.append(Array(documents[documents.count / 3..<documents.count / 2]))
                var grown = PostgresLogOptions()
                grown.partitionCount = 8
                let other = try await PostgresLog.open(
                    database: world.configuration, options: grown, logger: quietLogger)
                await other.close()
                let rest = Array(documents[(documents.count / 2)...])
                try await world.append(Array(rest.prefix(rest.count / 4)))
                #expect(try await eventually { world.log.partitionCount == 8 })
                for document in rest.dropFirst(rest.count / 4) { try await world.append(document) }
                #expect(try await eventually { try await areEven(workers, in: world) })
                #expect(try await eventually { try await world.isCaughtUp() })
            }
            try await world.foldEverything()
            let everything = try await world.everything()
            #expect(Set(everything.map(\.partition)) == Set(0..<8))
            // What the tables hold is what the rules give over what they hold, and that is everything that was sent.
            let ids = try await world.store.traceIDs(account: account, after: nil, limit: 1_000_000)
            let stored = ExpectedTables(stored: try await world.store.storedTraces(account: account, ids: ids))
            let differences = try await stored.differences(from: world.store)
            #expect(differences == [], "seed \(random.seed)")
            let sent = ExpectedTables(of: everything)
            #expect(stored.blocks().map(\.bytes) == sent.blocks().map(\.bytes), "seed \(random.seed)")
        }
    }

    // If this fails, two workers that meet in many traces keep each other from getting on.
    @Test func `workers that change the same traces at the same time get on`() async throws {
        let random = SeededGenerator(printingSeedFor: "conflicts")
        var generator = TraceGenerator(random: random, oddities: .init(percent: 0, orderMatters: false))
        let documents = generator.interleavedLog(of: generator.traces(80, startSecond: startSecond))
        try await withWorld(partitionCount: 1) { (world) async throws in
            let metrics = Metrics()
            let workers = (0..<2).map { _ in world.worker(metrics: metrics) }
            // A node that does not hear of the second partition: half of the traces are appended to both.
            try await withLog(on: world.configuration) { (narrow) async throws in
                var grown = PostgresLogOptions()
                grown.partitionCount = 2
                let wide = try await PostgresLog.open(
                    database: world.configuration, options: grown, logger: quietLogger)
                await wide.close()
                #expect(try await eventually { world.log.partitionCount == 2 })
                try await withCrew { (crew) async throws in
                    for worker in workers { await crew.join(worker) }
                    #expect(try await eventually { try await areEven(workers, in: world) })
                    // Nobody can write a trace until both have folded what neither has committed.
                    let observer = PostgresSession(world.configuration)
                    try await withOpenTransaction(
                        of: "nobody", on: world.configuration, "LOCK TABLE traces IN EXCLUSIVE MODE"
                    ) { () async throws in
                        let half = documents.count / 2
                        try await narrow.append(LogRecordBatch(documents[..<half].map { try world.record($0) }))
                        try await world.append(Array(documents[half...]))
                        let waiting = PostgresStatement(
                            "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'traces'::regclass")
                        #expect(try await eventually { try await observer.run(waiting).int(0, 0) == 2 })
                    }
                    await observer.close()
                    #expect(try await eventually { try await world.isCaughtUp() })
                }
            }
            #expect(metrics.text().contains("beamline_commits_total{outcome=\"conflict\"}"), "they did meet")
            try await world.foldEverything()
            let ids = try await world.store.traceIDs(account: account, after: nil, limit: 1_000_000)
            let stored = ExpectedTables(stored: try await world.store.storedTraces(account: account, ids: ids))
            let differences = try await stored.differences(from: world.store)
            #expect(differences == [], "seed \(random.seed)")
            let sent = ExpectedTables(of: try await world.everything())
            #expect(stored.blocks().map(\.bytes) == sent.blocks().map(\.bytes), "seed \(random.seed)")
        }
    }
}

/// A log that knows the partitions there are now and never hears of more.
private func withLog(on database: PostgresConfiguration, _ body: (PostgresLog) async throws -> Void) async throws {
    var options = PostgresLogOptions()
    options.partitionCount = 1
    options.growthInterval = .seconds(3_600)
    options.pollInterval = .seconds(3_600)
    let log = try await PostgresLog.open(database: database, options: options, logger: quietLogger)
    let running = Task { await log.run() }
    func end() async {
        running.cancel()
        await running.value
        await log.close()
    }
    do {
        try await body(log)
    } catch {
        await end()
        throw error
    }
    await end()
}
