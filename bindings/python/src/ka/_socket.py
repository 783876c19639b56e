"""Functions that set and get the settings of a socket."""

from __future__ import annotations

import ctypes
import enum
import errno
from dataclasses import dataclass
from typing import Optional, Protocol, SupportsIndex, Union

from . import _library as c
from ._config import (
    AUTO,
    Config,
    RtoMax,
    UserTimeout,
    empty,
    from_c,
    rejected,
    rto_max,
    timers,
    to_c,
    user_timeout,
)
from ._number import milliseconds, whole


class HasFileno(Protocol):
    """A socket, or any object with the descriptor of one."""

    def fileno(self) -> int: ...


Socket = Union[int, HasFileno]


def descriptor(sock: Socket) -> int:
    """Returns the descriptor of a socket. A closed socket has -1."""
    fileno = getattr(sock, "fileno", None)
    if fileno is None:
        if isinstance(sock, bool) or not hasattr(sock, "__index__"):
            raise TypeError(f"expected a socket, something with fileno(), or a descriptor, not {type(sock).__name__}")
        number = whole("a descriptor", sock)  # type: ignore[arg-type]
    else:
        number = whole("fileno()", fileno())
    # ctypes would truncate the number to another descriptor.
    return number if -(2**31) <= number < 2**31 else -1


def check(result: int, sock: Socket, fd: int, config: Optional[Config] = None) -> int:
    """Returns the result of a call of libka on a descriptor. Raises an exception if the call has failed."""
    if result != -1:
        return result
    number = c.last_error()
    if number == errno.EBADF:
        raise c.failure(number, f"{sock!r} is not open")
    if number == errno.ENOTSOCK:
        raise c.failure(number, f"descriptor {fd} is not a socket")
    if number == errno.ENOPROTOOPT:
        raise c.failure(number, f"descriptor {fd} is a socket, but not TCP")
    if number == errno.EOPNOTSUPP:
        why = "Multipath TCP (MPTCP) has neither user_timeout nor rto_max, and Linux before 6.15 has no rto_max"
        raise c.failure(number, f"the kernel does not have the option for descriptor {fd}; {why}")
    if number == errno.ENOTCONN:
        raise c.failure(number, f"descriptor {fd} is not connected")
    raise c.failure(number) if config is None else rejected(number, config)


def enable(sock: Socket, idle: Optional[SupportsIndex] = 60, intvl: Optional[SupportsIndex] = 10, cnt: Optional[SupportsIndex] = 6) -> None:
    """Turns keepalive on: first probe after idle seconds, then every intvl seconds, dead after cnt unanswered probes.

    sock is a TCP socket in any state, an object with fileno(), or a descriptor. Connections that a listener accepts
    inherit its settings. None leaves a value as it is. If keepalive is already on, only values that differ are written.
    """
    fd = descriptor(sock)
    check(c.LIBRARY.ka_enable(fd, *timers(idle, intvl, cnt)), sock, fd)


class Missed(enum.IntFlag):
    """The values that enable_lenient could not set as given. False if it has set all."""

    IDLE = 1
    INTVL = 2
    CNT = 4
    TCP = 8
    """The socket is not TCP, and was left unchanged."""


def enable_lenient(
    sock: Socket, idle: Optional[SupportsIndex] = 60, intvl: Optional[SupportsIndex] = 10, cnt: Optional[SupportsIndex] = 6
) -> Missed:
    """Turns keepalive on even if a timer cannot be set.

    None, and a value below 1, leaves a timer as it is. A value above the maximum is clamped. Returns the timers that
    were clamped, and those that the kernel rejected. A socket that is not TCP is left unchanged, and the result is
    Missed.TCP.
    """

    def number(name: str, value: Optional[SupportsIndex]) -> int:
        # libka clamps the value. ctypes would truncate it.
        return c.KEEP if value is None else max(c.KEEP, min(whole(name, value), 2**31 - 1))

    fd = descriptor(sock)
    mask = c.LIBRARY.ka_enable_lenient(fd, number("idle", idle), number("intvl", intvl), number("cnt", cnt))
    return Missed(check(mask, sock, fd))


def disable(sock: Socket) -> None:
    """Turns keepalive off. The timers keep their values."""
    fd = descriptor(sock)
    check(c.LIBRARY.ka_disable(fd), sock, fd)


def is_enabled(sock: Socket) -> bool:
    """Returns whether keepalive is on."""
    fd = descriptor(sock)
    return bool(check(c.LIBRARY.ka_is_enabled(fd), sock, fd))


