-- Rebalancing, as a plan, at once, and as a background job ------------------------------------------------

-- next_move picks one shard of a table: first off a node that shall have none, then from the fullest to the emptiest.
CREATE FUNCTION citus_standin.next_move(shards bigint[], at int[], targets int[], drain_only bool, OUT shard int, OUT target int) LANGUAGE plpgsql AS $$
DECLARE
    emptiest record;
    fullest record;
BEGIN
    SELECT t, count(a) AS n INTO emptiest FROM unnest(targets) t LEFT JOIN unnest(at) a ON a = t GROUP BY t ORDER BY 2, 1 LIMIT 1;
    target := emptiest.t;
    shard := (SELECT min(i) FROM generate_subscripts(at, 1) i WHERE at[i] <> ALL (targets));
    IF shard IS NULL AND NOT drain_only THEN
        SELECT a, count(*) AS n INTO fullest FROM unnest(at) a GROUP BY a ORDER BY 2 DESC, 1 LIMIT 1;
        IF fullest.n - emptiest.n >= 2 THEN
            shard := (SELECT min(i) FROM generate_subscripts(at, 1) i WHERE at[i] = fullest.a);
        END IF;
    END IF;
END $$;

CREATE FUNCTION pg_catalog.get_rebalance_table_shards_plan(relation regclass DEFAULT NULL, threshold real DEFAULT NULL,
    max_shard_moves int DEFAULT 1000000, excluded_shard_list bigint[] DEFAULT '{}', drain_only bool DEFAULT false,
    rebalance_strategy name DEFAULT NULL, improvement_threshold real DEFAULT NULL)
    RETURNS TABLE (table_name regclass, shardid bigint, shard_size bigint, sourcename text, sourceport int, targetname text, targetport int)
    LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    targets int[] := (SELECT array_agg(groupid ORDER BY groupid) FROM pg_catalog.pg_dist_node WHERE noderole = 'primary' AND isactive AND shouldhaveshards);
    part record;
    move record;
    moves int := 0;
BEGIN
    IF rebalance_strategy IS NOT NULL AND NOT EXISTS (SELECT FROM pg_catalog.pg_dist_rebalance_strategy s WHERE s.name = rebalance_strategy) THEN
        RAISE EXCEPTION 'could not find rebalance strategy with name %', rebalance_strategy;
    ELSIF targets IS NULL THEN
        RAISE EXCEPTION 'Could not find any active nodes to move shards to';
    END IF;
    FOR part IN SELECT s.logicalrelid AS rel, array_agg(s.shardid ORDER BY s.shardid) AS shards, array_agg(p.groupid ORDER BY s.shardid) AS at
            FROM pg_catalog.pg_dist_shard s JOIN pg_catalog.pg_dist_placement p USING (shardid)
            WHERE s.shardminvalue IS NOT NULL AND (relation IS NULL OR s.logicalrelid = relation) AND s.shardid <> ALL (excluded_shard_list)
            GROUP BY s.logicalrelid ORDER BY min(s.shardid) LOOP
        LOOP
            SELECT * INTO move FROM citus_standin.next_move(part.shards, part.at, targets, drain_only);
            EXIT WHEN move.shard IS NULL OR moves >= max_shard_moves;
            RETURN QUERY SELECT part.rel::regclass, part.shards[move.shard], 0::bigint, a.nodename, a.nodeport, b.nodename, b.nodeport
                FROM pg_catalog.pg_dist_node a, pg_catalog.pg_dist_node b WHERE a.noderole = 'primary' AND b.noderole = 'primary'
                AND a.groupid = part.at[move.shard] AND b.groupid = move.target;
            part.at[move.shard] := move.target;
            moves := moves + 1;
        END LOOP;
    END LOOP;
END $$;

-- elsewhere runs a command on this node in a transaction of its own. Like Citus it finds itself by citus.local_hostname.
CREATE FUNCTION citus_standin.elsewhere(command text) RETURNS void LANGUAGE sql AS $$
    SELECT citus_standin.dblink_exec(citus_standin.conninfo(citus_coordinator_nodeid(), '0')
            || format(' host=%s port=%s', current_setting('citus.local_hostname'), current_setting('port')),
        format('DO %L', format('BEGIN PERFORM %s; END', command))) $$;

CREATE FUNCTION pg_catalog.rebalance_table_shards(relation regclass DEFAULT NULL, threshold real DEFAULT NULL, max_shard_moves int DEFAULT 1000000,
    excluded_shard_list bigint[] DEFAULT '{}', shard_transfer_mode citus.shard_transfer_mode DEFAULT 'auto', drain_only bool DEFAULT false,
    rebalance_strategy name DEFAULT NULL) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM citus_standin.on_coordinator();
    PERFORM citus_standin.elsewhere(format('pg_catalog.citus_move_shard_placement(%s, %L, %s, %L, %s, %L)',
            shardid, sourcename, sourceport, targetname, targetport, shard_transfer_mode))
        FROM get_rebalance_table_shards_plan(relation, threshold, max_shard_moves, excluded_shard_list, drain_only, rebalance_strategy);
