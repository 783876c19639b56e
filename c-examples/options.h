/* Command line options that the examples share. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <stdbool.h>

/* A keepalive policy from -c, -d and -i; KA_KEEP where an option was not given. */
struct keepalive_options {
    int cnt, idle, intvl;
};

/* Reads -c count, -d idle and -i interval, and moves argc and argv behind them. Says on stderr what was wrong. */
bool read_options(int *argc, char ***argv, struct keepalive_options *options);

/* Reads a whole decimal number from min to max. */
bool read_number(const char *text, long min, long max, int *number);

/* Seconds since some moment, for measuring. */
double now(void);

#endif
