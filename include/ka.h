/*
 * ka.h - TCP keepalive that works. Link with -lka.
 *
 * A peer that loses power says nothing. A NAT or a load balancer that forgets an idle connection says nothing
 * either. TCP keepalive detects the dead peer and keeps the idle connection from being forgotten. Linux has it off
 * by default; when it is turned on, the first probe comes after two hours. Instead of
 *
 *     setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, ...) and three more
 *
 * a program calls
 *
 *     if (ka_enable(fd, 60, 10, 5) != 0)
 *         perror("ka_enable");
 *
 * The kernel then sends the first probe after 60 s without traffic, and further probes every 10 s. After five
 * unanswered probes it ends the connection, and read(2) fails with ETIMEDOUT. If fd is a listener, the connections
 * that it accepts inherit these settings.
 *
 * Keepalive proves only that the peer's kernel is alive. It proves neither that the peer's program is alive, nor that
 * the peer is a client of yours. ka_reaper_* finds the connections that have become silent. ka_beat_* is a signed
 * heartbeat, which only a client of yours can send.
 *
 * Errors. Most functions return -1 and set errno on failure, and return 0 or a non-negative value on success. Functions
 * that create an object return it, or NULL with errno set. ka_reaper_next has one more result: it returns -1 and leaves
 * errno unchanged if the reaper has no connection. A successful call leaves errno unchanged. A failed call does
 * not write its outputs, and never turns keepalive on or off. The comment of each function describes the state after a
 * failure. Arguments are checked before the descriptor. A NULL pointer is EINVAL, unless the comment allows NULL. A
 * security policy (LSM, seccomp, BPF) can make every function that takes a socket fail with another error, for example
 * EPERM.
 *
 * Threads and signals. All functions except ka_reaper_* allocate no memory, never wait for a lock, write no log and
 * keep no state, except that ka_probe keeps a record of the sockets that are being probed. Any thread, a signal
 * handler, and the child of fork(2) may call them. They use at most 1024 bytes of stack on x86-64; ka_beat_sign and
 * ka_beat_verify use 2.5 KiB. A reaper uses memory of malloc(3). Only one thread at a time may use a reaper, and no
 * signal handler may use it.
 *
 * Versions. struct ka_config and struct ka_status begin with their size in bytes, and a later version may add fields at
 * their end. KA_CONFIG_INIT, KA_CONFIG and KA_STATUS_INIT set size to the size of the struct in the program's header.
 * The library accepts structs of older and newer headers:
 *   - If size is smaller than the library's struct, input functions read the missing fields as 0, which means KA_KEEP.
 *     Output functions do not write the missing fields.
 *   - If size is larger, output functions leave the extra fields unchanged. Input functions fail with E2BIG unless each
 *     extra field is 0 or KA_KEEP.
 * A size that is below 8 or not a multiple of 4 is EINVAL. Input functions fail with E2BIG if size is above 4096.
 *
 * This file is generated: `make header` writes it from the comments in src/.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */

#ifndef KA_H
#define KA_H

#include <stddef.h>
#include <stdint.h>

/**
 * The version of this header. ka_version and ka_version_number return the version of the library that runs.
 */
#define KA_VERSION "0.2.0"
#define KA_VERSION_MAJOR 0
#define KA_VERSION_MINOR 2
#define KA_VERSION_PATCH 0
#define KA_VERSION_NUMBER (1000000 * KA_VERSION_MAJOR + 1000 * KA_VERSION_MINOR + KA_VERSION_PATCH)

/**
 * Initialise a struct ka_config that changes nothing: struct ka_config config = KA_CONFIG_INIT;
 */
#define KA_CONFIG_INIT { sizeof(struct ka_config), KA_KEEP, KA_KEEP, KA_KEEP, KA_KEEP, KA_KEEP, KA_KEEP }

#if defined(__STDC_VERSION__) && __STDC_VERSION__ >= 199901L
/**
 * Create a struct ka_config that sets these fields and changes nothing else (C99):
 *
 *     ka_apply(fd, &KA_CONFIG(.keepalive = KA_ON, .idle = 60, .intvl = 10, .cnt = 5));
 */
#define KA_CONFIG(...) ((struct ka_config){ .size = sizeof(struct ka_config), __VA_ARGS__ })
#endif

/**
 * Initialise a struct ka_status for ka_get_status: struct ka_status status = KA_STATUS_INIT;
 */
#define KA_STATUS_INIT { sizeof(struct ka_status), 0, 0, 0, 0, 0, 0, 0, 0 }


/**
 * Bit in the result of ka_enable_lenient: the idle time is not as requested.
 */
#define KA_MISSED_IDLE 1

/**
 * Bit in the result of ka_enable_lenient: the interval is not as requested.
 */
#define KA_MISSED_INTVL 2

/**
 * Bit in the result of ka_enable_lenient: the count is not as requested.
 */
#define KA_MISSED_CNT 4

/**
 * Bit in the result of ka_enable_lenient: the socket is neither TCP nor MPTCP.
 */
#define KA_MISSED_TCP 8

/**
 * Leaves this value unchanged. In struct ka_config, 0 means the same.
 */
#define KA_KEEP (-1)

/**
 * For user_timeout: 1000 * (idle + intvl * cnt) milliseconds. For rto_max: the largest value with which a dead peer is
 * detected within that time while data is unacknowledged, or KA_RTO_MAX_MIN if no value is small enough
 * (ka_set_rto_max). Both are computed when the call is made, from the values that are then in force. Later changes of
 * idle, intvl and cnt do not update them.
 */
#define KA_AUTO (-2)

/**
 * For user_timeout only: removes the user timeout.
 */
#define KA_NONE (-3)

/**
 * For keepalive only: turns it on.
 */
#define KA_ON 1

/**
 * For keepalive only: turns it off.
 */
#define KA_OFF 2

/**
 * The longest idle time, in seconds. MAX_TCP_KEEPIDLE of the kernel
 */
#define KA_IDLE_MAX 32767

/**
 * The longest interval between probes, in seconds. MAX_TCP_KEEPINTVL of the kernel
 */
#define KA_INTVL_MAX 32767

/**
 * The largest number of probes. MAX_TCP_KEEPCNT of the kernel
 */
#define KA_CNT_MAX 127

/**
 * The lower limit of rto_max, in milliseconds. do_tcp_setsockopt of the kernel
 */
#define KA_RTO_MAX_MIN 1000

/**
 * The upper limit of rto_max, in milliseconds. TCP_RTO_MAX_SEC of the kernel
 */
#define KA_RTO_MAX_MAX 120000

/**
 * The size of a nonce, in bytes.
 */
#define KA_BEAT_NONCE_SIZE 16

