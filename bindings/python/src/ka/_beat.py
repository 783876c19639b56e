"""Signed heartbeats. Only a client with the key can make one. Each is valid once, on one connection."""

from __future__ import annotations

import ctypes
import errno
from typing import Final, NamedTuple, SupportsIndex, Union

from . import _library as c
from ._number import in_range, u64

BEAT_NONCE_SIZE: Final = 16
BEAT_SIZE: Final = 56
KEY_SIZE_MIN: Final = 16

Bytes = Union[bytes, bytearray, memoryview]


class Beat(NamedTuple):
    """The contents of a heartbeat."""

    client: int
    sequence: int


def octets(name: str, value: Bytes) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError(f"{name} must be bytes, not {type(value).__name__}")
    return bytes(value)


def checked_key(key: Bytes) -> bytes:
    key = octets("key", key)
    if len(key) < KEY_SIZE_MIN:
        raise c.InvalidArgument(errno.EINVAL, f"key has {len(key)} bytes: it must have {KEY_SIZE_MIN} or more")
    return key


def checked_nonce(nonce: Bytes) -> bytes:
    nonce = octets("nonce", nonce)
    if len(nonce) != BEAT_NONCE_SIZE:
        raise c.InvalidArgument(errno.EINVAL, f"nonce has {len(nonce)} bytes: it must have {BEAT_NONCE_SIZE}")
    return nonce


def checked_frame(frame: Bytes) -> bytes:
    frame = octets("frame", frame)
    # The frame comes from a peer, which may send anything. So this is not an InvalidArgument.
    if len(frame) != BEAT_SIZE:
        raise c.failure(errno.EBADMSG, f"not a heartbeat: it has {len(frame)} bytes, not {BEAT_SIZE}")
    return frame


def beat_nonce() -> bytes:
    """Makes the nonce of a connection: 16 bytes that the server sends before anything else."""
    nonce = ctypes.create_string_buffer(BEAT_NONCE_SIZE)
    if c.LIBRARY.ka_beat_nonce(nonce) != 0:
        raise c.failure(c.last_error())
    return nonce.raw


def beat_sign(key: Bytes, nonce: Bytes, client: SupportsIndex, sequence: SupportsIndex) -> bytes:
    """Returns the 56 bytes of a heartbeat. sequence is 1 for the first heartbeat of a connection, then increases."""
    key, nonce = checked_key(key), checked_nonce(nonce)
    beat = c.Beat(u64("client", client), in_range("sequence", sequence, 1, 2**64 - 1))
    frame = ctypes.create_string_buffer(BEAT_SIZE)
    if c.LIBRARY.ka_beat_sign(key, len(key), nonce, ctypes.byref(beat), frame) != 0:
        raise c.failure(c.last_error())
    return frame.raw


def beat_client(frame: Bytes) -> int:
    """Returns the client that a heartbeat names, to find its key. Only beat_verify proves the client."""
    client = ctypes.c_uint64()
    if c.LIBRARY.ka_beat_client(checked_frame(frame), ctypes.byref(client)) != 0:
        raise c.failure(c.last_error(), "not a heartbeat")
    return client.value


def beat_verify(key: Bytes, nonce: Bytes, last_sequence: SupportsIndex, frame: Bytes) -> Beat:
    """Verifies a heartbeat. last_sequence is the last sequence that was verified on this connection, 0 at first.

    Raises OSError with errno EBADMSG if the frame is not a heartbeat, or was made with another key or for another
    connection. Raises OSError with errno ESTALE if the heartbeat was sent before.
    """
    key, nonce, last = checked_key(key), checked_nonce(nonce), u64("last_sequence", last_sequence)
    beat = c.Beat()
    if c.LIBRARY.ka_beat_verify(key, len(key), nonce, last, checked_frame(frame), ctypes.byref(beat)) != 0:
        number = c.last_error()
        raise c.failure(number, {
            errno.EBADMSG: "not a heartbeat, or made with another key or for another connection",
            errno.ESTALE: f"the heartbeat was sent before: its sequence is not greater than {last}",
        }.get(number, ""))
    return Beat(beat.client, beat.sequence)
