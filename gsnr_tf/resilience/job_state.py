"""What there is to keep of a job: weights, the optimizer's state, random numbers."""

import json
import random

import numpy as np
import tensorflow as tf

from gsnr_tf.callbacks.seeds import is_seed
from gsnr_tf.optimizers.inner import inner_optimizer, rate_variable
from gsnr_tf.resilience.array_file import DTYPES, Array
from gsnr_tf.resilience.checkpoint_files import CheckpointError

# How the work is divided and sent, which may differ from job to job.
_DIVISION = {
    "name",
    "gradient_accumulation_steps",
    "communicator",
    "bucket_bytes",
    "communication_dtype",
    "sharding",
}


def variables(model):
    """Dict of the lists of what a checkpoint keeps, by group, in a fixed order.

    All state means the same for any number of ranks. Left out of the optimizer's are
    the count of calls, the size of the window and where a schedule is, which depend on
    how an update is divided into micro-batches, and what a window has accumulated, which
    is nothing between updates. Left out of the model's are random seeds, which are each rank's own.
    """
    left_out = {id(variable) for variable in inner_optimizer(model).division_state()}
    state = [v for v in model.optimizer.full_state() if id(v) not in left_out]
    weights = [variable for variable in model.variables if not is_seed(variable)]
    return {"weights": weights, "optimizer": state}


def arrays(model):
    """The same as `variables`, as `Array`s, which copy a variable when it is asked for.

    A slot that is kept in slices is then read from all ranks.
    """
    return {group: _named(group, each) for group, each in variables(model).items()}


def path(array):
    """Path of the variable that an `Array` is of, empty where it has none."""
    return array.name.split("/", 1)[1].partition("#")[0]


def rate(model):
    """The variable of a learning rate that is no schedule, else `None`."""
    return rate_variable(model)


def name_of_rate(model):
    """Name of its `Array`, or `None`."""
    listed = zip(variables(model)["optimizer"], arrays(model)["optimizer"])
    own = rate(model)
    return next((array.name for variable, array in listed if variable is own), None)


def settings(model):
    """The optimizer's arguments as JSON, by name: those that change results."""
    config = inner_optimizer(model).get_config()
    if rate(model) is not None:
        # It is state.
        config.pop("learning_rate", None)
    else:
        schedule = config["learning_rate"]
        kept = {k: v for k, v in schedule["config"].items() if k != "accumulation_steps"}
        config["learning_rate"] = {schedule["class_name"]: kept}
    return {
        key: json.dumps(value, default=str, sort_keys=True)
        for key, value in config.items()
        if key not in _DIVISION
    }


def check_between_updates(model):
    """Raises in the middle of an update, of which nothing can be saved."""
    optimizer = inner_optimizer(model)
    steps, within = int(optimizer.accumulation_steps), optimizer.calls_in_window
    if within:
        raise CheckpointError(
            f"{within} of the {steps} micro-batches of an update are done. Save between"
            " updates: after train_batch, or at the end of an epoch."
        )


def _named(group, each):
    """`Array`s of unique names: group/path, and #index where there is no path."""
    found, taken = [], set()
    for index, variable in enumerate(each):
        own = getattr(variable, "path", None) or ""
        name = f"{group}/{own}"
        if not own or name in taken:
            name = f"{name}#{index}"
        taken.add(name)
        dtype = np.dtype(tf.as_dtype(variable.dtype).as_numpy_dtype)
        if dtype not in DTYPES:
            raise CheckpointError(
                f"{own or name} has the dtype {variable.dtype}, which a checkpoint"
                f" cannot hold. It can: {', '.join(sorted(map(str, DTYPES)))}."
            )
        found.append(Array(name, dtype, tuple(variable.shape), variable.numpy))
    return found


# ---- random numbers
# -------------------------------------------------------------------


def _seeds(model):
    return [variable for variable in model.variables if is_seed(variable)]


def random_state(model):
    """This rank's seeds and generators, in lists that JSON can hold."""
    kind, keys, *rest = np.random.get_state()
    return {
        "seeds": [v.numpy().tolist() for v in _seeds(model)],
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), *rest],
    }


def check_random_state(model, state):
    """Raises where `restore_random_state` would."""
    seeds = [np.shape(value) for value in state["seeds"]]
    own = [tuple(variable.shape) for variable in _seeds(model)]
    if seeds != own:
        raise CheckpointError(
            f"The checkpoint has seeds of the shapes {seeds} for layers that draw random"
            f" numbers, the job has {own}."
        )
    # On generators of their own, for their errors.
    _set_generators(state, random.Random().setstate, np.random.RandomState().set_state)


def restore_random_state(model, state):
    """Takes what `random_state` gave."""
    for variable, value in zip(_seeds(model), state["seeds"], strict=True):
        variable.assign(np.asarray(value, variable.dtype))
    _set_generators(state, random.setstate, np.random.set_state)


def _set_generators(state, set_python, set_numpy):
    version, internal, following = state["python"]
    set_python((version, tuple(internal), following))
    kind, keys, *rest = state["numpy"]
    set_numpy((kind, np.asarray(keys, "uint32"), *rest))
