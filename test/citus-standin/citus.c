/*
 * Stand-in for the Citus extension: the loader's rules, the lock that every
 * distributed statement takes, and the worker that copies pg_dist_node to the
 * other nodes. Everything else is SQL.
 */
#include "postgres.h"

#include "access/parallel.h"
#include "access/twophase.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_class.h"
#include "commands/extension.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "optimizer/planner.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "tcop/utility.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

#include "citus.h"

PG_MODULE_MAGIC;

#define WORKER_NAME "Citus Metadata Sync Daemon"

PGDLLEXPORT void _PG_init(void);
PGDLLEXPORT void citus_standin_sync_main(Datum database);
PG_FUNCTION_INFO_V1(citus_standin_request_sync);

static ExecutorStart_hook_type next_executor_start = NULL;
static bool sync_requested = false;		/* by this transaction */
static bool session_greeted = false;	/* first statement already seen */

/* Starts a worker for this database; a second one ends by itself. */
static void
StartSyncWorker(void)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_main_arg = ObjectIdGetDatum(MyDatabaseId);
	strlcpy(worker.bgw_library_name, "citus", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "citus_standin_sync_main", BGW_MAXLEN);
	strlcpy(worker.bgw_type, WORKER_NAME, BGW_MAXLEN);
	snprintf(worker.bgw_name, BGW_MAXLEN, WORKER_NAME ": %u", MyDatabaseId);
	if (!RegisterDynamicBackgroundWorker(&worker, NULL))
		elog(WARNING, "no background worker slot left for " WORKER_NAME);
}

/* The copy starts after the commit, so that the worker sees the new rows. */
static void
AfterTransaction(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT && sync_requested)
		StartSyncWorker();
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		sync_requested = false;
}

Datum
citus_standin_request_sync(PG_FUNCTION_ARGS)
{
	sync_requested = true;
	PG_RETURN_VOID();
}

/* Runs a statement that returns one boolean; needs an open transaction. */
static bool
AskSql(const char *sql)
{
	bool		isnull = true;
	bool		answer = false;

	SPI_connect();
	if (SPI_execute(sql, false, 1) == SPI_OK_SELECT && SPI_processed == 1)
		answer = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	SPI_finish();
	return !isnull && answer;
}

static bool
AskInTransaction(const char *sql)
{
	bool		answer;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	pgstat_report_activity(STATE_RUNNING, sql);
	answer = AskSql(sql);
	PopActiveSnapshot();
	CommitTransactionCommand();
	pgstat_report_activity(STATE_IDLE, NULL);
	return answer;
}

/*
 * Copies until every node is in sync. The lock makes it the only one of its
 * database; the question after giving it up catches a change that came while
 * another worker found the lock taken.
 */
void
citus_standin_sync_main(Datum database)
{
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(DatumGetObjectId(database), InvalidOid, 0);
	pgstat_report_appname(WORKER_NAME);
	session_greeted = true;
	do
	{
		if (!AskInTransaction("SELECT pg_catalog.pg_try_advisory_lock(1668769141, 1)"))
			return;
		while (!AskInTransaction("SELECT citus_standin.sync_metadata()"))
		{
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
							 MetadataSyncRetryInterval, PG_WAIT_EXTENSION);
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
		}
		AskInTransaction("SELECT pg_catalog.pg_advisory_unlock(1668769141, 1)");
	} while (AskInTransaction("SELECT citus_standin.unsynced()"));
}

/* The first statement of a session resumes a copy that a restart broke off. */
static void
GreetSession(void)
{
	session_greeted = true;
	if (IsBackgroundWorker || IsParallelWorker() || RecoveryInProgress() || creating_extension)
		return;
	if (AskSql("SELECT citus_standin.unsynced()"))
		StartSyncWorker();
}

static bool
TouchesDistributedTable(List *rtable)
{
	ListCell   *cell;

	foreach(cell, rtable)
	{
		RangeTblEntry *rte = lfirst_node(RangeTblEntry, cell);

		if (rte->rtekind == RTE_RELATION &&
			(rte->relkind == RELKIND_PARTITIONED_TABLE || rte->relkind == RELKIND_FOREIGN_TABLE))
			return true;
	}
	return false;
}

/*
 * A distributed statement holds AccessShare on pg_dist_node to the end of its
 * transaction and looks addresses up only after that: whoever holds the table
 * in ACCESS EXCLUSIVE mode pauses them all.
 */
static void
BeforeStatement(QueryDesc *query, int eflags)
{
	if (OidIsValid(get_extension_oid("citus", true)))
	{
		if (!session_greeted)
			GreetSession();
		if (TouchesDistributedTable(query->plannedstmt->rtable))
		{
			Oid			nodes = get_relname_relid("pg_dist_node", PG_CATALOG_NAMESPACE);

			if (OidIsValid(nodes))
				LockRelationOid(nodes, AccessShareLock);
		}
	}
	if (next_executor_start)
		next_executor_start(query, eflags);
	else
		standard_ExecutorStart(query, eflags);
}

void
_PG_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
		ereport(ERROR,
				(errmsg("Citus can only be loaded via shared_preload_libraries"),
				 errhint("Add citus to shared_preload_libraries in postgresql.conf and restart.")));
	if (planner_hook != NULL || ProcessUtility_hook != NULL ||
		ExecutorStart_hook != NULL || ExecutorRun_hook != NULL)
		ereport(ERROR,
				(errmsg("Citus has to be loaded first"),
				 errhint("Place citus at the beginning of shared_preload_libraries.")));
	DefineSettings();
	if (max_prepared_xacts == 0)
	{
		char		value[16];

		snprintf(value, sizeof(value), "%d", MaxConnections * 2);
		SetConfigOption("max_prepared_transactions", value, PGC_POSTMASTER, PGC_S_OVERRIDE);
	}
	next_executor_start = ExecutorStart_hook;
	ExecutorStart_hook = BeforeStatement;
	RegisterXactCallback(AfterTransaction, NULL);
}
