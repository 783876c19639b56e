/*
 * keepalive_check
 *
 * Prints whether keepalive is on before and after ka_enable, the settings in force, the status of a connection, and the
 * defaults of the system.
 */
#include <err.h>
#include <ka.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

/* Connects this program to itself, because the status is that of a connection. */
static int connect_to_self(void)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
    int fd = socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);

    if (listener < 0 || fd < 0)
        err(EXIT_FAILURE, "socket");
    if (bind(listener, (struct sockaddr *)&address, size) != 0 || listen(listener, 1) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) != 0 ||
        connect(fd, (struct sockaddr *)&address, size) != 0)
        err(EXIT_FAILURE, "cannot connect on the loopback");
    return fd; /* closing the listener would reset the connection, which is still in its queue */
}

static void show_enabled(int fd)
{
    int enabled = ka_is_enabled(fd);

    if (enabled < 0)
        err(EXIT_FAILURE, "ka_is_enabled");
    printf("SO_KEEPALIVE is %s\n", enabled ? "ON" : "OFF");
}

static void show_detection(const struct ka_config *config)
{
    uint64_t typical_ms, worst_ms;

    if (ka_detect_time(config, &typical_ms, &worst_ms) == 0)
        printf("a dead peer is found after %.1f s, at the latest %.1f s\n", (double)typical_ms / 1000,
               (double)worst_ms / 1000);
    else /* a sysctl may have a value that cannot be set on a socket */
        warn("cannot compute the detection time");
    /* While data is unacknowledged, the kernel sends no probes. rto_max shortens this time: ka_set_rto_max(3). */
    if (ka_data_time(config, &typical_ms, &worst_ms) == 0)
        printf("while data is unacknowledged after %.1f s, at the latest %.1f s\n", (double)typical_ms / 1000,
               (double)worst_ms / 1000);
}

int main(void)
{
    struct ka_config config = KA_CONFIG_INIT;
    struct ka_config defaults = KA_CONFIG_INIT;
    struct ka_status status = KA_STATUS_INIT;
    char text[80];
    int fd = connect_to_self();

    show_enabled(fd);
    if (ka_enable(fd, 60, 10, 5) != 0)
        err(EXIT_FAILURE, "ka_enable");
    printf("SO_KEEPALIVE set on socket\n");
    show_enabled(fd);

    if (ka_query(fd, &config) != 0 || ka_format(&config, text, sizeof text) < 0)
        err(EXIT_FAILURE, "ka_query");
    printf("\nin force on this socket: %s\n", text);
    printf("TCP_KEEPIDLE is %d s\nTCP_KEEPINTVL is %d s\nTCP_KEEPCNT is %d probes\nTCP_USER_TIMEOUT is %d ms\n",
           config.idle, config.intvl, config.cnt, config.user_timeout == KA_NONE ? 0 : config.user_timeout);
    if (config.rto_max != KA_KEEP) /* Linux 6.15 and later have it */
        printf("TCP_RTO_MAX_MS is %d ms\n", config.rto_max);
    show_detection(&config);

    if (ka_get_status(fd, &status) != 0)
        err(EXIT_FAILURE, "ka_get_status");
    printf("\nstatus of this connection:\n");
    printf("state %u (1 is established), %u unanswered probes, %u segments in flight, %u retransmissions\n",
           status.state, status.probes, status.unacked, status.retransmits);
    printf("last acknowledgement %u ms ago, last data received %u ms ago, last data sent %u ms ago\n",
           status.last_ack_ms, status.last_recv_ms, status.last_send_ms);
    printf("round-trip time %u us\n", status.rtt_us);

    if (ka_defaults(&defaults) != 0)
        err(EXIT_FAILURE, "ka_defaults");
    printf("\ndefaults of this system: keepalive %s, idle %d s, interval %d s, %d probes\n",
           defaults.keepalive == KA_ON ? "ON" : "OFF", defaults.idle, defaults.intvl, defaults.cnt);
    defaults.keepalive = KA_ON;
    printf("with these defaults and keepalive ON, ");
    show_detection(&defaults);
    close(fd);
    return EXIT_SUCCESS;
}
