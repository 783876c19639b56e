"""Tests policies: as text, computed, and as socket options."""

import errno
import socket

import pytest
from conftest import five, needs_rto_max, rto_max

import ka


def test_parse_reads_back_the_text_of_format():
    assert ka.parse("60,10,5") == ka.Config(True, 60, 10, 5, None)
    assert ka.parse("60, 10, 5") == ka.parse("1m:10s:5") == ka.parse("60,10,5")
    assert ka.parse("idle=60,user_timeout=auto,keep") == ka.Config(None, 60, None, None, ka.AUTO)
    assert ka.parse("off") == ka.Config(keepalive=False)
    assert ka.parse("user_timeout=0,keep") == ka.parse("user_timeout=none,keep") == ka.Config(user_timeout=0)
    assert ka.parse("rto_max=2s,keep") == ka.Config(rto_max=2000)
    assert ka.parse("rto_max=auto,off") == ka.Config(False, rto_max=ka.AUTO)
    assert ka.format(ka.Config(True, 60, 10, 5)) == "idle=60,intvl=10,cnt=5"
    assert ka.format(ka.Config(user_timeout=0)) != ka.format(ka.Config())
    for config in [
        ka.Config(),
        ka.Config(False, 1, 2, 3, 4),
        ka.Config(None, 32767, 32767, 127, 2**31 - 1),
        ka.Config(True, user_timeout=0),
        ka.Config(True, user_timeout=ka.AUTO),
        ka.Config(True, rto_max=120000),
        ka.Config(None, 1, 2, 3, 4, ka.AUTO),
    ]:
        assert ka.parse(ka.format(config)) == config


@pytest.mark.parametrize(
    "text, number, message",
    [
        ("", errno.EINVAL, '"": must be idle=, intvl=, cnt=, user_timeout= or rto_max= with a value, or on, off or keep'),
        ("60,10", errno.EINVAL, '"60,10": numbers without names must be three: idle,intvl,cnt'),
        ("60,10,128", errno.ERANGE, '"128": cnt must be 1..127 probes'),
        ("cnt=0", errno.ERANGE, '"cnt=0": cnt must be 1..127 probes'),
        ("rto_max=0", errno.ERANGE, '"rto_max=0": rto_max must be 1000..120000 ms'),
        ("idle=60,idle=60", errno.EINVAL, '"idle=60": is given twice'),
        ("06,1,1", errno.EINVAL, '"06": must be a time, as 60, 60s or 5m'),
        ("60,10,5\0", errno.EINVAL, "a policy must not contain a NUL character"),
        ("\0", errno.EINVAL, "a policy must not contain a NUL character"),
    ],
)
def test_parse_errors_have_the_message_of_explain(text, number, message):
    with pytest.raises(ValueError) as caught:
        ka.parse(text)
    assert isinstance(caught.value, ka.InvalidArgument)
    assert (caught.value.errno, caught.value.strerror) == (number, message)
    assert ka.explain(text) == message


@pytest.mark.parametrize(
    "text, item",
    [("ä", r'"\xc3\xa4": '), ("\ud800", r'"\xed\xa0\x80": '), ("x\n\x1b[", r'"x\n\x1b[": ')],
)
def test_messages_about_a_text_are_printable_ascii(text, item):
    message = ka.explain(text)
    assert message.startswith(item) and message.isascii() and message.isprintable()


def test_messages_about_a_long_text_are_not_truncated():
    text = "x" * 5000
    assert ka.explain(text).startswith(f'"{text}": must be ')


def test_explain_accepts_what_parse_accepts():
    for text in ["60,10,5", " 1m : 10s : 5 ", "off", "idle=5m, user_timeout=auto"]:
        ka.parse(text)
        assert ka.explain(text) == ""


@pytest.mark.parametrize("text", [None, b"60,10,5", 60])
@pytest.mark.parametrize("function", [ka.parse, ka.explain])
def test_the_text_of_a_policy_must_be_a_str(function, text):
    with pytest.raises(TypeError, match="must be a str"):
        function(text)


