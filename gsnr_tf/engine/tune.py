"""The search of `gsnr-tf tune`: trials in processes of their own."""

import json
import signal
from typing import NamedTuple

from gsnr_tf.engine import arguments, signatures, tune_trial
from gsnr_tf.engine.errors import ConfigError
from gsnr_tf.engine.keywords import optimizer_keywords
from gsnr_tf.launch import Background, Job

# Elements of a bucket: 1, 4, 16 and 64 MiB.
_BUCKETS = tuple(2**power for power in (18, 20, 22, 24))
_GRACE = 5.0  # seconds that ranks have to end where a trial takes too long
_OUT_OF_MEMORY = ("ResourceExhausted", "OOM when", "MemoryError", "bad_alloc")


class Result(NamedTuple):
    """What a trial came to.

    Attributes:
        changes: Dict, what it changed in the configuration.
        throughput: Examples per second over all ranks; `None` where it failed.
        memory: Most bytes that a rank used.
        failure: Why it failed, or `None`.
    """

    changes: dict
    throughput: float | None = None
    memory: int | None = None
    failure: str | None = None


def micro_batches(config, batch):
    """Micro-batches to try, from small to large, each about twice the one before.

    Args:
        config: The `Config`.
        batch: The `Batch` that it resolves to.
    """
    own = batch.micro * batch.accumulation
    fitting = [size for size in range(1, own + 1) if own % size == 0]
    rule, kwargs = optimizer_keywords(config, batch)
    if rule.gsnr:
        least = arguments.sound_samples(kwargs)
        samples = {size: batch.ranks * own // size for size in fitting}
        sound = [size for size in fitting if samples[size] >= least]
        fitting = sound or [size for size in fitting if samples[size] >= 2]
    number = config.autotuning.num_tuning_micro_batch_sizes
    kept = fitting[-1:]
    for size in reversed(fitting):
        if size <= kept[0] / 2 and len(kept) < number:
            kept.insert(0, size)
    return kept


def buckets(config, batch):
    """Bucket sizes to try, none where nothing travels in buckets."""
    rule = signatures.optimizer(config.optimizer.type)
    if batch.ranks == 1 or not config.zero_optimization.stage:
        return []
    return list(_BUCKETS) if "bucket_bytes" in rule.arguments else []


def search(config, ranks, run, tell):
    """Tries sizes and returns the `Result` of every trial, in order.

    Args:
        config: The `Config`.
        ranks: Int.
        run: Function from changes of the configuration to a `Result`.
        tell: Function that is given each `Result`.

    Raises:
        ConfigError: The search is not enabled, or the sizes do not fit.
    """
    if not config.autotuning.enabled:
        raise ConfigError('Set "autotuning": {"enabled": true} in the configuration.')
    batch = config.batch(ranks)
    results = []

    def one(changes):
        results.append(run(changes))
        tell(results[-1])
        return results[-1]

    slower = 0
    for size in micro_batches(config, batch):
        before = best(results)
        result = one(_sizes(batch, size))
        if result.failure:
            # A larger one would need more memory still.
            break
        slower = slower + 1 if before and result.throughput < before.throughput else 0
        if slower == 2:
            break
    found = best(results)
    if found:
        for bucket in buckets(config, batch):
            one({**found.changes, "zero_optimization": {"reduce_bucket_size": bucket}})
    return results


def _sizes(batch, micro):
    return {
        "train_batch_size": batch.train,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": None,
    }


def best(results):
    """The fastest `Result`, or `None`."""
    done = [result for result in results if not result.failure]
    return max(done, key=lambda result: result.throughput, default=None)


def run_trial(changes, ranks, command, folder, seconds):
    """Runs a script as a trial, on ranks that start as those of `gsnr-tf run` do.

    Args:
        changes: Dict, changes of the configuration.
        ranks: Int.
        command: List, the script and its arguments.
        folder: Path for the output and the report.
        seconds: Time limit.

    Returns:
        The `Result`.

    Raises:
        CannotStart: The ranks cannot start.
    """
    number = 1 + sum(path.is_dir() for path in folder.glob("trial-*"))
    output = folder / f"trial-{number}"
    report = folder.resolve() / f"trial-{number}.json"
    job = Background(
        Job(
            command=command,
            ranks=ranks,
            folder=output,
            environment=tune_trial.described(changes, report),
            quiet=True,
            grace=_GRACE,
        )
    )
    try:
        code = job.wait(seconds)
    finally:
        job.stop()
    if report.exists():
        found = json.loads(report.read_text(encoding="utf-8"))
        return Result(changes, found["throughput"], found["memory"])
    why = job.job.failure
    reason = f"not done in {seconds:g} s" if code is None else _reason(code, why)
    return Result(changes, failure=f"{reason} (see {output})")


def _reason(code, output):
    """Why a job failed, in a few words."""
    if code == 128 + signal.SIGKILL or any(sign in output for sign in _OUT_OF_MEMORY):
        return "out of memory"
    if code == 0:
        return "the script ended before the trial did: too few updates"
    errors = [line for line in output.splitlines() if "Error: " in line]
    return errors[-1].strip() if errors else f"exit code {code}"
