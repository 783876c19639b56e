/* A program that uses ka.hpp only through the module of module.cpp. */
#include <errno.h>
#include <sys/socket.h>

import keepalive;

int main() {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    const bool failures = turn_on(-1) == EBADF && turn_on_or_throw(-1) == EBADF && make_reaper() == EINVAL;
    const bool texts = is_policy("60,10,5") && !is_policy("60,10");
    const bool before = is_as_chosen(fd);
    const bool after = turn_on(fd) == 0 && is_as_chosen(fd);
    int on = 0;
    socklen_t size = sizeof on;
    getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, &size);
    return failures && texts && !before && after && on == 1 ? 0 : 1;
}
