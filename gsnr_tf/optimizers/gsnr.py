"""What the optimizers of the family share: the multiplier, and how a rule is applied."""

import re
import warnings
from typing import NamedTuple

import tensorflow as tf

from gsnr_tf import comm
from gsnr_tf.comm.route import by_host_pays
from gsnr_tf.optimizers.base import DistributedStep
from gsnr_tf.optimizers.exclusions import (
    as_list,
    checked_patterns,
    path_of,
    selected,
)
from gsnr_tf.sharding import BUCKET_BYTES, Slices, Slots, Whole
from gsnr_tf.sharding.watch import Watch
from gsnr_tf.stats import ESTIMATORS, SOUND_SAMPLES

# What may be a sample, the smallest first.
_SAMPLES = ("micro_batch", "worker", "host")


class Step(NamedTuple):
    """What a rule is told about the step, besides the variable's own numbers.

    Attributes:
        learning_rate: Scalar tensor, λ.
        t: Scalar tensor, number of this update, from 1.
        weight_decay: Float or tensor, 0 for variables that are excluded.
    """

    learning_rate: tf.Tensor
    t: tf.Tensor
    weight_decay: float


COMMON_ARGUMENTS = """gamma: Float in (0, 1]. Floor of the multiplier (Eq. 9). Defaults to 0.1.
        ceiling: Float, at least `gamma`. Upper bound of the multiplier. With
            `gamma=1, ceiling=1` the optimizer is its base optimizer. Defaults to 1, with
            `estimator="robust"` to 1/gamma.
        estimator: What the multiplier is made of, before it is divided by its mean over
            the variable: "paper", the GSNR r = mean²/variance, or "robust", the share
            of signal in the squared mean, mean²/(mean² + variance/(k−1)), which keeps
            its worth with few samples. gsnr_tf/compare/EVIDENCE.md has what was
            measured of both. Defaults to "paper".
        weight_decay: Float or `None`.
        exclude_from_weight_decay: List of regular expressions, searched in
            `variable.path`: which variables are not decayed. An empty list excludes
            none. Defaults to `None`: {default_exclusion}.
        sample: What one sample of the gradient is: "micro_batch" (of
            `gradient_accumulation_steps`; k = workers × steps), "worker" (the mean of a
            worker's window; k = workers), "host" (the mean of a host's workers, where
            slices go by host; k = hosts) or "auto": the largest of these of which
            there are 8 or more, since larger samples spare a third of the bytes an
            update, else "micro_batch". Defaults to "auto".
        sharding: "slices" (under Horovod each rank takes the statistics, computes the
            update and keeps the state of one slice; see gsnr_tf/sharding), "none"
            (every worker updates all parameters) or "auto": "slices" wherever there
            are ranks to share, but for more than 3 ranks on a host where hosts have
            unlike numbers of them or the job is elastic. Defaults to "auto".
        bucket_bytes: Int. Gradients travel in buckets of about this size as backward
            yields them, larger ones alone. Defaults to 4 MiB.
        communication_dtype: "float32", "bfloat16" or "float16": how gradients travel
            with slices. Weights are never rounded. Defaults to "float32".
        communicator: Where the samples come from: "horovod" (one from each rank),
            "strategy" (one from each replica), "local" (only the micro-batches of
            this process) or "auto", which sees by itself. Defaults to "auto".
        learning_rate, clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum,
            ema_overwrite_frequency, loss_scale_factor, gradient_accumulation_steps,
            name: As for every Keras optimizer, except that clipping acts on the
            gradient of all workers, and that each accumulated micro-batch is a
            sample of its own. The moving average follows updates, not micro-batches.

        max_consecutive_skips: Int or `None`. Training ends with an error once so many
            updates in a row were skipped because the gradient was not finite. Defaults to
            10. Skips by which a loss scale is found do not count.

    Raises:
        ValueError: At construction for arguments out of range; at the first training
            step where only one sample an update would be left (one worker and no
            accumulation)."""


