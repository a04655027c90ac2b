/*
 * Stand-in for the Citus extension: the loader's rules and the hook before
 * each statement. routing.c has locks and addresses, workers.c the background
 * workers; everything else is SQL.
 */
#include "postgres.h"

#include "access/parallel.h"
#include "access/twophase.h"
#include "access/xlog.h"
#include "commands/extension.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "optimizer/planner.h"
#include "storage/ipc.h"
#include "tcop/utility.h"
#include "utils/guc.h"

#include "citus.h"

PG_MODULE_MAGIC;

PGDLLEXPORT void _PG_init(void);

static ExecutorStart_hook_type next_executor_start = NULL;
static bool session_greeted = false;	/* first statement already seen */

/* The first statement of a session resumes what a restart broke off. */
static void
GreetSession(void)
{
	session_greeted = true;
	if (MyBackendType == B_BACKEND && !RecoveryInProgress())
		ResumeWork();
}

static void
BeforeStatement(QueryDesc *query, int eflags)
{
	if (!creating_extension && OidIsValid(get_extension_oid("citus", true)))
	{
		if (!session_greeted)
			GreetSession();
		if (!IsParallelWorker())
			BeforeDistributed(query);
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
	RegisterWorkerRequests();
}
