"""Checkpoints that any number of ranks may load.

Arrays are whole, whatever the rank kept of them, so that nothing in a checkpoint
depends on the number of ranks but the random numbers, of which each rank takes its own
where it has some. The files: `checkpoint_files`.
"""

import contextlib
import random
import warnings
from pathlib import Path

import numpy as np
import tensorflow as tf

from gsnr_tf import comm
from gsnr_tf.resilience import folder_lock, names
from gsnr_tf.resilience.array_file import DTYPES, Array
from gsnr_tf.resilience.checkpoint_files import (
    CheckpointError,
    check_tag,
    locate,
    read,
    write,
)
from gsnr_tf.resilience.client_state import plain


def save(folder, tag, model, communicator, counters, client_state):
    """Writes a checkpoint. All ranks must call it; rank 0 writes.

    Args:
        folder: Path, one that all ranks share.
        tag: String, the same on all ranks.
        model: A compiled `keras.Model` whose optimizer is built.
        communicator: The `Communicator`.
        counters: Dict that JSON can hold.
        client_state: The user's dict; see `client_state.plain`.

    Raises:
        CheckpointError: On all ranks, whichever of them failed, and why. What was in
            the folder before is whole.
    """
    tags = communicator.gather(tag)
    if len(set(tags)) > 1:
        raise CheckpointError(
            f"The ranks have different tags. Received, by rank: {tags}."
        )
    folder = Path(folder)

    def check():
        check_tag(tag)
        _check_between_updates(model)
        if comm.rank():
            # Ranks may have changed places since this process was rank 0.
            folder_lock.release(folder)
        return plain(client_state)

    client_state = together(communicator, check)
    ranks = communicator.gather(_random_state(model))

    def write_on_first():
        if comm.rank():
            return []
        arrays = _arrays(model)
        about = {
            "optimizer": type(_inner(model.optimizer)).__name__,
            "trained": [v.path for v in model.trainable_variables],
            "updates": int(model.optimizer.iterations),
            "counters": counters,
            "client_state": client_state,
        }
        return write(folder, tag, arrays, ranks, about)

    not_finite = together(communicator, write_on_first)
    if not_finite:
        _warn_not_finite(folder / tag, not_finite)


def load(folder, tag, model, communicator):
    """Restores a checkpoint. All ranks must call it, and all must see the folder.

    Nothing changes before all ranks have found the checkpoint whole and fitting.

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
    _check_same(communicator, folder, None if path is None else path.name)
    if path is None:
        return None
    with contextlib.closing(together(communicator, lambda: read(path))) as stored:
        _check_same(communicator, path, stored.digest)
        together(communicator, lambda: _check_fit(model, stored))
        together(communicator, lambda: _restore(model, stored))
    about = stored.about
    if about.get("not_finite") and comm.rank() == 0:
        _warn_not_finite(path, about["not_finite"])
    return path, about["counters"], about["client_state"]


def together(communicator, action):
    """What `action()` returns; raises on all ranks where it fails on any."""
    result, failure = None, None
    try:
        result = action()
    except Exception as error:
        failure = error
    failures = communicator.gather(None if failure is None else _text_of(failure))
    told = [
        f"rank {rank}: {text}" for rank, text in enumerate(failures) if text is not None
    ]
    if told:
        told = told if len(failures) > 1 else failures
        raise CheckpointError("\n".join(told)) from failure
    return result


def _text_of(error):
    expected = isinstance(error, CheckpointError)
    return str(error) if expected else f"{type(error).__name__}: {error}"


def _check_same(communicator, folder, found):
    by_rank = communicator.gather(found)
    if len(set(by_rank)) > 1:
        raise CheckpointError(
            f"The ranks see different checkpoints in {folder}. Received, by rank:"
            f" {by_rank}. Use a folder that all hosts share."
        )


def _warn_not_finite(path, names):
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    warnings.warn(
        f"The checkpoint {path} has weights that are not finite:"
        f" {names[0].removeprefix('weights/')}{others}.",
        stacklevel=4,
    )


# ---- what there is to save
# ------------------------------------------------------------


def _inner(optimizer):
    return getattr(optimizer, "inner_optimizer", optimizer)


def _is_seed(variable):
    return "seed_generator_state" in variable.path


def _weights(model):
    """All variables of the model but its random seeds, which are each rank's own."""
    return [variable for variable in model.variables if not _is_seed(variable)]


def _seeds(model):
    return [variable for variable in model.variables if _is_seed(variable)]


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


def _variables(model):
    """Dict of the lists of what a checkpoint keeps, in a fixed order."""
    return {"weights": _weights(model), "optimizer": _optimizer_state(model)}


def _arrays(model):
    """The same as `Array`s, which copy a variable when it is written.

    A slot that is kept in slices is then read from all ranks.
    """
    return {
        group: _named(group, variables) for group, variables in _variables(model).items()
    }


def _named(group, variables):
    """`Array`s of unique names: group/path, and #index where there is no path."""
    arrays, taken = [], set()
    for index, variable in enumerate(variables):
        path = getattr(variable, "path", None) or ""
        name = f"{group}/{path}"
        if not path or name in taken:
            name = f"{name}#{index}"
        taken.add(name)
        dtype = np.dtype(tf.as_dtype(variable.dtype).as_numpy_dtype)
        if dtype not in DTYPES:
            raise CheckpointError(
                f"{path or name} has the dtype {variable.dtype}, which a checkpoint"
                f" cannot hold. It can: {', '.join(sorted(map(str, DTYPES)))}."
            )
        arrays.append(Array(name, dtype, tuple(variable.shape), variable.numpy))
    return arrays


