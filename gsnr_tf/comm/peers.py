"""Reading what other ranks hold without their taking part.

A collective needs all ranks at one point. Saving does not happen at one point: one
rank saves while the others wait for it in the next step, or have ended. So each rank
answers requests for its share from threads of its own. What it hands out is its share
after a given number of changes: ranks cannot be ahead of one another, since no update
ends without the gradients of all, but they may be a moment behind.

A share does not end with the optimizer that it belongs to, nor with the script of its
rank: it is kept until all ranks have let go of it.
"""

import contextlib
import functools
import json
import queue
import secrets
import threading
import time
import uuid
import weakref

from gsnr_tf.comm import member, server, stall, steward
from gsnr_tf.comm.member import Member

# How long a rank may be behind in an update or a load that this one has finished.
_BEHIND_SECONDS = 60
# Until a rank that did not answer is told again that this one lets go.
_AGAIN_SECONDS = 5


class PeerLost(RuntimeError):
    """A rank did not hand out its share."""


class Peers:
    """The shares that all ranks hold of something.

    Args:
        gather: Collective that lists what each rank passed to it.
        share: Object of this rank with `changes()`, how many changes it has been
            through, and `own(what)`, the bytes that it has of `what`. It is kept
            until all ranks have let go of their `Peers` or called `close`, so it must
            not lead back to this object.
    """

    def __init__(self, gather, share):
        self._share = share
        hosts = gather(member.host())
        self._rank, self._ranks = 0, []
        if len(hosts) == 1:
            return
        name = uuid.uuid4().hex
        addresses, secret = _listening(len(set(hosts)) == 1)
        own = Member(addresses, secret, name)
        # Before the others learn of it: they may ask at once.
        with _published_while_meeting(name, share, len(hosts)):
            self._ranks = gather(own)
        self._rank = [one.name for one in self._ranks].index(name)
        self._let_go = weakref.finalize(self, _background().put, (name, self._ranks, self._rank))
        self._let_go.atexit = False
        others = [one for one in self._ranks if one.name != name]
        steward.serve_until_all_have_ended(others, lambda: bool(_published))
        _published[name].key = self._ranks[0].name
        stall.watch(_progress).follow(self._ranks, self._rank)

    def close(self):
        """Lets go of all shares; the others may still read this rank's."""
        if self._ranks:
            self._let_go()

    def collect(self, what):
        """What each rank holds of `what` after as many changes as this rank.

        Args:
            what: String of letters, digits, slashes and dots.

        Returns:
            List of bytes-like objects, one for each rank.

        Raises:
            PeerLost: A rank cannot be reached, or has had other changes.
        """
        changes = self._share.changes()
        shares = [
            self._share.own(what) if rank == self._rank else self._ask(rank, what, changes)
            for rank in range(len(self._ranks) or 1)
        ]
        if self._share.changes() != changes:
            raise PeerLost(
                f"The state moved on while it was read: this rank had {changes} updates "
                f"and loads when it began, and has {self._share.changes()} now. Save "
                "from the thread that trains, or while it does not."
            )
        return shares

    def _ask(self, rank, what, changes):
        one = self._ranks[rank]
        try:
            return one.ask(f"share {one.name} {changes} {what}", 2 * _BEHIND_SECONDS)
        except server.Refused as why:
            raise PeerLost(
                f"Rank {rank} holds a part of the optimizer's state and cannot hand it out: {why}"
            ) from None
        except ConnectionRefusedError as error:
            raise PeerLost(
                f"Rank {rank} held a part of the optimizer's state and is gone "
                f"({error}): it has failed or was killed."
            ) from None
        except OSError as error:
            raise PeerLost(
                f"Rank {rank} holds a part of the optimizer's state and cannot be "
                f"reached ({error}). If ranks may only connect as Horovod does, use "
                "sharding='none': every rank has all state then."
            ) from None


