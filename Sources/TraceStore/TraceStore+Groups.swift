// The control tables of groups, and the rules the aggregator reads with every batch. All changes of one account's groups
// follow one another (`group_sets.revision`), so whoever decides on a `GroupSet` may decide in Swift: if anything changed
// meanwhile nothing is written, and he decides again.

import PostgreSQL
import Segments

/// A group of an account (`api.md` §5.5).
public struct TraceGroup: Sendable, Equatable {
    public static let defaultName = "Default"

    public var name: String
    /// With the region that was configured when the group was made. `Default` has none here: the region names it.
    public var arn: String
    /// Names the group in the derived tables; 0 for `Default`. A recreated group has another one.
    public var key: Int64
    /// Of the filter expression, from 1.
    public var version: Int
    /// Empty: every trace.
    public var filter: String
    public var insightsEnabled: Bool
    public var notificationsEnabled: Bool
    public var createdAt: Micros

    public init(
        name: String, arn: String, key: Int64, version: Int = 1, filter: String, insightsEnabled: Bool = false,
        notificationsEnabled: Bool = false, createdAt: Micros
    ) {
        self.name = name
        self.arn = arn
        self.key = key
        self.version = version
        self.filter = filter
        self.insightsEnabled = insightsEnabled
        self.notificationsEnabled = notificationsEnabled
        self.createdAt = createdAt
    }

    /// What every account has until its settings are changed.
    public static let defaultGroup = TraceGroup(name: defaultName, arn: "", key: 0, filter: "", createdAt: 0)

    public var isDefault: Bool { key == 0 }
    /// What follows the account in the ARN.
    public var resource: String {
        isDefault ? "group/\(name)" : arn.split(separator: ":", maxSplits: 5).last.map(String.init) ?? arn
    }
}

/// All groups of an account at one moment.
public struct GroupSet: Sendable, Equatable {
    public var revision: Int64
    /// By name (code points); `Default` is always among them.
    public var groups: [TraceGroup]

    public init(revision: Int64, groups: [TraceGroup]) {
        self.revision = revision
        self.groups = groups
    }
}

/// What the aggregator has to know of an account.
public struct AccountRules: Sendable, Equatable {
    /// From a time on, the percentage of new traces that get a summary and contributions; nil: all.
    public struct Indexing: Sendable, Equatable {
        public var changedAt: Micros
        public var percentage: Double?

        public init(changedAt: Micros, percentage: Double?) {
            self.changedAt = changedAt
            self.percentage = percentage
        }
    }

    /// Without `Default`.
    public var groups: [TraceGroup] = []
    /// In order of time.
    public var indexing: [Indexing] = []

    public init(groups: [TraceGroup] = [], indexing: [Indexing] = []) {
        self.groups = groups
        self.indexing = indexing
    }

    /// The percentage in force at a time; nil: every trace is indexed.
    public func indexedPercentage(at time: Micros) -> Double? {
        indexing.last { $0.changedAt <= time }?.percentage
    }
}

extension TraceStore {
    private static let changedMeanwhile = "BL005"
    private static let groupColumns =
        "g.name, g.arn, g.group_key, g.version, g.filter, g.insights_enabled, g.notifications_enabled, g.created_at"

    private static func group(_ rows: PostgresResult, _ row: Int, from column: Int) -> TraceGroup {
        TraceGroup(
            name: rows.text(row, column), arn: rows.text(row, column + 1), key: rows.int(row, column + 2),
            version: Int(rows.int(row, column + 3)), filter: rows.text(row, column + 4),
            insightsEnabled: rows.bool(row, column + 5), notificationsEnabled: rows.bool(row, column + 6),
            createdAt: rows.int(row, column + 7))
    }

    public func groups(account: AccountID) async throws(TraceStoreError) -> GroupSet {
        // One statement, so one snapshot.
        var statement = PostgresStatement(
            """
            SELECT coalesce(s.revision, 0), \(Self.groupColumns)
            FROM (SELECT $1::int8 AS account) a
            LEFT JOIN group_sets s ON s.account = a.account LEFT JOIN groups g ON g.account = a.account
            ORDER BY g.name
            """)
        statement.bind(account)
        // Read where it is written: on a replica a group could be missing right after it was made.
        let rows = try await change(statement)[0]
        var groups = (0..<rows.rowCount).filter { !rows.isNull($0, 1) }.map { Self.group(rows, $0, from: 1) }
        if !groups.contains(where: \.isDefault) {
            let place = groups.firstIndex { ExactString(TraceGroup.defaultName) < ExactString($0.name) }
            groups.insert(.defaultGroup, at: place ?? groups.count)
        }
        return GroupSet(revision: rows.int(0, 0), groups: groups)
    }

