SELECT
  pg_is_in_recovery(),
  coalesce((pg_last_wal_receive_lsn() - '0/0'::pg_lsn)::int8, 0),
  coalesce((pg_last_wal_replay_lsn() - '0/0'::pg_lsn)::int8, 0),
  CASE WHEN pg_is_in_recovery() THEN 0 ELSE (pg_current_wal_lsn() - '0/0'::pg_lsn)::int8 END,
  CASE WHEN pg_is_in_recovery() THEN '' ELSE substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END,
  i.bytes_per_wal_segment::int8,
  CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END,
  coalesce((SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup' LIMIT 1), ''),
  c.timeline_id,
  coalesce(r.min_recovery_end_timeline, 0),
  s.system_identifier::text,
  pg_postmaster_start_time(),
  current_setting('server_version_num')::int4,
  current_setting('primary_conninfo'),
  current_setting('primary_slot_name'),
  current_setting('synchronous_standby_names'),
  (SELECT json_build_object('pid', w.pid, 'status', w.status, 'timeline', w.received_tli,
     'flushed', coalesce((w.flushed_lsn - '0/0'::pg_lsn)::int8, 0),
     'age_ns', coalesce((extract(epoch FROM clock_timestamp() - w.last_msg_receipt_time) * 1000000)::int8 * 1000, 0),
     'host', coalesce(w.sender_host, ''), 'port', coalesce(w.sender_port, 0), 'slot', coalesce(w.slot_name, ''))
   FROM pg_stat_wal_receiver w WHERE w.pid IS NOT NULL),
  (SELECT json_agg(json_build_object('pid', p.pid, 'app', p.application_name, 'addr', coalesce(host(p.client_addr), ''),
     'state', p.state, 'sync', p.sync_state,
     'sent', coalesce((p.sent_lsn - '0/0'::pg_lsn)::int8, 0), 'write', coalesce((p.write_lsn - '0/0'::pg_lsn)::int8, 0),
     'flush', coalesce((p.flush_lsn - '0/0'::pg_lsn)::int8, 0), 'replay', coalesce((p.replay_lsn - '0/0'::pg_lsn)::int8, 0),
     'reply', p.reply_time, 'start', p.backend_start,
     'slot', coalesce((SELECT l.slot_name FROM pg_replication_slots l WHERE l.active_pid = p.pid LIMIT 1), ''))
     ORDER BY p.pid)
   FROM pg_stat_replication p),
  (SELECT json_agg(json_build_object('name', l.slot_name, 'type', l.slot_type, 'database', coalesce(l.database, ''),
     'plugin', coalesce(l.plugin, ''), 'active', l.active, 'pid', coalesce(l.active_pid, 0), 'temporary', l.temporary,
     'failover', coalesce((to_jsonb(l) ->> 'failover')::bool, false), 'synced', coalesce((to_jsonb(l) ->> 'synced')::bool, false),
     'restart', coalesce((l.restart_lsn - '0/0'::pg_lsn)::int8, 0), 'confirmed', coalesce((l.confirmed_flush_lsn - '0/0'::pg_lsn)::int8, 0),
     'catalog_xmin', coalesce(l.catalog_xmin::text::int8, 0),
     'retained', coalesce((CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END - l.restart_lsn)::int8, 0),
     'wal', CASE WHEN to_jsonb(l) ->> 'invalidation_reason' IS NOT NULL OR (to_jsonb(l) ->> 'conflicting')::bool THEN 'lost'
       ELSE coalesce(l.wal_status, '') END) ORDER BY l.slot_name)
   FROM pg_replication_slots l),
  CASE WHEN $1::bool THEN (SELECT array_agg(name::text ORDER BY name) FROM pg_settings WHERE pending_restart) END
FROM pg_control_checkpoint() c, pg_control_recovery() r, pg_control_system() s, pg_control_init() i
