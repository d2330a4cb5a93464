"""The order of a step, in one place.

    accumulate → agree (once) → reduce → finite? → clip → (multiplier →) rule → EMA

Keras has the same stations in another order: it clips before it reduces and drops
a non-finite step before it has heard of the other workers. Both are wrong as soon
as there is a second worker.
"""

import functools
import types

import keras
import tensorflow as tf

from gsnr_tf.comm import native
from gsnr_tf.optimizers import loss_weight
from gsnr_tf.optimizers.accumulation import AccumulatesWindows
from gsnr_tf.optimizers.eagerly import build_outside_of_traces
from gsnr_tf.optimizers.exclusions import path_of
from gsnr_tf.optimizers.skips import Skips
from gsnr_tf.optimizers.state import Unsaved, WholeState
from gsnr_tf.optimizers.workers import ConnectsWorkers
from gsnr_tf.sharding.buckets import BUCKET_BYTES, BucketLayout
from gsnr_tf.stats import Moments
from gsnr_tf.stats.sparse import Rows, SparseMoments


class DistributedStep(ConnectsWorkers, AccumulatesWindows, WholeState, keras.optimizers.Optimizer):
    """A Keras optimizer whose updates are one decision of all workers.

    Stands behind a rule (a Keras optimizer, or `GSNROptimizer`) in the order of
    base classes and replaces `Optimizer`'s way from gradients to an update.
    """

    bucket_bytes = BUCKET_BYTES
    # For each variable whether its rows stay whole on one rank; `None`: of none.
    _by_row = None
    # Updates in a row that may be skipped, since the gradient is not finite, before
    # training stops with an error; `None`: any number.
    max_consecutive_skips = 10
    _examples = None
    # Of an optimizer around this one that scales the loss: its config, as a string, and a
    # function that tells whether its scale may still fall.
    _scaled_by = ""
    _scale_may_fall = None

    def build(self, variables):
        """Creates the state of the step. Asks nothing of other workers: Keras builds
        alone, to load a model for example, in any process.

        Args:
            variables: List of the model's trainable variables.

        Raises:
            ValueError: A variable cannot be trained by this optimizer.
        """
        if self.built:
            return
        _check_trainable(variables)
        overwritten = [v for v in variables if self._overwrite_variable_with_gradient(v)]
        if overwritten and self.gradient_accumulation_steps:
            raise ValueError(
                "Variables that take their gradient for their value (float8 scales) "
                "cannot be accumulated. Received: gradient_accumulation_steps="
                f"{self.gradient_accumulation_steps} and {overwritten[0].path}. Leave "
                "gradient_accumulation_steps out."
            )
        self._layout = self._laid_out(variables, self._guessed_tables(variables))
        if not self._has_ranks():
            self._choose_workers()
        # Keras' accumulators hold a sum and are mirrored; see `GradientAccumulator`.
        steps, self.gradient_accumulation_steps = self.gradient_accumulation_steps, None
        try:
            super().build(variables)
        finally:
            self.gradient_accumulation_steps = steps
        self._skipped = self.add_variable(
            (), dtype="int64", aggregation="only_first_replica", name="skipped_steps"
        )
        if self._varies:
            self._window_size = self.add_variable(
                (),
                dtype="int64",
                initializer=keras.initializers.Constant(steps or 1),
                aggregation="only_first_replica",
                name="accumulation_steps",
            )
        if steps or self._varies:
            self._make_window()
        # The GSNR family has it in its state.
        nan = float("nan")
        self._signal = Unsaved(nan, self._layout.dtype, self._distribution_strategy)
        self._skips = Skips(self._distribution_strategy)

    def _laid_out(self, variables, is_table):
        return BucketLayout(variables, self.bucket_bytes, self._by_row, is_table)

    def _guessed_tables(self, variables):
        """For each variable whether only touched rows of it are updated, as far as can be
        known without a gradient. Keras' rules update all."""
        return [False] * len(variables)

    def _note_gradients(self, grads, variables):
        """Called with the gradients of the first step, before the workers meet."""

    # ---- what one may ask ---------------------------------------------------------

    @property
    def trained_variables(self):
        """List of the variables that it updates, in order."""
        return list(self._trainable_variables)

    @property
    def skipped_steps(self):
        """Scalar int64 tensor: updates that all workers dropped together because
        the reduced gradient was not finite."""
        return tf.convert_to_tensor(self._skipped)

    @property
    def consecutive_skips(self):
        """Scalar int64 tensor: updates skipped since the last that was made."""
        return tf.convert_to_tensor(self._skips.in_a_row)

    @property
    def gradient_norm(self):
        """Scalar tensor: 2-norm of the mean gradient of all workers at the last update,
        before clipping. Before the first it is 0, or NaN with optimizers of Keras,
        which do not save it."""
        return tf.sqrt(tf.convert_to_tensor(self._signal.value))

    def apply_gradients(self, grads_and_vars, examples=None):
        """Applies gradients, once for each micro-batch, on every worker alike.

        Args:
            grads_and_vars: Pairs of gradient (tensor, `tf.IndexedSlices` or `None`)
                and variable. Gradients are means over this worker's examples.
            examples: Scalar, over how many examples: what the loss was divided by.
                Left out, it is what Keras' losses in the same train step were divided by
                (see `loss_weight`), and if there were none all weigh the same.

        Returns:
            The number of calls that count so far, as in Keras.
        """
        gradients, variables = zip(*grads_and_vars)
        self.apply(gradients, variables, examples=examples)
        return self._iterations

    def apply(self, grads, trainable_variables=None, examples=None):
        """Like `apply_gradients`, with gradients and variables apart."""
        if not self.built and trainable_variables is not None:
            build_outside_of_traces(self, list(trainable_variables))
        self._examples = examples
        try:
            super().apply(grads, trainable_variables)
        finally:
            self._examples = None

    def _filter_empty_gradients(self, grads, variables):
        # Keras goes on without variables that have no gradient. But another rank may
        # have one, so all go on here.
        kept = super()._filter_empty_gradients(grads, variables)
        if not self._connected:
            self._note_gradients(grads, variables)
        self.connect()
        return kept if self._header is None else (grads, variables)

    def _backend_apply_gradients(self, grads, trainable_variables):
        given = [None] * len(self._trainable_variables)
        for gradient, variable in zip(grads, trainable_variables):
            given[self._get_variable_index(variable)] = gradient
        has_gradient = [gradient is not None for gradient in given]
        sample = self._layout.pack(list(map(self._intake, given, self._trainable_variables)))
        scale, weight = self._scale_and_weight()
        if scale != 1:
            scale = tf.cast(scale, self._layout.dtype)
            sample = [_with_values(part, lambda values: values * scale) for part in sample]
        if weight is not None:
            weight = tf.reshape(tf.cast(weight, self._layout.dtype), [])

            def counted(values):
                # The mean over no examples is NaN; it weighs nothing.
                return tf.where(weight > 0, values, tf.zeros_like(values))

            sample = [_with_values(part, counted) for part in sample]
        step = functools.partial(self._step, has_gradient)
        self._comm.run(step, sample, weight)

    def _intake(self, gradient, variable):
        """A gradient as its part of the layout takes it."""
        if not isinstance(gradient, tf.IndexedSlices):
            return gradient
        if not self._layout.is_table[self._get_variable_index(variable)]:
            return _dense(gradient, variable)
        return _checked_rows(gradient, variable)

    def _scale_and_weight(self):
        """What gradients are multiplied by to be means over this worker's examples, and
        over how many, a scalar tensor; `None`: all weigh the same."""
        scale = self._comm.gradient_scale
        if self._examples is not None:
            return scale, self._examples
        seen = loss_weight.of_this_step()
        if seen.adds_up:
            # A sum is not divided by the number of replicas, and ranks' sums add up.
            return float(self._comm.workers), None
        return scale, seen.examples

    def _step(self, has_gradient, sample, weight):
        """One call's step, where collectives may be issued."""
        weighted = weight is not None
        if not self.gradient_accumulation_steps and self._window_size is None:
            moments = self._comm.each(self._first_sample, sample, weight)
            self._finish(has_gradient, moments, weighted)
            return
        moments = self._comm.each(self._with_sample, sample, weight)
        steps = self.accumulation_steps
        self._tell_what_schedules_count()

        def finish():
            self._comm.each(self._accumulator.restart)
            self._finish(has_gradient, moments, weighted)
            return True

        def wait():
            self._comm.each(self._accumulator.store, moments)
            return True

        # A dataset of unknown size ends inside a train step, which then has no data.
        # What does not wait for the data would run there: the window would be counted
        # up, or begin anew, with no gradient.
        one = tf.ones([], self._iterations.dtype)
        call = self._comm.agreed(self._comm.each(functools.partial(_after, one), sample))
        calls = self._iterations + call
        tf.cond(tf.equal(calls % tf.cast(steps, calls.dtype), 0), finish, wait)

    def _weight_of(self, weight):
        return tf.ones([], self._layout.dtype) if weight is None else weight

    def _first_sample(self, sample, weight):
        weight = self._weight_of(weight)
        return [
            SparseMoments(weight, *part, None)
            if isinstance(part, Rows)
            else Moments(weight, part, None)
            for part in sample
        ]

    def _with_sample(self, sample, weight):
        return self._accumulator.with_sample(sample, self._weight_of(weight))

    def _finish(self, has_gradient, moments, weighted):
        """Reduces the samples of a window and updates, if all is finite."""
        riders, active = None, has_gradient
        if self._header is not None:
            counters = self._iterations, self._changes()
            riders = self._header.riders(has_gradient, self.learning_rate, *counters)
        # Ranks trace for themselves, and one may know what others do not.
        weighted = weighted or self._header is not None
        finite, reduced, riders = self._reduce(moments, weighted, riders)
        if self._header is not None:
            told = self._header.read(riders)
            # What is a fact here is one for all; what is not may be one elsewhere.
            active = [h or told.having[i] > 0 for i, h in enumerate(has_gradient)]
            with tf.control_dependencies([self._header.check(told)]):
                finite = tf.identity(finite)

        def update():
            self._update(active, reduced)
            if self.use_ema:
                self._update_averages()
            self._skips.none(self._comm)
            return True

        def skip():
            self._skips.one_more(self, moments)
            # The window's calls do not count: `iterations` is the number of updates.
            calls = tf.cast(self.accumulation_steps, self._iterations.dtype)
            self._comm.update(self._iterations, lambda v: v.assign_sub(calls))
            self._comm.update(self._skipped, lambda v: v.assign_add(1))
            return False

        done = tf.cond(finite, update, skip)
        with tf.control_dependencies([done]):
            self._end_update()

    def check_skips(self):
        """Raises, between steps, where too many updates in a row were skipped."""
        self._skips.check(self.max_consecutive_skips)

    def is_scaled_by(self, optimizer):
        """Takes note of an optimizer around this one that scales the loss.

        Args:
            optimizer: Has `get_config()`, and `may_fall()`, whether its scale may still be
                lowered: as long as it may, skipped updates are no reason to stop.
        """
        config = {k: v for k, v in optimizer.get_config().items() if k != "name"}
        config.pop("inner_optimizer", None)
        self._scaled_by = repr(config)
        self._scale_may_fall = optimizer.may_fall

    def _skip_is_expected(self):
        """Whether skipping is part of the search for a loss scale, a scalar boolean."""
        return tf.constant(False) if self._scale_may_fall is None else self._scale_may_fall()

    def _changes(self):
        """Scalar int64, how often this rank's state has changed."""
        return tf.zeros([], tf.int64)

    def _end_update(self):
        """Called when an update has been made or skipped."""

    def _reduce(self, moments, weighted, riders):
        """Whether the mean of all samples is finite; what `_update` needs of them: here
        the mean of each bucket, and its squared norm; the sum of all ranks' riders."""
        means, _, riders = self._comm.reduce_moments(
            moments,
            self._collective,
            carrier=self._layout.carrier,
            weighted=weighted,
            with_variance=False,
            riders=riders,
        )
        square = self._comm.each(_sq_norm, means)
        # A norm that overflows counts as not finite: nothing could be clipped by it.
        # The reduced mean is the same on all workers, and so is what it says.
        finite = self._comm.agreed(self._comm.each(tf.math.is_finite, square))
        return finite, (means, square), riders

    def _update(self, active, reduced):
        """Clips, then updates each variable by the rule: here Keras' own.

        Args:
            active: For each variable whether it has a gradient, a boolean, or a tensor
                where only other ranks know.
            reduced: What `_reduce` gives.
        """
        means, square = reduced
        self._comm.update(self._signal.value, lambda v, x: v.assign(x), square)
        clipped = self._comm.each(self._clipped, means)
        chosen = [index for index, has in enumerate(active) if has is not False]
        gradients = [clipped[index] for index in chosen]
        variables = [self._trainable_variables[index] for index in chosen]
        # Not a dict: Keras would track it.
        self._active = types.SimpleNamespace(
            of={id(native(v)): active[i] for v, i in zip(variables, chosen)}
        )
        self._apply_weight_decay(variables)
        self._backend_update_step(gradients, variables, self.learning_rate)

    def _when_active(self, fn, variable, *values):
        """Calls `fn(variable, *values)`, at run time only if it has a gradient."""
        active = self._active.of.get(id(variable), True)
        if active is True:
            fn(variable, *values)
        else:
            _only_if(active, functools.partial(fn, variable, *values))

    def _apply_weight_decay(self, variables):
        """Keras' decay, to the bit; Muon has one of its own before this one."""
        if self.weight_decay is None:
            return

        def decay(variable):
            if self._use_weight_decay(variable):
                rate = tf.cast(self.learning_rate, variable.dtype)
                amount = tf.cast(self.weight_decay, variable.dtype)
                variable.assign_sub(variable * amount * rate)

        for variable in variables:
            self._comm.update(variable, functools.partial(self._when_active, decay))

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        """Where Keras would sum over replicas; Nadam counts its steps before this."""
        rate = tf.convert_to_tensor(learning_rate)
        step = functools.partial(self._keras_rule, rate)
        for gradient, variable in zip(grads, trainable_variables):
            self._comm.update(variable, functools.partial(self._when_active, step), gradient)

    def _clipped(self, means):
        return self._clip_gradients(self._layout.unpack(means))

    def _keras_rule(self, rate, variable, gradient):
        self.update_step(gradient, variable, rate)

    def _update_averages(self):
        """Keras' moving averages of the weights, once for each update."""
        momentum = tf.where(tf.equal(self.iterations, 0), 0.0, self.ema_momentum)
        overwrite = self.ema_overwrite_frequency and tf.equal(
            (self.iterations + 1) % self.ema_overwrite_frequency, 0
        )

        def follow(average, variable):
            m = tf.cast(momentum, variable.dtype)
            average.assign(m * average + (1 - m) * variable)
            if self.ema_overwrite_frequency:
                variable.assign(tf.where(overwrite, average, variable))

        for variable, average in zip(
            self._trainable_variables, self._model_variables_moving_average
        ):
            if average is not None:
                self._comm.update(variable, functools.partial(follow, average))


