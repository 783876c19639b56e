"""What is set on a socket, and asked of it."""

from __future__ import annotations

import ctypes
import errno
from dataclasses import dataclass
from typing import Optional, Protocol, SupportsIndex, Union

from . import _library as c
from ._config import AUTO, Config, UserTimeout, empty, from_c, refused, timers, to_c, user_timeout
from ._number import whole


class HasFileno(Protocol):
    """A socket, or anything that stands for one."""

    def fileno(self) -> int: ...


Socket = Union[int, HasFileno]


def descriptor(sock: Socket) -> int:
    """The descriptor of a socket. One that is closed has -1."""
    fileno = getattr(sock, "fileno", None)
    if fileno is None:
        if isinstance(sock, bool) or not hasattr(sock, "__index__"):
            raise TypeError(f"expected a socket, something with fileno(), or a descriptor, not {type(sock).__name__}")
        number = whole("a descriptor", sock)  # type: ignore[arg-type]
    else:
        number = whole("fileno()", fileno())
    # C would get another number.
    return number if -(2**31) <= number < 2**31 else -1


def check(result: int, sock: Socket, fd: int, config: Optional[Config] = None) -> int:
    """The result of a call on a descriptor, or its exception."""
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
        raise c.failure(number, f"this kernel does not have the option for descriptor {fd}: user_timeout on MPTCP?")
    raise c.failure(number) if config is None else refused(number, config)


def enable(sock: Socket, idle: Optional[SupportsIndex] = 60, intvl: Optional[SupportsIndex] = 10, cnt: Optional[SupportsIndex] = 6) -> None:
    """Turns keepalive on: after idle seconds a probe, every intvl seconds another, dead after cnt without an answer.

    sock is a TCP socket in any state, anything with fileno(), or a descriptor. A listener hands it to all that it
    accepts. None leaves a value as it is. On a socket that has it on already, only what differs is written.
    """
    fd = descriptor(sock)
    check(c.LIBRARY.ka_enable(fd, *timers(idle, intvl, cnt)), sock, fd)


def disable(sock: Socket) -> None:
    """Turns keepalive off. The timers keep their values."""
    fd = descriptor(sock)
    check(c.LIBRARY.ka_disable(fd), sock, fd)


def is_enabled(sock: Socket) -> bool:
    """Whether keepalive is on."""
    fd = descriptor(sock)
    return bool(check(c.LIBRARY.ka_is_enabled(fd), sock, fd))


def get_idle(sock: Socket) -> int:
    """Seconds before the first probe, as in force: the sysctl's where nothing was set."""
    return get(c.LIBRARY.ka_get_idle, sock)


def get_intvl(sock: Socket) -> int:
    """Seconds from one unanswered probe to the next, as in force."""
    return get(c.LIBRARY.ka_get_intvl, sock)


def get_cnt(sock: Socket) -> int:
    """How many unanswered probes end the connection, as in force."""
    return get(c.LIBRARY.ka_get_cnt, sock)


def get_user_timeout(sock: Socket) -> int:
    """Milliseconds that sent data may stay unacknowledged; 0 is the kernel's own rule."""
    return get(c.LIBRARY.ka_get_user_timeout, sock)


def get(function: ctypes._NamedFuncPointer, sock: Socket) -> int:
    fd, value = descriptor(sock), ctypes.c_int()
    check(function(fd, ctypes.byref(value)), sock, fd)
    return value.value


def set_user_timeout(sock: Socket, milliseconds: UserTimeout) -> None:
    """Sets how long sent data may stay unacknowledged: milliseconds, 0 for the kernel's own rule, or ka.AUTO."""
    fd, value = descriptor(sock), user_timeout(milliseconds)
    why = Config(user_timeout=AUTO) if value == c.AUTO else None
    check(c.LIBRARY.ka_set_user_timeout(fd, value), sock, fd, why)


def apply(sock: Socket, config: Config) -> None:
    """Sets what the config names, and leaves the rest. After a failure keepalive is on or off as it was."""
    fd, native = descriptor(sock), to_c(config)
    check(c.LIBRARY.ka_apply(fd, ctypes.byref(native)), sock, fd, config)


def query(sock: Socket) -> Config:
    """All that is in force. user_timeout is None on MPTCP, where the kernel cannot say."""
    fd, native = descriptor(sock), empty()
    check(c.LIBRARY.ka_query(fd, ctypes.byref(native)), sock, fd)
    return from_c(native)


@dataclass(frozen=True)
class Status:
    """What a connection is doing."""

    state: int
    """1 (established) to 11 (closing), as in netinet/tcp.h."""
    probes: int
    """Probes that nothing has answered yet."""
    retransmits: int
    """How often the oldest data in flight was sent again without an answer."""
    unacked: int
    """Segments in flight; while there are any, no keepalive probe is sent. 0 for a listener."""
    last_ack_ms: int
    """Milliseconds since the last acknowledgement came."""
    last_recv_ms: int
    """Milliseconds since data last came."""
    last_send_ms: int
    """Milliseconds since data was last sent; probes do not count."""
    rtt_us: int
    """Smoothed round-trip time, microseconds."""


def get_status(sock: Socket) -> Status:
    """What a connection is doing: is a probe unanswered, is data in flight, when did the peer last speak?"""
    fd, native = descriptor(sock), c.Status(ctypes.sizeof(c.Status))
    check(c.LIBRARY.ka_get_status(fd, ctypes.byref(native)), sock, fd)
    return Status(*(getattr(native, name) for name, *_ in c.Status._fields_[1:]))
