"""Functions and fixtures that the tests share. They read settings with socket.getsockopt, not with the library."""

import re
import socket
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def five(sock):
    """Returns SO_KEEPALIVE, idle, intvl, cnt and user timeout, as the kernel reports them."""
    tcp = socket.IPPROTO_TCP
    names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
    return (sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), *(sock.getsockopt(tcp, name) for name in names))


def rto_max(sock):
    """Returns TCP_RTO_MAX_MS, as the kernel reports it, or None if the kernel does not have it."""
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, 44)
    except OSError:
        return None


# The settings of a new socket, from the sysctls of this machine.
with socket.socket() as fresh:
    FRESH = five(fresh)
    FRESH_RTO_MAX = rto_max(fresh)

needs_rto_max = pytest.mark.skipif(FRESH_RTO_MAX is None, reason="rto_max needs Linux 6.15")


@pytest.fixture
def sock():
    with socket.socket() as sock:
        yield sock


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def recipes():
    """Returns the code blocks of README.md that define a function or class."""
    text = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return [block for block in blocks if "\ndef " in block or "\nasync def " in block or "\nclass " in block]


def recipe(word):
    """Runs the recipe that contains this word. Returns the names that it defines."""
    (code,) = [block for block in recipes() if word in block]
    names = {}
    exec(compile(code, f"README.md, {word}", "exec"), names)
    return names
