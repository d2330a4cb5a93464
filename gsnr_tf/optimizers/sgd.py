"""SGD and momentum."""

import keras

from gsnr_tf.optimizers.arguments import FAMILY_ARGUMENTS, given
from gsnr_tf.optimizers.gsnr import GSNROptimizer
from gsnr_tf.rules.sgd import SGD
from gsnr_tf.sharding.buckets import BUCKET_BYTES


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
        {FAMILY_ARGUMENTS.format(default_exclusion="none is excluded")}

    Reference: Jiang et al., arXiv 2309.13681, VR-SGD and VR-Momentum.
    """

    rule_class = SGD

    def __init__(
        self,
        learning_rate=0.01,
        momentum=0.0,
        nesterov=False,
        gamma=0.1,
        ceiling=None,
        estimator="paper",
        granularity="element",
        l2=None,
        l2_form="outside",
        weight_decay=None,
        exclude_from_weight_decay=None,
        sparse="auto",
        sample="auto",
        sharding="auto",
        bucket_bytes=BUCKET_BYTES,
        communication_dtype="float32",
        communicator="auto",
        max_consecutive_skips=10,
        clipnorm=None,
        clipvalue=None,
        global_clipnorm=None,
        use_ema=False,
        ema_momentum=0.99,
        ema_overwrite_frequency=None,
        loss_scale_factor=None,
        gradient_accumulation_steps=None,
        name=None,
    ):
        super().__init__(**given(locals()))
