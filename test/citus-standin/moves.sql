-- Moving shards ------------------------------------------------------------------------------------------
-- A move happens in one transaction on each node: copied on the target, turned into a foreign table everywhere else. The
-- other nodes' are prepared; the record that this node writes of each decides, as in Citus, what becomes of it.

CREATE FUNCTION citus_standin.mark_move(shard bigint, target int) RETURNS void LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'citus_standin_mark_move';
CREATE FUNCTION citus_standin.fill(target regclass, query text) RETURNS void LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'citus_standin_fill';

-- shard is what a move has to know of one. A shard has one placement.
CREATE FUNCTION citus_standin.shard(id bigint, OUT parent regclass, OUT sch text, OUT tab text, OUT name text, OUT full_name text,
    OUT grp int, OUT bounds text, OUT source int) LANGUAGE sql STABLE AS $$
    SELECT s.logicalrelid, n.nspname, c.relname, format('%I', c.relname || '_' || id), format('%I.%I', n.nspname, c.relname || '_' || id), p.groupid,
        format('FOR VALUES WITH (MODULUS %s, REMAINDER %s)',
            (SELECT count(*) FROM pg_catalog.pg_dist_shard x WHERE x.logicalrelid = s.logicalrelid), s.shardminvalue),
        (SELECT nodeid FROM pg_catalog.pg_dist_node d WHERE d.groupid = p.groupid AND d.noderole = 'primary')
    FROM pg_catalog.pg_dist_shard s JOIN pg_catalog.pg_dist_placement p USING (shardid)
    JOIN pg_catalog.pg_class c ON c.oid = s.logicalrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE s.shardid = id $$;

-- constraints lists the definitions of a shard's keys, from the node that holds it.
CREATE FUNCTION citus_standin.constraints(shard bigint) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
    s record;
    ask text;
BEGIN
    SELECT * INTO s FROM citus_standin.shard(shard);
    ask := format('SELECT pg_get_constraintdef(oid) FROM pg_catalog.pg_constraint WHERE conrelid = %L::regclass AND contype IN (''p'', ''u'') ORDER BY contype', s.full_name);
    IF s.grp = citus_standin.local_group() THEN
        RETURN QUERY EXECUTE ask;
    ELSE
        RETURN QUERY SELECT * FROM citus_standin.dblink(citus_standin.conninfo(s.source), ask) AS d(definition text);
    END IF;
END $$;

CREATE FUNCTION citus_standin.check_identity(shard bigint, mode citus.shard_transfer_mode) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF mode = 'auto' AND NOT EXISTS (SELECT FROM citus_standin.constraints(shard) d WHERE d LIKE 'PRIMARY KEY%') THEN
        RAISE EXCEPTION 'cannot use logical replication to transfer shards of the relation % since it doesn''t have a REPLICA IDENTITY or PRIMARY KEY',
            (SELECT parent FROM citus_standin.shard(shard)) USING ERRCODE = 'feature_not_supported',
            HINT = 'If you wish to continue without a replica identity set the shard_transfer_mode to ''force_logical'' or ''block_writes''.';
    END IF;
END $$;

-- move_commands is a node's part. No node reads the shard but the target, nobody writes it, all statements on the table wait.
CREATE FUNCTION citus_standin.move_commands(shard bigint, grp int, source_group int, target_group int) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    s record;
    reading text;
    columns text;
    arriving text := format('citus_standin_arriving_%s', shard);
    switch text := format('UPDATE pg_catalog.pg_dist_placement SET groupid = %s WHERE shardid = %s;', target_group, shard);
