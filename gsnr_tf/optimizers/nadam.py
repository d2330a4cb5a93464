"""Adam with Nesterov's momentum."""

import keras

from gsnr_tf.optimizers.arguments import (
    ADAM_ARGUMENTS,
    FAMILY_ARGUMENTS,
    given,
    second_moment_of,
)
from gsnr_tf.optimizers.gsnr import GSNROptimizer
from gsnr_tf.rules.nadam import Nadam
from gsnr_tf.sharding.buckets import BUCKET_BYTES


@keras.saving.register_keras_serializable("gsnr_tf")
class GSNRNadam(GSNROptimizer):
    __doc__ = f"""Nadam, with decoupled weight decay, scaled by GSNR.

        p ← β₃p + (1−β₃)r;   p̂ = p/(1−β₃ᵗ);   ĝ = p̂·g
        m ← β₁m + (1−β₁)ĝ;   v ← β₂v + (1−β₂)s²
        μ_t = β₁(1 − ½·0.96ᵗ);   Π_t = μ₁⋯μ_t
        m̂ = μ_{{t+1}}·m/(1 − Π_{{t+1}}) + (1 − μ_t)·ĝ/(1 − Π_t);   u = m̂/(√v̂ + ε)
        θ ← θ − λ·wd·θ − λu

    Args:
        learning_rate: λ. Float, schedule or callable. Defaults to 0.001.
        {ADAM_ARGUMENTS} `epsilon` defaults to 1e-7.
        {FAMILY_ARGUMENTS.format(default_exclusion="none is excluded")}

    References: Jiang et al., arXiv 2309.13681; Dozat 2016, and keras.optimizers.Nadam.
    """

    rule_class = Nadam

    def __init__(
        self,
        learning_rate=0.001,
        beta_1=0.9,
        beta_2=0.999,
        beta_3=0.9,
        epsilon=1e-7,
        second_moment=None,
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
        second_moment = second_moment_of(second_moment, estimator)
        super().__init__(**given(locals()))
