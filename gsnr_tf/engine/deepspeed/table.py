"""DeepSpeed's keys in one table: what becomes of each that this engine has no key for.

A key that is not here and not in `config.py` is unknown, an error. The table tells three
classes apart; keys of the same meaning are the fields of `config.py` themselves.
"""

import enum
import fnmatch
from collections.abc import Callable
from typing import Any, NamedTuple


class Kind(enum.Enum):
    """What becomes of a key. The value is its heading in notices and pages."""

    NO_EFFECT = "No effect here"
    OTHER_ROUNDING = "Runs another way, with other rounding"
    REFUSED = "Changes results and cannot be honoured"


# Headings besides those of the three classes.
DEFAULT = "DeepSpeed's default"
AUTO = 'Written as "auto"'
NEEDED = "Must be given to initialize(auto=…)"


class Decision(NamedTuple):
    """What was made of a key that this engine does not have, or that was left open.

    Attributes:
        heading: String: a value of `Kind`, `DEFAULT`, `AUTO` or `NEEDED`.
        key: Dotted path.
        text: What becomes of it.
    """

    heading: str
    key: str
    text: str


class Row(NamedTuple):
    """What becomes of a key.

    Attributes:
        kind: The `Kind`.
        why: String, what happens instead; of a refused key the way out.
        off: Function of a value: whether it only switches the key off, or repeats
            DeepSpeed's default. Such a value has no effect, whatever the kind.
    """

    kind: Kind
    why: str
    off: Callable[[Any], bool] = lambda value: False


def no_effect(why):
    return Row(Kind.NO_EFFECT, why)


def rounding(why, off=lambda value: False):
    return Row(Kind.OTHER_ROUNDING, why, off)


def refused(why, off=lambda value: False):
    return Row(Kind.REFUSED, why, off)


def is_false(value):
    return value in (False, None, "false", "False")


def is_one_of(*values):
    return lambda value: any(value is v or (value == v and type(value) is not bool) for v in values)


def disabled(value):
    """Whether nothing in a section, at any depth, has `enabled` true."""
    if not isinstance(value, dict):
        return is_false(value)
    if not is_false(value.get("enabled")):
        return False
    return all(disabled(inner) for inner in value.values() if isinstance(inner, dict))


SPEED = "changes speed and memory in DeepSpeed, never results"
_STAGE_3 = "belongs to parameters that are divided between ranks; here each rank has them whole"
_OFFLOAD = "nothing is moved to the host or to disk"
_MODEL = "the model is Keras' to define"
_PARALLEL = (
    "ranks share out the examples only; leave it out, and give a model that fits on one rank"
)
_QUANTIZED = "what travels is not quantized"
_FLOAT32 = "weights, accumulated gradients and optimizer state stay float32"
_FAMILY = "optimizers of the GSNR family have"

