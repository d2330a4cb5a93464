"""Whether a checkpoint fits a job: what is assigned to what."""

import tensorflow as tf

from gsnr_tf.optimizers.inner import inner_optimizer
from gsnr_tf.resilience import job_state, names
from gsnr_tf.resilience.checkpoint_files import CheckpointError


def match(model, stored, with_optimizer=True):
    """Pairs a job's variables with a checkpoint's arrays.

    Args:
        model: The compiled `keras.Model`.
        stored: The `Stored`.
        with_optimizer: Whether to pair the optimizer's state. If not, the optimizer may
            be another, and weights may be floats of another dtype.

    Returns:
        List of `(variable, function that returns its NumPy array)`.

    Raises:
        CheckpointError: They do not fit, and where.
    """
    own = job_state.arrays(model)
    variables = job_state.variables(model)
    canonical = _canonical_weights(stored, own)
    _check_group("weights", stored.arrays["weights"], own["weights"], canonical)
    pairs = zip(variables["weights"], stored.arrays["weights"], own["weights"])
    if not with_optimizer:
        return [_converted(*each) for each in pairs]
    pairs = [*pairs, *_optimizer_pairs(model, stored, own, variables["optimizer"])]
    for _, theirs, ours in pairs:
        _check_dtype(theirs, ours, stored.about["format"])
    if "trained" in stored.about:
        _check_trained(stored, model, own, canonical)
    return [(variable, theirs.value) for variable, theirs, _ in pairs]


def other_rate_kind(model, stored):
    """`"job"` or `"checkpoint"` where only that has a rate that is no schedule's."""
    if "rate" not in stored.about:
        return None
    saved, own = stored.about["rate"] is not None, job_state.rate(model) is not None
    return None if saved == own else "checkpoint" if saved else "job"


def _optimizer_pairs(model, stored, own, variables):
    rule = type(inner_optimizer(model)).__name__
    if stored.about["optimizer"] != rule:
        raise CheckpointError(
            f"The checkpoint is of the optimizer {stored.about['optimizer']}, the job's"
            f" is {rule}. load_module_only=True takes its weights alone."
        )
    theirs, ours = stored.arrays["optimizer"], own["optimizer"]
    listed = list(zip(variables, ours))
    if other_rate_kind(model, stored):
        # A schedule has no variable.
        theirs = [array for array in theirs if array.name != stored.about["rate"]]
        listed = [pair for pair in listed if pair[0] is not job_state.rate(model)]
        ours = [array for _, array in listed]
    weights = [_paths(side["weights"]) for side in (stored.arrays, own)]
    canonical = [
        names.of_slots(_paths(group), each) for group, each in zip((theirs, ours), weights)
    ]
    _check_group("optimizer", theirs, ours, canonical)
    return [(v, saved, array) for (v, array), saved in zip(listed, theirs)]


def _canonical_weights(stored, own):
    """For each side its names of weights, as they are in every process."""
    sides = stored.arrays["weights"], own["weights"]
    return [names.renumbered(_paths(side)) for side in sides]


def _paths(group):
    return [job_state.path(array) for array in group]


def _check_group(group, saved, own, canonical):
    if len(saved) != len(own):
        raise CheckpointError(
            f"The checkpoint has {len(saved)} arrays of the {group}, the job has"
            f" {len(own)}. Model, optimizer and fp16 must be those of the checkpoint."
        )
    what = "weights do" if group == "weights" else "optimizer's variables do"
    for theirs, ours, *same in zip(saved, own, *canonical):
        # Slots that are kept in slices have no names.
        if all(same) and same[0] != same[1]:
            raise CheckpointError(
                f"The {what} not fit: where the checkpoint has {job_state.path(theirs)},"
                f" the job has {job_state.path(ours)}. Layers must be made in the same"
                " order, be frozen alike, and have the same names if they have any."
            )
        if theirs.shape != ours.shape:
            raise CheckpointError(
                f"The {what} not fit: {job_state.path(theirs) or theirs.name} has the"
                f" shape {theirs.shape} in the checkpoint and {ours.shape} in the job."
            )


def _check_dtype(theirs, ours, version):
    # Format 1 had float32 for bfloat16.
    widened = version == 1 and ours.dtype.name == "bfloat16"
    if theirs.dtype != ours.dtype and not widened:
        raise CheckpointError(
            f"{job_state.path(theirs) or theirs.name} is {theirs.dtype} in the checkpoint"
            f" and {ours.dtype} in the job. load_module_only=True takes the weights"
            " alone, and converts floats."
        )


def _converted(variable, theirs, ours):
    if theirs.dtype == ours.dtype:
        return variable, theirs.value
    if not all(tf.as_dtype(a.dtype).is_floating for a in (theirs, ours)):
        raise CheckpointError(
            f"{job_state.path(theirs)} is {theirs.dtype} in the checkpoint and"
            f" {ours.dtype} in the job; only floats are converted."
        )
    return variable, lambda: theirs.value().astype(ours.dtype)


def _check_trained(stored, model, own, canonical):
    """Raises where the optimizer's slots would be of other weights."""
    sides = [stored.about["trained"], [v.path for v in model.trainable_variables]]
    trained = [
        [dict(zip(_paths(side["weights"]), each))[path] for path in paths]
        for side, paths, each in zip((stored.arrays, own), sides, canonical)
    ]
    if trained[0] == trained[1]:
        return
    alone = [
        f"{path} ({where})"
        for paths, mine, other, where in zip(
            sides, trained, trained[::-1], ("the checkpoint", "the job")
        )
        for path, name in zip(paths, mine)
        if name not in other
    ]
    raise CheckpointError(
        "The job does not train the variables that the checkpoint's job trained. Trained"
        f" in one alone: {', '.join(alone[:5]) or 'none, but in another order'}."
    )
