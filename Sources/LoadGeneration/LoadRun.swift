// A load run: worker threads that generate, sign, send and count; then, if asked, the wait until everything is folded and
// the comparison with what was sent. Called by `beamline load`; the result is printed by `LoadReport`.
//
// A failed call is sent again until it is acknowledged or a minute has passed: ingest is idempotent, so the totals stay
// exact whatever happened on the way. A run with a duration ends half a minute after it at the latest.

import Foundation
import Glibc
import Histogram
import JSONText
import Segments
import Synchronization

/// What one worker, or all of them together, did.
public struct LoadTotals: Sendable {
    public var expectation = Expectation()
    public var acknowledgedCalls = 0
    public var acknowledgedDocuments = 0
    /// Documents of calls that were given up after a minute of trying.
    public var unacknowledgedDocuments = 0
    /// Entries of `UnprocessedTraceSegments` by error code.
    public var refusals: [String: Int] = [:]
    /// Failed attempts by status and error name, or by what happened to the connection.
    public var errors: [String: Int] = [:]
    public var latency = Histogram<UInt64>(highestTrackableValue: 600_000_000, numberOfSignificantValueDigits: .three)
    public var wireBytes = 0
    public var lastAcknowledgement: Micros = 0
    /// A worker was stopped in the middle of a trace.
    public var isCutShort = false

    public init() {}

    mutating func add(_ other: LoadTotals) {
        expectation.add(other.expectation)
        acknowledgedCalls += other.acknowledgedCalls
        acknowledgedDocuments += other.acknowledgedDocuments
        unacknowledgedDocuments += other.unacknowledgedDocuments
        refusals.merge(other.refusals, uniquingKeysWith: +)
        errors.merge(other.errors, uniquingKeysWith: +)
        latency.add(other.latency)
        wireBytes += other.wireBytes
        lastAcknowledgement = max(lastAcknowledgement, other.lastAcknowledgement)
        isCutShort = isCutShort || other.isCutShort
    }
}

public struct LoadResult: Sendable {
    public var options: LoadOptions
    public var totals: LoadTotals
    public var startedAt: Micros
    /// Processor time of this process during the sending, in microseconds.
    public var generatorCPUMicros: Int64
    /// Ended by its deadline, in the middle of traces.
    public var isCutShort: Bool { totals.isCutShort }
    /// When a read first said that everything acknowledged is in it; nil when not asked for or not reached.
    public var completeAt: Micros?
    public var visibility: VisibilityResult?
    public var checks: [CheckResult]

    public var sendingSeconds: Double { Double(max(1, totals.lastAcknowledgement - startedAt)) / 1e6 }
    public var isGood: Bool {
        checks.allSatisfy(\.passed) && totals.unacknowledgedDocuments == 0 && totals.refusals.isEmpty && !totals.isCutShort
            && !(options.untilComplete && completeAt == nil) && visibility.map { $0.probes > 0 && $0.timedOut == 0 } ?? true
    }
}

func currentMicros() -> Micros {
    var time = timespec()
    clock_gettime(CLOCK_REALTIME, &time)
    return Int64(time.tv_sec) * 1_000_000 + Int64(time.tv_nsec) / 1000
}

func sleepUntil(_ micros: Micros) {
    var time = timespec(tv_sec: Int(micros / 1_000_000), tv_nsec: Int(micros % 1_000_000) * 1000)
    while clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &time, nil) == EINTR {}
}

