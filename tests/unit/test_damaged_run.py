"""A record that is damaged is read up to the damage, which is told; recording ends no training."""

import json
import os
import warnings

import keras
import numpy as np
import pytest

from gsnr_tf import cli
from gsnr_tf.callbacks import GSNRMonitor
from gsnr_tf.engine import initialize
from gsnr_tf.monitor import sinks
from gsnr_tf.monitor.run import Run, set_aside_damaged
from gsnr_tf.optimizers import GSNRAdam
from tests.recorded import Drawn, record

RECORDS = 40


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A folder of a run; what tests damage is a copy."""
    folder = tmp_path_factory.mktemp("sound")
    drawn = Drawn({"a/kernel": (20, 10), "b/kernel": (10, 10), "b/bias": (10,)}, 8, 256)
    record(folder, drawn, [2000.0] * RECORDS)
    return folder


@pytest.fixture
def folder(sound, tmp_path):
    for name in ("run.json", "events.jsonl"):
        (tmp_path / name).write_bytes((sound / name).read_bytes())
    return tmp_path


def info(change):
    """Damages `run.json`: a function of the dict, in place."""

    def damage(folder):
        values = json.loads((folder / "run.json").read_text())
        change(values)
        (folder / "run.json").write_text(json.dumps(values))

    return damage


def info_text(data):
    return lambda folder: (folder / "run.json").write_bytes(data)


def line(change, number=30):
    """Damages a line of the events: a function of its text, or the bytes that replace it."""

    def damage(folder):
        path = folder / "events.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        lines[number] = change(lines[number]) if callable(change) else change + b"\n"
        path.write_bytes(b"".join(lines))

    return damage


def values(number=30, **changed):
    def change(text):
        found = json.loads(text)
        for name, value in changed.items():
            if name == "step":
                found["step"] = value
            else:
                key = name.replace("__", "/")
                found["values"][key] = value
        return json.dumps(found).encode() + b"\n"

    return line(change, number)


def cut(number):
    def damage(folder):
        path = folder / "events.jsonl"
        path.write_bytes(path.read_bytes()[:number])

    return damage


DAMAGED = {
    "info is empty": info_text(b""),
    "info is cut": info_text(b'{"model": "x", "opti'),
    "info is binary": info_text(bytes(range(256))),
    "info is a list": info_text(b"[1, 2]"),
    "info is deep": info_text(b"[" * 100_000),
    "info has no variables": info(lambda i: i.pop("variables")),
    "info has no optimizer": info(lambda i: i.pop("optimizer")),
    "info has no workers": info(lambda i: i.update(workers=0)),
    "info has no estimator": info(lambda i: i["arguments"].update(estimator="x")),
    "info has other shapes": info(lambda i: i["variables"][0].update(shape="big")),
    "info has other paths": info(lambda i: i["variables"][0].update(path=None)),
    "info has fewer variables": info(lambda i: i["variables"].pop()),
    "info has other versions": info(lambda i: i.update(versions=3)),
    "info has another start": info(lambda i: i.update(started=None)),
    "info has an endless every": info(lambda i: i.update(every=10**400)),
    "a line is empty": line(b""),
    "a line is cut": line(b'{"step": 77'),
    "a line is binary": line(b"\x00\xff\xfe\x80"),
    "a line is a number": line(b"3"),
    "a line is deep": line(b"[" * 100_000),
    "a line has no step": line(b'{"values": {}}'),
    "a line has no values": line(b'{"step": 100}'),
    "a step is text": values(step="many"),
    "a step is not finite": line(b'{"step": 1e999, "values": {}}'),
    "a step is below 0": values(step=-5),
    "a number is text": values(train__loss="low"),
    "a number is a list": values(train__loss=[1]),
    "a number is too large": values(noise__trace=10**300),
    "a number is NaN": line(b'{"step": 9, "values": {"train/loss": NaN}}'),
    "variables are a number": values(variable__ratio=3),
    "variables are text": values(variable__ratio=["x"] * 3),
    "a histogram has no counts": values(histogram__r={"edges": [1, 2]}),
    "a histogram has other bins": values(histogram__r={"edges": [1, 2], "counts": [3]}),
    "a histogram is a number": values(histogram__r=4),
}


def test_the_run_is_sound(sound):
    assert Run(sound).damage == []


@pytest.mark.parametrize("name", DAMAGED)
def test_report_and_advise_read_up_to_the_damage_and_say_so(name, folder, capsys):
    DAMAGED[name](folder)
    assert cli.main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "is damaged" in page or "of another number of variables" in page
    capsys.readouterr()
    code = cli.main(["advise", str(folder)])
    told = capsys.readouterr()
    assert (
        "is damaged" in " ".join((told.out + told.err).split()) or "of another number" in told.out
    )
    # What a run was decides what is advised; a part of its records is enough.
    assert code == (1 if name.startswith("info") and "fewer" not in name else 0)
    if not name.startswith("info"):
        assert 30 <= len(Run(folder).series("progress/updates")[0]) < RECORDS


@pytest.mark.parametrize("end", [0, 1, 5000])
def test_events_that_are_cut_off_are_those_of_a_run_under_way(end, folder):
    cut(end)(folder)
    assert Run(folder).damage == []
    assert cli.main(["report", str(folder)]) == 0
    assert cli.main(["advise", str(folder)]) == 1


@pytest.mark.parametrize("name", ["run.json", "events.jsonl"])
def test_folders_in_the_place_of_files_are_named(name, folder, capsys):
    (folder / name).unlink()
    (folder / name).mkdir()
    for command in ("report", "advise"):
        assert cli.main([command, str(folder)]) == 1
        assert "Is a directory" in capsys.readouterr().err


def test_a_damaged_record_is_set_aside(folder):
    assert set_aside_damaged(folder) is None
    DAMAGED["a line is binary"](folder)
    aside = set_aside_damaged(folder)
    assert aside.name == "events.damaged-1.jsonl" and not (folder / "events.jsonl").exists()
    assert set_aside_damaged(folder) is None


# ---- recording ----------------------------------------------------------------------


def fit(callback, epochs=2):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile(GSNRAdam(0.01, gradient_accumulation_steps=2), "mse")
    x, y = np.ones((32, 4), "float32"), np.ones((32, 2), "float32")
    return model.fit(x, y, batch_size=4, epochs=epochs, verbose=0, callbacks=[callback])


def test_a_training_begins_a_new_record_beside_a_damaged_one(tmp_path):
    fit(GSNRMonitor(tmp_path, every=1))
    line(b"\xff\x00", 2)(tmp_path)
    with pytest.warns(UserWarning, match="It is kept as events.damaged-1.jsonl") as caught:
        fit(GSNRMonitor(tmp_path, every=1))
    assert len([w for w in caught if "Training goes on" in str(w.message)]) == 0
    assert Run(tmp_path).damage == [] and Run(tmp_path).last("progress/updates") == 8


@pytest.mark.parametrize("name", ["run.json", "events.jsonl", "events.csv", "tensorboard"])
def test_files_that_cannot_be_written_end_no_training(name, tmp_path):
    path = tmp_path / name
    if name == "tensorboard":
        path.write_text("")
    else:
        path.mkdir()
        (path / "full").write_text("")
    with pytest.warns(UserWarning, match="Training goes on"):
        assert len(fit(GSNRMonitor(tmp_path, every=1)).epoch) == 2
    others = {"events.jsonl", "events.csv"} - {name}
    assert all((tmp_path / other).stat().st_size > 100 for other in others)


def test_a_folder_that_cannot_be_made_ends_no_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="Nothing is recorded in .*Training goes on"):
        assert len(fit(GSNRMonitor(tmp_path / "file" / "runs", every=1)).epoch) == 2


def test_a_full_disk_is_told_once_and_ends_no_training(tmp_path, monkeypatch):
    class Full:
        """A file that takes half of a line, as a disk that fills up does."""

        def write(self, data):
            return len(data) // 2

        def tell(self):
            return 1

        def close(self):
            pass

    made = sinks._Lines.__init__

    def full(lines, path):
        made(lines, path)
        lines._file.close()
        lines._file = Full()

    monkeypatch.setattr(sinks._Lines, "__init__", full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(GSNRMonitor(tmp_path, every=1))
    told = [str(w.message) for w in caught if "No space left" in str(w.message)]
    assert len(told) == 2 and {text.split()[0] for text in told} == {"JSONLinesSink", "CSVSink"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_device_that_is_full_is_left_out(tmp_path):
    (tmp_path / "events.csv").symlink_to("/dev/full")
    with pytest.warns(UserWarning, match="CSVSink records nothing"):
        found = sinks.Sinks(tmp_path, [sinks.CSVSink, sinks.JSONLinesSink])
        found.write_events([("train/loss", 1.0, 8)])
        found.write_events([("train/loss", 0.5, 16)])
        found.close()
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 2


def test_the_engines_monitors_end_no_training(tmp_path):
    (tmp_path / "file").write_text("")
    section = {"enabled": True, "output_path": str(tmp_path / "file"), "job_name": "a"}
    config = {"train_batch_size": 4, "csv_monitor": section, "tensorboard": section}
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    data = np.ones((8, 4), "float32"), np.ones((8, 2), "float32")
    with pytest.warns(UserWarning, match="Training goes on"):
        engine = initialize(model, config, "mse", training_data=data)
    engine.train_batch()
    assert engine.global_steps == 1


def test_a_batch_that_grew_is_described_by_its_last_value(tmp_path):
    from gsnr_tf.monitor.sentences import sentences

    small, large = (Drawn({"a": (200,)}, 8, size, seed=1) for size in (256, 1024))
    record(tmp_path, small, [4000.0] * 40)
    path = tmp_path / "events.jsonl"
    text = path.read_text()
    record(tmp_path / "more", large, [4000.0] * 40)
    first = json.loads(text.splitlines()[-1])["step"]
    for one in (tmp_path / "more" / "events.jsonl").read_text().splitlines()[:4]:
        found = json.loads(one)
        text += json.dumps({**found, "step": found["step"] + first}) + "\n"
    path.write_text(text)
    assert any("The batch of 1,024 is" in sentence for sentence in sentences(Run(tmp_path)))