END $$;

CREATE FUNCTION pg_catalog.citus_drain_node(nodename text, nodeport int, shard_transfer_mode citus.shard_transfer_mode DEFAULT 'auto',
    rebalance_strategy name DEFAULT NULL) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM citus_standin.on_coordinator();
    PERFORM citus_standin.elsewhere(format('pg_catalog.citus_set_node_property(%L, %s, ''shouldhaveshards'', false)', nodename, nodeport));
    PERFORM rebalance_table_shards(drain_only => true, shard_transfer_mode => $3, rebalance_strategy => $4);
END $$;

CREATE FUNCTION citus_standin.running_rebalance() RETURNS bigint LANGUAGE sql AS $$
    SELECT max(job_id) FROM pg_catalog.pg_dist_background_job
    WHERE job_type = 'rebalance' AND state IN ('scheduled', 'running', 'cancelling', 'failing') $$;

CREATE FUNCTION pg_catalog.citus_rebalance_start(rebalance_strategy name DEFAULT NULL, drain_only bool DEFAULT false,
    shard_transfer_mode citus.shard_transfer_mode DEFAULT 'auto', parallel_transfer_reference_tables bool DEFAULT false,
    parallel_transfer_colocated_shards bool DEFAULT false) RETURNS bigint LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    job bigint := citus_standin.running_rebalance();
    task bigint;
    last jsonb := '{}';  -- the last task of each table: those of one table wait for each other
    move record;
    moves int := 0;
BEGIN
    PERFORM citus_standin.on_coordinator();
    IF job IS NOT NULL THEN
        RAISE EXCEPTION 'A rebalance is already running as job %', job USING DETAIL = 'A rebalance was already scheduled as background job',
            HINT = 'To monitor progress, run: SELECT * FROM citus_rebalance_status();';
    END IF;
    FOR move IN SELECT p.*, citus_standin.node_at(sourcename, sourceport) AS source, citus_standin.node_at(targetname, targetport) AS target
            FROM get_rebalance_table_shards_plan(drain_only => drain_only, rebalance_strategy => rebalance_strategy) p LOOP
        PERFORM citus_standin.check_identity(move.shardid, shard_transfer_mode);
        IF job IS NULL THEN
            INSERT INTO pg_catalog.pg_dist_background_job (job_type, description) VALUES ('rebalance', 'Rebalance all colocation groups') RETURNING job_id INTO job;
        END IF;
        INSERT INTO pg_catalog.pg_dist_background_task (job_id, pid, status, command, retry_count, not_before, nodes_involved)
            VALUES (job, 0, CASE WHEN last ? move.table_name::text THEN 'blocked' ELSE 'runnable' END::citus_task_status,
                format('SELECT pg_catalog.citus_move_shard_placement(%s,%s,%s,%L)', move.shardid, move.source, move.target, shard_transfer_mode),
                0, '2000-01-01', ARRAY[move.source, move.target]) RETURNING task_id INTO task;
        INSERT INTO pg_catalog.pg_dist_background_task_depend SELECT job, task, (last ->> move.table_name::text)::bigint WHERE last ? move.table_name::text;
        last := last || jsonb_build_object(move.table_name::text, task);
        moves := moves + 1;
    END LOOP;
    IF moves = 0 THEN
        RAISE NOTICE 'No moves available for rebalancing';
        RETURN NULL;
    END IF;
    PERFORM citus_standin.request_jobs();
    RAISE NOTICE 'Scheduled % moves as job %', moves, job USING DETAIL = 'Rebalance scheduled as background job',
        HINT = 'To monitor progress, run: SELECT * FROM citus_rebalance_status();';
    RETURN job;
END $$;

-- What the worker does ------------------------------------------------------------------------------------

