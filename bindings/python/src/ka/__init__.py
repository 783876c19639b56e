"""TCP keepalive that works.

    ka.enable(sock, idle=60, intvl=10, cnt=5)

The functions are those of libka (ka.h, ka(7)) without the prefix ka_. None leaves a value as it is.

Errors are OSError with the errno of libka and a message that names the fault. An invalid value raises InvalidArgument,
which is also a ValueError. A wrong type raises TypeError. After a failed call, keepalive is on or off as it was before
the call. ka.h describes the state of the other settings.
"""

from ._beat import BEAT_NONCE_SIZE, BEAT_SIZE, Beat, beat_client, beat_nonce, beat_sign, beat_verify
from ._config import (
    AUTO,
    CNT_MAX,
    IDLE_MAX,
    INTVL_MAX,
    RTO_MAX_MAX,
    RTO_MAX_MIN,
    Auto,
    Config,
    DetectTime,
    data_time,
    defaults,
    detect_time,
    explain,
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
    Missed,
    Status,
    apply,
    disable,
    enable,
    enable_lenient,
    get_cnt,
    get_idle,
    get_intvl,
    get_rto_max,
    get_status,
    get_user_timeout,
    is_enabled,
    probe,
    query,
    set_rto_max,
    set_user_timeout,
)


def version() -> str:
    """Returns the version of libka that runs, such as "0.2.0"."""
    text: bytes = _LIBRARY.ka_version()
    return text.decode()


def version_number() -> int:
    """Returns the version as a number to compare: 1000000 * major + 1000 * minor + patch."""
    return int(_LIBRARY.ka_version_number())


__all__ = [
    "AUTO",
    "BEAT_NONCE_SIZE",
    "BEAT_SIZE",
    "CNT_MAX",
    "IDLE_MAX",
    "INTVL_MAX",
    "RTO_MAX_MAX",
    "RTO_MAX_MIN",
    "Auto",
    "Beat",
    "Config",
    "DetectTime",
    "HasFileno",
    "InvalidArgument",
    "Missed",
    "Reaper",
    "Status",
    "apply",
    "beat_client",
    "beat_nonce",
    "beat_sign",
    "beat_verify",
    "data_time",
    "defaults",
    "detect_time",
    "disable",
    "enable",
    "enable_lenient",
    "explain",
    "format",
    "get_cnt",
    "get_idle",
    "get_intvl",
    "get_rto_max",
    "get_status",
    "get_user_timeout",
    "is_enabled",
    "parse",
    "plan_detect",
    "plan_path",
    "plan_preset",
    "probe",
    "query",
    "set_rto_max",
    "set_user_timeout",
    "socket_options",
    "version",
    "version_number",
]
