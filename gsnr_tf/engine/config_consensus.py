"""One configuration for all ranks, or a stop for all of them."""

from gsnr_tf.engine import load
from gsnr_tf.engine.errors import ConfigError


def read(source, communicator, **how):
    """The `Config` of a source, the same on all ranks; `how` are arguments of `load.read`.

    Raises:
        ConfigError: On all ranks: it cannot be used on some of them, or they differ; the
            message names the first key that does.
    """
    config, problem = None, None
    try:
        config = load.read(source, ranks=communicator.workers, **how)
    except ConfigError as error:
        problem = str(error)
    values = None if config is None else flat(config.model_dump())
    reports = communicator.gather((problem, values))
    problems = {rank: told for rank, (told, _) in enumerate(reports) if told}
    if problems:
        rank, told = next(iter(problems.items()))
        raise ConfigError(told if len(reports) == 1 else f"Rank {rank}: {told}")
    first = reports[0][1]
    for rank, (_, other) in enumerate(reports):
        for key in {**first, **other}:
            if first.get(key) != other.get(key):
                raise ConfigError(
                    f"The ranks have different configurations. {key} is"
                    f" {first.get(key)!r} on rank 0 and {other.get(key)!r} on rank"
                    f" {rank}."
                )
    return config


def flat(values, prefix=""):
    """Nested dicts as one, with dotted keys."""
    found = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found
