"""A batch that grows with the noise."""

import logging

import keras
import tensorflow as tf

from gsnr_tf import comm
from gsnr_tf.optimizers.gsnr import GSNROptimizer
from gsnr_tf.optimizers.inner import inner_optimizer
from gsnr_tf.stats import noise_scale

_log = logging.getLogger("gsnr_tf")

_SCALINGS = ("linear", "sqrt", "adascale")
# About as many records are behind the averages that decide, and between two doublings.
_SMOOTHING, _PATIENCE = 0.8, 5


class BatchSizeRamp(keras.callbacks.Callback):
    """Doubles the batch of an update whenever the noise scale has grown beyond it.

    A training begins with little noise, where small batches make the most of each
    example, and ends with much, where large ones cost little more and take fewer
    updates. The batch is doubled while twice the batch is at most `share` times the
    noise scale: first the accumulated micro-batches, up to `max_accumulation`, then the
    micro-batch of each worker, if `batches` joins them. It is never made smaller.

    All ranks must have this callback; they decide alike. The learning rate grows with the
    batch: a constant one is set anew, a schedule's is multiplied. A schedule counts
    updates of the first batch, examples so far ÷ that batch, so that it ends where it
    would without the ramp. The window of accumulation, the rate and where a schedule is
    are state of the optimizer, and survive in a checkpoint; joined batches begin anew.

    Args:
        max_accumulation: Int, micro-batches of each worker up to which to accumulate.
        scaling: What the learning rate is multiplied by at each doubling: "linear" 2,
            "sqrt" √2, "adascale" the gain of AdaScale, between 1 and 2 (for SGD; arXiv
            2007.05105). Defaults to "sqrt", usual for Adam and LAMB.
        max_joined: Int, how many batches of the dataset may become one micro-batch; a
            power of two. Defaults to 1.
        share: Float, which part of the noise scale the batch may reach. Defaults to 1.
        every: Int, the ramp looks at the noise every so many updates. Where a `GSNRMonitor`
            comes later in the list of callbacks, its `every` counts. Defaults to 10.

    Attributes:
        history: List of dicts, one for each doubling: "update", "accumulation",
            "joined", "learning_rate".
        accumulation: Int, micro-batches of each worker that the batch has grown to;
            `None` before training.
        rate_factor: Float, what all doublings have multiplied the learning rate by.

    Raises:
        ValueError: An argument is out of range, or the optimizer is already built.
        TypeError: The optimizer is not of the GSNR family.

    Example:
        ramp = BatchSizeRamp(max_accumulation=32, max_joined=4)
        model.fit(ramp.batches(dataset), callbacks=[ramp])
    """

    def __init__(self, max_accumulation, scaling="sqrt", max_joined=1, share=1.0, every=10):
        super().__init__()
        if scaling not in _SCALINGS:
            raise ValueError(f"scaling must be one of {_SCALINGS}. Received: {scaling!r}")
        for name, value in (
            ("max_accumulation", max_accumulation),
            ("max_joined", max_joined),
            ("every", every),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1. Received: {name}={value}")
        if not share > 0:
            raise ValueError(f"share must be positive. Received: share={share}")
        self.max_accumulation = max_accumulation
        self.scaling = scaling
        self.max_joined = max_joined
        self.share = share
        self.every = every
        self.history = []
        self.accumulation: int | None = None
        self.rate_factor = 1.0
        self._joined = tf.Variable(1, dtype=tf.int64, trainable=False)

    def batches(self, dataset):
        """Joins batches of a dataset as the ramp asks for larger micro-batches.

        Args:
            dataset: `tf.data.Dataset` of this worker's batches. What is prefetched
                after this call still has the former size; batches that wait to be
                joined when the number changes come at the end.

        Returns:
            A `tf.data.Dataset` of the same structure.
        """

        def join(_, window):
            return window.rebatch(tf.int64.max)

        return dataset.group_by_window(
            # tf.data asks for the size of a window once for each key.
            key_func=lambda *batch: self._joined.read_value(),
            reduce_func=join,
            window_size_func=lambda key: key,
        )

    def set_model(self, model):
        super().set_model(model)
        optimizer = inner_optimizer(model)
        if not isinstance(optimizer, GSNROptimizer):
            raise TypeError(
                "BatchSizeRamp follows the noise that a GSNR optimizer measures. "
                f"Received: {type(optimizer).__name__}. With gamma=1 a GSNR optimizer "
                "is its base optimizer, and measures all the same."
            )
        optimizer.vary_window()
        optimizer.watch(self.every)
        # A train step traced before now has a window of fixed size.
        model.train_function = None
        self._optimizer = optimizer

    def on_train_begin(self, logs=None):
        self._seen = int(keras.ops.convert_to_numpy(self._optimizer.iterations))
        self.accumulation = int(self._optimizer.accumulation_steps)
        self._trace = noise_scale.Smoothed(_SMOOTHING)
        self._signal = noise_scale.Smoothed(_SMOOTHING)
        self._records = 0
        self._workers = comm.choose("auto", self.model.distribute_strategy).workers
        self._count_examples()

    def _count_examples(self):
        # In batches of the dataset, over all workers.
        self._optimizer.count_examples(self._workers * int(self._joined))

    def on_train_batch_end(self, batch, logs=None):
        self.look()

    def look(self):
        """Doubles the batch if an update on record says so. To be called between
        updates."""
        if self._optimizer.watched_update() <= self._seen:
            return
        record = self._optimizer.watched()
        self._seen, samples, joined = record.update, record.samples, int(self._joined)
        # In units of a batch of the dataset, which all workers know alike.
        unit = self._optimizer.workers * joined
        examples = unit * record.accumulation / samples
        sums = (record.summary.field(name).sum() for name in ("mean_sq", "variance"))
        s1, s2 = map(float, sums)
        trace = self._trace.add(noise_scale.noise_trace(s2, samples, examples))
        signal = self._signal.add(noise_scale.signal_sq_norm(s1, s2, samples))
        self._records += 1
        # An update may have been smaller, at the end of an epoch say.
        self.accumulation = max(self.accumulation, record.accumulation)
        size = unit * self.accumulation
        room = 2 * size <= self.share * noise_scale.noise_scale(trace, signal)
        if self._records >= _PATIENCE and room:
            self._double(joined, trace, signal, size)

    def state(self):
        """What has been seen so far, a dict that JSON can hold."""
        averages = {"trace": self._trace.state, "signal": self._signal.state}
        return {"records": self._records, **averages}

    def restore(self, state):
        """Takes what `state` gave, of a job with the same batches of the dataset."""
        self._records = state["records"]
        self._trace.state, self._signal.state = state["trace"], state["signal"]

    def _double(self, joined, trace, signal, size):
        accumulation = self.accumulation
        assert accumulation is not None  # training has begun
        if 2 * accumulation <= self.max_accumulation:
            self.accumulation = accumulation = 2 * accumulation
            self._optimizer.set_accumulation_steps(accumulation)
        elif 2 * joined <= self.max_joined:
            joined *= 2
            self._joined.assign(joined)
            self._count_examples()
        else:
            return
        self._records = 0
        factor = self._factor(trace, signal, size)
        self.rate_factor *= factor
        self._optimizer.multiply_learning_rate(factor)
        rate = float(keras.ops.convert_to_numpy(self._optimizer.learning_rate))
        self.history.append(
            {
                "update": self._seen,
                "accumulation": accumulation,
                "joined": joined,
                "learning_rate": rate,
            }
        )
        if comm.rank() == 0:
            _log.info(
                "update %d: %d micro-batches of %d batches each, learning rate %.4g",
                self._seen, accumulation, joined, rate,
            )  # fmt: skip

    def _factor(self, trace, signal, size):
        if self.scaling == "adascale":
            return noise_scale.adascale_gain(trace, signal, size, 2 * size)
        return 2.0 if self.scaling == "linear" else 2.0**0.5
