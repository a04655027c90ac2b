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
CREATE TYPE pg_catalog.citus_job_status AS ENUM ('scheduled', 'running', 'finished', 'cancelling', 'cancelled', 'failing', 'failed');
CREATE TYPE pg_catalog.citus_task_status AS ENUM ('blocked', 'runnable', 'running', 'done', 'cancelling', 'error', 'unscheduled', 'cancelled');

-- Catalog: made in schema citus, moved to pg_catalog at the end -----------------------------------------

CREATE SEQUENCE citus.pg_dist_node_nodeid_seq MAXVALUE 4294967296 NO CYCLE;
CREATE SEQUENCE citus.pg_dist_groupid_seq MAXVALUE 4294967296 NO CYCLE;
CREATE SEQUENCE citus.pg_dist_shardid_seq MINVALUE 102008 NO CYCLE;
CREATE SEQUENCE citus.pg_dist_placement_placementid_seq NO CYCLE;
CREATE SEQUENCE citus.pg_dist_colocationid_seq MAXVALUE 4294967296 NO CYCLE;
CREATE SEQUENCE citus.pg_dist_background_job_job_id_seq NO CYCLE;
CREATE SEQUENCE citus.pg_dist_background_task_task_id_seq NO CYCLE;

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

CREATE TABLE citus.pg_dist_background_job (
    job_id bigint PRIMARY KEY DEFAULT nextval('citus.pg_dist_background_job_job_id_seq'),
    state citus_job_status NOT NULL DEFAULT 'scheduled', job_type name NOT NULL, description text NOT NULL,
    started_at timestamptz, finished_at timestamptz);
CREATE TABLE citus.pg_dist_background_task (
    job_id bigint NOT NULL REFERENCES citus.pg_dist_background_job,
    task_id bigint PRIMARY KEY DEFAULT nextval('citus.pg_dist_background_task_task_id_seq'),
    owner regrole NOT NULL DEFAULT current_user::regrole, pid int, status citus_task_status NOT NULL DEFAULT 'runnable',
    command text NOT NULL, retry_count int, not_before timestamptz, message text NOT NULL DEFAULT '', nodes_involved int[],
    UNIQUE (job_id, task_id));
CREATE TABLE citus.pg_dist_background_task_depend (
    job_id bigint NOT NULL REFERENCES citus.pg_dist_background_job ON DELETE CASCADE, task_id bigint NOT NULL, depends_on bigint NOT NULL,
    PRIMARY KEY (job_id, task_id, depends_on),
    FOREIGN KEY (job_id, task_id) REFERENCES citus.pg_dist_background_task (job_id, task_id) ON DELETE CASCADE,
    FOREIGN KEY (job_id, depends_on) REFERENCES citus.pg_dist_background_task (job_id, task_id) ON DELETE CASCADE);
CREATE TABLE citus.pg_dist_cleanup (
    record_id bigint PRIMARY KEY, operation_id bigint NOT NULL, object_type int NOT NULL, object_name text NOT NULL,
    node_group_id int NOT NULL, policy_type int NOT NULL);

-- The plans of the stand-in count shards, whichever strategy is named.
CREATE FUNCTION pg_catalog.citus_shard_cost_1(shardid bigint) RETURNS real LANGUAGE sql IMMUTABLE STRICT AS 'SELECT 1.0::real';
CREATE FUNCTION pg_catalog.citus_shard_cost_by_disk_size(shardid bigint) RETURNS real LANGUAGE sql IMMUTABLE STRICT AS 'SELECT 1.0::real';
CREATE FUNCTION pg_catalog.citus_node_capacity_1(nodeid int) RETURNS real LANGUAGE sql IMMUTABLE STRICT AS 'SELECT 1.0::real';
CREATE FUNCTION pg_catalog.citus_shard_allowed_on_node_true(shardid bigint, nodeid int) RETURNS bool LANGUAGE sql IMMUTABLE STRICT AS 'SELECT true';
CREATE TABLE citus.pg_dist_rebalance_strategy (
    name name NOT NULL UNIQUE, default_strategy bool NOT NULL DEFAULT false, shard_cost_function regproc NOT NULL,
    node_capacity_function regproc NOT NULL, shard_allowed_on_node_function regproc NOT NULL, default_threshold real NOT NULL,
    minimum_threshold real NOT NULL DEFAULT 0, improvement_threshold real NOT NULL DEFAULT 0);