-- update_job derives a job's state from its tasks.
CREATE FUNCTION citus_standin.update_job(job bigint) RETURNS void LANGUAGE sql AS $$
    UPDATE pg_catalog.pg_dist_background_job j SET
        state = CASE WHEN t.live AND j.state = 'cancelling' THEN j.state WHEN t.live AND t.failed THEN 'failing' WHEN t.live AND NOT t.begun THEN 'scheduled'
            WHEN t.live THEN 'running' WHEN t.failed THEN 'failed' WHEN t.cancelled THEN 'cancelled' ELSE 'finished' END::citus_job_status,
        started_at = CASE WHEN t.begun THEN coalesce(j.started_at, clock_timestamp()) END,
        finished_at = CASE WHEN NOT t.live THEN clock_timestamp() END
    FROM (SELECT bool_or(status IN ('blocked', 'runnable', 'running', 'cancelling')) AS live, bool_or(status = 'error') AS failed,
            bool_or(status = 'cancelled') AS cancelled, bool_or(pid IS DISTINCT FROM 0) AS begun
        FROM pg_catalog.pg_dist_background_task WHERE job_id = job) t
    WHERE j.job_id = job $$;

-- reset_tasks gives back what a worker that is gone was at.
CREATE FUNCTION citus_standin.reset_tasks() RETURNS bigint LANGUAGE sql AS $$
    UPDATE pg_catalog.pg_dist_background_task SET status = 'cancelled', pid = NULL WHERE status = 'cancelling';
    UPDATE pg_catalog.pg_dist_background_task SET status = 'runnable', pid = NULL WHERE status = 'running';
    SELECT citus_standin.update_job(job_id) FROM pg_catalog.pg_dist_background_job WHERE state IN ('scheduled', 'running', 'cancelling', 'failing');
    SELECT 0::bigint $$;

-- claim_task picks the next task: 0 when one has to wait for its time, -1 when there is none.
CREATE FUNCTION citus_standin.claim_task() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    task record;
BEGIN
    UPDATE pg_catalog.pg_dist_background_task t SET status = 'runnable' WHERE status = 'blocked' AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_dist_background_task_depend d JOIN pg_catalog.pg_dist_background_task b ON b.task_id = d.depends_on
        WHERE d.task_id = t.task_id AND b.status <> 'done');
    UPDATE pg_catalog.pg_dist_background_task SET status = 'running', pid = pg_backend_pid() WHERE status = 'runnable' AND task_id = (
        SELECT task_id FROM pg_catalog.pg_dist_background_task WHERE status = 'runnable' AND coalesce(not_before, '-infinity') <= now() ORDER BY task_id LIMIT 1)
        RETURNING * INTO task;
    IF FOUND THEN
        PERFORM citus_standin.update_job(task.job_id);
        RETURN task.task_id;
    END IF;
    RETURN CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_dist_background_task WHERE status IN ('blocked', 'runnable')) THEN 0 ELSE -1 END;
END $$;

