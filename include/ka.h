/*
 * ka.h - TCP keepalive that works. Link with -lka.
 *
 * A peer that loses power says nothing. A NAT or a load balancer that forgets an idle connection says nothing
 * either. TCP keepalive detects the dead peer and keeps the idle connection from being forgotten. Linux has it off
 * by default; when it is turned on, the first probe comes after two hours. Where a program writes
 *
 *     setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, ...) and three more
 *
 * it can write
 *
 *     if (ka_enable(fd, 60, 10, 5) != 0)
 *         perror("ka_enable");
 *
 * A connection is then idle for 60 s before the first probe, probes follow every 10 s, and the fifth that nothing
 * answers ends it: read(2) fails with ETIMEDOUT. A listener hands its policy to all that it accepts.
 *
 * Keepalive proves that the peer's kernel lives, not that its program does, nor that it is a client of yours. For
 * that there are ka_reaper_*, which connections have fallen silent, and ka_beat_*, a signed heartbeat.
 *
 * Errors. Every function returns 0, or a non-negative value that it documents, or -1 with errno set, so that it
 * drops in where setsockopt(2) stood; what makes something returns it, or NULL. On success errno is left alone. An
 * output is written only on success. NULL where a pointer is needed is EINVAL. Where several things are wrong,
 * arguments count before the descriptor.
 * What a failed call leaves behind is said with each function; none leaves keepalive half on.
 *
 * Threads and signals. All functions but ka_reaper_* keep no state, allocate nothing, take no lock and write no
 * log; they may be called from any thread, from a signal handler, and after fork(2). A reaper is memory from
 * malloc(3): one thread at a time uses it, and no signal handler.
 *
 * Versions. Structs begin with their size and may grow; KA_CONFIG_INIT and KA_STATUS_INIT set it. The size must
 * be a multiple of 4, and at least 8. What a smaller struct lacks is KA_KEEP, or is not written. The words that
 * a larger one has more are left alone where they are written, and must be KA_KEEP where they are read: else E2BIG,
 * as for a size beyond 4096 where it is read.
 *
 * This file is generated: the text is in src/, and `make header` writes it.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef KA_H
#define KA_H

#include <stddef.h>
#include <stdint.h>

/**
 * The version of this header. ka_version and ka_version_number say which library runs.
 */
#define KA_VERSION "0.1.0"
#define KA_VERSION_MAJOR 0
#define KA_VERSION_MINOR 1
#define KA_VERSION_PATCH 0
#define KA_VERSION_NUMBER (1000000 * KA_VERSION_MAJOR + 1000 * KA_VERSION_MINOR + KA_VERSION_PATCH)

/**
 * A struct ka_config that leaves everything as it is: struct ka_config config = KA_CONFIG_INIT;
 */
#define KA_CONFIG_INIT { sizeof(struct ka_config), KA_KEEP, KA_KEEP, KA_KEEP, KA_KEEP, KA_KEEP }

/**
 * A struct ka_status to be filled in: struct ka_status status = KA_STATUS_INIT;
 */
#define KA_STATUS_INIT { sizeof(struct ka_status), 0, 0, 0, 0, 0, 0, 0, 0 }


/**
 * Leave this value as it is.
 */
#define KA_KEEP (-1)

/**
 * For user_timeout only: 1000 * (idle + intvl * cnt) milliseconds, of the values in force.
 */
#define KA_AUTO (-2)

/**
 * The longest idle time, in seconds (MAX_TCP_KEEPIDLE of the kernel).
 */
#define KA_IDLE_MAX 32767

/**
 * The longest interval between probes, in seconds (MAX_TCP_KEEPINTVL of the kernel).
 */
#define KA_INTVL_MAX 32767

/**
 * The most probes (MAX_TCP_KEEPCNT of the kernel).
 */
#define KA_CNT_MAX 127

/**
 * The bytes of a nonce.
 */
#define KA_BEAT_NONCE_SIZE 16

/**
 * The bytes of a heartbeat on the wire.
 */
#define KA_BEAT_SIZE 56

