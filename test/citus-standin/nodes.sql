-- Copying pg_dist_node -----------------------------------------------------------------------------------

-- node_commands rebuilds pg_dist_node on another node.
CREATE FUNCTION citus_standin.node_commands() RETURNS text LANGUAGE sql AS $$
    SELECT 'DELETE FROM pg_catalog.pg_dist_node; INSERT INTO pg_catalog.pg_dist_node SELECT * FROM json_populate_recordset(NULL::pg_catalog.pg_dist_node, '
        || quote_literal(json_agg(n)) || ');' FROM pg_catalog.pg_dist_node n $$;

-- metadata_nodes lists the other nodes that hold a copy of the metadata.
CREATE FUNCTION citus_standin.metadata_nodes() RETURNS SETOF citus.pg_dist_node LANGUAGE sql AS $$
    SELECT * FROM pg_catalog.pg_dist_node WHERE hasmetadata AND isactive AND noderole = 'primary' AND groupid <> 0 ORDER BY nodeid $$;

CREATE FUNCTION citus_standin.lock_shards(shards bigint[], cooldown int) RETURNS void LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'citus_standin_lock_shards';

CREATE FUNCTION citus_standin.unsynced() RETURNS bool LANGUAGE sql AS $$
    SELECT citus_standin.local_group() = 0
        AND EXISTS (SELECT FROM pg_catalog.pg_dist_node WHERE hasmetadata AND isactive AND NOT metadatasynced AND noderole = 'primary' AND groupid <> 0) $$;

-- pending_work tells what there is to do for the workers of this database: 1 copy the metadata, 2 run tasks.
CREATE FUNCTION citus_standin.pending_work() RETURNS bigint LANGUAGE sql AS $$
    SELECT citus_standin.unsynced()::int::bigint
        + CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_dist_background_task WHERE status IN ('blocked', 'runnable', 'running', 'cancelling'))
            THEN 2 ELSE 0 END $$;

-- sync_metadata copies the rows to each node that lacks them and tells whether all have them now. Like Citus' daemon it
-- holds off changes of the rows meanwhile, and gives way to one that is under way.
CREATE FUNCTION citus_standin.sync_metadata() RETURNS bool LANGUAGE plpgsql AS $$
DECLARE
    node record;
BEGIN
    IF citus_standin.local_group() <> 0 THEN
        RETURN true;
    END IF;
    BEGIN
        LOCK TABLE pg_catalog.pg_dist_node IN ROW EXCLUSIVE MODE NOWAIT;
    EXCEPTION WHEN lock_not_available THEN
        RETURN false;
    END;
    FOR node IN SELECT * FROM citus_standin.metadata_nodes() WHERE NOT metadatasynced LOOP
        BEGIN
            PERFORM citus_standin.reach(node.nodeid);
            PERFORM citus_standin.run(node.nodeid, citus_standin.node_commands());
            UPDATE pg_catalog.pg_dist_node SET metadatasynced = true WHERE nodeid = node.nodeid;
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'metadata of %:% not synced: %', node.nodename, node.nodeport, SQLERRM;
        END;
    END LOOP;
    RETURN NOT citus_standin.unsynced();
END $$;

-- push copies the rows to every metadata node now, for changes that may not be asynchronous.
CREATE FUNCTION citus_standin.push() RETURNS void LANGUAGE sql AS $$
    SELECT citus_standin.run(nodeid, citus_standin.node_commands()) FROM citus_standin.metadata_nodes() $$;

-- Node functions -----------------------------------------------------------------------------------------

CREATE FUNCTION pg_catalog.citus_version() RETURNS text LANGUAGE sql STABLE STRICT AS $$
    SELECT 'Citus 13.2-standin (Matriarch test stand-in, not Citus) on PostgreSQL ' || current_setting('server_version') $$;

CREATE FUNCTION pg_catalog.citus_is_coordinator() RETURNS bool LANGUAGE sql STRICT AS $$
    SELECT citus_standin.local_group() = 0 AND EXISTS (SELECT FROM pg_catalog.pg_dist_node) $$;

CREATE FUNCTION pg_catalog.citus_coordinator_nodeid() RETURNS int LANGUAGE sql STABLE STRICT AS $$
    SELECT coalesce((SELECT nodeid FROM pg_catalog.pg_dist_node WHERE groupid = 0 AND noderole = 'primary'), -1) $$;

