"""What users of DeepSpeed are used to: it works where it can, else it names what replaces it."""

import keras

from gsnr_tf.engine.errors import ConfigError, shown

_BATCH = "engine.train_batch((x, y)) makes a whole update, engine.fit(...) an epoch"
# Attributes of DeepSpeed's engine -> what to call.
REPLACED = {
    "backward": _BATCH,
    "step": _BATCH,
    "forward": "engine.model(x) computes outputs, and engine.train_batch((x, y)) makes an update",
    "zero_grad": "gradients begin anew with each update; leave it out",
    "allreduce_gradients": "gradients are reduced once in each update; leave it out",
    "no_sync": "gradients are reduced once in each update; leave it out",
    "set_lr": "engine.optimizer.learning_rate = 0.001, or a `scheduler`",
    "set_train_batch_size": "gsnr.batch_ramp in the configuration lets the batch grow",
    "set_train_micro_batch_size": "`train_micro_batch_size_per_gpu` in the configuration",
    "set_dataloader": "initialize(training_data=...), or engine.fit(x, y)",
    "deepspeed_io": "initialize(training_data=...), which the engine makes batches of",
    "save_16bit_model": "engine.model.save('model.keras')",
    "save_fp16_model": "engine.model.save('model.keras')",
    "module_state_dict": "engine.model.get_weights()",
    "state_dict": "engine.model.get_weights(), or engine.save_checkpoint(folder)",
    "load_state_dict": "engine.load_checkpoint(folder)",
    "load_module_state_dict": "engine.load_checkpoint(folder, load_module_only=True)",
    "parameters": "engine.model.trainable_variables",
    "named_parameters": "engine.model.trainable_variables, which have a path",
    "global_rank": "gsnr_tf.rank()",
    "local_rank": "the environment variable HOROVOD_LOCAL_RANK, an integer",
    "world_size": "gsnr_tf.size()",
    "device": "TensorFlow places tensors by itself; leave it out",
    "to": "TensorFlow places tensors by itself; leave it out",
    "inference_batch": "engine.model.predict(x)",
    "gradient_clipping": "engine.config.gradient_clipping",
    "fp16_enabled": "engine.config.fp16.enabled",
    "bfloat16_enabled": "engine.config.bf16.enabled",
    "zero_optimization_stage": "engine.config.zero_optimization.stage",
    "compile": "the train step is a TensorFlow graph already; leave it out",
}
# Arguments of deepspeed.initialize -> what to do instead.
ARGUMENTS = {
    "mpu": "ranks share out examples only; leave it out",
    "mesh_param": "ranks share out examples only; leave it out",
    "dist_init_required": "ranks find each other as gsnr_tf is imported; leave it out",
    "distributed_port": "`gsnr-tf run` chooses it; leave it out",
    "collate_fn": "map the tf.data.Dataset that training_data is",
}


def configuration(config, args, config_params, others, model, model_parameters):
    """The configuration among what is given as to deepspeed.initialize.

    Raises:
        ConfigError: It is given twice or not at all, or something is given that cannot be
            honoured, with what to do.
    """
    if not isinstance(model, keras.Model):
        raise ConfigError(
            "initialize takes the model first, a keras.Model. Received: "
            f"{type(model).__name__}. Give DeepSpeed's `args` by its name: args=args."
        )
    for name, advice in ARGUMENTS.items():
        if others.get(name) is not None:
            raise ConfigError(f"{name} of deepspeed.initialize has no place here: {advice}.")
        others.pop(name, None)
    trained = [id(variable) for variable in model.trainable_variables]
    if model_parameters is not None and [id(v) for v in model_parameters] != trained:
        raise ConfigError(
            "model_parameters must be model.trainable_variables, or be left out: which layers"
            " are trained is said by layer.trainable, and coefficients of single variables by"
            " the optimizer (l2={'pattern': 0.01})."
        )
    of_args = None
    if args is not None:
        of_args = getattr(args, "deepspeed_config", None) or getattr(args, "deepscale_config", None)
    given = [one for one in (config, config_params, of_args) if one is not None]
    if not given:
        raise ConfigError(
            "There is no configuration. Give initialize config='ds_config.json', a dict, or"
            " args with the attribute deepspeed_config."
        )
    if any(one != given[0] for one in given):
        raise ConfigError(
            "config, config_params and args.deepspeed_config are one thing, and differ."
            f" Received: {', '.join(map(shown, given))}"
        )
    return given[0]


class DeepSpeedHabits:
    """What an `Engine` has for users of DeepSpeed."""

    def __iter__(self):
        """`engine, optimizer, loader, scheduler = initialize(...)`."""
        loader = None if self._data is None else Loader(self)
        return iter((self, self.optimizer, loader, Scheduler(self)))

    def __call__(self, *inputs, **named):
        raise RuntimeError(
            "There is no way back from the outputs of engine(x) in Keras:"
            f" {_BATCH}; engine.model(x) computes outputs alone."
        )

    def __getattr__(self, name):
        # Called for what is not there.
        if name in REPLACED:
            raise AttributeError(f"engine.{name} of DeepSpeed is not here: {REPLACED[name]}.")
        raise AttributeError(f"{type(self).__name__} has no {name!r}.")

    @property
    def module(self):
        """The `keras.Model`."""
        return self.model

    def train(self, mode=True):
        """Nothing: Keras layers are told with each call. Returns the engine."""
        return self

    def eval(self):
        """Nothing: Keras layers are told with each call. Returns the engine."""
        return self

    def is_gradient_accumulation_boundary(self):
        """Whether an update ends with the next micro-batch: always, since `train_batch`
        makes whole updates."""
        return True


class Loader:
    """The third of the values that DeepSpeed's initialize returns: its length alone."""

    def __init__(self, engine):
        self._engine = engine

    def __len__(self):
        """Micro-batches of an epoch on one rank."""
        return self._engine.micro_batches_of_an_epoch()

    def __iter__(self):
        raise RuntimeError(
            "The engine takes its micro-batches itself: engine.train_batch() makes an update"
            " of the next ones, engine.fit(...) an epoch."
        )


class Scheduler:
    """The fourth of them: it tells the rate, which goes on by itself."""

    def __init__(self, engine):
        self._engine = engine

    def get_lr(self):
        """List with the learning rate of the next update."""
        return self._engine.get_lr()

    get_last_lr = get_lr

    def step(self, *_):
        raise RuntimeError("The schedule goes on with each update by itself; leave step() out.")


def parts_of(batches, number):
    """So many micro-batches of an iterator, as DeepSpeed's train_batch(data_iter) takes them.

    Raises:
        ValueError: It ends before, or gives something else than tuples.
    """
    parts = []
    for _ in range(number):
        part = next(batches, None)
        if part is None:
            raise ValueError(
                f"The iterator ended after {len(parts)} of {number} micro-batches of an update."
            )
        if not isinstance(part, (tuple, list)) or not 2 <= len(part) <= 3:
            raise ValueError(
                "Each micro-batch must be (x, y) or (x, y, sample_weight). Received: "
                f"{type(part).__name__}"
            )
        parts.append(tuple(part))
    return parts
