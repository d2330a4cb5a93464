"""Checkpoints that any number of ranks may load.

Arrays are whole, whatever the rank kept of them, so that nothing in a checkpoint
depends on the number of ranks but the random numbers, of which each rank takes its own
where it has some. What is kept: `job_state`; the files: `checkpoint_files`.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from gsnr_tf import comm
from gsnr_tf.optimizers.inner import inner_optimizer
from gsnr_tf.resilience import checkpoint_fit, folder_lock, job_state
from gsnr_tf.resilience.checkpoint_files import CheckpointError, check_tag, locate
from gsnr_tf.resilience.checkpoint_read import read
from gsnr_tf.resilience.checkpoint_write import write
from gsnr_tf.resilience.client_state import plain


class Wanted(NamedTuple):
    """What of a checkpoint is loaded, besides the weights.

    Attributes:
        optimizer: Bool, the optimizer's state and count of updates.
        rate: Bool, the learning rate.
        progress: Bool, random numbers; and counters, of which it is the caller's to
            make use.
        tell_rate: Bool, whether to warn where the checkpoint's rate is another than the
            job's. A job that changes its rate itself expects that.
        check_counters: Function of the counters, which raises where they do not fit.
    """

    optimizer: bool = True
    rate: bool = True
    progress: bool = True
    tell_rate: bool = True
    check_counters: Callable = lambda counters: None


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
        raise CheckpointError(f"The ranks have different tags. Received, by rank: {tags}.")
    folder = Path(folder)

    def check():
        check_tag(tag)
        if not isinstance(client_state, dict):
            raise CheckpointError(
                f"client_state must be a dict. Received: {type(client_state).__name__}"
            )
        job_state.check_between_updates(model)
        if comm.rank():
            # Ranks may have changed places since this process was rank 0.
            folder_lock.release(folder)
        return plain(client_state)

    client_state = together(communicator, check)
    ranks = communicator.gather(job_state.random_state(model))

    def write_on_first():
        if comm.rank():
            return []
        arrays = job_state.arrays(model)
        about = {
            "optimizer": type(inner_optimizer(model)).__name__,
            "settings": job_state.settings(model),
            "trained": [v.path for v in model.trainable_variables],
            "rate": job_state.name_of_rate(model),
            "updates": int(model.optimizer.iterations),
            "schedule": inner_optimizer(model).schedule_state(),
            "counters": counters,
            "client_state": client_state,
        }
        return write(folder, tag, arrays, ranks, about)

    not_finite = together(communicator, write_on_first)
    if not_finite:
        _warn_not_finite(folder / tag, not_finite)


def load(folder, tag, model, communicator, wanted=Wanted()):
    """Restores a checkpoint. All ranks must call it, and all must see the folder.

    Nothing changes before all ranks have found the checkpoint whole and fitting. State
    is the checkpoint's, settings are the job's; rank 0 warns of what differs.

    Args:
        folder: Path.
        tag: String, or `None` for the newest.
        model: As for `save`, of the same architecture, and optimizer if that is wanted.
        communicator: The `Communicator`.
        wanted: The `Wanted`.

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
    with together(communicator, lambda: read(path)) as stored:
        _check_same(communicator, path, stored.digest)
        pairs = together(communicator, lambda: _check_fit(model, stored, wanted))
        told = together(communicator, lambda: _restore(model, stored, pairs, wanted))
    if comm.rank() == 0:
        for text in told:
            warnings.warn(text, stacklevel=3)
        if stored.about.get("not_finite"):
            _warn_not_finite(path, stored.about["not_finite"])
    return path, stored.about["counters"], stored.about["client_state"]


def together(communicator, action):
    """What `action()` returns; raises on all ranks where it fails on any."""
    result, failure = None, None
    try:
        result = action()
    except Exception as error:
        failure = error
    failures = communicator.gather(None if failure is None else _text_of(failure))
    told = [f"rank {rank}: {text}" for rank, text in enumerate(failures) if text is not None]
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


# ---- what is restored
# -----------------------------------------------------------------


def _check_fit(model, stored, wanted):
    """What `_restore` needs, after all checks."""
    if wanted.optimizer and not wanted.rate and job_state.rate(model) is None:
        raise CheckpointError(
            "A schedule counts the optimizer's updates: load_lr_scheduler_states=False"
            " cannot begin it anew beside the optimizer's state. With"
            " load_optimizer_states=False both begin anew."
        )
    pairs = checkpoint_fit.match(model, stored, wanted.optimizer)
    if wanted.progress:
        wanted.check_counters(stored.about["counters"])
        if comm.rank() < len(stored.ranks):
            job_state.check_random_state(model, stored.ranks[comm.rank()])
    return pairs


def _restore(model, stored, pairs, wanted):
    """Assigns; returns a list of sentences, of what was decided in one way or another."""
    own_rate = job_state.rate(model)
    rate = None if own_rate is None else float(own_rate.numpy())
    for variable, value in pairs:
        variable.assign(value())
    if wanted.optimizer:
        optimizer = inner_optimizer(model)
        optimizer.set_updates(stored.about["updates"])
        if stored.about.get("schedule"):
            optimizer.restore_schedule(**stored.about["schedule"])
        if own_rate is not None and not wanted.rate:
            own_rate.assign(rate)
    if wanted.progress and comm.rank() < len(stored.ranks):
        job_state.restore_random_state(model, stored.ranks[comm.rank()])
    if not wanted.optimizer:
        return []
    return _differences(model, stored, rate if wanted.tell_rate else None)


def _differences(model, stored, rate):
    """Where checkpoint and job say different things, and which holds.

    Args:
        rate: Float, the job's constant rate before; `None` if it does not matter.
    """
    told = []
    now = job_state.rate(model)
    other = checkpoint_fit.other_rate_kind(model, stored)
    if other:
        of_job = "a constant learning rate" if other == "job" else "a schedule"
        of_checkpoint = "a schedule" if other == "job" else "a constant learning rate"
        told.append(
            f"The checkpoint was made with {of_checkpoint}, the job has {of_job}: the job's holds."
        )
    elif rate is not None and float(now.numpy()) != rate:
        told.append(
            "Training goes on with the checkpoint's learning rate of"
            f" {float(now.numpy()):g}; the job had {rate:g}."
            " load_lr_scheduler_states=False keeps the job's."
        )
    saved = stored.about.get("settings", {})
    own = job_state.settings(model)
    differing = [
        f"{key}={own[key]} (checkpoint: {saved[key]})"
        for key in sorted(own.keys() & saved.keys())
        if own[key] != saved[key]
    ]
    if differing:
        told.append(f"The job's settings hold: {', '.join(differing)}.")
    return told
