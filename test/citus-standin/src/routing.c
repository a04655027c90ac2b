/*
 * What happens between a statement and the shards: the locks a manager pauses
 * with, and the choice between primaries and secondaries. The rows themselves
 * travel through postgres_fdw, whose routine is wrapped here so that locks are
 * taken before an address is looked up.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "foreign/fdwapi.h"
#include "foreign/foreign.h"
#include "parser/parsetree.h"
#include "storage/lmgr.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "citus.h"

PG_FUNCTION_INFO_V1(citus_standin_fdw_handler);

static FdwRoutine postgres_fdw;	/* what is wrapped */
static bool asking = false;		/* a question of ours is no distributed statement */

/* Answers a question by the newest rows, 0 without one. It changes nothing, so it may be asked within a statement. */
static int64
Ask(const char *sql, Oid type, Datum argument)
{
	bool		isnull = true;
	int64		answer = 0;

	PushActiveSnapshot(GetLatestSnapshot());
	SPI_connect();
	asking = true;
	PG_TRY();
	{
		if (SPI_execute_with_args(sql, 1, &type, &argument, NULL, true, 1) == SPI_OK_SELECT && SPI_processed == 1)
			answer = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	}
	PG_FINALLY();
	{
		asking = false;
	}
	PG_END_TRY();
	SPI_finish();
	PopActiveSnapshot();
	return isnull ? 0 : answer;
}

/* The shard that a partition or a reference table is, 0 for anything else. */
static int64
ShardOf(Oid relation)
{
	return Ask("SELECT s.shardid FROM pg_catalog.pg_dist_shard s WHERE s.logicalrelid = $1 AND s.shardminvalue IS NULL "
			   "UNION ALL SELECT s.shardid FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_dist_shard s ON s.logicalrelid = i.inhparent "
			   "JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid "
			   "WHERE i.inhrelid = $1 AND c.relname = (SELECT p.relname FROM pg_catalog.pg_class p WHERE p.oid = i.inhparent) || '_' || s.shardid",
			   OIDOID, ObjectIdGetDatum(relation));
}

/* Another node's statement on a shard was locked where it entered. */
static bool
IsInternalSession(void)
{
	return application_name && strncmp(application_name, "citus_internal", strlen("citus_internal")) == 0;
}

static bool
IsDistributed(RangeTblEntry *rte)
{
	if (rte->rtekind != RTE_RELATION || rte->relid < FirstNormalObjectId)
		return false;
	if (rte->relkind == RELKIND_PARTITIONED_TABLE || rte->relkind == RELKIND_FOREIGN_TABLE)
		return true;
	return rte->relkind == RELKIND_RELATION && !IsInternalSession() &&
		get_rel_namespace(rte->relid) != PG_CATALOG_NAMESPACE && ShardOf(rte->relid) != 0;
}

/*
 * A distributed statement holds AccessShare on pg_dist_node to the end of its
 * transaction and looks addresses up only after that: whoever holds the table
 * in ACCESS EXCLUSIVE mode pauses them all.
 */
static void
LockNodes(void)
{
	Oid			nodes = get_relname_relid("pg_dist_node", PG_CATALOG_NAMESPACE);

	if (OidIsValid(nodes))
		LockRelationOid(nodes, AccessShareLock);
}

/* Refuses or locks a write to a shard or reference table. */
static void
BeforeWrite(Oid relation)
{
	int64		shard = ShardOf(relation);
	LOCKTAG		tag;

	if (RecoveryInProgress())
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("writing to worker nodes is not currently allowed"),
				 errdetail("the database is read-only")));
	if (UseSecondaryNodes)
		ereport(ERROR,
				(errmsg("writing to worker nodes is not currently allowed"),
				 errdetail("citus.use_secondary_nodes is set to 'always'")));
	if (shard == 0 || IsInternalSession())
		return;
	SET_LOCKTAG_SHARD(tag, shard);
	(void) LockAcquire(&tag, ShareLock, false, false);
	AcceptInvalidationMessages();	/* addresses may have changed meanwhile */
}

void
BeforeDistributed(QueryDesc *query)
{
	PlannedStmt *plan = query->plannedstmt;
	bool		distributed = false;
	ListCell   *cell;

	if (asking)
		return;
	foreach(cell, plan->rtable)
		distributed = distributed || IsDistributed(lfirst_node(RangeTblEntry, cell));
	if (!distributed)
		return;
	LockNodes();
	foreach(cell, plan->resultRelations)
	{
		RangeTblEntry *rte = rt_fetch(lfirst_int(cell), plan->rtable);

		if (IsDistributed(rte))
			BeforeWrite(rte->relid);
	}
}

