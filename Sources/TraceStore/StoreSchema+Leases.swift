// Who is there: the processes of a cluster and the leases of those that aggregate.

import PostgreSQL

extension StoreSchema {
    static let leases = PostgresMigration(2, "add-nodes", """
        -- Why: several aggregators share the partitions of the log. Tens of rows, each written twice a second: much free
        -- space for HOT updates, and no index on what changes.
        -- A lease is a row of log_positions: its owner is a node's id, its epoch grows with each claim, and it ends when the
        -- node's expires_at has passed. So a heartbeat renews all leases of a node with one row and never waits for the
        -- commit that has a partition's row locked. Owners written by the code before this migration name no node:
        -- their partitions count as free, and the epoch fences them off as ever.
        -- All times are PostgreSQL's.
        CREATE TABLE nodes (
            id text PRIMARY KEY,
            role text NOT NULL,
            name text NOT NULL,
            host text NOT NULL,
            pid int4 NOT NULL,
            addresses text NOT NULL,
            version text NOT NULL,
            started_at timestamptz NOT NULL,
            heartbeat_at timestamptz NOT NULL,
            expires_at timestamptz NOT NULL
        ) WITH (fillfactor = 20);
        """)
}
