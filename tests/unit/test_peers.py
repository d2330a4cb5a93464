"""Reading the shares of other ranks, here two in one process."""

import gc
import threading
import time
import weakref

import pytest

from gsnr_tf.comm import peers, stall, steward
from gsnr_tf.comm.peers import PeerLost, Peers

SECONDS = 30


class Share:
    def __init__(self, name, changes=1):
        self._name = name
        self._changes = changes

    def changes(self):
        return self._changes

    def own(self, what):
        return f"{self._name} of {what}".encode()


@pytest.fixture(autouse=True)
def no_threads(monkeypatch):
    """This process waits for no ranks, neither now nor when the tests are over."""
    monkeypatch.setattr(steward, "serve_until_all_have_ended", lambda *_: None)
    idle = stall.Watch(dict)
    monkeypatch.setattr(stall, "watch", lambda _: idle)


def together(*shares, told=lambda member: member):
    """`Peers` of as many ranks, which are all told what `told` makes of the others."""
    lists = [{} for _ in range(2)]
    barrier = threading.Barrier(len(shares))
    made = [None] * len(shares)

    def meet(rank):
        calls = iter(lists)

        def gather(value):
            values = next(calls)
            values[rank] = value
            barrier.wait(SECONDS)
            return [
                values[r] if r == rank or values is lists[0] else told(values[r])
                for r in range(len(shares))
            ]

        made[rank] = Peers(gather, shares[rank])

    threads = [threading.Thread(target=meet, args=[r]) for r in range(len(shares))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    return made


def becomes_true(condition):
    until = time.monotonic() + SECONDS
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    return condition()


def test_each_rank_hands_out_its_own_share():
    first, second = together(Share("a"), Share("b"))
    for one in (first, second):
        assert one.collect("m/1") == [b"a of m/1", b"b of m/1"]


def test_a_single_rank_asks_nobody():
    alone = Peers(lambda value: [value], Share("a"))
    assert alone.collect("m/1") == [b"a of m/1"]
    alone.close()


def test_a_share_may_be_any_buffer_and_large():
    import numpy as np

    class Large(Share):
        def own(self, what):
            return np.arange(5_000_000, dtype="float32")[::1]

    first, _ = together(Share("a"), Large("b"))
    found = np.frombuffer(first.collect("m")[1], "float32")
    np.testing.assert_array_equal(found, np.arange(5_000_000))


def test_a_rank_that_is_behind_is_waited_for():
    mine, other = Share("a", 3), Share("b", 2)
    first, _ = together(mine, other)
    threading.Timer(0.1, lambda: setattr(other, "_changes", 3)).start()
    assert first.collect("m/1")[1] == b"b of m/1"


def test_a_rank_that_stays_behind_is_named(monkeypatch):
    monkeypatch.setattr(peers, "_BEHIND_SECONDS", 0.1)
    first, _ = together(Share("a", 3), Share("b", 2))
    with pytest.raises(PeerLost, match="Rank 1 .*is behind.* had 2 .*asks 3"):
        first.collect("m/1")


def test_a_rank_that_moved_on_is_named():
    first, _ = together(Share("a", 3), Share("b", 5))
    with pytest.raises(PeerLost, match="Rank 1 .*moved on.* had 5 .*asks 3"):
        first.collect("m/1")


def test_what_moves_on_while_it_is_read_is_lost():
    class Training(Share):
        def own(self, what):
            self._changes += 1
            return b""

    first, _ = together(Training("a"), Share("b"))
    with pytest.raises(PeerLost, match="this rank had 1 .* has 2 now"):
        first.collect("m/1")


def test_an_error_of_the_other_rank_is_told():
    class Broken(Share):
        def own(self, what):
            raise KeyError("no slot m")

    first, _ = together(Share("a"), Broken("b"))
    with pytest.raises(PeerLost, match="Rank 1 .*KeyError: 'no slot m'"):
        first.collect("m/1")


def test_the_secret_is_needed():
    def guessed(member):
        member.secret = bytes(32)
        return member

    with pytest.raises(PeerLost, match="(?s)Rank 1 .*closed without an answer.*sharding="):
        together(Share("a"), Share("b"), told=guessed)[0].collect("m/1")


def test_a_rank_that_is_gone_is_no_hang():
    def gone(member):
        member.addresses = [("127.0.0.1", 1)]
        return member

    first, _ = together(Share("a"), Share("b"), told=gone)
    with pytest.raises(PeerLost, match="Rank 1 .*is gone.*127.0.0.1:1: .*refused"):
        first.collect("m/1")


def test_an_address_that_does_not_work_is_passed_over():
    def two(member):
        member.addresses = [("127.0.0.1", 1), *member.addresses]
        return member

    first, _ = together(Share("a"), Share("b"), told=two)
    assert first.collect("m/1")[1] == b"b of m/1"


def test_a_share_outlives_its_peers_and_is_freed_when_all_have_let_go():
    mine, other = Share("a"), Share("b")
    watched = [weakref.ref(mine), weakref.ref(other)]
    first, second = together(mine, other)
    del mine, other, second
    gc.collect()
    # What rank 1 has let go of, rank 0 can still read.
    assert first.collect("m/1") == [b"a of m/1", b"b of m/1"]
    assert all(share() for share in watched)
    first.close()
    del first
    assert becomes_true(lambda: not any(s() for s in watched))


def test_who_is_gone_keeps_no_share_alive():
    def gone(member):
        member.addresses = [("127.0.0.1", 1)]
        return member

    mine = Share("a")
    watched = weakref.ref(mine)
    first, second = together(mine, Share("b"), told=gone)
    del mine
    first.close()
    first.close()
    del first
    assert becomes_true(lambda: watched() is None)
    second.close()
