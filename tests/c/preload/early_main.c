/* Prints what the socket of the early constructor has. */
#include "probe.h"

extern int early_socket;

int main(void)
{
    printf("%s\n", five(early_socket));
    return 0;
}
