"""The order of a step, in one place.

    accumulate → reduce → agree on finiteness → clip → (multiplier →) rule → EMA

Keras has the same stations in another order: it clips before it reduces and drops
a non-finite step before it has heard of the other workers. Both are wrong as soon
as there is a second worker.
"""

import functools

import keras
import tensorflow as tf

from gsnr_tf import comm
from gsnr_tf.optimizers.state import WholeState
from gsnr_tf.optimizers.window import Window
from gsnr_tf.sharding.layout import BUCKET_BYTES, Layout
from gsnr_tf.stats import Moments


class DistributedStep(WholeState, keras.optimizers.Optimizer):
    """A Keras optimizer whose updates are one decision of all workers.

    Stands behind a rule (a Keras optimizer, or `GSNROptimizer`) in the order of
    base classes and replaces `Optimizer`'s way from gradients to an update.
    """

    communicator = "auto"
    bucket_bytes = BUCKET_BYTES
    # Whether the rule asks how far the samples differ; costs a second reduction.
    _needs_variance = False
    # Whether the micro-batches of a worker are samples of their own.
    _keeps_spread = False
    _accumulated = ()
    _examples = None
    # The number of micro-batches in a window, where it may change; see `vary_window`.
    _varies = False
    _window_size = None

    def build(self, variables):
        """Creates the state of the step and shares the weights of worker 0.

        Args:
            variables: List of the model's trainable variables.
        """
        if self.built:
            return
        overwritten = [v for v in variables if self._overwrite_variable_with_gradient(v)]
        if overwritten and self.gradient_accumulation_steps:
            raise ValueError(
                "Variables that take their gradient for their value (float8 scales) "
                "cannot be accumulated. Received: gradient_accumulation_steps="
                f"{self.gradient_accumulation_steps} and {overwritten[0].path}. Leave "
                "gradient_accumulation_steps out."
            )
        self._comm = comm.choose(self.communicator, self._distribution_strategy)
        self.check_workers()
        self._layout = Layout(variables, self.bucket_bytes)
        # Keras' accumulators hold a sum and are mirrored; see `Window`.
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
            self._window = Window(self._layout, self._keeps_spread)
            self._track_variable(self._window.weight)
            # An attribute of its own, for tf.train.Checkpoint to find.
            self._accumulated = self._window.views
        self._comm.broadcast(self._trainable_variables)
        # The GSNR family has it in its state.
        self._signal = _Unsaved(self._layout.dtype, self._distribution_strategy)

    def join(self):
        """Goes on with the workers there are now, in a job where they come and go.

        State stays, but for slices of it: these are dealt anew, and empty.
        """
        self._comm = comm.choose(self.communicator, self._distribution_strategy)
        self.check_workers()

    def meet(self):
        """To be called after `build` or `join`, once all workers are there."""

    def check_workers(self):
        """Raises where the rule cannot do with the workers there are."""

    # ---- the window of accumulation ---------------------------------------------

    @property
    def accumulation_steps(self):
        """Micro-batches of each worker in an update: an int, or a scalar int64 tensor
        where they may change."""
        if self._window_size is None:
            return self.gradient_accumulation_steps or 1
        return tf.convert_to_tensor(self._window_size)

    def vary_window(self):
        """Lets `set_accumulation_steps` change the window of a training under way.

        Its size becomes part of the optimizer's state. To be called before `build`,
        after loading as before saving.

        Raises:
            ValueError: The optimizer is already built.
        """
        if self.built and self._window_size is None:
            raise ValueError(
                "The accumulation window of this optimizer is fixed: it is already "
                f"built. Received: {self.name}. Call `vary_window()`, or give `fit` "
                "BatchSizeRamp, before the first step."
            )
        self._varies = True

    def set_accumulation_steps(self, steps):
        """Makes further updates of so many micro-batches of each worker.

        Changes the train step without tracing it anew. All workers must call it alike,
        outside of a step and at the end of a window. `iterations` still counts updates;
        a schedule of Keras, which counts calls, would jump.

        Args:
            steps: Int, at least 1.

        Raises:
            ValueError: The window may not change, or has begun.
        """
        if self._window_size is None:
            raise ValueError("Call `vary_window()` before the optimizer is built.")
        if steps < 1:
            raise ValueError(f"steps must be at least 1. Received: steps={steps}")
        calls, now = int(self._iterations), int(self.accumulation_steps)
        if calls % now:
            raise ValueError(
                f"The window has begun: {calls % now} of {now} micro-batches are "
                "accumulated. Change it after an update."
            )
        self._iterations.assign(calls // now * steps)
        self._window_size.assign(steps)

    @property
    def iterations(self):
        """Number of updates, as in Keras."""
        if self._window_size is None:
            return super().iterations
        calls = tf.convert_to_tensor(self._iterations)
        return calls // tf.cast(self.accumulation_steps, calls.dtype)

    def whole_state(self):
        return [*self.variables, *self._accumulated]

    @property
    def skipped_steps(self):
        """Scalar int64 tensor: updates that all workers dropped together because
        the reduced gradient was not finite."""
        return tf.convert_to_tensor(self._skipped)

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
            examples: Scalar, over how many examples. Give it at every call or at
                none; without it all workers and micro-batches weigh the same.

        Returns:
            The number of calls that count so far, as in Keras.
        """
        gradients, variables = zip(*grads_and_vars)
        self.apply(gradients, variables, examples=examples)
        return self._iterations

    def apply(self, grads, trainable_variables=None, examples=None):
        """Like `apply_gradients`, with gradients and variables apart."""
        self._examples = examples
        try:
            super().apply(grads, trainable_variables)
        finally:
            self._examples = None

    def _backend_apply_gradients(self, grads, trainable_variables):
        given = [None] * len(self._trainable_variables)
        for gradient, variable in zip(grads, trainable_variables):
            given[self._get_variable_index(variable)] = gradient
        with_gradient = [i for i, gradient in enumerate(given) if gradient is not None]
        sample = self._layout.pack([_dense(gradient) for gradient in given])
        if self._comm.gradient_scale != 1:
            scale = tf.cast(self._comm.gradient_scale, self._layout.dtype)
            sample = [vector * scale for vector in sample]
        weight = None
        if self._examples is not None:
            weight = tf.cast(self._examples, self._layout.dtype)
            # The mean over no examples is NaN; it weighs nothing.
            sample = [tf.where(weight > 0, v, tf.zeros_like(v)) for v in sample]
        step = functools.partial(self._step, with_gradient)
        self._comm.run(step, sample, weight)

    def _step(self, with_gradient, sample, weight):
        """One call's step, where collectives may be issued."""
        if not self.gradient_accumulation_steps and self._window_size is None:
            moments = self._comm.each(self._first_sample, sample, weight)
            self._finish(with_gradient, moments, None if weight is not None else 1.0)
            return
        moments = self._comm.each(self._with_sample, sample, weight)
        steps = self.accumulation_steps

        def finish():
            equal_weight = None
            if weight is None:
                fixed = self._window_size is None
                equal_weight = (
                    float(steps) if fixed else tf.cast(steps, self._layout.dtype)
                )
            self._comm.each(self._window.restart)
            self._finish(with_gradient, moments, equal_weight)
            return True

        def wait():
            self._comm.each(self._window.store, moments)
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
        return [Moments(weight, vector, None) for vector in sample]

    def _with_sample(self, sample, weight):
        return self._window.with_sample(sample, self._weight_of(weight))

    def _finish(self, with_gradient, moments, equal_weight):
        """Reduces the samples of a window and updates, if all is finite."""
        finite, reduced = self._reduce(moments, equal_weight)

        def update():
            self._update(with_gradient, reduced)
            if self.use_ema:
                self._update_averages()
            return True

        def skip():
            # The window's calls do not count: `iterations` is the number of updates.
            calls = tf.cast(self.accumulation_steps, self._iterations.dtype)
            self._comm.update(self._iterations, lambda v: v.assign_sub(calls))
            self._comm.update(self._skipped, lambda v: v.assign_add(1))
            return False

        done = tf.cond(finite, update, skip)
        with tf.control_dependencies([done]):
            self._end_update()

    def _end_update(self):
        """Called when an update has been made or skipped."""

    def _reduce(self, moments, equal_weight):
        """Whether the mean of all samples is finite; lists of mean and variance, and
        the squared norm of the mean."""
        means, variances = self._comm.reduce_moments(
            moments, f"gsnr.{self.name}", equal_weight, self._needs_variance
        )
        square = self._comm.each(_sq_norm, means)
        # A norm that overflows counts as not finite: nothing could be clipped by it.
        # The reduced mean is the same on all workers, and so is what it says.
        finite = self._comm.agreed(self._comm.each(tf.math.is_finite, square))
        return finite, (means, variances, square)

    def _update(self, with_gradient, reduced):
        """Clips, then updates each variable by the rule: here Keras' own."""
        means, _, square = reduced
        self._comm.update(self._signal, lambda v, x: v.assign(x), square)
        clipped = self._comm.each(self._clipped, means)
        gradients = [clipped[index] for index in with_gradient]
        variables = [self._trainable_variables[index] for index in with_gradient]
        self._apply_weight_decay(variables)
        self._backend_update_step(gradients, variables, self.learning_rate)

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
            self._comm.update(variable, decay)

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        """Where Keras would sum over replicas; Nadam counts its steps before this."""
        rate = tf.convert_to_tensor(learning_rate)
        for gradient, variable in zip(grads, trainable_variables):
            step = functools.partial(self._keras_rule, rate)
            self._comm.update(variable, step, gradient)

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
    with tf.control_dependencies(tensors):
        return tf.identity(value)


def _dense(gradient):
    """Sums the rows of `IndexedSlices` that name the same index."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    return tf.math.unsorted_segment_sum(
        gradient.values, gradient.indices, gradient.dense_shape[0]
    )


def _sq_norm(means):
    return sum(tf.reduce_sum(tf.square(mean)) for mean in means)


class _Unsaved:
    """A scalar variable that no checkpoint has, Keras' or TensorFlow's.

    They find variables, and what holds them, among an optimizer's attributes.
    """

    def __init__(self, dtype, strategy):
        first = tf.VariableAggregation.ONLY_FIRST_REPLICA
        with tf.init_scope(), strategy.scope():
            nothing = tf.constant(float("nan"), dtype)
            self.value = tf.Variable(nothing, trainable=False, aggregation=first)
