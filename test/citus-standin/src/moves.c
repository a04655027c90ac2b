/*
 * What a shard move cannot do in SQL.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/xact.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/rel.h"

#include "citus.h"

PG_FUNCTION_INFO_V1(citus_standin_mark_move);
PG_FUNCTION_INFO_V1(citus_standin_fill);

/* Shows in pg_locks, for get_rebalance_progress, that a shard is on its way to a node. Ends with the transaction. */
Datum
citus_standin_mark_move(PG_FUNCTION_ARGS)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, PG_GETARG_INT32(1), (uint32) PG_GETARG_INT64(0), 9);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	PG_RETURN_VOID();
}

/*
 * Fills a table that this transaction has made, which has no indexes yet, with
 * the rows of a query. They are frozen, so that a transaction that was there
 * before the move finds them in their new place.
 */
Datum
citus_standin_fill(PG_FUNCTION_ARGS)
{
	Relation	table = table_open(PG_GETARG_OID(0), AccessExclusiveLock);

	SPI_connect();
	if (table->rd_createSubid == InvalidSubTransactionId ||
		SPI_execute(text_to_cstring(PG_GETARG_TEXT_PP(1)), true, 0) != SPI_OK_SELECT ||
		SPI_tuptable->tupdesc->natts != RelationGetNumberOfAttributes(table))
		elog(ERROR, "cannot fill \"%s\"", RelationGetRelationName(table));
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		SPI_tuptable->vals[i]->t_tableOid = RelationGetRelid(table);
		heap_insert(table, SPI_tuptable->vals[i], GetCurrentCommandId(true), HEAP_INSERT_SKIP_FSM | HEAP_INSERT_FROZEN, NULL);
	}
	SPI_finish();
	table_close(table, NoLock);
	PG_RETURN_VOID();
}
