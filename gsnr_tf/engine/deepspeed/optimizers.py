"""DeepSpeed's optimizers for Keras: its defaults, and its formulas to float32 rounding.

They are chosen by the name in a configuration ("AdamW", "Lamb", "SGD", "Lion", "Adagrad").
`lr`, `betas` and `eps` have Keras' names here. Arguments of `keras.optimizers.Optimizer`
(use_ema, clipnorm, …) may be added.
"""

import keras
import tensorflow as tf

from gsnr_tf.optimizers.arguments import given

_register = keras.saving.register_keras_serializable("gsnr_tf")


class _DeepSpeedOptimizer(keras.optimizers.Optimizer):
    """Base: slots by name, the decay inside of the rule, the number of the update."""

    slots = ()
    # What `get_config` adds to that of Keras.
    own = ()

    def _set_up(self, learning_rate, weight_decay, kwargs, **own):
        for name, beta in own.items():
            if name.startswith("beta_") and not 0 <= beta < 1:
                raise ValueError(f"{name} must be in [0, 1). Received: {name}={beta}")
        if weight_decay is not None and not weight_decay >= 0:
            raise ValueError(
                f"weight_decay must be at least 0. Received: weight_decay={weight_decay}"
            )
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.decay = float(weight_decay or 0.0)
        self.own = tuple(own)
        for name, value in own.items():
            setattr(self, name, value)

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        for name in self.slots:
            setattr(self, f"_{name}", self.add_optimizer_variables(variables, name))

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        state = {name: getattr(self, f"_{name}")[index] for name in self.slots}
        # Variables of fewer digits could not tell 0.999 from 1.
        dtype = "float64" if variable.dtype == "float64" else "float32"
        decay = self.decay if self._use_weight_decay(variable) else 0.0
        t = tf.cast(tf.convert_to_tensor(self.iterations) + 1, dtype)
        theta = tf.cast(tf.convert_to_tensor(variable), dtype)
        old = {name: tf.cast(tf.convert_to_tensor(slot), dtype) for name, slot in state.items()}
        rate = tf.cast(learning_rate, dtype)
        theta, new = self.rule(theta, tf.cast(gradient, dtype), old, rate, decay, t)
        for name, value in new.items():
            state[name].assign(tf.cast(value, state[name].dtype))
        variable.assign(tf.cast(theta, variable.dtype))

    def rule(self, theta, gradient, slots, rate, decay, t):
        """The variable after update number `t`, from 1, and the slots after it."""
        raise NotImplementedError(f"{type(self).__name__} has no rule")

    def get_config(self):
        own = {name: getattr(self, name) for name in self.own}
        return {**super().get_config(), **own, "weight_decay": self.decay}


@_register
class DeepSpeedAdam(_DeepSpeedOptimizer):
    """Adam and AdamW as FusedAdam computes them.

        m ← β₁m + (1−β₁)g;   v ← β₂v + (1−β₂)g²
        θ ← θ − λ·(m̂/(√v̂ + ε) + wd·θ)

    With `adam_w_mode=False` g has wd·θ added, and the step has not.

    Args:
        learning_rate: Float or schedule. Defaults to 0.001.
        beta_1, beta_2: Floats. Default to 0.9 and 0.999.
        epsilon: Float. Defaults to 1e-8.
        weight_decay: Float. Defaults to 0.
        bias_correction: Boolean, whether m̂ and v̂ are corrected. Defaults to `True`.
        adam_w_mode: Boolean. Defaults to `True`.
    """

    slots = ("momentum", "velocity")

    def __init__(
        self,
        learning_rate=0.001,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        weight_decay=0.0,
        bias_correction=True,
        adam_w_mode=True,
        **kwargs,
    ):
        self._set_up(**given(locals()))

    def rule(self, theta, gradient, slots, rate, decay, t):
        if not self.adam_w_mode:
            gradient += decay * theta
        m, v = _moments(self, gradient, slots)
        m_hat, v_hat = m, v
        if self.bias_correction:
            m_hat, v_hat = m / _missing(self.beta_1, t), v / _missing(self.beta_2, t)
        step = m_hat / (tf.sqrt(v_hat) + self.epsilon)
        if self.adam_w_mode:
            step += decay * theta
        return theta - rate * step, {"momentum": m, "velocity": v}


@_register
class DeepSpeedLamb(_DeepSpeedOptimizer):
    """LAMB as FusedLamb computes it.

        m ← β₁m + (1−β₁)g;   v ← β₂v + (1−β₂)g²;   u = m/(√v + ε) + wd·θ
        θ ← θ − λ·√(1−β₂ᵗ)/(1−β₁ᵗ)·φ·u,   φ = ‖θ‖/‖u‖ within [min_coeff, max_coeff]

    φ is 1 where a norm is 0.

    Args:
        learning_rate: Float or schedule. Defaults to 0.001.
        beta_1, beta_2: Floats. Default to 0.9 and 0.999.
        epsilon: Float. Defaults to 1e-8.
        weight_decay: Float, inside of the trust ratio. Defaults to 0.
        bias_correction: Boolean, whether λ has that factor. Defaults to `True`.
        max_coeff, min_coeff: Floats, bounds of φ. Default to 10 and 0.01.
    """

    slots = ("momentum", "velocity")

    def __init__(
        self,
        learning_rate=0.001,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        weight_decay=0.0,
        bias_correction=True,
        max_coeff=10.0,
        min_coeff=0.01,
        **kwargs,
    ):
        if not 0 <= min_coeff <= max_coeff:
            raise ValueError(
                "min_coeff must be at least 0 and at most max_coeff. Received: "
                f"min_coeff={min_coeff}, max_coeff={max_coeff}"
            )
        self._set_up(**given(locals()))

    def rule(self, theta, gradient, slots, rate, decay, t):
        m, v = _moments(self, gradient, slots)
        step = m / (tf.sqrt(v) + self.epsilon) + decay * theta
        theta_norm, step_norm = tf.norm(theta), tf.norm(step)
        both = tf.logical_and(theta_norm > 0, step_norm > 0)
        ratio = tf.clip_by_value(
            tf.math.divide_no_nan(theta_norm, step_norm), self.min_coeff, self.max_coeff
        )
        if self.bias_correction:
            rate = rate * tf.sqrt(_missing(self.beta_2, t)) / _missing(self.beta_1, t)
        ratio = tf.where(both, ratio, tf.ones_like(ratio))
        return theta - rate * ratio * step, {"momentum": m, "velocity": v}


