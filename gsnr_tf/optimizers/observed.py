"""What one may ask an optimizer of the family about its updates and its workers."""

import tensorflow as tf

from gsnr_tf.sharding.telemetry import Telemetry


class Observed:
    """The part of `GSNROptimizer` that answers questions. Nothing here moves a weight."""

    _watch_every = None

    @property
    def gsnr(self):
        """Scalar tensor: Σ mean² / Σ variance over all elements at the last update.

        The mean of r weighted by variance, which single elements cannot dominate;
        0 before the first update. Its inverse, times the examples of a sample, is
        the simple noise scale (McCandlish et al. 2018) up to its bias.
        """
        return tf.math.divide_no_nan(
            tf.convert_to_tensor(self._signal), tf.convert_to_tensor(self._noise)
        )

    @property
    def state_bytes(self):
        """Bytes of state that the rule keeps on this worker, once the workers have met."""
        self._check_connected()
        return self._program.exchange.slots.bytes

    @property
    def workers(self):
        """Int, how many workers bring gradients, once they have met."""
        self._check_connected()
        return self._comm.workers

    @property
    def samples(self):
        """Samples of an update, k: an int, or a tensor as `accumulation_steps`; known
        once the workers have met."""
        self._check_connected()
        return self._plan.samples(self.accumulation_steps)

    @property
    def sampling_plan(self):
        """The `SamplingPlan`, once the workers have met."""
        self._check_connected()
        return self._plan

    def _check_connected(self):
        if self._comm is None:
            raise ValueError(
                f"{self.name} knows nothing yet of other ranks. They meet at the first "
                "training step, or before it where all ranks call `optimizer.connect()`."
            )

    def sharding_report(self):
        """Who owns what, and what it costs: a string for people, one line a worker."""
        self._check_connected()
        return self._program.exchange.report(int(self.samples))

    def watch(self, every):
        """Records every so many updates what `watched` returns.

        Adds operations to train steps that are traced from now on; they change no
        weight. All workers must watch alike.

        Args:
            every: Int, at least 1.
        """
        if every < 1:
            raise ValueError(f"every must be at least 1. Received: every={every}")
        self._watch_every = every
        if self._program is not None:
            self._start_telemetry()

    def watched_update(self):
        """Int, the number of the last update on record; 0 before the first."""
        telemetry = self._program.telemetry if self._program is not None else None
        return telemetry.update if telemetry else 0

    def watched(self):
        """The last `Record` (gsnr_tf.sharding.telemetry)."""
        return self._program.telemetry.read()

    def _start_telemetry(self):
        if not self._watch_every:
            return
        self._program.telemetry = Telemetry(
            self._comm,
            self._layout,
            self._distribution_strategy,
            self._watch_every,
            lambda: (self.iterations + 1, self.samples, self.accumulation_steps),
        )
