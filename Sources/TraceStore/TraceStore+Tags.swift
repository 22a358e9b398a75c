// Tags of groups and sampling rules (`api.md` §5.10).

import PostgreSQL
import Segments

public struct ResourceTag: Sendable, Hashable {
    public var key: String
    public var value: String

    public init(key: String, value: String) {
        self.key = key
        self.value = value
    }
}

extension TraceStore {
    /// Most tags of one resource.
    public static let tagsPerResource = 50
    private static let tooManyTags = "BL004"

    /// By key, in order of code points.
    /// - Parameter resource: what follows the account in the ARN (`TraceGroup.resource`).
    public func tags(account: AccountID, resource: String) async throws(TraceStoreError) -> [ResourceTag] {
        var statement = PostgresStatement(
            "SELECT key, value FROM tags WHERE account = $1 AND resource = $2 ORDER BY key")
        statement.bind(account)
        statement.bind(text: resource)
        let rows = try await change(statement)[0]
        return (0..<rows.rowCount).map { ResourceTag(key: rows.text($0, 0), value: rows.text($0, 1)) }
    }

    /// Sets the tags; same keys are overwritten.
    /// - Returns: false when the resource would have more than 50; nothing was written.
    public func setTags(
        _ tags: [ResourceTag], account: AccountID, resource: String
    ) async throws(TraceStoreError) -> Bool {
        guard !tags.isEmpty else { return true }
        // Two calls at once must not both count before the other's tags are there.
        var lock = PostgresStatement("SELECT pg_advisory_xact_lock(hashtextextended($2, $1))")
        lock.bind(account)
        lock.bind(text: resource)
        var check = PostgresStatement(
            """
            SELECT commit_requires(count(*) <= \(Self.tagsPerResource), '\(Self.tooManyTags)') FROM tags
            WHERE account = $1 AND resource = $2
            """)
        check.bind(account)
        check.bind(text: resource)
        do {
            try await writers.run([lock, Self.tagStatement(tags, resource: resource, account: account), check])
            return true
        } catch {
            if error.sqlState == Self.tooManyTags { return false }
            throw TraceStoreError(error, "cannot write tags")
        }
    }

    /// Removes tags; keys that are not there are fine.
    public func removeTags(_ keys: [String], account: AccountID, resource: String) async throws(TraceStoreError) {
        var texts = PostgresArray.text
        for key in keys { texts.append(text: key) }
        var statement = PostgresStatement(
            "DELETE FROM tags WHERE account = $1 AND resource = $2 AND key = ANY ($3::text[])")
        statement.bind(account)
        statement.bind(text: resource)
        statement.bind(texts)
        try await change(statement)
    }

    static func tagStatement(_ tags: [ResourceTag], resource: String, account: AccountID) -> PostgresStatement {
        var keys = PostgresArray.text
        var values = PostgresArray.text
        for tag in tags {
            keys.append(text: tag.key)
            values.append(text: tag.value)
        }
        var statement = PostgresStatement(
            """
            INSERT INTO tags (account, resource, key, value)
            SELECT $1, $2, * FROM unnest($3::text[], $4::text[])
            ON CONFLICT (account, resource, key) DO UPDATE SET value = excluded.value
            """)
        statement.bind(account)
        statement.bind(text: resource)
        statement.bind(keys)
        statement.bind(values)
        return statement
    }
}
