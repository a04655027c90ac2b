-- Copying pg_dist_node -----------------------------------------------------------------------------------

-- node_commands rebuilds pg_dist_node on another node.
CREATE FUNCTION citus_standin.node_commands() RETURNS text LANGUAGE sql AS $$
    SELECT 'DELETE FROM pg_catalog.pg_dist_node; INSERT INTO pg_catalog.pg_dist_node SELECT * FROM json_populate_recordset(NULL::pg_catalog.pg_dist_node, '
        || quote_literal(json_agg(n)) || ');' FROM pg_catalog.pg_dist_node n $$;

-- metadata_nodes lists the other nodes that hold a copy of the metadata.
CREATE FUNCTION citus_standin.metadata_nodes() RETURNS SETOF citus.pg_dist_node LANGUAGE sql AS $$
    SELECT * FROM pg_catalog.pg_dist_node WHERE hasmetadata AND isactive AND noderole = 'primary' AND groupid <> 0 ORDER BY nodeid $$;

CREATE FUNCTION citus_standin.unsynced() RETURNS bool LANGUAGE sql AS $$
    SELECT citus_standin.local_group() = 0
        AND EXISTS (SELECT FROM pg_catalog.pg_dist_node WHERE hasmetadata AND isactive AND NOT metadatasynced AND noderole = 'primary' AND groupid <> 0) $$;

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

-- begin_change is how every change of the set of nodes begins: on the coordinator, alone, all in sync.
CREATE FUNCTION citus_standin.begin_change() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    node record;
BEGIN
    IF citus_standin.local_group() <> 0 THEN
        RAISE EXCEPTION 'operation is not allowed on this node' USING HINT = 'Connect to the coordinator and run it again.';
    END IF;
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
    LOCK TABLE pg_catalog.pg_dist_node IN EXCLUSIVE MODE;
    UPDATE pg_catalog.pg_dist_node SET nodename = new_node_name, nodeport = new_node_port WHERE nodeid = node_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'node % not found', node_id;
    END IF;
    UPDATE pg_catalog.pg_dist_node SET metadatasynced = false WHERE hasmetadata AND noderole = 'primary' AND groupid <> 0;
    PERFORM citus_standin.request_sync();
END $$;

CREATE FUNCTION pg_catalog.citus_remove_node(nodename text, nodeport int) RETURNS void LANGUAGE plpgsql STRICT AS $$
#variable_conflict use_column
DECLARE
    node pg_catalog.pg_dist_node;
    shard bigint;
BEGIN
    PERFORM citus_standin.begin_change();
    SELECT * INTO node FROM pg_catalog.pg_dist_node n WHERE n.nodename = $1 AND n.nodeport = $2;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'node at "%:%" does not exist', $1, $2;
    END IF;
    SELECT min(shardid) INTO shard FROM pg_catalog.pg_dist_placement WHERE groupid = node.groupid AND node.noderole = 'primary';
    IF shard IS NOT NULL THEN
        RAISE EXCEPTION 'cannot remove or disable the node %:% because because it contains the only shard placement for shard %', $1, $2, shard;
    END IF;
    DELETE FROM pg_catalog.pg_dist_node WHERE nodeid = node.nodeid;
    PERFORM citus_standin.push();
END $$;

CREATE FUNCTION pg_catalog.citus_set_node_property(nodename text, nodeport int, property text, value bool) RETURNS void LANGUAGE plpgsql STRICT AS $$
BEGIN
    PERFORM citus_standin.begin_change();
    IF property <> 'shouldhaveshards' THEN
        RAISE EXCEPTION 'only the ''shouldhaveshards'' property can be set using this function';
    END IF;
    UPDATE pg_catalog.pg_dist_node n SET shouldhaveshards = value WHERE n.nodename = $1 AND n.nodeport = $2;
    PERFORM citus_standin.push();
END $$;

CREATE FUNCTION pg_catalog.citus_check_connection_to_node(nodename text, nodeport int DEFAULT 5432) RETURNS bool LANGUAGE plpgsql STRICT AS $$
BEGIN
    PERFORM citus_standin.run(citus_standin.node_at($1, $2), 'BEGIN');
    RETURN citus_standin.node_at($1, $2) IS NOT NULL;
EXCEPTION WHEN OTHERS THEN
    RETURN false;
END $$;

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
        FOR prepared IN SELECT * FROM citus_standin.dblink(citus_standin.conninfo(node.nodeid), listed) AS p(gid text) LOOP
            PERFORM citus_standin.run(node.nodeid, format('%s PREPARED %L', CASE WHEN EXISTS (
                SELECT FROM pg_catalog.pg_dist_transaction t WHERE t.groupid = node.groupid AND t.gid = prepared.gid)
                THEN 'COMMIT' ELSE 'ROLLBACK' END, prepared.gid));
            recovered := recovered + 1;
        END LOOP;
        DELETE FROM pg_catalog.pg_dist_transaction WHERE groupid = node.groupid;
    END LOOP;
    RETURN recovered;
END $$;
