"""Runs with known truth: gradients are drawn, and recorded as a training would."""

import numpy as np
import tensorflow as tf

from gsnr_tf.monitor.measures import Measures
from gsnr_tf.monitor.run import write_info
from gsnr_tf.monitor.sinks import Sinks
from gsnr_tf.sharding.layout import BLOCK, FlatLayout
from gsnr_tf.sharding.watch import Watch, summary_of
from gsnr_tf.stats import gsnr, multiplier

BOUNDS = (0.1, 1.0)


class Drawn:
    """Draws the updates of a model whose gradients have a known noise scale.

    Args:
        shapes: Dict of path and shape.
        samples: k.
        batch: Examples of an update.
    """

    def __init__(self, shapes, samples, batch, seed=0):
        self.paths, self.batch, self.samples = list(shapes), batch, samples
        self._rng = np.random.default_rng(seed)
        variables = [tf.zeros(shape) for shape in shapes.values()]
        self.shapes = list(shapes.values())
        self._layout = FlatLayout(variables)
        self._watch = Watch(self._layout, len(variables), BOUNDS)
        size = self._layout.size
        # Some elements have much signal and some have none.
        self._signal = self._rng.lognormal(0, 1.0, size)
        self._used = self._layout.pack([tf.ones(s) for s in self.shapes]).numpy()
        self._signal *= self._used / np.linalg.norm(self._signal * self._used)

    def summary(self, noise_scale):
        """One update: |G|² = 1 and tr(Σ) = `noise_scale`."""
        noise = np.sqrt(noise_scale * self._used / self._used.sum())
        spread = noise / np.sqrt(self.batch / self.samples)
        shape = (self.samples, len(self._signal))
        drawn = self._rng.standard_normal(shape, "float32")
        parts = (self._signal + spread * drawn).astype("float32")
        mean, variance = parts.mean(0), parts.var(0)
        rs = gsnr(tf.constant(mean), tf.constant(variance), self.samples)
        ms = [
            multiplier(m, v, self.samples, *BOUNDS)
            for m, v in zip(self._layout.unpack(mean), self._layout.unpack(variance))
        ]
        blocks = [
            tf.reshape(t, [-1, BLOCK])
            for t in (mean, variance, rs, self._layout.pack(ms), self._used, self._used)
        ]
        sums = self._watch.sums(*blocks).numpy()
        return summary_of(sums, np.ones(len(self.paths)))


def record(folder, drawn, noise_scales, every=10, step_seconds=(0.08, 0.02, 0.01), **more):
    """Records an update for each noise scale, `every` updates apart.

    Args:
        step_seconds: Seconds in backward (of a micro-batch), communication and update.
        more: `accumulation`, `workers`, `loss` (function of progress from 0 to 1).
    """
    accumulation, workers = more.get("accumulation", 4), more.get("workers", 2)
    write_info(
        folder,
        {
            "model": "drawn",
            "optimizer": more.get("optimizer", "GSNRLamb"),
            "arguments": {"learning_rate": 0.1, "gamma": 0.1, "ceiling": 1.0},
            "variables": [
                {"path": p, "shape": list(s)} for p, s in zip(drawn.paths, drawn.shapes)
            ],
            "workers": workers,
            "every": every,
            "started": "2026-01-01T00:00:00+00:00",
            "versions": {"gsnr_tf": "0"},
        },
    )
    sizes = [int(np.prod(shape)) for shape in drawn.shapes]
    measures = Measures(drawn.paths, sizes, *BOUNDS)
    sinks = Sinks(folder)
    loss = more.get("loss", lambda progress: 2 - progress)
    for index, scale in enumerate(noise_scales):
        updates = (index + 1) * every
        examples = updates * drawn.batch
        progress = (index + 1) / len(noise_scales)
        backward, communication, update = step_seconds
        seconds = accumulation * backward + communication + update
        events = [
            ("train/loss", loss(progress)),
            ("progress/updates", updates),
            ("progress/epoch", 1 + index // 10),
            ("batch/examples", drawn.batch),
            ("batch/samples", drawn.samples),
            ("batch/accumulation", accumulation),
            ("batch/learning_rate", 0.1),
            ("speed/examples_per_second", drawn.batch / seconds),
            ("time/backward", backward),
            ("time/communication", communication),
            ("time/update", update),
            *measures.of(drawn.summary(scale), drawn.samples, drawn.batch),
        ]
        if index % 10 == 9:
            value = loss(progress)
            events += [("validation/loss", value + 0.1), ("gap/loss", -0.1)]
        sinks.write_events([(name, value, examples) for name, value in events])
    sinks.close()
