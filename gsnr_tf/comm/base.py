"""What an optimizer may ask of the workers that train together."""

import abc

import tensorflow as tf


def native(variable):
    """The `tf.Variable` that a Keras variable holds; a `tf.Variable` is one itself."""
    return variable if isinstance(variable, tf.Variable) else variable.value


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
    # Whether `to_owners` and its companions exist, and each worker may own a part.
    has_owners = False
    # Whether that sends fewer bytes from host to host than `reduce_moments`.
    owners_pay = False

    @abc.abstractmethod
    def all_reduce(self, tensor, name):
        """Sum of `tensor` over all workers, bitwise the same on each of them.

        Args:
            tensor: Floating-point tensor, of one shape and dtype on all workers.
            name: Name of the collective, the same on all workers and at every
                step, and no other's within a step.
        """

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
        """Gives all workers the variables of worker `root`."""

    def gather(self, value, name="gsnr.gather"):
        """List of what each process passed, a picklable Python object each.

        Args:
            value: Picklable object.
            name: As for `all_reduce`. With a name of its own, ranks that have come to
                different points wait for each other, and are told, where they would
                otherwise take one another's objects for something else.
        """
        return [value]

    def reduce_moments(self, local, name, equal_weight=None, with_variance=True):
        """Mean and biased variance of the samples of all workers.

        Two collectives as large as the gradients: the means, then the spread
        about the common mean. Packing g and g² into one would move as many bytes
        and lose the small digits of the variance.

        Args:
            local: List of `Moments` of this worker's samples, one for each bucket,
                all of one weight.
            name: Prefix of the names of the collectives.
            equal_weight: Python float, the weight of every worker's samples where
                it is known to be the same; spares a collective.
            with_variance: Whether to reduce the spread as well.

        Returns:
            `(means, variances)`, lists of tensors `[n]`; variances of `None` where
            nobody asks for them.
        """
        weight = None
        if equal_weight is None:
            weight = self.all_reduce(local[0].weight, f"{name}.weight")
        reduced = [
            self._reduce_bucket(
                moments, f"{name}.{number}", weight, equal_weight, with_variance
            )
            for number, moments in enumerate(local)
        ]
        means, variances = zip(*reduced)
        return list(means), list(variances)

    def _reduce_bucket(self, local, name, weight, equal_weight, with_variance):
        # Only the ratio of equal weights matters: 1 spares a multiplication.
        weighted, total_weight = local.mean, float(self.workers)
        if weight is not None:
            weighted = self.each(tf.multiply, local.mean, local.weight)
            total_weight = weight
        total = self.all_reduce(weighted, f"{name}.mean")
        mean = self.each(tf.divide, total, total_weight)
        if not with_variance:
            return mean, None
        about = self.each(lambda moments, c: moments.spread_about(c), local, mean)
        spread = self.all_reduce(about, f"{name}.spread")
        samples = weight if equal_weight is None else total_weight * equal_weight
        return mean, self.each(tf.divide, spread, samples)
