"""LARS."""

import keras

from gsnr_tf.optimizers.arguments import ADAPTATION_ARGUMENT, FAMILY_ARGUMENTS, given
from gsnr_tf.optimizers.gsnr import GSNROptimizer
from gsnr_tf.rules.lars import Lars
from gsnr_tf.sharding.buckets import BUCKET_BYTES


@keras.saving.register_keras_serializable("gsnr_tf")
class GSNRLars(GSNROptimizer):
    __doc__ = f"""LARS, scaled by GSNR.

        ĝ = r·g
        φ = η‖θ‖/(‖ĝ‖ + wd·‖θ‖ + ε), for each variable, 1 where either norm is 0
        m ← μm + λφ(ĝ + wd·θ)
        θ ← θ − m

    Args:
        learning_rate: λ. Float, schedule or callable. Defaults to 0.1.
        momentum: μ. Float in [0, 1]. Defaults to 0.9.
        trust_coefficient: η. Float. Defaults to 0.001.
        epsilon: ε. Float. Defaults to 1e-9.
        {ADAPTATION_ARGUMENT}
        {FAMILY_ARGUMENTS.format(default_exclusion="variables with at most one dimension")}

    References: Jiang et al., arXiv 2309.13681, VR-LARS; You et al., arXiv 1708.03888.
    """

    rule_class = Lars

    def __init__(
        self,
        learning_rate=0.1,
        momentum=0.9,
        trust_coefficient=0.001,
        epsilon=1e-9,
        gamma=0.1,
        ceiling=None,
        estimator="paper",
        granularity="element",
        l2=None,
        l2_form="outside",
        weight_decay=None,
        exclude_from_weight_decay=None,
        exclude_from_layer_adaptation=None,
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
