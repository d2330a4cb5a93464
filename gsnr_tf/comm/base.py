"""What an optimizer may ask of the workers that train together."""

import abc

import tensorflow as tf


def native(variable):
    """The `tf.Variable` that a Keras variable holds; a `tf.Variable` is one itself."""
    return variable if isinstance(variable, tf.Variable) else variable.value


def assign(variable, value):
    """Gives a `tf.Variable` a value of any floating-point or integer dtype."""
    variable.assign(tf.cast(value, variable.dtype))


class RanksDiffer(RuntimeError):
    """What all ranks must have alike differs; the message says what, and on which ranks."""


class Communicator(abc.ABC):
    """The workers that train together, seen from one of them.

    Every worker brings gradients and holds a copy of the variables. A step runs
    inside `run`; there, values that differ between the local replicas are made by
    `each`, become one by `all_reduce`, and reach the variables by `update`.
    With one replica for each process all of these are plain calls.

    Attributes:
        workers: How many workers bring a gradient to each update.
        gradient_scale: What a gradient handed to the optimizer is multiplied by
            to be the mean gradient of this worker's examples.
    """

    workers = 1
    gradient_scale = 1.0
    # Whether `scatter_samples` and its companions exist, and each worker may own a shard.
    can_shard = False
    # Whether the workers are processes, which trace their steps each for itself.
    has_ranks = False
    # Called as `observer(collective, tensor)` in the place of `collective(tensor)`, for
    # who measures how long collectives take.
    observer = None

    @abc.abstractmethod
    def all_reduce(self, tensor, name):
        """Sum of `tensor` over all workers, bitwise the same on each of them.

        Args:
            tensor: Floating-point tensor, of one shape and dtype on all workers.
            name: Name of the collective, the same on all workers and at every
                step, and no other's within a step.
        """

    @property
    def sharding_pays(self) -> bool:
        """Whether owning shards sends fewer bytes from host to host than `reduce_moments`."""
        return False

    @property
    def hosts(self) -> int:
        """How many hosts samples could go by; 1 where there is nothing to gain."""
        return 1

    def _issue(self, collective, tensor):
        if self.observer is None:
            return collective(tensor)
        return self.observer(collective, tensor)

    def run(self, step, *values):
        """Calls `step(*values)` where collectives may be issued."""
        return step(*values)

    def each(self, fn, *values):
        """Calls `fn(*values)` for every local replica. No collectives inside."""
        return fn(*values)

    def update(self, variable, fn, *values):
        """Calls `fn(copy, *values)` for every local copy of `variable`."""
        fn(native(variable), *values)

    def agreed(self, value):
        """The one value of a scalar that is equal on all replicas."""
        return value

    def broadcast(self, variables, root=0):
        """Gives all workers the variables of worker `root`.

        Returns whether they have them: not where the variables are made by the trace that
        is under way, which tf.function then makes anew.
        """
        return True

    def gather(self, value, name="gsnr.gather"):
        """List of what each process passed, a picklable Python object each.

        Args:
            value: Picklable object.
            name: As for `all_reduce`. With a name of its own, ranks that have come to
                different points wait for each other, and are told, where they would
                otherwise take one another's objects for something else.
        """
        return [value]

    def all_gather_rows(self, rows, name):
        """Joins tables `[m, columns]` of all workers, which may have any number of rows.

        Args:
            rows: Floating-point tensor.
            name: As for `all_reduce`.

        Returns:
            `[rows of all, columns]`, in the order of the workers.
        """
        return rows

    def by_worker(self, vector, name):
        """Table `[workers, n]` of the vectors `[n]` of all workers."""
        rows = self.each(self._own_row, vector)
        return self.agreed(rows if self.workers == 1 else self.all_reduce(rows, name))

    def _own_row(self, vector):
        before, after = self.place(), self.workers - 1 - self.place()
        return tf.pad(vector[None], [[before, after], [0, 0]])

    def place(self):
        """Which of the workers this one is, within `each`: an int, or a scalar tensor."""
        return 0

    def reduce_moments(
        self, local, name, carrier=0, weighted=False, with_variance=True, riders=None
    ):
        """Mean and biased variance of the samples of all workers.

        Two collectives as large as the gradients: the means, then the deviations
        about the common mean. Packing g and g² into one would move as many bytes
        and lose the small digits of the variance.

        Args:
            local: List of `Moments` of this worker's samples, one for each bucket,
                all of one weight.
            name: Prefix of the names of the collectives.
            carrier: Number of the bucket with which weights and riders travel; `None`
                where there is no bucket.
            weighted: Whether the weight may differ between workers.
            with_variance: Whether to reduce the deviations as well.
            riders: Tensor `[m]` to sum over ranks beside the means, or `None`.

        Returns:
            `(means, variances, riders)`: lists of tensors `[n]`, with variances of
            `None` where nobody asks for them, and the sum of the riders.
        """
        if self.workers == 1:
            own = [self.each(_own_variance, m) if with_variance else None for m in local]
            return [moments.mean for moments in local], own, riders
        if not local:
            return [], [], None if riders is None else self.all_reduce(riders, f"{name}.riders")
        weight = local[carrier].weight if weighted else None
        sent = [m.mean if weight is None else self.each(tf.multiply, m.mean, weight) for m in local]
        if riders is not None:
            own = riders if weight is None else tf.concat([riders, weight[None]], axis=0)
            number = own.shape[0]
            sent[carrier] = tf.concat([sent[carrier], own], axis=0)
        elif weight is not None:
            weight = self.all_reduce(weight, f"{name}.weight")
        totals = [self.all_reduce(s, f"{name}.{i}.mean") for i, s in enumerate(sent)]
        if riders is not None:
            total = totals[carrier]
            totals[carrier], riders = total[:-number], total[-number:]
            if weight is not None:
                riders, weight = riders[:-1], riders[-1]
        workers = float(self.workers)
        divisor = workers if weight is None else weight
        means = [self.each(tf.divide, total, divisor) for total in totals]
        variances = [None] * len(means)
        if with_variance:
            if weight is None:  # Each knows what they weigh together.
                weight = self.each(tf.multiply, local[0].weight, workers)
            variances = [
                self._reduce_m2(moments, mean, weight, f"{name}.{i}.m2")
                for i, (moments, mean) in enumerate(zip(local, means))
            ]
        return means, variances, riders

    def _reduce_m2(self, local, mean, weight, name):
        about = self.each(lambda moments, c: moments.m2_about(c), local, mean)
        return self.each(tf.divide, self.all_reduce(about, name), weight)


def _own_variance(moments):
    return moments.m2 / moments.weight
