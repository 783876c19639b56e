"""Numbers as C takes them: what ctypes would cut off in silence is refused here."""

from __future__ import annotations

import errno
import operator
from typing import SupportsIndex

from ._library import InvalidArgument


def whole(name: str, value: SupportsIndex) -> int:
    """A whole number."""
    # True is 1 to Python, and a mistake here.
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {value}")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {type(value).__name__} {value!r}") from None


def in_range(name: str, value: SupportsIndex, low: int, high: int, unit: str = "") -> int:
    """A whole number from low to high."""
    number = whole(name, value)
    if not low <= number <= high:
        unit = f" {unit}" if unit else ""
        raise InvalidArgument(errno.EINVAL, f"{name} is {number}{unit}: it must be {low}..{high}{unit}")
    return number


def u32(name: str, value: SupportsIndex) -> int:
    return in_range(name, value, 0, 2**32 - 1)


def u64(name: str, value: SupportsIndex) -> int:
    return in_range(name, value, 0, 2**64 - 1)
