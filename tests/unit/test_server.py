"""What listens to the other ranks, and what strangers get to see of it."""

import contextlib
import os
import socket
import threading
import time

import pytest

from gsnr_tf.comm import member, server
from gsnr_tf.comm.server import Refused, Server, ask

SECRET = bytes(range(32))
SECONDS = 30


def answer(question):
    if question == "quick":
        return b"at once"
    if question == "slow":
        return lambda: b"made"
    if question == "no":
        raise Refused("not today")
    if question == "slow no":

        def refuse():
            raise Refused("nor tomorrow")

        return refuse
    raise KeyError(question)


@pytest.fixture
def address():
    """That of a server, which has printed nothing when the test is over."""
    started = Server(["127.0.0.1"], SECRET, answer)
    yield started.addresses[0]
    # Whatever came before, who knows the secret is answered.
    assert ask(started.addresses[0], SECRET, "quick", SECONDS) == b"at once"
    assert ask(started.addresses[0], SECRET, "slow", SECONDS) == b"made"
    started.close()


def closed(connection):
    """Whether the other side hangs up without having said anything."""
    connection.settimeout(SECONDS)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("secret", [bytes(32), SECRET[:-1] + b"x", b"x" * 1000])
def test_who_does_not_know_the_secret_is_hung_up_on(address, secret):
    with pytest.raises(OSError, match="closed without an answer|reset"):
        ask(address, secret, "quick", SECONDS)


@pytest.mark.parametrize("question, why", [("no", "not today"), ("slow no", "nor tom")])
def test_a_refusal_says_why(address, question, why):
    with pytest.raises(Refused, match=why):
        ask(address, SECRET, question, SECONDS)


def test_an_unforeseen_error_goes_to_who_asks(address):
    with pytest.raises(Refused, match="KeyError: 'what'"):
        ask(address, SECRET, "what", SECONDS)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n",
        b"\x16\x03\x01\x02\x00" + os.urandom(200),
        b"\n" * 100,
        SECRET + b"a" * 100_000,
    ],
    ids=["http", "tls", "newlines", "endless"],
)
def test_rubbish_is_hung_up_on(address, sent, capfd):
    with socket.create_connection(address, timeout=SECONDS) as connection:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(sent)
        assert closed(connection)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("sent", [b"", SECRET[:5], SECRET, SECRET + b"quick"])
def test_a_question_that_never_ends_is_dropped(address, monkeypatch, sent):
    monkeypatch.setattr(server, "_READ_SECONDS", 0.2)
    with socket.create_connection(address, timeout=SECONDS) as connection:
        connection.sendall(sent)
        assert closed(connection)


def test_who_hangs_up_early_is_no_error(address, capfd):
    for sent in (b"", SECRET, SECRET + b"slow\n"):
        with socket.create_connection(address, timeout=SECONDS) as connection:
            connection.sendall(sent)
    assert ask(address, SECRET, "quick", SECONDS) == b"at once"
    assert capfd.readouterr() == ("", "")


def test_a_question_may_come_in_pieces(address):
    with socket.create_connection(address, timeout=SECONDS) as connection:
        for piece in (SECRET[:7], SECRET[7:], b"qui", b"ck\n"):
            connection.sendall(piece)
            time.sleep(0.01)
        assert connection.makefile("rb").read().endswith(b"at once")


def test_a_thousand_connections_hold_nobody_up(address, capfd):
    threads = threading.active_count()
    idle = []
    try:
        for _ in range(1000):
            connection = socket.create_connection(address, timeout=SECONDS)
            idle.append(connection)
            connection.sendall(SECRET[:4])
        assert ask(address, SECRET, "quick", SECONDS) == b"at once"
        assert threading.active_count() == threads
    finally:
        for connection in idle:
            connection.close()
    assert capfd.readouterr() == ("", "")


def test_who_does_not_read_holds_up_one_thread_only(monkeypatch):
    large = bytes(50_000_000)
    one = Server(["127.0.0.1"], SECRET, lambda question: lambda: large)
    with socket.create_connection(one.addresses[0], timeout=SECONDS) as lazy:
        lazy.sendall(SECRET + b"large\n")
        assert ask(one.addresses[0], SECRET, "large", SECONDS) == large
    one.close()


def test_a_closed_server_refuses_at_once():
    one = Server(["127.0.0.1"], SECRET, answer)
    one.close()
    with pytest.raises(ConnectionRefusedError):
        ask(one.addresses[0], SECRET, "quick", SECONDS)


def test_a_forked_child_does_not_keep_the_port_open():
    one = Server(["127.0.0.1"], SECRET, answer)
    waits, goes_on = os.pipe()
    is_there, says = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(goes_on)
        os.write(says, b"x")
        os.read(waits, 1)
        os._exit(0)
    try:
        os.read(is_there, 1)
        assert ask(one.addresses[0], SECRET, "quick", SECONDS) == b"at once"
        one.close()
        with pytest.raises(ConnectionRefusedError):
            ask(one.addresses[0], SECRET, "quick", SECONDS)
    finally:
        for end in (goes_on, waits, is_there, says):
            os.close(end)
        os.waitpid(child, 0)


def test_ranks_of_one_host_listen_to_nobody_else(monkeypatch):
    assert member.addresses(one_host=True) == ["127.0.0.1"]
    monkeypatch.setenv("HOROVOD_GLOO_IFACE", "lo")
    assert member.addresses(one_host=False) == ["127.0.0.1"]


def test_ranks_of_several_hosts_listen_where_gloo_does(monkeypatch):
    import collections

    address = collections.namedtuple("address", "family address")
    known = {
        "lo": [address(socket.AF_INET, "127.0.0.1")],
        "eth0": [address(socket.AF_INET6, "fd00::2"), address(socket.AF_INET, "10.0.0.2")],
        "eth1": [address(socket.AF_INET, "192.0.2.7")],
    }
    monkeypatch.setattr("psutil.net_if_addrs", lambda: known)
    monkeypatch.setenv("HOROVOD_GLOO_IFACE", "eth1")
    assert member.addresses(one_host=False) == ["192.0.2.7"]
    # Under MPI nobody says which interface it is.
    monkeypatch.delenv("HOROVOD_GLOO_IFACE")
    assert member.addresses(one_host=False) == ["10.0.0.2", "192.0.2.7"]


def test_processes_of_one_host_know_it():
    assert member.host() == member.host()
