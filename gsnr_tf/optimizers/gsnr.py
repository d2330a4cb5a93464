"""What the optimizers of the family share: arguments, state, and the way to an update."""

import dataclasses
import math
import warnings

import tensorflow as tf
from tensorflow.python.ops import control_flow_util

from gsnr_tf import comm
from gsnr_tf.comm.base import assign
from gsnr_tf.optimizers import decay, sampling
from gsnr_tf.optimizers.base import DistributedStep
from gsnr_tf.optimizers.exclusions import (
    ExcludesFromDecay,
    as_list,
    checked_patterns,
    path_of,
    selected,
)
from gsnr_tf.optimizers.observed import Observed
from gsnr_tf.rules.settings import L2_FORMS, Settings, VariableSettings
from gsnr_tf.sharding.buckets import BUCKET_BYTES
from gsnr_tf.sharding.replicated import Replicated
from gsnr_tf.sharding.sharded import Sharded
from gsnr_tf.sharding.slots import ReplicatedSlots
from gsnr_tf.sharding.state import PartitionedSlots
from gsnr_tf.sharding.update import Update
from gsnr_tf.stats import ESTIMATORS

# What is judged by how far the samples agree: elements, or rows of embedding tables.
GRANULARITIES = ("element", "row")
# What becomes of rows of a table that no worker touches: they rest, or take part in every
# update.
SPARSE = ("auto", "lazy", "dense")


