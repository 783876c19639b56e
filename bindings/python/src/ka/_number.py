"""Checks numbers before they go to C. ctypes would truncate large ones silently."""

from __future__ import annotations

import errno
import math
import operator
from typing import SupportsIndex

from ._library import InvalidArgument


def whole(name: str, value: SupportsIndex) -> int:
    """Returns a whole number as an int. Raises TypeError for any other value."""
    # True is an int in Python. Here it is a mistake.
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {value}")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {type(value).__name__} {value!r}") from None


def in_range(name: str, value: SupportsIndex, low: int, high: int, unit: str = "") -> int:
    """Returns a whole number from low to high. Raises InvalidArgument if it is out of range."""
    number = whole(name, value)
    if not low <= number <= high:
        unit = f" {unit}" if unit else ""
        raise InvalidArgument(errno.EINVAL, f"{name} is {number}{unit}: it must be {low}..{high}{unit}")
    return number


def milliseconds(name: str, seconds: float) -> int:
    """Returns a time in seconds as milliseconds, rounded up. Raises InvalidArgument if it does not fit an int of C."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {type(seconds).__name__} {seconds!r}")
    most = (2**31 - 1) / 1000
    # NaN is not in the range.
    if not 0 <= seconds <= most:
        raise InvalidArgument(errno.EINVAL, f"{name} is {seconds} seconds: it must be 0..{most} seconds")
    return min(math.ceil(seconds * 1000), 2**31 - 1)


def u32(name: str, value: SupportsIndex) -> int:
    return in_range(name, value, 0, 2**32 - 1)


def u64(name: str, value: SupportsIndex) -> int:
    return in_range(name, value, 0, 2**64 - 1)
