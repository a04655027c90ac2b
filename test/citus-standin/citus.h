/* Shared by the files of the stand-in. */
#ifndef CITUS_STANDIN_H
#define CITUS_STANDIN_H

/* Milliseconds the sync worker waits before it tries an unreachable node again. */
extern int MetadataSyncRetryInterval;

extern void DefineSettings(void);

#endif