def watch_together(gather):
    """Lets all ranks ask each other what they do, also where none holds a share.

    Args:
        gather: As for `Peers`; all ranks call this at one point.
    """
    hosts = gather(member.host())
    name = uuid.uuid4().hex
    addresses, secret = _listening(len(set(hosts)) == 1)
    ranks = gather(Member(addresses, secret, name))
    rank = [one.name for one in ranks].index(name)
    stall.watch(_progress).follow(ranks, rank)


# ---- what this process hands out --------------------------------------------------


class _Published:
    """A share, and the ranks that may still ask for it."""

    def __init__(self, share, ranks):
        self.share, self.readers = share, set(range(ranks))
        # What all ranks call it, once they have met.
        self.key = None


_published: dict = {}
_lock = threading.Lock()


@contextlib.contextmanager
def _published_while_meeting(name, share, ranks):
    """Publishes a share, and takes that back if the ranks do not meet."""
    _published[name] = _Published(share, ranks)
    try:
        yield
    except BaseException:
        del _published[name]
        raise


def _no_reader(name, rank):
    """Notes that a rank will not ask for a share again."""
    with _lock:
        if name in _published:
            _published[name].readers.discard(rank)
            if not _published[name].readers:
                del _published[name]


_secret = secrets.token_bytes(server.SECRET_BYTES)


@functools.cache
def _listening(one_host):
    """Addresses and secret of this process' server, which starts at the first call."""
    started = server.Server(member.addresses(one_host), _secret, _answer)
    return started.addresses, _secret


def _answer(question):
    """See `Server`."""
    kind, *words = question.split(" ")
    if kind == "share":
        name, changes, what = words
        return functools.partial(_share_of, name, int(changes), what)
    if kind == "release":
        _no_reader(words[0], int(words[1]))
        return b""
    if kind == "status":
        known = {"ended": steward.ended(), **stall.watch(_progress).status()}
        return json.dumps(known).encode()
    raise server.Refused(f"unknown question {kind!r}")


def _share_of(name, changes, what):
    published = _published.get(name)
    if published is None:
        raise server.Refused("all ranks have let go of it.")
    share = published.share
    deadline = time.monotonic() + _BEHIND_SECONDS
    while share.changes() < changes and time.monotonic() < deadline:
        time.sleep(0.002)
    own = share.own(what)
    had = share.changes()
    if had > changes:
        raise server.Refused(
            f"its state has moved on. It has had {had} updates and loads, and the rank "
            f"that asks {changes}: ranks must load, train and stop together."
        )
    if had < changes:
        raise server.Refused(
            f"it is behind. It has had {had} updates and loads, and the rank that asks "
            f"{changes}, which it did not reach in {_BEHIND_SECONDS} s either: ranks "
            "must load, train and stop together."
        )
    return own


def _progress():
    """How many changes each share has been through, by its key."""
    return {one.key: one.share.changes() for one in list(_published.values()) if one.key}


# ---- telling the others that this rank lets go ------------------------------------


@functools.cache
def _background():
    """Queue of (name, ranks, rank) of the `Peers` that are gone.

    Putting something there is all that is done while garbage is collected.
    """
    gone: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_tell_all, args=[gone], name="gsnr_tf release", daemon=True).start()
    return gone


def _tell_all(gone):
    untold: list = []
    while True:
        with contextlib.suppress(queue.Empty):
            name, ranks, rank = gone.get(timeout=_AGAIN_SECONDS if untold else None)
            _no_reader(name, rank)
            until = time.monotonic() + steward.lost_limit()
            others = [number for number in range(len(ranks)) if number != rank]
            untold += [(name, ranks, rank, other, until) for other in others]
        untold = [entry for entry in untold if not _told(*entry)]


def _told(name, ranks, rank, other, until):
    """Tells a rank that this one lets go; whether there is nothing more to tell."""
    try:
        ranks[other].ask(f"release {ranks[other].name} {rank}")
    except server.Refused:
        pass
    except OSError as error:
        if not isinstance(error, ConnectionRefusedError) and time.monotonic() < until:
            return False
        # It is gone, or as good as gone, and will not ask this rank either.
        _no_reader(name, other)
    return True
