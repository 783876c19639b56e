/* Functions that the benchmarks share: the time, and the median of the rounds. */
#ifndef ROUNDS_H
#define ROUNDS_H

#include <stdlib.h>
#include <time.h>

/* Returns the time of a monotonic clock, in nanoseconds. */
static inline double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static inline int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Returns the median. Sorts the values. */
static inline double median(double *values, size_t n)
{
    qsort(values, n, sizeof *values, compare_doubles);
    return values[n / 2];
}

#endif
