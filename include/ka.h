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
 * Errors. A function returns 0, or a non-negative value that its comment describes, or -1 with errno set. Functions
 * that make an object return it, or NULL with errno set. ka_reaper_next and ka_reaper_forget return -1 without an
 * error, as their comments say. A successful call leaves errno unchanged, and only a successful call writes its
 * outputs. A NULL pointer is EINVAL where the function needs the object. Arguments are checked before the descriptor.
 * Each comment says what a failed call leaves behind. No failure leaves keepalive half on.
 *
 * Threads and signals. All functions except ka_reaper_* keep no state, allocate no memory, take no lock and write no
 * log. Any thread, a signal handler, and the child of fork(2) may call them. They use at most 800 bytes of stack on
 * x86-64; ka_beat_sign and ka_beat_verify use 2.5 KiB. A reaper is memory from malloc(3): one thread at a time may use
 * it, and no signal handler.
 *
 * Versions. Structs begin with their size. A later version may add fields at the end, and KA_CONFIG_INIT,
 * KA_CONFIG and KA_STATUS_INIT set the size of the version that a program is compiled with. The size must be a
 * multiple of 4, and at least 8. If the struct is smaller than the library's, input functions take the missing fields
 * as 0, and output functions do not write them. If it is larger, output functions leave the extra fields unchanged,
 * and input functions fail with E2BIG unless each extra field is 0 or KA_KEEP. Input functions also fail with E2BIG
 * if the size is more than 4096.
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

#if defined(__STDC_VERSION__) && __STDC_VERSION__ >= 199901L
/**
 * A struct ka_config with these fields, and all others left as they are (C99):
 *
 *     ka_apply(fd, &KA_CONFIG(.keepalive = KA_ON, .idle = 60, .intvl = 10, .cnt = 5));
 */
#define KA_CONFIG(...) ((struct ka_config){ .size = sizeof(struct ka_config), __VA_ARGS__ })
#endif

/**
 * A struct ka_status to be filled in: struct ka_status status = KA_STATUS_INIT;
 */
#define KA_STATUS_INIT { sizeof(struct ka_status), 0, 0, 0, 0, 0, 0, 0, 0 }


/**
 * The bit of ka_enable_lenient for an idle time that is not as asked.
 */
#define KA_MISSED_IDLE 1

/**
 * The bit of ka_enable_lenient for an interval that is not as asked.
 */
#define KA_MISSED_INTVL 2

/**
 * The bit of ka_enable_lenient for a count that is not as asked.
 */
#define KA_MISSED_CNT 4

/**
 * The bit of ka_enable_lenient for a socket that is not TCP.
 */
#define KA_MISSED_TCP 8

/**
 * Leave this value as it is. In struct ka_config, 0 means the same.
 */
#define KA_KEEP (-1)

/**
 * For user_timeout only: 1000 * (idle + intvl * cnt) milliseconds, of the values in force.
 */
#define KA_AUTO (-2)

/**
 * For user_timeout only: no user timeout.
 */
#define KA_NONE (-3)

/**
 * For keepalive only: turn it on.
 */
#define KA_ON 1

/**
 * For keepalive only: turn it off.
 */
#define KA_OFF 2

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
 * A keepalive policy, or the settings that are in force.
 *
 * In each field 0 means the same as KA_KEEP, so a struct that is all zero except for its size changes nothing. Make
 * one with KA_CONFIG_INIT or KA_CONFIG.
 *
 * A later version may add fields at the end. The size tells the library which fields the caller has.
 */
