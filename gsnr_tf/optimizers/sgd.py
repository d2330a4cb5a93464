"""SGD and momentum."""

import keras

from gsnr_tf.optimizers.gsnr import COMMON_ARGUMENTS, GSNROptimizer


@keras.saving.register_keras_serializable("gsnr_tf")
class GSNRSGD(GSNROptimizer):
    __doc__ = f"""SGD, with or without momentum, scaled by GSNR.

        θ ← θ − λ·wd·θ
        m ← μm − λ·r·g
        θ ← θ + m,   with nesterov   θ ← θ + μm − λ·r·g

    Args:
        learning_rate: λ. Float, schedule or callable. Defaults to 0.01.
        momentum: μ. Float in [0, 1]. Defaults to 0.
        nesterov: Boolean. Defaults to `False`.
        {COMMON_ARGUMENTS.format(default_exclusion="none is excluded")}

    Reference: Jiang et al., arXiv 2309.13681, VR-SGD and VR-Momentum.
    """

    def __init__(self, learning_rate=0.01, momentum=0.0, nesterov=False, **kwargs):
        super().__init__(learning_rate, **kwargs)
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1]. Received: {momentum}")
        self.momentum = momentum
        self.nesterov = nesterov
        self.slots = ("momentum",) if momentum else ()

    def direction(self, theta, gradient, r, slots, step):
        return r * gradient, slots

    def descend(self, theta, u, phi, slots, step):
        theta = theta - theta * step.weight_decay * step.learning_rate
        move = -step.learning_rate * u
        if not self.momentum:
            return theta + move, {}
        m = self.momentum * slots["momentum"] + move
        return theta + (self.momentum * m + move if self.nesterov else m), {"momentum": m}

    def get_config(self):
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "nesterov": self.nesterov,
        }