class GSNROptimizer(Observed, ExcludesFromDecay, DistributedStep):
    """Base of the family: a rule of `gsnr_tf.rules` as a Keras optimizer.

    A subclass names its `rule_class` and spells out the arguments of the rule, which are
    the fields of that class and attributes here, besides those of the family.
    """

    rule_class = None

    def __init__(
        self,
        learning_rate,
        gamma=0.1,
        ceiling=None,
        estimator="paper",
        exclude_from_weight_decay=None,
        exclude_from_layer_adaptation=None,
        l2=None,
        l2_form="outside",
        granularity="element",
        weight_decay=None,
        sparse="auto",
        sample="auto",
        sharding="auto",
        bucket_bytes=BUCKET_BYTES,
        communication_dtype="float32",
        communicator="auto",
        max_consecutive_skips=10,
        **arguments,
    ):
        own = {f.name: arguments.pop(f.name) for f in dataclasses.fields(self.rule_class)}
        super().__init__(learning_rate, **arguments)
        self.weight_decay = decay.checked("weight_decay", weight_decay)
        self.l2 = decay.checked("l2", l2)
        _check_choice("l2_form", l2_form, L2_FORMS)
        _check_choice("granularity", granularity, GRANULARITIES)
        _check_choice("sparse", sparse, SPARSE)
        self.sparse = sparse
        self.l2_form = l2_form
        self.granularity = granularity
        _check_choice("estimator", estimator, tuple(ESTIMATORS))
        ceiling = _checked_ceiling(gamma, ceiling, estimator)
        _check_choice("communicator", communicator, comm.ENGINES)
        _check_choice("sample", sample, ("auto", *sampling.SAMPLES))
        _check_choice("sharding", sharding, ("auto", "none", "slices"))
        _check_choice(
            "communication_dtype", communication_dtype, ("float32", "bfloat16", "float16")
        )
        _check_positive("bucket_bytes", bucket_bytes)
        if max_consecutive_skips is not None:
            _check_positive("max_consecutive_skips", max_consecutive_skips)
        self.max_consecutive_skips = max_consecutive_skips
        self.gamma = gamma
        self.ceiling = ceiling
        self.estimator = estimator
        self.communicator = communicator
        self.sample = sample
        self.sharding = sharding
        self.bucket_bytes = bucket_bytes
        self.communication_dtype = communication_dtype
        self._not_decayed = checked_patterns("exclude_from_weight_decay", exclude_from_weight_decay)
        self._not_adapted = checked_patterns(
            "exclude_from_layer_adaptation", exclude_from_layer_adaptation
        )
        for name, value in own.items():
            setattr(self, name, value)
        self._check_rule()

    @property
    def rule(self):
        """The rule, with the optimizer's arguments as they are now."""
        names = [field.name for field in dataclasses.fields(self.rule_class)]
        return self.rule_class(**{name: getattr(self, name) for name in names})

    @property
    def slots(self):
        """Names of the rule's state."""
        return self.rule.slots

    def _check_rule(self):
        """Raises ValueError where an argument of the rule is out of range."""
        return self.rule

    def _settings(self):
        return Settings(
            gamma=self.gamma,
            ceiling=self.ceiling,
            estimator=self.estimator,
            l2_form=self.l2_form,
            clipnorm=self.clipnorm,
            global_clipnorm=self.global_clipnorm,
            clipvalue=self.clipvalue,
        )

    def _by_variable(self):
        return [
            VariableSettings(weight_decay, l2, adapts, by_row)
            for weight_decay, l2, adapts, by_row in zip(
                self._weight_decays, self._l2s, self._adapts, self._by_row
            )
        ]

    # ---- building ---------------------------------------------------------------------

    def build(self, variables):
        """Creates the slots of the rule; see `DistributedStep.build`."""
        if self.built:
            return
        self._by_row = [self._is_judged_by_row(variable) for variable in variables]
        super().build(variables)
        vectors = self.rule.exclude_vectors
        decayed = self._decayed(variables, vectors)
        self._weight_decays = decay.by_variable(self.weight_decay, variables, decayed)
        self._l2s = decay.by_variable(self.l2, variables, decayed)
        decay.warn_of_regularizers(variables, type(self).__name__)
        self._adapts = selected(variables, self._not_adapted, vectors)
        self._first_slot = len(self._variables)
        if self._has_ranks() and self.sharding != "none":
            self._partitioned_slots = PartitionedSlots(self.slots, self._layout)
            self._slots = self._partitioned_slots.views
        else:
            self._slots = {
                slot: [self._add_slot(v, slot) for v in self._trainable_variables]
                for slot in self.slots
            }
        self._signal, self._noise = [
            self.add_variable((), aggregation="only_first_replica", name=name)
            for name in ("gradient_sq_norm", "gradient_variance")
        ]
        if not self._has_ranks():
            self._make_program(self._replicated(self._slots))

    # The way from samples to weights; known once the workers have met.
    _program = None
    # The slots that ranks divide among them, if they do.
    _partitioned_slots = None

    def _is_judged_by_row(self, variable):
        """Whether it is the table of a `keras.layers.Embedding`, and rows are asked for."""
        return self.granularity == "row" and _is_embedding(variable)

    # For each variable whether its first gradient was `tf.IndexedSlices`; `None`: not known.
    _seen = None

    def _guessed_tables(self, variables):
        return [_is_embedding(variable) and self._may_be_sparse(variable) for variable in variables]

    def _may_be_sparse(self, variable):
        """Whether rows of it that nobody touches may rest."""
        if self.sparse != "auto":
            return self.sparse == "lazy"
        size = math.prod(variable.shape) * tf.as_dtype(variable.dtype).size
        return size >= self.bucket_bytes

    def _note_gradients(self, grads, variables):
        graph = tf.compat.v1.get_default_graph()
        # XLA must know how many rows there are.
        rows_can_vary = not control_flow_util.GraphOrParentsInXlaContext(graph)
        seen = [None] * len(self._trainable_variables)
        for gradient, variable in zip(grads, variables):
            if gradient is not None:
                is_sparse = isinstance(gradient, tf.IndexedSlices) and rows_can_vary
                is_sparse = is_sparse and self._may_be_sparse(variable)
                seen[self._get_variable_index(variable)] = is_sparse
        # A list would become a tracked one, which cannot be sent to other ranks.
        self._seen = tuple(seen)

    def _settle_tables(self):
        if self.sparse == "dense":
            return
        seen = self._seen or (None,) * len(self._trainable_variables)
        by_rank = [seen]
        if self._comm.has_ranks and self._comm.workers > 1:
            by_rank = self._comm.gather(seen, f"{self._collective}.tables")
        is_table = [
            False if False in of_ranks else True if True in of_ranks else guess
            for of_ranks, guess in zip(zip(*by_rank), self._layout.is_table)
        ]
        if is_table == self._layout.is_table:
            return
        self._layout = self._laid_out(self._trainable_variables, is_table)
        if self._accumulated:
            self._move_window()
        if not self._has_ranks():
            self._make_program(self._replicated(self._slots))

    def _add_slot(self, variable, name):
        """A variable of zeros like `variable`, beside it, in the dtype of statistics."""
        path = path_of(variable).replace("/", "_").replace(":", "_")
        beside = self._distribution_strategy.extended.colocate_vars_with
        with beside(comm.native(variable)):
            return self.add_variable(
                variable.shape, dtype=self._layout.dtype.name, name=f"{path}_{name}"
            )

    def _wishes(self):
        return sampling.Wishes(
            sample=self.sample,
            sharding=self.sharding,
            communication_dtype=self.communication_dtype,
            # A window that varies begins with this number.
            accumulation=self.gradient_accumulation_steps or 1,
            varies=self._varies,
            estimator=self.estimator,
        )

    def _choose_workers(self):
        super()._choose_workers()
        workers = sampling.Workers.of(self._comm)
        # Tables are not small: their rows go to owner ranks, which divide their state.
        elements = math.inf if any(self._layout.is_table) else self._layout.size
        self._plan = sampling.plan(workers, self._wishes(), elements)
        if self._plan.hosts > 1:
            self._comm.exchange_by_host()
        self._keeps_m2 = self._plan.keeps_m2

    def check_workers(self):
        """Raises where the samples of an update are too few, warns where they are few."""
        few = sampling.too_few(self._plan, self._wishes(), type(self).__name__)
        if few:
            warnings.warn(few, stacklevel=3)

    def _place_state(self, root):
        if self._keeps_m2:
            self._accumulator.keep_m2()
            self._accumulated = self._accumulator.views
        if self._plan.sharded:
            exchange = Sharded(
                self._comm,
                self._layout,
                self._trainable_variables,
                self.slots,
                self._plan,
                self.communication_dtype,
                self._collective,
            )
        else:
            partitioned = self._partitioned_slots is not None
            exchange = self._replicated(self._whole_slots() if partitioned else self._slots)
        self._make_program(exchange)
        if self._partitioned_slots is not None:
            self._partitioned_slots.place(exchange.slots, self._comm, root)

    def _replicated(self, slots):
        return Replicated(
            self._comm,
            self._layout,
            self._trainable_variables,
            ReplicatedSlots(slots, self._layout),
            self._collective,
            self._plan.gathered,
        )

    def _whole_slots(self):
        """Slots of ranks that could divide them, and had better not."""
        return {
            slot: [tf.Variable(view.numpy(), trainable=False) for view in views]
            for slot, views in self._slots.items()
        }

    def _make_program(self, exchange):
        self._program = Update(
            self.rule, self._settings(), self._by_variable(), exchange, lambda: self.samples
        )
        self._start_telemetry()

    def disconnect(self):
        super().disconnect()
        if self._partitioned_slots is not None:
            self._partitioned_slots.held_by(None)
            self._program = None

    # ---- the update -------------------------------------------------------------------

    def _reduce(self, moments, weighted, riders):
        return self._program.reduce(moments, weighted, riders)

    def _changes(self):
        return tf.cast(self._program.exchange.slots.count, tf.int64)

    def _update(self, active, statistics):
        rate = tf.cast(self.learning_rate, self._layout.dtype)
        t = tf.cast(self.iterations + 1, self._layout.dtype)
        totals = self._program.apply(active, statistics, rate, t)
        for variable, total in zip((self._signal, self._noise), totals):
            self._comm.update(variable, assign, total)

    def _end_update(self):
        self._program.end()

    # ---- saving -----------------------------------------------------------------------

    def share_state(self, root=0):
        """Gives all ranks the slots that rank `root` has loaded, if not all have.

        All ranks must call it. Only with slices is there anything to do: what else
        there is of state, `Communicator.broadcast` can share.

        Raises:
            ValueError: On all ranks; `root` has not loaded all of them either.
        """
        self.connect(root)
        if self._partitioned_slots is not None:
            self._partitioned_slots.share(self._comm, root)

    def all_state(self):
        if not self.built or self._partitioned_slots is None:
            return super().all_state()
        views = [view for views in self._slots.values() for view in views]
        state = super().all_state()
        return [*state[: self._first_slot], *views, *state[self._first_slot :]]

    def get_config(self):
        """Arguments of the constructor, as Keras serializes them."""
        config = {
            **super().get_config(),
            **dataclasses.asdict(self.rule),
            "gamma": self.gamma,
            "ceiling": self.ceiling,
            "estimator": self.estimator,
            "weight_decay": decay.plain(self.weight_decay),
            "l2": decay.plain(self.l2),
            "l2_form": self.l2_form,
            "granularity": self.granularity,
            "sparse": self.sparse,
            "exclude_from_weight_decay": as_list(self._not_decayed),
            "communicator": self.communicator,
            "sample": self.sample,
            "sharding": self.sharding,
            "bucket_bytes": self.bucket_bytes,
            "communication_dtype": self.communication_dtype,
            "max_consecutive_skips": self.max_consecutive_skips,
        }
        if self.rule_class.adapts:
            config["exclude_from_layer_adaptation"] = as_list(self._not_adapted)
        return config


def _is_embedding(variable):
    return len(variable.shape) == 2 and variable.name == "embeddings"


def _check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}. Received: {value!r}")


def _check_positive(name, value):
    if value < 1:
        raise ValueError(f"{name} must be at least 1. Received: {name}={value}")


def _checked_ceiling(gamma, ceiling, estimator):
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma must be in (0, 1]. Received: gamma={gamma}")
    if ceiling is None:
        return 1.0 if estimator == "paper" else 1 / gamma
    if not ceiling >= gamma:
        raise ValueError(
            f"ceiling must be at least gamma. Received: ceiling={ceiling}, gamma={gamma}"
        )
    return ceiling
