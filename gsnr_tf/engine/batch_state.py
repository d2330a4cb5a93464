"""How many examples the updates of a job have, where the batch grows."""

from gsnr_tf.callbacks import BatchSizeRamp
from gsnr_tf.optimizers.inner import inner_optimizer
from gsnr_tf.resilience import CheckpointError

# The ramp reads a record every so many updates, unless the configuration says otherwise.
_EVERY = 10


class BatchState:
    """The updates of a job so far, and the batch of the next.

    Args:
        model: The compiled `keras.Model`, whose optimizer is not yet built.
        config: The `Config`.
        batch: The `Batch` that it resolves to, the first of the job.

    Attributes:
        first: That `Batch`.
        batch: The `Batch` of the update under way; between updates that of the next.
        grows: Whether there is a ramp.
    """

    def __init__(self, model, config, batch):
        self.first = self.batch = batch
        self._model = model
        self._inner = inner_optimizer(model)
        self._ramp = _ramp(config, batch)
        self.grows = self._ramp is not None
        # Updates and examples when this batch began.
        self._before = (0, 0)
        if self.grows:
            # Before the optimizer is built, so that its window may vary.
            self._ramp.set_model(model)

    def begin(self):
        """To be called once the optimizer is built."""
        if self.grows:
            self._ramp.on_train_begin()
            self._count_examples()

    @property
    def done(self):
        """Updates so far, those that were skipped included."""
        return int(self._inner.iterations) + int(self._inner.skipped_steps)

    @property
    def examples(self):
        """Examples so far, over all ranks."""
        updates, examples = self._before
        return examples + (self.done - updates) * self.batch.train

    def shorten(self, micro_batches):
        """Lets the next update have at most so many micro-batches of each rank."""
        if self.grows:
            self._accumulate(min(self._ramp.accumulation, micro_batches))

    def end(self):
        """After each update: the batch of the next one, which may have grown."""
        if self.grows:
            self._ramp.look()
            self._accumulate(self._ramp.accumulation)

    def counters(self):
        """What a checkpoint keeps, a dict that JSON can hold."""
        kept = {"global_steps": self.done, "global_samples": self.examples}
        if self.grows:
            ramp = {
                "micro_batch": self.batch.micro,
                "rate_factor": self._ramp.rate_factor,
                "scheduled_samples": self._scheduled(),
                **self._ramp.state(),
            }
            kept.update(train_batch_size=self.batch.train, batch_ramp=ramp)
        return kept

    def check(self, counters):
        """Raises CheckpointError where the batch that was reached cannot be divided so."""
        if self.grows:
            _accumulation(self._reached(counters), self.first)

    def _reached(self, counters):
        return max(counters.get("train_batch_size", 0), self.first.train)

    def restore(self, counters):
        """Takes what `counters` gave, on any number of ranks, once the rest is loaded.

        Raises:
            CheckpointError: As `check`.
        """
        self._before = (self.done, counters["global_samples"])
        if not self.grows:
            return
        self.batch = self.first
        # What is on record may be of a later update than the checkpoint.
        self._ramp.set_model(self._model)
        self._inner.set_accumulation_steps(self.first.accumulation)
        self._accumulate(_accumulation(self._reached(counters), self.first))
        self._ramp.on_train_begin()
        ramp = dict(counters.get("batch_ramp", {}))
        self._ramp.rate_factor = ramp.pop("rate_factor", 1.0)
        scheduled = ramp.pop("scheduled_samples", counters["global_samples"])
        self._count_examples()
        self._inner.restore_schedule(scheduled, self.first.train, self._ramp.rate_factor)
        # Noise is counted in micro-batches.
        if ramp.pop("micro_batch", None) == self.first.micro:
            self._ramp.restore(ramp)

    def _count_examples(self):
        """Lets a scheduler count by examples. Those of updates that were skipped do not
        count there."""
        micro_batch = self.first.micro * self.first.ranks
        self._inner.count_examples(micro_batch, self.first.train)

    def _scheduled(self):
        state = self._inner.schedule_state()
        return self.examples if state is None else state["examples"]

    def _accumulate(self, steps):
        if steps == self.batch.accumulation:
            return
        self._before = (self.done, self.examples)
        self.batch = self.first.accumulating(steps)
        self._inner.set_accumulation_steps(steps)


def _ramp(config, batch):
    section = config.gsnr.batch_ramp
    if section is None:
        return None
    return BatchSizeRamp(
        section.max_train_batch_size // (batch.micro * batch.ranks),
        scaling=section.scaling,
        share=section.share,
        # A record for both.
        every=section.every or config.gsnr.monitor_interval or _EVERY,
    )


def _accumulation(train, batch):
    steps, rest = divmod(train, batch.micro * batch.ranks)
    if rest:
        raise CheckpointError(
            f"The batch ramp of the checkpoint had reached train_batch_size={train},"
            " which is not a whole number of micro-batches on each rank. Received:"
            f" train_micro_batch_size_per_gpu={batch.micro} on {batch.ranks} rank(s)."
        )
    return steps