/* Rows routed into a partition, by INSERT or COPY, come here before the connection is made. */
static void
BeginInsert(ModifyTableState *state, ResultRelInfo *target)
{
	LockNodes();
	BeforeWrite(RelationGetRelid(target->ri_RelationDesc));
	postgres_fdw.BeginForeignInsert(state, target);
}

static void
Truncate(List *relations, DropBehavior behavior, bool restart)
{
	ListCell   *cell;

	LockNodes();
	foreach(cell, relations)
		BeforeWrite(RelationGetRelid((Relation) lfirst(cell)));
	postgres_fdw.ExecForeignTruncate(relations, behavior, restart);
}

/* An empty foreign table that leads to a secondary of the group that a shard's foreign table leads to. */
static Oid
AtSecondary(Oid shard)
{
	ForeignServer *server = GetForeignServer(GetForeignTable(shard)->serverid);
	char		name[NAMEDATALEN];
	int			group;
	int64		node;

	if (sscanf(server->servername, "citus_group_%d", &group) != 1)
		return shard;
	node = Ask("SELECT nodeid::bigint FROM pg_catalog.pg_dist_node WHERE groupid = $1 AND noderole = 'secondary' AND isactive "
			   "AND nodecluster = pg_catalog.current_setting('citus.cluster_name') ORDER BY nodeid",
			   INT4OID, Int32GetDatum(group));
	if (node == 0 && !Ask("SELECT 1::bigint FROM pg_catalog.pg_dist_node WHERE groupid = $1 "
						  "AND nodecluster = pg_catalog.current_setting('citus.cluster_name')", INT4OID, Int32GetDatum(group)))
		ereport(ERROR, (errmsg("there is a shard placement in node group %d but there are no nodes in that group", group)));
	if (node == 0)
		ereport(ERROR, (errmsg("node group %d does not have a secondary node", group)));
	snprintf(name, sizeof(name), "secondary_" INT64_FORMAT, node);
	return get_relname_relid(name, get_namespace_oid("citus_standin", false));
}

/*
 * postgres_fdw finds the server of a scan by the relation in the range table
 * and uses it for nothing else, so a stand-in relation leads it elsewhere.
 */
static void
BeginScan(ForeignScanState *scan, int eflags)
{
	ForeignScan *plan = (ForeignScan *) scan->ss.ps.plan;
	EState	   *estate = scan->ss.ps.state;
	Oid		   *saved;
	int			rt = -1;
	Bitmapset  *relations;

	if (!UseSecondaryNodes || (eflags & EXEC_FLAG_EXPLAIN_ONLY))
	{
		postgres_fdw.BeginForeignScan(scan, eflags);
		return;
	}
	relations = plan->scan.scanrelid > 0 ? bms_make_singleton(plan->scan.scanrelid) : bms_copy(plan->fs_relids);
	saved = palloc0((list_length(estate->es_range_table) + 1) * sizeof(Oid));
	PG_TRY();
	{
		while ((rt = bms_next_member(relations, rt)) > 0)
		{
			RangeTblEntry *rte = exec_rt_fetch(rt, estate);

			if (rte->rtekind != RTE_RELATION || rte->relkind != RELKIND_FOREIGN_TABLE)
				continue;
			saved[rt] = rte->relid;
			rte->relid = AtSecondary(saved[rt]);
		}
		postgres_fdw.BeginForeignScan(scan, eflags);
	}
	PG_FINALLY();
	{
		for (rt = bms_next_member(relations, -1); rt > 0; rt = bms_next_member(relations, rt))
			if (OidIsValid(saved[rt]))
				exec_rt_fetch(rt, estate)->relid = saved[rt];
	}
	PG_END_TRY();
}

Datum
citus_standin_fdw_handler(PG_FUNCTION_ARGS)
{
	PGFunction	handler = load_external_function("$libdir/postgres_fdw", "postgres_fdw_handler", true, NULL);
	FdwRoutine *routine = (FdwRoutine *) DatumGetPointer(handler(fcinfo));

	postgres_fdw = *routine;
	routine->BeginForeignScan = BeginScan;
	routine->BeginForeignInsert = BeginInsert;
	routine->ExecForeignTruncate = Truncate;
	PG_RETURN_POINTER(routine);
}
