"""Finds connections that have been inactive for a time."""

from __future__ import annotations

import ctypes
import errno
import threading
import time
from types import TracebackType
from typing import Optional, SupportsIndex

from . import _library as c
from ._number import in_range, u64, whole
from ._socket import Socket, descriptor

INT_MAX = 2**31 - 1


class Reaper:
    """Finds connections that have been inactive for timeout_ms milliseconds.

    A connection is a descriptor. The reaper makes no system call on it, so it works with any event loop. The program
    calls touch when a connection is active, and forget before it closes the connection. Without forget, a new
    connection with the same descriptor would inherit the entry of the old one.

    now_ms is the time in milliseconds on a clock that never goes backward. The default is the clock of
    time.monotonic(). Threads may share a reaper.
    """

    def __init__(self, timeout_ms: SupportsIndex) -> None:
        self._reaper: Optional[int] = None
        # Only one thread at a time may use the reaper. It is an RLock, because a signal handler may call the reaper in
        # the thread that holds the lock.
        self._lock = threading.RLock()
        self._reaper = c.LIBRARY.ka_reaper_new(in_range("timeout_ms", timeout_ms, 1, 2**32 - 1, "ms"))
        if self._reaper is None:
            raise MemoryError("no memory for a reaper")

    def _handle(self) -> int:
        if self._reaper is None:
            raise ValueError("the reaper is closed")
        return self._reaper

    def touch(self, sock: Socket, now_ms: Optional[SupportsIndex] = None) -> None:
        """Records that a connection is active now. Adds the connection if it is new."""
        fd, now = descriptor(sock), clock(now_ms)
        with self._lock:
            if c.LIBRARY.ka_reaper_touch(self._handle(), fd, now) != 0:
                number = c.last_error()
                if number == errno.ENOMEM:
                    raise MemoryError("no memory for one more connection")
                raise c.failure(number, f"{sock!r} is not open")

    def forget(self, sock: Socket) -> None:
        """Removes a connection. Raises FileNotFoundError (ENOENT) if it is not there, for example after expired."""
        fd = descriptor(sock)
        with self._lock:
            if c.LIBRARY.ka_reaper_forget(self._handle(), fd) != 0:
                raise c.failure(c.last_error(), f"the reaper does not have descriptor {fd}")

    def expired(self, now_ms: Optional[SupportsIndex] = None, n: Optional[SupportsIndex] = None) -> list[int]:
        """Removes all connections that are due, or at most n. Returns them, the longest inactive first."""
        now = clock(now_ms)
        most = None if n is None else in_range("n", n, 0, INT_MAX)
        with self._lock:
            handle = self._handle()
            there: int = min(c.LIBRARY.ka_reaper_len(handle), INT_MAX)
            # Usually few are due. An array for all connections could be very large.
            size = min(there, 256 if most is None else most)
            room = (ctypes.c_int * size)()
            named: list[int] = []
            while True:
                want = size if most is None else min(size, most - len(named))
                count: int = c.LIBRARY.ka_reaper_expired(handle, now, room, want)
                if count < 0:
                    raise c.failure(c.last_error())
                named += room[:count]
                if count < size or want < size or count == 0:
                    return named

    def next(self, now_ms: Optional[SupportsIndex] = None) -> Optional[int]:
        """Returns the milliseconds until a connection is due: 0 if one is due now, None if there is no connection."""
        now = clock(now_ms)
        with self._lock:
            left: int = c.LIBRARY.ka_reaper_next(self._handle(), now)
        return None if left < 0 else left

    def __len__(self) -> int:
        with self._lock:
            return int(c.LIBRARY.ka_reaper_len(self._handle()))

    def close(self) -> None:
        """Frees the memory of the reaper. The connections stay open."""
        with self._lock:
            reaper, self._reaper = self._reaper, None
            if reaper is not None:
                c.LIBRARY.ka_reaper_free(reaper)

    def __enter__(self) -> Reaper:
        return self

    def __exit__(self, kind: Optional[type[BaseException]], value: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        self.close()

    def __del__(self) -> None:
        # If __init__ has failed, the attributes may be missing.
        if getattr(self, "_reaper", None) is not None:
            self.close()


def clock(now_ms: Optional[SupportsIndex]) -> int:
    """Returns the given time, or the current time of time.monotonic()."""
    return time.monotonic_ns() // 1_000_000 if now_ms is None else u64("now_ms", whole("now_ms", now_ms))
