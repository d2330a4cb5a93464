"""The engine: a job from a configuration, a thin coordinator of the other rooms."""

import math
import warnings

import numpy as np
import tensorflow as tf

from gsnr_tf import callbacks as keras_callbacks
from gsnr_tf import comm
from gsnr_tf.callbacks.consistency import check_consistency
from gsnr_tf.callbacks.skipped import StatisticsGuard
from gsnr_tf.callbacks.statistics import average_statistics
from gsnr_tf.engine import config_consensus, habits
from gsnr_tf.engine.batch_state import BatchState
from gsnr_tf.engine.build import build_optimizer, check_given
from gsnr_tf.engine.data import (
    Examples,
    makes_its_own_batches,
    specs_of,
    split_micro_batches,
    split_off,
)
from gsnr_tf.engine.notices import tell_decisions
from gsnr_tf.engine.precision import set_precision
from gsnr_tf.engine.preemption import Preemption
from gsnr_tf.engine.reporting import Reporter, UpdateCallback
from gsnr_tf.engine.signatures import signature_of
from gsnr_tf.engine.tune_trial import TuneTrial
from gsnr_tf.optimizers.inner import inner_optimizer
from gsnr_tf.resilience import checkpoint


def initialize(
    model,
    config=None,
    loss=None,
    metrics=None,
    training_data=None,
    preemption_dir=None,
    *,
    optimizer=None,
    lr_scheduler=None,
    auto=None,
    strict=False,
    args=None,
    config_params=None,
    model_parameters=None,
    **compile_arguments,
):
    """Makes a model ready to train as a configuration says; returns an `Engine`.

    Call it on every rank alike. It compiles the model, in place; with `fp16` or `bf16`
    it also sets the dtype policy of the model's layers.

    Args:
        model: A built `keras.Model`.
        config: Path of a JSON file, or a dict of the same keys; see engine/docs.
        loss, metrics: As for `Model.compile`.
        training_data: Tuple `(x, y)` or `(x, y, sample_weight)` of arrays, or a
            `tf.data.Dataset` of single examples: all examples, the same on every rank.
            The engine makes the batches and shares them out.
        preemption_dir: Folder that all ranks share. Where it is given, SIGTERM to any
            rank does not end the job at once: the update is finished, with several
            ranks maybe one more, all state is saved there, and all ranks exit with
            `gsnr_tf.resilience.preemption.EXIT_CODE`. And if the folder has a
            checkpoint, the job begins with the newest: `global_steps` says where it is.
        optimizer: A `keras.optimizers.Optimizer` that is not built, in place of the
            configuration's, as in DeepSpeed.
        lr_scheduler: A `keras.optimizers.schedules.LearningRateSchedule`, in place of the
            configuration's. It is asked by updates.
        auto: Dict of values for keys that are "auto" or missing, by their names, such as
            `{"train_micro_batch_size_per_gpu": 8, "lr": 3e-4}`.
        strict: Whether keys of DeepSpeed's that have no effect here are errors.
        args, config_params, model_parameters: As deepspeed.initialize has them: `config` by
            `args.deepspeed_config` or another name, and the model's trainable variables.
        compile_arguments: Further arguments of `Model.compile`.

    Raises:
        ConfigError: The configuration cannot be used, or differs between ranks; on all
            ranks.
        CheckpointError: On all ranks: the newest checkpoint of `preemption_dir` is
            damaged, or does not fit.
        ValueError: The model is not built, or a tf.distribute strategy is in use.
    """
    config = habits.configuration(
        config, args, config_params, compile_arguments, model, model_parameters
    )
    if tf.distribute.has_strategy():
        raise ValueError(
            "The engine trains on Horovod's ranks. Received a call inside the scope of"
            f" {type(tf.distribute.get_strategy()).__name__}. Start one rank for each"
            " device, or use Model.compile and Model.fit with an optimizer of this"
            " package."
        )
    if not model.built:
        raise ValueError(
            f"The model '{model.name}' has no variables yet. Give it a keras.Input, or "
            "call it once on a batch, before gsnr_tf.initialize."
        )
    communicator = comm.choose("auto", tf.distribute.get_strategy())
    trial = TuneTrial.of_environment()
    if optimizer is not None:
        check_given(optimizer)
    config = config_consensus.read(
        config,
        communicator,
        changes=trial and trial.changes,
        auto=_auto(auto, model),
        rule=optimizer and signature_of(type(optimizer)),
        strict=strict,
    )
    batch = config.batch(communicator.workers)
    if comm.rank() == 0:
        tell_decisions(config)
    for enabled, policy in (
        (config.fp16.enabled, "mixed_float16"),
        (config.bf16.enabled, "mixed_bfloat16"),
    ):
        if enabled:
            set_precision(model, policy)
    # XLA has no kernels for Horovod's collectives, and no clock.
    xla = batch.ranks == 1 and not config.wall_clock_breakdown
    model.compile(
        optimizer=build_optimizer(config, batch, optimizer, lr_scheduler),
        loss=loss,
        metrics=metrics,
        auto_scale_loss=False,
        **{"jit_compile": "auto" if xla else False, **compile_arguments},
    )
    return Engine(model, config, batch, communicator, training_data, trial, preemption_dir)


