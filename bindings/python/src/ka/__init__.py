"""TCP keepalive that works.

    ka.enable(sock, idle=60, intvl=10, cnt=5)

The functions are those of libka (ka.h, ka(7)) without ka_. Errors are OSError with libka's errno and what was wrong;
a value that cannot be set is InvalidArgument, which is a ValueError too; a wrong type is a TypeError. What a failed
call leaves behind is as in C: nothing leaves keepalive half on.
"""

from ._beat import BEAT_NONCE_SIZE, BEAT_SIZE, Beat, beat_client, beat_nonce, beat_sign, beat_verify
from ._config import (
    AUTO,
    CNT_MAX,
    IDLE_MAX,
    INTVL_MAX,
    Auto,
    Config,
    DetectTime,
    defaults,
    detect_time,
    format,
    parse,
    plan_detect,
    plan_path,
    plan_preset,
    socket_options,
)
from ._library import LIBRARY as _LIBRARY
from ._library import InvalidArgument
from ._reaper import Reaper
from ._socket import (
    HasFileno,
    Status,
    apply,
    disable,
    enable,
    get_cnt,
    get_idle,
    get_intvl,
    get_status,
    get_user_timeout,
    is_enabled,
    query,
    set_user_timeout,
)


def version() -> str:
    """Which version of libka runs, as "0.1.0"."""
    text: bytes = _LIBRARY.ka_version()
    return text.decode()


def version_number() -> int:
    """The same as a number to compare: 1000000 * major + 1000 * minor + patch."""
    return int(_LIBRARY.ka_version_number())


__all__ = [
    "AUTO",
    "BEAT_NONCE_SIZE",
    "BEAT_SIZE",
    "CNT_MAX",
    "IDLE_MAX",
    "INTVL_MAX",
    "Auto",
    "Beat",
    "Config",
    "DetectTime",
    "HasFileno",
    "InvalidArgument",
    "Reaper",
    "Status",
    "apply",
    "beat_client",
    "beat_nonce",
    "beat_sign",
    "beat_verify",
    "defaults",
    "detect_time",
    "disable",
    "enable",
    "format",
    "get_cnt",
    "get_idle",
    "get_intvl",
    "get_status",
    "get_user_timeout",
    "is_enabled",
    "parse",
    "plan_detect",
    "plan_path",
    "plan_preset",
    "query",
    "set_user_timeout",
    "socket_options",
    "version",
    "version_number",
]