-- run_task runs a task; one that fails is tried again after 5 s, 30 times.
CREATE FUNCTION citus_standin.run_task(task bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    t record;
BEGIN
    SELECT * INTO t FROM pg_catalog.pg_dist_background_task WHERE task_id = task;
    IF t.status = 'running' THEN
        BEGIN
            EXECUTE t.command;
            UPDATE pg_catalog.pg_dist_background_task SET status = 'done', pid = NULL, message = E'SELECT 1\n' WHERE task_id = task;
        EXCEPTION WHEN OTHERS OR query_canceled THEN
            UPDATE pg_catalog.pg_dist_background_task SET message = format(E'ERROR: %s\n', SQLERRM), pid = NULL,
                status = CASE WHEN status = 'cancelling' THEN 'cancelled' WHEN retry_count >= 30 THEN 'error' ELSE 'runnable' END::citus_task_status,
                retry_count = retry_count + CASE WHEN status = 'cancelling' THEN 0 ELSE 1 END,
                not_before = now() + interval '5 s' WHERE task_id = task RETURNING * INTO t;
            IF t.status = 'error' THEN
                UPDATE pg_catalog.pg_dist_background_task SET status = 'unscheduled' WHERE job_id = t.job_id AND status = 'blocked';
            END IF;
        END;
    ELSE
        UPDATE pg_catalog.pg_dist_background_task SET status = 'cancelled', pid = NULL WHERE task_id = task AND status = 'cancelling';
    END IF;
    PERFORM citus_standin.update_job(t.job_id);
    RETURN 0;
END $$;

-- What the user sees of jobs -------------------------------------------------------------------------------

CREATE FUNCTION pg_catalog.citus_job_list() RETURNS TABLE (job_id bigint, state citus_job_status, job_type name, description text,
    started_at timestamptz, finished_at timestamptz) LANGUAGE sql AS $$
    SELECT job_id, state, job_type, description, started_at, finished_at FROM pg_catalog.pg_dist_background_job ORDER BY job_id $$;

CREATE FUNCTION pg_catalog.citus_job_status(job_id bigint, raw bool DEFAULT false) RETURNS TABLE (job_id bigint, state citus_job_status,
    job_type name, description text, started_at timestamptz, finished_at timestamptz, details jsonb) LANGUAGE sql STRICT AS $$
    SELECT j.job_id, j.state, j.job_type, j.description, j.started_at, j.finished_at, jsonb_build_object(
        'task_state_counts', coalesce((SELECT jsonb_object_agg(status, n) FROM (SELECT t.status, count(*) AS n
            FROM pg_catalog.pg_dist_background_task t WHERE t.job_id = j.job_id GROUP BY 1) c), '{}'),
        'tasks', coalesce((SELECT jsonb_agg(jsonb_build_object('state', t.status, 'command', t.command, 'message', t.message,
                'retried', t.retry_count, 'task_id', t.task_id) || coalesce(p.live, '{}') ORDER BY t.status <> 'running', t.task_id)
            FROM pg_catalog.pg_dist_background_task t LEFT JOIN LATERAL (
                SELECT jsonb_build_object('LSN', jsonb_build_object('source', NULL, 'target', NULL, 'lag', NULL),
                    'size', CASE WHEN $2 THEN jsonb_build_object('source', g.source_shard_size, 'target', g.target_shard_size)
                        ELSE jsonb_build_object('source', pg_size_pretty(g.source_shard_size), 'target', pg_size_pretty(g.target_shard_size)) END,
                    'hosts', jsonb_build_object('source', g.sourcename || ':' || g.sourceport, 'target', g.targetname || ':' || g.targetport),
                    'phase', g.status) AS live
                FROM get_rebalance_progress() g WHERE g.sessionid = t.pid) p ON t.status = 'running'
            WHERE t.job_id = j.job_id AND (t.status IN ('running', 'cancelling', 'error') OR t.status = 'runnable' AND t.retry_count > 0)), '[]'))
    FROM pg_catalog.pg_dist_background_job j WHERE j.job_id = $1 $$;

CREATE FUNCTION pg_catalog.citus_rebalance_status(raw bool DEFAULT false) RETURNS TABLE (job_id bigint, state citus_job_status,
    job_type name, description text, started_at timestamptz, finished_at timestamptz, details jsonb) LANGUAGE sql STRICT AS $$
    SELECT * FROM citus_job_status((SELECT max(j.job_id) FROM pg_catalog.pg_dist_background_job j WHERE j.job_type = 'rebalance'), $1) $$;

CREATE FUNCTION pg_catalog.citus_job_wait(jobid bigint, desired_status citus_job_status DEFAULT NULL) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    now_in citus_job_status;
BEGIN
    LOOP
        SELECT state INTO now_in FROM pg_catalog.pg_dist_background_job WHERE job_id = jobid;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'no job found for job with jobid: %', jobid;
        END IF;
        EXIT WHEN now_in = desired_status;
        IF now_in IN ('finished', 'cancelled', 'failed') THEN
            EXIT WHEN desired_status IS NULL;
            RAISE EXCEPTION 'Job reached terminal state "%" instead of desired state "%"', now_in, desired_status;
        END IF;
        PERFORM pg_sleep(0.1);
    END LOOP;
END $$;

CREATE FUNCTION pg_catalog.citus_job_cancel(jobid bigint) RETURNS void LANGUAGE plpgsql STRICT AS $$
BEGIN
    UPDATE pg_catalog.pg_dist_background_job SET state = 'cancelling' WHERE job_id = jobid AND state IN ('scheduled', 'running', 'failing');
    IF NOT FOUND AND NOT EXISTS (SELECT FROM pg_catalog.pg_dist_background_job WHERE job_id = jobid) THEN
        RAISE EXCEPTION 'could not find background jobs entry for job_id: %', jobid;
    END IF;
    UPDATE pg_catalog.pg_dist_background_task SET status = 'cancelled' WHERE job_id = jobid AND status IN ('blocked', 'runnable');
    UPDATE pg_catalog.pg_dist_background_task SET status = 'cancelling' WHERE job_id = jobid AND status = 'running';
    PERFORM pg_cancel_backend(pid) FROM pg_catalog.pg_dist_background_task WHERE job_id = jobid AND status = 'cancelling';
    PERFORM citus_standin.update_job(jobid);
END $$;

CREATE FUNCTION pg_catalog.citus_rebalance_stop() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF citus_standin.running_rebalance() IS NULL THEN
        RAISE EXCEPTION 'no ongoing rebalance that can be stopped';
    END IF;
    PERFORM citus_job_cancel(citus_standin.running_rebalance());
END $$;

CREATE FUNCTION pg_catalog.citus_rebalance_wait() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF citus_standin.running_rebalance() IS NULL THEN
        RAISE WARNING 'no ongoing rebalance that can be waited on';
        RETURN;
    END IF;
    PERFORM citus_job_wait(citus_standin.running_rebalance());
END $$;
