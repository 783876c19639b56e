"""Tests heartbeats against the test vectors of docs/heartbeat.md and Python's own HMAC."""

import errno
import hashlib
import hmac
import re

import pytest
from conftest import ROOT

import ka

KEY = bytes(range(32))


def vectors():
    text = (ROOT / "docs/heartbeat.md").read_text().split("## Test vectors")[1]
    for block in re.findall(r"(?:^key .*\n(?:.+\n)+)", text, re.MULTILINE):
        fields = {}
        for line in block.splitlines():
            name, value = (line[:9].strip() or name), line[9:]
            fields[name] = fields.get(name, "") + value
        yield {
            "key": bytes.fromhex(fields["key"]),
            "nonce": bytes.fromhex(fields["nonce"]),
            "client": int(fields["client"]),
            "sequence": int(fields["sequence"]),
        }, bytes.fromhex(fields["frame"])


def test_frames_equal_the_vectors_of_the_documentation():
    count = 0
    for beat, frame in vectors():
        assert ka.beat_sign(**beat) == frame
        assert ka.beat_client(frame) == beat["client"]
        verified = ka.beat_verify(beat["key"], beat["nonce"], beat["sequence"] - 1, frame)
        assert verified == (beat["client"], beat["sequence"])
        count += 1
    assert count >= 6


def test_the_signature_is_an_hmac():
    nonce = ka.beat_nonce()
    frame = ka.beat_sign(KEY, nonce, 7, 1)
    assert len(nonce) == ka.BEAT_NONCE_SIZE and len(frame) == ka.BEAT_SIZE
    assert frame[24:] == hmac.new(KEY, nonce + frame[:24], hashlib.sha256).digest()
    assert ka.beat_nonce() != nonce


def test_any_bytes_type_is_accepted_and_str_is_rejected():
    nonce = ka.beat_nonce()
    frame = ka.beat_sign(bytearray(KEY), memoryview(nonce), 7, 1)
    assert ka.beat_verify(memoryview(KEY), bytearray(nonce), 0, memoryview(frame)).client == 7
    for call in [lambda: ka.beat_sign("k" * 32, nonce, 7, 1), lambda: ka.beat_client("x" * 56)]:
        with pytest.raises(TypeError, match="must be bytes"):
            call()


def test_forged_garbled_and_replayed_frames_are_rejected():
    nonce = ka.beat_nonce()
    frame = ka.beat_sign(KEY, nonce, 7, 5)
    cases = [
        (bytes(32), nonce, 0, frame, errno.EBADMSG),
        (KEY, bytes(16), 0, frame, errno.EBADMSG),
        (KEY, nonce, 0, frame[:-1] + bytes([frame[-1] ^ 1]), errno.EBADMSG),
        (KEY, nonce, 0, bytes(56), errno.EBADMSG),
        # A peer may send any number of bytes.
        (KEY, nonce, 0, b"", errno.EBADMSG),
        (KEY, nonce, 0, frame + b"x", errno.EBADMSG),
        (KEY, nonce, 5, frame, errno.ESTALE),
    ]
    for key, nonce_, last, sent, number in cases:
        with pytest.raises(OSError) as caught:
            ka.beat_verify(key, nonce_, last, sent)
        assert caught.value.errno == number and not isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: ka.beat_sign(bytes(15), bytes(16), 7, 1), "key has 15 bytes"),
        (lambda: ka.beat_sign(KEY, bytes(15), 7, 1), "nonce has 15 bytes"),
        (lambda: ka.beat_sign(KEY, bytes(16), 7, 0), "sequence is 0"),
        (lambda: ka.beat_sign(KEY, bytes(16), -1, 1), "client is -1"),
        (lambda: ka.beat_sign(KEY, bytes(16), 2**64, 1), "client is"),
        (lambda: ka.beat_verify(KEY, bytes(17), 0, bytes(56)), "nonce has 17 bytes"),
        (lambda: ka.beat_verify(KEY, bytes(16), 2**64, bytes(56)), "last_sequence is"),
    ],
)
def test_errors_name_the_wrong_argument(call, words):
    with pytest.raises(ka.InvalidArgument, match=words):
        call()
