// Groups, tags, the indexing rule and retrieval jobs: what the control operations keep, and what the aggregator derives
// for groups.

import PostgreSQL

extension StoreSchema {
    static let analysis = PostgresMigration(
        4, "add-groups-tags-retrievals",
        """
        -- Why: groups with graphs of their own, tags, indexing rules and trace retrieval. All tables are new and empty;
        -- older code does not know them and loses nothing. Thought through for 25 groups an account and 10^7 member traces.

        -- Of `Default`, which every account has, there is a row once its settings were changed.
        -- group_key names the group in the tables derived from the log: a recreated group has another one.
        CREATE TABLE groups (
            account int8 NOT NULL,
            group_key int8 NOT NULL,
            created_at int8 NOT NULL,
            version int4 NOT NULL,
            insights_enabled boolean NOT NULL,
            notifications_enabled boolean NOT NULL,
            name text COLLATE "C" NOT NULL,
            arn text NOT NULL,
            filter text NOT NULL,
            PRIMARY KEY (account, name)
        );

        -- Grows by one with every change of an account's groups: two changes decided on the same state cannot both pass.
        CREATE TABLE group_sets (
            account int8 PRIMARY KEY,
            revision int8 NOT NULL
        );

        -- resource: what follows the account in the ARN.
        CREATE TABLE tags (
            account int8 NOT NULL,
            resource text COLLATE "C" NOT NULL,
            key text COLLATE "C" NOT NULL,
            value text NOT NULL,
            PRIMARY KEY (account, resource, key)
        );

        CREATE TABLE indexing_rules (
            account int8 PRIMARY KEY,
            destination text NOT NULL DEFAULT 'XRay',
            destination_changed_at int8,
            percentage float8 NOT NULL DEFAULT 1,
            modified_at int8
        );

        -- The effective rule since a time (microseconds); NULL: every trace is indexed. A trace goes by the rule at the receipt
        -- of its first document, so a rebuild decides as the first time.
        CREATE TABLE indexing_history (
            account int8 NOT NULL,
            changed_at int8 NOT NULL,
            percentage float8,
            PRIMARY KEY (account, changed_at)
        );

        -- A trace that matched a group's filter. minute, outcome: where group_counts has it. links: facts of the links that
        -- resolve within the group, as its contributions use them.
        CREATE TABLE group_members (
            account int8 NOT NULL,
            group_key int8 NOT NULL,
            minute int8 NOT NULL,
            trace_id uuid NOT NULL,
            version int4 NOT NULL,
            outcome int2 NOT NULL,
            links bytea,
            PRIMARY KEY (account, trace_id, group_key)
        );
        CREATE INDEX group_members_group ON group_members (account, group_key, trace_id);

        -- As graph_blocks, of the traces that a version of a group's filter made members.
        CREATE TABLE group_blocks (
            account int8 NOT NULL,
            group_key int8 NOT NULL,
            minute int8 NOT NULL,
            last_offset int8 NOT NULL,
            version int4 NOT NULL,
            partition int4 NOT NULL,
            received_day int4 NOT NULL,
            level int2 NOT NULL,
            encoding int2 NOT NULL,
            block bytea NOT NULL,
            PRIMARY KEY (account, group_key, minute, version, partition, level, last_offset)
        );
        ALTER TABLE group_blocks ALTER COLUMN block SET STORAGE EXTERNAL;

        -- Traces by the minute in which they became members, by the class of their root now. Rows of a partition are only
        -- written by its owner.
        CREATE TABLE group_counts (
            account int8 NOT NULL,
            group_key int8 NOT NULL,
            minute int8 NOT NULL,
            partition int4 NOT NULL,
            ok_count int8 NOT NULL,
            error_count int8 NOT NULL,
            fault_count int8 NOT NULL,
            throttle_count int8 NOT NULL,
            PRIMARY KEY (account, group_key, minute, partition)
        );

        -- found, revisions: the traces of a finished job, each with the number of its documents at that time.
        CREATE TABLE retrievals (
            account int8 NOT NULL,
            id uuid NOT NULL,
            created_at int8 NOT NULL,
            start_time int8 NOT NULL,
            end_time int8 NOT NULL,
            claimed_at int8,
            finished_at int8,
            status text NOT NULL,
            wanted uuid[] NOT NULL,
            found uuid[] NOT NULL DEFAULT '{}',
            revisions int8[] NOT NULL DEFAULT '{}',
            PRIMARY KEY (account, id)
        );
        CREATE INDEX retrievals_created ON retrievals (account, created_at);
        """)
}
