/*
 * probe: compares ka_probe with a query to PostgreSQL. A pool makes one of them before it hands out a connection. Both
 * use the same connection, in turn.
 *
 *   used  a segment of the server has arrived within the last second: ka_probe only reads the state
 *   idle  the connection was idle for longer: ka_probe waits for the answer to a probe
 *
 * Usage: probe CONNECTION, a connection string of libpq. A ratio is the median of the rounds' ratios.
 */
#include <err.h>
#include <ka.h>
#include <libpq-fe.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "rounds.h"

#define MOST 201

static PGconn *connection;

static void query(void)
{
    PGresult *result = PQexec(connection, "SELECT 1");

    if (PQresultStatus(result) != PGRES_TUPLES_OK)
        errx(EXIT_FAILURE, "%s", PQerrorMessage(connection));
    PQclear(result);
}

static void probe(void)
{
    int result = ka_probe(PQsocket(connection), 10000);

    if (result != 1)
        errx(EXIT_FAILURE, "ka_probe returned %d", result);
}

static double timed(void (*job)(void), bool is_idle)
{
    if (is_idle)
        usleep(1050000);
    double start = now();
    job();
    return now() - start;
}

static void measure(const char *what, bool is_idle, int rounds)
{
    static double probes[MOST], queries[MOST], ratios[MOST];

    for (int round = 0; round < rounds; round++) {
        if (round % 2 == 0)
            probes[round] = timed(probe, is_idle);
        queries[round] = timed(query, is_idle);
        if (round % 2 == 1)
            probes[round] = timed(probe, is_idle);
        ratios[round] = probes[round] / queries[round];
    }
    printf("%-6s %12.1f %12.1f %9.2f\n", what, median(probes, rounds) / 1e3, median(queries, rounds) / 1e3,
           median(ratios, rounds));
}

int main(int argc, char *argv[])
{
    if (argc != 2)
        errx(EXIT_FAILURE, "usage: probe CONNECTION");
    connection = PQconnectdb(argv[1]);
    if (PQstatus(connection) != CONNECTION_OK)
        errx(EXIT_FAILURE, "%s", PQerrorMessage(connection));
    printf("       ka_probe, us SELECT 1, us     ratio\n");
    query();
    measure("used", false, MOST);
    measure("idle", true, 11);
    PQfinish(connection);
    return 0;
}
