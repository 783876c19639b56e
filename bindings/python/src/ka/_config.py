"""A policy: as an object, as text, as socket options, and worked out from what is known of the path."""

from __future__ import annotations

import ctypes
import enum
import errno
import socket
from dataclasses import dataclass
from typing import Final, NamedTuple, Optional, SupportsIndex, Union

from . import _library as c
from ._number import in_range, u32, whole

IDLE_MAX: Final = 32767
INTVL_MAX: Final = 32767
CNT_MAX: Final = 127
USER_TIMEOUT_MAX: Final = 2**31 - 1


class Auto(enum.Enum):
    """The type of AUTO."""

    AUTO = "auto"

    def __repr__(self) -> str:
        return "ka.AUTO"


AUTO: Final = Auto.AUTO
"""For user_timeout: 1000 * (idle + intvl * cnt) milliseconds, of the values in force."""

UserTimeout = Union[int, Auto, None]


@dataclass(frozen=True)
class Config:
    """A keepalive policy, or what is in force. None leaves a value as it is.

    enabled       True, False
    idle          seconds, 1..32767: idle for so long, a connection gets the first probe (TCP_KEEPIDLE)
    intvl         seconds, 1..32767: from one unanswered probe to the next (TCP_KEEPINTVL)
    cnt           probes, 1..127: so many without an answer end the connection (TCP_KEEPCNT)
    user_timeout  milliseconds, 0..2147483647, 0 is the kernel's own rule; or AUTO (TCP_USER_TIMEOUT)

    Values are checked where the config is used: what is in force may be what cannot be set, as a sysctl of 86400.
    """

    enabled: Optional[bool] = None
    idle: Optional[int] = None
    intvl: Optional[int] = None
    cnt: Optional[int] = None
    user_timeout: UserTimeout = None


def timer(name: str, value: Optional[SupportsIndex], high: int, unit: str) -> int:
    """A timer as C has it; a value that is out of range is named."""
    return c.KEEP if value is None else in_range(name, value, 1, high, unit)


def user_timeout(value: UserTimeout) -> int:
    if value is None:
        return c.KEEP
    if isinstance(value, Auto):
        return c.AUTO
    return in_range("user_timeout", value, 0, USER_TIMEOUT_MAX, "ms")


def timers(idle: Optional[SupportsIndex], intvl: Optional[SupportsIndex], cnt: Optional[SupportsIndex]) -> tuple[int, int, int]:
    return (
        timer("idle", idle, IDLE_MAX, "s"),
        timer("intvl", intvl, INTVL_MAX, "s"),
        timer("cnt", cnt, CNT_MAX, "probes"),
    )


def to_c(config: Config) -> c.Config:
    if not isinstance(config, Config):
        raise TypeError(f"config must be a ka.Config, not {type(config).__name__}")
    enabled = config.enabled
    if enabled is not None and not isinstance(enabled, bool):
        raise TypeError(f"enabled must be True, False or None, not {enabled!r}")
    return c.Config(
        ctypes.sizeof(c.Config),
        c.KEEP if enabled is None else int(enabled),
        *timers(config.idle, config.intvl, config.cnt),
        user_timeout(config.user_timeout),
    )


def empty() -> c.Config:
    """KA_CONFIG_INIT"""
    return c.Config(ctypes.sizeof(c.Config), c.KEEP, c.KEEP, c.KEEP, c.KEEP, c.KEEP)


def from_c(config: c.Config) -> Config:
    def value(number: int) -> Optional[int]:
        return None if number == c.KEEP else number

    return Config(
        enabled=None if config.enabled == c.KEEP else bool(config.enabled),
        idle=value(config.idle),
        intvl=value(config.intvl),
        cnt=value(config.cnt),
        user_timeout=AUTO if config.user_timeout == c.AUTO else value(config.user_timeout),
    )


def defaults() -> Config:
    """What a fresh socket of this network namespace has: the sysctls net.ipv4.tcp_keepalive_*."""
    config = empty()
    if c.LIBRARY.ka_defaults(ctypes.byref(config)) != 0:
        raise c.failure(c.last_error())
    return from_c(config)


def parse(text: str) -> Config:
    """Reads a policy: "60,10,5", or any of "idle=", "intvl=", "cnt=", "user_timeout=" and one of "on", "off", "keep".

    None of the three words means "on". Times may have a unit, as "idle=5m, intvl=30s": ms, s, m, h or d.
    """
    if not isinstance(text, str):
        raise TypeError(f"a policy's text must be a str, not {type(text).__name__}")
    config = empty()
    # C would read up to the first NUL, and call the rest no part of it.
    number = errno.EINVAL
    if "\0" not in text and c.LIBRARY.ka_parse(text.encode("utf-8", "surrogatepass"), ctypes.byref(config)) == 0:
        return from_c(config)
    if "\0" not in text:
        number = c.last_error()
    if number == errno.ERANGE:
        raise c.failure(number, f"{text!r}: a number is out of its range")
    raise c.failure(number, f'{text!r} is no policy: it is three numbers, as "60,10,5", or "idle=60,intvl=10,cnt=5"')


