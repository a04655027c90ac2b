/*
 * Background workers: one copies pg_dist_node to the other nodes and finishes
 * what was prepared there, one runs the tasks of background jobs, one ends the
 * sessions in the way of a forced lock.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "tcop/tcopprot.h"
#include "utils/array.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "citus.h"

PGDLLEXPORT void citus_standin_sync_main(Datum database);
PGDLLEXPORT void citus_standin_jobs_main(Datum database);
PGDLLEXPORT void citus_standin_helper_main(Datum database);
PG_FUNCTION_INFO_V1(citus_standin_request_sync);
PG_FUNCTION_INFO_V1(citus_standin_request_jobs);
PG_FUNCTION_INFO_V1(citus_standin_lock_shards);

/* What the helper of a forced lock has to know. */
typedef struct ForcedLock
{
	int			waiter;			/* pid of the session that wants the lock */
	int			cooldown;		/* ms that the holders have left */
} ForcedLock;

static bool sync_requested = false; /* by this transaction */
static bool jobs_requested = false;

/* Starts a worker for this database; false when no slot is left. */
static bool
StartWorker(const char *name, const char *entry, int restart, const ForcedLock *lock,
			BackgroundWorkerHandle **handle)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = restart;
	worker.bgw_main_arg = ObjectIdGetDatum(MyDatabaseId);
	strlcpy(worker.bgw_library_name, "citus", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, entry, BGW_MAXLEN);
	strlcpy(worker.bgw_type, name, BGW_MAXLEN);
	snprintf(worker.bgw_name, BGW_MAXLEN, "%s: %u", name, MyDatabaseId);
	if (lock)
		memcpy(worker.bgw_extra, lock, sizeof(ForcedLock));
	if (RegisterDynamicBackgroundWorker(&worker, handle))
		return true;
	elog(WARNING, "no background worker slot left for %s", name);
	return false;
}

static void
StartSync(void)
{
	StartWorker("Citus Metadata Sync Daemon", "citus_standin_sync_main", BGW_NEVER_RESTART, NULL, NULL);
}

/* Comes back after a pg_terminate_backend, as the tasks are not done. */
static void
StartJobs(void)
{
	StartWorker("Citus Background Task Queue Monitor", "citus_standin_jobs_main", 1, NULL, NULL);
}

/* Workers start after the commit, so that they see what they were started for. */
static void
AfterTransaction(XactEvent event, void *arg)
{
	bool		start_sync = sync_requested && event == XACT_EVENT_COMMIT;
	bool		start_jobs = jobs_requested && event == XACT_EVENT_COMMIT;

	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		sync_requested = jobs_requested = false;
	if (start_sync)
		StartSync();
	if (start_jobs)
		StartJobs();
}

void
RegisterWorkerRequests(void)
{
	RegisterXactCallback(AfterTransaction, NULL);
}

Datum
citus_standin_request_sync(PG_FUNCTION_ARGS)
{
	sync_requested = true;
	PG_RETURN_VOID();
}

Datum
citus_standin_request_jobs(PG_FUNCTION_ARGS)
{
	jobs_requested = true;
	PG_RETURN_VOID();
}

/* Runs a statement that returns one bigint, by default 0; needs an open transaction. */
static int64
AskSql(const char *sql)
{
	bool		isnull = true;
	int64		answer = 0;

	SPI_connect();
	if (SPI_execute(sql, false, 1) == SPI_OK_SELECT && SPI_processed == 1)
		answer = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	SPI_finish();
	return isnull ? 0 : answer;
}

static int64
AskInTransaction(const char *sql)
{
	int64		answer;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	pgstat_report_activity(STATE_RUNNING, sql);
	answer = AskSql(sql);
	PopActiveSnapshot();
	CommitTransactionCommand();
	pgstat_report_activity(STATE_IDLE, NULL);
	return answer;
}

void
ResumeWork(void)
{
	int64		pending = AskSql("SELECT citus_standin.pending_work()");

	if (pending & 1)
		StartSync();
	if (pending & 2)
		StartJobs();
}

static void
BeginWorker(Datum database, const char *name)
{
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(DatumGetObjectId(database), InvalidOid, 0);
	pgstat_report_appname(name);
}

