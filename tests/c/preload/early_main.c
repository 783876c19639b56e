/* Prints the settings of the early constructor's socket. */
#include "probe.h"

extern int early_socket;

int main(void)
{
    printf("%s\n", five(early_socket));
    return 0;
}
