"""DeepSpeed's keys that have no counterpart here, and what to do instead."""

_STAGE_3 = "parameters are not divided between ranks (ZeRO stage 3); use stage 2 and leave it out"
_OFFLOAD = (
    "nothing is moved to the host or to disk; use stage 2, which divides optimizer"
    " state by the number of ranks, and leave it out"
)
_TUNED = "it changes speed in DeepSpeed, never results, and has no meaning here; leave it out"
_COMPRESSED = "gradients are not quantized; `communication_data_type` chooses what travels"
_ONE_BIT = "1-bit optimizers do not exist here; use 'GSNRLamb', 'GSNRAdam', 'Lamb' or 'Adam'"
_MODEL = "the model is Keras' to define; put it into the model and leave it out"

# Dotted path of a key -> advice. A path ends the search: what is below it is not looked
# at.
UNSUPPORTED = {
    "amp": "Apex AMP does not exist for Keras; use `fp16` or `bf16`",
    "bfloat16": "its name here is `bf16`",
    "prescale_gradients": ("gradients are averaged in float32 and cannot overflow; leave it out"),
    "gradient_predivide_factor": "gradients are averaged in float32; leave it out",
    "sparse_gradients": (
        "sparse gradients of embeddings are recognised by themselves; leave it out"
    ),
    "disable_allgather": _TUNED,
    "dataloader_drop_last": (
        "an epoch is a whole number of updates, always: the engine drops "
        "the rest and shuffles again; leave it out"
    ),
    "dump_state": ("`gsnr-tf config check FILE --np N` prints the resolved configuration"),
    "memory_breakdown": "`flops_profiler` tells the memory of each rank",
    "activation_checkpointing": (
        "wrap layers in keras.RematScope where the model is made, and leave it out"
    ),
    "sparse_attention": _MODEL,
    "data_efficiency": "sample and route in the tf.data pipeline, and leave it out",
    "curriculum_learning": ("order the examples in the tf.data pipeline, and leave it out"),
    "progressive_layer_drop": _MODEL,
    "eigenvalue": _MODEL,
    "pipeline": "models are not divided into stages; leave it out",
    "tensor_parallel": "models are not divided between ranks; leave it out",
    "hybrid_engine": "there is no inference engine; use model.predict",
    "compression_training": ("quantize with model.quantize after training, and leave it out"),
    "quantize_training": ("quantize with model.quantize after training, and leave it out"),
    "weight_quantization": ("quantize with model.quantize after training, and leave it out"),
    "wandb": ("use `tensorboard` or `csv_monitor`, or pass W&B's Keras callback to engine.fit"),
    "comet": ("use `tensorboard` or `csv_monitor`, or pass Comet's Keras callback to engine.fit"),
    "elasticity": (
        "fix `train_batch_size` and `train_micro_batch_size_per_gpu` and leave "
        "`gradient_accumulation_steps` out: it then follows the number of ranks"
    ),
    "comms_logger": "set HOROVOD_TIMELINE to a file name to see every collective",
    "checkpoint": (
        "tags are always agreed between ranks, any number of ranks may load, and "
        "rank 0 writes; leave it out"
    ),
    "data_types": "gradients are accumulated in float32; leave it out",
    "aio": _OFFLOAD,
    "nebula": ("checkpoints go to the folder that is given to save_checkpoint; leave it out"),
    "timers": "`wall_clock_breakdown` prints the times",
    "graph_harvesting": "train steps are TensorFlow graphs already; leave it out",
    "zero_allow_untested_optimizer": ("every optimizer of the family can be divided; leave it out"),
    "zero_force_ds_cpu_optimizer": _OFFLOAD,
    "seq_parallel_communication_data_type": "sequences are not divided; leave it out",
    "use_data_before_expert_parallelism": ("there is no expert parallelism; leave it out"),
    "vocabulary_size": _MODEL,
    "fp16.auto_cast": "Keras casts inputs by itself; leave it out",
    "fp16.consecutive_hysteresis": ("hysteresis refills when the scale grows; leave it out"),
    "fp16.fp16_master_weights_and_grads": "variables stay float32; leave it out",
    "bf16.immediate_grad_update": "variables stay float32; leave it out",
    "optimizer.legacy_fusion": _TUNED,
    "zero_optimization.allgather_partitions": _TUNED,
    "zero_optimization.allgather_bucket_size": ("`reduce_bucket_size` serves both directions"),
    "zero_optimization.overlap_comm": _TUNED,
    "zero_optimization.reduce_scatter": _TUNED,
    "zero_optimization.contiguous_gradients": _TUNED,
    "zero_optimization.use_multi_rank_bucket_allreduce": _TUNED,
    "zero_optimization.round_robin_gradients": _TUNED,
    "zero_optimization.grad_hooks": _TUNED,
    "zero_optimization.legacy_stage1": _TUNED,
    "zero_optimization.override_module_apply": _TUNED,
    "zero_optimization.pipeline_loading_checkpoint": _TUNED,
    "zero_optimization.log_trace_cache_warnings": _TUNED,
    "zero_optimization.memory_efficient_linear": _MODEL,
    "zero_optimization.load_from_fp32_weights": "variables are float32; leave it out",
    "zero_optimization.elastic_checkpoint": ("any number of ranks may load; leave it out"),
    "zero_optimization.ignore_unused_parameters": (
        "variables without a gradient are left alone; leave it out"
    ),
    "zero_optimization.offload_param": _OFFLOAD,
    "zero_optimization.offload_optimizer": _OFFLOAD,
    "zero_optimization.cpu_offload": _OFFLOAD,
    "zero_optimization.cpu_offload_param": _OFFLOAD,
    "zero_optimization.cpu_offload_use_pin_memory": _OFFLOAD,
    "zero_optimization.sub_group_size": _STAGE_3,
    "zero_optimization.zero_hpz_partition_size": _STAGE_3,
    "zero_optimization.zero_quantized_weights": _COMPRESSED,
    "zero_optimization.zero_quantized_nontrainable_weights": _COMPRESSED,
    "zero_optimization.zero_quantized_gradients": _COMPRESSED,
    "zero_optimization.zeropp_loco_param": _COMPRESSED,
    "zero_optimization.mics_shard_size": _STAGE_3,
    "zero_optimization.mics_hierarchical_params_gather": _STAGE_3,
    "autotuning.exps_dir": "trials are kept in `results_dir`; leave it out",
    "autotuning.overwrite": "trials are written anew each time; leave it out",
    "autotuning.metric": "it is throughput; leave it out",
    "autotuning.metric_path": "it is throughput; leave it out",
    "autotuning.fast": ("stages other than the configuration's are not tried; leave it out"),
    "autotuning.max_train_batch_size": ("`train_batch_size` stays as it is; leave it out"),
    "autotuning.min_train_batch_size": ("`train_batch_size` stays as it is; leave it out"),
    "autotuning.mp_size": "models are not divided between ranks; leave it out",
    "autotuning.tuner_type": "there are few trials, and all are made; leave it out",
    "autotuning.tuner_early_stopping": (
        "the search ends where larger micro-batches are slower; leave it out"
    ),
    "autotuning.tuner_num_trials": "use `num_tuning_micro_batch_sizes`",
    "autotuning.arg_mappings": "the engine reads the sizes of a trial by itself",
    "autotuning.model_info": "nothing needs to be known of the model; leave it out",
    "autotuning.model_info_path": ("nothing needs to be known of the model; leave it out"),
    "autotuning.max_train_micro_batch_size_per_gpu": ("use `num_tuning_micro_batch_sizes`"),
    "autotuning.min_train_micro_batch_size_per_gpu": ("use `num_tuning_micro_batch_sizes`"),
    "flops_profiler.module_depth": ("operations are counted of the whole train step; leave it out"),
    "flops_profiler.top_modules": ("operations are counted of the whole train step; leave it out"),
    "flops_profiler.detailed": ("operations are counted of the whole train step; leave it out"),
    "flops_profiler.recompute_fwd_factor": (
        "what is recomputed is in the graph, and counted; leave it out"
    ),
}

