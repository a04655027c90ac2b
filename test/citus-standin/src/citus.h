/* Shared by the files of the stand-in. */
#ifndef CITUS_STANDIN_H
#define CITUS_STANDIN_H

#include "executor/execdesc.h"
#include "miscadmin.h"
#include "storage/lock.h"

/* Writes take this lock in share mode, a pause in ACCESS EXCLUSIVE mode. */
#define SET_LOCKTAG_SHARD(tag, shard) \
	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, (uint32) ((uint64) (shard) >> 32), (uint32) (shard), 4)

/* settings.c */
extern int	MetadataSyncRetryInterval;	/* ms before an unreachable node is tried again */
extern int	UseSecondaryNodes;	/* 0 never, 1 always */
extern char *ClusterName;		/* whose secondaries a session reads */
extern void DefineSettings(void);

/* workers.c */
extern void RegisterWorkerRequests(void);
extern void ResumeWork(void);

/* routing.c */
extern void BeforeDistributed(QueryDesc *query);

#endif
