#include "options.h"

#include <err.h>
#include <errno.h>
#include <ka.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

bool read_number(const char *text, long min, long max, int *number)
{
    char *end;
    long value;

    /* strtol would take blanks and a sign. */
    if (text[0] < '0' || text[0] > '9')
        return false;
    errno = 0;
    value = strtol(text, &end, 10);
    if (*end != '\0' || errno != 0 || value < min || value > max)
        return false;
    *number = (int)value;
    return true;
}

static bool read_option(int letter, const char *text, const char *what, int max, int *number)
{
    if (read_number(text, 1, max, number))
        return true;
    warnx("invalid %s for option -%c: \"%s\" (must be a number from 1 to %d)", what, letter, text, max);
    return false;
}

bool read_options(int *argc, char ***argv, struct keepalive_options *options)
{
    int letter;
    bool good = true;

    options->cnt = options->idle = options->intvl = KA_KEEP;
    opterr = 0;
    while (good && (letter = getopt(*argc, *argv, ":c:d:i:")) != -1) {
        switch (letter) {
        case 'c':
            good = read_option('c', optarg, "count of probes", KA_CNT_MAX, &options->cnt);
            break;
        case 'd':
            good = read_option('d', optarg, "idle seconds", KA_IDLE_MAX, &options->idle);
            break;
        case 'i':
            good = read_option('i', optarg, "interval seconds", KA_INTVL_MAX, &options->intvl);
            break;
        case ':':
            warnx("option requires an argument: -%c", optopt);
            good = false;
            break;
        default:
            warnx("unrecognized option: -%c", optopt);
            good = false;
            break;
        }
    }
    *argc -= optind;
    *argv += optind;
    return good;
}

double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}
