"""Checkpoints that any number of ranks may load.

Arrays are whole, whatever the rank kept of them, so that nothing in a checkpoint
depends on the number of ranks but the random numbers, of which each rank takes its own
where it has some. The files: `checkpoint_files`.
"""

import json
import random
from pathlib import Path

import numpy as np

from gsnr_tf import comm
from gsnr_tf.resilience.checkpoint_files import CheckpointError, locate, read, write


def save(folder, tag, model, communicator, counters, client_state):
    """Writes a checkpoint. All ranks must call it; rank 0 writes.

    Args:
        folder: Path, one that all ranks share.
        tag: String, the same on all ranks.
        model: A compiled `keras.Model` whose optimizer is built.
        communicator: The `Communicator`.
        counters: Dict that JSON can hold.
        client_state: The user's dict, likewise.

    Raises:
        CheckpointError: On all ranks, whichever of them failed, and why.
    """
    tags = communicator.gather(tag)
    if len(set(tags)) > 1:
        raise CheckpointError(
            f"The ranks have different tags. Received, by rank: {tags}."
        )
    together(communicator, lambda: _check_savable(tag, model, client_state))
    # With slices the state is gathered here, variable by variable, by all ranks.
    arrays = {"weights": _weights(model), "optimizer": _optimizer_state(model)}
    arrays = {
        group: [_storable(variable.numpy()) for variable in variables]
        for group, variables in arrays.items()
    }
    ranks = communicator.gather(_random_state(model))
    about = {
        "optimizer": type(_inner(model.optimizer)).__name__,
        "paths": [variable.path for variable in _weights(model)],
        "updates": int(model.optimizer.iterations),
        "counters": counters,
        "client_state": client_state,
    }

    def write_on_first():
        if comm.rank() == 0:
            write(Path(folder), tag, arrays, ranks, about)

    together(communicator, write_on_first)


def load(folder, tag, model, communicator):
    """Restores a checkpoint. All ranks must call it, and all must see the folder.

    Args:
        folder: Path.
        tag: String, or `None` for the newest.
        model: As for `save`, of the same architecture and optimizer.
        communicator: The `Communicator`.

    Returns:
        `(path, counters, client_state)`, or `None` where `tag` is `None` and there is
        no checkpoint yet.

    Raises:
        CheckpointError: On all ranks: there is none, it is damaged, or it does not fit.
    """
    path = together(communicator, lambda: locate(Path(folder), tag))
    paths = communicator.gather(None if path is None else path.name)
    if len(set(paths)) > 1:
        raise CheckpointError(
            f"The ranks see different checkpoints in {folder}. Received, by rank:"
            f" {paths}. Use a folder that all hosts share."
        )
    if path is None:
        return None
    about, arrays, ranks = together(communicator, lambda: read(path))
    together(communicator, lambda: _restore(model, about, arrays))
    if comm.rank() < len(ranks):
        _restore_random_state(model, ranks[comm.rank()])
    return path, about["counters"], about["client_state"]


def together(communicator, action):
    """What `action()` returns; raises on all ranks where it fails on any."""
    result, failure = None, None
    try:
        result = action()
    except Exception as error:
        failure = error
    failures = communicator.gather(None if failure is None else str(failure))
    told = [
        f"rank {rank}: {text}" for rank, text in enumerate(failures) if text is not None
    ]
    if told:
        told = told if len(failures) > 1 else failures
        raise CheckpointError("\n".join(told)) from failure
    return result


# ---- what there is to save
# ------------------------------------------------------------


def _inner(optimizer):
    return getattr(optimizer, "inner_optimizer", optimizer)


def _is_seed(variable):
    return "seed_generator_state" in variable.path


def _weights(model):
    """All variables of the model but its random seeds, which are each rank's own."""
    return [variable for variable in model.variables if not _is_seed(variable)]


def _optimizer_state(model):
    """State that means the same for any number of ranks.

    Left out are the count of calls and the size of the window, which depend on how an
    update is divided into micro-batches, and what a window has accumulated, which is
    nothing between updates.
    """
    inner = _inner(model.optimizer)
    left_out = [inner._iterations, inner._window_size, *_window(inner)]
    left_out = {id(variable) for variable in left_out}
    return [v for v in model.optimizer.whole_state() if id(v) not in left_out]


def _window(inner):
    """What an optimizer has accumulated since the last update."""
    return [inner._window.weight, *inner._accumulated] if inner._accumulated else []


def _check_savable(tag, model, client_state):
    if not tag or tag.startswith(".") or Path(tag).name != tag or tag == "latest":
        raise CheckpointError(
            "A tag is the name of a folder, without slashes and not beginning with a"
            f" dot. Received: tag={tag!r}"
        )
    try:
        json.dumps(client_state)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"client_state must be what JSON can hold: {error}. Received:"
            f" {client_state!r}"
        ) from error
    inner = _inner(model.optimizer)
    steps = int(inner.accumulation_steps)
    within = int(inner._iterations) % steps
    if within:
        raise CheckpointError(
            f"{within} of the {steps} micro-batches of an update are done. Save between"
            " updates: after train_batch, or at the end of an epoch."
        )


def _storable(array):
    # HDF5 has no bfloat16; float32 holds its numbers exactly.
    return (
        array.astype("float32") if array.dtype.name == "bfloat16" else np.asarray(array)
    )


def _random_state(model):
    kind, keys, *rest = np.random.get_state()
    return {
        "seeds": [v.numpy().tolist() for v in model.variables if _is_seed(v)],
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), *rest],
    }


def _restore_random_state(model, state):
    for variable, value in zip(filter(_is_seed, model.variables), state["seeds"]):
        variable.assign(np.asarray(value, variable.dtype))
    version, internal, following = state["python"]
    random.setstate((version, tuple(internal), following))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, "uint32"), *rest))


def _restore(model, about, arrays):
    inner = _inner(model.optimizer)
    variables = {"weights": _weights(model), "optimizer": _optimizer_state(model)}
    _check_fit(variables, arrays, about, type(inner).__name__)
    for group, saved in arrays.items():
        for variable, value in zip(variables[group], saved):
            variable.assign(value)
    for variable in _window(inner):
        variable.assign(np.zeros(variable.shape))
    inner._iterations.assign(about["updates"] * int(inner.accumulation_steps))


def _check_fit(variables, arrays, about, rule):
    if about["optimizer"] != rule:
        raise CheckpointError(
            f"The checkpoint is of the optimizer {about['optimizer']}, the job's is"
            f" {rule}."
        )
    for group, saved in arrays.items():
        own = variables[group]
        if len(saved) != len(own):
            raise CheckpointError(
                f"The checkpoint has {len(saved)} arrays of the {group}, the job has"
                f" {len(own)}. Model, optimizer and fp16 must be those of the"
                " checkpoint."
            )
        for index, (variable, value) in enumerate(zip(own, saved)):
            if tuple(variable.shape) != value.shape:
                path = about["paths"][index] if group == "weights" else f"array {index}"
                raise CheckpointError(
                    f"The {group} do not fit: {path} has the shape {value.shape} in the"
                    f" checkpoint and {tuple(variable.shape)} in the job."
                )
