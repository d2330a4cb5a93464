"""Questions of one line, and answers of any size, between processes of a job.

A stranger who finds the port learns nothing and holds nothing up. One thread reads what
arrives, without waiting for anybody: the secret comes first and is compared in constant
time, then one line of bounded length, and who has not sent both in time is dropped. Only
those who know the secret reach the few threads that make large answers.

    question   secret (32 bytes), text, newline
    answer     0 or 1 (refused), length (8 bytes), as many bytes
"""

import hmac
import os
import queue
import selectors
import socket
import struct
import threading
import time
import weakref
from typing import Any

SECRET_BYTES = 32
_LONGEST_QUESTION = 1024
_HEAD = struct.Struct(">BQ")
_CHUNK_BYTES = 1 << 20
_THREADS = 4
# Connections whose question is not there yet; the oldest goes where one more comes.
_MOST_UNREAD = 64
_READ_SECONDS = 5
_CONNECT_SECONDS = 5
# Without a byte moving; a whole answer may take longer.
_MOVE_SECONDS = 60


class Refused(OSError):
    """The other side is there and says why it does not answer."""


class Server:
    """Answers questions on one port of each address, from threads of its own.

    Args:
        addresses: List of IPv4 addresses of this host.
        secret: `SECRET_BYTES` bytes, which every question must begin with.
        answer: Function from the text of a question to its answer, bytes, or to a
            function without arguments that makes it, any buffer, where that takes
            time. Both may raise `Refused`.

    Attributes:
        addresses: List of (address, port).
    """

    def __init__(self, addresses, secret, answer):
        self._secret, self._answer = secret, answer
        self._selector = selectors.DefaultSelector()
        # Sockets whose question is incomplete, what has come of it, and the deadline.
        self._unread = {}
        self._work: queue.SimpleQueue = queue.SimpleQueue()
        self._listeners = [socket.create_server((address, 0), backlog=128) for address in addresses]
        self.addresses = [listener.getsockname() for listener in self._listeners]
        for listener in self._listeners:
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ, self._accept)
        _servers.add(self)
        for task in [self._read_all, *[self._answer_all] * _THREADS]:
            threading.Thread(target=task, name="gsnr_tf server", daemon=True).start()

    def close(self):
        """Closes the port, so that who asks from now on is refused at once."""
        for listener in self._listeners:
            listener.close()

    def close_copies(self):
        """Closes what a forked child has inherited, lest it keeps the port open."""
        for connection in [*self._listeners, *self._unread]:
            connection.close()

    def _read_all(self):
        while True:
            for key, _ in self._selector.select(1 if self._unread else None):
                connection: Any = key.fileobj
                # Dropped meanwhile, to make room for a newer one.
                if connection.fileno() >= 0:
                    key.data(connection)
            now = time.monotonic()
            for late in [s for s, (_, until) in self._unread.items() if until < now]:
                self._drop(late)

    def _accept(self, listener):
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError:
            time.sleep(0.05)  # out of file descriptors
            return
        connection.setblocking(False)
        if len(self._unread) >= _MOST_UNREAD:
            self._drop(next(iter(self._unread)))
        self._unread[connection] = bytearray(), time.monotonic() + _READ_SECONDS
        self._selector.register(connection, selectors.EVENT_READ, self._read)

    def _forget(self, connection):
        self._selector.unregister(connection)
        del self._unread[connection]

    def _drop(self, connection):
        self._forget(connection)
        connection.close()

    def _read(self, connection):
        question, _ = self._unread[connection]
        room = SECRET_BYTES + _LONGEST_QUESTION - len(question)
        try:
            received = connection.recv(room)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        question += received
        if len(question) >= SECRET_BYTES and not hmac.compare_digest(
            question[:SECRET_BYTES], self._secret
        ):
            self._drop(connection)
        elif question.find(b"\n", SECRET_BYTES) >= 0:
            self._forget(connection)
            text = question[SECRET_BYTES:].partition(b"\n")[0]
            _reply(connection, lambda: self._made(connection, text.decode()))
        elif not received or len(received) == room:
            self._drop(connection)

    def _made(self, connection, text):
        """The answer, or `None` where one of the threads makes it."""
        answer = self._answer(text)
        if not callable(answer):
            return answer
        self._work.put((connection, answer))

    def _answer_all(self):
        while True:
            _reply(*self._work.get())


# The servers of this process.
_servers: weakref.WeakSet = weakref.WeakSet()


def close_all():
    """Closes the ports of this process, whose end is near."""
    for server in list(_servers):
        server.close()


def _in_forked_child():
    for server in list(_servers):
        server.close_copies()


os.register_at_fork(after_in_child=_in_forked_child)


def _reply(connection, make):
    """Sends what `make()` returns, or why it refuses, unless that is `None`."""
    refused = 0
    try:
        try:
            answer = make()
        except Refused as why:
            refused, answer = 1, str(why).encode()
        except Exception as error:
            refused, answer = 1, f"{type(error).__name__}: {error}".encode()
        if answer is None:
            return
        answer = memoryview(answer).cast("B")
        connection.settimeout(_MOVE_SECONDS)
        connection.sendall(_HEAD.pack(refused, len(answer)))
        # In chunks: the time limit is that of a call.
        for start in range(0, len(answer), _CHUNK_BYTES):
            connection.sendall(answer[start : start + _CHUNK_BYTES])
    except OSError:
        pass  # who asked has gone
    connection.close()


def ask(address, secret, question, patience):
    """The answer to a question, as a `bytearray`.

    Args:
        address: (address, port) of a `Server`.
        secret: Its secret.
        question: String of one line.
        patience: Seconds until the answer begins.

    Raises:
        Refused: The server says why it does not answer.
        ConnectionRefusedError: Nobody listens there any more.
        OSError: It cannot be reached, does not answer, or breaks off.
    """
    with socket.create_connection(address, timeout=_CONNECT_SECONDS) as connection:
        connection.settimeout(patience)
        connection.sendall(secret + question.encode() + b"\n")
        refused, length = _HEAD.unpack(_received(connection, _HEAD.size))
        connection.settimeout(_MOVE_SECONDS)
        answer = _received(connection, length)
    if refused:
        raise Refused(answer.decode(errors="replace"))
    return answer


def _received(connection, length):
    whole = bytearray(length)
    left = memoryview(whole)
    while left:
        count = connection.recv_into(left)
        if not count:
            raise ConnectionResetError("the connection was closed without an answer")
        left = left[count:]
    return whole