CREATE FUNCTION pg_catalog.citus_nodename_for_nodeid(nodeid int) RETURNS text LANGUAGE sql STABLE STRICT AS
    'SELECT n.nodename FROM pg_catalog.pg_dist_node n WHERE n.nodeid = $1';
CREATE FUNCTION pg_catalog.citus_nodeport_for_nodeid(nodeid int) RETURNS int LANGUAGE sql STABLE STRICT AS
    'SELECT n.nodeport FROM pg_catalog.pg_dist_node n WHERE n.nodeid = $1';

CREATE FUNCTION citus_standin.on_coordinator() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF citus_standin.local_group() <> 0 THEN
        RAISE EXCEPTION 'operation is not allowed on this node' USING HINT = 'Connect to the coordinator and run it again.';
    END IF;
END $$;

-- begin_change is how every change of the set of nodes begins: on the coordinator, alone, all in sync.
CREATE FUNCTION citus_standin.begin_change() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    node record;
BEGIN
    PERFORM citus_standin.on_coordinator();
    LOCK TABLE pg_catalog.pg_dist_node IN EXCLUSIVE MODE;
    FOR node IN SELECT * FROM citus_standin.metadata_nodes() WHERE NOT metadatasynced LOOP
        RAISE EXCEPTION '%:% is a metadata node, but is out of sync', node.nodename, node.nodeport
            USING HINT = 'If the node is up, wait until metadata gets synced to it and try again.';
    END LOOP;
END $$;

CREATE FUNCTION citus_standin.node_at(name text, port int) RETURNS int LANGUAGE sql STABLE AS
    'SELECT nodeid FROM pg_catalog.pg_dist_node WHERE nodename = name AND nodeport = port';

CREATE FUNCTION pg_catalog.citus_set_coordinator_host(host text, port int DEFAULT current_setting('port')::int,
    node_role noderole DEFAULT 'primary', node_cluster name DEFAULT 'default') RETURNS void LANGUAGE plpgsql STRICT AS $$
BEGIN
    PERFORM citus_standin.begin_change();
    UPDATE pg_catalog.pg_dist_node SET nodename = host, nodeport = port WHERE groupid = 0 AND noderole = node_role;
    IF NOT FOUND THEN
        INSERT INTO pg_catalog.pg_dist_node (groupid, nodename, nodeport, noderole, nodecluster, hasmetadata, metadatasynced, shouldhaveshards)
            VALUES (0, host, port, node_role, node_cluster, true, true, false);
    END IF;
    PERFORM citus_standin.push();
END $$;

CREATE FUNCTION pg_catalog.citus_add_inactive_node(nodename text, nodeport int, groupid int DEFAULT -1,
    noderole noderole DEFAULT 'primary', nodecluster name DEFAULT 'default') RETURNS int LANGUAGE plpgsql STRICT AS $$
#variable_conflict use_column
DECLARE
    id int;
    grp int := $3;
BEGIN
    PERFORM citus_standin.begin_change();
    id := citus_standin.node_at($1, $2);
    IF id IS NOT NULL THEN
        RETURN id;
    END IF;
    IF grp <> 0 AND $4 = 'primary' AND citus_coordinator_nodeid() < 0 THEN
        RAISE EXCEPTION 'the coordinator has no row yet' USING HINT = 'Call citus_set_coordinator_host first.';
    END IF;
    IF $4 = 'primary' AND EXISTS (SELECT FROM pg_catalog.pg_dist_node n WHERE n.groupid = grp AND n.noderole = 'primary') THEN
        RAISE EXCEPTION 'group % already has a primary node', grp;
    END IF;
    IF grp < 0 THEN
        grp := nextval('pg_catalog.pg_dist_groupid_seq');
    END IF;
    INSERT INTO pg_catalog.pg_dist_node (groupid, nodename, nodeport, noderole, nodecluster, isactive, hasmetadata, metadatasynced, shouldhaveshards)
        VALUES (grp, $1, $2, $4, $5, $4 <> 'primary' OR grp = 0, grp = 0, grp = 0, grp <> 0) RETURNING nodeid INTO id;
    PERFORM citus_standin.push();
    RETURN id;
END $$;

CREATE FUNCTION pg_catalog.citus_activate_node(nodename text, nodeport int) RETURNS int LANGUAGE plpgsql STRICT AS $$
#variable_conflict use_column
DECLARE
    node pg_catalog.pg_dist_node;
