/*
 * A first knock at another node. The library that the rows travel with
 * connects without looking at interrupts; a backend that waits there for a
 * silent node could not be ended, and neither could what it holds.
 */
#include "postgres.h"

#include "fmgr.h"
#include "libpq-fe.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(citus_standin_reach);

/* Waits until the connection stands or cannot; false after the time. */
static bool
Wait(PGconn *conn, TimestampTz end)
{
	PostgresPollingStatusType status = PGRES_POLLING_WRITING;

	while (status != PGRES_POLLING_OK && status != PGRES_POLLING_FAILED)
	{
		long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);
		int			event = status == PGRES_POLLING_READING ? WL_SOCKET_READABLE : WL_SOCKET_WRITEABLE;
		int			rc;

		if (left <= 0)
			return false;
		rc = WaitLatchOrSocket(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH | event, PQsocket(conn), left,
							   PG_WAIT_EXTENSION);
		if (rc & WL_LATCH_SET)
			ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (rc & event)
			status = PQconnectPoll(conn);
	}
	return true;
}

/* Connects and lets go again; an error when nobody answers within the given time in ms. */
Datum
citus_standin_reach(PG_FUNCTION_ARGS)
{
	char	   *conninfo = text_to_cstring(PG_GETARG_TEXT_PP(0));
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), PG_GETARG_INT32(1));
	PGconn	   *volatile conn = PQconnectStart(conninfo);

	if (conn == NULL)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	PG_TRY();
	{
		bool		answered = PQstatus(conn) != CONNECTION_BAD && Wait(conn, end);

		if (PQstatus(conn) != CONNECTION_OK)
			ereport(ERROR, (errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
							errmsg("could not establish connection"),
							errdetail_internal("%s", answered || PQstatus(conn) == CONNECTION_BAD ?
											   pchomp(PQerrorMessage(conn)) : "no answer in time")));
	}
	PG_FINALLY();
	{
		PQfinish(conn);
	}
	PG_END_TRY();
	PG_RETURN_VOID();
}