def test_plans_equal_those_of_libka_and_errors_name_the_value():
    assert ka.plan_path(350) == ka.Config(True, 280, 30, 5)
    assert ka.plan_preset("aws-nlb") == ka.plan_path(350)
    assert ka.plan_preset("azure-lb") == ka.plan_path(240)
    plan = ka.plan_detect(30000)
    assert ka.detect_time(plan).worst_ms <= 30000
    assert ka.detect_time(ka.Config(True, 60, 10, 5)).typical_ms == 110000
    for call, words in [(lambda: ka.plan_path(2), "after 2 s"), (lambda: ka.plan_detect(2273), "within 2273 ms")]:
        with pytest.raises(ka.InvalidArgument, match=words) as caught:
            call()
        assert caught.value.errno == errno.ERANGE
    # C would take this number as 350.
    with pytest.raises(ka.InvalidArgument, match="path_idle_s is"):
        ka.plan_path(2**32 + 350)


@pytest.mark.parametrize("name", ["", "nope", "aws-nlb\0", "ä"])
def test_unknown_presets_are_rejected(name):
    with pytest.raises(FileNotFoundError, match="no preset"):
        ka.plan_preset(name)


def test_detect_time_needs_keepalive_and_all_timers():
    for config in [ka.Config(False, 60, 10, 5), ka.Config(None, 60, 10, 5), ka.Config(True, 60, 10, None)]:
        with pytest.raises(ka.InvalidArgument, match="must have keepalive=True"):
            ka.detect_time(config)
    with pytest.raises(ka.InvalidArgument, match="cnt is 0"):
        ka.detect_time(ka.Config(True, 60, 10, 0))


def test_data_time_depends_on_rto_max_and_user_timeout():
    with open("/proc/sys/net/ipv4/tcp_retries2") as file:
        retries = int(file.read())
    # The time between two retransmissions doubles from 200 ms. The kernel's tcp_model_timeout computes the same sum.
    expected = sum(min(200 * 2**n, 2000) for n in range(retries + 1))
    assert ka.data_time(ka.Config(rto_max=2000)) == (expected, expected + 2000)
    assert ka.data_time(ka.Config(True, 60, 10, 5, 30000, 2000)) == (30000, 32000)
    assert ka.data_time(ka.Config(True, 60, 10, 5, ka.AUTO, 2000)) == (110000, 112000)
    for config in [ka.Config(True, 60, 10, None, ka.AUTO), ka.Config(rto_max=ka.AUTO)]:
        with pytest.raises(ka.InvalidArgument, match="idle, intvl and cnt must not be None"):
            ka.data_time(config)
    with pytest.raises(ka.InvalidArgument, match="user_timeout is ka.AUTO"):
        ka.data_time(ka.Config(True, 32767, 32767, 127, ka.AUTO))
    with pytest.raises(ka.InvalidArgument, match="rto_max is 999 ms"):
        ka.data_time(ka.Config(rto_max=999))


def test_other_types_than_config_are_rejected(sock):
    for call in [lambda c: ka.apply(sock, c), ka.format, ka.detect_time, ka.data_time, ka.socket_options]:
        with pytest.raises(TypeError, match="must be a ka.Config"):
            call("60,10,5")


def test_socket_options_set_the_policy_with_keepalive_last(sock):
    options = ka.socket_options(ka.Config(True, 60, 10, 5, ka.AUTO))
    assert options[-1] == (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option in options:
        sock.setsockopt(*option)
    assert five(sock) == (1, 60, 10, 5, 110000)
    for option in ka.socket_options(ka.Config(keepalive=False, user_timeout=0)):
        sock.setsockopt(*option)
    assert five(sock) == (0, 60, 10, 5, 0)
    assert ka.socket_options(ka.Config()) == []
    assert ka.socket_options(ka.Config(idle=60)) == [(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)]
    for config in [ka.Config(idle=0), ka.Config(user_timeout=ka.AUTO), ka.Config(True, 32767, 32767, 127, ka.AUTO)]:
        with pytest.raises(ka.InvalidArgument):
            ka.socket_options(config)


@needs_rto_max
def test_socket_options_include_rto_max(sock):
    for option in ka.socket_options(ka.Config(rto_max=2000)):
        sock.setsockopt(*option)
    assert rto_max(sock) == 2000
    # AUTO is the value that libka computes for a socket.
    config = ka.Config(True, 60, 10, 5, None, ka.AUTO)
    ka.apply(sock, config)
    automatic = rto_max(sock)
    ka.set_rto_max(sock, 1000)
    for option in ka.socket_options(config):
        sock.setsockopt(*option)
    assert rto_max(sock) == automatic


def test_socket_options_need_all_timers_for_an_automatic_rto_max():
    with pytest.raises(ka.InvalidArgument, match="rto_max is ka.AUTO"):
        ka.socket_options(ka.Config(True, 60, 10, None, None, ka.AUTO))
