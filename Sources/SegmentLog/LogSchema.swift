// The log's tables in PostgreSQL and the statements on them.

import PostgreSQL

enum LogSchema {
    static let component = "log"

    static let migrations = [
        PostgresMigration(1, "create-log", """
            -- Why: the log of standalone and of small clusters. One row of log_batches per commit and partition
            -- (25 to 4,000 records); thought through for 10^8 records a day in some 10^5 rows.
            -- A row is found by its last offset: the first row with last_offset >= n holds record n.
            CREATE TABLE log_partitions (
                partition int4 PRIMARY KEY,
                next_offset int8 NOT NULL DEFAULT 0,
                first_offset int8 NOT NULL DEFAULT 0
            ) WITH (fillfactor = 20);

            CREATE TABLE log_batches (
                first_offset int8 NOT NULL,
                last_offset int8 NOT NULL,
                min_receipt int8 NOT NULL,
                max_receipt int8 NOT NULL,
                partition int4 NOT NULL,
                day int4 NOT NULL,
                raw_bytes int4 NOT NULL,
                records bytea NOT NULL,
                PRIMARY KEY (partition, last_offset, day)
            ) PARTITION BY RANGE (day);
            -- Already compressed.
            ALTER TABLE log_batches ALTER COLUMN records SET STORAGE EXTERNAL;

            CREATE FUNCTION log_remove_days(before int4) RETURNS int4 LANGUAGE plpgsql AS $$
            BEGIN
                UPDATE log_partitions p SET first_offset = greatest(p.first_offset, gone.last_offset + 1)
                FROM (SELECT partition, max(last_offset) AS last_offset FROM log_batches WHERE day < before
                      GROUP BY partition) gone
                WHERE p.partition = gone.partition;
                RETURN day_partitions_drop('log_batches', before);
            END $$;
            """)
    ]

    /// One commit: offsets are taken under the partitions' row locks, in order of partition, and held until the rows are
    /// committed. So several nodes may append, they cannot deadlock, and commit order is offset order: a reader that has
    /// seen offset n has seen everything before n. If the statement's snapshot is older than another node's commit, the
    /// UPDATE continues from the row as committed (READ COMMITTED re-evaluation).
    static let append = """
        WITH input AS (
            SELECT * FROM unnest($1::int4[], $2::int4[], $3::int8[], $4::int8[], $5::int4[], $6::bytea[])
                AS i (partition, count, min_receipt, max_receipt, raw_bytes, records)),
        locked AS MATERIALIZED (
            SELECT partition FROM log_partitions WHERE partition = ANY ($1) ORDER BY partition FOR UPDATE),
        taken AS (
            UPDATE log_partitions p SET next_offset = p.next_offset + i.count
            FROM locked l JOIN input i ON i.partition = l.partition
            WHERE p.partition = l.partition
            RETURNING p.partition, p.next_offset - i.count AS first_offset, i.count, i.min_receipt, i.max_receipt,
                i.raw_bytes, i.records)
        INSERT INTO log_batches (partition, first_offset, last_offset, min_receipt, max_receipt, day, raw_bytes, records)
        SELECT partition, first_offset, first_offset + count - 1, min_receipt, max_receipt,
            floor(extract(epoch FROM now()) / 86400)::int4, raw_bytes, records
        FROM taken
        RETURNING partition, first_offset
        """

    /// The partition's bounds and, by one snapshot, the rows from an offset on, until enough records or bytes.
    static let read = """
        SELECT p.first_offset, p.next_offset, b.first_offset, b.raw_bytes, b.records
        FROM log_partitions p LEFT JOIN LATERAL (
            SELECT * FROM (
                SELECT r.*,
                    sum(last_offset - greatest(first_offset, $2) + 1) OVER w - (last_offset - greatest(first_offset, $2) + 1)
                        AS records_before,
                    sum(raw_bytes) OVER w - raw_bytes AS bytes_before
                FROM (SELECT first_offset, last_offset, raw_bytes, records FROM log_batches
                      WHERE partition = $1 AND last_offset >= $2 ORDER BY last_offset LIMIT 256) r
                WINDOW w AS (ORDER BY last_offset ROWS UNBOUNDED PRECEDING)) c
            WHERE c.records_before < $3 AND c.bytes_before < $4) b ON true
        WHERE p.partition = $1
        ORDER BY b.last_offset
        """

    static let bounds = "SELECT partition, first_offset, next_offset FROM log_partitions ORDER BY partition"

    /// The oldest receipt is looked for in the next 1,000 rows only: an append waits seconds at most, so rows behind them
    /// cannot hold anything older.
    static let backlog = """
        SELECT q.partition, p.next_offset, (
            SELECT min(min_receipt) FROM (
                SELECT min_receipt FROM log_batches b WHERE b.partition = q.partition AND b.last_offset >= q.position
                ORDER BY b.last_offset LIMIT 1000) r)
        FROM unnest($1::int4[], $2::int8[]) AS q (partition, position)
        JOIN log_partitions p ON p.partition = q.partition
        ORDER BY q.partition
        """
}
