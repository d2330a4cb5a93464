"""Which GPU a rank has, with stand-ins for GPUs."""

import types

import pytest

from gsnr_tf import _rank_device

GPUS = ["GPU:0", "GPU:1", "GPU:2"]


def chosen(monkeypatch, rank, gpus=GPUS, visible=None, begun=False):
    """What is left visible on a rank."""
    monkeypatch.setenv("HOROVOD_LOCAL_RANK", str(rank))
    state = {"visible": gpus if visible is None else visible}

    def choose(devices, kind):
        assert kind == "GPU"
        if begun:
            raise RuntimeError("Visible devices cannot be modified after being initialized")
        state["visible"] = devices

    config = types.SimpleNamespace(
        list_physical_devices=lambda kind: list(gpus),
        get_visible_devices=lambda kind: list(state["visible"]),
        set_visible_devices=choose,
    )
    _rank_device._choose(types.SimpleNamespace(config=config))
    return state["visible"]


@pytest.mark.parametrize("rank, own", [(0, "GPU:0"), (2, "GPU:2"), (4, "GPU:1")])
def test_each_rank_has_one(monkeypatch, rank, own):
    assert chosen(monkeypatch, rank) == [own]


def test_what_the_script_has_chosen_stays(monkeypatch):
    assert chosen(monkeypatch, 0, visible=["GPU:1"]) == ["GPU:1"]
    assert chosen(monkeypatch, 0, visible=[]) == []
    assert chosen(monkeypatch, 1, gpus=["GPU:0"]) == ["GPU:0"]


def test_too_late_is_told(monkeypatch):
    with pytest.warns(UserWarning, match="Import gsnr_tf first"):
        assert chosen(monkeypatch, 1, begun=True) == GPUS


@pytest.mark.parametrize("size, asks", [(None, False), ("1", False), ("2", True)])
def test_only_ranks_that_share_a_host_ask(monkeypatch, size, asks):
    if size is None:
        monkeypatch.delenv("HOROVOD_LOCAL_SIZE", raising=False)
    else:
        monkeypatch.setenv("HOROVOD_LOCAL_SIZE", size)
    asked = []
    monkeypatch.setattr(
        _rank_device.wrapt, "register_post_import_hook", lambda *given: asked.append(given[1])
    )
    _rank_device.choose_when_tensorflow_loads()
    assert asked == (["tensorflow"] if asks else [])