class GSNROptimizer(DistributedStep):
    """Base of the family. A rule names its `slots` and says

        u = direction(θ, g, r)       elementwise: the step, its length not yet known
        φ = trust_ratio(‖θ‖, ‖u‖)    one number for each variable, 1 without adaptation
        θ ← descend(θ, u, φ)         elementwise

    with r the multiplier of `stats.multiplier`. All are pure functions on tensors of
    any shape, so that a rule works on a whole variable or on a part of it.
    """

    slots = ()
    _watch_every = None
    # Whether vectors and scalars (biases, norms) are left undecayed by default.
    exclude_vectors = False
    _needs_variance = True

    def __init__(
        self,
        learning_rate,
        gamma=0.1,
        ceiling=None,
        estimator="paper",
        exclude_from_weight_decay=None,
        communicator="auto",
        sample="auto",
        sharding="auto",
        bucket_bytes=BUCKET_BYTES,
        communication_dtype="float32",
        max_consecutive_skips=10,
        **keras_arguments,
    ):
        super().__init__(learning_rate, **keras_arguments)
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma must be in (0, 1]. Received: gamma={gamma}")
        _check_choice("estimator", estimator, tuple(ESTIMATORS))
        if ceiling is None:
            ceiling = 1 / gamma if estimator == "robust" else 1.0
        if not ceiling >= gamma:
            raise ValueError(
                "ceiling must be at least gamma. "
                f"Received: ceiling={ceiling}, gamma={gamma}"
            )
        _check_choice("communicator", communicator, comm.ENGINES)
        _check_choice("sample", sample, ("auto", *_SAMPLES))
        _check_choice("sharding", sharding, ("auto", "none", "slices"))
        _check_choice(
            "communication_dtype", communication_dtype, ("float32", "bfloat16", "float16")
        )
        if bucket_bytes < 1:
            raise ValueError(f"bucket_bytes must be positive. Received: {bucket_bytes}")
        if max_consecutive_skips is not None and max_consecutive_skips < 1:
            raise ValueError(
                "max_consecutive_skips must be at least 1, or None. "
                f"Received: {max_consecutive_skips}"
            )
        self.max_consecutive_skips = max_consecutive_skips
        self.gamma = gamma
        self.ceiling = ceiling
        self.estimator = estimator
        self.communicator = communicator
        self.sample = sample
        self.sharding = sharding
        self.bucket_bytes = bucket_bytes
        self.communication_dtype = communication_dtype
        self._not_decayed = checked_patterns(
            "exclude_from_weight_decay", exclude_from_weight_decay
        )
        # Told by method, and so no part of the config, as in Keras.
        self._also_not_decayed = []

    # ---- the rule -------------------------------------------------------------

    def direction(self, theta, gradient, r, slots, step):
        """Returns `(u, slots)`: tensors shaped like `theta`, and a dict of them."""
        raise NotImplementedError(f"{type(self).__name__} has no rule")

    def descend(self, theta, u, phi, slots, step):
        """Returns `(theta, slots)` after the step, of the slots those that changed."""
        raise NotImplementedError(f"{type(self).__name__} has no rule")

    # ---- building -------------------------------------------------------------

    def build(self, variables):
        """Creates the slots of the rule; see `DistributedStep.build`."""
        if self.built:
            return
        super().build(variables)
        self.choose_variables(variables)
        self._first_slot = len(self._variables)
        if self._meets_ranks() and self.sharding != "none":
            self._shared_slots = Slots(self.slots, self._layout)
            self._slots = self._shared_slots.views
        else:
            self._slots = {
                slot: [self.add_slot(v, slot) for v in self._trainable_variables]
                for slot in self.slots
            }
        self._signal, self._noise = [
            self.add_variable((), aggregation="only_first_replica", name=name)
            for name in ("gradient_sq_norm", "gradient_variance")
        ]
        if not self._meets_ranks():
            self._parts = Whole(self, self._comm, self._layout, self._slots)
            self._start_watch()

    # Who holds what state; known once the workers have met.
    _parts = None
    # The slots that ranks share out among them, if they do.
    _shared_slots = None

    def _choose_workers(self):
        super()._choose_workers()
        self._choose_sample()

    def _place_state(self, root):
        if self._keeps_spread:
            self._window.keep_spread()
            self._accumulated = self._window.views
        if self._shares_slices():
            self._parts = Slices(self, self._comm, self._layout, self._collective)
        else:
            slots = self._slots if self._shared_slots is None else self._whole_slots()
            self._parts = Whole(self, self._comm, self._layout, slots)
        if self._shared_slots is not None:
            self._shared_slots.place(self._parts, self._comm, root)
        self._start_watch()

    def _whole_slots(self):
        """Slots of ranks that could share them out, and had better not."""
        return {
            slot: [tf.Variable(view.numpy(), trainable=False) for view in views]
            for slot, views in self._slots.items()
        }

    def disconnect(self):
        super().disconnect()
        if self._shared_slots is not None:
            self._shared_slots.held_by(None)
            self._parts = None

    def _start_watch(self):
        if self._watch_every:
            self._parts.watch = Watch(self, self._comm, self._layout, self._watch_every)

    def choose_variables(self, variables):
        """Finds out, by their paths, what applies to which variable."""
        self._decays = [
            by_list and by_call
            for by_list, by_call in zip(
                selected(variables, self._not_decayed, self.exclude_vectors),
                selected(variables, self._also_not_decayed),
            )
        ]

    def check_workers(self):
        """Raises where the samples of an update are too few."""
        workers, steps = self._comm.workers, self.gradient_accumulation_steps or 1
        received = f"{workers} worker(s) and gradient_accumulation_steps={steps}"
        if self.sample != "auto":
            received += f" with sample='{self.sample}'"
        # A window that varies begins with this number; its variable may not be there yet.
        samples = self._samples(steps)
        if samples < 2:
            raise ValueError(
                f"{type(self).__name__} measures how far samples of the gradient "
                f"agree, and one sample has no spread. Received: {received}. Either "
                "start several ranks (`gsnr-tf run --np 8 train.py`), or make model "
                "and optimizer inside the scope of a tf.distribute strategy with "
                "several replicas, or set gradient_accumulation_steps to 2 or more "
                "(8 is a good start)."
            )
        self._check_slices()
        sound = SOUND_SAMPLES[self.estimator]
        if samples < sound:
            warnings.warn(
                f"{type(self).__name__} has k={samples} samples an update "
                f"({received}). Below {sound} the estimate is poor: of pure "
                "noise, r has the expectation 1/(k-3), and at k=2 about 99% of all "
                "multipliers sit on the floor. Raise gradient_accumulation_steps, or "
                "take estimator='robust'.",
                stacklevel=2,
            )

    def _choose_sample(self):
        """Decides what a sample is, for the workers there are."""
        workers, steps = self._comm.workers, self.gradient_accumulation_steps or 1
        hosts = self._comm.hosts if self._shares_slices() else 1
        self._one_is = self._sample_of(hosts)
        if by_host_pays(hosts, workers // hosts, not self.compares_ranks):
            self._comm.go_by_host()
        by_batch = self._one_is == "micro_batch"
        self._keeps_spread = (steps > 1 or self._varies) and by_batch

    def _sample_of(self, hosts):
        """One of `_SAMPLES`, where slices could go by so many hosts."""
        if self.sample == "host" and hosts == 1:
            raise ValueError(
                "A host is a sample only where slices can go by host. Received: "
                f"sample='host' and sharding='{self.sharding}' with {self._comm.workers} "
                "worker(s), not on several hosts of as many ranks each. Leave `sample` "
                "out."
            )
        if self.sample != "auto":
            return self.sample
        # For either estimator: the noise scale is told from these samples too.
        sound = SOUND_SAMPLES["paper"]
        for name, number in (("host", hosts), ("worker", self._comm.workers)):
            if number >= sound:
                return name
        return "micro_batch"

    def _shares_slices(self):
        wanted = self._comm.owners_pay if self.sharding == "auto" else self.sharding != "none"
        return wanted and self._comm.has_owners and self._comm.workers > 1

    def _check_slices(self):
        if self._shares_slices():
            return
        workers = f"{self._comm.workers} worker(s) of {type(self._comm).__name__}"
        if self.sharding == "slices":
            raise ValueError(
                "Slices need Horovod and two ranks or more. Received: "
                f"sharding='slices' with {workers}. Start under horovodrun, or leave "
                "`sharding` out."
            )
        if self.communication_dtype != "float32" and self._comm.workers > 1:
            raise ValueError(
                "Only slices travel in another dtype than float32. Received: "
                f"communication_dtype='{self.communication_dtype}' and "
                f"sharding='{self.sharding}' with {workers}. Start under horovodrun "
                "with sharding='slices', or leave `communication_dtype` out."
            )

    def add_slot(self, variable, name):
        """A variable of zeros like `variable`, beside it, in the dtype of statistics."""
        path = path_of(variable).replace("/", "_").replace(":", "_")
        beside = self._distribution_strategy.extended.colocate_vars_with
        with beside(comm.native(variable)):
            return self.add_variable(
                variable.shape, dtype=self._layout.dtype.name, name=f"{path}_{name}"
            )

    # ---- the update -----------------------------------------------------------

    def _reduce(self, moments, weighted, riders):
        return self._parts.reduce(moments, weighted, riders)

    def reduce_whole(self, moments, weighted, riders):
        """The reduction of `DistributedStep`, for all parameters at once."""
        finite, reduced, riders = super()._reduce(moments, weighted, riders)
        return finite, reduced[:2], riders

    def _changes(self):
        return tf.cast(self._parts.count, tf.int64)

    def _end_update(self):
        self._parts.end_update()

    def _update(self, active, reduced):
        rate = tf.cast(self.learning_rate, self._layout.dtype)
        t = tf.cast(self.iterations + 1, self._layout.dtype)
        totals = self._parts.update(active, reduced, rate, t)
        for variable, total in zip((self._signal, self._noise), totals):
            self._comm.update(variable, lambda v, x: v.assign(tf.cast(x, v.dtype)), total)

    def step_of(self, rate, t, decay):
        """What a rule is told; all may be numbers or tensors that broadcast."""
        return Step(rate, t, decay)

    def decay_of(self, index):
        """Weight decay of variable `index`, a float."""
        return (self.weight_decay or 0.0) if self._decays[index] else 0.0

    def adapts(self, index):
        """Whether variable `index` has a trust ratio other than 1."""
        return False

    # ---- what one may ask -----------------------------------------------------

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
        self._check_met()
        return self._parts.state_bytes()

    @property
    def workers(self):
        """Int, how many workers bring gradients, once they have met."""
        self._check_met()
        return self._comm.workers

    def _check_met(self):
        if self._comm is None:
            raise ValueError(
                f"{self.name} knows nothing yet of other ranks. They meet at the first "
                "training step, or before it where all ranks call `optimizer.connect()`."
            )

    @property
    def samples(self):
        """Samples of an update, k: an int, or a tensor as `accumulation_steps`; known
        once the workers have met."""
        self._check_met()
        return self._samples(self.accumulation_steps)

    def _samples(self, steps):
        """Samples of an update of so many micro-batches of each worker."""
        if self._one_is == "host":
            return self._comm.route.hosts
        return self._comm.workers * (steps if self._one_is == "micro_batch" else 1)

    @property
    def compares_ranks(self):
        """Whether the workers of a host are samples of their own."""
        return self._one_is != "host"

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
        if self._parts is not None:
            self._start_watch()

    def watched_update(self):
        """Int, the number of the last update on record; 0 before the first."""
        watch = self._parts.watch if self._parts is not None else None
        return watch.update if watch else 0

    def watched(self):
        """The last `Record` (gsnr_tf.sharding.watch)."""
        return self._parts.watch.read()

    def sharding_report(self):
        """Who owns what, and what it costs: a string for people, one line a worker."""
        self._check_met()
        return self._parts.report()

    def share_state(self, root=0):
        """Gives all ranks the slots that rank `root` has loaded, if not all have.

        All ranks must call it. Only with slices is there anything to do: what else
        there is of state, `Communicator.broadcast` can share.

        Raises:
            ValueError: On all ranks; `root` has not loaded all of them either.
        """
        self.connect(root)
        if self._shared_slots is not None:
            self._shared_slots.share(self._comm, root)

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        """Keras' way to exclude variables, besides those of the constructor's list.

        Args:
            var_list: Variables to exclude.
            var_names: Regular expressions, searched in `variable.path`.

        Raises:
            ValueError: The optimizer is already built.
        """
        if self.built:
            raise ValueError(
                "`exclude_from_weight_decay()` must be called before the optimizer "
                "is built."
            )
        exact = [f"^{re.escape(path_of(variable))}$" for variable in var_list or []]
        patterns = checked_patterns("var_names", var_names) or []
        self._also_not_decayed = [*self._also_not_decayed, *exact, *patterns]

    def _all_state(self):
        if not self.built or self._shared_slots is None:
            return super()._all_state()
        views = [view for views in self._slots.values() for view in views]
        state = super()._all_state()
        return [*state[: self._first_slot], *views, *state[self._first_slot :]]

    def get_config(self):
        """Arguments of the constructor, as Keras serializes them."""
        return {
            **super().get_config(),
            "gamma": self.gamma,
            "ceiling": self.ceiling,
            "estimator": self.estimator,
            "exclude_from_weight_decay": as_list(self._not_decayed),
            "communicator": self.communicator,
            "sample": self.sample,
            "sharding": self.sharding,
            "bucket_bytes": self.bucket_bytes,
            "communication_dtype": self.communication_dtype,
            "max_consecutive_skips": self.max_consecutive_skips,
        }


def _check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}. Received: {value!r}")