def get_idle(sock: Socket) -> int:
    """Returns the idle time before the first probe, in seconds. On a new socket it is the value of the sysctl."""
    return get(c.LIBRARY.ka_get_idle, sock)


def get_intvl(sock: Socket) -> int:
    """Returns the time from an unanswered probe to the next, in seconds."""
    return get(c.LIBRARY.ka_get_intvl, sock)


def get_cnt(sock: Socket) -> int:
    """Returns how many unanswered probes end the connection."""
    return get(c.LIBRARY.ka_get_cnt, sock)


def get_user_timeout(sock: Socket) -> int:
    """Returns how many milliseconds sent data may stay unacknowledged. 0: there is no user timeout."""
    return get(c.LIBRARY.ka_get_user_timeout, sock)


def get_rto_max(sock: Socket) -> int:
    """Returns the longest time between two retransmissions in milliseconds. The default is the sysctl's value."""
    return get(c.LIBRARY.ka_get_rto_max, sock)


def get(function: ctypes._NamedFuncPointer, sock: Socket) -> int:
    fd, value = descriptor(sock), ctypes.c_int()
    check(function(fd, ctypes.byref(value)), sock, fd)
    return value.value


def set_user_timeout(sock: Socket, milliseconds: UserTimeout) -> None:
    """Sets how long sent data may stay unacknowledged: milliseconds, or ka.AUTO. 0 removes the user timeout."""
    fd, value = descriptor(sock), user_timeout(milliseconds)
    why = Config(user_timeout=AUTO) if value == c.AUTO else None
    check(c.LIBRARY.ka_set_user_timeout(fd, value), sock, fd, why)


def set_rto_max(sock: Socket, milliseconds: RtoMax) -> None:
    """Sets the longest time between two retransmissions: milliseconds, or ka.AUTO. Linux 6.15 and later have it.

    It limits how long unacknowledged data hides a dead peer: see data_time.
    """
    fd, value = descriptor(sock), rto_max(milliseconds)
    check(c.LIBRARY.ka_set_rto_max(fd, value), sock, fd)


def apply(sock: Socket, config: Config) -> None:
    """Applies a policy: sets each value that is not None. After a failure keepalive is on or off as it was."""
    fd, native = descriptor(sock), to_c(config)
    check(c.LIBRARY.ka_apply(fd, ctypes.byref(native)), sock, fd, config)


def query(sock: Socket) -> Config:
    """Returns the settings that are in force.

    user_timeout and rto_max are None on MPTCP, because the kernel cannot report them. rto_max is None before Linux 6.15.
    """
    fd, native = descriptor(sock), empty()
    check(c.LIBRARY.ka_query(fd, ctypes.byref(native)), sock, fd)
    return from_c(native)


@dataclass(frozen=True)
class Status:
    """The status of a connection."""

    state: int
    """1 (established) to 11 (closing), as in netinet/tcp.h."""
    probes: int
    """The number of unanswered probes since the last answer."""
    retransmits: int
    """The number of retransmissions of the oldest data in flight since the last answer."""
    unacked: int
    """Segments in flight. While there are any, the kernel sends no keepalive probe. 0 for a listener."""
    last_ack_ms: int
    """Milliseconds since the last acknowledgement came."""
    last_recv_ms: int
    """Milliseconds since data last came."""
    last_send_ms: int
    """Milliseconds since data was last sent, not counting probes."""
    rtt_us: int
    """Smoothed round-trip time, microseconds."""


def get_status(sock: Socket) -> Status:
    """Returns the status of a connection: unanswered probes, data in flight, and when the peer last sent something."""
    fd, native = descriptor(sock), c.Status(ctypes.sizeof(c.Status))
    check(c.LIBRARY.ka_get_status(fd, ctypes.byref(native)), sock, fd)
    return Status(*(getattr(native, name) for name, *_ in c.Status._fields_[1:]))


def probe(sock: Socket, timeout: float = 1.0) -> bool:
    """Checks whether the peer is alive: waits up to timeout seconds for its answer. Returns True if an answer came.

    No data is sent: the kernel sends a keepalive probe. If the peer has sent something within the last second, the call
    returns at once. A timeout of 0 sends nothing. Other Python threads run during the call. If the connection has ended,
    the exception has its error, such as ETIMEDOUT.
    """
    fd, timeout_ms = descriptor(sock), milliseconds("timeout", timeout)
    result = c.LIBRARY.ka_probe(fd, timeout_ms)
    if result == -1 and c.last_error() == errno.ERANGE:
        why = "the idle time follows net.ipv4.tcp_keepalive_time, whose value cannot be set on a socket: call ka.enable first"
        raise OSError(errno.ERANGE, why)
    return bool(check(result, sock, fd))