# Dotted path of a key, or a pattern of paths -> row. What is below a path belongs to it.
KEYS = {
    # ---- how it is computed and stored: no result depends on it
    "activation_checkpointing": no_effect("wrap layers in keras.RematScope to save memory"),
    "aio": no_effect(_OFFLOAD),
    "nebula": no_effect("checkpoints go to the folder that save_checkpoint is given"),
    "datastates": no_effect("checkpoints go to the folder that save_checkpoint is given"),
    "checkpoint": no_effect(
        "all ranks agree on tags, rank 0 writes, and any number of ranks may load"
    ),
    "compile": no_effect("the train step is a TensorFlow graph already"),
    "graph_harvesting": no_effect("the train step is a TensorFlow graph already"),
    "comms_logger": no_effect("HOROVOD_TIMELINE=FILE records every collective"),
    "comms_config": no_effect("HOROVOD_TIMELINE=FILE records every collective"),
    "communication_logger": no_effect("HOROVOD_TIMELINE=FILE records every collective"),
    "dataloader_drop_last": no_effect("an epoch is a whole number of updates, always"),
    "disable_allgather": no_effect(SPEED),
    "cuda_visible_devices": no_effect("the launcher and the environment choose devices"),
    "dump_state": no_effect("`gsnr-tf config check` prints the resolved configuration"),
    "log_level": no_effect("Python's logging decides, by the name gsnr_tf"),
    "memory_breakdown": no_effect("`flops_profiler` tells the memory of each rank"),
    "timers": no_effect("`wall_clock_breakdown` prints the times"),
    "wandb": no_effect("pass W&B's Keras callback to engine.fit"),
    "comet": no_effect("pass Comet's Keras callback to engine.fit"),
    "hybrid_engine": no_effect("model.predict serves, as for every Keras model"),
    "pipeline": no_effect("concerns pipeline modules alone"),
    "managed_gradient_accumulation": refused(
        "the engine counts micro-batches; leave it out", is_one_of(True)
    ),
    "sparse_attention": no_effect(_MODEL),
    "eigenvalue": no_effect("serves quantization in training alone"),
    "vocabulary_size": no_effect(_MODEL),
    "weight_quantization": no_effect("concerns inference alone"),
    "sparse_gradients": no_effect("sparse gradients are recognised by themselves"),
    "zero_allow_untested_optimizer": no_effect("every optimizer is let through"),
    "zero_force_ds_cpu_optimizer": no_effect(_OFFLOAD),
    "allgather_size": no_effect(SPEED),
    "use_data_before_expert_parallelism": no_effect("there is no expert parallelism"),
    "seq_parallel_communication_data_type": no_effect("sequences are not divided"),
    "optimizer.legacy_fusion": no_effect(SPEED),
    **{
        f"autotuning.{key}": no_effect("`gsnr-tf tune` has a search of its own")
        for key in (
            "fast",
            "metric",
            "metric_path",
            "model_info",
            "model_info_path",
            "mp_size",
            "max_train_batch_size",
            "min_train_batch_size",
            "max_train_micro_batch_size_per_gpu",
            "min_train_micro_batch_size_per_gpu",
            "tuner_type",
            "tuner_early_stopping",
            "tuner_num_trials",
            "overwrite",
            "exps_dir",
            "arg_mappings",
        )
    },
    "flops_profiler.module_depth": no_effect("operations are counted of the whole train step"),
    "flops_profiler.top_modules": no_effect("operations are counted of the whole train step"),
    "flops_profiler.detailed": no_effect("operations are counted of the whole train step"),
    "flops_profiler.recompute_fwd_factor": no_effect("what is recomputed is counted"),
    "fp16.auto_cast": no_effect("Keras casts inputs by itself"),
    "fp16.opt_level": no_effect("is Apex' and not read by DeepSpeed"),
    "bf16.immediate_grad_update": no_effect(SPEED),
    "bf16.loss_scale": no_effect("bfloat16 needs no loss scale"),
    "bf16.loss_scale_window": no_effect("bfloat16 needs no loss scale"),
    "bf16.initial_scale_power": no_effect("bfloat16 needs no loss scale"),
    "bf16.min_loss_scale": no_effect("bfloat16 needs no loss scale"),
    "bf16.hysteresis": no_effect("bfloat16 needs no loss scale"),
    "bf16.auto_cast": no_effect("Keras casts inputs by itself"),
    "bf16.check_overflow": no_effect("updates that are not finite are skipped, always"),
    # ---- ZeRO: what divides memory and orders communication
    "zero_optimization.contiguous_gradients": no_effect(SPEED),
    "zero_optimization.reduce_scatter": no_effect(SPEED),
    "zero_optimization.overlap_comm": no_effect(SPEED),
    "zero_optimization.allgather_partitions": no_effect(SPEED),
    "zero_optimization.allgather_bucket_size": no_effect("`reduce_bucket_size` serves both ways"),
    "zero_optimization.use_multi_rank_bucket_allreduce": no_effect(SPEED),
    "zero_optimization.round_robin_gradients": no_effect(SPEED),
    "zero_optimization.grad_hooks": no_effect(SPEED),
    "zero_optimization.legacy_stage1": no_effect(SPEED),
    "zero_optimization.override_module_apply": no_effect(SPEED),
    "zero_optimization.memory_efficient_linear": no_effect(SPEED),
    "zero_optimization.sub_group_size": no_effect(SPEED),
    "zero_optimization.log_trace_cache_warnings": no_effect(SPEED),
    "zero_optimization.enable_sanity_checks": no_effect("`gsnr.consistency_check` compares ranks"),
    "zero_optimization.leaf_module": no_effect(_STAGE_3),
    "zero_optimization.pipeline_loading_checkpoint": no_effect(SPEED),
    "zero_optimization.ignore_unused_parameters": no_effect(
        "variables without a gradient are left as they are"
    ),
    "zero_optimization.load_from_fp32_weights": no_effect("variables are float32, always"),
    "zero_optimization.elastic_checkpoint": no_effect("any number of ranks may load"),
    "zero_optimization.save_muon_momentum_buffer_in_memory": no_effect(_OFFLOAD),
    "zero_optimization.mics_shard_size": no_effect(_STAGE_3),
    "zero_optimization.mics_hierarchical_params_gather": no_effect(_STAGE_3),
    "zero_optimization.zero_hpz_partition_size": no_effect(_STAGE_3),
    "zero_optimization.offload_optimizer": no_effect(_OFFLOAD),
    "zero_optimization.offload_param": no_effect(_OFFLOAD),
    "zero_optimization.cpu_offload": no_effect(_OFFLOAD),
    "zero_optimization.cpu_offload_param": no_effect(_OFFLOAD),
    "zero_optimization.cpu_offload_params": no_effect(_OFFLOAD),
    "zero_optimization.cpu_offload_use_pin_memory": no_effect(_OFFLOAD),
    "zero_optimization.stage3_*": no_effect(_STAGE_3),
    "zero_optimization.prefetch_bucket_size": no_effect(_STAGE_3),
    "zero_optimization.param_persistence_threshold": no_effect(_STAGE_3),
    "zero_optimization.model_persistence_threshold": no_effect(_STAGE_3),
    "zero_optimization.max_live_parameters": no_effect(_STAGE_3),
    "zero_optimization.max_reuse_distance": no_effect(_STAGE_3),
    "zero_optimization.gather_16bit_weights_on_model_save": no_effect(_STAGE_3),
    "zero_optimization.gather_fp16_weights_on_model_save": no_effect(_STAGE_3),
    "zero_optimization.module_granularity_threshold": no_effect(_STAGE_3),
    "zero_optimization.use_all_reduce_for_fetch_params": no_effect(_STAGE_3),
    "zero_optimization.allgather_sequential": no_effect(_STAGE_3),
    # ---- the same mathematics in other steps
    "prescale_gradients": rounding(
        "gradients are averaged in float32, and not divided before that", is_false
    ),
    "gradient_predivide_factor": rounding(
        "gradients are averaged in float32, and not divided before that", is_one_of(1, 1.0)
    ),
    "data_types": rounding(
        _FLOAT32,
        lambda value: (
            isinstance(value, dict)
            and all(v in (None, "fp32", "float32", "float") for v in value.values())
        ),
    ),
    "fp16.fp16_master_weights_and_grads": rounding(_FLOAT32, is_false),
    "bf16.bf16_master_weights_and_grads": rounding(_FLOAT32, is_false),
    "bf16.bf16_optimizer_states": rounding(_FLOAT32, is_false),
    "zero_optimization.zero_quantized_weights": rounding(_QUANTIZED, is_false),
    "zero_optimization.zero_quantized_nontrainable_weights": rounding(_QUANTIZED, is_false),
    "zero_optimization.zero_quantized_gradients": rounding(_QUANTIZED, is_false),
    "zero_optimization.zeropp_loco_param": rounding(_QUANTIZED, is_false),
    # ---- other results
    "amp": refused("Apex AMP does not exist for Keras; use `fp16` or `bf16`", disabled),
    "torch_autocast": refused(
        'write "bf16": {"enabled": true}, or `fp16`, for mixed precision', disabled
    ),
    "bf16.check_grad_overflow": refused(
        "updates that are not finite are skipped, always; leave it out", is_one_of(True)
    ),
    "fp16.consecutive_hysteresis": refused(
        "`hysteresis` refills when the scale grows; leave it out, or set `hysteresis` to 1,"
        " with which both are the same",
        is_false,
    ),
    "gradient_allreduce_op": refused(
        "gradients are averaged; multiply the learning rate by the number of ranks, with an"
        " optimizer whose step grows with the gradient, and leave it out",
        is_one_of("mean", "MEAN", "Mean"),
    ),
    "data_efficiency": refused("sample and route in the tf.data pipeline", disabled),
    "curriculum_learning": refused("order the examples in the tf.data pipeline", disabled),
    "progressive_layer_drop": refused(f"{_MODEL}: drop layers there, and leave it out", disabled),
    "compression_training": refused(
        "quantize with model.quantize after training, and leave it out", disabled
    ),
    "quantize_training": refused(
        "quantize with model.quantize after training, and leave it out",
        lambda value: isinstance(value, dict) and value.get("enabled") is False,
    ),
    "elasticity": refused(
        "fix `train_batch_size` and `train_micro_batch_size_per_gpu` and leave "
        "`gradient_accumulation_steps` out, which then follows the number of ranks",
        disabled,
    ),
    "tensor_parallel": refused(
        _PARALLEL, lambda value: isinstance(value, dict) and value.get("autotp_size") in (0, 1)
    ),
    "expert_parallel": refused(_PARALLEL, disabled),
    "sequence_parallel_size": refused(_PARALLEL, is_one_of(1)),
    "zero_optimization.zenflow": refused(
        "updates wait for the whole gradient, always; leave it out", is_false
    ),
}