BEGIN
    PERFORM citus_standin.begin_change();
    SELECT * INTO node FROM pg_catalog.pg_dist_node n WHERE n.nodename = $1 AND n.nodeport = $2;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'node at "%:%" does not exist', $1, $2;
    END IF;
    IF node.isactive AND node.hasmetadata THEN
        RETURN node.nodeid;
    END IF;
    LOCK TABLE pg_catalog.pg_dist_placement IN SHARE ROW EXCLUSIVE MODE;  -- no shard moves while the node learns where they are
    UPDATE pg_catalog.pg_dist_node SET isactive = true, hasmetadata = true, metadatasynced = true WHERE nodeid = node.nodeid;
    PERFORM citus_standin.run(node.nodeid, format('UPDATE pg_catalog.pg_dist_local_group SET groupid = %s;', node.groupid)
        || citus_standin.node_commands()
        || coalesce((SELECT string_agg(citus_standin.table_commands(logicalrelid, node.groupid), '') FROM pg_catalog.pg_dist_partition), ''));
    PERFORM citus_standin.push();
    RETURN node.nodeid;
END $$;

CREATE FUNCTION pg_catalog.citus_add_node(nodename text, nodeport int, groupid int DEFAULT -1,
    noderole noderole DEFAULT 'primary', nodecluster name DEFAULT 'default') RETURNS int LANGUAGE plpgsql STRICT AS $$
DECLARE
    id int := citus_add_inactive_node($1, $2, $3, $4, $5);
BEGIN
    IF $4 = 'primary' AND $3 <> 0 THEN
        PERFORM citus_activate_node($1, $2);
    END IF;
    RETURN id;
END $$;

CREATE FUNCTION pg_catalog.citus_add_secondary_node(nodename text, nodeport int, primaryname text, primaryport int,
    nodecluster name DEFAULT 'default') RETURNS int LANGUAGE plpgsql STRICT AS $$
#variable_conflict use_column
DECLARE
    grp int := (SELECT n.groupid FROM pg_catalog.pg_dist_node n WHERE n.nodename = $3 AND n.nodeport = $4);
BEGIN
    IF grp IS NULL THEN
        RAISE EXCEPTION 'node at "%:%" does not exist', $3, $4;
    END IF;
    RETURN citus_add_node($1, $2, grp, 'secondary', $5);
END $$;

-- pause_group takes the shard locks of a group, and ends their holders after the cooldown (ms) if forced. As in Citus a
-- pause of any group stops writes to reference tables.
CREATE FUNCTION citus_standin.pause_group(grp int, force bool, cooldown int) RETURNS void LANGUAGE sql AS $$
    SELECT citus_standin.lock_shards(array_agg(DISTINCT s.shardid), CASE WHEN force THEN cooldown ELSE -1 END)
    FROM pg_catalog.pg_dist_placement p JOIN pg_catalog.pg_dist_shard s USING (shardid)
    WHERE p.groupid = grp OR s.shardminvalue IS NULL HAVING count(*) > 0 $$;

-- end_blockers ends who is in the way of a session; -1 when that session is gone.
CREATE FUNCTION citus_standin.end_blockers(waiter int) RETURNS bigint LANGUAGE sql AS $$
    SELECT CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE pid = waiter)
        THEN (SELECT count(pg_terminate_backend(pid)) FROM unnest(pg_blocking_pids(waiter)) pid WHERE pid > 0) ELSE -1 END $$;

CREATE FUNCTION pg_catalog.citus_pause_node_within_txn(node_id int, force bool DEFAULT false, lock_cooldown int DEFAULT 10000)
    RETURNS void LANGUAGE plpgsql STRICT AS $$
DECLARE
    grp int := (SELECT n.groupid FROM pg_catalog.pg_dist_node n WHERE n.nodeid = node_id);
BEGIN
    IF grp IS NULL THEN
        RAISE EXCEPTION 'node % not found', node_id USING ERRCODE = 'no_data_found';
    END IF;
    PERFORM citus_standin.pause_group(grp, force, lock_cooldown);
END $$;

-- Works on every node, for that node's copy; the coordinator's reaches the others after the commit.
CREATE FUNCTION pg_catalog.citus_update_node(node_id int, new_node_name text, new_node_port int,
    force bool DEFAULT false, lock_cooldown int DEFAULT 10000) RETURNS void LANGUAGE plpgsql STRICT AS $$
DECLARE
    owner int := citus_standin.node_at(new_node_name, new_node_port);
