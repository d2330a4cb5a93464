"""The contract of the optimizers once more, in float64 numpy and without TensorFlow.

Slow, literal and independent of the package: the tests compare the two. A reference
takes the samples of one update, a list of k lists with one array for each variable.
"""

import re

import numpy as np


def statistics(samples, counts=None):
    """Weighted mean and biased variance of the samples of one variable.

    The result has the widest type among the samples, float64 at least.
    """
    samples = np.stack([np.asarray(sample, np.float64) for sample in samples])
    counts = np.ones(len(samples)) if counts is None else np.asarray(counts, np.float64)
    # The mean over no examples means nothing, whatever number stands there.
    samples, counts = samples[counts > 0], counts[counts > 0]
    share = (counts / counts.sum()).reshape([-1] + [1] * (samples.ndim - 1))
    agreed = np.all(samples == samples[0], axis=0)
    mean = np.where(agreed, samples[0], (share * samples).sum(axis=0))
    return mean, (share * (samples - mean) ** 2).sum(axis=0)


def multiplier(mean, variance, gamma, ceiling):
    """Eq. 8 and 9, for one variable."""
    finite = variance > 0
    agreed = (mean != 0) & ~finite
    if not finite.any():
        return np.full(mean.shape, float(ceiling))
    r = np.divide(mean**2, variance, out=np.zeros_like(mean), where=finite)
    average = r[finite].mean()
    # The contract leaves open what r is where mean and variance are 0: the step is
    # r·0, but Adam and LAMB average r over time. Such elements get the floor, like
    # any other of which nothing is known.
    scaled = r / average if average > 0 else r
    return np.where(agreed, float(ceiling), np.clip(scaled, gamma, ceiling))


def robust_multiplier(mean, variance, samples, gamma, ceiling):
    """The same of the share of signal in the squared mean, for one variable."""
    noise = variance / (samples - 1)
    known = (mean != 0) | (variance != 0)
    if not known.any():
        return np.full(mean.shape, float(ceiling))
    share = np.divide(mean**2, mean**2 + noise, out=np.zeros_like(mean), where=known)
    average = share[known].mean()
    return np.clip(share / average if average > 0 else share, gamma, ceiling)


def share_of_signal(mean, variance, samples):
    """q of each element: 0 where there is nothing."""
    noise = variance / (samples - 1)
    known = mean**2 + noise > 0
    return np.divide(mean**2, mean**2 + noise, out=np.zeros_like(mean), where=known)


def of_rows(mean, variance):
    """Mean of the squares, and of the variances, of each row."""
    return (mean**2).mean(axis=1, keepdims=True), variance.mean(axis=1, keepdims=True)


def row_multiplier(mean, variance, samples, gamma, ceiling, estimator):
    """The multiplier of a table that is judged by row, `[rows, 1]`."""
    square, spread = of_rows(mean, variance)
    if estimator == "paper":
        return multiplier(np.sqrt(square), spread, gamma, ceiling)
    share = share_of_signal(np.sqrt(square), spread, samples)
    width = mean.shape[1]
    if estimator == "james_stein" and width > 2:
        ratio = np.divide(spread, square, out=np.zeros_like(square), where=square > 0)
        share = np.maximum(1 - (width - 2) / width * ratio / (samples - 1), 0)
        share = np.where(square > 0, share, 0)
    known = (square > 0) | (spread > 0)
    if not known.any():
        return np.full(square.shape, float(ceiling))
    average = share[known].mean()
    return np.clip(share / average if average > 0 else share, gamma, ceiling)


def clipped(gradients, clipnorm=None, global_clipnorm=None, clipvalue=None):
    if clipvalue is not None:
        return [np.clip(g, -clipvalue, clipvalue) for g in gradients]
    norms = [np.linalg.norm(np.ravel(g)) for g in gradients]
    if clipnorm is not None:
        return [g * min(1.0, clipnorm / (n or 1.0)) for g, n in zip(gradients, norms)]
    if global_clipnorm is not None:
        norm = np.linalg.norm(norms)
        return [g * min(1.0, global_clipnorm / (norm or 1.0)) for g in gradients]
    return gradients


def norm(array):
    return np.linalg.norm(np.ravel(array))