/**
 * Knows which connections have done no business for a time. Keepalive proves that a peer's kernel lives; this finds
 * the program that has hung, and the stranger who connected and never said a word.
 *
 * A connection is a descriptor number: the reaper makes no system call on it, so it works beside epoll, poll, io_uring,
 * libuv or libevent alike. What counts as business is for the program to say, with ka_reaper_touch. All connections
 * of a reaper have one timeout; use one reaper for each timeout.
 *
 * Time is a number of milliseconds on a clock of the program's, as CLOCK_MONOTONIC. It never goes backward: a now_ms
 * that is earlier than the latest which ka_reaper_touch or ka_reaper_expired was given counts as that one.
 *
 * Memory: 16 bytes a connection where numbers are dense, as the kernel hands them out, in pages of 256 numbers
 * (4 KiB), which are given back to malloc(3) when the last of their connections is gone, all but one. A number far
 * from all others costs 8 KiB, and numbers up to INT_MAX a directory of 16 bytes for each 65536, 512 KiB in all, of
 * which only what is used is touched, and which stays until ka_reaper_free. There is no limit but memory.
 *
 * A reaper is used by one thread at a time, and by no signal handler; different ones are independent.
 */
struct ka_reaper;

/**
 * A keepalive policy, or what is in force. Make it with KA_CONFIG_INIT: zero is not a value of idle, intvl and
 * cnt, so a config that was only cleared is refused, not misread.
 *
 * It may grow at its end in a later version; size tells the two versions apart. A program built against an
 * older, smaller one keeps working: what it lacks is KA_KEEP, or is not written.
 */
struct ka_config {
    /**
     * sizeof (struct ka_config): KA_CONFIG_INIT sets it.
     */
    uint32_t size;
    /**
     * 1 on, 0 off, KA_KEEP. SO_KEEPALIVE
     */
    int32_t enabled;
    /**
     * s, 1..KA_IDLE_MAX, KA_KEEP. TCP_KEEPIDLE
     */
    int32_t idle;
    /**
     * s, 1..KA_INTVL_MAX, KA_KEEP. TCP_KEEPINTVL
     */
    int32_t intvl;
    /**
     * probes, 1..KA_CNT_MAX, KA_KEEP. TCP_KEEPCNT
     */
    int32_t cnt;
    /**
     * ms, 0..2147483647, 0 is the kernel's own rule; KA_KEEP, KA_AUTO. TCP_USER_TIMEOUT
     */
    int32_t user_timeout;
};

/**
 * What a connection is doing. TCP_INFO of tcp(7)
 *
 * It may grow at its end, as ka_config. A listener, and a socket that never connected, has no times worth reading.
 * Of an MPTCP socket it is what the first of its connections is doing.
 */
struct ka_status {
    /**
     * sizeof (struct ka_status): KA_STATUS_INIT sets it.
     */
    uint32_t size;
    /**
     * TCP_ESTABLISHED (1) to TCP_CLOSING (11) of netinet/tcp.h.
     */
    uint32_t state;
    /**
     * Keepalive probes, or probes of a closed window, that nothing has answered yet.
     */
    uint32_t probes;
    /**
     * How often the oldest data in flight was sent again without an answer.
     */
    uint32_t retransmits;
    /**
     * Segments in flight; while there are any, no keepalive probe is sent. 0 for a listener.
     */
    uint32_t unacked;
    /**
     * ms since the last acknowledgement came, of data or of a probe.
     */
    uint32_t last_ack_ms;
    /**
     * ms since data last came.
     */
    uint32_t last_recv_ms;
    /**
     * ms since data was last sent; probes do not count.
     */
    uint32_t last_send_ms;
    /**
     * Smoothed round-trip time, microseconds.
     */
    uint32_t rtt_us;
};

/**
 * A heartbeat: a message that only a client of yours can make, good for one connection and one use. It tells a client
 * from a stranger and from a recording. It is no TLS: it covers nothing else that the connection carries, and whoever
 * sits between the two can pass it on.
 *
 * The server sends each connection a nonce of its own, KA_BEAT_NONCE_SIZE bytes as they are, before anything else. The
 * client sends KA_BEAT_SIZE bytes a beat; all numbers are big-endian:
 *
 *    0  4 bytes   "KABT"
 *    4  1 byte    the version, 1
 *    5  3 bytes   zero
 *    8  8 bytes   client
 *   16  8 bytes   sequence
 *   24  32 bytes  HMAC-SHA-256 of the nonce and the 24 bytes before
 */