@_register
class DeepSpeedSGD(_DeepSpeedOptimizer):
    """SGD as torch.optim.SGD computes it, which DeepSpeed takes.

        g ← g + wd·θ;   m ← μm + (1−d)g, the first time m = g
        θ ← θ − λm, with Nesterov's momentum θ − λ(g + μm)

    Args:
        learning_rate: Float or schedule. Defaults to 0.001.
        momentum: Float, μ. Defaults to 0.
        dampening: Float, d. Defaults to 0.
        weight_decay: Float. Defaults to 0.
        nesterov: Boolean. Defaults to `False`.
    """

    def __init__(
        self,
        learning_rate=0.001,
        momentum=0.0,
        dampening=0.0,
        weight_decay=0.0,
        nesterov=False,
        **kwargs,
    ):
        if not momentum >= 0:
            raise ValueError(f"momentum must be at least 0. Received: momentum={momentum}")
        if nesterov and (momentum <= 0 or dampening):
            raise ValueError(
                "nesterov needs a momentum and no dampening. Received: "
                f"momentum={momentum}, dampening={dampening}"
            )
        self._set_up(**given(locals()))

    @property
    def slots(self):
        return ("momentum",) if self.momentum else ()

    def rule(self, theta, gradient, slots, rate, decay, t):
        gradient += decay * theta
        if not self.momentum:
            return theta - rate * gradient, {}
        m = self.momentum * slots["momentum"] + (1 - self.dampening) * gradient
        m = tf.where(t > 1, m, gradient)
        step = gradient + self.momentum * m if self.nesterov else m
        return theta - rate * step, {"momentum": m}


@_register
class DeepSpeedLion(_DeepSpeedOptimizer):
    """Lion as FusedLion computes it.

        c = β₁m + (1−β₁)g;   θ ← θ·(1 − λ·wd) − λ where c > 0, + λ elsewhere
        m ← β₂m + (1−β₂)g

    Args:
        learning_rate: Float or schedule. Defaults to 0.001.
        beta_1, beta_2: Floats. Default to 0.9 and 0.999.
        weight_decay: Float. Defaults to 0.
    """

    slots = ("momentum",)

    def __init__(self, learning_rate=0.001, beta_1=0.9, beta_2=0.999, weight_decay=0.0, **kwargs):
        self._set_up(**given(locals()))

    def rule(self, theta, gradient, slots, rate, decay, t):
        m = slots["momentum"]
        c = self.beta_1 * m + (1 - self.beta_1) * gradient
        theta = theta * (1 - rate * decay) + tf.where(c > 0, -rate, rate)
        return theta, {"momentum": self.beta_2 * m + (1 - self.beta_2) * gradient}


@_register
class DeepSpeedAdagrad(_DeepSpeedOptimizer):
    """Adagrad as torch.optim.Adagrad computes it, which DeepSpeed takes.

        g ← g + wd·θ;   s ← s + g²;   θ ← θ − λ/(1 + (t−1)·d)·g/(√s + ε)

    Args:
        learning_rate: Float or schedule. Defaults to 0.01.
        lr_decay: Float, d. Defaults to 0.
        weight_decay: Float. Defaults to 0.
        initial_accumulator_value: Float, s at first. Defaults to 0.
        epsilon: Float. Defaults to 1e-10.
    """

    slots = ("squares",)

    def __init__(
        self,
        learning_rate=0.01,
        lr_decay=0.0,
        weight_decay=0.0,
        initial_accumulator_value=0.0,
        epsilon=1e-10,
        **kwargs,
    ):
        self._set_up(**given(locals()))

    def rule(self, theta, gradient, slots, rate, decay, t):
        gradient += decay * theta
        # Keras' slots begin at 0, and this one holds s without what it began with.
        total = slots["squares"] + tf.square(gradient)
        rate = rate / (1 + (t - 1) * self.lr_decay)
        root = tf.sqrt(total + self.initial_accumulator_value)
        return theta - rate * gradient / (root + self.epsilon), {"squares": total}


def _moments(rule, gradient, slots):
    """m and v of Adam and LAMB after an update, without bias correction."""
    m = rule.beta_1 * slots["momentum"] + (1 - rule.beta_1) * gradient
    v = rule.beta_2 * slots["velocity"] + (1 - rule.beta_2) * tf.square(gradient)
    return m, v


def _missing(beta, t):
    """1 − βᵗ."""
    return 1 - tf.pow(tf.cast(beta, t.dtype), t)


CLASSES = {
    rule.__name__: rule
    for rule in (DeepSpeedAdam, DeepSpeedLamb, DeepSpeedSGD, DeepSpeedLion, DeepSpeedAdagrad)
}
