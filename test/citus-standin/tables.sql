-- Tables -------------------------------------------------------------------------------------------------
-- A distributed table is a table partitioned by hash, of the same shape on every node. The partition
-- "<table>_<shardid>" is a plain table in the group that holds the shard and a foreign table everywhere else.

-- table_commands makes the table and its metadata on a node of a group; constraints go to the group's own shards.
CREATE FUNCTION citus_standin.table_commands(rel regclass, grp int, constraints text DEFAULT '') RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    part pg_catalog.pg_dist_partition;
    sch text; tab text; columns text; commands text; shards int;
BEGIN
    SELECT * INTO part FROM pg_catalog.pg_dist_partition WHERE logicalrelid = rel;
    SELECT n.nspname, c.relname INTO sch, tab FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = rel;
    SELECT string_agg(format('%I %s%s', attname, format_type(atttypid, atttypmod), CASE WHEN attnotnull THEN ' NOT NULL' ELSE '' END), ', ' ORDER BY attnum)
        INTO columns FROM pg_catalog.pg_attribute WHERE attrelid = rel AND attnum > 0 AND NOT attisdropped;
    SELECT count(*) INTO shards FROM pg_catalog.pg_dist_shard WHERE logicalrelid = rel;
    commands := format('CREATE SCHEMA IF NOT EXISTS %I;', sch);
    IF part.partmethod = 'n' THEN
        IF grp <> 0 THEN
            commands := commands || format('CREATE FOREIGN TABLE IF NOT EXISTS %I.%I (%s) SERVER citus_group_0;', sch, tab, columns);
        END IF;
    ELSE
        commands := commands || format('CREATE TABLE IF NOT EXISTS %I.%I (%s) PARTITION BY HASH (%s);', sch, tab, columns, part.partkey)
            || (SELECT string_agg(CASE WHEN p.groupid = grp
                    THEN format('CREATE TABLE IF NOT EXISTS %1$I.%2$I PARTITION OF %1$I.%3$I %6$s FOR VALUES WITH (MODULUS %4$s, REMAINDER %5$s);',
                        sch, tab || '_' || s.shardid, tab, shards, s.shardminvalue, constraints)
                    ELSE format('CREATE FOREIGN TABLE IF NOT EXISTS %1$I.%2$I PARTITION OF %1$I.%3$I FOR VALUES WITH (MODULUS %4$s, REMAINDER %5$s) SERVER citus_group_%6$s;',
                        sch, tab || '_' || s.shardid, tab, shards, s.shardminvalue, p.groupid) END, '' ORDER BY s.shardid)
                FROM pg_catalog.pg_dist_shard s JOIN pg_catalog.pg_dist_placement p USING (shardid) WHERE s.logicalrelid = rel);
    END IF;
    RETURN commands || format('INSERT INTO pg_catalog.pg_dist_partition VALUES (%L, %L, %L, %s, %L) ON CONFLICT DO NOTHING;',
            format('%I.%I', sch, tab), part.partmethod, part.partkey, part.colocationid, part.repmodel)
        || (SELECT string_agg(format('INSERT INTO pg_catalog.pg_dist_shard VALUES (%1$L, %2$s, ''t'', %3$L, %4$L) ON CONFLICT DO NOTHING;'
                'INSERT INTO pg_catalog.pg_dist_placement VALUES (%5$s, %2$s, 1, 0, %6$s) ON CONFLICT DO NOTHING;',
                format('%I.%I', sch, tab), s.shardid, s.shardminvalue, s.shardmaxvalue, p.placementid, p.groupid), '')
            FROM pg_catalog.pg_dist_shard s JOIN pg_catalog.pg_dist_placement p USING (shardid) WHERE s.logicalrelid = rel);
END $$;

CREATE FUNCTION citus_standin.check_new_table(rel regclass) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM citus_standin.begin_change();
    IF EXISTS (SELECT FROM pg_catalog.pg_dist_partition WHERE logicalrelid = rel) THEN
        RAISE EXCEPTION 'table "%" is already distributed', rel;
    ELSIF (SELECT relkind FROM pg_catalog.pg_class WHERE oid = rel) <> 'r' THEN
        RAISE EXCEPTION '"%" is not an ordinary table', rel;
    END IF;