struct ka_beat {
    /**
     * The client's number: it says whose key to take.
     */
    uint64_t client;
    /**
     * 1 for the first beat of a connection, higher with each.
     */
    uint64_t sequence;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Turns keepalive on: where setsockopt(2) stood four times.
 *
 *   fd     a TCP or MPTCP socket in any state. What a listener accepts inherits what it has at the
 *          handshake, so a server sets its listener and pays nothing per connection.
 *   idle   s, 1..KA_IDLE_MAX: how long the connection is idle before the first probe: since data or an
 *          acknowledgement last came in. What is sent counts through its acknowledgement. TCP_KEEPIDLE
 *   intvl  s, 1..KA_INTVL_MAX: from one unanswered probe to the next. Let it be no longer than idle: else it is
 *          also the time from an answered probe to the next. TCP_KEEPINTVL
 *   cnt    probes, 1..KA_CNT_MAX: so many without an answer end the connection. TCP_KEEPCNT
 *
 * Each may be KA_KEEP: it stays as it is, which for a fresh socket is the sysctl net.ipv4.tcp_keepalive_*.
 * A dead peer is found after idle + intvl * cnt seconds, or up to an eighth later (ka_detect_time): then the
 * socket is readable and read(2) fails with ETIMEDOUT, or with EHOSTUNREACH or ENETUNREACH where data was in
 * flight and the network said so (what it says of a probe, the kernel ignores). A peer that restarted answers the
 * first probe with a reset: ECONNRESET.
 *
 * On a socket that has keepalive off, this makes 5 system calls and turns it on last, so that nothing is
 * probed early. On one that has it on, it writes only what differs: calling it again and again is harmless.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       a value out of its range.
 *   EBADF        fd is not open, or was opened with O_PATH.
 *   ENOTSOCK     fd is not a socket.
 *   ENOPROTOOPT  fd is a socket, but not TCP: UDP, unix, raw, netlink, vsock.
 *   EOPNOTSUPP   this kernel does not have the option for this socket.
 *   What a security policy answers, as EPERM.
 * After a failure keepalive is on or off as it was. If it was on, its timers are as they were, with one exception:
 * one that followed a sysctl stays at that value, or keeps the new one where the sysctl's cannot be set. If it was
 * off, the timers, dormant then, may have changed.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_enable(int fd,
              int idle,
              int intvl,
              int cnt);

/**
 * Turns keepalive off. The timers keep their values, so that ka_enable with KA_KEEP brings them back.
 *
 *   fd     a TCP or MPTCP socket in any state.
 *
 * Returns 0, also where it was off, or -1 with errno: EBADF, ENOTSOCK, ENOPROTOOPT or a security policy's, as
 * ka_enable. After a failure the socket is as it was.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_disable(int fd);

/**
 * Says whether keepalive is on.
 *
 *   fd     a TCP or MPTCP socket in any state.
 *
 * Returns 1 or 0, or -1 with errno: EBADF, ENOTSOCK or ENOPROTOOPT, as ka_enable. (getsockopt(2) with
 * SO_KEEPALIVE succeeds on UDP and unix sockets too; this does not.)
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_is_enabled(int fd);

/**
 * Gets how long the connection is idle before the first probe, whether keepalive is on or off.
 *
 *   fd       a TCP or MPTCP socket in any state.
 *   seconds  where to put it: what is in force, the sysctl net.ipv4.tcp_keepalive_time where nothing was set.
 *            A sysctl may hold what could not be set on a socket, as 86400, 0 or -1.
 *
 * Returns 0, or -1 with errno: EINVAL (seconds is NULL), EBADF, ENOTSOCK, ENOPROTOOPT or EOPNOTSUPP, as
 * ka_enable. After a failure *seconds is as it was.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_get_idle(int fd, int *seconds);

/**
 * Gets the time from one unanswered probe to the next, whether keepalive is on or off.
 *
 *   fd       a TCP or MPTCP socket in any state.
 *   seconds  where to put it: what is in force, the sysctl net.ipv4.tcp_keepalive_intvl where nothing was set.
 *
 * Returns 0, or -1 with errno, as ka_get_idle. After a failure *seconds is as it was.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_get_intvl(int fd,
                 int *seconds);

/**
 * Gets how many probes without an answer end the connection, whether keepalive is on or off.
 *
 *   fd      a TCP or MPTCP socket in any state.
 *   probes  where to put it: what is in force, the sysctl net.ipv4.tcp_keepalive_probes where nothing was set.
 *
 * Returns 0, or -1 with errno, as ka_get_idle. After a failure *probes is as it was.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_get_cnt(int fd,
               int *probes);

/**
 * Gets the user timeout: how long sent data, or keepalive probes, may stay unacknowledged. TCP_USER_TIMEOUT
 *
 *   fd            a TCP socket in any state.
 *   milliseconds  where to put it; 0 is the kernel's own rule (net.ipv4.tcp_retries2 for data, cnt for probes).
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       milliseconds is NULL.
 *   EOPNOTSUPP   an MPTCP socket, unless it has fallen back to TCP: the kernel cannot say.
 *   EBADF, ENOTSOCK, ENOPROTOOPT, as ka_enable.
 * After a failure *milliseconds is as it was.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_get_user_timeout(int fd,
                        int *milliseconds);

/**
 * Sets the user timeout: how long sent data, or keepalive probes, may stay unacknowledged. RFC 5482
 *
 * Unacknowledged data suspends keepalive, so a peer that dies while data is on its way is found only by
 * retransmission, after a quarter of an hour, or by this. Two things to know first: on an idle connection it
 * takes the place of cnt (probes end the connection at the first one that is due when the time is over), and
 * it ends a connection to a healthy peer that keeps its window closed for so long.
 *
 *   fd            a TCP socket in any state.
 *   milliseconds  0..2147483647; 0 is the kernel's own rule; KA_AUTO is 1000 * (idle + intvl * cnt) of the
 *                 values in force, so that a busy connection ends when an idle one would; KA_KEEP changes nothing.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       milliseconds out of range, or KA_AUTO where that would be more than 2147483647 or less than 1.
 *   EOPNOTSUPP   an MPTCP socket, unless it has fallen back to TCP, whatever milliseconds is but KA_KEEP.
 *   EBADF, ENOTSOCK, ENOPROTOOPT or a security policy's, as ka_enable.
 * After a failure the socket is as it was.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_set_user_timeout(int fd,
                        int milliseconds);

/**
 * Sets what the config names, and leaves the rest: ka_enable, with all there is to say.
 *
 *   fd      a TCP or MPTCP socket in any state.
 *   config  what to set; each value may be KA_KEEP. Begin with KA_CONFIG_INIT.
 *
 * It was off, and enabled is 1: the timers are written, then keepalive is turned on. It was on: what is named
 * is compared and only what differs is written; where intvl or cnt changed, idle is written after them, since
 * only that re-arms the running timer. Where idle is KA_KEEP, that is the value in force, which from then on no
 * longer follows the sysctl. enabled is 0: keepalive goes off first, then the timers are written.
 *
 * Returns 0, or -1 with errno; arguments are checked before the descriptor, and the descriptor before what
 * depends on its state:
 *   EINVAL       config is NULL; its size is not a multiple of 4 from 8 up; a value is out of its range (zero in
 *                idle, intvl and cnt is what a config made without KA_CONFIG_INIT has); KA_AUTO would be
 *                more than 2147483647 or less than 1.
 *   E2BIG        config is larger than this version's and asks in its tail for something: a word that is
 *                not KA_KEEP. Or its size is beyond 4096.
 *   EBADF        fd is not open, or was opened with O_PATH.
 *   ENOTSOCK     fd is not a socket.
 *   ENOPROTOOPT  fd is a socket, but not TCP.
 *   EOPNOTSUPP   this kernel does not have the option for this socket: any user_timeout, 0 too, on an MPTCP
 *                socket that has not fallen back to TCP.
 *   What a security policy answers, as EPERM.
 * After a failure keepalive is on or off as it was. If it was on, its timers are as they were, with one exception:
 * one that followed a sysctl stays at that value, or keeps the new one where the sysctl's cannot be set. If it was
 * off, idle, intvl and cnt, dormant then, may have changed; user_timeout, which rules data whether keepalive is on or
 * off, has not.
 *
 * Thread-safe, async-signal-safe, fork-safe. Two threads that set different things on one socket at once leave
 * a mixture.
 * Since 0.1.0.
 */
int ka_apply(int fd,
             const struct ka_config *config);

/**
 * Gets all that is in force for keepalive.
 *
 *   fd      a TCP or MPTCP socket in any state.
 *   config  where to put it; its size must be set (KA_CONFIG_INIT). enabled is 1 or 0; the timers are what is
 *           in force, the sysctls where nothing was set; user_timeout is KA_KEEP where the kernel has
 *           none to tell, as on MPTCP that has not fallen back to TCP.
 *
 * Given to ka_apply, the result sets the same again. But a sysctl may hold what could not be set on a socket:
 * 86400 is then EINVAL there, and -1, which is KA_KEEP, leaves the sysctl in force.
 *
 * Returns 0, or -1 with errno: EINVAL (config is NULL, or its size is not a multiple of 4 from 8 up), EBADF,
 * ENOTSOCK, ENOPROTOOPT or EOPNOTSUPP, as ka_apply. After a failure *config is as it was.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_query(int fd, struct ka_config *config);

/**
 * Gets what a fresh socket of the calling thread's network namespace has: keepalive off, no user timeout, and
 * the timers of the sysctls net.ipv4.tcp_keepalive_time, _intvl and _probes. They may hold what could not be
 * set on a socket, as 86400, 0 or -1.
 *
 *   config  where to put it; its size must be set (KA_CONFIG_INIT).
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       config is NULL, or its size is not a multiple of 4 from 8 up.
 *   EMFILE, ENFILE, ENOMEM, EACCES, EPERM, EAFNOSUPPORT
 *                /proc does not show the sysctls and a socket to ask could not be made: socket(2).
 * After a failure *config is as it was.
 *
 * Thread-safe, async-signal-safe, fork-safe. Uses a descriptor (close-on-exec) while it runs.
 * Since 0.1.0.
 */
int ka_defaults(struct ka_config *config);

/**
 * Reads a policy from its text, as from a configuration file, an option or the environment.
 *
 *   text    one of two forms. Blanks and line ends around an item are ignored. Values that are not named are KA_KEEP.
 *             - Three values, idle, intvl and cnt, with commas or colons between them: "60,10,5", "1m:10s:5".
 *             - Items with commas between them, in any order and each at most once: "idle=", "intvl=", "cnt="
 *               and "user_timeout=" with a value, and one of "on", "off" and "keep" for enabled. Without one
 *               of these three, enabled is 1. "idle=5m, intvl=30s, user_timeout=auto".
 *           A value is decimal digits without leading zeros. A time may have a unit: ms, s, m, h or d. Without
 *           a unit, idle and intvl are seconds and user_timeout is milliseconds. idle and intvl must be whole
 *           seconds. cnt has no unit. "user_timeout=auto" is KA_AUTO, "user_timeout=none" is 0.
 *   config  where to put it; its size must be set (KA_CONFIG_INIT).
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       an argument is NULL; config's size is not a multiple of 4 from 8 up; the text has another form;
 *                idle or intvl is not whole seconds; "user_timeout=auto" would be more than 2147483647.
 *   ERANGE       the form is right, but a number is out of its range.
 * After a failure *config is as it was.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_parse(const char *text,
             struct ka_config *config);

/**
 * Writes a policy as the text that ka_parse reads back to the same policy: "idle=60,intvl=10,cnt=5", "off".
 *
 * The text has neither blanks nor units. For a user_timeout below 1000 the command ka and the KA_ variables
 * require a unit, because a person could mean seconds. ka_parse reads the bare number as milliseconds.
 *
 *   config  a config that ka_apply would take.
 *   text    where to put the text and a NUL, as snprintf(3): at most size bytes in all, cut off where it is
 *           longer. May be NULL where size is 0. 64 bytes hold any text of this version.
 *   size    how many bytes text has.
 *
 * Returns the length of the whole text without its NUL (size or more: it was cut off), or -1 with errno:
 *   EINVAL       config is NULL; text is NULL and size is not 0; ka_apply would refuse the config with EINVAL.
 *   E2BIG        ka_apply would refuse the config with E2BIG.
 * After a failure the text is as it was.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_format(const struct ka_config *config,
              char *text,
              size_t size);

/**
 * Works out a policy that knows of a dead peer within so many milliseconds, however late the kernel's timers
 * are, after up to three probes.
 *
 *   within_ms  ms, 2274 or more.
 *   config     where to put it; its size must be set (KA_CONFIG_INIT). enabled is 1, and user_timeout KA_KEEP:
 *              it would take the place of cnt, and end connections to healthy peers that keep their window closed.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       config is NULL, or its size is not a multiple of 4 from 8 up.
 *   ERANGE       no policy can do it in so short a time.
 * After a failure *config is as it was.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_plan_detect(uint32_t within_ms,
                   struct ka_config *config);

/**
 * Works out a policy that keeps a connection alive on a path where a NAT, a firewall or a load balancer forgets it
 * after so many idle seconds: it has sent two probes by then, so that one may be lost. 350 gives 280, 30, 5.
 *
 *   path_idle_s  s, 3 or more: the idle timeout of the path.
 *   config       where to put it; its size must be set (KA_CONFIG_INIT). enabled is 1, and user_timeout KA_KEEP.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       config is NULL, or its size is not a multiple of 4 from 8 up.
 *   ERANGE       no policy can do it in so short a time.
 * After a failure *config is as it was.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_plan_path(uint32_t path_idle_s,
                 struct ka_config *config);

/**
 * Works out the policy of ka_plan_path for a middlebox whose idle timeout is public.
 *
 *   name    one of these. The number is its default idle timeout in seconds and the document is where it is
 *           from; where an operator has changed it, use ka_plan_path.
 *            alibaba-nlb            900  Terraform provider alicloud: alicloud_nlb_listener, idle_timeout
 *                                        https://github.com/aliyun/terraform-provider-alicloud/blob/master/website/docs/r/nlb_listener.html.markdown
 *            aws-gwlb               350  AWS: Update the TCP idle timeout for your Gateway Load Balancer listener
 *                                        https://docs.aws.amazon.com/elasticloadbalancing/latest/gateway/update-idle-timeout.html
 *            aws-nat                350  AWS: Troubleshoot NAT gateways, Internet connection drops after 350 seconds
 *                                        https://docs.aws.amazon.com/vpc/latest/userguide/nat-gateway-troubleshooting.html
 *            aws-network-firewall   350  AWS Network Firewall API Reference: FlowTimeouts
 *                                        https://docs.aws.amazon.com/network-firewall/latest/APIReference/API_FlowTimeouts.html
 *            aws-nitro-v6           350  AWS: Best Practices for TCP Connection Management on EC2 (security groups' connection tracking)
 *                                        https://aws.amazon.com/blogs/networking-and-content-delivery/best-practices-for-tcp-connection-management-on-ec2/
 *            aws-nlb                350  AWS: Update the TCP idle timeout for your Network Load Balancer listener
 *                                        https://docs.aws.amazon.com/elasticloadbalancing/latest/network/update-idle-timeout.html
 *            azure-firewall         240  Azure Firewall: TCP session management and idle timeout behavior
 *                                        https://learn.microsoft.com/en-us/azure/firewall/tcp-session-behavior
 *            azure-lb               240  Azure Load Balancer: TCP Reset and Idle Timeout
 *                                        https://learn.microsoft.com/en-us/azure/load-balancer/load-balancer-tcp-reset
 *            azure-nat              240  Azure NAT Gateway resource
 *                                        https://learn.microsoft.com/en-us/azure/nat-gateway/nat-gateway-resource
 *            cisco-asa             3600  Cisco Secure Firewall ASA: connection timeouts
 *                                        https://cisco.com/c/en/us/support/docs/security/secure-firewall-asa/222075-configure-connection-timeout-for-specifi.html
 *            f5-fastl4              300  F5 BIG-IP AS3 schema reference: L4_Profile, idleTimeout
 *                                        https://clouddocs.f5.com/products/extensions/f5-appsvcs-extension/latest/refguide/schemaref/L4_Profile.schema.json.html
 *            fortigate             3600  Fortinet: Technical Tip, Default session timeout value (session-ttl)
 *                                        https://community.fortinet.com/t5/FortiGate/Technical-Tip-Default-session-timeout-value-session-ttl/ta-p/194357
 *            gcp-nat               1200  Google Compute Engine API v1: RouterNat, tcpEstablishedIdleTimeoutSec
 *                                        https://pub.dev/documentation/googleapis/latest/compute_v1/RouterNat/tcpEstablishedIdleTimeoutSec.html
 *            gcp-vpc                600  Google Compute Engine: general tips, idle connections (connection tracking of VPC firewalls)
 *                                        https://cloud.google.com/compute/docs/troubleshooting/general-tips
 *            juniper-srx           1800  Juniper Junos OS: Flow-Based Sessions
 *                                        https://www.juniper.net/documentation/us/en/software/junos/flow-packet-processing/topics/topic-map/security-flow-based-session-for-srx-series-devices.html
 *            linux-ipvs             900  Linux: net/netfilter/ipvs/ip_vs_proto_tcp.c, tcp_timeouts (kube-proxy in IPVS mode, Docker Swarm)
 *                                        https://github.com/torvalds/linux/blob/master/net/netfilter/ipvs/ip_vs_proto_tcp.c
 *            oci-nlb                360  Oracle Cloud Network Load Balancer: Changing a Listener's Idle Timeout
 *                                        https://docs.oracle.com/en-us/iaas/Content/NetworkLoadBalancer/NetworkLoadBalancers/configure-idle-timeout.htm
 *            paloalto              3600  Palo Alto Networks: Configure Session Timeouts (PAN-OS)
 *                                        https://docs.paloaltonetworks.com/ngfw/networking/session-settings-and-timeouts/configure-session-timeouts/configure-session-timeouts-pan-os
 *            rfc5382               7440  RFC 5382, REQ-5: no NAT that keeps it forgets an established connection in less
 *                                        https://www.rfc-editor.org/rfc/rfc5382
 *   config  where to put it; its size must be set (KA_CONFIG_INIT). enabled is 1, and user_timeout KA_KEEP.
 *
 * Only what looks at packets is here: a probe counts as traffic there. A proxy that ends the TCP connection
 * itself, as AWS's Classic and Application Load Balancers do, does not count probes.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       an argument is NULL, or config's size is not a multiple of 4 from 8 up.
 *   ENOENT       there is no preset of this name.
 * After a failure *config is as it was.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_plan_preset(const char *name, struct ka_config *config);

/**
 * Works out how long a policy needs to find a dead peer, from the last packet that came from it.
 *
 *   config      enabled 1, and idle, intvl and cnt named. With a user_timeout, the connection ends at
 *               the first probe time at or after it, and one interval after the first probe at the
 *               earliest, however many probes cnt allows.
 *   typical_ms  where to put the milliseconds if no timer is late.
 *   worst_ms    where to put the milliseconds if each timer is as late as the kernel's timer wheel makes it: an
 *               eighth, and a tick.
 *
 * An interval longer than the idle time takes its place once a probe was answered: the answer does not shorten the
 * timer that its probe has started (tcp_keepalive_timer). A peer that falls silent then is found intvl - idle seconds
 * later than both say. No plan of ka has such an interval.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       an argument is NULL; ka_apply would refuse the config with EINVAL; enabled is not 1; idle, intvl or
 *                cnt is KA_KEEP.
 *   E2BIG        ka_apply would refuse the config with E2BIG.
 * After a failure *typical_ms and *worst_ms are as they were.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_detect_time(const struct ka_config *config,
                   uint64_t *typical_ms,
                   uint64_t *worst_ms);

/**
 * Gets what a connection is doing: is a probe unanswered, is data in flight, when did the peer last speak?
 *
 *   fd      a TCP or MPTCP socket in any state.
 *   status  where to put it; its size must be set (KA_STATUS_INIT).
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       status is NULL, or its size is not a multiple of 4 from 8 up.
 *   EOPNOTSUPP   this kernel does not tell it for this socket.
 *   EBADF, ENOTSOCK, ENOPROTOOPT, as ka_enable.
 * After a failure *status is as it was.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_get_status(int fd, struct ka_status *status);

/**
 * Makes a reaper, which has no connection yet.
 *
 *   timeout_ms  ms, 1 or more: a connection is due when now_ms - last touch >= timeout_ms.
 *
 * Returns the reaper, to be given to ka_reaper_free; or NULL with errno:
 *   EINVAL       timeout_ms is 0.
 *   ENOMEM       there is no memory.
 * After a failure nothing is left behind.
 *
 * Thread-safe, fork-safe.
 * Since 0.1.0.
 */
struct ka_reaper *ka_reaper_new(uint32_t timeout_ms);

/**
 * Gives a reaper's memory back. Its connections are left as they are: none is closed.
 *
 *   reaper  of ka_reaper_new, and not used again; NULL does nothing.
 *
 * Returns nothing.
 *
 * One thread at a time; fork-safe.
 * Since 0.1.0.
 */
void ka_reaper_free(struct ka_reaper *reaper);

/**
 * Notes that a connection does business now. One that the reaper does not have is added. The time that it takes does
 * not depend on how many there are.
 *
 *   reaper  of ka_reaper_new.
 *   fd      the connection's descriptor, 0 or more.
 *   now_ms  ms: the time.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       reaper is NULL.
 *   EBADF        fd is negative.
 *   ENOMEM       there is no memory for one more connection.
 * After a failure the reaper is as it was.
 *
 * One thread at a time; fork-safe.
 * Since 0.1.0.
 */
int ka_reaper_touch(struct ka_reaper *reaper,
                    int fd,
                    uint64_t now_ms);

/**
 * Takes a connection out. Do it before close(2): a number that is used again is otherwise the old connection, touched.
 *
 *   reaper  of ka_reaper_new.
 *   fd      the connection's descriptor.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       reaper is NULL.
 *   ENOENT       the reaper does not have this connection, as after ka_reaper_expired named it.
 * After a failure the reaper is as it was.
 *
 * One thread at a time; fork-safe.
 * Since 0.1.0.
 */
int ka_reaper_forget(struct ka_reaper *reaper,
                     int fd);

/**
 * Takes out connections that are due, the most silent first, and names them. The time that it takes depends on how
 * many it names, not on how many there are.
 *
 *   reaper  of ka_reaper_new.
 *   now_ms  ms: the time.
 *   fds     where to put their descriptors. May be NULL where n is 0.
 *   n       how many fds has room for. Those that are due beyond it stay, for the next call.
 *
 * Returns how many it named, at most n and INT_MAX, 0 where none is due; or -1 with errno:
 *   EINVAL       reaper is NULL; fds is NULL and n is not 0.
 * After a failure the reaper is as it was.
 *
 * One thread at a time; fork-safe.
 * Since 0.1.0.
 */
int ka_reaper_expired(struct ka_reaper *reaper,
                      uint64_t now_ms,
                      int *fds,
                      size_t n);

/**
 * Gets how long to wait until a connection is due: the timeout of epoll_wait(2) and poll(2).
 *
 *   reaper  of ka_reaper_new. It is only looked at: now_ms does not count as seen.
 *   now_ms  ms: the time.
 *
 * Returns the ms, at most INT_MAX, 0 where one is due now; or -1:
 *   where the reaper has no connection, and errno is as it was: epoll_wait takes it as for ever;
 *   with errno EINVAL where reaper is NULL.
 * After a failure nothing has changed.
 *
 * One thread at a time; fork-safe.
 * Since 0.1.0.
 */
int ka_reaper_next(const struct ka_reaper *reaper, uint64_t now_ms);

/**
 * Gets how many connections a reaper has.
 *
 *   reaper  of ka_reaper_new; NULL has none.
 *
 * Returns the number; it never fails.
 *
 * One thread at a time; fork-safe.
 * Since 0.1.0.
 */
size_t ka_reaper_len(const struct ka_reaper *reaper);

/**
 * Makes a nonce, for one connection, with getrandom(2); with /dev/urandom where the kernel does not have that (before
 * 3.17). It waits only while the machine has not gathered randomness yet, early after it has started.
 *
 *   nonce  where to put its KA_BEAT_NONCE_SIZE bytes.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       nonce is NULL.
 *   others       what the kernel answered, as EPERM where a sandbox forbids getrandom(2), or ENOENT or EMFILE where
 *                /dev/urandom was needed: open(2).
 * After a failure nonce is as it was.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_beat_nonce(uint8_t nonce[KA_BEAT_NONCE_SIZE]);

/**
 * Makes a heartbeat.
 *
 *   key       the key that the client and its server share.
 *   key_size  how many bytes it has, 16 or more; 32 random ones are best.
 *   nonce     what the server sent, KA_BEAT_NONCE_SIZE bytes.
 *   beat      the client's number, and a sequence: 1 or more, higher than of the beat before.
 *   frame     where to put the KA_BEAT_SIZE bytes to send.
 *
 * Copies that it makes of the key are wiped before it returns; the key itself is the caller's to wipe.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       an argument is NULL; key_size is below 16; the sequence is 0.
 * After a failure frame is as it was.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_beat_sign(const uint8_t *key,
                 size_t key_size,
                 const uint8_t nonce[KA_BEAT_NONCE_SIZE],
                 const struct ka_beat *beat,
                 uint8_t frame[KA_BEAT_SIZE]);

/**
 * Gets the client that a heartbeat says it is of, for finding its key. Nothing proves it before ka_beat_verify.
 *
 *   frame   what came, KA_BEAT_SIZE bytes.
 *   client  where to put the number.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       an argument is NULL.
 *   EBADMSG      it is no heartbeat: another magic, another version, or the zero bytes are not zero.
 * After a failure *client is as it was.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_beat_client(const uint8_t frame[KA_BEAT_SIZE],
                   uint64_t *client);

/**
 * Verifies a heartbeat: that it was made with this key, for the connection that has this nonce, and is newer than the
 * last one. The MAC is compared in a time that does not depend on where it differs, and the sequence is looked at only
 * when the MAC is right.
 *
 *   key            the key of the client that ka_beat_client names.
 *   key_size       how many bytes it has, 16 or more.
 *   nonce          what was sent to this connection, KA_BEAT_NONCE_SIZE bytes.
 *   last_sequence  that of the last beat which was verified on this connection, 0 before the first.
 *   frame          what came, KA_BEAT_SIZE bytes.
 *   beat           where to put the client, and the sequence: the next last_sequence.
 *
 * Copies that it makes of the key are wiped before it returns; the key itself is the caller's to wipe.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       an argument is NULL; key_size is below 16.
 *   EBADMSG      it is no heartbeat, or garbled, or made with another key or for another connection.
 *   ESTALE       it is genuine, but its sequence is not greater than last_sequence: it was sent before.
 * After a failure *beat is as it was.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_beat_verify(const uint8_t *key,
                   size_t key_size,
                   const uint8_t nonce[KA_BEAT_NONCE_SIZE],
                   uint64_t last_sequence,
                   const uint8_t frame[KA_BEAT_SIZE],
                   struct ka_beat *beat);

/**
 * Says which version of the library runs, as "0.1.0"; KA_VERSION is the one that the program was built with.
 *
 * Returns a string that lives as long as the library; it never fails.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
const char *ka_version(void);

/**
 * Says which version of the library runs, as a number to compare: 1000000 * major + 1000 * minor + patch;
 * KA_VERSION_NUMBER is the one that the program was built with.
 *
 * Returns the number; it never fails.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
uint32_t ka_version_number(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* KA_H */
