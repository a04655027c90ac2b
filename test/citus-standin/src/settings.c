/*
 * The settings that a manager of Citus writes. Those marked "no effect" exist
 * so that a server configured for Citus starts with the stand-in as well.
 */
#include "postgres.h"

#include <limits.h>

#include "utils/guc.h"

#include "citus.h"

int			MetadataSyncRetryInterval = 5000;
int			UseSecondaryNodes = 0;
char	   *ClusterName = NULL;

static char *NodeConninfo = NULL;
static char *LocalHostname = NULL;
static char *MainDb = NULL;
static char *Superuser = NULL;
static int	MetadataSyncMode = 0;
static int	MetadataSyncInterval = 60000;
static int	NodeConnectionTimeout = 30000;
static int	Recover2pcInterval = 60000;
static int	MaxCachedConns = 1;
static int	MaxClientConnections = -1;
static int	ShardCount = 32;
static int	TaskQueueInterval = 5000;
static int	MaxTaskExecutors = 4;
static int	MaxTaskExecutorsPerNode = 1;
static int	TaskDelay = 0;
static bool EnableDdlPropagation = true;
static bool EnableCreateDatabasePropagation = false;

static const struct config_enum_entry secondary_options[] = {
	{"never", 0, false}, {"always", 1, false}, {NULL, 0, false}
};
static const struct config_enum_entry sync_mode_options[] = {
	{"transactional", 0, false}, {"nontransactional", 1, false}, {NULL, 0, false}
};

static void
Text(const char *name, const char *what, char **var, const char *boot, GucContext context)
{
	DefineCustomStringVariable(name, what, NULL, var, boot, context, 0, NULL, NULL, NULL);
}

static void
Number(const char *name, const char *what, int *var, int boot, int min, GucContext context, int flags)
{
	DefineCustomIntVariable(name, what, NULL, var, boot, min, INT_MAX, context, flags, NULL, NULL, NULL);
}

static void
Flag(const char *name, const char *what, bool *var, bool boot)
{
	DefineCustomBoolVariable(name, what, NULL, var, boot, PGC_USERSET, 0, NULL, NULL, NULL);
}

static void
Choice(const char *name, const char *what, int *var, const struct config_enum_entry *options,
	   GucContext context)
{
	DefineCustomEnumVariable(name, what, NULL, var, 0, options, context, 0, NULL, NULL, NULL);
}

void
DefineSettings(void)
{
	Text("citus.node_conninfo", "libpq keywords of every connection between nodes.",
		 &NodeConninfo, "sslmode=prefer", PGC_SIGHUP);
	Text("citus.local_hostname", "Own address.", &LocalHostname, "localhost", PGC_SUSET);
	Text("citus.cluster_name", "Whose secondaries this session reads from.", &ClusterName, "default", PGC_SU_BACKEND);
	Text("citus.main_db", "Main database (no effect).", &MainDb, "", PGC_POSTMASTER);
	Text("citus.superuser", "Superuser (no effect).", &Superuser, "", PGC_SIGHUP);
	Choice("citus.use_secondary_nodes", "Read from secondaries only.",
		   &UseSecondaryNodes, secondary_options, PGC_SU_BACKEND);
	Choice("citus.metadata_sync_mode", "How metadata is copied (no effect).",
		   &MetadataSyncMode, sync_mode_options, PGC_SUSET);
	Number("citus.metadata_sync_interval", "Time between checks (no effect).",
		   &MetadataSyncInterval, 60000, 1, PGC_SIGHUP, GUC_UNIT_MS);
	Number("citus.metadata_sync_retry_interval", "Time until a failed copy of the metadata is tried again.",
		   &MetadataSyncRetryInterval, 5000, 1, PGC_SIGHUP, GUC_UNIT_MS);
	Number("citus.node_connection_timeout", "Time to connect to another node, rounded up to 2 s or more.",
		   &NodeConnectionTimeout, 30000, 10, PGC_USERSET, GUC_UNIT_MS);
	Number("citus.recover_2pc_interval", "Time between recoveries (no effect: none runs by itself).",
		   &Recover2pcInterval, 60000, -1, PGC_SIGHUP, GUC_UNIT_MS);
	Number("citus.max_cached_conns_per_worker", "Cached connections (no effect).",
		   &MaxCachedConns, 1, 0, PGC_USERSET, 0);
	Number("citus.max_client_connections", "Client connections (no effect).",
		   &MaxClientConnections, -1, -1, PGC_SUSET, 0);
	Number("citus.shard_count", "Shards of a new distributed table.",
		   &ShardCount, 32, 1, PGC_USERSET, 0);
	Number("citus.background_task_queue_interval", "Time between looks for tasks (no effect: they start at once).",
		   &TaskQueueInterval, 5000, -1, PGC_SIGHUP, GUC_UNIT_MS);
	Number("citus.max_background_task_executors", "Tasks at once (no effect: one).",
		   &MaxTaskExecutors, 4, 1, PGC_SIGHUP, 0);
	Number("citus.max_background_task_executors_per_node", "Tasks at once on a node (no effect: one).",
		   &MaxTaskExecutorsPerNode, 1, 1, PGC_SIGHUP, 0);
	Number("citus_standin.task_delay", "Time that a shard move takes before it copies, for tests.",
		   &TaskDelay, 0, 0, PGC_USERSET, GUC_UNIT_MS);
	Flag("citus.enable_ddl_propagation", "Propagate DDL (no effect: only DROP TABLE is).",
		 &EnableDdlPropagation, true);
	Flag("citus.enable_create_database_propagation", "Propagate CREATE DATABASE (no effect).",
		 &EnableCreateDatabasePropagation, false);
}