BEGIN
    SELECT * INTO s FROM citus_standin.shard(shard);
    IF grp <> target_group THEN
        RETURN format('DROP %s TABLE %s;', CASE WHEN grp <> source_group THEN 'FOREIGN' END, s.full_name)
            || format('CREATE FOREIGN TABLE %s PARTITION OF %I.%I %s SERVER citus_group_%s;', s.full_name, s.sch, s.tab, s.bounds, target_group)
            || switch;
    END IF;
    SELECT format('SELECT %s FROM %s', string_agg(quote_ident(attname), ', ' ORDER BY attnum), s.full_name),
            string_agg(format('%I %s', attname, format_type(atttypid, atttypmod)), ', ' ORDER BY attnum)
        INTO reading, columns FROM pg_catalog.pg_attribute WHERE attrelid = s.parent AND attnum > 0 AND NOT attisdropped;
    RETURN format('CREATE TABLE %1$I.%2$I (LIKE %1$I.%3$I INCLUDING GENERATED);', s.sch, arriving, s.tab)
        || format('DO %L;', format('BEGIN PERFORM citus_standin.fill(%L, %L); END', format('%I.%I', s.sch, arriving),
            format('SELECT r.* FROM citus_standin.dblink(citus_standin.conninfo(%s, ''0''), %L) AS r(%s)', s.source, reading, columns)))
        || format('DROP FOREIGN TABLE %s; ALTER TABLE %I.%I RENAME TO %s;', s.full_name, s.sch, arriving, s.name)
        || coalesce((SELECT string_agg(format('ALTER TABLE %s ADD %s;', s.full_name, d), '') FROM citus_standin.constraints(shard) d), '')
        || format('ALTER TABLE %I.%I ATTACH PARTITION %s %s;', s.sch, s.tab, s.full_name, s.bounds) || switch;
END $$;

