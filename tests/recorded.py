"""Runs with known truth: gradients are drawn, and recorded as a training would."""

import math

import numpy as np

from gsnr_tf.monitor.measures import Measures
from gsnr_tf.monitor.run import write_info
from gsnr_tf.monitor.sinks import Sinks
from gsnr_tf.stats import summary

BOUNDS = (0.1, 1.0)


class Drawn:
    """Draws the updates of a model whose gradients have a known noise scale.

    Args:
        shapes: Dict of path and shape.
        samples: k.
        batch: Examples of an update.
    """

    def __init__(self, shapes, samples, batch, seed=0):
        self.paths, self.shapes = list(shapes), list(shapes.values())
        self.samples, self.batch = samples, batch
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self._owner = np.repeat(np.arange(len(self.sizes)), self.sizes)
        self._rng = np.random.default_rng(seed)
        # Some elements have much signal and some have none.
        signal = self._rng.lognormal(0, 1.0, len(self._owner))
        self._signal = signal / np.linalg.norm(signal)

    def summary(self, noise_scale):
        """One update: |G|² = 1 and tr(Σ) = `noise_scale`."""
        number = len(self._signal)
        spread = math.sqrt(noise_scale / number / (self.batch / self.samples))
        drawn = self._rng.standard_normal((self.samples, number), "float32")
        parts = self._signal + spread * drawn
        mean, variance = parts.mean(0), parts.var(0)
        r = mean**2 / variance
        m = np.clip(r / (self._sums(r) / self.sizes)[self._owner], *BOUNDS)
        ones = np.ones(number)
        terms = [r, ones, mean**2, variance, ones, m, m <= BOUNDS[0], m >= BOUNDS[1]]
        fields = [self._sums(term) for term in [*terms, ones, ones]]
        r_bins = np.searchsorted(summary.R_EDGES, r, side="right")
        edges = summary.multiplier_edges(*BOUNDS)
        m_bins = np.clip(np.searchsorted(edges, m, side="right") - 1, 0, len(edges) - 2)
        return summary.Summary(
            np.stack([*fields, np.ones(len(self.sizes))], axis=1),
            self._counts(r_bins, summary.R_BINS),
            self._counts(m_bins, summary.MULTIPLIER_BINS),
        )

    def _sums(self, values):
        return np.bincount(self._owner, weights=values)

    def _counts(self, bins, number):
        places = self._owner * number + bins
        counts = np.bincount(places, minlength=len(self.sizes) * number)
        return counts.reshape(-1, number)


def record(folder, drawn, noise_scales, every=10, step_seconds=(0.08, 0.02, 0.01), **more):
    """Records an update for each noise scale, `every` updates apart.

    Args:
        step_seconds: Seconds in backward (of a micro-batch), communication and update.
        more: `accumulation`, `workers`, `estimator`, `loss` (function of progress from 0
            to 1).
    """
    accumulation, workers = more.get("accumulation", 4), more.get("workers", 2)
    write_info(
        folder,
        {
            "model": "drawn",
            "optimizer": more.get("optimizer", "GSNRLamb"),
            "arguments": {
                "learning_rate": 0.1,
                "gamma": 0.1,
                "ceiling": 1.0,
                "estimator": more.get("estimator", "paper"),
            },
            "variables": [{"path": p, "shape": list(s)} for p, s in zip(drawn.paths, drawn.shapes)],
            "workers": workers,
            "every": every,
            "started": "2026-01-01T00:00:00+00:00",
            "versions": {"gsnr_tf": "0"},
        },
    )
    measures = Measures(drawn.paths, drawn.sizes, *BOUNDS)
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
