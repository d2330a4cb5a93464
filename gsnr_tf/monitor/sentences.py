"""What a run's numbers mean, in sentences."""

import numpy as np

from gsnr_tf.monitor.estimate import noise_of
from gsnr_tf.stats import noise_scale

# Beyond this an interval says no more than an order of magnitude.
_VAGUE = 10.0


def sentences(run):
    """List of sentences on a `Run`, the most useful first."""
    parts = (_damage, _batch, _growth, _multiplier, _variables, _gap, _time, _samples, _skipped)
    return [sentence for part in parts for sentence in part(run)]


def _percent(share):
    return f"{100 * share:.0f}\u00a0%"  # never apart at the end of a line


def _number(value):
    """About three digits, thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _damage(run):
    yield from run.damage


def _batch(run):
    noise = noise_of(run)
    if noise is None:
        yield "There are too few records to say anything of the noise."
        return
    # Of a batch that grew the last one counts: it is the one to go on with.
    critical, batch = noise.critical_batch(), run.last("batch/examples")
    if critical.factor > _VAGUE:
        low = max(critical.low, 0)
        yield (
            f"The noise hides the gradient: with {critical.records} records the critical "
            f"batch is only known to be above {_number(low)} examples (the batch was "
            f"{_number(batch)}). A longer run, or larger samples, would tell."
        )
        return
    interval = f"{_number(critical.low)} to {_number(critical.high)} with 90 %"
    known = f"critical batch of {_number(critical.value)} examples ({interval})"
    if batch <= critical.value:
        steps = 1 - noise_scale.relative_steps(critical.value, 2 * batch, batch)
        examples = noise_scale.relative_examples(critical.value, 2 * batch, batch) - 1
        yield (
            f"The batch of {_number(batch)} is {critical.value / batch:.1f} × below the "
            f"{known}: doubling it should cost {_percent(examples)} more examples and "
            f"save {_percent(steps)} of the steps to the same loss."
        )
    else:
        steps = noise_scale.relative_steps(critical.value, batch / 2, batch) - 1
        examples = 1 - noise_scale.relative_examples(critical.value, batch / 2, batch)
        yield (
            f"The batch of {_number(batch)} is {batch / critical.value:.1f} × above the "
            f"{known}: halving it should save {_percent(examples)} of the examples and "
            f"take {_percent(steps)} more steps to the same loss."
        )


def _growth(run):
    noise = noise_of(run)
    if noise is None or len(noise.trace) < 2:
        return
    first, last = noise.scale(0), noise.scale(-1)
    if not np.isfinite([first.value, last.value]).all():
        return
    from_to = f"{_number(first.value)} to {_number(last.value)} examples"
    if last.low > first.high:
        yield (f"The noise scale grew from {from_to}: the batch may grow with it (BatchSizeRamp).")
    elif last.high < first.low:
        yield f"The noise scale fell from {from_to}: a large batch pays less and less."
    else:
        yield f"The noise scale stayed where it was within its spread ({from_to})."


def _multiplier(run):
    mean, floor, ceiling = (
        _late(run.series(f"gsnr/{name}")[1]) for name in ("multiplier", "at_floor", "at_ceiling")
    )
    if not np.isfinite(mean):
        return
    yield (
        f"In the last quarter {_percent(floor)} of the informative elements had the "
        f"multiplier's floor, {_percent(ceiling)} its ceiling; its mean was {mean:.2f}, "
        "which a learning rate chosen without GSNR would have to make up for."
    )


def _variables(run):
    _, ratios = run.of_variables("ratio")
    if len(run.paths) < 4 or not len(ratios):
        return
    late = np.array([_late(column) for column in ratios.T])
    order = [i for i in np.argsort(late) if np.isfinite(late[i])]
    if len(order) < 4:
        return
    low, high = order[0], order[-1]
    yield (
        f"The samples agree most on {run.paths[high]} (GSNR {late[high]:.2g}) and least "
        f"on {run.paths[low]} ({late[low]:.2g})."
    )


def _gap(run):
    for name in run.names("gap"):
        _, gaps = run.series(name)
        metric = name.split("/")[1]
        if len(gaps) < 2 or not np.isfinite(gaps[[0, -1]]).all():
            continue
        change = abs(gaps[-1]) - abs(gaps[0])
        if abs(change) <= 0.05 * abs(gaps[0]):
            yield f"Train minus validation of {metric} stayed at {gaps[-1]:.3g}."
            continue
        yield (
            f"Train minus validation of {metric} {'widened' if change > 0 else 'narrowed'} "
            f"from {gaps[0]:.3g} to {gaps[-1]:.3g}."
        )


def _time(run):
    parts = {
        name: _late(run.series(f"time/{name}")[1])
        for name in ("backward", "communication", "update")
    }
    accumulation = run.last("batch/accumulation", 1)
    parts["backward"] *= accumulation
    total = sum(parts.values())
    if not np.isfinite(total) or total <= 0:
        return
    shares = ", ".join(f"{_percent(s / total)} {name}" for name, s in parts.items())
    speed = run.last("speed/examples_per_second")
    text = f"An update took {1e3 * total:.3g} ms: {shares}"
    yield f"{text}; {_number(speed)} examples/s." if speed else f"{text}."


def _samples(run):
    samples = run.last("batch/samples")
    if samples and samples < run.sound_samples:
        yield (
            f"With {samples:.0f} samples to an update r is a poor estimate "
            f"({run.sound_samples} are a good start): smaller micro-batches make more "
            "samples of the same batch, and estimator='robust' needs no more than 2."
        )


def _skipped(run):
    skipped = run.last("progress/skipped")
    if skipped:
        yield (
            f"{skipped:.0f} update(s) were dropped because a gradient was not finite on "
            "some worker."
        )


def _late(values):
    """Median of the last quarter."""
    values = np.asarray(values, float)[-max(1, len(values) // 4) :]
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else float("nan")
