-- Matriarch test stand-in for Citus: what a manager of nodes sees of Citus 13.2, and a way for rows to
-- reach the shard they belong to. README.md says what is missing.

-- Types ------------------------------------------------------------------------------------------------

CREATE SCHEMA citus;
GRANT USAGE ON SCHEMA citus TO PUBLIC;
CREATE SCHEMA citus_standin;
GRANT USAGE ON SCHEMA citus_standin TO PUBLIC;

CREATE TYPE pg_catalog.noderole AS ENUM ('primary', 'secondary', 'unavailable');
CREATE TYPE citus.distribution_type AS ENUM ('hash', 'range', 'append');
CREATE TYPE citus.shard_transfer_mode AS ENUM ('auto', 'force_logical', 'block_writes');

-- Catalog: made in schema citus, moved to pg_catalog at the end -----------------------------------------

CREATE SEQUENCE citus.pg_dist_node_nodeid_seq MAXVALUE 4294967296 NO CYCLE;
CREATE SEQUENCE citus.pg_dist_groupid_seq MAXVALUE 4294967296 NO CYCLE;
CREATE SEQUENCE citus.pg_dist_shardid_seq MINVALUE 102008 NO CYCLE;
CREATE SEQUENCE citus.pg_dist_placement_placementid_seq NO CYCLE;
CREATE SEQUENCE citus.pg_dist_colocationid_seq MAXVALUE 4294967296 NO CYCLE;

CREATE TABLE citus.pg_dist_node (
    nodeid int PRIMARY KEY DEFAULT nextval('citus.pg_dist_node_nodeid_seq'),
    groupid int NOT NULL DEFAULT nextval('citus.pg_dist_groupid_seq'),
    nodename text NOT NULL,
    nodeport int NOT NULL DEFAULT 5432,
    noderack text NOT NULL DEFAULT 'default',
    hasmetadata bool NOT NULL DEFAULT false,
    isactive bool NOT NULL DEFAULT true,
    noderole noderole NOT NULL DEFAULT 'primary',
    nodecluster name NOT NULL DEFAULT 'default',
    metadatasynced bool DEFAULT false,
    shouldhaveshards bool NOT NULL DEFAULT true,
    nodeisclone bool NOT NULL DEFAULT false,
    nodeprimarynodeid int NOT NULL DEFAULT 0,
    UNIQUE (nodename, nodeport),
    CONSTRAINT primaries_are_only_allowed_in_the_default_cluster
        CHECK (NOT (nodecluster <> 'default' AND noderole = 'primary'))
);

CREATE TABLE citus.pg_dist_local_group (groupid int PRIMARY KEY);
INSERT INTO citus.pg_dist_local_group VALUES (0);

CREATE TABLE citus.pg_dist_node_metadata (metadata jsonb NOT NULL);
INSERT INTO citus.pg_dist_node_metadata VALUES ('{"server_id": "standin", "last_upgrade_version": "13.2-1"}');

CREATE FUNCTION pg_catalog.role_exists(name) RETURNS bool LANGUAGE sql STRICT AS
    'SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = $1)';

