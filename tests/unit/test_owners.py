"""When slices are worth it: what ranks that share a host's link send through it."""

import types

import pytest

from gsnr_tf.comm import horovod


def pays(monkeypatch, hosts, per_host):
    hvd = types.SimpleNamespace(
        size=lambda: hosts * per_host,
        cross_size=lambda: hosts,
        local_size=lambda: per_host,
    )
    monkeypatch.setattr(horovod, "load", lambda: hvd)
    return horovod.HorovodCommunicator().owners_pay


@pytest.mark.parametrize("hosts, per_host", [(1, 2), (1, 64), (8, 1), (8, 2), (2, 3)])
def test_owners_pay_where_few_ranks_share_a_link(monkeypatch, hosts, per_host):
    assert pays(monkeypatch, hosts, per_host)


@pytest.mark.parametrize("hosts, per_host", [(2, 4), (16, 8)])
def test_owners_do_not_pay_where_a_host_would_send_more_than_twice(
    monkeypatch, hosts, per_host
):
    assert (per_host + 1) / 2 > 2
    assert not pays(monkeypatch, hosts, per_host)
