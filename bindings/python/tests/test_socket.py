"""Tests the functions on sockets. The tests read the result from the kernel."""

import contextlib
import dataclasses
import errno
import io
import os
import socket
import ssl
import struct
import threading
import time

import pytest
from conftest import FRESH, FRESH_RTO_MAX, five, needs_rto_max, rto_max

import ka


def test_enable_sets_the_values(sock):
    ka.enable(sock, idle=60, intvl=10, cnt=5)
    assert five(sock) == (1, 60, 10, 5, 0)
    assert ka.is_enabled(sock)
    assert (ka.get_idle(sock), ka.get_intvl(sock), ka.get_cnt(sock), ka.get_user_timeout(sock)) == (60, 10, 5, 0)


def test_enable_without_numbers_sets_60_10_6(sock):
    ka.enable(sock)
    assert five(sock) == (1, 60, 10, 6, 0)


def test_none_leaves_a_timer_as_it_is(sock):
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 33)
    ka.enable(sock, 60, None, None)
    assert five(sock) == (1, 60, 33, FRESH[3], 0)


def test_none_leaves_every_value_as_it_is(sock):
    ka.apply(sock, ka.Config(True, 61, 11, 4, 5000))
    ka.apply(sock, ka.Config(None, None, None, None, None))
    ka.enable(sock, None, None, None)
    ka.set_user_timeout(sock, None)
    ka.set_rto_max(sock, None)
    assert ka.enable_lenient(sock, None, None, None) == ka.Missed(0)
    assert five(sock) == (1, 61, 11, 4, 5000)
    assert rto_max(sock) == FRESH_RTO_MAX


def test_a_user_timeout_of_0_removes_it(sock):
    ka.apply(sock, ka.Config(user_timeout=5000))
    ka.apply(sock, ka.Config(user_timeout=0))
    assert five(sock)[4] == 0 and ka.query(sock).user_timeout == 0
    ka.set_user_timeout(sock, 5000)
    ka.set_user_timeout(sock, 0)
    assert five(sock)[4] == 0 and ka.get_user_timeout(sock) == 0
    ka.apply(sock, ka.Config(user_timeout=5000))
    ka.apply(sock, ka.parse("user_timeout=none"))
    assert five(sock) == (1, *FRESH[1:4], 0)


@pytest.mark.parametrize(
    "values, missed, timers",
    [
        ((60, 10, 5), ka.Missed(0), (60, 10, 5)),
        ((32767, 32767, 127), ka.Missed(0), (32767, 32767, 127)),
        ((None, 0, -1), ka.Missed(0), FRESH[1:4]),
        ((-(2**32) + 60, 10, -(2**70)), ka.Missed(0), (FRESH[1], 10, FRESH[3])),
        ((86400, 10, 5), ka.Missed.IDLE, (32767, 10, 5)),
        ((60, 32768, 5), ka.Missed.INTVL, (60, 32767, 5)),
        # ctypes would pass this as 5.
        ((60, 10, 2**32 + 5), ka.Missed.CNT, (60, 10, 127)),
        ((2**70, 2**31, 128), ka.Missed.IDLE | ka.Missed.INTVL | ka.Missed.CNT, (32767, 32767, 127)),
    ],
)
def test_enable_lenient_turns_keepalive_on_and_returns_the_missed_timers(sock, values, missed, timers):
    result = ka.enable_lenient(sock, *values)
    assert isinstance(result, ka.Missed) and result == missed
    assert five(sock) == (1, *timers, 0)


def test_enable_lenient_without_numbers_sets_60_10_6(sock):
    assert not ka.enable_lenient(sock)
    assert five(sock) == (1, 60, 10, 6, 0)


def test_enable_lenient_leaves_other_sockets_alone():
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        assert ka.enable_lenient(sock, 60, 10, 128) == ka.Missed.TCP
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


def test_enable_lenient_reports_descriptors_that_are_not_sockets():
    for sock, number, words in not_sockets():
        if number != errno.ENOPROTOOPT:
            with pytest.raises(OSError, match=words) as caught:
                ka.enable_lenient(sock)
            assert caught.value.errno == number