INSERT INTO citus.pg_dist_rebalance_strategy VALUES
    ('by_shard_count', false, 'citus_shard_cost_1', 'citus_node_capacity_1', 'citus_shard_allowed_on_node_true', 0, 0, 0),
    ('by_disk_size', true, 'citus_shard_cost_by_disk_size', 'citus_node_capacity_1', 'citus_shard_allowed_on_node_true', 0.1, 0.01, 0.5);

-- Connections to other nodes -----------------------------------------------------------------------------
-- The libraries of two contrib extensions are used directly, so that CREATE EXTENSION citus needs nothing else.

CREATE FUNCTION citus_standin.fdw_handler() RETURNS fdw_handler LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'citus_standin_fdw_handler';
CREATE FUNCTION citus_standin.fdw_validator(text[], oid) RETURNS void LANGUAGE c STRICT AS '$libdir/postgres_fdw', 'postgres_fdw_validator';
CREATE FOREIGN DATA WRAPPER citus_standin_fdw HANDLER citus_standin.fdw_handler VALIDATOR citus_standin.fdw_validator;
CREATE FUNCTION citus_standin.dblink_exec(text, text) RETURNS text LANGUAGE c STRICT AS '$libdir/dblink', 'dblink_exec';
CREATE FUNCTION citus_standin.dblink(text, text) RETURNS SETOF record LANGUAGE c STRICT AS '$libdir/dblink', 'dblink_record';
CREATE FUNCTION citus_standin.dblink_connect(text, text) RETURNS text LANGUAGE c STRICT AS '$libdir/dblink', 'dblink_connect';
CREATE FUNCTION citus_standin.dblink_disconnect(text) RETURNS text LANGUAGE c STRICT AS '$libdir/dblink', 'dblink_disconnect';
CREATE FUNCTION citus_standin.dblink_get_connections() RETURNS text[] LANGUAGE c AS '$libdir/dblink', 'dblink_get_connections';
CREATE FUNCTION citus_standin.reach(conninfo text, ms int) RETURNS void LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'citus_standin_reach';
CREATE FUNCTION citus_standin.request_jobs() RETURNS void LANGUAGE c AS 'MODULE_PATHNAME', 'citus_standin_request_jobs';
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

-- conninfo leads to a node, as the present user. A statement may take as long as timeout says.
CREATE FUNCTION citus_standin.conninfo(node int, timeout text DEFAULT '10s') RETURNS text LANGUAGE sql STABLE AS $$
    SELECT string_agg(format('%s=''%s''', keyword, replace(replace(value, '\', '\\'), '''', '\''')), ' ')
    FROM (SELECT * FROM citus_standin.node_options(node)
          UNION ALL SELECT * FROM citus_standin.node_credentials(node, current_user)
          UNION ALL VALUES ('user', current_user::text), ('options', '-c statement_timeout=' || timeout)) o $$;

-- reach fails when a node does not answer, and can be cancelled while it waits: what a worker does first that holds locks.
CREATE FUNCTION citus_standin.reach(node int) RETURNS void LANGUAGE sql AS $$
    SELECT citus_standin.reach(citus_standin.conninfo(node),
        (1000 * extract(epoch FROM current_setting('citus.node_connection_timeout')::interval))::int) $$;

-- run executes commands on a node, all or none.
CREATE FUNCTION citus_standin.run(node int, commands text) RETURNS void LANGUAGE sql AS
    'SELECT citus_standin.dblink_exec(citus_standin.conninfo(node), commands)';

-- refresh_servers makes the foreign servers lead where pg_dist_node does: one for each group's primary, one with an empty
-- table for each secondary. Sessions drop a connection whose server has changed when their next transaction begins.
CREATE FUNCTION citus_standin.refresh_servers() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    node record;
    change text;
    role name;
BEGIN
    LOCK TABLE pg_catalog.pg_dist_node IN SHARE ROW EXCLUSIVE MODE;
    FOR node IN SELECT n.nodeid, n.noderole, CASE n.noderole WHEN 'primary' THEN format('citus_group_%s', n.groupid)
            ELSE format('citus_secondary_%s', n.nodeid) END AS server FROM pg_catalog.pg_dist_node n WHERE n.noderole <> 'unavailable' LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_foreign_server WHERE srvname = node.server) THEN
            EXECUTE format('CREATE SERVER %I FOREIGN DATA WRAPPER citus_standin_fdw OPTIONS (fetch_size ''10000'')', node.server);
            EXECUTE format('GRANT USAGE ON FOREIGN SERVER %I TO PUBLIC', node.server);
            IF node.noderole = 'secondary' THEN
                EXECUTE format('CREATE FOREIGN TABLE citus_standin.%I () SERVER %I', 'secondary_' || node.nodeid, node.server);
            END IF;
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