# What stage 3 comes to, with the GSNR family and with other optimizers.
STAGE_3 = (
    "optimizer state and gradients are divided between ranks as by stage 2, parameters are"
    " whole on each: 4 bytes of memory a parameter and rank"
)
STAGE_3_WHOLE = (
    "parameters, gradients and optimizer state are whole on each rank: 4 bytes of memory a"
    " parameter and rank for each of them and each slot of the optimizer. The GSNR family"
    " divides all but the parameters, and with gsnr.gamma 1 and gsnr.ceiling 1 its rules are"
    " plain ones"
)
STATE_KEPT_WHOLE = (
    "each rank keeps all optimizer state: only the GSNR family divides it, and with"
    " gsnr.gamma 1 and gsnr.ceiling 1 its rules are plain ones"
)

# ---- optimizers

_ONE_BIT = "runs uncompressed, by the rule of its warm-up stage: {}, without bias correction"
# Names of DeepSpeed, in lower case -> names of the classes in `optimizers.py`, and how they
# run, where it is another way.
OPTIMIZERS = {
    "adam": ("DeepSpeedAdam", None),
    "adamw": ("DeepSpeedAdam", None),
    "fusedadam": ("DeepSpeedAdam", None),
    "cpuadam": ("DeepSpeedAdam", None),
    "deepspeedcpuadam": ("DeepSpeedAdam", None),
    "lamb": ("DeepSpeedLamb", None),
    "fusedlamb": ("DeepSpeedLamb", None),
    "sgd": ("DeepSpeedSGD", None),
    "lion": ("DeepSpeedLion", None),
    "adagrad": ("DeepSpeedAdagrad", None),
    "onebitadam": ("DeepSpeedAdam", _ONE_BIT.format("AdamW's")),
    "zerooneadam": ("DeepSpeedAdam", _ONE_BIT.format("AdamW's, its variance always current")),
    "onebitlamb": ("DeepSpeedLamb", _ONE_BIT.format("LAMB's")),
}
ONE_BIT = ("onebitadam", "zerooneadam", "onebitlamb")