@pytest.mark.parametrize("value", [1.5, "60", True])
def test_enable_lenient_rejects_wrong_types(sock, value):
    with pytest.raises(TypeError, match="intvl must be a whole number"):
        ka.enable_lenient(sock, intvl=value)
    assert five(sock) == FRESH


def test_disable_keeps_the_timers(sock):
    ka.enable(sock, 60, 10, 5)
    ka.disable(sock)
    assert five(sock) == (0, 60, 10, 5, 0)
    assert ka.is_enabled(sock) is False


def test_accepted_connections_inherit_the_settings(listener):
    ka.enable(listener, 60, 10, 5)
    with socket.create_connection(listener.getsockname()) as client:
        accepted, _ = listener.accept()
        with accepted:
            assert five(accepted) == (1, 60, 10, 5, 0)
            assert five(client)[0] == 0


class Wrapper:
    def __init__(self, sock):
        self.sock = sock

    def fileno(self):
        return self.sock.fileno()


@pytest.mark.parametrize("way", [socket.socket.fileno, Wrapper, lambda sock: sock.makefile("rb")])
def test_objects_with_a_descriptor_are_accepted(sock, way):
    ka.enable(way(sock), 60, 10, 5)
    assert five(sock) == (1, 60, 10, 5, 0)


def test_tls_sockets_are_accepted(sock):
    context = ssl.create_default_context()
    with context.wrap_socket(sock, server_hostname="localhost", do_handshake_on_connect=False) as tls:
        ka.enable(tls, 60, 10, 5)
        assert five(tls) == (1, 60, 10, 5, 0)


def test_ipv6_sockets_are_accepted():
    try:
        sock = socket.socket(socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with sock:
        ka.enable(sock, 60, 10, 5)
        assert five(sock) == (1, 60, 10, 5, 0)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"idle": 0}, "idle is 0 s: it must be 1..32767 s"),
        ({"idle": -1}, "idle is -1 s"),
        ({"idle": 32768}, "idle is 32768 s"),
        ({"intvl": 0}, "intvl is 0 s"),
        ({"cnt": 128}, "cnt is 128 probes: it must be 1..127 probes"),
        # C would take this number as 60.
        ({"idle": 2**32 + 60}, "idle is 4294967356 s"),
    ],
)
def test_errors_name_the_value_that_is_out_of_range(sock, values, words):
    with pytest.raises(ka.InvalidArgument, match=words) as caught:
        ka.enable(sock, **values)
    assert caught.value.errno == errno.EINVAL
    assert isinstance(caught.value, OSError) and isinstance(caught.value, ValueError)
    assert five(sock) == FRESH


@pytest.mark.parametrize("value", [1.5, 60.0, "60", True, b"60"])
def test_values_must_be_whole_numbers(sock, value):
    with pytest.raises(TypeError, match="idle must be a whole number"):
        ka.enable(sock, idle=value)
    assert five(sock) == FRESH


def not_sockets():
    closed = socket.socket()
    closed.close()
    return [
        (closed, errno.EBADF, "is not open"),
        (999, errno.EBADF, "999 is not open"),
        (-1, errno.EBADF, "-1 is not open"),
        # C would take this number as 0.
        (2**32, errno.EBADF, "4294967296 is not open"),
        (os.open("/dev/null", os.O_RDONLY), errno.ENOTSOCK, "is not a socket"),
        (socket.socket(type=socket.SOCK_DGRAM), errno.ENOPROTOOPT, "not TCP"),
        (socket.socket(socket.AF_UNIX), errno.ENOPROTOOPT, "not TCP"),
    ]


CALLS = [
    ka.enable,
    ka.disable,
    ka.is_enabled,
    ka.get_idle,
    ka.get_intvl,
    ka.get_cnt,
    ka.get_user_timeout,
    ka.get_rto_max,
    lambda sock: ka.set_rto_max(sock, 2000),
    lambda sock: ka.set_rto_max(sock, ka.AUTO),
    lambda sock: ka.set_user_timeout(sock, 0),
    lambda sock: ka.set_user_timeout(sock, ka.AUTO),
    lambda sock: ka.apply(sock, ka.Config(keepalive=True, idle=60)),
    ka.query,
    ka.get_status,
    ka.probe,
]


