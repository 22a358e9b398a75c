// Day partitions: tables whose rows carry the day (since 1970) they belong to, one child table per day, so that a day is
// dropped and not deleted. The log and the store use the same two functions, which are part of every schema.

enum PostgresDays {
    /// Table `x` has children `x_2025_07_28`. A child is made beside the parent and attached, because ATTACH lets readers
    /// and writers go on (SHARE UPDATE EXCLUSIVE) where CREATE … PARTITION OF locks them out.
    /// Source: PostgreSQL 15 manual, ALTER TABLE, "ATTACH PARTITION".
    static let migrations = [create, ownSchema]

    private static let create = PostgresMigration(1, "create-day-partition-functions", """
        CREATE FUNCTION day_partition_create(parent text, day int4) RETURNS boolean LANGUAGE plpgsql AS $$
        DECLARE child text := parent || to_char(date '1970-01-01' + day, '_YYYY_MM_DD');
        BEGIN
            IF to_regclass(child) IS NOT NULL THEN RETURN false; END IF;
            PERFORM pg_advisory_xact_lock(hashtext(current_schema() || child));
            IF to_regclass(child) IS NOT NULL THEN RETURN false; END IF;
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE)',
                           child, parent);
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%s)',
                           parent, child, day, day + 1);
            RETURN true;
        END $$;

        CREATE FUNCTION day_partitions(parent text) RETURNS TABLE (child text, day int4) LANGUAGE sql STABLE AS $$
            SELECT c.relname::text, to_date(right(c.relname::text, 10), 'YYYY_MM_DD') - date '1970-01-01'
            FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = to_regclass(parent)
        $$;

        CREATE FUNCTION day_partitions_drop(parent text, before int4) RETURNS int4 LANGUAGE plpgsql AS $$
        DECLARE
            gone record;
            removed int4 := 0;
        BEGIN
            FOR gone IN SELECT p.child FROM day_partitions(parent) p WHERE p.day < before LOOP
                EXECUTE format('DROP TABLE %I', gone.child);
                removed := removed + 1;
            END LOOP;
            RETURN removed;
        END $$;
        """)

    /// Why: a rebuild works on a second set of the tables, in a schema before the first in the search path; a child is to
    /// be looked for beside its parent, not in the schema behind it. Two sessions that make a child at once wait for each
    /// other by the lock that ATTACH takes anyway: after an advisory lock the second would still look into what its session
    /// had cached, and find no child.
    private static let ownSchema = PostgresMigration(2, "find-day-partitions-beside-their-parent", """
        CREATE OR REPLACE FUNCTION day_partition_create(parent text, day int4) RETURNS boolean LANGUAGE plpgsql AS $$
        DECLARE
            child text := parent || to_char(date '1970-01-01' + day, '_YYYY_MM_DD');
            qualified text := format('%I.%I', current_schema(), child);
        BEGIN
            IF to_regclass(qualified) IS NOT NULL THEN RETURN false; END IF;
            EXECUTE format('LOCK TABLE %I IN SHARE UPDATE EXCLUSIVE MODE', parent);
            IF to_regclass(qualified) IS NOT NULL THEN RETURN false; END IF;
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE)',
                           child, parent);
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%s)',
                           parent, child, day, day + 1);
            RETURN true;
        END $$;
        """)
}