def format(config: Config) -> str:
    """Writes a policy as the text that parse reads back."""
    native = to_c(config)
    text = ctypes.create_string_buffer(64)
    length: int = c.LIBRARY.ka_format(ctypes.byref(native), text, len(text))
    if length >= len(text):
        text = ctypes.create_string_buffer(length + 1)
        length = c.LIBRARY.ka_format(ctypes.byref(native), text, len(text))
    if length < 0:
        raise refused(c.last_error(), config)
    return text.value.decode()


def refused(number: int, config: Config) -> OSError:
    """Why a config whose values are each in range was refused."""
    if number == errno.EINVAL and config.user_timeout is AUTO:
        return c.failure(number, f"1000 * (idle + intvl * cnt) is no user timeout: it must be 1..{USER_TIMEOUT_MAX} ms")
    return c.failure(number)


def plan_path(path_idle_s: SupportsIndex) -> Config:
    """A policy that keeps a connection alive where a NAT, firewall or load balancer forgets it after so many seconds."""
    config = empty()
    if c.LIBRARY.ka_plan_path(u32("path_idle_s", path_idle_s), ctypes.byref(config)) != 0:
        raise c.failure(c.last_error(), f"no policy can keep a path that forgets after {path_idle_s} s")
    return from_c(config)


def plan_detect(within_ms: SupportsIndex) -> Config:
    """A policy that knows of a dead peer within so many milliseconds, however late the kernel's timers are."""
    config = empty()
    if c.LIBRARY.ka_plan_detect(u32("within_ms", within_ms), ctypes.byref(config)) != 0:
        raise c.failure(c.last_error(), f"no policy can find a dead peer within {within_ms} ms")
    return from_c(config)


def plan_preset(name: str) -> Config:
    """The policy of plan_path for a well-known middlebox, as "aws-nlb". ka_plan_preset(3) lists them."""
    if not isinstance(name, str):
        raise TypeError(f"a preset's name must be a str, not {type(name).__name__}")
    config = empty()
    if "\0" in name or c.LIBRARY.ka_plan_preset(name.encode("utf-8", "surrogatepass"), ctypes.byref(config)) != 0:
        raise c.failure(errno.ENOENT, f"there is no preset {name!r}: ka_plan_preset(3) lists those that there are")
    return from_c(config)


class DetectTime(NamedTuple):
    """How long a policy needs to find a dead peer."""

    typical_ms: int
    """If no timer is late."""
    worst_ms: int
    """If each is as late as the kernel's timer wheel makes it."""


def detect_time(config: Config) -> DetectTime:
    """How long a policy needs to find a dead peer, from the last packet that came from it."""
    native, typical, worst = to_c(config), ctypes.c_uint64(), ctypes.c_uint64()
    if c.LIBRARY.ka_detect_time(ctypes.byref(native), ctypes.byref(typical), ctypes.byref(worst)) != 0:
        number = c.last_error()
        if config.enabled is not True or None in (config.idle, config.intvl, config.cnt):
            raise c.failure(number, "the config must have enabled=True, and name idle, intvl and cnt")
        raise refused(number, config)
    return DetectTime(typical.value, worst.value)


def socket_options(config: Config) -> list[tuple[int, int, int]]:
    """The policy as (level, option, value), for a library that makes its sockets itself and takes a list of options.

    They are in the order that Linux needs: SO_KEEPALIVE last. Where there is a socket, use enable or apply.
    """
    native = to_c(config)
    if native.user_timeout == c.AUTO:
        native.user_timeout = detect_budget(config)
    options = [
        # Not every typeshed has it.
        (socket.IPPROTO_TCP, getattr(socket, "TCP_USER_TIMEOUT"), native.user_timeout),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, native.intvl),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, native.cnt),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, native.idle),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, native.enabled),
    ]
    return [(int(level), int(option), value) for level, option, value in options if value != c.KEEP]


def detect_budget(config: Config) -> int:
    """What AUTO comes to."""
    if config.idle is None or config.intvl is None or config.cnt is None:
        raise c.failure(errno.EINVAL, "ka.AUTO needs idle, intvl and cnt where there is no socket to ask")
    total = 1000 * (whole("idle", config.idle) + whole("intvl", config.intvl) * whole("cnt", config.cnt))
    if total > USER_TIMEOUT_MAX:
        raise refused(errno.EINVAL, config)
    return total
