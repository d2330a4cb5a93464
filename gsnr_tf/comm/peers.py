"""Reading what other ranks hold without their taking part.

A collective needs all ranks at one point. Saving does not happen at one point: one
rank saves while the others wait for it in the next step. So each rank answers
requests for its share from a thread of its own. What it hands out is its share after
a given number of changes: ranks cannot be ahead of one another, since no update ends
without the gradients of all, but they may be a moment behind.
"""

import functools
import hmac
import http.client
import http.server
import os
import secrets
import socket
import threading
import time
import uuid
import weakref

import psutil

_CONNECT_SECONDS = 5
# How long a rank may be behind in an update or a load that this one has finished.
_BEHIND_SECONDS = 60
_published = weakref.WeakValueDictionary()


class PeerLost(RuntimeError):
    """A rank did not hand out its share."""


class Peers:
    """The shares that all ranks hold of something.

    Args:
        gather: Collective that lists what each rank passed to it.
        share: Object of this rank with `changes()`, how many changes it has been
            through, and `own(what)`, the bytes that it has of `what`.
    """

    def __init__(self, gather, share):
        port, token = _server()
        name = uuid.uuid4().hex
        _published[name] = share
        self._share = weakref.ref(share)
        self._own = (_hosts(), port, token, name)
        self._ranks = gather(self._own)

    def collect(self, what):
        """What each rank holds of `what` after as many changes as this rank.

        Args:
            what: String of letters, digits, slashes and dots.

        Returns:
            List of bytes, one entry for each rank.

        Raises:
            PeerLost: A rank cannot be reached, or has had other changes.
        """
        share = self._share()
        changes = share.changes()
        return [
            share.own(what) if other == self._own else self._ask(rank, what, changes)
            for rank, other in enumerate(self._ranks)
        ]

    def _ask(self, rank, what, changes):
        hosts, port, token, name = self._ranks[rank]
        failures = []
        for host in hosts:
            try:
                found = _get(host, port, token, f"/{name}/{changes}/{what}")
            except OSError as error:
                failures.append(f"{host}:{port}: {error}")
                continue
            self._ranks[rank] = ([host], port, token, name)
            return found
        raise PeerLost(
            f"Rank {rank} holds a part of the optimizer's state and cannot be reached "
            f"({'; '.join(failures)}). If ranks may only connect as Horovod does, use "
            "sharding='none': every rank has all state then."
        )


def _hosts():
    """Names and addresses of this host, the likeliest first."""
    addresses = [
        address.address
        for interface in psutil.net_if_addrs().values()
        for address in interface
        if address.family == socket.AF_INET
    ]
    outside = [a for a in addresses if not a.startswith("127.")]
    # The launcher's name for this host, by which it has reached it itself.
    named = os.environ.get("HOROVOD_HOSTNAME", "localhost")
    names = [socket.gethostname(), *outside, "127.0.0.1"]
    if named not in ("localhost", "127.0.0.1"):
        names.insert(0, named)
    return list(dict.fromkeys(names))


def _get(host, port, token, path):
    connection = http.client.HTTPConnection(host, port, timeout=_CONNECT_SECONDS)
    try:
        connection.connect()
        connection.sock.settimeout(2 * _BEHIND_SECONDS)
        connection.request("GET", path, headers={"Authorization": token})
        response = connection.getresponse()
        body = response.read()
    except http.client.HTTPException as error:
        raise OSError(f"no answer ({error!r})") from error
    finally:
        connection.close()
    if response.status != 200:
        raise OSError(f"{response.status} {response.reason}")
    return body


@functools.cache
def _server():
    """Port and token of this process' server, which starts at the first call."""
    token = secrets.token_hex(16)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            given = self.headers.get("Authorization", "")
            if not hmac.compare_digest(given.encode(), token.encode()):
                self.send_error(403)
                return
            _, name, changes, what = self.path.split("/", 3)
            status, body = _answer(name, int(changes), what)
            if status != 200:
                self.send_error(status, body)
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            """Nothing on the screen of a training job."""

    server = http.server.ThreadingHTTPServer(("", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port, token


def _answer(name, changes, what):
    share = _published.get(name)
    if share is None:
        return 410, "the optimizer is gone"
    deadline = time.monotonic() + _BEHIND_SECONDS
    while share.changes() < changes and time.monotonic() < deadline:
        time.sleep(0.002)
    if share.changes() != changes:
        return 409, f"{share.changes()} updates and loads, asked for {changes}"
    return 200, share.own(what)