_MU = "scale learning rates yourself and use '{}'"
# Names, in lower case, of DeepSpeed and of torch.optim, which it falls back to.
REFUSED_OPTIMIZERS = {
    "muadam": _MU.format("Adam"),
    "muadamw": _MU.format("AdamW"),
    "musgd": _MU.format("SGD"),
    "muon": "its rule is not DeepSpeed's here; write 'keras.Muon' for Keras' own, or 'AdamW'",
    "rmsprop": "torch's rule has other formulas; write 'keras.RMSprop' for Keras' own",
    "adadelta": "torch's rule has other formulas; write 'keras.Adadelta' for Keras' own",
    "adamax": "torch's rule has other formulas; write 'keras.Adamax' for Keras' own",
    "adafactor": "torch's rule has other formulas; write 'keras.Adafactor' for Keras' own",
    "radam": "use 'AdamW', or a Keras optimizer with initialize(optimizer=…)",
    "asgd": "use 'SGD' with use_ema",
    "rprop": "use 'Adam'",
    "lbfgs": "use 'AdamW'",
    "sparseadam": "use 'Adam', which takes sparse gradients",
}

# Names of arguments that both worlds have.
ARGUMENT_NAMES = {"lr": "learning_rate", "eps": "epsilon"}

_LEFT_TO_DEEPSPEED = no_effect(SPEED)
_COMPRESSION = rounding("nothing is compressed, so that nothing is frozen for it")
# Arguments of an optimizer that none of the classes takes.
OPTIMIZER_PARAMS = {
    "set_grad_none": _LEFT_TO_DEEPSPEED,
    "foreach": _LEFT_TO_DEEPSPEED,
    "fused": _LEFT_TO_DEEPSPEED,
    "capturable": _LEFT_TO_DEEPSPEED,
    "differentiable": _LEFT_TO_DEEPSPEED,
    "fp32_optimizer_states": _LEFT_TO_DEEPSPEED,
    "cuda_aware": _LEFT_TO_DEEPSPEED,
    "comm_backend_name": _LEFT_TO_DEEPSPEED,
    "freeze_step": _COMPRESSION,
    "var_freeze_step": _COMPRESSION,
    "var_update_scaler": _COMPRESSION,
    "local_step_scaler": _COMPRESSION,
    "local_step_clipper": _COMPRESSION,
    "coeff_beta": _COMPRESSION,
    "factor_max": _COMPRESSION,
    "factor_min": _COMPRESSION,
    "factor_threshold": _COMPRESSION,
    "amsgrad": refused("use 'keras.AdamW', which has it, or leave it out", is_false),
    "maximize": refused("change the sign of the loss, and leave it out", is_false),
    "eps_inside_sqrt": refused("eps is added to the root; leave it out", is_false),
    "max_grad_norm": refused("use `gradient_clipping`, as DeepSpeed asks for, too"),
}
# Arguments of DeepSpeed's that the GSNR family and Keras' own do not take.
DEEPSPEED_PARAMS = {
    "torch_adam": no_effect("there is one implementation"),
    "bias_correction": refused("moments are corrected, always; leave it out", is_one_of(True)),
    "adam_w_mode": refused(
        f"weight decay is decoupled; leave it out. For L2, {_FAMILY} `l2`", is_one_of(True)
    ),
    "max_coeff": refused("trust ratios have no bounds; leave it out"),
    "min_coeff": refused("trust ratios have no bounds; leave it out"),
}

# ---- schedules

_MOMENTUM = "momentum is not cycled"
SCHEDULER_PARAMS = {
    "last_batch_iteration": refused(
        "load_checkpoint restores the number of updates; leave it out", is_one_of(-1)
    ),
    "cycle_min_mom": no_effect(_MOMENTUM),
    "cycle_max_mom": no_effect(_MOMENTUM),
    "decay_mom_rate": no_effect(_MOMENTUM),
}
CYCLES_MOMENTUM = (
    "true, which is DeepSpeed's default, would cycle the betas of the optimizer, which stay"
    ' as they are here. Write "cycle_momentum": false.'
)
GRADIENT_CLIPPING = 1.0


def refused_optimizer(name):
    """The way out of an optimizer that is not there; `None` for others."""
    if name == "NAdam":
        return "torch's rule has other formulas; write 'Nadam' for Keras' own"
    return REFUSED_OPTIMIZERS.get(name.lower())


def row(path):
    """The `Row` of a dotted path, or `None`."""
    if path in KEYS:
        return KEYS[path]
    patterns = (key for key in KEYS if "*" in key)
    return next((KEYS[key] for key in patterns if fnmatch.fnmatchcase(path, key)), None)
