"""Reading the shares of other ranks, here two in one process."""

import gc

import pytest

from gsnr_tf.comm import peers
from gsnr_tf.comm.peers import PeerLost, Peers


class Share:
    def __init__(self, name, changes=1):
        self._name = name
        self._changes = changes

    def changes(self):
        return self._changes

    def own(self, what):
        return f"{self._name} of {what}".encode()


def met(share, told):
    """`Peers` of rank 0, with rank 1 where `told` says: its entry may be changed."""
    other = []
    Peers(lambda own: other.append(own) or [own], share)
    return lambda mine: Peers(lambda own: [own, told(other[0])], mine)


def test_each_rank_hands_out_its_own_share():
    other = Share("b")
    assert met(other, lambda entry: entry)(mine := Share("a")).collect("m/1") == [
        b"a of m/1",
        b"b of m/1",
    ]
    del mine, other


def test_what_has_not_changed_as_often_is_refused(monkeypatch):
    monkeypatch.setattr(peers, "_BEHIND_SECONDS", 0.1)
    mine, other = Share("a", 3), Share("b", 2)
    asked = met(other, lambda entry: entry)(mine)
    with pytest.raises(PeerLost, match="Rank 1 .*2 updates and loads, asked for 3"):
        asked.collect("m/1")


def test_the_token_is_needed():
    mine, other = Share("a"), Share("b")
    asked = met(other, lambda entry: (*entry[:2], "guessed", entry[3]))(mine)
    with pytest.raises(PeerLost, match="403"):
        asked.collect("m/1")


def test_a_rank_that_is_gone_is_named_with_a_way_out():
    mine, other = Share("a"), Share("b")
    asked = met(other, lambda entry: entry)(mine)
    del other
    gc.collect()
    with pytest.raises(PeerLost, match="(?s)Rank 1 .*optimizer is gone.*sharding='none'"):
        asked.collect("m/1")


def test_a_port_where_nobody_listens_is_no_hang():
    mine, other = Share("a"), Share("b")
    asked = met(other, lambda entry: (["127.0.0.1"], 1, *entry[2:]))(mine)
    with pytest.raises(PeerLost, match="127.0.0.1:1: .*refused"):
        asked.collect("m/1")
