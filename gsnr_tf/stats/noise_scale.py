"""What the sums of a step say about the batch: noise scale, gains, trade-offs.

All functions are arithmetic on floats, arrays or tensors alike. With the mean ḡ and the
biased variance σ² of k samples, each the mean gradient of b examples,

    S1 = Σ_j ḡ_j²     S2 = Σ_j σ²_j

are the two sums that everything here begins with.
"""

import math

import numpy as np


def noise_trace(s2, samples, examples):
    """tr(Σ): the variance of the gradient of one example, summed over elements.

    Args:
        s2: S2, sum of the biased variances of the samples.
        samples: k, how many samples there were, at least 2.
        examples: b, examples of each sample.

    Returns:
        b·k/(k−1)·S2, unbiased.
    """
    return s2 * (examples * samples / (samples - 1))


def signal_sq_norm(s1, s2, samples):
    """|G|²: the squared norm of the gradient of all examples there are.

    S1 alone counts the noise of the mean as signal. The difference is unbiased, and so
    it may be negative where noise dominates: average before you divide by it.

    Args:
        s1, s2: S1 and S2.
        samples: k, at least 2.

    Returns:
        S1 − S2/(k−1).
    """
    return s1 - s2 / (samples - 1)


def noise_scale(trace, signal):
    """B_simple = tr(Σ)/|G|², in examples (McCandlish et al., arXiv 1812.06162, Eq. 2.9).

    Args:
        trace, signal: Floats, averages of `noise_trace` and `signal_sq_norm` over the
            same updates. The average of ratios would be another number, and biased.

    Returns:
        Float; infinite where no signal can be told from noise.
    """
    return trace / signal if signal > 0 else math.inf


def progress(trace, signal, batch):
    """What a step makes of the progress of a step without noise.

    1/(1 + B_noise/B) (Eq. 2.7 of arXiv 1812.06162), written as the share of the signal
    in the squared gradient, so that a signal that came out below 0 does no harm.
    """
    return signal / (signal + trace / batch)


def critical_batch(traces, signals, batches):
    """The batch, in examples, at which a run takes twice the least number of steps.

    A run that made the `progress` of S_min noiseless steps could have done with
    E_min = Σ B_noise examples, summed over those steps, and the critical batch is
    E_min/S_min: the mean noise scale, weighted by progress.

    Args:
        traces, signals, batches: Arrays `[..., n]`: averages of `noise_trace` and
            `signal_sq_norm`, and the batch, of n blocks of equally many updates.

    Returns:
        Array `[...]`; infinite where no signal can be told from noise.
    """
    made = progress(traces, signals, batches)
    # progress · B_noise, which is finite also where the signal is 0.
    noise = batches * (1 - made)
    total = np.sum(made, axis=-1)
    found = np.sum(noise, axis=-1) / np.where(total > 0, total, 1)
    return np.where(total > 0, found, math.inf)


def relative_steps(critical, batch, reference):
    """Updates to the same loss at `batch`, as a ratio to those at `reference`.

    From (S/S_min − 1)(E/E_min − 1) = 1 (arXiv 1812.06162, Eq. 2.11) with E = B·S, where
    S = S_min(1 + B_crit/B).
    """
    return (1 + critical / batch) / (1 + critical / reference)


def relative_examples(critical, batch, reference):
    """Examples to the same loss at `batch`, as a ratio to those at `reference`.

    E = B·S = E_min(1 + B/B_crit): the other half of `relative_steps`.
    """
    return (1 + batch / critical) / (1 + reference / critical)


def adascale_gain(trace, signal, base, batch):
    """How many steps at batch `base` one step at `batch` is worth.

        (var + sqr)/(var/S + sqr)     S = batch/base,  var = tr(Σ)/base,  sqr = |G|²

    Between 1 (no noise) and S (nothing but noise): the factor for the learning rate of
    SGD (Johnson et al., arXiv 2007.05105).

    Args:
        trace, signal: As for `noise_scale`. A signal below 0 counts as 0.
        base, batch: Examples an update, before and after.
    """
    signal = max(signal, 0.0)
    if not trace > 0:
        return 1.0
    return (trace / base + signal) / (trace / batch + signal)


def generalization_ratio(trace, signal, examples):
    """One-step generalization ratio: how much of what a step gains is gained on new data.

    Liu et al. (ICLR 2020, Eq. 17) take R = 1 − (1/n)·Σ_j W_j/(r_j + 1/n) over elements,
    r_j the GSNR of single examples and W_j the share of element j in the expected
    squared gradient of n examples, (g_j² + ρ_j²/n)/Σ(g² + ρ²/n). Then
    W_j/(r_j + 1/n) = ρ_j²/Σ(g² + ρ²/n), and the sum is one of sums:

        R = |G|²/(|G|² + tr(Σ)/n) = 1/(1 + B_simple/n)

    Args:
        trace, signal: As for `noise_scale`.
        examples: n, the examples that the gradient was taken over.

    Returns:
        Float in [0, 1]: 1 where a step helps new data as much as its own, 0 where it
        does not help it at all.
    """
    return 1 / (1 + noise_scale(trace, signal) / examples)


class Smoothed:
    """Exponential moving average without the bias of its beginning.

    Smooth numerator and denominator each by one of these, then divide.

    Args:
        decay: Float in [0, 1): the weight of the past at each new value.

    Attributes:
        state: List of two floats, the weighted sum so far and its weight.
    """

    def __init__(self, decay):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1). Received: decay={decay}")
        self._decay = decay
        self.state = [0.0, 0.0]

    def add(self, value):
        """Takes one more value, and returns the average of all so far."""
        total, weight = self.state
        total = self._decay * total + (1 - self._decay) * value
        weight = self._decay * weight + 1 - self._decay
        self.state = [total, weight]
        return total / weight
