"""SIGTERM to a job of the engine: it saves after the update, ends, and goes on later."""

import dataclasses
from pathlib import Path

from gsnr_tf.callbacks import SaveOnPreemption
from gsnr_tf.engine.data import makes_its_own_batches
from gsnr_tf.resilience.preemption import Notice, any_saved, exit_saved, say_resumed

# In the client state of what `fit` saves: epochs, and examples of the one after them.
_FIT = "gsnr_tf.fit"


@dataclasses.dataclass(frozen=True)
class Span:
    """Epochs that one `Model.fit` trains.

    Attributes:
        initial_epoch, epochs: Ints, as for `Model.fit`.
        examples, micro_batches: Ints, what is done of the first of them: examples of
            all ranks, micro-batches of each.
    """

    initial_epoch: int
    epochs: int
    examples: int = 0
    micro_batches: int = 0


class Preemption:
    """Where a job saves when it is told to end, and goes on from when it starts again.

    Args:
        engine: The `Engine`.
        folder: Path that all ranks share; `None`, and SIGTERM ends a rank at once.
        communicator: The `Communicator` of all ranks.
    """

    def __init__(self, engine, folder, communicator):
        self._engine, self._comm = engine, communicator
        self._folder = None if folder is None else Path(folder)
        self._notice = Notice()
        # Where a `fit` was interrupted: updates in all, epochs, and examples of the next.
        self._position = None

    def begin(self):
        """Restores the newest checkpoint of the folder; SIGTERM is a wish from now on."""
        if self._folder is None:
            return
        if any_saved(self._folder, self._comm):
            path, state = self._engine.load_checkpoint(self._folder)
            if _FIT in state:
                self._position = self._engine.global_steps, *state[_FIT]
            say_resumed(path)
        self._notice.__enter__()

    @property
    def wish(self):
        """1.0 where this rank has been told to end, else 0.0."""
        return float(self._notice.received)

    def end_if(self, wished):
        """Between two updates, on all ranks with the same `wished`: saves and ends."""
        if not wished:
            return
        tag = f"preempted-{self._engine.global_steps}"
        self._engine.save_checkpoint(self._folder, tag)
        exit_saved(self._folder / tag)

    # ---- `fit` --------------------------------------------------------------------

    def spans(self, x, fit_arguments):
        """The `Span`s of a `fit`: two, where it begins in the middle of an epoch.

        Args:
            x: What `Engine.fit` received.
            fit_arguments: Dict of arguments of `Model.fit`.
        """
        first = fit_arguments.get("initial_epoch", 0)
        epochs = fit_arguments.get("epochs", 1)
        position, self._position = self._position, None
        # Whoever has trained in between is somewhere else.
        if position is None or position[0] != self._engine.global_steps:
            return [Span(first, epochs)]
        _, first, examples = position
        batch = self._engine._updates.first
        updates = 0 if makes_its_own_batches(x) else examples // batch.train
        if not updates or first >= epochs:
            return [Span(min(first, epochs), epochs)]
        rest = Span(first, first + 1, examples, updates * batch.accumulation)
        return [rest, Span(first + 1, epochs)] if first + 1 < epochs else [rest]

    def callbacks(self, span):
        """For `Model.fit`, last of all."""
        if self._folder is None:
            return []
        return [_SaveInFit(self._folder, self._engine, self._notice, span.examples)]


class _SaveInFit(SaveOnPreemption):
    """With the engine's notice, which stays after `fit`, and restores nothing."""

    def __init__(self, folder, engine, notice, done):
        super().__init__(folder, engine)
        self._notice, self._done = notice, done

    def _begin(self):
        pass

    def _end(self):
        pass

    def on_epoch_begin(self, epoch, logs=None):
        super().on_epoch_begin(epoch, logs)
        self._before = self._engine.global_samples - self._done
        self._done = 0

    def _position(self):
        done = self._engine.global_samples - self._before
        return {_FIT: [self._epoch + self._complete, 0 if self._complete else done]}