BEGIN
    IF owner = node_id THEN
        RETURN;
    ELSIF owner IS NOT NULL THEN
        RAISE EXCEPTION 'there is already another node with the specified hostname and port';
    END IF;
    IF EXISTS (SELECT FROM pg_catalog.pg_dist_node n WHERE n.nodeid = node_id AND n.noderole = 'primary') THEN
        PERFORM citus_standin.pause_group((SELECT n.groupid FROM pg_catalog.pg_dist_node n WHERE n.nodeid = node_id), force, lock_cooldown);
    END IF;
    LOCK TABLE pg_catalog.pg_dist_node IN EXCLUSIVE MODE;
    UPDATE pg_catalog.pg_dist_node SET nodename = new_node_name, nodeport = new_node_port WHERE nodeid = node_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'node % not found', node_id;
    END IF;
    UPDATE pg_catalog.pg_dist_node SET metadatasynced = false WHERE hasmetadata AND noderole = 'primary' AND groupid <> 0;
    PERFORM citus_standin.request_sync();
END $$;

-- leaving_node finds a node and refuses it while its group holds the only placement of a shard.
CREATE FUNCTION citus_standin.leaving_node(name text, port int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    node pg_catalog.pg_dist_node;
    held record;
BEGIN
    SELECT * INTO node FROM pg_catalog.pg_dist_node n WHERE n.nodename = name AND n.nodeport = port;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'node at "%:%" does not exist', name, port;
    END IF;
    SELECT s.shardid, format('%s.%I', c.relnamespace::regnamespace, c.relname) AS full_name INTO held FROM pg_catalog.pg_dist_placement p
        JOIN pg_catalog.pg_dist_shard s USING (shardid) JOIN pg_catalog.pg_class c ON c.oid = s.logicalrelid
        WHERE p.groupid = node.groupid AND node.noderole = 'primary' ORDER BY s.shardid LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'cannot remove or disable the node %:% because because it contains the only shard placement for shard %', name, port, held.shardid
            USING DETAIL = format('One of the table(s) that prevents the operation complete successfully is %s', held.full_name);
    END IF;
    RETURN node.nodeid;
END $$;

CREATE FUNCTION pg_catalog.citus_remove_node(nodename text, nodeport int) RETURNS void LANGUAGE plpgsql STRICT AS $$
DECLARE
    leaving int;
BEGIN
    PERFORM citus_standin.begin_change();
    leaving := citus_standin.leaving_node($1, $2);
    DELETE FROM pg_catalog.pg_dist_node WHERE nodeid = leaving;
    PERFORM citus_standin.push();
END $$;

CREATE FUNCTION pg_catalog.citus_disable_node(nodename text, nodeport int, synchronous bool DEFAULT false) RETURNS void LANGUAGE plpgsql STRICT AS $$
DECLARE
    leaving int;
BEGIN
    PERFORM citus_standin.begin_change();
    leaving := citus_standin.leaving_node($1, $2);
    UPDATE pg_catalog.pg_dist_node SET isactive = false, metadatasynced = false, hasmetadata = false WHERE nodeid = leaving;
    PERFORM citus_standin.push();
END $$;

CREATE FUNCTION pg_catalog.citus_set_node_property(nodename text, nodeport int, property text, value bool) RETURNS void LANGUAGE plpgsql STRICT AS $$
BEGIN
    PERFORM citus_standin.begin_change();
    IF property <> 'shouldhaveshards' THEN
        RAISE EXCEPTION 'only the ''shouldhaveshards'' property can be set using this function';
    END IF;
    UPDATE pg_catalog.pg_dist_node n SET shouldhaveshards = value WHERE n.nodename = $1 AND n.nodeport = $2;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'node at "%:%" does not exist', $1, $2;
    END IF;
    PERFORM citus_standin.push();
END $$;

CREATE FUNCTION pg_catalog.citus_check_connection_to_node(nodename text, nodeport int DEFAULT 5432) RETURNS bool LANGUAGE plpgsql STRICT AS $$
BEGIN
    PERFORM citus_standin.run(citus_standin.node_at($1, $2), 'BEGIN');
    RETURN citus_standin.node_at($1, $2) IS NOT NULL;
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'connection to the remote node %:% failed with the following error: %', $1, $2, SQLERRM;
    RETURN false;
END $$;

-- check_connections asks a node for its connections to all others; unknown when it does not answer.
CREATE FUNCTION citus_standin.check_connections(node int) RETURNS TABLE (name text, port int, ok bool) LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY SELECT * FROM citus_standin.dblink(citus_standin.conninfo(node), $q$
        SELECT nodename, nodeport, citus_check_connection_to_node(nodename, nodeport)
        FROM pg_catalog.pg_dist_node WHERE isactive AND noderole = 'primary' ORDER BY nodeid $q$) AS r(name text, port int, ok bool);
EXCEPTION WHEN OTHERS THEN
    RETURN QUERY SELECT n.nodename, n.nodeport, NULL::bool
        FROM pg_catalog.pg_dist_node n WHERE n.isactive AND n.noderole = 'primary' ORDER BY n.nodeid;
END $$;

CREATE FUNCTION pg_catalog.citus_check_cluster_node_health(OUT from_nodename text, OUT from_nodeport int,
    OUT to_nodename text, OUT to_nodeport int, OUT result bool) RETURNS SETOF record LANGUAGE sql STRICT AS $$
    SELECT n.nodename, n.nodeport, c.name, c.port, c.ok
    FROM pg_catalog.pg_dist_node n, LATERAL citus_standin.check_connections(n.nodeid) c
    WHERE n.isactive AND n.noderole = 'primary' $$;

CREATE FUNCTION pg_catalog.start_metadata_sync_to_all_nodes() RETURNS bool LANGUAGE sql STRICT AS $$
    SELECT citus_standin.push(); UPDATE pg_catalog.pg_dist_node SET metadatasynced = true WHERE hasmetadata; SELECT true $$;

-- Finishes the prepared transactions that this node began elsewhere. Like Citus it believes that what the
-- other server does not list was finished, which is wrong while that server is in recovery.
CREATE FUNCTION pg_catalog.recover_prepared_transactions() RETURNS int LANGUAGE plpgsql STRICT AS $$
DECLARE
    node record;
    prepared record;
    recovered int := 0;
    listed text := format($q$SELECT gid FROM pg_prepared_xacts WHERE database = current_database() AND gid LIKE 'citus\_%s\_%%'$q$,
        citus_standin.local_group());
BEGIN
    LOCK TABLE pg_catalog.pg_dist_transaction IN SHARE UPDATE EXCLUSIVE MODE;
    FOR node IN SELECT * FROM pg_catalog.pg_dist_node WHERE isactive AND noderole = 'primary' ORDER BY nodeid LOOP
        BEGIN
            PERFORM citus_standin.reach(node.nodeid);
            FOR prepared IN SELECT * FROM citus_standin.dblink(citus_standin.conninfo(node.nodeid), listed) AS p(gid text) LOOP
                PERFORM citus_standin.run(node.nodeid, format('%s PREPARED %L', CASE WHEN EXISTS (
                    SELECT FROM pg_catalog.pg_dist_transaction t WHERE t.groupid = node.groupid AND t.gid = prepared.gid)
                    THEN 'COMMIT' ELSE 'ROLLBACK' END, prepared.gid));
                recovered := recovered + 1;
            END LOOP;
            DELETE FROM pg_catalog.pg_dist_transaction WHERE groupid = node.groupid;
        EXCEPTION WHEN sqlclient_unable_to_establish_sqlconnection THEN
            RAISE WARNING 'transaction recovery cannot connect to %:%', node.nodename, node.nodeport;
        END;
    END LOOP;
    RETURN recovered;
END $$;

-- finish_prepared commits what this node prepared elsewhere and has a record of, right after its own commit. What it
-- cannot reach is left to recover_prepared_transactions.
CREATE FUNCTION citus_standin.finish_prepared() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    prepared record;
    finished bigint := 0;
BEGIN
    LOCK TABLE pg_catalog.pg_dist_transaction IN SHARE UPDATE EXCLUSIVE MODE;
    FOR prepared IN SELECT t.*, n.nodeid FROM pg_catalog.pg_dist_transaction t
            JOIN pg_catalog.pg_dist_node n ON n.groupid = t.groupid AND n.noderole = 'primary' LOOP
        BEGIN
            PERFORM citus_standin.run(prepared.nodeid, format('COMMIT PREPARED %L', prepared.gid));
            DELETE FROM pg_catalog.pg_dist_transaction t WHERE t.gid = prepared.gid AND t.groupid = prepared.groupid;
            finished := finished + 1;
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'transaction % is left to recovery: %', prepared.gid, SQLERRM;
        END;
    END LOOP;
    RETURN finished;
END $$;
