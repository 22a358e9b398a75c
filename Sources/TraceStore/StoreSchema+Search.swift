// The search index: segments of `SearchIndex`, one row each.

import PostgreSQL

extension StoreSchema {
    static let search = PostgresMigration(5, "add-search-segments", """
        -- Why: GetTraceSummaries with a filter looked at every trace of its window. Thought through for 10^7 traces: a few
        -- thousand rows, nearly all of their bytes out of line and read in pieces (hence EXTERNAL: a piece of a value
        -- that is not compressed is read without the rest).
        -- Rows are never changed: commits add them (level 0), merging replaces several by one of a higher level,
        -- retention removes them. Named as graph_blocks are, so no sequence is needed.
        -- *_first, *_last: seconds of the root starts, receipts and ends of the segment's traces.
        CREATE TABLE search_segments (
            account int8 NOT NULL,
            hour int8 NOT NULL,
            last_offset int8 NOT NULL,
            root_first int8 NOT NULL,
            root_last int8 NOT NULL,
            receipt_first int8 NOT NULL,
            receipt_last int8 NOT NULL,
            end_first int8,
            end_last int8,
            partition int4 NOT NULL,
            trace_count int4 NOT NULL,
            level int2 NOT NULL,
            slice_bits int2 NOT NULL,
            has_all_fields bool NOT NULL,
            marks bytea NOT NULL,
            slice_offsets int4[] NOT NULL,
            records bytea NOT NULL,
            columns bytea NOT NULL,
            postings bytea NOT NULL,
            PRIMARY KEY (account, hour, partition, level, last_offset)
        );
        ALTER TABLE search_segments ALTER COLUMN records SET STORAGE EXTERNAL;
        ALTER TABLE search_segments ALTER COLUMN columns SET STORAGE EXTERNAL;
        ALTER TABLE search_segments ALTER COLUMN postings SET STORAGE EXTERNAL;
        CREATE INDEX search_segments_root ON search_segments (account, root_last);
        CREATE INDEX search_segments_receipt ON search_segments (account, receipt_last);
        CREATE INDEX search_segments_end ON search_segments (account, end_last);

        -- Traces that were stored before there was an index are in no segment: the newest receipt among them. A search that
        -- may meet one looks at all traces, until they have gone with retention or a rebuild has indexed them.
        CREATE TABLE search_starts (account int8 PRIMARY KEY, unindexed_through int8 NOT NULL);
        INSERT INTO search_starts SELECT account, max(event_second) FROM traces GROUP BY account;
        """)
}