def _check_between_updates(model):
    inner = _inner(model.optimizer)
    steps = int(inner.accumulation_steps)
    within = int(inner._iterations) % steps
    if within:
        raise CheckpointError(
            f"{within} of the {steps} micro-batches of an update are done. Save between"
            " updates: after train_batch, or at the end of an epoch."
        )


def _random_state(model):
    kind, keys, *rest = np.random.get_state()
    return {
        "seeds": [v.numpy().tolist() for v in _seeds(model)],
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), *rest],
    }


# ---- what is restored
# -----------------------------------------------------------------


def _check_fit(model, stored):
    rule = type(_inner(model.optimizer)).__name__
    if stored.about["optimizer"] != rule:
        raise CheckpointError(
            f"The checkpoint is of the optimizer {stored.about['optimizer']}, the job's"
            f" is {rule}."
        )
    own = _arrays(model)
    for group, saved in stored.arrays.items():
        canonical = _canonical(group, stored.arrays, own)
        _check_group(group, saved, own[group], canonical, stored.about["format"])
    if "trained" in stored.about:
        _check_trained(stored, model, own)
    if comm.rank() < len(stored.ranks):
        _check_random_state(model, stored.ranks[comm.rank()])


def _canonical(group, *sides):
    """For each side its names of a group, as they are in every process."""
    weights = [[_path(array) for array in side["weights"]] for side in sides]
    if group == "weights":
        return [names.renumbered(paths) for paths in weights]
    slots = [[_path(array) for array in side[group]] for side in sides]
    return [names.of_slots(*each) for each in zip(slots, weights)]


def _path(array):
    """Path of the variable, empty where it has none."""
    return array.name.split("/", 1)[1].partition("#")[0]


def _check_group(group, saved, own, canonical, version):
    if len(saved) != len(own):
        raise CheckpointError(
            f"The checkpoint has {len(saved)} arrays of the {group}, the job has"
            f" {len(own)}. Model, optimizer and fp16 must be those of the checkpoint."
        )
    for theirs, ours, *same in zip(saved, own, *canonical):
        # Slots that are kept in slices have no names.
        if all(same) and same[0] != same[1]:
            raise CheckpointError(
                f"The {group} do not fit: where the checkpoint has {_path(theirs)}, the"
                f" job has {_path(ours)}. Layers must be made in the same order, and"
                " have the same names if they have any."
            )
        name = _path(theirs) or theirs.name
        if theirs.shape != ours.shape:
            raise CheckpointError(
                f"The {group} do not fit: {name} has the shape {theirs.shape} in the"
                f" checkpoint and {ours.shape} in the job."
            )
        if theirs.dtype != ours.dtype and not (
            # It had float32 for bfloat16.
            version == 1 and ours.dtype.name == "bfloat16"
        ):
            raise CheckpointError(
                f"The {group} do not fit: {name} is {theirs.dtype} in the checkpoint"
                f" and {ours.dtype} in the job."
            )


def _check_trained(stored, model, own):
    """Raises where the optimizer's slots would be of other weights."""
    sides = [stored.about["trained"], [v.path for v in model.trainable_variables]]
    trained = [
        [dict(zip(map(_path, side["weights"]), canonical))[path] for path in paths]
        for side, paths, canonical in zip(
            (stored.arrays, own), sides, _canonical("weights", stored.arrays, own)
        )
    ]
    if trained[0] != trained[1]:
        alone = [
            f"{path} ({where})"
            for paths, mine, other, where in zip(
                sides, trained, trained[::-1], ("the checkpoint", "the job")
            )
            for path, name in zip(paths, mine)
            if name not in other
        ]
        raise CheckpointError(
            "The job does not train the variables that the checkpoint's job trained."
            f" Trained in one alone: {', '.join(alone[:5]) or 'none, in another order'}."
        )


def _check_random_state(model, state):
    seeds = [np.shape(value) for value in state["seeds"]]
    own = [tuple(variable.shape) for variable in _seeds(model)]
    if seeds != own:
        raise CheckpointError(
            f"The checkpoint has seeds of the shapes {seeds} for layers that draw random"
            f" numbers, the job has {own}."
        )
    # On generators of their own, for their errors.
    _set_generators(state, random.Random().setstate, np.random.RandomState().set_state)


def _set_generators(state, set_python, set_numpy):
    version, internal, following = state["python"]
    set_python((version, tuple(internal), following))
    kind, keys, *rest = state["numpy"]
    set_numpy((kind, np.asarray(keys, "uint32"), *rest))


def _restore(model, stored):
    inner = _inner(model.optimizer)
    for group, variables in _variables(model).items():
        for variable, array in zip(variables, stored.arrays[group], strict=True):
            variable.assign(array.value())
    for variable in _window(inner):
        variable.assign(np.zeros(variable.shape))
    inner._iterations.assign(stored.about["updates"] * int(inner.accumulation_steps))
    if comm.rank() < len(stored.ranks):
        state = stored.ranks[comm.rank()]
        for variable, value in zip(_seeds(model), state["seeds"], strict=True):
            variable.assign(np.asarray(value, variable.dtype))
        _set_generators(state, random.setstate, np.random.set_state)