-- on_node runs a part of the move: here, or in the transaction that the move has open on the node.
CREATE FUNCTION citus_standin.on_node(node int, commands text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF node = (SELECT nodeid FROM pg_catalog.pg_dist_node WHERE groupid = citus_standin.local_group() AND noderole = 'primary') THEN
        EXECUTE commands;
    ELSE
        PERFORM citus_standin.dblink_exec(format('citus_standin_move_%s', node), commands);
    END IF;
END $$;

CREATE FUNCTION citus_standin.end_move_connections() RETURNS void LANGUAGE sql AS $$
    SELECT citus_standin.dblink_disconnect(c) FROM unnest(citus_standin.dblink_get_connections()) c WHERE c LIKE 'citus\_standin\_move\_%' $$;

-- lock_everywhere ends with a transaction open on every other node and the shard's table locked on all. A statement on one
-- node needs locks on others, so it is all or none, again and again: no node would see a deadlock.
CREATE FUNCTION citus_standin.lock_everywhere(shard bigint) RETURNS void LANGUAGE plpgsql SET lock_timeout = '500ms' AS $$
DECLARE
    s record;
    node record;
    connection text;
BEGIN
    SELECT * INTO s FROM citus_standin.shard(shard);
    FOR attempt IN REVERSE 40 .. 1 LOOP
        BEGIN
            EXECUTE format('LOCK TABLE ONLY %I.%I IN ACCESS EXCLUSIVE MODE', s.sch, s.tab);
            PERFORM citus_standin.lock_shards(ARRAY[shard], -1);
            FOR node IN SELECT * FROM citus_standin.metadata_nodes() LOOP
                connection := format('citus_standin_move_%s', node.nodeid);
                PERFORM citus_standin.dblink_connect(connection, citus_standin.conninfo(node.nodeid, '0'));
                PERFORM citus_standin.dblink_exec(connection, 'SET lock_timeout = ''500ms''; BEGIN');
                PERFORM citus_standin.dblink_exec(connection, format('LOCK TABLE ONLY %I.%I IN ACCESS EXCLUSIVE MODE', s.sch, s.tab));
            END LOOP;
            -- Statements are over by now; this is for those who use the shard by its own name.
            PERFORM citus_standin.on_node(s.source, format('LOCK TABLE ONLY %s IN EXCLUSIVE MODE', s.full_name));
            RETURN;
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            PERFORM citus_standin.end_move_connections();
            IF attempt = 1 THEN
                RAISE;
            END IF;
        END;
        PERFORM pg_sleep(0.1);
    END LOOP;
END $$;

-- switch_shard moves the rows. What it leaves on other nodes is prepared; see finish_prepared.
CREATE FUNCTION citus_standin.switch_shard(shard bigint, target int) RETURNS void LANGUAGE plpgsql SET client_min_messages = warning AS $$
DECLARE
    s record;
    node record;
    gid text;
    prepared int[] := '{}';
    target_group int := (SELECT groupid FROM pg_catalog.pg_dist_node WHERE nodeid = target);
    others int[] := (SELECT array_agg(nodeid) FROM citus_standin.metadata_nodes());
BEGIN
    SELECT * INTO s FROM citus_standin.shard(shard);
    PERFORM citus_standin.lock_everywhere(shard);
    PERFORM citus_standin.on_node(target, citus_standin.move_commands(shard, target_group, s.grp, target_group));
    FOR node IN SELECT nodeid, groupid FROM pg_catalog.pg_dist_node WHERE noderole = 'primary' AND nodeid <> target
            AND (groupid = 0 OR nodeid = ANY (others)) ORDER BY groupid DESC LOOP
        PERFORM citus_standin.on_node(node.nodeid, citus_standin.move_commands(shard, node.groupid, s.grp, target_group));
    END LOOP;
    LOCK TABLE pg_catalog.pg_dist_transaction IN SHARE UPDATE EXCLUSIVE MODE;  -- no recovery until it is known what becomes of these
    FOR node IN SELECT * FROM citus_standin.metadata_nodes() LOOP
        gid := format('citus_0_%s_%s_%s', pg_backend_pid(), pg_current_xact_id(), node.nodeid);
        INSERT INTO pg_catalog.pg_dist_transaction VALUES (node.groupid, gid, pg_current_xact_id());
        PERFORM citus_standin.dblink_exec(format('citus_standin_move_%s', node.nodeid), format('PREPARE TRANSACTION %L', gid));
        prepared := prepared || node.nodeid;
        PERFORM citus_standin.dblink_disconnect(format('citus_standin_move_%s', node.nodeid));
    END LOOP;
    PERFORM citus_standin.request_sync();
EXCEPTION WHEN OTHERS OR query_canceled THEN
    PERFORM citus_standin.end_move_connections();
    BEGIN
        PERFORM citus_standin.run(p, format('ROLLBACK PREPARED ''citus_0_%s_%s_%s''', pg_backend_pid(), pg_current_xact_id(), p)) FROM unnest(prepared) p;
    EXCEPTION WHEN OTHERS THEN
        RAISE WARNING 'a part of the move is left to recovery: %', SQLERRM;
    END;
    RAISE;
END $$;

CREATE FUNCTION pg_catalog.citus_move_shard_placement(shard_id bigint, source_node_id int, target_node_id int,
    shard_transfer_mode citus.shard_transfer_mode DEFAULT 'auto') RETURNS void LANGUAGE plpgsql STRICT AS $$
DECLARE
    s record;
    source pg_catalog.pg_dist_node;
    target pg_catalog.pg_dist_node;
    node record;
BEGIN
    PERFORM citus_standin.on_coordinator();
    LOCK TABLE pg_catalog.pg_dist_node IN ACCESS SHARE MODE;
    SELECT * INTO source FROM pg_catalog.pg_dist_node n WHERE n.nodeid = source_node_id;
    SELECT * INTO target FROM pg_catalog.pg_dist_node n WHERE n.nodeid = target_node_id;
    IF source_node_id = target_node_id THEN
        RAISE EXCEPTION 'cannot move shard to the same node' USING ERRCODE = 'invalid_parameter_value';
    ELSIF target.nodeid IS NULL OR target.noderole <> 'primary' OR NOT target.isactive THEN
        RAISE EXCEPTION 'moving a shard to a node that is not an active primary is not supported';
    END IF;
    SELECT * INTO s FROM citus_standin.shard(shard_id);
    IF s.parent IS NULL OR s.bounds IS NULL THEN
        RAISE EXCEPTION 'could not find valid entry for shard %', shard_id;
    ELSIF s.grp = target.groupid THEN
        RAISE WARNING 'shard is already present on node %:%', target.nodename, target.nodeport USING DETAIL = 'Move may have already completed.';
        RETURN;
    ELSIF s.source IS DISTINCT FROM source_node_id THEN
        RAISE EXCEPTION 'could not find placement matching "%:%"', source.nodename, source.nodeport USING HINT = 'Confirm the placement still exists and try again.';
    END IF;
    FOR node IN SELECT * FROM citus_standin.metadata_nodes() WHERE NOT metadatasynced LOOP
        RAISE EXCEPTION '%:% is a metadata node, but is out of sync', node.nodename, node.nodeport;
    END LOOP;
    PERFORM citus_standin.check_identity(shard_id, shard_transfer_mode);
    PERFORM citus_standin.mark_move(shard_id, target_node_id);
    PERFORM pg_sleep(extract(epoch FROM current_setting('citus_standin.task_delay')::interval));
    PERFORM citus_standin.switch_shard(shard_id, target_node_id);
END $$;

CREATE FUNCTION pg_catalog.citus_move_shard_placement(shard_id bigint, source_node_name text, source_node_port int,
    target_node_name text, target_node_port int, shard_transfer_mode citus.shard_transfer_mode DEFAULT 'auto') RETURNS void LANGUAGE plpgsql STRICT AS $$
DECLARE
    source int := citus_standin.node_at(source_node_name, source_node_port);
    target int := citus_standin.node_at(target_node_name, target_node_port);
BEGIN
    IF source IS NULL THEN
        RAISE EXCEPTION 'could not find placement matching "%:%"', source_node_name, source_node_port USING HINT = 'Confirm the placement still exists and try again.';
    ELSIF target IS NULL THEN
        RAISE EXCEPTION 'node %:% not found', target_node_name, target_node_port USING ERRCODE = 'no_data_found';
    END IF;
    PERFORM citus_move_shard_placement(shard_id, source, target, shard_transfer_mode);
END $$;

-- Nothing is ever left: what a broken move did is rolled back.
CREATE PROCEDURE pg_catalog.citus_cleanup_orphaned_resources() LANGUAGE sql AS 'DELETE FROM pg_catalog.pg_dist_cleanup';

-- shard_size is 0 bytes for a shard that is not there, or whose node does not answer.
CREATE FUNCTION citus_standin.shard_size(node int, shard text) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    RETURN (SELECT size FROM citus_standin.dblink(citus_standin.conninfo(node, '1s'), format(
        'SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_catalog.pg_class WHERE oid = to_regclass(%L) AND relkind = ''r''', shard)) AS r(size bigint));
EXCEPTION WHEN OTHERS THEN
    RETURN 0;
END $$;

CREATE FUNCTION pg_catalog.get_rebalance_progress() RETURNS TABLE (sessionid int, table_name regclass, shardid bigint, shard_size bigint,
    sourcename text, sourceport int, targetname text, targetport int, progress bigint, source_shard_size bigint, target_shard_size bigint,
    operation_type text, source_lsn pg_lsn, target_lsn pg_lsn, status text) LANGUAGE sql STRICT AS $$
    SELECT l.pid, s.parent, l.objid::bigint, z.size, a.nodename, a.nodeport, b.nodename, b.nodeport, 1, z.size, 0,
        'move', NULL::pg_lsn, NULL::pg_lsn, 'Copying Data'
    FROM pg_catalog.pg_locks l, LATERAL citus_standin.shard(l.objid::bigint) s, pg_catalog.pg_dist_node a, pg_catalog.pg_dist_node b,
        LATERAL (SELECT citus_standin.shard_size(s.source, s.full_name) AS size) z
    WHERE l.locktype = 'advisory' AND l.objsubid = 9 AND l.granted AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
        AND a.nodeid = s.source AND b.nodeid = l.classid::bigint $$;
