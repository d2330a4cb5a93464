"""Where ranks tell each other their addresses, closed to strangers.

Takes the place of Horovod's rendezvous server, which listens on all interfaces, answers
anyone, and unpickles what anyone sends to an elastic job. This one listens at one
address, answers those who know the job's token, and unpickles plain data only.

The ranks' clients, one of them compiled, make their URLs as
`http://ADDRESS:PORT/SCOPE/KEY` and can send no header. So the token travels in the path:
the ranks get `10.0.0.1:1234/TOKEN` for an address. See SECURITY.md.

Imports nothing of gsnr_tf: horovodrun.py is run by its path and takes it from there.
"""

import base64
import collections
import contextlib
import hmac
import http.server
import io
import pickle
import secrets
import socket
import threading
import time

_SECONDS = 5.0  # for a stranger to say the token, and for each read after that
_STRANGERS = 64  # connections at once that have not said it
_LONGEST = 1 << 26  # bytes of a value
_SERVICES = "horovod.runner.common"
# What Horovod's programs send each other: classes that only hold what they are given.
_MESSAGES = {
    (f"{_SERVICES}.util.network", "PingRequest"),
    (f"{_SERVICES}.util.network", "PingResponse"),
    (f"{_SERVICES}.util.network", "AckResponse"),
    (f"{_SERVICES}.service.driver_service", "RegisterTaskRequest"),
    (f"{_SERVICES}.service.driver_service", "RegisterTaskToTaskAddressesRequest"),
    (f"{_SERVICES}.service.driver_service", "AllTaskAddressesRequest"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) in _MESSAGES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no message of Horovod")


def loads(data):
    """Unpickles plain data and Horovod's messages.

    Raises:
        pickle.UnpicklingError: `data` asks for anything else, which is not imported,
            or is no pickle.
    """
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # rubbish fails in many ways
        raise pickle.UnpicklingError(f"no pickle: {error!r}") from error


class Rendezvous:
    """Has the methods that horovodrun calls on its `RendezvousServer`.

    Attributes:
        token: String, what a client must say.
    """

    def __init__(self, verbose=0):
        self.token = secrets.token_urlsafe(24)
        self._driver = self._server = None
        self._lock = threading.Lock()
        self._values, self._left, self._sizes = {}, collections.defaultdict(set), {}

    def start(self, driver=None):
        """Takes the driver of an elastic job. Returns what `listen` is called on."""
        self._driver = driver
        return self

    def listen(self, address):
        """Starts to answer at an IPv4 address of this host; returns the port."""
        self._server = server = _Server((address, 0), self)
        threading.Thread(target=server.serve_forever, name="rendezvous", daemon=True).start()
        return server.server_port

    def init(self, slots):
        """Forgets all, for ranks in these slots, a list of Horovod's `SlotInfo`."""
        with self._lock:
            self._values.clear()
            self._left.clear()
            self._sizes = {"global": len(slots)}
            for slot in slots:
                self._sizes[f"local_{slot.hostname}"] = slot.local_size
                self._sizes[f"cross_{slot.local_rank}"] = slot.cross_size

    def stop(self):
        if self._server:
            self._server.shutdown()
            self._server.server_close()

    def get(self, scope, key):
        """The value as bytes; `None` where there is none yet."""
        if scope == "rank_and_size" and self._driver:
            host, _, local_rank = key.rpartition(":")
            # Waits until all ranks have asked.
            self._driver.record_ready(host, int(local_rank))
            slot = self._driver.get_slot_info(host, int(local_rank))
            return slot.to_response_string().encode("ascii")
        with self._lock:
            return self._values.get(scope, {}).get(key)

    def put(self, scope, key, value):
        if scope == "worker_addresses" and self._driver:
            host, _, local_rank = key.rpartition(":")
            addresses, secret = loads(base64.b64decode(value, validate=True))
            # Kept by the driver alone: whoever has the secret can talk to the rank.
            self._driver.register_worker_server(host, int(local_rank), addresses, secret)
            return
        with self._lock:
            self._values.setdefault(scope, {})[key] = value

    def delete(self, scope, key):
        """A rank needs its own value no more; all values go when all ranks say so."""
        with self._lock:
            if scope not in self._sizes:
                self._values.get(scope, {}).pop(key, None)
                return
            self._left[scope].add(key)
            if len(self._left[scope]) == self._sizes[scope]:
                self._values.pop(scope, None)
                del self._left[scope]


class _Server(http.server.ThreadingHTTPServer):
    """A thread for each connection, of which strangers get a few, for seconds."""

    daemon_threads = True
    request_queue_size = 1024  # all ranks of a large job connect at once

    def __init__(self, address, rendezvous):
        super().__init__(address, _Handler)
        self.rendezvous = rendezvous
        self._strangers, self._lock = {}, threading.Lock()

    def process_request(self, request, client_address):
        with self._lock:
            # The oldest goes: a rank is done in milliseconds, and gets its turn.
            if len(self._strangers) >= _STRANGERS:
                oldest = next(iter(self._strangers))
                del self._strangers[oldest]
                _hang_up(oldest)
            self._strangers[request] = time.monotonic()
        super().process_request(request, client_address)

    def introduce(self, request):
        """The connection is a rank's, and may take its time."""
        with self._lock:
            self._strangers.pop(request, None)

    def service_actions(self):
        # Called twice a second. A read that gets a byte now and then would never end.
        with self._lock:
            for request, since in self._strangers.items():
                if time.monotonic() - since > _SECONDS:
                    _hang_up(request)

    def shutdown_request(self, request):
        self.introduce(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address):
        # What a stranger sends is not worth a traceback in the job's output.
        with self._lock:
            stranger = request in self._strangers
        if not stranger:
            super().handle_error(request, client_address)


def _hang_up(request):
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    timeout = _SECONDS

    def _known(self):
        """Scope and key, from a path `/TOKEN:PORT/SCOPE/KEY`; `None` for strangers."""
        _, *parts = self.path.split("/")
        token, _, _ = parts[0].rpartition(":")
        wanted = self.server.rendezvous.token
        if len(parts) != 3 or not hmac.compare_digest(token.encode(), wanted.encode()):
            return None
        self.server.introduce(self.connection)
        return parts[1:]

    def _answer(self, act):
        known = self._known()
        if not known:
            return self._send(403)
        try:
            found = act(*known)
        except (ValueError, TypeError, KeyError, pickle.UnpicklingError):
            return self._send(400)
        except (RuntimeError, threading.BrokenBarrierError):
            return self._send(503)  # the ranks have changed meanwhile
        return self._send(404) if found is None else self._send(200, found)

    def _send(self, status, body=b""):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self._answer(self.server.rendezvous.get)

    def do_DELETE(self):
        self._answer(lambda *key: self.server.rendezvous.delete(*key) or b"")

    def do_PUT(self):
        self._answer(lambda *key: self.server.rendezvous.put(*key, self._body()) or b"")

    def _body(self):
        length = int(self.headers["Content-Length"] or -1)
        if not 0 <= length <= _LONGEST:
            raise ValueError(length)
        body = self.rfile.read(length)
        if len(body) < length:
            raise ValueError("cut off")
        return body

    def log_message(self, *_):
        pass