    /// Inserts the group or replaces the one of its name.
    /// - Parameters:
    ///   - tags: of a new group.
    ///   - revision: of the set on which the change was decided.
    /// - Returns: false when the set has changed meanwhile; nothing was written.
    public func putGroup(
        _ group: TraceGroup, tags: [ResourceTag] = [], account: AccountID, revision: Int64
    ) async throws(TraceStoreError) -> Bool {
        var upsert = PostgresStatement(
            """
            INSERT INTO groups AS g (account, name, arn, group_key, version, filter, insights_enabled,
                notifications_enabled, created_at)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
            ON CONFLICT (account, name) DO UPDATE SET version = excluded.version, filter = excluded.filter,
                insights_enabled = excluded.insights_enabled, notifications_enabled = excluded.notifications_enabled
            """)
        upsert.bind(account)
        upsert.bind(text: group.name)
        upsert.bind(text: group.arn)
        upsert.bind(group.key)
        upsert.bind(Int32(clamping: group.version))
        upsert.bind(text: group.filter)
        upsert.bind(group.insightsEnabled)
        upsert.bind(group.notificationsEnabled)
        upsert.bind(group.createdAt)
        var statements = [upsert]
        if !tags.isEmpty { statements.append(Self.tagStatement(tags, resource: group.resource, account: account)) }
        return try await changeGroups(statements, account: account, revision: revision)
    }

    /// Removes a group and its tags; what was derived for it is removed by `removeDeletedGroups`.
    /// - Returns: false when the set has changed meanwhile; nothing was removed.
    public func deleteGroup(
        _ group: TraceGroup, account: AccountID, revision: Int64
    ) async throws(TraceStoreError) -> Bool {
        var delete = PostgresStatement("DELETE FROM groups WHERE account = $1 AND group_key = $2")
        delete.bind(account)
        delete.bind(group.key)
        var untag = PostgresStatement("DELETE FROM tags WHERE account = $1 AND resource = $2")
        untag.bind(account)
        untag.bind(text: group.resource)
        return try await changeGroups([delete, untag], account: account, revision: revision)
    }

    private func changeGroups(
        _ statements: [PostgresStatement], account: AccountID, revision: Int64
    ) async throws(TraceStoreError) -> Bool {
        var create = PostgresStatement(
            "INSERT INTO group_sets (account, revision) VALUES ($1, 0) ON CONFLICT DO NOTHING")
        create.bind(account)
        var move = PostgresStatement(
            """
            WITH moved AS (
                UPDATE group_sets SET revision = revision + 1 WHERE account = $1 AND revision = $2 RETURNING 1)
            SELECT commit_requires(count(*) = 1, '\(Self.changedMeanwhile)') FROM moved
            """)
        move.bind(account)
        move.bind(revision)
        do {
            try await writers.run([create, move] + statements)
            return true
        } catch {
            if error.sqlState == Self.changedMeanwhile { return false }
            throw TraceStoreError(error, "cannot change the groups")
        }
    }

    // MARK: For the aggregator

    /// Groups and indexing rules of the accounts that have any, in one round trip.
    public func rules(of accounts: some Collection<AccountID>) async throws(TraceStoreError) -> [AccountID:
        AccountRules]
    {
        var numbers = PostgresArray.int8
        for account in accounts { numbers.append(account) }
        var groups = PostgresStatement(
            """
            SELECT g.account, \(Self.groupColumns) FROM groups g
            WHERE g.account = ANY ($1::int8[]) AND g.group_key <> 0 ORDER BY g.account, g.name
            """)
        groups.bind(numbers)
        var indexing = PostgresStatement(
            """
            SELECT account, changed_at, percentage::text FROM indexing_history WHERE account = ANY ($1::int8[])
            ORDER BY account, changed_at
            """)
        indexing.bind(numbers)
        let results: [PostgresResult]
        do {
            results = try await readers.run([groups, indexing])
        } catch {
            throw TraceStoreError(error, "cannot read the groups")
        }
        var rules: [AccountID: AccountRules] = [:]
        func account(_ rows: PostgresResult, _ row: Int) -> AccountID {
            AccountID(rawValue: UInt64(bitPattern: rows.int(row, 0)))
        }
        for row in 0..<results[0].rowCount {
            rules[account(results[0], row), default: AccountRules()].groups.append(
                Self.group(results[0], row, from: 1))
        }
        for row in 0..<results[1].rowCount {
            rules[account(results[1], row), default: AccountRules()].indexing.append(
                .init(
                    changedAt: results[1].int(row, 1),
                    percentage: results[1].isNull(row, 2) ? nil : Double(results[1].text(row, 2))))
        }
        return rules
    }
}