@pytest.mark.parametrize("call", CALLS)
def test_every_call_reports_descriptors_that_are_not_tcp_sockets(call):
    for sock, number, words in not_sockets():
        with pytest.raises(OSError, match=words) as caught:
            call(sock)
        assert caught.value.errno == number
        assert not isinstance(caught.value, ValueError)
        if isinstance(sock, socket.socket):
            sock.close()
        elif number == errno.ENOTSOCK:
            os.close(sock)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("what", ["socket", None, 1.0, True, object()])
def test_other_types_than_sockets_are_type_errors(call, what):
    with pytest.raises(TypeError, match="expected a socket"):
        call(what)


def test_objects_without_a_descriptor_raise_their_own_error():
    with pytest.raises(io.UnsupportedOperation):
        ka.enable(io.BytesIO())


def test_arguments_are_checked_before_the_descriptor():
    with pytest.raises(ka.InvalidArgument, match="idle"):
        ka.enable(-1, idle=0)


def test_query_returns_the_settings_of_apply(sock):
    config = ka.Config(keepalive=True, idle=61, intvl=11, cnt=4, user_timeout=5000)
    ka.apply(sock, config)
    assert five(sock) == (1, 61, 11, 4, 5000)
    assert ka.query(sock) == dataclasses.replace(config, rto_max=FRESH_RTO_MAX)
    ka.apply(sock, ka.Config(intvl=12))
    assert five(sock) == (1, 61, 12, 4, 5000)
    ka.apply(sock, ka.Config(keepalive=False))
    assert five(sock) == (0, 61, 12, 4, 5000)
    ka.apply(sock, ka.Config())
    assert five(sock) == (0, 61, 12, 4, 5000)


def test_a_new_socket_has_the_defaults(sock):
    assert ka.query(sock) == ka.defaults()
    kernel = five(sock)
    assert ka.query(sock) == ka.Config(False, *kernel[1:], FRESH_RTO_MAX)


@pytest.mark.parametrize("value", [1, 0, "on"])
def test_keepalive_must_be_true_or_false(sock, value):
    with pytest.raises(TypeError, match="keepalive must be True, False or None"):
        ka.apply(sock, ka.Config(keepalive=value))
    assert five(sock) == FRESH


def test_set_user_timeout_sets_removes_and_rejects_values(sock):
    ka.enable(sock, 60, 10, 5)
    ka.set_user_timeout(sock, 7000)
    assert five(sock) == (1, 60, 10, 5, 7000)
    ka.set_user_timeout(sock, ka.AUTO)
    assert five(sock)[4] == 1000 * (60 + 10 * 5)
    ka.set_user_timeout(sock, None)
    assert five(sock)[4] == 110000
    ka.set_user_timeout(sock, 0)
    assert five(sock)[4] == 0
    for value in (-1, -2, -3, 2**31):
        with pytest.raises(ka.InvalidArgument, match="user_timeout is"):
            ka.set_user_timeout(sock, value)
    assert five(sock)[4] == 0
    ka.apply(sock, ka.Config(True, 32767, 32767, 127))
    with pytest.raises(ka.InvalidArgument, match="user_timeout is ka.AUTO"):
        ka.set_user_timeout(sock, ka.AUTO)


@needs_rto_max
def test_rto_max_is_set_and_read(sock):
    ka.apply(sock, ka.Config(True, 60, 10, 5, rto_max=2000))
    assert five(sock) == (1, 60, 10, 5, 0) and rto_max(sock) == 2000
    assert ka.get_rto_max(sock) == ka.query(sock).rto_max == 2000
    ka.set_rto_max(sock, 3000)
    assert rto_max(sock) == 3000
    ka.set_rto_max(sock, None)
    assert rto_max(sock) == 3000
    ka.set_rto_max(sock, ka.AUTO)
    # The largest value whose time is at most idle + intvl * cnt. The kernel rounds it up to its tick, at most 10 ms.
    automatic = rto_max(sock)
    assert automatic < 1010 or ka.data_time(ka.Config(rto_max=automatic - 10)).typical_ms <= 110000
    assert automatic == 120000 or ka.data_time(ka.Config(rto_max=automatic + 1)).typical_ms > 110000
    for value in (0, -1, -2, -3, 999, 120001):
        with pytest.raises(ka.InvalidArgument, match="rto_max is"):
            ka.set_rto_max(sock, value)
    assert rto_max(sock) == automatic