func processorMicros() -> Int64 {
    var usage = rusage()
    getrusage(RUSAGE_SELF.rawValue, &usage)
    return Int64(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1_000_000 + Int64(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec)
}

public enum LoadRun {
    /// How long after the time to send for calls are tried again.
    public static let graceSeconds: Int64 = 30

    /// Asks before the run whether somebody listens: a slip in the address is not an outage to wait out.
    /// - Throws: `LoadError` that names the address.
    public static func requireReachable(_ endpoint: Endpoint) throws(LoadError) {
        try HTTPConnection(to: endpoint).open()
    }

    /// Runs to the end on threads of its own; blocks the caller, so call it from a thread that may wait.
    public static func run(_ options: LoadOptions) -> LoadResult {
        let startedAt = currentMicros()
        let cpuBefore = processorMicros()
        let results = Mutex(LoadTotals())
        let probe = options.visibility ? VisibilityProbe(options, startedAt: startedAt) : nil
        let probing = probe.map { probe in Threads.start(count: 1) { _ in probe.run() } }

        let workers = Threads.start(count: options.connections) { number in
            let worker = Worker(options, number: number, startedAt: startedAt)
            worker.run()
            results.withLock { $0.add(worker.totals) }
        }
        workers.wait()
        let cpu = processorMicros() - cpuBefore
        probe?.stop()
        probing?.wait()

        let totals = results.withLock { $0 }
        var result = LoadResult(
            options: options, totals: totals, startedAt: startedAt, generatorCPUMicros: cpu, completeAt: nil,
            visibility: probe?.result, checks: [])
        if options.untilComplete || options.check {
            result.completeAt = Completion.wait(until: totals.lastAcknowledgement, options)
        }
        if options.check { result.checks = LoadCheck(options, totals.expectation, startedAt: startedAt).run() }
        return result
    }
}

/// Plain threads that are waited for. The workers block in socket calls, so they must not be tasks.
struct Threads {
    private let done = DispatchGroup()

    static func start(count: Int, _ body: @escaping @Sendable (Int) -> Void) -> Threads {
        let threads = Threads()
        for number in 0..<count {
            threads.done.enter()
            let group = threads.done
            let thread = Thread {
                body(number)
                group.leave()
            }
            thread.stackSize = 1 << 20
            thread.start()
        }
        return threads
    }

    func wait() { done.wait() }
}

/// One connection's share of the run.
private final class Worker {
    private let options: LoadOptions
    private let number: Int
    private let startedAt: Micros
    private let generator: TraceGenerator
    private let connection: HTTPConnection
    private let signer: CallSigner
    private let body = OutputBuffer()
    private let head = OutputBuffer(capacity: 4096)
    private let parser = JSONParser()
    private(set) var totals = LoadTotals()
    private let deadline: Micros
    /// Nothing is sent, or tried again, after it.
    private let end: Micros
    /// The server has refused a call in a way that the next one will not change.
    private var isRefused = false

    init(_ options: LoadOptions, number: Int, startedAt: Micros) {
        self.options = options
        self.number = number
        self.startedAt = startedAt
        generator = TraceGenerator(shape: options.shape, worker: number, startedAt: startedAt, escaped: true)
        connection = HTTPConnection(to: options.endpoint)
        signer = CallSigner(endpoint: options.endpoint, credentials: options.credentials, region: options.region)
        let seconds = options.durationSeconds.map { min($0, 1e9) }
        deadline = seconds.map { startedAt + Int64($0 * 1e6) } ?? .max
        end = seconds == nil ? .max : deadline + LoadRun.graceSeconds * 1_000_000
    }

    func run() {
        let share = options.traces.map { $0 / options.connections + (number < $0 % options.connections ? 1 : 0) } ?? Int.max
        // Open loop: call k of this worker is due at start + (k * connections + number) * interval.
        let interval = options.documentsPerSecond.map { Double(options.documentsPerCall) / $0 * 1e6 }
        var call = 0
        while true {
            var due: Micros?
            if let interval {
                let time = startedAt + Int64(Double(call * options.connections + number) * interval)
                // What was due after the end is not sent, except the rest of a trace that has begun.
                if time < deadline || !generator.isBetweenTraces { due = time }
                if let due, due < deadline { sleepUntil(due) }
            }
            var now = currentMicros()
            if (now >= deadline || (interval != nil && due == nil)) && generator.isBetweenTraces { break }
            if now >= end || isRefused {
                totals.isCutShort = totals.isCutShort || !generator.isBetweenTraces
                break
            }
            let documents = fill(now: now, deadline: deadline, share: share)
            if documents == 0 { break }
            if due == nil || now >= deadline { now = currentMicros() }
            send(documents: documents, since: due.map { $0 < deadline ? $0 : now } ?? now)
            call += 1
        }
        totals.expectation = generator.expectation()
    }

    /// Fills the body with up to a call's worth of documents; returns how many.
    private func fill(now: Micros, deadline: Micros, share: Int) -> Int {
        body.removeAll()
        body.append(#"{"TraceSegmentDocuments":[""#)
        var documents = 0
        while documents < options.documentsPerCall {
            if generator.isBetweenTraces, now >= deadline || generator.traceCount >= share { break }
            if documents > 0 { body.append(#"",""#) }
            generator.writeDocument(into: body, now: dated(now, share: share))
            documents += 1
        }
        body.append(#""]}"#)
        return documents
    }

    /// The time at which the next trace ends: now, or its place in the time that the run is spread over.
    private func dated(_ now: Micros, share: Int) -> Micros {
        guard let spread = options.spreadSeconds, share < Int.max else { return now }
        let part = Double(generator.traceCount) / Double(max(share, 1))
        return startedAt - Int64(spread * 1e6 * (1 - part))
    }

    private func send(documents: Int, since: Micros) {
        let giveUp = min(currentMicros() + 60_000_000, end)
        var pause: Int64 = 20_000
        while true {
            signer.writeHead(path: "/TraceSegments", body: body.bytes, into: head, at: currentMicros())
            let failure: String
            do {
                let response = try connection.exchange(head: head.bytes, body: body.bytes)
                if response.status == 200 {
                    let now = currentMicros()
                    totals.latency.record(UInt64(max(1, now - since)))
                    totals.acknowledgedCalls += 1
                    totals.acknowledgedDocuments += documents - countRefusals(response.body)
                    totals.wireBytes += head.count + body.count
                    totals.lastAcknowledgement = now
                    return
                }
                failure = "\(response.status) " + (response.header("x-amzn-errortype") ?? "")
                isRefused = (400..<500).contains(response.status) && response.status != 408 && response.status != 429
            } catch {
                failure = error.description
            }
            totals.errors[failure, default: 0] += 1
            let now = currentMicros()
            if now + pause > giveUp || isRefused {
                totals.unacknowledgedDocuments += documents
                return
            }
            sleepUntil(now + pause)
            pause = min(pause * 2, 1_000_000)
        }
    }

    private func countRefusals(_ answer: UnsafeRawBufferPointer) -> Int {
        let none: StaticString = #"{"UnprocessedTraceSegments":[]}"#
        if answer.elementsEqual(UnsafeRawBufferPointer(start: none.utf8Start, count: none.utf8CodeUnitCount)) { return 0 }
        guard options.credentials != nil else { return 0 }
        var refused = 0
        do {
            try parser.parse(answer).member("UnprocessedTraceSegments")?.forEachElement { entry in
                let code = entry.member("ErrorCode")?.string?.string ?? "(no code)"
                totals.refusals[code, default: 0] += 1
                refused += 1
            }
        } catch {
            totals.errors["200 with a body that is not JSON", default: 0] += 1
        }
        return refused
    }
}