/**
 * The size of a heartbeat frame on the wire, in bytes.
 */
#define KA_BEAT_SIZE 56

/**
 * Records when each connection was last active, and finds the connections that have been inactive for too long.
 *
 * Keepalive proves only that the peer's kernel is alive. A reaper also finds a peer whose program hangs, and a
 * stranger that connects and never sends anything.
 *
 * A reaper knows a connection by its descriptor number, and makes no system call on it. So it works with epoll, poll,
 * io_uring, libuv and libevent. The program decides which events are activity, for example a complete message, and
 * calls ka_reaper_touch for them. All connections of a reaper have the same timeout: use one reaper for each timeout.
 *
 * Times are in milliseconds, on a clock that the program chooses, for example CLOCK_MONOTONIC. The clock of a reaper
 * is the latest now_ms that ka_reaper_touch or ka_reaper_expired has received. It never goes backward: if a call
 * passes an earlier now_ms, the reaper uses the latest one instead.
 *
 * Memory: 16 bytes per connection if the descriptor numbers are dense, as the kernel assigns them. It is allocated in
 * pages of 256 numbers (4 KiB). When the last connection of a page is removed, the page is given back to malloc(3),
 * except one spare page. A number far from all others costs 8 KiB. There is also a directory of 16 bytes for each
 * 65536 numbers, at most 512 KiB (for INT_MAX). Only the used parts of the directory take memory, and it stays until
 * ka_reaper_free. Memory is the only limit on the number of connections.
 *
 * Only one thread at a time may use a reaper, and no signal handler may use it. Different reapers are independent.
 */
struct ka_reaper;

/**
 * A keepalive policy, or the settings that are in force on a socket.
 *
 * Create it with KA_CONFIG_INIT or KA_CONFIG. In each field 0 means the same as KA_KEEP, so a struct that is all zero
 * except for its size changes nothing. Functions that fill the struct never write 0.
 *
 * A later version may add fields at the end. The size tells the library which fields the caller has (see Versions).
 */
struct ka_config {
    /**
     * sizeof(struct ka_config). KA_CONFIG_INIT and KA_CONFIG set it.
     */
    uint32_t size;
    /**
     * KA_ON, KA_OFF or KA_KEEP. SO_KEEPALIVE
     */
    int32_t keepalive;
    /**
     * Idle time before the first probe, in seconds: 1..KA_IDLE_MAX or KA_KEEP. TCP_KEEPIDLE
     */
    int32_t idle;
    /**
     * Time from an unanswered probe to the next, in seconds: 1..KA_INTVL_MAX or KA_KEEP. TCP_KEEPINTVL
     */
    int32_t intvl;
    /**
     * Unanswered probes that end the connection: 1..KA_CNT_MAX or KA_KEEP. TCP_KEEPCNT
     */
    int32_t cnt;
    /**
     * Time that data or probes may stay unacknowledged, in milliseconds: 1..2147483647, KA_KEEP, KA_AUTO or KA_NONE.
     * TCP_USER_TIMEOUT
     */
    int32_t user_timeout;
    /**
     * Longest time between two retransmissions, in milliseconds: KA_RTO_MAX_MIN..KA_RTO_MAX_MAX, KA_KEEP or KA_AUTO.
     * TCP_RTO_MAX_MS. Since 0.2.0.
     */
    int32_t rto_max;
};

/**
 * The state of a connection: a part of TCP_INFO, tcp(7).
 *
 * A later version may add fields at the end, as in ka_config. For an MPTCP socket this is the state of the first
 * subflow. The times of a listener, and of a socket that has never connected, have no meaning.
 */
struct ka_status {
    /**
     * sizeof(struct ka_status). KA_STATUS_INIT sets it.
     */
    uint32_t size;
    /**
     * TCP_ESTABLISHED (1) to TCP_CLOSING (11) of netinet/tcp.h.
     */
    uint32_t state;
    /**
     * Unanswered keepalive probes, or unanswered probes of a closed window.
     */
    uint32_t probes;
    /**
     * The number of times in a row that the oldest data in flight has been retransmitted without an acknowledgement.
     */
    uint32_t retransmits;
    /**
     * Segments in flight. While there are any, the kernel sends no keepalive probe. 0 for a listener.
     */
    uint32_t unacked;
    /**
     * Time since the last acknowledgement was received, of data or of a probe, in milliseconds.
     */
    uint32_t last_ack_ms;
    /**
     * Time since data was last received, in milliseconds.
     */
    uint32_t last_recv_ms;
    /**
     * Time since data was last sent, in milliseconds. Probes are not data.
     */
    uint32_t last_send_ms;
    /**
     * Smoothed round-trip time, in microseconds.
     */
    uint32_t rtt_us;
};

/**
 * A heartbeat: a message that only a client with the key can make, valid for one connection and one use.
 *
 * It lets the server tell a client from a stranger and from a replay. It does not replace TLS: it protects nothing
 * else on the connection, and an attacker between the client and the server can forward it.
 *
 * The server first sends a nonce to each connection: KA_BEAT_NONCE_SIZE raw bytes, different for each connection. For
 * each beat the client sends KA_BEAT_SIZE bytes. All numbers are big-endian:
 *
 *   offset  size      content
 *    0       4 bytes  "KABT"
 *    4       1 byte   version, 1
 *    5       3 bytes  zero
 *    8       8 bytes  client
 *   16       8 bytes  sequence
 *   24      32 bytes  HMAC-SHA-256 of the nonce and the 24 bytes before
 */
struct ka_beat {
    /**
     * The number of the client. It selects the key.
     */
    uint64_t client;
    /**
     * 1 for the first beat of a connection, and higher for each later beat.
     */
    uint64_t sequence;
};

