"""Where events go: files that a killed run leaves readable and a resumed run goes on with.

An event is `(name, value, step)`. The step is the number of examples that all workers
have trained on; the value is a float, or one of `PerVariable` and `Histogram`.
"""

import contextlib
import csv
import errno
import io
import json
import math
import os
import socket
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf


class PerVariable(NamedTuple):
    """A number for each variable of the model.

    Attributes:
        paths: List of the variables' paths.
        values: Sequence of floats, in the same order.
    """

    paths: list
    values: list


class Histogram(NamedTuple):
    """How many elements lie between edges.

    Attributes:
        edges: Sequence of floats `[bins + 1]`, rising.
        counts: Sequence of floats `[bins]`.
    """

    edges: list
    counts: list


def cut_after_last_line(path):
    """Removes the unfinished last line that a killed run may leave behind."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        while size:
            start = max(0, size - 65536)
            file.seek(start)
            line_end = file.read(size - start).rfind(b"\n")
            if line_end >= 0:
                file.truncate(start + line_end + 1)
                return
            size = start
        file.truncate(0)


class _Lines:
    """A text file that grows by whole lines, each written at once."""

    def __init__(self, path):
        cut_after_last_line(path)
        # Unbuffered: what is written is out of this process when `write` returns.
        self._file = path.open("ab", buffering=0)
        self.empty = self._file.tell() == 0

    def write(self, text):
        data = text.encode()
        # A disk that fills up takes a part, and says nothing until the next time.
        if self._file.write(data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.empty = False

    def close(self):
        self._file.close()


def _short(value):
    """A float of six digits; `None`, which JSON knows, where it is not finite."""
    value = float(value)
    return float(f"{value:.6g}") if math.isfinite(value) else None


class JSONLinesSink:
    """`events.jsonl`: a line for each step, `{"step": …, "values": {name: value}}`.

    Numbers that are not finite are null. A `PerVariable` is a list in the order of the
    variables in `run.json`; a `Histogram` is `{"edges": […], "counts": […]}`.
    """

    def __init__(self, folder):
        self._lines = _Lines(Path(folder) / "events.jsonl")

    def write_events(self, events):
        by_step = {}
        for name, value, step in events:
            by_step.setdefault(int(step), {})[name] = self._plain(value)
        text = (
            json.dumps({"step": step, "values": values}, separators=(",", ":"))
            for step, values in by_step.items()
        )
        self._lines.write("".join(f"{line}\n" for line in text))

    def _plain(self, value):
        if isinstance(value, PerVariable):
            return [_short(v) for v in value.values]
        if isinstance(value, Histogram):
            lists = {"edges": value.edges, "counts": value.counts}
            return {name: [_short(v) for v in list_] for name, list_ in lists.items()}
        return _short(value)

    def close(self):
        self._lines.close()


class CSVSink:
    """`events.csv`: a row `step,name,value` for each number that is not a variable's."""

    def __init__(self, folder):
        self._lines = _Lines(Path(folder) / "events.csv")
        if self._lines.empty:
            self._lines.write("step,name,value\n")

    def write_events(self, events):
        rows = io.StringIO()
        writer = csv.writer(rows, lineterminator="\n")
        for name, value, step in events:
            if not isinstance(value, (PerVariable, Histogram)):
                writer.writerow([int(step), name, f"{float(value):.6g}"])
        self._lines.write(rows.getvalue())

    def close(self):
        self._lines.close()


class TensorBoardSink:
    """`tensorboard/`: scalars and histograms; per variable under `name/path`."""

    def __init__(self, folder):
        folder = Path(folder) / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        # As tf.summary names and begins them. Its writer takes operations for each
        # record and each flush, which here cost more than the record itself.
        name = f"{time.time():.6f}.{socket.gethostname()}.{os.getpid()}.v2"
        self._file = tf.io.TFRecordWriter(str(folder / f"events.out.tfevents.{name}"))
        self._write(tf.compat.v1.Event(file_version="brain.Event:2"))

    def write_events(self, events):
        by_step = {}
        for name, value, step in events:
            summary = by_step.setdefault(int(step), tf.compat.v1.Summary())
            self._add(summary, name, value)
        for step, summary in by_step.items():
            self._write(tf.compat.v1.Event(step=step, summary=summary))
        self._file.flush()

    def _write(self, event):
        event.wall_time = time.time()
        self._file.write(event.SerializeToString())

    def _add(self, summary, name, value):
        if isinstance(value, PerVariable):
            for path, number in zip(value.paths, value.values, strict=True):
                summary.value.add(tag=f"{name}/{path}", simple_value=float(number))
        elif isinstance(value, Histogram):
            added = summary.value.add(tag=name)
            added.metadata.plugin_data.plugin_name = "histograms"
            added.tensor.CopyFrom(tf.make_tensor_proto(_buckets(value), tf.float64))
        else:
            summary.value.add(tag=name, simple_value=float(value))

    def close(self):
        self._file.close()


def _buckets(histogram):
    """TensorBoard's form of a histogram: rows of left edge, right edge and count."""
    edges = np.asarray(histogram.edges, np.float64)
    return np.stack([edges[:-1], edges[1:], histogram.counts], axis=1)


# What writing may raise: of the operating system, of TensorFlow, and for paths of no system.
FAILURES = (OSError, tf.errors.OpError, ValueError)


class Sinks:
    """All sinks of a run, as one. They never end a training: one that fails, at a full disk
    for example, is left out from then on, with a warning.

    Args:
        folder: Directory of the run; made if it is not there.
        kinds: Classes of the sinks.
    """

    def __init__(self, folder, kinds=(JSONLinesSink, CSVSink, TensorBoardSink)):
        self._folder, self._sinks = folder, []
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except FAILURES as error:
            self._warn("Nothing is recorded", error)
            return
        for kind in kinds:
            try:
                self._sinks.append(kind(folder))
            except FAILURES as error:
                self._warn(f"{kind.__name__} records nothing", error)

    def write_events(self, events):
        """Writes a list of `(name, value, step)`; they are on their way to the disk
        when it returns.

        Args:
            events: List of `(name, value, step)`: the key, a float, `PerVariable` or
                `Histogram`, and the global number of examples so far.
        """
        if not events:
            return
        for sink in list(self._sinks):
            try:
                sink.write_events(events)
            except FAILURES as error:
                self._sinks.remove(sink)
                self._warn(f"{type(sink).__name__} records nothing more", error)
                _close(sink)

    def close(self):
        for sink in self._sinks:
            _close(sink)

    def _warn(self, what, error):
        warnings.warn(f"{what} in {self._folder}: {error}. Training goes on.", stacklevel=3)


def _close(sink):
    """What is not written yet is lost where it cannot be."""
    with contextlib.suppress(*FAILURES):
        sink.close()
