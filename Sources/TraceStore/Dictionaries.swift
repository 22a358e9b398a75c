// Which dictionary an account's documents are compressed with: loaded from the table when first needed, trained from the
// account's own documents once enough were seen, and again from documents of a longer time: the first ones are too much alike. Bounded: a hundred accounts' dictionaries, samples of sixteen accounts.

import Glibc
import Logging
import PostgreSQL
import Segments
import Synchronization

final class Dictionaries: Sendable {
    private static let accountLimit = 100
    private static let samplingLimit = 16

    fileprivate struct Samples {
        var bytes: [UInt8] = []
        var sizes: [Int] = []
        /// The first dictionary was trained: this is for the second one.
        var isSecond = false
        var seenTraces = 0
    }

    /// For the second dictionary one of so many changes is kept.
    private static let secondStride = 16

    private struct AccountState {
        /// The newest, for writing; nil = none is stored.
        var current: CompressionDictionary?
        var byID: [Int32: CompressionDictionary] = [:]
        /// The table has been asked for the newest.
        var isLoaded = false
    }

    private struct State {
        var accounts: [AccountID: AccountState] = [:]
        var samples: [AccountID: Samples] = [:]
        /// Being trained, or not worth training.
        var settled: Set<AccountID> = []
    }

    private struct Training: Sendable {
        var account: AccountID
        var bytes: [UInt8]
        var sizes: [Int]
    }

    private let state = Mutex(State())
    private let pool: PostgresPool
    private let options: TraceStoreOptions
    private let logger: Logger
    private let trainings: AsyncStream<Training>
    private let requests: AsyncStream<Training>.Continuation

    init(pool: PostgresPool, options: TraceStoreOptions, logger: Logger) {
        self.pool = pool
        self.options = options
        self.logger = logger
        (trainings, requests) = AsyncStream.makeStream(bufferingPolicy: .bufferingOldest(4))
    }

    // MARK: Writing

    /// The dictionaries to write the accounts' documents with; one round trip for accounts not seen before.
    func current(of accounts: Set<AccountID>) async throws(PostgresError) -> [AccountID: CompressionDictionary] {
        let missing = state.withLock { state in accounts.filter { state.accounts[$0]?.isLoaded != true } }
        if !missing.isEmpty {
            var ids = PostgresArray.int8
            for account in missing { ids.append(account.rawValue) }
            var statement = PostgresStatement("""
                SELECT w.account, d.id, d.dictionary FROM unnest($1::int8[]) AS w (account)
                CROSS JOIN LATERAL (SELECT id, dictionary FROM dictionaries d WHERE d.account = w.account
                                    ORDER BY id DESC LIMIT 1) d
                """)
            statement.bind(ids)
            let rows = try await pool.run(statement)
            for row in 0..<rows.rowCount {
                adopt(
                    CompressionDictionary(id: Int32(rows.int(row, 1)), bytes: rows.bytes(row, 2)),
                    for: AccountID(rawValue: UInt64(rows.int(row, 0))), isCurrent: true)
            }
            state.withLock { state in
                for account in missing { state.accounts[account, default: AccountState()].isLoaded = true }
            }
        }
        return state.withLock { state in
            var result: [AccountID: CompressionDictionary] = [:]
            for account in accounts { result[account] = state.accounts[account]?.current }
            return result
        }
    }

    private func adopt(_ dictionary: CompressionDictionary, for account: AccountID, isCurrent: Bool) {
        state.withLock { state in
            if state.accounts.count >= Self.accountLimit, state.accounts[account] == nil,
                let victim = state.accounts.keys.first
            {
                state.accounts[victim] = nil
            }
            state.accounts[account, default: AccountState()].byID[dictionary.id] = dictionary
            if isCurrent { state.accounts[account]?.current = dictionary }
        }
    }

    /// Collects documents of accounts without a dictionary; when there are enough, has one trained. Those of accounts whose
    /// first one this process has trained are collected on for a second.
    func learn(from changes: [TraceChange], known: [AccountID: CompressionDictionary]) {
        let due = state.withLock { state in
            var due: [Training] = []
            for change in changes where !state.settled.contains(change.account) {
                if state.samples[change.account] == nil {
                    guard known[change.account] == nil, state.samples.count < Self.samplingLimit else { continue }
                }
                var samples = state.samples.removeValue(forKey: change.account) ?? Samples()
                // Another node has trained one.
                if known[change.account] != nil, !samples.isSecond { continue }
                samples.seenTraces += 1
                if !samples.isSecond || samples.seenTraces % Self.secondStride == 0 { samples.add(change) }
                if samples.bytes.count >= options.dictionarySampleBytes {
                    due.append(Training(account: change.account, bytes: samples.bytes, sizes: samples.sizes))
                    if samples.isSecond {
                        state.settled.insert(change.account)
                        continue
                    }
                    samples = Samples()
                    samples.isSecond = true
                }
                state.samples[change.account] = samples
            }
            return due
        }
        // One that finds no place is not trained: the next samples are.
        for training in due { requests.yield(training) }
    }

