/* defaults [ROOT]: prints the result of ka_defaults, in this root folder if it is given. Also calls it without free
 * descriptors. */
#include <errno.h>
#include <ka.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct ka_config config = KA_CONFIG_INIT;
    if (argc > 1 && (chroot(argv[1]) != 0 || chdir("/") != 0)) {
        perror("chroot");
        return 2;
    }
    errno = 0;
    if (ka_defaults(&config) != 0) {
        perror("ka_defaults");
        return 2;
    }
    if (errno != 0 || dup(0) != 3) {
        fprintf(stderr, "ka_defaults changed errno or left a descriptor open\n");
        return 2;
    }
    printf("%d %d %d %d %d %d\n", config.keepalive, config.idle, config.intvl, config.cnt, config.user_timeout,
           config.rto_max);

    struct rlimit none = { 0, 0 };
    struct ka_config untouched = KA_CONFIG_INIT;
    struct ka_config other = KA_CONFIG_INIT;
    if (setrlimit(RLIMIT_NOFILE, &none) != 0 || ka_defaults(&other) != -1 || errno != EMFILE)
        return 3;
    return memcmp(&other, &untouched, sizeof other) != 0;
}
