// The store's tables. Everything here is derived from the log or is the directory; every key starts with the account, so
// that accounts can be spread over databases. Row sizes are counted: with 6 documents a trace, 100 bytes a row are 17 a
// document. Statements on the tables stand beside their callers.

import PostgreSQL

enum StoreSchema {
    static let component = "store"
    static var version: Int { migrations.map(\.version).max() ?? 0 }

    static let migrations = [
        PostgresMigration(1, "create-store", """
            -- Why: the first schema. Thought through for 10^7 traces of 6 documents each.

            -- How far the log has been folded. Moved by every commit, so: few rows, much free space for HOT updates.
            CREATE TABLE log_positions (
                partition int4 PRIMARY KEY,
                position int8 NOT NULL DEFAULT 0,
                checked_position int8 NOT NULL DEFAULT 0,
                owner_epoch int8 NOT NULL DEFAULT 0,
                received_through int8,
                owner text NOT NULL DEFAULT ''
            ) WITH (fillfactor = 20);

            -- One row per trace. Clocks are split into second and microsecond: only the seconds are indexed, so thousands
            -- of entries share a key (deduplicated: about 7 bytes an entry), and an update within the same second stays
            -- on its page without touching an index (HOT; hence the fillfactor).
            -- *_prev: newest receipt (end) of the second before the newest, when there are exactly two distinct seconds,
            -- at most 4 s apart; otherwise flag 1 (2) is set and trace_moments has one row per second.
            CREATE TABLE traces (
                account int8 NOT NULL,
                root_second int8,
                event_second int8 NOT NULL,
                end_second int8,
                event_prev_second int8,
                end_prev_second int8,
                trace_id uuid NOT NULL,
                root_micros int4,
                event_micros int4 NOT NULL,
                end_micros int4,
                event_prev_micros int4,
                end_prev_micros int4,
                first_day int4 NOT NULL,
                version int4 NOT NULL,
                revision int4 NOT NULL,
                stored_bytes int4 NOT NULL,
                -- 1: receipts in trace_moments, 2: ends in trace_moments, 4: limit exceeded
                flags int2 NOT NULL,
                PRIMARY KEY (account, trace_id)
            ) WITH (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.1);
            CREATE INDEX traces_root ON traces (account, root_second) WHERE root_second IS NOT NULL;
            CREATE INDEX traces_event ON traces (account, event_second);
            CREATE INDEX traces_end ON traces (account, end_second) WHERE end_second IS NOT NULL;
            CREATE INDEX traces_event_prev ON traces (account, event_prev_second) WHERE event_prev_second IS NOT NULL;
            CREATE INDEX traces_end_prev ON traces (account, end_prev_second) WHERE end_prev_second IS NOT NULL;

            -- Receipts (kind 1) and ends (kind 2) of the few traces that spread wider: the newest of each second.
            CREATE TABLE trace_moments (
                account int8 NOT NULL,
                second int8 NOT NULL,
                trace_id uuid NOT NULL,
                micros int4 NOT NULL,
                kind int2 NOT NULL,
                PRIMARY KEY (account, trace_id, kind, second)
            );
            CREATE INDEX trace_moments_second ON trace_moments (account, kind, second);

            -- The documents one commit added to a trace, compressed together with the account's dictionary (0 = none).
            -- No key: the guard of log_positions makes a row unique, and an index on the trace alone is smaller.
            -- version: of the trace's row after the commit; rows in this order are the trace's documents in order.
            CREATE TABLE trace_documents (
                account int8 NOT NULL,
                trace_id uuid NOT NULL,
                day int4 NOT NULL,
                version int4 NOT NULL,
                dictionary int4 NOT NULL,
                documents bytea NOT NULL
            ) PARTITION BY RANGE (day);
            ALTER TABLE trace_documents ALTER COLUMN documents SET STORAGE EXTERNAL;
            CREATE INDEX trace_documents_trace ON trace_documents (account, trace_id);

            CREATE TABLE dictionaries (
                account int8 NOT NULL,
                id int4 NOT NULL,
                created_at timestamptz NOT NULL DEFAULT now(),
                dictionary bytea NOT NULL,
                PRIMARY KEY (account, id)
            );

            -- Deltas to the observations of a minute; all rows of a minute add up. level 0: written by a commit,
            -- 1: merged. last_offset: newest log record that a row covers. received_day: of its newest document, for
            -- retention counts from receipt: what is dated long ago may have been received today.
            CREATE TABLE graph_blocks (
                account int8 NOT NULL,
                minute int8 NOT NULL,
                last_offset int8 NOT NULL,
                partition int4 NOT NULL,
                level int2 NOT NULL,
                encoding int2 NOT NULL,
                received_day int4 NOT NULL,
                block bytea NOT NULL,
                PRIMARY KEY (account, minute, partition, level, last_offset)
            );
            ALTER TABLE graph_blocks ALTER COLUMN block SET STORAGE EXTERNAL;

            CREATE TABLE links (
                account int8 NOT NULL,
                target_entity int8 NOT NULL,
                consumer_trace uuid NOT NULL,
                target_trace uuid NOT NULL,
                facts bytea,
                PRIMARY KEY (account, consumer_trace, target_trace, target_entity)
            );
            CREATE INDEX links_target ON links (account, target_trace);

            CREATE TABLE inbox (
                account int8 NOT NULL,
                log_offset int8 NOT NULL,
                received_at int8 NOT NULL,
                partition int4 NOT NULL,
                topic text NOT NULL,
                trace_id uuid,
                code text NOT NULL,
                reason text NOT NULL,
                document bytea NOT NULL,
                PRIMARY KEY (account, topic, partition, log_offset)
            );

            CREATE TABLE telemetry_records (
                account int8 NOT NULL,
                received_at int8 NOT NULL,
                document bytea NOT NULL
            );
            CREATE INDEX telemetry_records_received ON telemetry_records (account, received_at);

            CREATE TABLE settings (
                account int8 NOT NULL,
                name text NOT NULL,
                value bytea NOT NULL,
                PRIMARY KEY (account, name)
            );

            CREATE TABLE accounts (
                account int8 PRIMARY KEY,
                name text NOT NULL,
                state text NOT NULL,
                created_at int8 NOT NULL
            );

            CREATE TABLE access_keys (
                account int8 NOT NULL REFERENCES accounts ON DELETE CASCADE,
                id text NOT NULL,
                principal_arn text NOT NULL,
                role text NOT NULL,
                is_active boolean NOT NULL,
                created_at int8 NOT NULL,
                encrypted_secret bytea NOT NULL,
                PRIMARY KEY (account, id)
            );
            CREATE UNIQUE INDEX access_keys_id ON access_keys (id);

            -- Ends a pipeline whose guard does not hold: what ran before is rolled back, what follows is skipped.
            CREATE FUNCTION commit_requires(holds boolean, state text) RETURNS void LANGUAGE plpgsql AS $$
            BEGIN
                IF NOT holds THEN RAISE EXCEPTION USING ERRCODE = state, MESSAGE = 'a guard of the commit does not hold'; END IF;
            END $$;
            """),
        leases,
        clearedInboxes,
        analysis,
        search,
        removals,
    ]
}