struct ka_config {
    /**
     * sizeof (struct ka_config). KA_CONFIG_INIT and KA_CONFIG set it.
     */
    uint32_t size;
    /**
     * KA_ON, KA_OFF, KA_KEEP. SO_KEEPALIVE
     */
    int32_t keepalive;
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
     * ms, 1..2147483647, KA_KEEP, KA_AUTO, KA_NONE. TCP_USER_TIMEOUT
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
#endif /* __cplusplus */

/**
 * Turns keepalive on with these timers.
 *
 * A wrong value is an error, and keepalive stays off. A server that must have keepalive whatever the timers are
 * calls ka_enable_lenient.
 *
 *   fd     a TCP or MPTCP socket in any state. An accepted connection inherits the settings that its listener has at
 *          the handshake. So a server sets its listener, and makes no call for each connection.
 *   idle   s, 1..KA_IDLE_MAX: how long the connection is idle before the first probe. A connection is idle while no
 *          data and no acknowledgement comes in. Sent data counts when it is acknowledged. TCP_KEEPIDLE
 *   intvl  s, 1..KA_INTVL_MAX: the time from an unanswered probe to the next. If it is longer than idle, it is also
 *          the time from an answered probe to the next. TCP_KEEPINTVL
 *   cnt    probes, 1..KA_CNT_MAX: the connection ends when this many are unanswered. TCP_KEEPCNT
 *
 * Each may be KA_KEEP: it stays as it is. A new socket has the values of the sysctls net.ipv4.tcp_keepalive_*:
 * 7200 s, 75 s and 9 probes by default. So ka_enable(fd, 30, KA_KEEP, KA_KEEP) has an interval of 75 s, which is
 * longer than its idle time.
 *
 * A dead peer is found after idle + intvl * cnt seconds, or up to an eighth later (ka_detect_time). The socket is
 * then readable, and read(2) fails with ETIMEDOUT. If data was in flight and the network reported an error,
 * read(2) fails with EHOSTUNREACH or ENETUNREACH. The kernel ignores such reports about probes. A peer that has
 * restarted answers the first probe with a reset: ECONNRESET.
 *
 * If keepalive is off, this makes 5 system calls and turns it on last, so no probe leaves early. If it is on, this
 * writes only values that differ. So calls may be repeated at any rate.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       a value is out of its range. 0 is.
 *   EBADF        fd is not open, or was opened with O_PATH.
 *   ENOTSOCK     fd is not a socket.
 *   ENOPROTOOPT  fd is a socket, but not TCP: UDP, unix, raw, netlink, vsock.
 *   EOPNOTSUPP   this kernel does not have the option for this socket.
 *   The error of a security policy, for example EPERM.
 * After a failure keepalive is on or off as it was. If it was on, its timers are as they were, with one exception:
 * a timer that followed a sysctl stays at that value, or keeps the new one if the sysctl's value cannot be set. If
 * it was off, the timers, which are dormant then, may have changed.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_enable(int fd,
              int idle,
              int intvl,
              int cnt);

/**
 * Turns keepalive on as hand-written calls of setsockopt(2) do: whatever becomes of the timers.
 *
 * This is the function for a server that has made these calls so far. A bad value or an old kernel costs it a
 * timer, but not keepalive, and it can log the result. A server that would rather stop on a mistake calls
 * ka_enable.
 *
 *   fd     any socket. A socket that is not TCP is left unchanged.
 *   idle   s. Below 1: stays as it is. Above KA_IDLE_MAX: KA_IDLE_MAX. TCP_KEEPIDLE
 *   intvl  s. Below 1: stays as it is. Above KA_INTVL_MAX: KA_INTVL_MAX. TCP_KEEPINTVL
 *   cnt    probes. Below 1: stays as it is. Above KA_CNT_MAX: KA_CNT_MAX. TCP_KEEPCNT
 *
 * A timer that stays as it is has the value of its sysctl on a new socket.
 *
 * Returns 0 if all is as asked. Otherwise returns the sum of these bits, with keepalive on except for KA_MISSED_TCP:
 *   KA_MISSED_IDLE, KA_MISSED_INTVL, KA_MISSED_CNT
 *                the value was above the maximum, or the kernel refused it.
 *   KA_MISSED_TCP
 *                the socket is not TCP (UDP, unix, raw, netlink, vsock).
 * Or returns -1 with errno:
 *   EBADF        fd is not open, or was opened with O_PATH.
 *   ENOTSOCK     fd is not a socket.
 *   The error of SO_KEEPALIVE, for example EPERM by a security policy.
 * After a failure keepalive is on or off as it was. The timers may have changed.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_enable_lenient(int fd,
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
 *   milliseconds  receives the time. 0: there is no user timeout, and the kernel's own rules apply
 *                 (net.ipv4.tcp_retries2 for data, cnt for probes).
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
int ka_get_user_timeout(int fd, int *milliseconds);

/**
 * Sets the user timeout: how long sent data, or keepalive probes, may stay unacknowledged. RFC 5482
 *
 * Unacknowledged data suspends keepalive, so a peer that dies while data is on its way is found only by
 * retransmission, after a quarter of an hour, or by this. Two things to know first: on an idle connection it
 * takes the place of cnt (probes end the connection at the first one that is due when the time is over), and
 * it ends a connection to a healthy peer that keeps its window closed for so long.
 *
 *   fd            a TCP socket in any state.
 *   milliseconds  1..2147483647. 0 or KA_NONE: no user timeout. KA_AUTO: 1000 * (idle + intvl * cnt) of the values
 *                 in force, so a busy connection ends when an idle one would. KA_KEEP: nothing is changed.
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
 * Applies a policy: sets each value that the config names.
 *
 *   fd      a TCP or MPTCP socket in any state.
 *   config  the policy. A field that is KA_KEEP or 0 stays as it is. Make it with KA_CONFIG_INIT or KA_CONFIG.
 *
 * If keepalive is off and the config turns it on, the timers are written first. If keepalive is on, only values that
 * differ are written. If intvl or cnt changes, idle is written after them, because only idle re-arms the running
 * timer. If idle is KA_KEEP, it is written with the value in force, and no longer follows its sysctl. If the
 * config turns keepalive off, keepalive goes off before the timers are written.
 *
 * Returns 0, or -1 with errno; arguments are checked before the descriptor, and the descriptor before what
 * depends on its state:
 *   EINVAL       config is NULL; its size is not a multiple of 4 from 8 up; a value is out of its range; KA_AUTO
 *                would be more than 2147483647 or less than 1.
 *   E2BIG        config is larger than this version's, and a word in its tail is neither 0 nor KA_KEEP. Or its
 *                size is more than 4096.
 *   EBADF        fd is not open, or was opened with O_PATH.
 *   ENOTSOCK     fd is not a socket.
 *   ENOPROTOOPT  fd is a socket, but not TCP.
 *   EOPNOTSUPP   this kernel does not have the option for this socket: any user_timeout, 0 too, on an MPTCP
 *                socket that has not fallen back to TCP.
 *   What a security policy answers, as EPERM.
 * After a failure keepalive is on or off as it was. If it was on, its timers are as they were, with one exception:
 * one that followed a sysctl stays at that value, or keeps the new one where the sysctl's cannot be set. If it was
 * off, idle, intvl and cnt, dormant then, may have changed; user_timeout, which rules data whether keepalive is on
 * or off, has not.
 *
 * Thread-safe, async-signal-safe, fork-safe. Two threads that set different things on one socket at once leave
 * a mixture.
 * Since 0.1.0.
 */
int ka_apply(int fd,
             const struct ka_config *config);

/**
 * Gets the keepalive settings that are in force.
 *
 *   fd      a TCP or MPTCP socket in any state.
 *   config  receives the settings. Its size must be set (KA_CONFIG_INIT). keepalive is KA_ON or KA_OFF.
 *           user_timeout is KA_NONE if there is none, and KA_KEEP if the kernel cannot report it (MPTCP that has
 *           not fallen back to TCP). A timer that no program has set has the value of its sysctl.
 *
 * ka_apply accepts the result and sets the same again, with one exception: a sysctl may hold a value that no
 * program can set on a socket. ka_apply then fails with EINVAL for 86400. For 0 and -1 the timer is KA_KEEP here.
 *
 * Returns 0, or -1 with errno: EINVAL (config is NULL, or its size is not a multiple of 4 from 8 up), EBADF,
 * ENOTSOCK, ENOPROTOOPT or EOPNOTSUPP, as ka_apply. After a failure *config is as it was.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_query(int fd,
             struct ka_config *config);

/**
 * Gets the settings of a new socket of the calling thread's network namespace.
 *
 * keepalive is KA_OFF, user_timeout is KA_NONE, and the timers are those of the sysctls net.ipv4.tcp_keepalive_time,
 * _intvl and _probes. A sysctl may hold a value that no program can set on a socket, such as 86400. For 0 and -1 the
 * timer is KA_KEEP.
 *
 *   config  receives the settings. Its size must be set (KA_CONFIG_INIT).
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
 *   text    one of two forms. Blanks and line ends around an item are ignored. Values that are not named are
 *           KA_KEEP.
 *             - Three values, idle, intvl and cnt, with commas or colons between them: "60,10,5", "1m:10s:5".
 *             - Items with commas between them, in any order and each at most once: "idle=", "intvl=", "cnt="
 *               and "user_timeout=" with a value, and one of "on", "off" and "keep" for keepalive. Without one
 *               of these three, keepalive is KA_ON. "idle=5m, intvl=30s, user_timeout=auto".
 *           A value is decimal digits without leading zeros. A time may have a unit: ms, s, m, h or d. Without
 *           a unit, idle and intvl are seconds and user_timeout is milliseconds. idle and intvl must be whole
 *           seconds. cnt has no unit. "user_timeout=auto" is KA_AUTO. "user_timeout=none" and
 *           "user_timeout=0" are KA_NONE.
 *   config  where to put it; its size must be set (KA_CONFIG_INIT).
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       an argument is NULL; config's size is not a multiple of 4 from 8 up; the text has another form;
 *                idle or intvl is not whole seconds; "user_timeout=auto" would be more than 2147483647.
 *   ERANGE       the form is right, but a number is out of its range.
 * ka_explain has the reason in words.
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
 * Explains why ka_parse rejects a text, for a message to the person who wrote it.
 *
 * The message names the wrong item and describes a valid one: "\"cnt=0\": cnt must be 1..127 probes". It has no
 * line end, and only printable ASCII characters: others in the text are written as escapes.
 *
 *   text     the text that ka_parse has rejected.
 *   message  receives the message and a NUL, as snprintf(3): at most size bytes in all. A longer message is cut off.
 *            May be NULL if size is 0.
 *   size     the bytes of message.
 *
 * Returns the length of the whole message without its NUL (size or more: it was cut off), 0 with an empty message if
 * ka_parse accepts the text, or -1 with errno:
 *   EINVAL       text is NULL; message is NULL and size is not 0.
 * After a failure the message is unchanged.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_explain(const char *text,
               char *message,
               size_t size);

/**
 * Works out a policy that knows of a dead peer within so many milliseconds, however late the kernel's timers
 * are, after up to three probes.
 *
 *   within_ms  ms, 2274 or more.
 *   config     where to put it; its size must be set (KA_CONFIG_INIT). keepalive is KA_ON, and user_timeout KA_KEEP:
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
 *   config       where to put it; its size must be set (KA_CONFIG_INIT). keepalive is KA_ON, and user_timeout
 *                KA_KEEP.
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
 *   name    one of these. The number is the default idle timeout in seconds; ka_plan_path(3) names its source. If an
 *           operator has changed it, use ka_plan_path.
 *            alibaba-nlb            900
 *            aws-gwlb               350
 *            aws-nat                350
 *            aws-network-firewall   350
 *            aws-nitro-v6           350
 *            aws-nlb                350
 *            azure-firewall         240
 *            azure-lb               240
 *            azure-nat              240
 *            cisco-asa             3600
 *            f5-fastl4              300
 *            fortigate             3600
 *            gcp-nat               1200
 *            gcp-vpc                600
 *            juniper-srx           1800
 *            linux-ipvs             900
 *            oci-nlb                360
 *            paloalto              3600
 *            rfc5382               7440
 *   config  where to put it; its size must be set (KA_CONFIG_INIT). keepalive is KA_ON, and user_timeout KA_KEEP.
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
int ka_plan_preset(const char *name,
                   struct ka_config *config);

/**
 * Computes how long a policy needs to find a dead peer.
 *
 *   config      keepalive is KA_ON, and idle, intvl and cnt are named. If there is a user_timeout, the connection
 *               ends at the first probe that is due when the timeout is over, but not before one interval after
 *               the first probe. cnt then has no effect.
 *   typical_ms  receives the milliseconds from the last packet of the peer, if no timer is late: 1000 * (idle +
 *               intvl * cnt).
 *   worst_ms    receives the milliseconds in the worst case. The peer dies right after it has answered a probe,
 *               and the next probe comes after intvl, if that is longer than idle: an answer does not shorten the
 *               timer that its probe has started (tcp_keepalive_timer). Each timer is late by an eighth and a
 *               tick, as the kernel's timer wheel allows.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       an argument is NULL; ka_apply would refuse the config with EINVAL; keepalive is not KA_ON; idle,
 *                intvl or cnt is KA_KEEP.
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
 *   key_size  how many bytes it has, 16 or more; 32 random ones are best. HMAC (RFC 2104) pads a key of up to 64 bytes
 *             with zeros, so keys that differ only in zero bytes at their end are the same key.
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
 *   key_size       how many bytes it has, 16 or more. ka_beat_sign says which keys are the same.
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
} /* extern "C" */
#endif /* __cplusplus */

#endif  /* KA_H */
