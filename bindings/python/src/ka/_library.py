"""Loads libka, and declares its functions and structs as include/ka.h does."""

from __future__ import annotations

import ctypes
import errno
import os
from ctypes import POINTER, c_char_p, c_int, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

# The SONAME of every 0.x version.
SONAME = "libka.so.0"


class Config(ctypes.Structure):
    """struct ka_config"""

    _fields_ = [
        ("size", c_uint32),
        ("keepalive", c_int32),
        ("idle", c_int32),
        ("intvl", c_int32),
        ("cnt", c_int32),
        ("user_timeout", c_int32),
        ("rto_max", c_int32),
    ]


class Status(ctypes.Structure):
    """struct ka_status"""

    _fields_ = [
        ("size", c_uint32),
        ("state", c_uint32),
        ("probes", c_uint32),
        ("retransmits", c_uint32),
        ("unacked", c_uint32),
        ("last_ack_ms", c_uint32),
        ("last_recv_ms", c_uint32),
        ("last_send_ms", c_uint32),
        ("rtt_us", c_uint32),
    ]


class Beat(ctypes.Structure):
    """struct ka_beat"""

    _fields_ = [("client", c_uint64), ("sequence", c_uint64)]


CONFIG = POINTER(Config)

# Arguments of uint8_t * are c_char_p. Then ctypes accepts bytes, including zero bytes, and copies nothing.
PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "ka_apply": (c_int, [c_int, CONFIG]),
    "ka_beat_client": (c_int, [c_char_p, POINTER(c_uint64)]),
    "ka_beat_nonce": (c_int, [c_char_p]),
    "ka_beat_sign": (c_int, [c_char_p, c_size_t, c_char_p, POINTER(Beat), c_char_p]),
    "ka_beat_verify": (c_int, [c_char_p, c_size_t, c_char_p, c_uint64, c_char_p, POINTER(Beat)]),
    "ka_data_time": (c_int, [CONFIG, POINTER(c_uint64), POINTER(c_uint64)]),
    "ka_defaults": (c_int, [CONFIG]),
    "ka_detect_time": (c_int, [CONFIG, POINTER(c_uint64), POINTER(c_uint64)]),
    "ka_disable": (c_int, [c_int]),
    "ka_enable": (c_int, [c_int, c_int, c_int, c_int]),
    "ka_enable_lenient": (c_int, [c_int, c_int, c_int, c_int]),
    "ka_explain": (c_int, [c_char_p, c_char_p, c_size_t]),
    "ka_format": (c_int, [CONFIG, c_char_p, c_size_t]),
    "ka_get_cnt": (c_int, [c_int, POINTER(c_int)]),
    "ka_get_idle": (c_int, [c_int, POINTER(c_int)]),
    "ka_get_intvl": (c_int, [c_int, POINTER(c_int)]),
    "ka_get_rto_max": (c_int, [c_int, POINTER(c_int)]),
    "ka_get_status": (c_int, [c_int, POINTER(Status)]),
    "ka_get_user_timeout": (c_int, [c_int, POINTER(c_int)]),
    "ka_is_enabled": (c_int, [c_int]),
    "ka_parse": (c_int, [c_char_p, CONFIG]),
    "ka_plan_detect": (c_int, [c_uint32, CONFIG]),
    "ka_plan_path": (c_int, [c_uint32, CONFIG]),
    "ka_plan_preset": (c_int, [c_char_p, CONFIG]),
    "ka_probe": (c_int, [c_int, c_int]),
    "ka_query": (c_int, [c_int, CONFIG]),
    "ka_reaper_expired": (c_int, [c_void_p, c_uint64, POINTER(c_int), c_size_t]),
    "ka_reaper_forget": (c_int, [c_void_p, c_int]),
    "ka_reaper_free": (None, [c_void_p]),
    "ka_reaper_len": (c_size_t, [c_void_p]),
    "ka_reaper_new": (c_void_p, [c_uint32]),
    "ka_reaper_next": (c_int, [c_void_p, c_uint64]),
    "ka_reaper_touch": (c_int, [c_void_p, c_int, c_uint64]),
    "ka_set_rto_max": (c_int, [c_int, c_int]),
    "ka_set_user_timeout": (c_int, [c_int, c_int]),
    "ka_version": (c_char_p, []),
    "ka_version_number": (c_uint32, []),
}


def load() -> ctypes.PyDLL:
    """Loads the library of this package, or the system's if the package has none."""
    bundled = Path(__file__).with_name("libka.so")
    # PyDLL keeps the interpreter's lock during a call, as socket.setsockopt does. Only ka_probe blocks: CDLL releases
    # the lock.
    try:
        library = ctypes.PyDLL(str(bundled) if bundled.exists() else SONAME, use_errno=True)
        library.ka_probe = ctypes.CDLL(library._name, handle=library._handle, use_errno=True).ka_probe  # type: ignore[attr-defined]
        for name, (result, arguments) in PROTOTYPES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise ImportError(
            f"no libka: {bundled} does not exist, and the system's libka cannot be loaded: {error}"
            if not bundled.exists()
            else f"{bundled}: {error}"
        ) from error
    return library


LIBRARY = load()
KEEP = -1
AUTO = -2
NONE = -3
ON = 1
OFF = 2


class InvalidArgument(OSError, ValueError):
    """A value or a policy text is invalid. It is an OSError with the errno of libka, and a ValueError."""


def failure(number: int, message: str = "") -> OSError:
    """Returns the exception for an errno. The default message is that of the system."""
    message = message or os.strerror(number)
    if number in (errno.EINVAL, errno.ERANGE, errno.E2BIG):
        return InvalidArgument(number, message)
    return OSError(number, message)


def last_error() -> int:
    """Returns the errno of the last failed call of libka."""
    return ctypes.get_errno()