END $$;

-- publish_table makes the table on the other nodes and takes it away there again when that fails half way.
CREATE FUNCTION citus_standin.publish_table(rel regclass, constraints text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM citus_standin.run(nodeid, citus_standin.table_commands(rel, groupid, constraints)) FROM citus_standin.metadata_nodes();
EXCEPTION WHEN OTHERS THEN
    BEGIN
        PERFORM citus_standin.run(nodeid, citus_standin.drop_command(rel)) FROM citus_standin.metadata_nodes();
    EXCEPTION WHEN OTHERS THEN
        RAISE WARNING 'table "%" may be left on some nodes: %', rel, SQLERRM;
    END;
    RAISE;
END $$;

CREATE FUNCTION citus_standin.drop_command(rel regclass) RETURNS text LANGUAGE sql AS $$
    SELECT format('DROP %s IF EXISTS %I.%I', CASE WHEN p.partmethod = 'n' THEN 'FOREIGN TABLE' ELSE 'TABLE' END, n.nspname, c.relname)
    FROM pg_catalog.pg_dist_partition p JOIN pg_catalog.pg_class c ON c.oid = p.logicalrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE p.logicalrelid = rel $$;

CREATE FUNCTION pg_catalog.create_distributed_table(table_name regclass, distribution_column text,
    distribution_type citus.distribution_type DEFAULT 'hash', colocate_with text DEFAULT 'default', shard_count int DEFAULT NULL)
    RETURNS void LANGUAGE plpgsql SET client_min_messages = warning AS $$
DECLARE
    name text := table_name::text;
    old text := format('citus_standin_old_%s', table_name::oid);
    sch text := (SELECT n.nspname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = table_name);
    tab text := (SELECT relname FROM pg_catalog.pg_class WHERE oid = table_name);
    constraints text;
    rel regclass;
    owned record;
BEGIN
    PERFORM citus_standin.check_new_table(table_name);
    IF distribution_type <> 'hash' THEN
        RAISE EXCEPTION 'the stand-in distributes by hash only';
    END IF;
    SELECT coalesce('(' || string_agg(pg_get_constraintdef(oid), ', ') || ')', '') INTO constraints
        FROM pg_catalog.pg_constraint WHERE conrelid = table_name AND contype IN ('p', 'u');
    EXECUTE format('ALTER TABLE %s RENAME TO %I', table_name, old);
    EXECUTE format('CREATE TABLE %I.%I (LIKE %I.%I INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING IDENTITY) PARTITION BY HASH (%I)',
        sch, tab, sch, old, distribution_column);
    rel := format('%I.%I', sch, tab)::regclass;
    FOR owned IN SELECT d.objid::regclass AS seq, a.attname FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_class c ON c.oid = d.objid AND c.relkind = 'S'
            JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid WHERE d.refobjid = table_name AND d.deptype = 'a' LOOP
        EXECUTE format('ALTER SEQUENCE %s OWNED BY %I.%I.%I', owned.seq, sch, tab, owned.attname);
    END LOOP;
    PERFORM citus_standin.place_shards(rel, distribution_column, coalesce(shard_count, current_setting('citus.shard_count')::int));
    EXECUTE citus_standin.table_commands(rel, 0, constraints);
    PERFORM citus_standin.publish_table(rel, constraints);
    EXECUTE format('INSERT INTO %I.%I SELECT * FROM %I.%I', sch, tab, sch, old);
    EXECUTE format('DROP TABLE %I.%I', sch, old);
END $$;

-- place_shards writes the metadata of a new distributed table; its shards go round the groups that take shards.
CREATE FUNCTION citus_standin.place_shards(rel regclass, distribution_column text, shards int) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    groups int[] := (SELECT array_agg(groupid ORDER BY groupid) FROM pg_catalog.pg_dist_node
        WHERE noderole = 'primary' AND isactive AND shouldhaveshards);
    shard bigint;
BEGIN
    INSERT INTO pg_catalog.pg_dist_partition VALUES (rel, 'h', quote_ident(distribution_column), nextval('pg_catalog.pg_dist_colocationid_seq'), 's');
    FOR i IN 0 .. shards - 1 LOOP
        shard := nextval('pg_catalog.pg_dist_shardid_seq');
        INSERT INTO pg_catalog.pg_dist_shard VALUES (rel, shard, 't', i, i);
        INSERT INTO pg_catalog.pg_dist_placement (shardid, shardstate, shardlength, groupid)
            VALUES (shard, 1, 0, coalesce(groups[1 + i % cardinality(groups)], 0));
    END LOOP;
END $$;

CREATE FUNCTION pg_catalog.create_reference_table(table_name regclass) RETURNS void LANGUAGE plpgsql STRICT SET client_min_messages = warning AS $$
DECLARE
    shard bigint := nextval('pg_catalog.pg_dist_shardid_seq');
BEGIN
    PERFORM citus_standin.check_new_table(table_name);
    INSERT INTO pg_catalog.pg_dist_partition VALUES (table_name, 'n', NULL, nextval('pg_catalog.pg_dist_colocationid_seq'), 't');
    INSERT INTO pg_catalog.pg_dist_shard VALUES (table_name, shard, 't', NULL, NULL);
    INSERT INTO pg_catalog.pg_dist_placement (shardid, shardstate, shardlength, groupid) VALUES (shard, 1, 0, 0);
    PERFORM citus_standin.publish_table(table_name, '');
END $$;

-- Citus takes "any"; a value without a type needs a cast here.
CREATE FUNCTION pg_catalog.get_shard_id_for_distribution_column(table_name regclass, distribution_value anyelement DEFAULT NULL::text) RETURNS bigint
    LANGUAGE plpgsql AS $$
DECLARE
    typ text := (SELECT format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_dist_partition p JOIN pg_catalog.pg_attribute a
        ON a.attrelid = p.logicalrelid AND quote_ident(a.attname) = p.partkey WHERE p.logicalrelid = table_name);
    found bigint;
BEGIN
    EXECUTE CASE WHEN typ IS NULL THEN 'SELECT shardid FROM pg_catalog.pg_dist_shard WHERE logicalrelid = $1 AND $2::text IS NOT DISTINCT FROM $2::text'
        ELSE format('SELECT shardid FROM (SELECT shardid, shardminvalue::int AS remainder, (count(*) OVER ())::int AS modulus
            FROM pg_catalog.pg_dist_shard WHERE logicalrelid = $1) s WHERE satisfies_hash_partition($1, modulus, remainder, $2::text::%s)', typ) END
        INTO found USING table_name, distribution_value;
    RETURN found;
END $$;

-- forget_dropped follows DROP TABLE: the metadata goes, and the coordinator drops the table on the other nodes.
CREATE FUNCTION citus_standin.forget_dropped() RETURNS event_trigger LANGUAGE plpgsql AS $$
DECLARE
    gone record;
BEGIN
    FOR gone IN SELECT d.object_identity, p.partmethod, p.logicalrelid FROM pg_event_trigger_dropped_objects() d
            JOIN pg_catalog.pg_dist_partition p ON p.logicalrelid = d.objid AND d.classid = 'pg_class'::regclass AND d.objsubid = 0 LOOP
        IF citus_standin.local_group() = 0 THEN
            PERFORM citus_standin.run(nodeid, format('DROP %s IF EXISTS %s',
                CASE WHEN gone.partmethod = 'n' THEN 'FOREIGN TABLE' ELSE 'TABLE' END, gone.object_identity)) FROM citus_standin.metadata_nodes();
        END IF;
        DELETE FROM pg_catalog.pg_dist_placement WHERE shardid IN (SELECT shardid FROM pg_catalog.pg_dist_shard WHERE logicalrelid = gone.logicalrelid);
        DELETE FROM pg_catalog.pg_dist_shard WHERE logicalrelid = gone.logicalrelid;
        DELETE FROM pg_catalog.pg_dist_partition WHERE logicalrelid = gone.logicalrelid;
    END LOOP;
END $$;
CREATE EVENT TRIGGER citus_standin_forget_dropped ON sql_drop EXECUTE FUNCTION citus_standin.forget_dropped();
