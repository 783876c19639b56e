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

    /* The text must begin with a digit, because strtol also accepts leading blanks and a sign. */
    if (text[0] < '0' || text[0] > '9')
        return false;
    errno = 0;
    value = strtol(text, &end, 10);
    if (*end != '\0' || errno != 0 || value < min || value > max)
        return false;
    *number = (int)value;
    return true;
}

/* Returns the option with this letter, or NULL. */
static const struct number_option *find(const struct number_option *options, size_t count, int letter)
{
    for (size_t i = 0; i < count; i++)
        if (options[i].letter == letter)
            return &options[i];
    return NULL;
}

bool read_numbers(int *argc, char ***argv, const struct number_option *options, size_t count)
{
    char letters[2 + 2 * 16] = ":";
    int letter;

    for (size_t i = 0; i < count && i < 16; i++) {
        letters[1 + 2 * i] = options[i].letter;
        letters[2 + 2 * i] = ':';
    }
    opterr = 0;
    while ((letter = getopt(*argc, *argv, letters)) != -1) {
        const struct number_option *option = find(options, count, letter);
        if (option == NULL) {
            warnx(letter == ':' ? "option requires an argument: -%c" : "unrecognized option: -%c", optopt);
            return false;
        }
        if (!read_number(optarg, 1, option->max, option->number)) {
            warnx("invalid %s for option -%c: \"%s\" (must be a number from 1 to %d)", option->what, letter, optarg,
                  option->max);
            return false;
        }
    }
    *argc -= optind;
    *argv += optind;
    return true;
}

bool read_options(int *argc, char ***argv, struct keepalive_options *options)
{
    const struct number_option numbers[] = { KEEPALIVE_OPTIONS(options) };

    options->cnt = options->idle = options->intvl = KA_KEEP;
    return read_numbers(argc, argv, numbers, sizeof numbers / sizeof *numbers);
}

double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}