# Families of keys that DeepSpeed spells with a common beginning.
UNSUPPORTED_PREFIXES = {"zero_optimization.stage3_": _STAGE_3}

# Values of known keys.
UNSUPPORTED_VALUES = {
    ("zero_optimization.stage", 3): (
        "parameters are not divided between ranks; use stage 2, "
        "which divides optimizer state and the work of an update"
    )
}

OPTIMIZERS = {
    "onebitadam": _ONE_BIT,
    "onebitlamb": _ONE_BIT,
    "zerooneadam": _ONE_BIT,
    "muadam": "scale learning rates yourself and use 'Adam'",
    "muadamw": "scale learning rates yourself and use 'AdamW'",
    "musgd": "scale learning rates yourself and use 'SGD'",
    "muon": "use 'GSNRLamb' or another optimizer of Keras",
    "cpuadam": "nothing is moved to the host; use 'Adam'",
    "fusedadam": "use 'Adam'",
    "fusedlamb": "use 'Lamb'",
}

# Names of arguments that both worlds have.
OPTIMIZER_ARGUMENTS = {"lr": "learning_rate", "eps": "epsilon"}

OPTIMIZER_PARAMS = {
    "torch_adam": "there is one implementation; leave it out",
    "adam_w_mode": "weight decay is decoupled, always; leave it out",
    "bias_correction": "moments are corrected, always; leave it out",
    "max_grad_norm": "use `gradient_clipping`",
    "max_coeff": "trust ratios have no bounds; leave it out",
    "min_coeff": "trust ratios have no bounds; leave it out",
    "cuda_aware": _ONE_BIT,
    "comm_backend_name": _ONE_BIT,
    "freeze_step": _ONE_BIT,
}

SCHEDULER_PARAMS = {
    "last_batch_iteration": ("load_checkpoint restores the number of updates; leave it out"),
    "cycle_momentum": "momentum stays what the optimizer was given; leave it out",
    "cycle_min_mom": "momentum stays what the optimizer was given; leave it out",
    "cycle_max_mom": "momentum stays what the optimizer was given; leave it out",
    "decay_mom_rate": "momentum stays what the optimizer was given; leave it out",
    "cycle_first_stair_count": "DeepSpeed reads it and has no stairs; leave it out",
    "cycle_second_stair_count": "DeepSpeed reads it and has no stairs; leave it out",
}


def advice(path):
    """What to do about DeepSpeed's key at a dotted path; `None` for others."""
    for prefix, text in UNSUPPORTED_PREFIXES.items():
        if path.startswith(prefix):
            return text
    return UNSUPPORTED.get(path)
