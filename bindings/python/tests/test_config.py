"""Policies: as text, worked out, and as options."""

import errno
import socket

import pytest
from conftest import five

import ka


def test_text():
    assert ka.parse("60,10,5") == ka.Config(True, 60, 10, 5, None)
    assert ka.parse("60, 10, 5") == ka.parse("1m:10s:5") == ka.parse("60,10,5")
    assert ka.parse("idle=60,user_timeout=auto,keep") == ka.Config(None, 60, None, None, ka.AUTO)
    assert ka.parse("off") == ka.Config(enabled=False)
    assert ka.format(ka.Config(True, 60, 10, 5)) == "idle=60,intvl=10,cnt=5"
    for config in [ka.Config(), ka.Config(False, 1, 2, 3, 4), ka.Config(None, 32767, 32767, 127, 2**31 - 1)]:
        assert ka.parse(ka.format(config)) == config


@pytest.mark.parametrize("text", ["", "60,10", "60 10 5", "60,10,5\0", "idle=60,idle=60", "ä", "\ud800", "06,1,1"])
def test_a_text_that_is_no_policy_is_named(text):
    with pytest.raises(ka.InvalidArgument, match="is no policy") as caught:
        ka.parse(text)
    assert caught.value.errno == errno.EINVAL
    assert repr(text) in str(caught.value)


def test_a_number_out_of_range_in_a_text():
    with pytest.raises(ka.InvalidArgument, match="out of its range") as caught:
        ka.parse("60,10,128")
    assert caught.value.errno == errno.ERANGE


@pytest.mark.parametrize("text", [None, b"60,10,5", 60])
def test_a_policy_s_text_is_a_str(text):
    with pytest.raises(TypeError, match="must be a str"):
        ka.parse(text)


def test_plans():
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
    # What C would take for 350.
    with pytest.raises(ka.InvalidArgument, match="path_idle_s is"):
        ka.plan_path(2**32 + 350)


@pytest.mark.parametrize("name", ["", "nope", "aws-nlb\0", "ä"])
def test_a_preset_that_is_none(name):
    with pytest.raises(FileNotFoundError, match="no preset"):
        ka.plan_preset(name)


def test_what_detect_time_needs():
    for config in [ka.Config(False, 60, 10, 5), ka.Config(None, 60, 10, 5), ka.Config(True, 60, 10, None)]:
        with pytest.raises(ka.InvalidArgument, match="must have enabled=True"):
            ka.detect_time(config)
    with pytest.raises(ka.InvalidArgument, match="cnt is 0"):
        ka.detect_time(ka.Config(True, 60, 10, 0))


def test_a_config_is_needed(sock):
    for call in [lambda c: ka.apply(sock, c), ka.format, ka.detect_time, ka.socket_options]:
        with pytest.raises(TypeError, match="must be a ka.Config"):
            call("60,10,5")


def test_options_are_the_policy_with_keepalive_last(sock):
    options = ka.socket_options(ka.Config(True, 60, 10, 5, ka.AUTO))
    assert options[-1] == (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option in options:
        sock.setsockopt(*option)
    assert five(sock) == (1, 60, 10, 5, 110000)
    assert ka.socket_options(ka.Config()) == []
    assert ka.socket_options(ka.Config(idle=60)) == [(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)]
    for config in [ka.Config(idle=0), ka.Config(user_timeout=ka.AUTO), ka.Config(True, 32767, 32767, 127, ka.AUTO)]:
        with pytest.raises(ka.InvalidArgument):
            ka.socket_options(config)
