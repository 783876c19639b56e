"""Policies: as an object, as text, as socket options, and computed from the properties of a path."""

from __future__ import annotations

import ctypes
import enum
import errno
import socket
from dataclasses import dataclass
from typing import Any, Callable, Final, NamedTuple, Optional, SupportsIndex, Union

from . import _library as c
from ._number import in_range, u32, whole

IDLE_MAX: Final = 32767
INTVL_MAX: Final = 32767
CNT_MAX: Final = 127
USER_TIMEOUT_MAX: Final = 2**31 - 1
RTO_MAX_MIN: Final = 1000
RTO_MAX_MAX: Final = 120000

# The option of linux/tcp.h. The module socket does not have it.
TCP_RTO_MAX_MS: Final = 44


class Auto(enum.Enum):
    """The type of AUTO."""

    AUTO = "auto"

    def __repr__(self) -> str:
        return "ka.AUTO"


AUTO: Final = Auto.AUTO
"""Computed from the values in force. For user_timeout: 1000 * (idle + intvl * cnt) milliseconds. For rto_max: the
largest value with which a dead peer is detected within this time while data is unacknowledged, or 1000."""

UserTimeout = Union[int, Auto, None]
RtoMax = Union[int, Auto, None]


@dataclass(frozen=True)
class Config:
    """A keepalive policy, or the settings that are in force. None leaves a value as it is.

    keepalive     True turns keepalive on, False turns it off (SO_KEEPALIVE)
    idle          seconds, 1..32767: how long the connection is idle before the first probe (TCP_KEEPIDLE)
    intvl         seconds, 1..32767: from an unanswered probe to the next (TCP_KEEPINTVL)
    cnt           probes, 1..127: the connection ends when this many are unanswered (TCP_KEEPCNT)
    user_timeout  milliseconds, 1..2147483647; 0 removes the user timeout; AUTO (TCP_USER_TIMEOUT)
    rto_max       milliseconds, 1000..120000: the longest time between two retransmissions; AUTO (TCP_RTO_MAX_MS, Linux
                  6.15 and later)

    The functions that take a config check its values. Config does not, because query and defaults may return a value
    that no program can set, such as a sysctl of 86400.
    """

    keepalive: Optional[bool] = None
    idle: Optional[int] = None
    intvl: Optional[int] = None
    cnt: Optional[int] = None
    user_timeout: UserTimeout = None
    rto_max: RtoMax = None


def timer(name: str, value: Optional[SupportsIndex], high: int, unit: str) -> int:
    """Returns a timer for struct ka_config. Raises InvalidArgument with the timer's name if it is out of range."""
    return c.KEEP if value is None else in_range(name, value, 1, high, unit)


def user_timeout(value: UserTimeout) -> int:
    if value is None:
        return c.KEEP
    if isinstance(value, Auto):
        return c.AUTO
    # In struct ka_config 0 means KA_KEEP.
    return in_range("user_timeout", value, 0, USER_TIMEOUT_MAX, "ms") or c.NONE


def rto_max(value: RtoMax) -> int:
    if value is None:
        return c.KEEP
    return c.AUTO if isinstance(value, Auto) else in_range("rto_max", value, RTO_MAX_MIN, RTO_MAX_MAX, "ms")


def timers(idle: Optional[SupportsIndex], intvl: Optional[SupportsIndex], cnt: Optional[SupportsIndex]) -> tuple[int, int, int]:
    return (
        timer("idle", idle, IDLE_MAX, "s"),
        timer("intvl", intvl, INTVL_MAX, "s"),
        timer("cnt", cnt, CNT_MAX, "probes"),
    )


def to_c(config: Config) -> c.Config:
    if not isinstance(config, Config):
        raise TypeError(f"config must be a ka.Config, not {type(config).__name__}")
    keepalive = config.keepalive
    if keepalive is not None and not isinstance(keepalive, bool):
        raise TypeError(f"keepalive must be True, False or None, not {keepalive!r}")
    return c.Config(
        ctypes.sizeof(c.Config),
        c.KEEP if keepalive is None else c.ON if keepalive else c.OFF,
        *timers(config.idle, config.intvl, config.cnt),
        user_timeout(config.user_timeout),
        rto_max(config.rto_max),
    )


def empty() -> c.Config:
    """KA_CONFIG_INIT"""
    return c.Config(ctypes.sizeof(c.Config), c.KEEP, c.KEEP, c.KEEP, c.KEEP, c.KEEP, c.KEEP)


