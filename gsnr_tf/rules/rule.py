"""What an update rule is."""

from typing import NamedTuple

import tensorflow as tf


class Coefficients(NamedTuple):
    """The numbers of one update; numbers, or tensors that broadcast against a shard.

    Attributes:
        learning_rate: λ.
        t: Number of this update, from 1.
        weight_decay: Decoupled, 0 for variables that are not decayed.
        l2: Coupled, what θ is multiplied by and added to the scaled gradient, or `None`.
    """

    learning_rate: tf.Tensor
    t: tf.Tensor
    weight_decay: float
    l2: tf.Tensor | None = None

    def coupled(self, gradient, theta):
        """`gradient` with the coupled decay, λθ."""
        return gradient if self.l2 is None else gradient + self.l2 * theta


class Rule:
    """Base of the rules. Each names its slots and says

        u = direction(θ, g, r)       elementwise: the step, its length not yet known
        φ = trust_ratio(‖θ‖, ‖u‖)    one number for each variable, 1 without adaptation
        θ ← descend(θ, u, φ)         elementwise

    with g the mean gradient after clipping and r the multiplier. All are pure functions
    of tensors of any shape, so that a rule works on whole variables, on a shard of them,
    or on a few rows. Subclasses are frozen dataclasses of the rule's own coefficients.

    Attributes:
        adapts: Whether the rule has a trust ratio.
        exclude_vectors: Whether variables with at most one dimension (biases, norms)
            are by default neither decayed nor adapted.
        compiled: Whether XLA may compile a replicated update. It contracts a product
            and a sum, which are then rounded once in place of twice.
    """

    adapts = False
    exclude_vectors = False
    compiled = True

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the state, a tensor like θ each."""
        return ()

    def direction(self, theta, gradient, multiplier, slots, at):
        """The step before its length is known.

        Args:
            theta, gradient, multiplier: Tensors of one shape, float32 or float64.
            slots: Dict of tensors of that shape.
            at: `Coefficients`.

        Returns:
            `(u, slots)`: a tensor, and a dict of the slots after the step.
        """
        raise NotImplementedError(f"{type(self).__name__} has no direction")

    def trust_ratio(self, theta_norm, u_norm, at):
        """φ, scalars or a vector with an entry for each variable, for norms above 0."""
        raise NotImplementedError(f"{type(self).__name__} has no trust ratio")

    def descend(self, theta, u, phi, slots, at):
        """`(theta, slots)` after the step: of the slots those that changed once more."""
        raise NotImplementedError(f"{type(self).__name__} has no descent")

    def trust(self, theta_norm, u_norm, at):
        """`trust_ratio`, and 1 where either norm is 0."""
        known = tf.logical_and(theta_norm > 0, u_norm > 0)
        phi = self.trust_ratio(theta_norm, u_norm, at)
        return tf.where(known, phi, tf.ones_like(phi))


def check_momentum(momentum):
    """Raises ValueError unless a momentum is in [0, 1]."""
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be in [0, 1]. Received: {momentum}")