    // MARK: Reading

    /// The dictionaries named, from memory or in one round trip.
    func dictionaries(
        of account: AccountID, ids: Set<Int32>
    ) async throws(PostgresError) -> [Int32: CompressionDictionary] {
        var found = state.withLock { state in
            var found: [Int32: CompressionDictionary] = [:]
            for id in ids { found[id] = state.accounts[account]?.byID[id] }
            return found
        }
        let missing = ids.filter { $0 != 0 && found[$0] == nil }
        guard !missing.isEmpty else { return found }
        var wanted = PostgresArray.int4
        for id in missing { wanted.append(id) }
        var statement = PostgresStatement("""
            SELECT id, dictionary FROM dictionaries WHERE account = $1 AND id = ANY ($2::int4[])
            """)
        statement.bind(Int64(account.rawValue))
        statement.bind(wanted)
        let rows = try await pool.run(statement)
        for row in 0..<rows.rowCount {
            let dictionary = CompressionDictionary(id: Int32(rows.int(row, 0)), bytes: rows.bytes(row, 1))
            adopt(dictionary, for: account, isCurrent: false)
            found[dictionary.id] = dictionary
        }
        return found
    }

    // MARK: Training

    /// Trains what was asked for, one after the other, until cancelled.
    func run() async {
        for await training in trainings { await train(training) }
    }

    private func train(_ training: Training) async {
        let capacity = options.dictionaryBytes
        let trained = await Self.onOwnThread {
            CompressionDictionary.train(samples: training.bytes, sizes: training.sizes, capacity: capacity)
        }
        guard let trained else {
            logger.info("no dictionary could be trained", metadata: ["account": "\(training.account.rawValue)"])
            return
        }
        var statement = PostgresStatement("""
            INSERT INTO dictionaries (account, id, dictionary)
            SELECT $1, 1 + coalesce((SELECT max(id) FROM dictionaries WHERE account = $1), 0), $2
            ON CONFLICT DO NOTHING RETURNING id
            """)
        statement.bind(Int64(training.account.rawValue))
        statement.bind(bytes: trained)
        do {
            let rows = try await pool.run(statement)
            if rows.rowCount == 1 {
                adopt(
                    CompressionDictionary(id: Int32(rows.int(0, 0)), bytes: trained), for: training.account, isCurrent: true)
            } else {
                // Another node was faster: its dictionary is loaded by the next commit.
                state.withLock { $0.accounts[training.account]?.isLoaded = false }
            }
        } catch {
            logger.warning("a dictionary could not be stored", metadata: ["reason": "\(error)"])
        }
    }

    /// Training takes a second of CPU: a thread of its own, not one of the cooperative pool's two.
    private static func onOwnThread<R: Sendable>(_ body: @escaping @Sendable () -> R) async -> R {
        return await withUnsafeContinuation { continuation in
            // The new thread takes over the reference to the box and resumes the continuation exactly once.
            let box = Unmanaged.passRetained(ThreadWork { continuation.resume(returning: body()) })
            var thread = pthread_t()
            let status = pthread_create(
                &thread, nil,
                { context in
                    if let context { Unmanaged<ThreadWork>.fromOpaque(context).takeRetainedValue().work() }
                    return nil
                }, box.toOpaque())
            if status == 0 {
                pthread_detach(thread)
            } else {
                box.takeRetainedValue().work()
            }
        }
    }
}

extension Dictionaries.Samples {
    /// As they are compressed.
    fileprivate mutating func add(_ change: TraceChange) {
        var shortener = TextShortener(
            traceID: change.id, firstReceipt: change.newDocuments.first?.receivedAt ?? 0,
            byteCount: change.newDocuments.reduce(0) { $0 + $1.bytes.count })
        for document in change.newDocuments {
            sizes.append(document.bytes.withUnsafeBytes { shortener.append($0).length })
        }
        bytes.append(contentsOf: shortener.text)
    }
}

/// What a new thread is to do, as an object that can cross C.
private final class ThreadWork: Sendable {
    let work: @Sendable () -> Void
    init(_ work: @escaping @Sendable () -> Void) { self.work = work }
}