def from_c(config: c.Config) -> Config:
    def value(number: int) -> Optional[int]:
        return None if number == c.KEEP else number

    user_timeout: UserTimeout
    if config.user_timeout == c.AUTO:
        user_timeout = AUTO
    else:
        user_timeout = 0 if config.user_timeout == c.NONE else value(config.user_timeout)
    return Config(
        keepalive={c.ON: True, c.OFF: False}.get(config.keepalive),
        idle=value(config.idle),
        intvl=value(config.intvl),
        cnt=value(config.cnt),
        user_timeout=user_timeout,
        rto_max=AUTO if config.rto_max == c.AUTO else value(config.rto_max),
    )


def defaults() -> Config:
    """Returns the settings of a new socket of this network namespace: the sysctls net.ipv4.tcp_keepalive_*.

    rto_max is the sysctl net.ipv4.tcp_rto_max_ms, or None before Linux 6.15.
    """
    config = empty()
    if c.LIBRARY.ka_defaults(ctypes.byref(config)) != 0:
        raise c.failure(c.last_error())
    return from_c(config)


def parse(text: str) -> Config:
    """Reads a policy: "60,10,5", or items such as "idle=5m, intvl=30s, cnt=5, user_timeout=auto, rto_max=2s".

    "on", "off" and "keep" are items too. Without one of these three, the policy turns keepalive on. Times may have a
    unit: ms, s, m, h or d. "user_timeout=none" and "user_timeout=0" remove the user timeout.

    Raises InvalidArgument, which is a ValueError, with the message of explain.
    """
    native, config = encoded(text), empty()
    if native is None:
        raise c.failure(errno.EINVAL, explain(text))
    if c.LIBRARY.ka_parse(native, ctypes.byref(config)) != 0:
        raise c.failure(c.last_error(), explain(text))
    return from_c(config)


def explain(text: str) -> str:
    """Explains why parse rejects a text: names the wrong item. Returns "" if parse accepts the text."""
    native = encoded(text)
    if native is None:
        return "a policy must not contain a NUL character"
    return written(lambda out, size: c.LIBRARY.ka_explain(native, out, size)) or ""


def encoded(text: str) -> Optional[bytes]:
    """Returns a text for C. Returns None if it contains a NUL, because C would ignore everything after the NUL."""
    if not isinstance(text, str):
        raise TypeError(f"a policy's text must be a str, not {type(text).__name__}")
    return None if "\0" in text else text.encode("utf-8", "surrogatepass")


def written(function: Callable[[ctypes.Array[ctypes.c_char], int], Any]) -> Optional[str]:
    """Returns the text that a function of C writes into a buffer as snprintf(3) does. Returns None if it fails."""
    text = ctypes.create_string_buffer(128)
    length: int = function(text, len(text))
    if length >= len(text):
        text = ctypes.create_string_buffer(length + 1)
        length = function(text, len(text))
    return None if length < 0 else text.value.decode()


def format(config: Config) -> str:
    """Writes a policy as a text that parse reads back."""
    native = to_c(config)
    text = written(lambda out, size: c.LIBRARY.ka_format(ctypes.byref(native), out, size))
    if text is None:
        raise rejected(c.last_error(), config)
    return text


def rejected(number: int, config: Config) -> OSError:
    """Returns the exception for a config that libka rejects although each value is in its range."""
    if number == errno.EINVAL and config.user_timeout is AUTO:
        return c.failure(
            number, f"user_timeout is ka.AUTO: 1000 * (idle + intvl * cnt) must be 1..{USER_TIMEOUT_MAX} ms"
        )
    return c.failure(number)


def plan_path(path_idle_s: SupportsIndex) -> Config:
    """Returns a policy for a path whose NAT, firewall or load balancer drops connections idle for this many seconds."""
    config = empty()
    if c.LIBRARY.ka_plan_path(u32("path_idle_s", path_idle_s), ctypes.byref(config)) != 0:
        raise c.failure(c.last_error(), f"no policy can keep a path alive that drops idle connections after {path_idle_s} s")
    return from_c(config)


def plan_detect(within_ms: SupportsIndex) -> Config:
    """Returns a policy that finds a dead peer within this many milliseconds, even if the kernel's timers are late."""
    config = empty()
    if c.LIBRARY.ka_plan_detect(u32("within_ms", within_ms), ctypes.byref(config)) != 0:
        raise c.failure(c.last_error(), f"no policy can find a dead peer within {within_ms} ms")
    return from_c(config)


def plan_preset(name: str) -> Config:
    """Returns the policy of plan_path for a middlebox such as "aws-nlb". ka_plan_preset(3) lists the names."""
    if not isinstance(name, str):
        raise TypeError(f"a preset's name must be a str, not {type(name).__name__}")
    config = empty()
    if "\0" in name or c.LIBRARY.ka_plan_preset(name.encode("utf-8", "surrogatepass"), ctypes.byref(config)) != 0:
        raise c.failure(errno.ENOENT, f"there is no preset {name!r}: ka_plan_preset(3) lists the names")
    return from_c(config)