@pytest.mark.skipif(FRESH_RTO_MAX is not None, reason="this kernel has rto_max")
def test_kernels_without_rto_max_reject_it(sock):
    assert ka.query(sock).rto_max is None
    for call in [ka.get_rto_max, lambda sock: ka.apply(sock, ka.Config(True, rto_max=2000))]:
        with pytest.raises(OSError, match="Linux 6.15") as caught:
            call(sock)
        assert caught.value.errno == errno.EOPNOTSUPP
    assert five(sock) == FRESH


def test_mptcp_rejects_a_user_timeout_and_rto_max():
    try:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    except OSError as error:
        pytest.skip(f"no MPTCP here: {error}")
    with sock:
        ka.enable(sock, 60, 10, 5)
        assert ka.query(sock) == ka.Config(True, 60, 10, 5, None)
        with pytest.raises(OSError, match="MPTCP") as caught:
            ka.set_user_timeout(sock, 1000)
        assert caught.value.errno == errno.EOPNOTSUPP
        with pytest.raises(OSError, match="MPTCP") as caught:
            ka.set_rto_max(sock, 2000)
        assert caught.value.errno == errno.EOPNOTSUPP


def test_status_equals_the_kernel_s_tcp_info(listener):
    info = getattr(socket, "TCP_INFO")
    assert ka.get_status(listener).state == listener.getsockopt(socket.IPPROTO_TCP, info, 1)[0] == 10
    with socket.create_connection(listener.getsockname()) as client:
        status = ka.get_status(client)
        assert (status.state, status.probes, status.retransmits, status.unacked) == (1, 0, 0, 0)
        assert 0 < status.rtt_us < 1_000_000
        assert status.last_recv_ms < 10_000


def test_probe_tells_whether_the_peer_has_sent_something(listener):
    with socket.create_connection(listener.getsockname()) as client:
        before = five(client)
        assert ka.probe(client) is True and ka.probe(client, timeout=0) is True
        time.sleep(1.2)
        assert ka.probe(client, 0) is False
        assert ka.probe(client, 10) is True
        assert five(client) == before


def test_other_threads_run_during_a_probe(listener):
    # If the peer reads nothing and its window is closed, the kernel sends no probe, and the call waits.
    with socket.create_connection(listener.getsockname()) as client:
        client.setblocking(False)
        end = time.monotonic() + 60
        is_silent = False
        while not is_silent:
            assert time.monotonic() < end
            with contextlib.suppress(BlockingIOError):
                client.send(bytes(1 << 20))
            ran = []
            timer = threading.Timer(0.1, lambda: ran.append(time.monotonic()))
            timer.start()
            is_silent = not ka.probe(client, 1)
            returned = time.monotonic()
            timer.join()
            assert ran[0] < returned - 0.5 or not is_silent


def test_probe_reports_the_error_of_a_dead_connection_and_leaves_it_pending(listener):
    with socket.create_connection(listener.getsockname()) as client:
        peer, _ = listener.accept()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        while ka.get_status(client).state == 1:
            time.sleep(0.01)
        with pytest.raises(ConnectionResetError):
            ka.probe(client)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
        with pytest.raises(OSError, match="is not connected") as caught:
            ka.probe(client)
        assert caught.value.errno == errno.ENOTCONN


@pytest.mark.parametrize("timeout", [-0.001, -1, float("nan"), float("inf"), 2147483.648, 10**400])
def test_timeouts_out_of_range_are_rejected(sock, timeout):
    with pytest.raises(ka.InvalidArgument, match="timeout is .* seconds: it must be 0..2147483.647 seconds") as caught:
        ka.probe(sock, timeout)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("timeout", [None, "1", True, b"1"])
def test_other_types_than_numbers_are_type_errors(sock, timeout):
    with pytest.raises(TypeError, match="timeout must be a number of seconds"):
        ka.probe(sock, timeout)