/* Waits the whole time: a worker's latch is set for reasons of the server, too. */
static void
Pause(int ms)
{
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms);
	long		left = ms;

	while (left > 0)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, left, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);
	}
}

/*
 * Copies until every node is in sync. The lock makes it the only one of its
 * database; the question after giving it up catches a change that came while
 * another worker found the lock taken.
 */
void
citus_standin_sync_main(Datum database)
{
	BeginWorker(database, "Citus Metadata Sync Daemon");
	AskInTransaction("SELECT citus_standin.finish_prepared()");
	do
	{
		if (!AskInTransaction("SELECT pg_catalog.pg_try_advisory_lock(1668769141, 1)::int::bigint"))
			return;
		while (!AskInTransaction("SELECT citus_standin.sync_metadata()::int::bigint"))
			Pause(MetadataSyncRetryInterval);
		AskInTransaction("SELECT pg_catalog.pg_advisory_unlock(1668769141, 1)::int::bigint");
	} while (AskInTransaction("SELECT citus_standin.pending_work()") & 1);
}

/* Runs tasks one after the other until no job of the database has any left. */
void
citus_standin_jobs_main(Datum database)
{
	int64		task;

	BeginWorker(database, "citus background task queue monitor");
	do
	{
		if (!AskInTransaction("SELECT pg_catalog.pg_try_advisory_lock(1668769141, 2)::int::bigint"))
			return;
		AskInTransaction("SELECT citus_standin.reset_tasks()");
		while ((task = AskInTransaction("SELECT citus_standin.claim_task()")) >= 0)
		{
			char		sql[64];

			snprintf(sql, sizeof(sql), "SELECT citus_standin.run_task(" INT64_FORMAT ")", task);
			if (task > 0)
				AskInTransaction(sql);
			else
				Pause(200);
		}
		AskInTransaction("SELECT pg_catalog.pg_advisory_unlock(1668769141, 2)::int::bigint");
	} while (AskInTransaction("SELECT citus_standin.pending_work()") & 2);
}

/* After the cooldown, ends whoever is in the way of the waiter, until that stops this worker or is gone. */
void
citus_standin_helper_main(Datum database)
{
	ForcedLock	lock;
	char		sql[96];

	memcpy(&lock, MyBgworkerEntry->bgw_extra, sizeof(lock));
	BeginWorker(database, "Citus Lock Acquire Helper");
	snprintf(sql, sizeof(sql), "SELECT citus_standin.end_blockers(%d)", lock.waiter);
	Pause(lock.cooldown);
	while (AskInTransaction(sql) >= 0)
		Pause(100);
}

static BackgroundWorkerHandle *
StartHelper(int cooldown)
{
	BackgroundWorkerHandle *helper = NULL;
	ForcedLock	lock = {MyProcPid, cooldown};
	char		ms[16];

	if (StartWorker("Citus Lock Acquire Helper", "citus_standin_helper_main", BGW_NEVER_RESTART, &lock, &helper))
		return helper;
	snprintf(ms, sizeof(ms), "%d", cooldown);
	set_config_option("lock_timeout", ms, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
	return NULL;
}

/*
 * Locks shards against writes to the end of the transaction, in the given
 * order. A cooldown of 0 ms or more ends the holders after it.
 */
Datum
citus_standin_lock_shards(PG_FUNCTION_ARGS)
{
	int			cooldown = PG_GETARG_INT32(1);
	BackgroundWorkerHandle *volatile helper = NULL;
	Datum	   *shards;
	int			count;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(0), INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE, &shards, NULL, &count);
	PG_TRY();
	{
		for (int i = 0; i < count; i++)
		{
			LOCKTAG		tag;

			SET_LOCKTAG_SHARD(tag, DatumGetInt64(shards[i]));
			if (LockAcquire(&tag, AccessExclusiveLock, false, true) != LOCKACQUIRE_NOT_AVAIL)
				continue;
			if (cooldown >= 0 && helper == NULL)
				helper = StartHelper(cooldown);
			(void) LockAcquire(&tag, AccessExclusiveLock, false, false);
		}
	}
	PG_FINALLY();
	{
		if (helper)
			TerminateBackgroundWorker(helper);
	}
	PG_END_TRY();
	PG_RETURN_VOID();
}