class DetectTime(NamedTuple):
    """The time that a policy needs to find a dead peer."""

    typical_ms: int
    """The time if no timer is late."""
    worst_ms: int
    """The time in the worst case."""


def detect_time(config: Config) -> DetectTime:
    """Computes how long a policy needs to find a dead peer, from the last packet of the peer.

    In the worst case, each timer is as late as the kernel's timer wheel allows.
    """
    times = computed(c.LIBRARY.ka_detect_time, config)
    if times is None:
        number = c.last_error()
        if config.keepalive is not True or None in (config.idle, config.intvl, config.cnt):
            raise c.failure(number, "the config must have keepalive=True, and idle, intvl and cnt must not be None")
        raise rejected(number, config)
    return times


def data_time(config: Config) -> DetectTime:
    """Computes how long a policy needs to find a dead peer while sent data is unacknowledged.

    The time counts from the first retransmission of the data. The worst case is one rto_max longer, because the kernel
    checks the time only when a retransmission is due. If rto_max is None, the sysctl net.ipv4.tcp_rto_max_ms decides.
    Raises InvalidArgument if user_timeout or rto_max is AUTO, and idle, intvl or cnt is None.
    """
    times = computed(c.LIBRARY.ka_data_time, config)
    if times is None:
        number = c.last_error()
        if None in (config.idle, config.intvl, config.cnt):
            raise c.failure(number, "user_timeout or rto_max is ka.AUTO: idle, intvl and cnt must not be None")
        raise rejected(number, config)
    return times


def computed(function: Callable[..., int], config: Config) -> Optional[DetectTime]:
    """Returns the times that a function of C computes for a policy. Returns None if the function fails."""
    native, typical, worst = to_c(config), ctypes.c_uint64(), ctypes.c_uint64()
    if function(ctypes.byref(native), ctypes.byref(typical), ctypes.byref(worst)) != 0:
        return None
    return DetectTime(typical.value, worst.value)


def socket_options(config: Config) -> list[tuple[int, int, int]]:
    """Returns the policy as a list of options (level, option, value), for a library that creates its sockets itself.

    The options are in the order that Linux needs: SO_KEEPALIVE last. A program that has the socket uses enable or
    apply instead. Before Linux 6.15, setsockopt fails for the option of rto_max.
    """
    native = to_c(config)
    user_timeout = native.user_timeout
    if user_timeout == c.NONE:
        user_timeout = 0
    elif user_timeout == c.AUTO:
        user_timeout = automatic_user_timeout(config)
    rto_max = automatic_rto_max(config) if native.rto_max == c.AUTO else native.rto_max
    keepalive = {c.ON: 1, c.OFF: 0}.get(native.keepalive, c.KEEP)
    options = [
        # Some versions of typeshed do not have TCP_USER_TIMEOUT.
        (socket.IPPROTO_TCP, getattr(socket, "TCP_USER_TIMEOUT"), user_timeout),
        (socket.IPPROTO_TCP, TCP_RTO_MAX_MS, rto_max),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, native.intvl),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, native.cnt),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, native.idle),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, keepalive),
    ]
    return [(int(level), int(option), value) for level, option, value in options if value != c.KEEP]


def automatic_user_timeout(config: Config) -> int:
    """Returns the user timeout that AUTO stands for, in milliseconds."""
    if config.idle is None or config.intvl is None or config.cnt is None:
        raise c.failure(errno.EINVAL, "user_timeout is ka.AUTO: without a socket, idle, intvl and cnt must not be None")
    total = 1000 * (whole("idle", config.idle) + whole("intvl", config.intvl) * whole("cnt", config.cnt))
    if total > USER_TIMEOUT_MAX:
        raise rejected(errno.EINVAL, config)
    return total


def automatic_rto_max(config: Config) -> int:
    """Returns the milliseconds of an rto_max of AUTO. libka computes them for a temporary socket."""
    if config.idle is None or config.intvl is None or config.cnt is None:
        raise c.failure(errno.EINVAL, "rto_max is ka.AUTO: without a socket, idle, intvl and cnt must not be None")
    native, value = to_c(Config(None, config.idle, config.intvl, config.cnt, None, AUTO)), ctypes.c_int()
    with socket.socket() as sock:
        if c.LIBRARY.ka_apply(sock.fileno(), ctypes.byref(native)) != 0:
            number = c.last_error()
            raise c.failure(number, "rto_max needs Linux 6.15 or later" if number == errno.EOPNOTSUPP else "")
        if c.LIBRARY.ka_get_rto_max(sock.fileno(), ctypes.byref(value)) != 0:
            raise c.failure(c.last_error())
    return value.value