#ifdef __cplusplus
extern "C" {
#endif /* __cplusplus */

/**
 * Turn keepalive on with these timers.
 *
 * If a value is out of range, the call fails with EINVAL and changes nothing. A server that needs keepalive even if
 * a timer cannot be set calls ka_enable_lenient instead.
 *
 *   fd     a TCP or MPTCP socket in any state. Connections inherit the settings that their listener has at the time
 *          of the handshake. So a server sets its listener once, and does not call this for each connection.
 *   idle   seconds, 1..KA_IDLE_MAX: how long the connection is idle before the first probe. Received data and
 *          received acknowledgements restart this time. Sending does not restart it, but the acknowledgement of
 *          the sent data does. TCP_KEEPIDLE
 *   intvl  seconds, 1..KA_INTVL_MAX: the time from an unanswered probe to the next. Use a value that is not longer
 *          than idle. A longer intvl is also the time from an answered probe to the next, and detection can take
 *          intvl - idle seconds longer. TCP_KEEPINTVL
 *   cnt    probes, 1..KA_CNT_MAX: the kernel ends the connection after this many unanswered probes. TCP_KEEPCNT
 *
 * KA_KEEP leaves a timer unchanged. On a new socket each timer follows its sysctl: net.ipv4.tcp_keepalive_time
 * (7200 s by default), tcp_keepalive_intvl (75 s) and tcp_keepalive_probes (9). For example, after
 * ka_enable(fd, 30, KA_KEEP, KA_KEEP) a new socket has an interval of 75 s, which is longer than its idle time.
 *
 * A dead peer is detected idle + intvl * cnt seconds after its last packet, or up to about an eighth later.
 * ka_detect_time calculates both times. The socket then becomes readable, and read(2) fails with one of these errors:
 *   ETIMEDOUT    nothing has answered.
 *   EHOSTUNREACH, ENETUNREACH
 *                data was in flight, and the network reported this error. The kernel ignores such reports for probes.
 *   ECONNRESET   the peer has restarted, and has answered a probe with a reset.
 * While sent data is unacknowledged, the kernel sends no probes: see ka_set_rto_max.
 *
 * If keepalive is off, this function sets the timers first and turns keepalive on last, so that no probe is sent
 * early. This takes 5 system calls with all three values given, and 4 if all are KA_KEEP. If keepalive is on, the
 * function writes only values that differ, so it may be called repeatedly, at any rate.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       a value is out of its range. 0 is out of range.
 *   EBADF        fd is not open, or was opened with O_PATH.
 *   ENOTSOCK     fd is not a socket.
 *   ENOPROTOOPT  fd is a socket, but neither TCP nor MPTCP: UDP, unix, raw, netlink, vsock.
 *   EOPNOTSUPP   this kernel does not have the option for this socket.
 *   others       the error of a security policy, for example EPERM.
 * After a failure keepalive is on or off as before the call. If it is on, the timers have their old values, with one
 * exception: a timer that followed its sysctl can be left fixed at the sysctl's value, or at your new value if the
 * sysctl's value cannot be set on a socket. If it is off, the timers may have changed. This has no effect until
 * keepalive is turned on.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_enable(int fd,
              int idle,
              int intvl,
              int cnt);

/**
 * Turn keepalive on even if a timer cannot be set, and report the timers that are not as requested.
 *
 * This function replaces setsockopt(2) calls whose results a server ignores. A bad value or an old kernel then costs
 * the server a timer, but not keepalive, and the server can log which timer. A server that prefers to stop on a
 * mistake calls ka_enable.
 *
 *   fd     any socket. A socket that is neither TCP nor MPTCP is left unchanged.
 *   idle   seconds, up to KA_IDLE_MAX. TCP_KEEPIDLE
 *   intvl  seconds, up to KA_INTVL_MAX. TCP_KEEPINTVL
 *   cnt    probes, up to KA_CNT_MAX. TCP_KEEPCNT
 *
 * A value below 1 leaves the timer unchanged. On a new socket such a timer follows its sysctl. A value above the
 * maximum sets the maximum. Keepalive is turned on last.
 *
 * Returns 0 if every timer is as requested. Otherwise returns the sum of these bits:
 *   KA_MISSED_IDLE, KA_MISSED_INTVL, KA_MISSED_CNT
 *                keepalive is on, but this value was above the maximum, or the kernel rejected it.
 *   KA_MISSED_TCP
 *                the socket is neither TCP nor MPTCP (UDP, unix, raw, netlink, vsock).
 * Or returns -1 with errno:
 *   EBADF        fd is not open, or was opened with O_PATH.
 *   ENOTSOCK     fd is not a socket.
 *   others       the error of SO_KEEPALIVE, for example EPERM from a security policy.
 * After a failure keepalive is on or off as before the call. The timers may have changed.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_enable_lenient(int fd,
                      int idle,
                      int intvl,
                      int cnt);

/**
 * Turn keepalive off. The timers keep their values, and ka_enable with KA_KEEP uses them again.
 *
 *   fd     a TCP or MPTCP socket in any state.
 *
 * Returns 0, even if keepalive was off already, or -1 with errno:
 *   EBADF        fd is not open, or was opened with O_PATH.
 *   ENOTSOCK     fd is not a socket.
 *   ENOPROTOOPT  fd is a socket, but neither TCP nor MPTCP.
 *   others       the error of a security policy, for example EPERM.
 * After a failure the socket is unchanged.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_disable(int fd);

/**
 * Test whether keepalive is on.
 *
 * Unlike getsockopt(2) with SO_KEEPALIVE, this function fails on UDP and unix sockets.
 *
 *   fd     a TCP or MPTCP socket in any state.
 *
 * Returns 1 if keepalive is on, 0 if it is off, or -1 with errno:
 *   EBADF        fd is not open, or was opened with O_PATH.
 *   ENOTSOCK     fd is not a socket.
 *   ENOPROTOOPT  fd is a socket, but neither TCP nor MPTCP.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_is_enabled(int fd);

/**
 * Get the idle time before the first probe. Keepalive may be on or off.
 *
 *   fd       a TCP or MPTCP socket in any state.
 *   seconds  receives the value in force. If it has not been set on this socket, this is the value of the sysctl
 *            net.ipv4.tcp_keepalive_time. A sysctl may hold a value that cannot be set on a socket, for example
 *            86400, 0 or -1.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       seconds is NULL.
 *   EBADF        fd is not open, or was opened with O_PATH.
 *   ENOTSOCK     fd is not a socket.
 *   ENOPROTOOPT  fd is a socket, but neither TCP nor MPTCP.
 *   EOPNOTSUPP   this kernel does not have the option for this socket.
 * After a failure *seconds is unchanged.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_get_idle(int fd,
                int *seconds);

/**
 * Get the time from one unanswered probe to the next. Keepalive may be on or off.
 *
 *   fd       a TCP or MPTCP socket in any state.
 *   seconds  receives the value in force. If it has not been set on this socket, this is the value of the sysctl
 *            net.ipv4.tcp_keepalive_intvl.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       seconds is NULL.
 *   EBADF        fd is not open, or was opened with O_PATH.
 *   ENOTSOCK     fd is not a socket.
 *   ENOPROTOOPT  fd is a socket, but neither TCP nor MPTCP.
 *   EOPNOTSUPP   this kernel does not have the option for this socket.
 * After a failure *seconds is unchanged.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_get_intvl(int fd,
                 int *seconds);

/**
 * Get the number of unanswered probes that end the connection. Keepalive may be on or off.
 *
 *   fd      a TCP or MPTCP socket in any state.
 *   probes  receives the value in force. If it has not been set on this socket, this is the value of the sysctl
 *           net.ipv4.tcp_keepalive_probes.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       probes is NULL.
 *   EBADF        fd is not open, or was opened with O_PATH.
 *   ENOTSOCK     fd is not a socket.
 *   ENOPROTOOPT  fd is a socket, but neither TCP nor MPTCP.
 *   EOPNOTSUPP   this kernel does not have the option for this socket.
 * After a failure *probes is unchanged.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_get_cnt(int fd,
               int *probes);

/**
 * Get the user timeout: how long sent data or keepalive probes may stay unacknowledged. TCP_USER_TIMEOUT
 *
 *   fd            a TCP socket in any state.
 *   milliseconds  receives the time. 0 means that there is no user timeout, and the kernel's own limits apply:
 *                 net.ipv4.tcp_retries2 for data, cnt for probes.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       milliseconds is NULL.
 *   EBADF        fd is not open, or was opened with O_PATH.
 *   ENOTSOCK     fd is not a socket.
 *   ENOPROTOOPT  fd is a socket, but neither TCP nor MPTCP.
 *   EOPNOTSUPP   fd is an MPTCP socket that has not fallen back to TCP: the kernel cannot report the value.
 * After a failure *milliseconds is unchanged.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_get_user_timeout(int fd,
                        int *milliseconds);

/**
 * Set the user timeout: how long sent data or keepalive probes may stay unacknowledged. TCP_USER_TIMEOUT, RFC 5482
 *
 * While sent data is unacknowledged, the kernel sends no keepalive probes. If the peer dies during that time, the
 * kernel detects it only when it stops retransmitting (after about 15 minutes) or when the user timeout expires.
 * ka_set_rto_max shortens the retransmissions instead. A user timeout also has two other effects, which rto_max does
 * not have:
 *   - On an idle connection it replaces cnt: the connection ends at the first probe time that is at or after the
 *     timeout.
 *   - It ends a connection to a healthy peer that keeps its window closed for that long.
 *
 *   fd            a TCP socket in any state.
 *   milliseconds  one of these:
 *                 1..2147483647  the user timeout.
 *                 0 or KA_NONE   removes the user timeout.
 *                 KA_AUTO        sets 1000 * (idle + intvl * cnt), computed from the values in force when the call is
 *                                made. Later changes do not update it. A busy connection to a dead peer then ends
 *                                after the same time as an idle one.
 *                 KA_KEEP        changes nothing.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       milliseconds is out of range, or the value of KA_AUTO would not be in 1..2147483647.
 *   EBADF        fd is not open, or was opened with O_PATH.
 *   ENOTSOCK     fd is not a socket.
 *   ENOPROTOOPT  fd is a socket, but neither TCP nor MPTCP.
 *   EOPNOTSUPP   fd is an MPTCP socket that has not fallen back to TCP, and milliseconds is not KA_KEEP.
 *   others       the error of a security policy, for example EPERM.
 * After a failure the socket is unchanged.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_set_user_timeout(int fd,
                        int milliseconds);

/**
 * Get the longest time between two retransmissions of unacknowledged data. TCP_RTO_MAX_MS
 *
 *   fd            a TCP socket in any state.
 *   milliseconds  receives the value in force. If it has not been set on this socket, this is the value that the sysctl
 *                 net.ipv4.tcp_rto_max_ms had when the socket was created, 120000 by default.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       milliseconds is NULL.
 *   EBADF        fd is not open, or was opened with O_PATH.
 *   ENOTSOCK     fd is not a socket.
 *   ENOPROTOOPT  fd is a socket, but neither TCP nor MPTCP.
 *   EOPNOTSUPP   the kernel is older than Linux 6.15, or fd is an MPTCP socket that has not fallen back to TCP.
 * After a failure *milliseconds is unchanged.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.2.0.
 */
int ka_get_rto_max(int fd,
                   int *milliseconds);

/**
 * Set the longest time between two retransmissions of unacknowledged data. TCP_RTO_MAX_MS
 *
 * While sent data is unacknowledged, the kernel sends no keepalive probes. If the peer dies during that time, the
 * kernel retransmits the data, and doubles the time between two retransmissions up to rto_max. It ends the connection
 * after the time that net.ipv4.tcp_retries2 retransmissions take. With the defaults (120000 ms, 15) this is about 15
 * minutes; with an rto_max of 2000 it is 27 s. ka_data_time calculates this time. If data is already unacknowledged, a
 * new rto_max takes effect when the next retransmission is due.
 *
 * Unlike a user timeout, rto_max has no effect on an idle connection, and does not end a connection to a healthy peer
 * that keeps its window closed. While the window is closed, the kernel sends window probes more often. On a path that
 * loses most packets, the connection ends earlier than without rto_max.
 *
 *   fd            a TCP socket in any state. Accepted sockets inherit the value of their listener.
 *   milliseconds  one of these:
 *                 KA_RTO_MAX_MIN..KA_RTO_MAX_MAX
 *                          the longest time. The kernel rounds it up to a multiple of its tick, at most 10 ms.
 *                 KA_AUTO  sets the largest value with which the typical time of ka_data_time is at most
 *                          1000 * (idle + intvl * cnt), or KA_RTO_MAX_MIN if no value is small enough. It is computed
 *                          from the values in force and net.ipv4.tcp_retries2 when the call is made (15 if the sysctl
 *                          cannot be read). Later changes do not update it.
 *                 KA_KEEP  changes nothing.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       milliseconds is out of range. 0 and KA_NONE are out of range.
 *   EBADF        fd is not open, or was opened with O_PATH.
 *   ENOTSOCK     fd is not a socket.
 *   ENOPROTOOPT  fd is a socket, but neither TCP nor MPTCP.
 *   EOPNOTSUPP   the kernel is older than Linux 6.15, or fd is an MPTCP socket, even one that has fallen back to TCP;
 *                and milliseconds is not KA_KEEP.
 *   others       the error of a security policy, for example EPERM.
 * After a failure the socket is unchanged.
 *
 * Thread-safe, async-signal-safe, fork-safe. KA_AUTO uses a descriptor (close-on-exec) while the function runs.
 * Since 0.2.0.
 */
int ka_set_rto_max(int fd,
                   int milliseconds);

/**
 * Apply a policy: set every field of config that is neither KA_KEEP nor 0.
 *
 *   fd      a TCP or MPTCP socket in any state.
 *   config  the policy. Create it with KA_CONFIG_INIT or KA_CONFIG.
 *
 * The order of the writes depends on the state of the socket:
 *   - If keepalive is off and the policy turns it on, the timers are set first. So no probe is sent early.
 *   - If keepalive is on, only values that differ are written. If intvl or cnt changes, idle is written after them,
 *     because only a write of idle re-arms the running timer. If idle is KA_KEEP, the value in force is written, and
 *     idle no longer follows its sysctl. If that value cannot be set on a socket, it is not written.
 *   - If keepalive is on and the policy turns it off, it goes off before the timers are set.
 *
 * Returns 0, or -1 with errno. Arguments are checked first, then the descriptor, then KA_AUTO:
 *   EINVAL       config is NULL; its size is below 8 or not a multiple of 4; a value is out of its range; the value
 *                of KA_AUTO would not be in 1..2147483647.
 *   E2BIG        config is larger than this library's struct, and an extra field is neither 0 nor KA_KEEP; or its
 *                size is more than 4096.
 *   EBADF        fd is not open, or was opened with O_PATH.
 *   ENOTSOCK     fd is not a socket.
 *   ENOPROTOOPT  fd is a socket, but neither TCP nor MPTCP.
 *   EOPNOTSUPP   this kernel does not have the option for this socket. An MPTCP socket that has not fallen back to
 *                TCP accepts no user_timeout, not even KA_NONE. An MPTCP socket accepts no rto_max, except the value
 *                that ka_query returns for it. No socket accepts rto_max before Linux 6.15.
 *   others       the error of a security policy, for example EPERM.
 * After a failure keepalive is on or off as before the call. user_timeout and rto_max, which govern sent data even if
 * keepalive is off, have their old values. If keepalive is on, idle, intvl and cnt also have their old values, with
 * one exception: a timer that followed its sysctl can be left fixed at the sysctl's value, or at your new value if the
 * sysctl's value cannot be set on a socket. If keepalive is off, idle, intvl and cnt may have changed. This has no
 * effect until keepalive is turned on.
 *
 * Thread-safe, async-signal-safe, fork-safe. If two threads apply different policies to one socket at the same time,
 * the socket can be left with a mixture of them. An rto_max of KA_AUTO uses a descriptor (close-on-exec) while the
 * function runs.
 * Since 0.1.0.
 */
int ka_apply(int fd,
             const struct ka_config *config);

/**
 * Get the keepalive settings that are in force.
 *
 *   fd      a TCP or MPTCP socket in any state.
 *   config  receives the settings. Its size must be set (KA_CONFIG_INIT). keepalive is KA_ON or KA_OFF. A timer that
 *           has not been set on this socket has the value of its sysctl. user_timeout is KA_NONE if there is none,
 *           and KA_KEEP if the kernel cannot report it (MPTCP that has not fallen back to TCP). rto_max is KA_KEEP on
 *           such an MPTCP socket, before Linux 6.15, and if a security policy forbids reading it.
 *
 * ka_apply accepts the result and sets the same values again, unless a sysctl holds a value that cannot be set on a
 * socket. A sysctl of 0 or -1 is reported as KA_KEEP. ka_apply rejects other such values, for example 86400, with
 * EINVAL.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       config is NULL, or its size is below 8 or not a multiple of 4.
 *   EBADF        fd is not open, or was opened with O_PATH.
 *   ENOTSOCK     fd is not a socket.
 *   ENOPROTOOPT  fd is a socket, but neither TCP nor MPTCP.
 *   EOPNOTSUPP   this kernel does not have the option for this socket.
 * After a failure *config is unchanged.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_query(int fd,
             struct ka_config *config);

/**
 * Get the settings of a new socket in the calling thread's network namespace.
 *
 *   config  receives the settings. Its size must be set (KA_CONFIG_INIT). keepalive is KA_OFF, and user_timeout is
 *           KA_NONE. The timers have the values of the sysctls net.ipv4.tcp_keepalive_time, tcp_keepalive_intvl and
 *           tcp_keepalive_probes. A sysctl may hold a value that cannot be set on a socket, for example 86400. A
 *           sysctl of 0 or -1 is reported as KA_KEEP. rto_max is that of net.ipv4.tcp_rto_max_ms, or KA_KEEP before
 *           Linux 6.15.
 *
 * If /proc does not show the sysctls, for example in a chroot, the function reads the timers of a new socket instead.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       config is NULL, or its size is below 8 or not a multiple of 4.
 *   EMFILE, ENFILE, ENOMEM, EACCES, EPERM, EAFNOSUPPORT
 *                /proc does not show the sysctls, and the kernel refused to create a socket: socket(2).
 * After a failure *config is unchanged.
 *
 * Thread-safe, async-signal-safe, fork-safe. Uses a descriptor (close-on-exec) while it runs.
 * Since 0.1.0.
 */
int ka_defaults(struct ka_config *config);

/**
 * Read a policy from a text, for example from a configuration file, an option or the environment.
 *
 *   text    has one of two forms. Blanks and line ends around an item are ignored. Values that are not named are
 *           KA_KEEP.
 *             - Three values, idle, intvl and cnt, with commas or colons between them: "60,10,5", "1m:10s:5".
 *             - Items with commas between them, in any order and each at most once: "idle=", "intvl=", "cnt=",
 *               "user_timeout=" and (since 0.2.0) "rto_max=" with a value, and one of "on", "off" and "keep" for
 *               keepalive. Without one of these three, keepalive is KA_ON. Example: "idle=5m, intvl=30s, rto_max=2s".
 *           A value is decimal digits without leading zeros. A time may have a unit: ms, s, m, h or d. Without
 *           a unit, idle and intvl are in seconds, and user_timeout and rto_max are in milliseconds. idle and intvl
 *           must be whole seconds. cnt has no unit. "user_timeout=auto" and "rto_max=auto" are KA_AUTO.
 *           "user_timeout=none" and "user_timeout=0" are KA_NONE.
 *   config  receives the policy. Its size must be set (KA_CONFIG_INIT).
 *
 * Returns 0, or -1 with errno. ka_explain explains the error in words:
 *   EINVAL       an argument is NULL; the size of config is below 8 or not a multiple of 4; the text has another
 *                form; idle or intvl is not whole seconds; the value of "user_timeout=auto" would be above
 *                2147483647; the text names a value that is newer than 0.1.0, such as rto_max, and config is too
 *                small for its field (ka_explain does not explain this last error, because it does not know the size).
 *   ERANGE       the form is right, but a number is out of its range.
 * After a failure *config is unchanged.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_parse(const char *text,
             struct ka_config *config);

/**
 * Write a policy as a text that ka_parse reads back to the same policy: "idle=60,intvl=10,cnt=5", "off".
 *
 * The text has neither blanks nor units. ka_parse reads a user_timeout without a unit as milliseconds. The command ka
 * and the KA_ variables reject one below 1000 without a unit, because a person could mean seconds.
 *
 *   config  a policy that ka_apply would accept.
 *   text    receives the text and a NUL, at most size bytes in all, as snprintf(3) does. A longer text is truncated.
 *           May be NULL if size is 0. 80 bytes are enough for every text of this version.
 *   size    the size of text in bytes.
 *
 * Returns the length of the whole text without its NUL. If the length is size or more, the text was truncated. Or
 * returns -1 with errno:
 *   EINVAL       config is NULL; text is NULL and size is not 0; ka_apply would reject config with EINVAL.
 *   E2BIG        ka_apply would reject config with E2BIG.
 * After a failure text is unchanged.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_format(const struct ka_config *config,
              char *text,
              size_t size);

/**
 * Explain why ka_parse rejects a text, in a message for the person who wrote the text.
 *
 * The message names the wrong item and describes a valid one: "\"cnt=0\": cnt must be 1..127 probes". It has no
 * line end, and only printable ASCII characters. Other characters of the text are written as escapes.
 *
 *   text     the text that ka_parse has rejected.
 *   message  receives the message and a NUL, at most size bytes in all, as snprintf(3) does. A longer message is
 *            truncated. May be NULL if size is 0.
 *   size     the size of message in bytes.
 *
 * Returns the length of the whole message without its NUL. If the length is size or more, the message was truncated.
 * If ka_parse accepts the text, the message is empty and the length is 0. Or returns -1 with errno:
 *   EINVAL       text is NULL; message is NULL and size is not 0.
 * After a failure message is unchanged.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_explain(const char *text,
               char *message,
               size_t size);

/**
 * Calculate a policy that detects a dead peer within a given time, even if each kernel timer is as late as possible.
 * It uses up to three probes.
 *
 *   within_ms  milliseconds, 2274 or more.
 *   config     receives the policy. Its size must be set (KA_CONFIG_INIT). keepalive is KA_ON. user_timeout and
 *              rto_max are KA_KEEP. A user timeout would replace cnt, and would end connections to healthy peers
 *              that keep their window closed.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       config is NULL, or its size is below 8 or not a multiple of 4.
 *   ERANGE       within_ms is below 2274, which is too short for any policy.
 * After a failure *config is unchanged.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_plan_detect(uint32_t within_ms,
                   struct ka_config *config);

/**
 * Calculate a policy that keeps a connection open on a path whose NAT, firewall or load balancer drops idle
 * connections.
 *
 * Two probes are sent before the path's idle timeout, so one may be lost. A timeout of 350 s gives idle 280, intvl 30
 * and cnt 5.
 *
 *   path_idle_s  seconds, 3 or more: the idle timeout of the path.
 *   config       receives the policy. Its size must be set (KA_CONFIG_INIT). keepalive is KA_ON, and user_timeout
 *                and rto_max are KA_KEEP.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       config is NULL, or its size is below 8 or not a multiple of 4.
 *   ERANGE       path_idle_s is below 3, which is too short for any policy.
 * After a failure *config is unchanged.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_plan_path(uint32_t path_idle_s,
                 struct ka_config *config);

/**
 * Calculate the policy of ka_plan_path for a middlebox whose idle timeout is published.
 *
 *   name    one of the names below. Each number is the default idle timeout in seconds. The manual page
 *           ka_plan_path(3) names its source. If an operator has changed the timeout, use ka_plan_path.
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
 *   config  receives the policy. Its size must be set (KA_CONFIG_INIT). keepalive is KA_ON, and user_timeout and
 *           rto_max are KA_KEEP.
 *
 * The list has only middleboxes that forward packets, because they count a probe as traffic. A proxy that terminates
 * the TCP connection does not count probes. Examples are AWS's Classic and Application Load Balancers.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       an argument is NULL, or the size of config is below 8 or not a multiple of 4.
 *   ENOENT       no preset has this name.
 * After a failure *config is unchanged.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_plan_preset(const char *name,
                   struct ka_config *config);

/**
 * Calculate how long a policy needs to detect a dead peer, from the last packet of the peer.
 *
 *   config      the policy. keepalive must be KA_ON, and idle, intvl and cnt must be set. If user_timeout is set, the
 *               connection ends at the first probe time that is at or after the user timeout, but not before one
 *               interval after the first probe. cnt then has no effect.
 *   typical_ms  receives the milliseconds if no timer is late. Without a user timeout this is
 *               1000 * (idle + intvl * cnt).
 *   worst_ms    receives the milliseconds in the worst case, which has two parts. First, the peer dies right after it
 *               has answered a probe. An answer does not shorten the timer that its probe has started
 *               (tcp_keepalive_timer), so the next probe comes after the longer of idle and intvl. Second, each timer
 *               is as late as the kernel's timer wheel allows: by 8/63 of its time, and a tick of 10 ms.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       an argument is NULL; ka_apply would reject config with EINVAL; keepalive is not KA_ON; idle, intvl
 *                or cnt is KA_KEEP.
 *   E2BIG        ka_apply would reject config with E2BIG.
 * After a failure *typical_ms and *worst_ms are unchanged.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_detect_time(const struct ka_config *config,
                   uint64_t *typical_ms,
                   uint64_t *worst_ms);

/**
 * Calculate how long a policy needs to detect a dead peer while sent data is unacknowledged, from the first
 * retransmission of the data.
 *
 * The kernel retransmits the data at intervals that double from 200 ms up to rto_max, and ends the connection after
 * the time that net.ipv4.tcp_retries2 retransmissions take (tcp_model_timeout). It sends no keepalive probes
 * meanwhile. keepalive, idle, intvl and cnt have no effect on this time, except through KA_AUTO.
 *
 *   config      the policy. If rto_max is KA_KEEP, the value of net.ipv4.tcp_rto_max_ms is used. If a sysctl
 *               cannot be read, 15 is used for tcp_retries2 and 120000 for tcp_rto_max_ms.
 *   typical_ms  receives the milliseconds. With a user_timeout this is the user timeout.
 *   worst_ms    receives typical_ms plus one rto_max, because the kernel checks the time only when a retransmission
 *               is due.
 *
 * Two delays are not included. The first retransmission follows the first transmission after the round-trip time and
 * 200 ms or a little more. The kernel's timers can fire late, so the last retransmission may be late by up to an
 * eighth of rto_max.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       an argument is NULL; ka_apply would reject config with EINVAL; user_timeout or rto_max is KA_AUTO,
 *                and idle, intvl or cnt is KA_KEEP.
 *   E2BIG        ka_apply would reject config with E2BIG.
 * After a failure *typical_ms and *worst_ms are unchanged.
 *
 * Thread-safe, async-signal-safe, fork-safe. Uses a descriptor (close-on-exec) while it runs.
 * Since 0.2.0.
 */
int ka_data_time(const struct ka_config *config,
                 uint64_t *typical_ms,
                 uint64_t *worst_ms);

/**
 * Get the state of a connection: unanswered probes, data in flight, and when the peer last sent something.
 *
 *   fd      a TCP or MPTCP socket in any state.
 *   status  receives the state. Its size must be set (KA_STATUS_INIT).
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       status is NULL, or its size is below 8 or not a multiple of 4.
 *   EBADF        fd is not open, or was opened with O_PATH.
 *   ENOTSOCK     fd is not a socket.
 *   ENOPROTOOPT  fd is a socket, but neither TCP nor MPTCP.
 *   EOPNOTSUPP   this kernel does not report the state of this socket.
 * After a failure *status is unchanged.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_get_status(int fd, struct ka_status *status);

/**
 * Check whether the peer of a connection is alive.
 *
 * The kernel sends one keepalive probe, and the function waits for the answer. Keepalive may be on or off. No data is
 * sent, and the peer's program does not notice the probe. For example, a connection pool checks a connection before it
 * hands the connection out. If a firewall has silently dropped the connection, only the missing answer shows this.
 *
 *   fd          a connected TCP or MPTCP socket. An MPTCP socket sends a probe on each subflow, and an answer on any
 *               of them counts. Before Linux 5.16, the answer on the first subflow counts.
 *   timeout_ms  the longest wait for the answer, in milliseconds, 0..INT_MAX. Use at least 100 more than the longest
 *               round trip. The kernel sends the probe at one of its next two ticks, which are 1 to 10 ms apart. If
 *               another thread is using the socket, the kernel sends it 50 ms later. With 0, nothing is sent, and the
 *               function only checks whether a segment has arrived within the last second.
 *
 * Returns 1 if a segment has arrived from the peer since the call began, or within the last second before the call. If
 * it arrived before the call, nothing is sent, and the call takes microseconds. The peer's kernel has sent the
 * segment. So 1 does not mean that the peer's program works: the kernel also answers for a frozen process, and a proxy
 * or a load balancer answers for itself. The peer may also have closed its side of the connection. In this case,
 * recv(2) with MSG_PEEK | MSG_DONTWAIT returns 0 after all data has been read.
 *
 * Returns 0 if nothing has arrived in time. Data that the peer has not acknowledged, or that waits for the peer's
 * window, suspends probes, so no probe is sent. The acknowledgement of the data is then the answer. If the peer keeps
 * its window closed, the kernel sends window probes at growing intervals of up to two minutes. So while the window is
 * closed, 0 does not mean that the peer is dead. ka_get_status reports data in flight.
 *
 * An unanswered probe stays in the kernel's count of unanswered probes until a segment arrives from the peer. If
 * keepalive is on and the peer stays silent, each unanswered probe can make the connection end earlier, by up to
 * intvl, but not before idle has expired. With a cnt of 1, or a user_timeout of at most idle, the connection ends when
 * idle has expired.
 *
 * Returns -1 with errno:
 *   EINVAL       timeout_ms is negative.
 *   EBADF        fd is not open, or was opened with O_PATH.
 *   ENOTSOCK     fd is not a socket.
 *   ENOPROTOOPT  fd is a socket, but neither TCP nor MPTCP.
 *   ENOTCONN     fd is a listener, or is not connected, or its connection has ended and no error is pending.
 *   ETIMEDOUT, ECONNRESET, EPIPE
 *                the connection has ended with an error, which stays pending. The kernel cannot report the error
 *                without clearing it, so errno is derived from the state of the socket. It can differ from the exact
 *                error, which getsockopt(2) with SO_ERROR returns. For example, ka_probe sets ECONNRESET instead of
 *                ECONNABORTED.
 *   EPERM        a policy in mode force or floor holds the settings of the socket: ka run --via seccomp, ka cgroup.
 *                The shim (ka run with LD_PRELOAD) does not prevent the probe.
 *   ERANGE       idle follows the sysctl net.ipv4.tcp_keepalive_time, whose value cannot be set on a socket, so
 *                idle could not be put back. Call ka_enable or ka_apply first.
 *   EMFILE       the process has no free descriptor.
 *   EOPNOTSUPP   this kernel does not have an option that is needed for this socket.
 *   others       the error of a security policy.
 * After a failure, the settings are as they were before the call.
 *
 * While the probe leaves, which takes two ticks of the kernel and at most 200 ms, keepalive is on, idle is 1 s, and
 * user_timeout is 2147483646 ms (cnt is KA_CNT_MAX on MPTCP). Then the settings are put back, also after a timeout or
 * an error. If idle followed its sysctl, it is fixed at the sysctl's value afterwards, and on MPTCP so is cnt. If
 * another thread changes the settings meanwhile, its change can be lost. If the process is killed meanwhile, and
 * another process has the socket too, the settings are not put back.
 *
 * The call blocks for at most timeout_ms. Signal handlers run, but a signal does not end the wait.
 *
 * The function uses a duplicate of fd (close-on-exec) while it runs. So if another thread closes fd, the connection
 * is closed when the function returns. A child that is forked meanwhile has the duplicate until it execs or exits.
 *
 * Thread-safe, async-signal-safe, fork-safe. If several threads probe one socket, one sends the probe, and all wait
 * for the answer. A signal handler that has interrupted ka_probe can get 0 for a peer that is alive, because it cannot
 * send a probe while the interrupted call sends one.
 * Since 0.2.0.
 */
int ka_probe(int fd,
             int timeout_ms);

/**
 * Create a reaper without connections.
 *
 *   timeout_ms  milliseconds, 1 or more. A connection is due when now_ms - (time of its last touch) >= timeout_ms.
 *
 * Returns the reaper, which ka_reaper_free frees, or NULL with errno:
 *   EINVAL       timeout_ms is 0.
 *   ENOMEM       there is not enough memory.
 * After a failure nothing is allocated.
 *
 * Thread-safe, fork-safe.
 * Since 0.1.0.
 */
struct ka_reaper *ka_reaper_new(uint32_t timeout_ms);

/**
 * Free a reaper. Its connections stay open.
 *
 *   reaper  a reaper of ka_reaper_new, which must not be used again, or NULL, which does nothing.
 *
 * Returns nothing.
 *
 * One thread at a time; fork-safe.
 * Since 0.1.0.
 */
void ka_reaper_free(struct ka_reaper *reaper);

/**
 * Record that a connection is active now. Add the connection if it is new. This takes the same time for any number of
 * connections.
 *
 *   reaper  a reaper of ka_reaper_new.
 *   fd      the descriptor of the connection, 0 or more.
 *   now_ms  the current time, in milliseconds.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       reaper is NULL.
 *   EBADF        fd is negative.
 *   ENOMEM       there is not enough memory for a new connection.
 * After a failure the reaper is unchanged.
 *
 * One thread at a time; fork-safe.
 * Since 0.1.0.
 */
int ka_reaper_touch(struct ka_reaper *reaper,
                    int fd,
                    uint64_t now_ms);

/**
 * Remove a connection. Call this before close(2). Otherwise a new connection with the same descriptor number
 * inherits the old entry.
 *
 *   reaper  a reaper of ka_reaper_new.
 *   fd      the descriptor of the connection.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       reaper is NULL.
 *   ENOENT       the reaper does not have this connection. For example, ka_reaper_expired has already removed it.
 * After a failure the reaper is unchanged.
 *
 * One thread at a time; fork-safe.
 * Since 0.1.0.
 */
int ka_reaper_forget(struct ka_reaper *reaper,
                     int fd);

/**
 * Remove connections that are due, and return their descriptors, the longest inactive first. The call takes time
 * for each connection that it removes. It does not take longer if the reaper has more connections.
 *
 *   reaper  a reaper of ka_reaper_new.
 *   now_ms  the current time, in milliseconds.
 *   fds     receives the descriptors. May be NULL if n is 0.
 *   n       the size of fds. If more connections are due, the others stay for the next call.
 *
 * Returns the number of connections removed, at most n and INT_MAX, and 0 if none is due; or -1 with errno:
 *   EINVAL       reaper is NULL; fds is NULL and n is not 0.
 * After a failure the reaper is unchanged.
 *
 * One thread at a time; fork-safe.
 * Since 0.1.0.
 */
int ka_reaper_expired(struct ka_reaper *reaper,
                      uint64_t now_ms,
                      int *fds,
                      size_t n);

/**
 * Return the time until the next connection is due, as a timeout for epoll_wait(2) or poll(2).
 *
 *   reaper  a reaper of ka_reaper_new. It is not changed: now_ms does not advance its clock.
 *   now_ms  the current time, in milliseconds.
 *
 * Returns milliseconds, at most INT_MAX, and 0 if a connection is due now. Returns -1 with errno unchanged if the
 * reaper has no connection: epoll_wait(2) and poll(2) then wait without a timeout. Or returns -1 with errno:
 *   EINVAL       reaper is NULL.
 * After a failure nothing has changed.
 *
 * One thread at a time; fork-safe.
 * Since 0.1.0.
 */
int ka_reaper_next(const struct ka_reaper *reaper,
                   uint64_t now_ms);

/**
 * Return the number of connections in a reaper.
 *
 *   reaper  a reaper of ka_reaper_new, or NULL, which has no connection.
 *
 * Returns the number. Never fails.
 *
 * One thread at a time; fork-safe.
 * Since 0.1.0.
 */
size_t ka_reaper_len(const struct ka_reaper *reaper);

/**
 * Create a random nonce for one connection.
 *
 * The bytes come from getrandom(2), or from /dev/urandom if the kernel does not have getrandom(2) (before 3.17). The
 * call waits only early after boot, until the kernel has gathered enough randomness.
 *
 *   nonce  receives KA_BEAT_NONCE_SIZE bytes.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       nonce is NULL.
 *   others       the error of the kernel: EPERM if a sandbox forbids getrandom(2); ENOENT, EMFILE or another error of
 *                open(2) if /dev/urandom was needed.
 * After a failure nonce is unchanged.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_beat_nonce(uint8_t nonce[KA_BEAT_NONCE_SIZE]);

/**
 * Create the frame of a heartbeat.
 *
 *   key       the key that the client shares with its server.
 *   key_size  the size of key in bytes, 16 or more. 32 random bytes are best. HMAC (RFC 2104) pads a key of up to 64
 *             bytes with zero bytes, so keys that differ only in zero bytes at the end are the same key.
 *   nonce     the KA_BEAT_NONCE_SIZE bytes that the server has sent.
 *   beat      the number of the client, and a sequence: 1 or more, and higher than that of the previous beat.
 *   frame     receives the KA_BEAT_SIZE bytes to send.
 *
 * The function wipes its copies of the key before it returns. The caller must wipe the key itself.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       an argument is NULL; key_size is below 16; the sequence is 0.
 * After a failure frame is unchanged.
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
 * Get the client that a frame names, so that the server can find the key. The name is not proved until
 * ka_beat_verify succeeds.
 *
 *   frame   the KA_BEAT_SIZE bytes that were received.
 *   client  receives the number of the client.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       an argument is NULL.
 *   EBADMSG      this is not a heartbeat: another magic, another version, or nonzero bytes where zeros must be.
 * After a failure *client is unchanged.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
int ka_beat_client(const uint8_t frame[KA_BEAT_SIZE],
                   uint64_t *client);

/**
 * Verify that a frame was made with this key, for the connection with this nonce, and is newer than the last one.
 *
 * The time of the MAC comparison does not depend on where the MACs differ. The sequence is checked only if the MAC is
 * right.
 *
 *   key            the key of the client that ka_beat_client has named.
 *   key_size       the size of key in bytes, 16 or more. ka_beat_sign describes which keys are the same.
 *   nonce          the KA_BEAT_NONCE_SIZE bytes that were sent to this connection.
 *   last_sequence  the sequence of the last verified beat of this connection, or 0 before the first.
 *   frame          the KA_BEAT_SIZE bytes that were received.
 *   beat           receives the client and the sequence. Pass this sequence as last_sequence next time.
 *
 * The function wipes its copies of the key before it returns. The caller must wipe the key itself.
 *
 * Returns 0, or -1 with errno:
 *   EINVAL       an argument is NULL; key_size is below 16.
 *   EBADMSG      this is not a heartbeat, or it was damaged, or made with another key or for another connection.
 *   ESTALE       this is a genuine heartbeat, but its sequence is not greater than last_sequence: a replay.
 * After a failure *beat is unchanged.
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
 * Return the version of the library that runs, for example "0.1.0". KA_VERSION is the version of the header that the
 * program was compiled with.
 *
 * Returns a string that is valid as long as the library is loaded. Never fails.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
const char *ka_version(void);

/**
 * Return the version of the library that runs, as a number to compare: 1000000 * major + 1000 * minor + patch.
 * KA_VERSION_NUMBER is that of the header that the program was compiled with.
 *
 * Returns the number. Never fails.
 *
 * Thread-safe, async-signal-safe, fork-safe.
 * Since 0.1.0.
 */
uint32_t ka_version_number(void);

#ifdef __cplusplus
} /* extern "C" */
#endif /* __cplusplus */

#endif  /* KA_H */
