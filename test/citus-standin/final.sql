-- Views and privileges ------------------------------------------------------------------------------------

CREATE VIEW citus.citus_nodes AS
    SELECT nodename, nodeport,
        CASE WHEN groupid = 0 THEN 'coordinator' ELSE 'worker' END AS role, isactive AS active FROM citus.pg_dist_node;
CREATE VIEW citus.citus_shards AS
    SELECT s.logicalrelid AS table_name, s.shardid, s.logicalrelid::text || '_' || s.shardid AS shard_name,
        CASE p.partmethod WHEN 'h' THEN 'distributed' ELSE 'reference' END AS citus_table_type,
        p.colocationid AS colocation_id, n.nodename, n.nodeport, 0::bigint AS shard_size  -- not asked for
    FROM citus.pg_dist_shard s JOIN citus.pg_dist_partition p USING (logicalrelid) JOIN citus.pg_dist_placement l USING (shardid)
    JOIN citus.pg_dist_node n ON n.groupid = l.groupid AND n.noderole = 'primary';
CREATE VIEW citus.pg_dist_shard_placement AS
    SELECT l.shardid, l.shardstate, l.shardlength, n.nodename, n.nodeport, l.placementid
    FROM citus.pg_dist_placement l JOIN citus.pg_dist_node n ON n.groupid = l.groupid AND n.noderole = 'primary';
CREATE VIEW public.citus_tables AS
    SELECT p.logicalrelid AS table_name, CASE p.partmethod WHEN 'h' THEN 'distributed' ELSE 'reference' END AS citus_table_type,
        coalesce(p.partkey, '<none>') AS distribution_column, p.colocationid AS colocation_id, '0 bytes'::text AS table_size,  -- not asked for
        (SELECT count(*) FROM citus.pg_dist_shard s WHERE s.logicalrelid = p.logicalrelid) AS shard_count,
        pg_get_userbyid(c.relowner) AS table_owner, 'heap'::name AS access_method
    FROM citus.pg_dist_partition p JOIN pg_catalog.pg_class c ON c.oid = p.logicalrelid;

DO $$
DECLARE
    r record;
BEGIN
    FOR r IN SELECT relname, relkind FROM pg_catalog.pg_class WHERE relnamespace = 'citus'::regnamespace AND relkind IN ('r', 'v', 'S') LOOP
        EXECUTE format('ALTER %s citus.%I SET SCHEMA pg_catalog',
            CASE r.relkind WHEN 'r' THEN 'TABLE' WHEN 'v' THEN 'VIEW' ELSE 'SEQUENCE' END, r.relname);
    END LOOP;
    FOR r IN SELECT oid::regprocedure AS f FROM pg_catalog.pg_proc WHERE pronamespace = 'citus_standin'::regnamespace
            OR proname ~ '^citus_(add|activate|update|remove|set|pause|disable|drain)_' OR proname = 'recover_prepared_transactions' LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', r.f);
    END LOOP;
END $$;
GRANT EXECUTE ON FUNCTION citus_standin.unsynced(), citus_standin.pending_work(), citus_standin.local_group(), citus_standin.forget_dropped() TO PUBLIC;
GRANT SELECT ON pg_catalog.pg_dist_node, pg_catalog.pg_dist_local_group, pg_catalog.pg_dist_node_metadata, pg_catalog.pg_dist_poolinfo,
    pg_catalog.pg_dist_partition, pg_catalog.pg_dist_shard, pg_catalog.pg_dist_placement, pg_catalog.pg_dist_transaction,
    pg_catalog.pg_dist_background_job, pg_catalog.pg_dist_background_task, pg_catalog.pg_dist_background_task_depend,
    pg_catalog.pg_dist_rebalance_strategy, pg_catalog.pg_dist_shard_placement, public.citus_tables,
    pg_catalog.citus_nodes, pg_catalog.citus_shards TO PUBLIC;
