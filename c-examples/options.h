/* Command line options that the examples share. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <stdbool.h>
#include <stddef.h>

/* A keepalive policy from -c, -d and -i. An option that was not given is KA_KEEP. */
struct keepalive_options {
    int cnt, idle, intvl;
};

/* An option with a whole number from 1 to max. */
struct number_option {
    char letter;
    const char *what;
    int max, *number;
};

/* The elements -c, -d and -i of an array of struct number_option. They store the values in *policy. */
#define KEEPALIVE_OPTIONS(policy)                                   \
    { 'c', "count of probes", KA_CNT_MAX, &(policy)->cnt },         \
    { 'd', "idle seconds", KA_IDLE_MAX, &(policy)->idle },          \
    { 'i', "interval seconds", KA_INTVL_MAX, &(policy)->intvl }

/* Reads at most 16 options, and moves argc and argv past them. If an option is wrong, prints why and returns false. */
bool read_numbers(int *argc, char ***argv, const struct number_option *options, size_t count);

/* Reads -c count, -d idle and -i interval as read_numbers does. */
bool read_options(int *argc, char ***argv, struct keepalive_options *options);

/* Reads a whole decimal number. Returns false if the text is not a number from min to max. */
bool read_number(const char *text, long min, long max, int *number);

/* Returns the time of a monotonic clock, in seconds. */
double now(void);

#endif
