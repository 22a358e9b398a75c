// Which tables a rebuild makes anew and which it leaves alone. Every table of the schema stands in one of the two lists: one
// that stood in neither would be lost or be written twice, so a rebuild refuses to begin (and a test fails).

import PostgreSQL

/// A table whose rows came from the log.
struct DerivedTable: Sendable {
    /// How the old and the new rows are compared before they are exchanged.
    enum Comparison: Sendable {
        /// Row by row.
        /// - Parameters:
        ///   - key: columns that name a row; the first is never NULL.
        ///   - ignoring: columns that depend on how the log was divided into batches.
        ///   - condition: which rows count, of alias `r`; `$schema$` stands for their schema.
        case rows(key: [String], ignoring: Set<String> = [], condition: String = "true")
        /// By what they mean, elsewhere: documents by their content, graph blocks by their sums, positions by the guard.
        case meaning
    }

    var name: String
    var comparison: Comparison
    /// Nothing looks rows up by the table's secondary indexes while it is filled: they are made when it is full.
    var defersIndexes = false
    /// Its rows bear the partition, a level and the last offset of the batch that wrote them.
    var isNamedByPartition = false
}

extension StoreSchema {
    static let derivedTables = [
        DerivedTable(
            name: "traces", comparison: .rows(key: ["account", "trace_id"], ignoring: ["version"]), defersIndexes: true),
        // Rows of a trace that spreads less since a leaf call got its callee are left behind; nobody reads them.
        DerivedTable(
            name: "trace_moments",
            comparison: .rows(
                key: ["account", "trace_id", "kind", "second"],
                condition: """
                    EXISTS (SELECT FROM $schema$.traces t WHERE t.account = r.account AND t.trace_id = r.trace_id
                            AND t.flags & r.kind <> 0)
                    """)),
        DerivedTable(name: "trace_documents", comparison: .meaning),
        DerivedTable(name: "graph_blocks", comparison: .meaning, isNamedByPartition: true),
        DerivedTable(
            name: "links",
            comparison: .rows(key: ["account", "consumer_trace", "target_trace", "target_entity"], ignoring: ["facts"])),
        DerivedTable(name: "inbox", comparison: .rows(key: ["account", "topic", "partition", "log_offset"])),
        DerivedTable(name: "log_positions", comparison: .meaning),
        // The index depends on the traces alone, and is divided as batches and merging divided it.
        DerivedTable(name: "search_segments", comparison: .meaning, isNamedByPartition: true),
        // Members are who matches the groups as they are at the rebuild (ruling 9), so these differ from what was.
        DerivedTable(name: "group_members", comparison: .meaning),
        DerivedTable(name: "group_blocks", comparison: .meaning, isNamedByPartition: true),
        DerivedTable(name: "group_counts", comparison: .meaning),
        // Afterwards every trace is in the index.
        DerivedTable(name: "search_starts", comparison: .meaning),
    ]

    /// What people set, what came another way than through the log, and what running processes hold in memory by number.
    static let keptTables: Set<String> = [
        "dictionaries", "telemetry_records", "settings", "accounts", "access_keys", "inbox_cleared", "schema_version",
        "groups", "group_sets", "tags", "indexing_rules", "indexing_history", "retrievals",
        // What retention has taken from readers of late.
        "retention_removals",
        // Who is there, and which log the positions belong to.
        "nodes", "log_source",
        // The log's own.
        "log_partitions", "log_batches",
    ]

    static let clearedInboxes = PostgresMigration(
        3, "remember-cleared-inboxes",
        """
        -- Why: a rebuild folds records again whose inbox entries a person has deleted; they are to stay deleted. A row per
        -- account, topic and partition. Entries come in the order of offsets, so all up to the offset were there and went.
        -- Older programs clear without leaving a row: their entries come back with a rebuild.
        CREATE TABLE inbox_cleared (
            account int8 NOT NULL,
            topic text NOT NULL,
            partition int4 NOT NULL,
            through_offset int8 NOT NULL,
            PRIMARY KEY (account, topic, partition)
        );
        """)
}