def _auto(auto, model):
    """`auto`, and whether the model has layers of mixed precision already."""
    policies = {layer.dtype_policy.name for layer in model._flatten_layers()}
    found = {
        f"{key}.enabled": True
        for key, policy in (("fp16", "mixed_float16"), ("bf16", "mixed_bfloat16"))
        if policy in policies
    }
    return {**found, **(auto or {})}


class Engine(habits.DeepSpeedHabits):
    """A job in training. Made by `gsnr_tf.initialize`.

    Attributes:
        model: The `keras.Model`, compiled.
        optimizer: Its optimizer; with `fp16` the `LossScaleOptimizer` around it.
        config: The `Config`.
    """

    def __init__(
        self,
        model,
        config,
        batch,
        communicator,
        training_data=None,
        trial=None,
        preemption_dir=None,
    ):
        self.model = model
        self.optimizer = model.optimizer
        self.config = config
        self._comm = communicator
        self._inner = inner_optimizer(self.optimizer)
        self._updates = BatchState(model, config, batch)
        self.optimizer.build(model.trainable_variables)
        self._updates.begin()
        self._broadcast = keras_callbacks.BroadcastGlobalVariablesCallback()
        self._broadcast.set_model(model)
        self._broadcast.on_train_begin()
        self._guard = StatisticsGuard(model)
        self._data = None
        if training_data is not None:
            self._data = self._examples(training_data)
        self._next = None
        self._progress = Reporter(self, self._inner.comm, trial)
        folder = None if self._progress.is_trial else preemption_dir
        self._preemption = Preemption(self, folder, communicator)
        self._preemption.begin()

    # ---- training ---------------------------------------------------------------

    def fit(
        self,
        x=None,
        y=None,
        sample_weight=None,
        batch_size=None,
        validation_split=0.0,
        validation_data=None,
        shuffle=True,
        steps_per_epoch=None,
        callbacks=None,
        verbose="auto",
        **fit_arguments,
    ):
        """`Model.fit` with the batches of the configuration. Call it on all ranks.

        An epoch is a whole number of training batches; where the batch grows, of
        those that the configuration begins with, and the last update of an epoch takes
        what is left of it. Metrics are means over the ranks; each rank evaluates all of
        `validation_data`.

        Args:
            x, y, sample_weight: As for `Model.fit`: arrays or a `tf.data.Dataset` of
                single examples, the same on all ranks. Left out: the `training_data`
                of `initialize`. Anything else (a generator, a `keras.utils.PyDataset`)
                goes to `Model.fit` as it is: each rank's own micro-batches.
            batch_size: Left out, or the configuration's micro-batch.
            steps_per_epoch: Int, training batches of an epoch.
            shuffle: Whether arrays come in a new order each epoch. Defaults to `True`.
            validation_split, validation_data, callbacks, verbose, fit_arguments: As
                for `Model.fit`.

        Where the job goes on from `preemption_dir`, the first call goes on behind the last
        update of the `fit` that was interrupted, by a `Model.fit` for the rest of that
        epoch and one for the others. Data that comes in batches of its own (`x`, as
        above) begins the epoch anew.

        Returns:
            The `keras.callbacks.History`, the last where there were two.
        """
        if batch_size not in (None, self._batch.micro):
            raise ValueError(
                "The configuration decides the batch. Received:"
                f" batch_size={batch_size}, with"
                f" train_micro_batch_size_per_gpu={self._batch.micro}."
            )
        self._check_same_validation(validation_data)
        if validation_split:
            (x, y, sample_weight), validation_data = split_off(
                validation_split, x, y, sample_weight
            )
        self._next = None
        for span in self._preemption.spans(x, fit_arguments):
            data, steps = self._training_batches(x, y, sample_weight, shuffle, steps_per_epoch)
            specs = specs_of(data["x"], self._batch) if self._progress.profiles else None
            history = self.model.fit(
                **data,
                steps_per_epoch=steps and steps - span.micro_batches,
                validation_data=validation_data,
                verbose=self._verbosity(verbose),
                callbacks=[
                    self._broadcast,
                    keras_callbacks.AverageBatchStatistics(),
                    *self._checks(),
                    keras_callbacks.MetricAverageCallback(),
                    *self._monitors(),
                    UpdateCallback(self._updates, self._progress, specs),
                    *(callbacks or []),
                    *self._preemption.callbacks(span),
                ],
                **{
                    "validation_batch_size": self._batch.micro,
                    **fit_arguments,
                    "initial_epoch": span.initial_epoch,
                    "epochs": span.epochs,
                },
            )
        return history

    def train_batch(self, batch=None):
        """One update. Call it on all ranks.

        Args:
            batch: Tuple `(x, y)` or `(x, y, sample_weight)` of this rank's examples,
                train_micro_batch_size_per_gpu × gradient_accumulation_steps rows, which
                are more when the batch has grown. Or an iterator over such tuples, of
                which it takes gradient_accumulation_steps micro-batches. Left out: the
                next of `training_data`, of which each rank takes its own.

        Returns:
            The loss before the update, a float, the mean over micro-batches and ranks.
        """
        if batch is None:
            parts = self._next_parts()
        elif hasattr(batch, "__next__"):
            parts = habits.parts_of(batch, self._batch.accumulation)
        else:
            parts = split_micro_batches(batch, self._batch)
        losses = []
        self._guard.keep()
        for part in parts:
            self._progress.begin()
            logs = self.model.train_on_batch(*part, return_dict=True)
            self._progress.end()
            losses.append(logs["loss"])
        self._guard.undo_if_skipped()
        loss = self._mean_over_ranks(np.mean(losses))
        specs = specs_of(parts[0], self._batch) if self._progress.profiles else None
        self._progress.update(loss, specs)
        self._updates.end()
        self._preemption.end_if(self._wished)
        return loss

    def eval_batch(self, batch):
        """The loss of a batch, a float, the mean over ranks. Call it on all ranks.

        Args:
            batch: Tuple `(x, y)` or `(x, y, sample_weight)`, of any number of rows, the
                same number on each rank.
        """
        average_statistics(self.model, self._comm)
        logs = self.model.test_on_batch(*batch, return_dict=True)
        loss = self._mean_over_ranks(logs["loss"])
        self._preemption.end_if(self._wished)
        return loss

    # ---- checkpoints ------------------------------------------------------------

    def save_checkpoint(self, save_dir, tag=None, client_state=None):
        """Writes all state to `save_dir/tag`, and `save_dir/latest`. All ranks call it.

        A folder takes the checkpoints of one running job: until the process of rank 0
        ends, another job that saves there gets an error. Weights that are not finite
        are saved with a warning, and named in the manifest.

        Args:
            save_dir: Folder that all ranks share.
            tag: String. Left out: global_step and its number.
            client_state: Dict of your own, of what JSON can hold and gives back
                unchanged, and of NumPy's scalars, which come back as Python's.

        Returns:
            `True`. A trial of `gsnr-tf tune` writes nothing.

        Raises:
            CheckpointError: On all ranks, where it fails on any. The checkpoints that
                were there are whole.
            RanksDiffer: On all ranks, where they have drifted apart and
                `gsnr.consistency_check` is "stop".
        """
        if self._progress.is_trial:
            return True
        average_statistics(self.model, self._comm)
        reaction = self.config.gsnr.consistency_check
        if reaction != "off":
            check_consistency(self.model, self._comm, reaction)
        checkpoint.save(
            save_dir,
            f"global_step{self.global_steps}" if tag is None else str(tag),
            self.model,
            self._comm,
            self._updates.counters(),
            {} if client_state is None else client_state,
        )
        return True

    def load_checkpoint(
        self,
        load_dir,
        tag=None,
        *,
        load_module_only=False,
        load_optimizer_states=True,
        load_lr_scheduler_states=True,
    ):
        """Restores what `save_checkpoint` wrote, on any number of ranks. All call it.

        State is the checkpoint's: weights, the optimizer's, counters, random numbers, a
        constant learning rate. Settings are the configuration's: schedule, coefficients,
        batch. Where the two differ, rank 0 warns and says which holds.

        Args:
            load_dir: Folder that all ranks share.
            tag: String. Left out: the newest.
            load_module_only: Bool. `True`: weights alone, of a job with any optimizer;
                floats are converted. Nothing else changes.
            load_optimizer_states: Bool. `False`: the optimizer, of any kind, keeps the
                state that it has, of a new job the first, and with it the count of
                updates, a schedule and the rate; the data goes on.
            load_lr_scheduler_states: Bool. `False`: the configuration's constant
                learning rate. A schedule counts the optimizer's updates and cannot
                begin anew beside its state.

        Returns:
            `(path, client_state)`; `(None, {})` with a warning where `tag` is left out
            and there is no checkpoint yet.

        Raises:
            CheckpointError: On all ranks, and nothing has changed: it is missing,
                damaged, or does not fit.
        """
        if self._progress.is_trial:
            return None, {}
        wanted = checkpoint.Wanted(
            optimizer=load_optimizer_states and not load_module_only,
            rate=load_lr_scheduler_states,
            progress=not load_module_only,
            tell_rate=not self._updates.grows,
            check_counters=self._updates.check,
        )
        tag = None if tag is None else str(tag)
        found = checkpoint.load(load_dir, tag, self.model, self._comm, wanted)
        if found is None:
            if comm.rank() == 0:
                warnings.warn(f"{load_dir} has no checkpoint: training begins.", stacklevel=2)
            return None, {}
        path, counters, client_state = found
        # All ranks have loaded: none needs to keep what it read for others.
        self._inner.share_state()
        if wanted.progress:
            self._updates.restore(counters)
            self._next = None
            self._progress.restart()
        return str(path), client_state

    # ---- what one may ask, in DeepSpeed's forms -----------------------------------

    @property
    def global_steps(self):
        """Updates so far, those that were skipped included."""
        return self._updates.done

    @property
    def global_samples(self):
        """Examples so far, over all ranks."""
        return self._updates.examples

    @property
    def skipped_steps(self):
        """Updates that all ranks skipped, since the gradient was not finite."""
        return int(self._inner.skipped_steps)

    @property
    def consecutive_skips(self):
        """Updates skipped since the last that was made."""
        return int(self._inner.consecutive_skips)

    @property
    def loss_scale(self):
        """The loss scale now, a float; `None` without `fp16`."""
        if not self.config.fp16.enabled:
            return None
        return float(getattr(self.optimizer, "dynamic_scale", self.config.fp16.loss_scale))

    def train_batch_size(self):
        """Examples of the next update, over all ranks."""
        return self._batch.train

    def train_micro_batch_size_per_gpu(self):
        """Examples of a micro-batch on one rank."""
        return self._batch.micro

    def gradient_accumulation_steps(self):
        """Micro-batches of the next update on one rank."""
        return self._batch.accumulation

    def micro_batches_of_an_epoch(self):
        """Micro-batches of `training_data` on one rank, at the first batch."""
        if self._data is None:
            raise ValueError(_NO_DATA)
        return self._data.updates * self._updates.first.accumulation

    def get_lr(self):
        """List with the learning rate of the next update."""
        return [float(self.optimizer.learning_rate)]

    def get_global_grad_norm(self):
        """2-norm of the last update's mean gradient, before clipping, a float.

        `None` before the first update; with optimizers of Keras, the first of this
        process.
        """
        norm = float(self._inner.gradient_norm)
        known = int(self.optimizer.iterations) and not math.isnan(norm)
        return norm if known else None

    # ---- parts --------------------------------------------------------------------

    @property
    def _batch(self):
        return self._updates.batch

    def _examples(self, data, shuffle=True, updates=None):
        first = self._updates.first
        seed = self.config.gsnr.shuffle_seed if shuffle else None
        return Examples(data, first, self._comm, comm.rank(), seed, updates)

    def _micro_batches(self, examples):
        """This rank's micro-batches from where the job is now."""
        return examples.micro_batches(self.global_samples // self._updates.first.train)

    def _training_batches(self, x, y, sample_weight, shuffle, updates):
        """Data for `Model.fit`, a dict, and micro-batches of an epoch."""
        accumulation = self._updates.first.accumulation
        if makes_its_own_batches(x):
            if self._updates.grows:
                raise ValueError(
                    "Where gsnr.batch_ramp changes the batch, the engine makes the"
                    f" micro-batches. Received: {type(x).__name__}. Give arrays or a"
                    " tf.data.Dataset of single examples."
                )
            data = {"x": x, "y": y, "sample_weight": sample_weight, "shuffle": shuffle}
            return data, updates and updates * accumulation
        examples = self._data
        if x is not None:
            given = (x, y) if sample_weight is None else (x, y, sample_weight)
            given = x if isinstance(x, tf.data.Dataset) else given
            examples = self._examples(given, shuffle, updates)
        elif examples is None:
            raise ValueError(_NO_DATA)
        steps = (updates or examples.updates) * accumulation
        return {"x": self._micro_batches(examples), "shuffle": False}, steps

    def _next_parts(self):
        """This rank's micro-batches of the next training batch of `training_data`."""
        if self._data is None:
            raise ValueError(_NO_DATA)
        step = self.global_steps
        if self._next is None or self._next[0] != step:
            self._next = step, iter(self._micro_batches(self._data))
        micro_batches = self._next[1]
        self._next = step + 1, micro_batches
        return [next(micro_batches) for _ in range(self._batch.accumulation)]

    def _mean_over_ranks(self, value):
        """The mean; and whether any rank has been told to end, as `_wished`."""
        own = tf.constant([value, self._preemption.wish], tf.float64)
        total, wishes = self._comm.all_reduce(own, "gsnr.loss").numpy()
        self._wished = wishes > 0
        return float(total) / self._batch.ranks

    def _checks(self):
        reaction = self.config.gsnr.consistency_check
        if reaction == "off":
            return []
        return [keras_callbacks.ConsistencyCheck(on_difference=reaction)]

    def _monitors(self):
        gsnr = self.config.gsnr
        if not gsnr.monitor_interval:
            return []
        examples = self._batch.micro * self._batch.ranks
        return [keras_callbacks.GSNRMonitor(gsnr.monitor_path, gsnr.monitor_interval, examples)]

    def _check_same_validation(self, data):
        given = self._comm.gather(data is not None)
        if len(set(given)) > 1:
            raise ValueError(
                "All ranks must evaluate, since they average BatchNorm statistics"
                f" before. Received validation_data, by rank: {given}."
            )

    def _verbosity(self, verbose):
        if comm.rank():
            return 0
        # A bar and the lines of `steps_per_print` would write over each other.
        return 2 if verbose == "auto" else verbose


_NO_DATA = (
    "There is no data. Give gsnr_tf.initialize training_data=(x, y), or pass data to this call."
)
