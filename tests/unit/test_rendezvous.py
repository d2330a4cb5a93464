"""The launcher's rendezvous server: what ranks get, and what strangers do not."""

import base64
import http.client
import os
import pickle
import socket
import threading
import time
from types import SimpleNamespace

import pytest

from gsnr_tf.launch import rendezvous

SECONDS = 60


class _Touch:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mknod, (self.path,)


def touching(path):
    """What makes a file when Horovod's own server reads it."""
    return base64.b64encode(pickle.dumps(_Touch(path)))


def put(port, path, body, method="PUT"):
    """The status that a request gets."""
    return answer(port, path, body, method)[0]


def answer(port, path, body=None, method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


class Driver:
    """What the server calls of Horovod's `ElasticDriver`."""

    def __init__(self):
        self.ready, self.servers = [], {}

    def record_ready(self, host, slot):
        self.ready.append((host, slot))

    def get_slot_info(self, host, slot):
        return SimpleNamespace(to_response_string=lambda: f"{slot},2,0,1,0,1")

    def register_worker_server(self, host, slot, addresses, secret):
        self.servers[host, slot] = addresses, secret


@pytest.fixture
def served():
    """The server, its port, what the paths of those who know the token begin with."""
    server = rendezvous.Rendezvous()
    driver = Driver()
    assert server.start(driver) is server
    port = server.listen("127.0.0.1")
    yield SimpleNamespace(server=server, driver=driver, port=port, root=f"/{server.token}:{port}")
    server.stop()


def test_values_are_kept_until_all_ranks_have_left(served):
    slots = [
        SimpleNamespace(hostname="a", local_rank=i, local_size=2, cross_size=1) for i in range(2)
    ]
    served.server.init(slots)
    path = f"{served.root}/global/0"
    assert answer(served.port, path) == (404, b"")
    assert put(served.port, path, b"\x00address") == 200
    assert answer(served.port, path) == (200, b"\x00address")
    for rank, status in ((0, 200), (0, 200), (1, 404)):
        key = f"{served.root}/global/{rank}"
        assert answer(served.port, key, method="DELETE") == (200, b"")
        assert answer(served.port, path)[0] == status
    assert put(served.port, f"{served.root}/set.1/0", b"x") == 200
    assert answer(served.port, f"{served.root}/set.1/0", method="DELETE")[0] == 200
    assert answer(served.port, f"{served.root}/set.1/0")[0] == 404
    put(served.port, path, b"old")
    served.server.init(slots)
    assert answer(served.port, path)[0] == 404


def test_ranks_of_an_elastic_job_are_told_their_place_and_tell_their_address(served):
    assert answer(served.port, f"{served.root}/rank_and_size/h:1") == (
        200,
        b"1,2,0,1,0,1",
    )
    assert served.driver.ready == [("h", 1)]
    where = {"lo": [("127.0.0.1", 1)]}, b"secret"
    path = f"{served.root}/worker_addresses/h:1"
    assert put(served.port, path, base64.b64encode(pickle.dumps(where))) == 200
    assert served.driver.servers == {("h", 1): where}
    # The secret is for the driver alone.
    assert answer(served.port, path)[0] == 404


def test_what_is_sent_runs_no_code(served, tmp_path):
    payload = touching(tmp_path / "horovod")
    pickle.loads(base64.b64decode(payload))
    assert (tmp_path / "horovod").exists()
    path = f"{served.root}/worker_addresses/h:1"
    for body in (touching(tmp_path / "ours"), b"no base64", b"", b"gASVCg=="):
        assert put(served.port, path, body) == 400
    assert not (tmp_path / "ours").exists()
    assert not served.driver.servers


def test_horovods_messages_are_read_and_other_objects_are_not():
    from horovod.runner.common.service.driver_service import RegisterTaskRequest
    from horovod.runner.common.util import network, safe_shell_exec

    sent = RegisterTaskRequest(1, {"lo": [("127.0.0.1", 5)]}, "hash")
    got = rendezvous.loads(pickle.dumps(sent, protocol=pickle.HIGHEST_PROTOCOL))
    assert vars(got) == vars(sent)
    assert isinstance(rendezvous.loads(pickle.dumps(network.AckResponse())), object)
    for other in (safe_shell_exec.execute, eval, os.system, network.BasicService):
        with pytest.raises(pickle.UnpicklingError, match="no message of Horovod"):
            rendezvous.loads(pickle.dumps(other))


@pytest.mark.parametrize("token", ["", "x", "é", None])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_who_does_not_know_the_token_changes_nothing(served, token, method):
    mine = f"{served.root}/global/0"
    put(served.port, mine, b"mine")
    path = "/global/0" if token is None else f"/{token}:{served.port}/global/0"
    path = path.encode().decode("latin-1")
    with socket.create_connection(("127.0.0.1", served.port), SECONDS) as stranger:
        head = f"{method} {path} HTTP/1.0\r\nContent-Length: 6\r\n\r\nforged"
        stranger.sendall(head.encode("latin-1"))
        assert b" 403 " in stranger.makefile("rb").readline()
    assert answer(served.port, mine) == (200, b"mine")


def test_nothing_listens_at_other_addresses(served):
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", served.port), SECONDS)


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/worker_addresses/h:none", "Content-Length: 4\r\n"),
        ("/rank_and_size/h", "Content-Length: 4\r\n"),
        ("/global/0", ""),
        ("/global/0", "Content-Length: -1\r\n"),
        ("/global/0", "Content-Length: 99999999999\r\n"),
        ("/global/0", "Content-Length: many\r\n"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(served, path, headers):
    method = "GET" if "rank_and_size" in path else "PUT"
    with socket.create_connection(("127.0.0.1", served.port), SECONDS) as client:
        request = f"{method} {served.root}{path} HTTP/1.0\r\n{headers}\r\nabcd"
        client.sendall(request.encode())
        assert b" 400 " in client.makefile("rb").readline()


def test_rubbish_prints_nothing_and_ends_nothing(served, capfd):
    rubbish = [
        b"",
        b"\x00" * 100,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",  # how TLS begins
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"BREW /pot HTTP/1.0\r\n\r\n",
        b"GET " + b"/" * 70_000 + b" HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.0\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        bytes(range(256)) * 300,
    ]
    for data in rubbish:
        with socket.create_connection(("127.0.0.1", served.port), SECONDS) as stranger:
            try:
                stranger.sendall(data)
                stranger.shutdown(socket.SHUT_WR)
                stranger.makefile("rb").read()
            except OSError:
                pass  # it has hung up on us
    assert answer(served.port, f"{served.root}/global/0")[0] == 404
    assert capfd.readouterr() == ("", "")


def test_strangers_who_say_nothing_are_few_and_are_hung_up_on(served):
    before = threading.active_count()
    strangers = []
    try:
        for _ in range(3 * rendezvous._STRANGERS):
            strangers.append(socket.create_connection(("127.0.0.1", served.port), SECONDS))
        assert answer(served.port, f"{served.root}/global/0")[0] == 404
        deadline = time.monotonic() + SECONDS
        while threading.active_count() - before > rendezvous._STRANGERS:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for stranger in strangers:
            assert stranger.recv(1) == b""
    finally:
        for stranger in strangers:
            stranger.close()


def test_a_stranger_who_sends_a_byte_now_and_then_is_hung_up_on(served):
    with socket.create_connection(("127.0.0.1", served.port), SECONDS) as stranger:
        deadline = time.monotonic() + SECONDS
        with pytest.raises(OSError):
            while True:
                assert time.monotonic() < deadline
                stranger.sendall(b"G")
                time.sleep(0.2)
