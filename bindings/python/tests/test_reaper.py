"""Tests Reaper."""

import socket
import threading
import time

import pytest

import ka


def test_expired_returns_the_longest_inactive_first_and_each_once():
    with ka.Reaper(1000) as reaper:
        assert reaper.next(0) is None and len(reaper) == 0 and reaper.expired(10**9) == []
    with ka.Reaper(1000) as reaper:
        reaper.touch(7, 100)
        reaper.touch(5, 200)
        reaper.touch(7, 300)
        assert len(reaper) == 2
        assert (reaper.next(300), reaper.expired(1199)) == (900, [])
        assert reaper.expired(1200) == [5]
        assert reaper.next(1200) == 100
        assert reaper.expired(5000) == [7]
        assert reaper.expired(5000) == [] and reaper.next(5000) is None


@pytest.mark.parametrize("count", [1, 255, 256, 257, 1000])
def test_expired_returns_all_that_are_due_or_at_most_n(count):
    with ka.Reaper(1) as reaper:
        for fd in range(count):
            reaper.touch(fd, fd)
        assert reaper.expired(10**6, 0) == []
        assert reaper.expired(10**6, 2) == list(range(min(count, 2)))
        assert reaper.expired(10**6, 300) == list(range(2, min(count, 302)))
        assert reaper.expired(10**6) == list(range(302, count))
        assert len(reaper) == 0


def test_touch_and_forget_accept_sockets():
    with ka.Reaper(1000) as reaper, socket.socket() as sock:
        reaper.touch(sock, 0)
        reaper.forget(sock)
        with pytest.raises(FileNotFoundError, match="does not have"):
            reaper.forget(sock)
        sock.close()
        with pytest.raises(OSError, match="is not open"):
            reaper.touch(sock, 0)


def test_the_default_clock_is_monotonic():
    with ka.Reaper(50) as reaper:
        reaper.touch(3)
        left = reaper.next()
        assert left is not None and 0 <= left <= 50
        time.sleep(0.06)
        assert reaper.expired() == [3]


def test_calls_on_a_closed_reaper_raise_value_error():
    reaper = ka.Reaper(1000)
    reaper.close()
    reaper.close()
    for call in [lambda: reaper.touch(1), lambda: reaper.forget(1), reaper.expired, reaper.next, lambda: len(reaper)]:
        with pytest.raises(ValueError, match="closed"):
            call()


@pytest.mark.parametrize("timeout", [0, -1, 2**32])
def test_a_timeout_out_of_range_is_rejected(timeout):
    with pytest.raises(ka.InvalidArgument, match="timeout_ms is"):
        ka.Reaper(timeout)


def test_threads_may_share_a_reaper():
    reaper = ka.Reaper(1000)

    def work(first):
        for fd in range(first, first + 2000):
            reaper.touch(fd, 5)
        for fd in range(first, first + 2000, 2):
            reaper.forget(fd)

    threads = [threading.Thread(target=work, args=(4000 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reaper) == 4000
    assert sorted(reaper.expired(5000)) == sorted(fd for n in range(4) for fd in range(4000 * n + 1, 4000 * n + 2000, 2))