def _after(value, tensors):
    """The value as a tensor that is there once `tensors` are."""
    with tf.control_dependencies(tf.nest.flatten(tensors)):
        return tf.identity(value)


def _only_if(condition, fn):
    def call():
        fn()
        return True

    tf.cond(condition, call, lambda: False)


def _check_trainable(variables):
    for variable in variables:
        dtype = tf.as_dtype(variable.dtype)
        if not dtype.is_floating:
            raise ValueError(
                f"{path_of(variable)} has the dtype {dtype.name}, and only floating-point "
                "variables can be trained. A complex weight can be held as two real "
                "variables, or as one with an axis of two."
            )


def _with_values(part, fn):
    """A part of a sample, a vector or `Rows`, with `fn` of its values."""
    return part._replace(values=fn(part.values)) if isinstance(part, Rows) else fn(part)


def _checked_rows(gradient, variable):
    """`IndexedSlices` that name rows of the table alone."""
    ids, rows = gradient.indices, variable.shape[0]
    outside = tf.boolean_mask(ids, tf.logical_or(ids < 0, ids >= rows))
    message = tf.strings.join(
        [
            f"The gradient of {path_of(variable)}, which has {rows} rows, names row ",
            tf.strings.reduce_join(tf.strings.as_string(outside[:1])),
            f". Ids must be from 0 to {rows - 1}.",
        ]
    )
    fine = tf.equal(tf.size(outside), 0)
    with tf.control_dependencies([tf.debugging.Assert(fine, [message])]):
        return tf.IndexedSlices(gradient.values, tf.identity(ids), gradient.dense_shape)


def _dense(gradient, variable):
    """Sums the rows of `IndexedSlices` that name the same index."""
    return tf.math.unsorted_segment_sum(gradient.values, gradient.indices, variable.shape[0])


def _sq_norm(means):
    return sum(tf.reduce_sum(tf.square(mean)) for mean in means)