-- keywords lists the keywords of a connection string.
CREATE FUNCTION citus_standin.keywords(conninfo text) RETURNS TABLE (keyword text, value text) LANGUAGE sql STRICT AS $$
    SELECT m[1], replace(replace(coalesce(m[3], m[2]), '\''', ''''), '\\', '\')
    FROM regexp_matches(conninfo, '(\w+)\s*=\s*(''((?:[^''\\]|\\.)*)''|[^\s'']+)', 'g') m $$;

CREATE FUNCTION pg_catalog.authinfo_valid(text) RETURNS bool LANGUAGE sql STRICT AS $$
    SELECT count(*) > 0 AND bool_and(keyword IN ('password', 'sslcert', 'sslkey')) FROM citus_standin.keywords($1) $$;

CREATE FUNCTION pg_catalog.poolinfo_valid(text) RETURNS bool LANGUAGE sql STRICT AS $$
    SELECT count(*) > 0 AND bool_and(keyword IN ('dbname', 'host', 'port')) FROM citus_standin.keywords($1) $$;

CREATE TABLE citus.pg_dist_authinfo (
    nodeid int NOT NULL,
    rolename name NOT NULL CONSTRAINT role_exists CHECK (role_exists(rolename)),
    authinfo text NOT NULL CONSTRAINT authinfo_valid CHECK (authinfo_valid(authinfo))
);
CREATE UNIQUE INDEX pg_dist_authinfo_identification_index ON citus.pg_dist_authinfo (rolename, nodeid DESC);

CREATE TABLE citus.pg_dist_poolinfo (
    nodeid int PRIMARY KEY,
    poolinfo text NOT NULL CONSTRAINT poolinfo_valid CHECK (poolinfo_valid(poolinfo))
);

CREATE TABLE citus.pg_dist_transaction (groupid int NOT NULL, gid text NOT NULL, outer_xid xid8, UNIQUE (groupid, gid));
CREATE TABLE citus.pg_dist_partition (
    logicalrelid regclass NOT NULL UNIQUE, partmethod "char" NOT NULL, partkey text,
    colocationid int NOT NULL DEFAULT 0, repmodel "char" NOT NULL DEFAULT 'c', autoconverted bool NOT NULL DEFAULT false);
CREATE TABLE citus.pg_dist_shard (
    logicalrelid regclass NOT NULL, shardid bigint NOT NULL UNIQUE, shardstorage "char" NOT NULL,
    shardminvalue text, shardmaxvalue text);
CREATE TABLE citus.pg_dist_placement (
    placementid bigint NOT NULL UNIQUE DEFAULT nextval('citus.pg_dist_placement_placementid_seq'),
    shardid bigint NOT NULL, shardstate int NOT NULL, shardlength bigint NOT NULL, groupid int NOT NULL,
    UNIQUE (shardid, groupid));

-- Connections to other nodes -----------------------------------------------------------------------------
-- The libraries of two contrib extensions are used directly, so that CREATE EXTENSION citus needs nothing else.

CREATE FUNCTION citus_standin.fdw_handler() RETURNS fdw_handler LANGUAGE c STRICT AS '$libdir/postgres_fdw', 'postgres_fdw_handler';
CREATE FUNCTION citus_standin.fdw_validator(text[], oid) RETURNS void LANGUAGE c STRICT AS '$libdir/postgres_fdw', 'postgres_fdw_validator';
CREATE FOREIGN DATA WRAPPER citus_standin_fdw HANDLER citus_standin.fdw_handler VALIDATOR citus_standin.fdw_validator;
CREATE FUNCTION citus_standin.dblink_exec(text, text) RETURNS text LANGUAGE c STRICT AS '$libdir/dblink', 'dblink_exec';
CREATE FUNCTION citus_standin.dblink(text, text) RETURNS SETOF record LANGUAGE c STRICT AS '$libdir/dblink', 'dblink_record';
CREATE FUNCTION citus_standin.request_sync() RETURNS void LANGUAGE c AS 'MODULE_PATHNAME', 'citus_standin_request_sync';

CREATE FUNCTION citus_standin.local_group() RETURNS int LANGUAGE sql STABLE AS
    'SELECT groupid FROM pg_catalog.pg_dist_local_group';

-- node_options lists the libpq keywords that lead to a node, credentials excepted.
CREATE FUNCTION citus_standin.node_options(node int) RETURNS TABLE (keyword text, value text) LANGUAGE sql STABLE AS $$
    SELECT DISTINCT ON (o.keyword) o.keyword, o.value FROM (
        SELECT 1, k.keyword, k.value FROM pg_catalog.pg_dist_poolinfo p, citus_standin.keywords(p.poolinfo) k WHERE p.nodeid = node
        UNION ALL SELECT 2, k.keyword, k.value FROM citus_standin.keywords(current_setting('citus.node_conninfo')) k
        UNION ALL SELECT 3, v.keyword, v.value FROM pg_catalog.pg_dist_node n, LATERAL (VALUES
            ('host', n.nodename), ('port', n.nodeport::text), ('dbname', current_database()::text),
            ('application_name', 'citus_internal gpid=%p'),
            ('connect_timeout', greatest(2, ceil(extract(epoch FROM current_setting('citus.node_connection_timeout')::interval)))::text)
        ) v(keyword, value) WHERE n.nodeid = node
    ) o(rank, keyword, value) ORDER BY o.keyword, o.rank $$;

-- node_credentials lists what pg_dist_authinfo holds for a role on a node; the node's own row wins over 0.
CREATE FUNCTION citus_standin.node_credentials(node int, role name) RETURNS TABLE (keyword text, value text) LANGUAGE sql STABLE AS $$
    SELECT DISTINCT ON (k.keyword) k.keyword, k.value
    FROM pg_catalog.pg_dist_authinfo a, citus_standin.keywords(a.authinfo) k
    WHERE a.rolename = role AND a.nodeid IN (0, node) ORDER BY k.keyword, a.nodeid = 0
    $$;

CREATE FUNCTION citus_standin.conninfo(node int) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT string_agg(format('%s=''%s''', keyword, replace(replace(value, '\', '\\'), '''', '\''')), ' ')
    FROM (SELECT * FROM citus_standin.node_options(node)
          UNION ALL SELECT * FROM citus_standin.node_credentials(node, current_user)
          UNION ALL VALUES ('user', current_user::text), ('options', '-c statement_timeout=10s')) o $$;

-- run executes commands on a node, all or none.
CREATE FUNCTION citus_standin.run(node int, commands text) RETURNS void LANGUAGE sql AS
    'SELECT citus_standin.dblink_exec(citus_standin.conninfo(node), commands)';

-- refresh_servers makes the foreign servers lead where pg_dist_node does. Sessions drop a connection whose
-- server has changed when their next transaction begins.
CREATE FUNCTION citus_standin.refresh_servers() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    node record;
    change text;
    role name;
BEGIN
    LOCK TABLE pg_catalog.pg_dist_node IN SHARE ROW EXCLUSIVE MODE;
    FOR node IN SELECT n.nodeid, format('citus_group_%s', n.groupid) AS server FROM pg_catalog.pg_dist_node n WHERE n.noderole = 'primary' LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_foreign_server WHERE srvname = node.server) THEN
            EXECUTE format('CREATE SERVER %I FOREIGN DATA WRAPPER citus_standin_fdw OPTIONS (fetch_size ''10000'')', node.server);
            EXECUTE format('GRANT USAGE ON FOREIGN SERVER %I TO PUBLIC', node.server);
        END IF;
        SELECT string_agg(format('%s %I %L', CASE WHEN has.option_name IS NULL THEN 'ADD' ELSE 'SET' END, o.keyword, o.value), ', ')
            INTO change
            FROM citus_standin.node_options(node.nodeid) o
            LEFT JOIN (SELECT x.* FROM pg_catalog.pg_foreign_server s, pg_options_to_table(s.srvoptions) x WHERE s.srvname = node.server) has
                ON has.option_name = o.keyword
            WHERE o.value IS DISTINCT FROM has.option_value;
        IF change IS NOT NULL THEN
            EXECUTE format('ALTER SERVER %I OPTIONS (%s)', node.server, change);
        END IF;
        FOR role IN SELECT rolename FROM pg_catalog.pg_dist_authinfo WHERE nodeid IN (0, node.nodeid)
                    UNION SELECT rolname FROM pg_catalog.pg_roles WHERE oid = 10 LOOP
            PERFORM citus_standin.refresh_mapping(node.nodeid, node.server, role);
        END LOOP;
    END LOOP;
    RETURN NULL;
END $$;

-- refresh_mapping gives a role its credentials on a node. They are replaced only when they differ.
CREATE FUNCTION citus_standin.refresh_mapping(node int, server name, role name) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    want text[];
    have text[];
BEGIN
    SELECT array_agg(format('%s=%s', keyword, value) ORDER BY keyword) INTO want
        FROM (VALUES ('user', role::text) UNION ALL SELECT * FROM citus_standin.node_credentials(node, role)) v(keyword, value);
    SELECT array_agg(o ORDER BY split_part(o, '=', 1)) INTO have FROM pg_catalog.pg_user_mappings m, unnest(m.umoptions) o
        WHERE m.srvname = server AND m.usename = role;
    IF want IS NOT DISTINCT FROM have THEN
        RETURN;
    END IF;
    IF have IS NOT NULL THEN
        EXECUTE format('DROP USER MAPPING FOR %I SERVER %I', role, server);
    END IF;
    EXECUTE format('CREATE USER MAPPING FOR %I SERVER %I OPTIONS (%s)', role, server,
        (SELECT string_agg(format('%I %L', split_part(w, '=', 1), substr(w, strpos(w, '=') + 1)), ', ') FROM unnest(want) w));
END $$;

CREATE FUNCTION citus_standin.check_node_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE pg_catalog.pg_dist_node IN SHARE ROW EXCLUSIVE MODE;
    IF NEW.noderole = 'primary' AND EXISTS (SELECT FROM pg_catalog.pg_dist_node n
            WHERE n.groupid = NEW.groupid AND n.noderole = 'primary' AND n.nodeid <> NEW.nodeid) THEN
        RAISE EXCEPTION 'there cannot be two primary nodes in a group';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER pg_dist_node_trigger BEFORE INSERT OR UPDATE ON citus.pg_dist_node
    FOR EACH ROW EXECUTE FUNCTION citus_standin.check_node_row();
CREATE TRIGGER refresh_servers AFTER INSERT OR UPDATE ON citus.pg_dist_node
    FOR EACH STATEMENT EXECUTE FUNCTION citus_standin.refresh_servers();
CREATE TRIGGER refresh_servers AFTER INSERT OR UPDATE OR DELETE ON citus.pg_dist_authinfo
    FOR EACH STATEMENT EXECUTE FUNCTION citus_standin.refresh_servers();
CREATE TRIGGER refresh_servers AFTER INSERT OR UPDATE OR DELETE ON citus.pg_dist_poolinfo
    FOR EACH STATEMENT EXECUTE FUNCTION citus_standin.refresh_servers();

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

-- Views and privileges ------------------------------------------------------------------------------------

CREATE VIEW citus.citus_nodes AS
    SELECT nodename, nodeport,
        CASE WHEN groupid = 0 THEN 'coordinator' ELSE 'worker' END AS role, isactive AS active FROM citus.pg_dist_node;
CREATE VIEW citus.citus_shards AS
    SELECT s.logicalrelid AS table_name, s.shardid, s.logicalrelid::text || '_' || s.shardid AS shard_name,
        CASE p.partmethod WHEN 'h' THEN 'distributed' ELSE 'reference' END AS citus_table_type,
        p.colocationid AS colocation_id, n.nodename, n.nodeport, 0::bigint AS shard_size
    FROM citus.pg_dist_shard s JOIN citus.pg_dist_partition p USING (logicalrelid) JOIN citus.pg_dist_placement l USING (shardid)
    JOIN citus.pg_dist_node n ON n.groupid = l.groupid AND n.noderole = 'primary';

DO $$
DECLARE
    r record;
BEGIN
    FOR r IN SELECT relname, relkind FROM pg_catalog.pg_class WHERE relnamespace = 'citus'::regnamespace AND relkind IN ('r', 'v', 'S') LOOP
        EXECUTE format('ALTER %s citus.%I SET SCHEMA pg_catalog',
            CASE r.relkind WHEN 'r' THEN 'TABLE' WHEN 'v' THEN 'VIEW' ELSE 'SEQUENCE' END, r.relname);
    END LOOP;
    FOR r IN SELECT oid::regprocedure AS f FROM pg_catalog.pg_proc WHERE pronamespace = 'citus_standin'::regnamespace
            OR proname ~ '^citus_(add|activate|update|remove|set)_' OR proname = 'recover_prepared_transactions' LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', r.f);
    END LOOP;
END $$;
GRANT EXECUTE ON FUNCTION citus_standin.unsynced(), citus_standin.local_group(), citus_standin.forget_dropped() TO PUBLIC;
GRANT SELECT ON pg_catalog.pg_dist_node, pg_catalog.pg_dist_local_group, pg_catalog.pg_dist_node_metadata, pg_catalog.pg_dist_poolinfo,
    pg_catalog.pg_dist_partition, pg_catalog.pg_dist_shard, pg_catalog.pg_dist_placement, pg_catalog.pg_dist_transaction,
    pg_catalog.citus_nodes, pg_catalog.citus_shards TO PUBLIC;