class Reference:
    """An optimizer; its rule is `update(theta, g, r, slots, decay, adapts)`.

    Takes the arguments of the optimizer's constructor that it knows by the same names.
    """

    slots = ()
    spares_vectors = False

    def __init__(
        self,
        learning_rate,
        gamma=0.1,
        ceiling=None,
        estimator="paper",
        weight_decay=None,
        exclude_from_weight_decay=None,
        exclude_from_layer_adaptation=None,
        granularity="element",
        l2=None,
        l2_form="outside",
        clipnorm=None,
        global_clipnorm=None,
        clipvalue=None,
        **hyperparameters,
    ):
        self.learning_rate = learning_rate
        self.estimator = estimator
        self.robust = estimator != "paper"
        self.granularity, self.l2_form = granularity, l2_form
        self.l2_by_pattern = l2 if isinstance(l2, dict) else {"": l2 or 0.0}
        self.gamma, self.ceiling = gamma, ceiling
        if ceiling is None:
            self.ceiling = 1 / gamma if self.robust else 1.0
        self.weight_decay = weight_decay or 0.0
        self.not_decayed = exclude_from_weight_decay
        self.not_adapted = exclude_from_layer_adaptation
        self.clip = (clipnorm, global_clipnorm, clipvalue)
        self.t = 0
        self.state = None
        for name, default in self.defaults.items():
            setattr(self, name, hyperparameters.pop(name, default))
        assert not hyperparameters, hyperparameters

    def step(self, weights, samples, counts=None, paths=None):
        """New weights after one update by k samples."""
        paths = paths or [""] * len(weights)
        weights = [np.asarray(theta, np.float64) for theta in weights]
        if self.state is None:
            self.state = [{s: np.zeros_like(w) for s in self.slots} for w in weights]
        self.t += 1
        moments = [statistics(of_one, counts) for of_one in zip(*samples)]
        gradients = clipped([mean for mean, _ in moments], *self.clip)
        found = []
        for theta, gradient, (mean, variance), slots, path in zip(
            weights, gradients, moments, self.state, paths
        ):
            by_row = self.granularity == "row" and path == "embeddings"
            self.l2 = self._l2(path, mean, variance, len(samples), by_row)
            if self.l2_form == "inside":
                gradient, self.l2 = gradient + self.l2 * theta, 0.0
            found.append(
                self.update(
                    theta,
                    gradient,
                    self.multiplier(mean, variance, len(samples), by_row),
                    slots,
                    self.weight_decay if self._left(self.not_decayed, path, theta) else 0.0,
                    self._left(self.not_adapted, path, theta),
                )
            )
        return found

    def _l2(self, path, mean, variance, samples, by_row):
        l2 = next((v for p, v in self.l2_by_pattern.items() if re.search(p, path)), 0.0)
        if self.l2_form != "gated":
            return l2
        if by_row:
            square, variance = of_rows(mean, variance)
            mean = np.sqrt(square)
        return l2 * (1 - share_of_signal(mean, variance, samples))

    def multiplier(self, mean, variance, samples, by_row=False):
        if by_row:
            bounds = self.gamma, self.ceiling, self.estimator
            return row_multiplier(mean, variance, samples, *bounds)
        if self.robust:
            bounds = self.gamma, self.ceiling
            return robust_multiplier(mean, variance, samples, *bounds)
        return multiplier(mean, variance, self.gamma, self.ceiling)

    def _left(self, patterns, path, theta):
        if patterns is None:
            return theta.ndim > 1 or not self.spares_vectors
        return not any(re.search(pattern, path) for pattern in patterns)


class SGD(Reference):
    slots = ("momentum",)
    defaults = {"momentum": 0.0, "nesterov": False}

    def update(self, theta, g, r, slots, decay, adapts):
        move = self.learning_rate * (r * g + self.l2 * theta)
        theta = theta - self.learning_rate * decay * theta
        slots["momentum"] = m = self.momentum * slots["momentum"] - move
        return theta + (self.momentum * m - move if self.nesterov else m)


class Adam(Reference):
    slots = ("momentum", "velocity", "multiplier")
    defaults = {
        "beta_1": 0.9,
        "beta_2": 0.999,
        "beta_3": 0.9,
        "epsilon": 1e-7,
        "second_moment": None,
    }

    def adam_direction(self, theta, g, r, slots):
        t = self.t
        # Kept as p̂, from which p is p̂·(1 − β₃ᵗ).
        p = self.beta_3 * slots["multiplier"] * (1 - self.beta_3 ** (t - 1))
        p = p + (1 - self.beta_3) * r
        # What has none yet, such as a row of a table that is touched late, begins with r.
        first = slots["multiplier"] == 0
        slots["multiplier"] = p_hat = np.where(first, r, p / (1 - self.beta_3**t))
        self.adapted = adapted = p_hat * g + self.l2 * theta
        by_default = self.robust and self.second_moment is None
        raw = by_default or self.second_moment == "raw"
        s = g + self.l2 * theta if raw else adapted
        m = self.beta_1 * slots["momentum"] + (1 - self.beta_1) * adapted
        v = self.beta_2 * slots["velocity"] + (1 - self.beta_2) * s**2
        slots["momentum"], slots["velocity"] = m, v
        m_hat, v_hat = m / (1 - self.beta_1**t), v / (1 - self.beta_2**t)
        return m_hat / (np.sqrt(v_hat) + self.epsilon)

    def update(self, theta, g, r, slots, decay, adapts):
        u = self.adam_direction(theta, g, r, slots)
        theta = theta - self.learning_rate * decay * theta
        return theta - self.learning_rate * u


class Nadam(Adam):
    def adam_direction(self, theta, g, r, slots):
        super().adam_direction(theta, g, r, slots)
        t = self.t
        mu = [self.beta_1 * (1 - 0.5 * 0.96**i) for i in range(1, t + 2)]
        before, after = np.prod(mu[:-1]), np.prod(mu)
        m_hat = mu[-1] * slots["momentum"] / (1 - after)
        m_hat = m_hat + (1 - mu[-2]) * self.adapted / (1 - before)
        v_hat = slots["velocity"] / (1 - self.beta_2**t)
        return m_hat / (np.sqrt(v_hat) + self.epsilon)


class Lamb(Adam):
    spares_vectors = True
    defaults = {**Adam.defaults, "epsilon": 1e-6}

    def update(self, theta, g, r, slots, decay, adapts):
        u = self.adam_direction(theta, g, r, slots) + decay * theta
        phi = 1.0
        if adapts and norm(theta) > 0 and norm(u) > 0:
            phi = norm(theta) / norm(u)
        return theta - self.learning_rate * phi * u


class Lars(Reference):
    slots = ("momentum",)
    spares_vectors = True
    defaults = {"momentum": 0.9, "trust_coefficient": 0.001, "epsilon": 1e-9}

    def update(self, theta, g, r, slots, decay, adapts):
        adapted = r * g + self.l2 * theta
        phi = 1.0
        if adapts and norm(theta) > 0 and norm(adapted) > 0:
            phi = self.trust_coefficient * norm(theta)
            phi /= norm(adapted) + decay * norm(theta) + self.epsilon
        move = self.learning_rate * phi * (adapted + decay * theta)
        slots["momentum"] = m = self.momentum * slots["momentum"] + move
        return theta - m
