"""Which communicator a process has: by name, or by how it was started."""

import sys

from gsnr_tf.comm import horovod
from gsnr_tf.comm.horovod import HorovodCommunicator
from gsnr_tf.comm.local import LocalCommunicator
from gsnr_tf.comm.strategy import StrategyCommunicator

ENGINES = ("auto", "local", "horovod", "strategy")


def _horovod_is_running():
    loaded = sys.modules.get("horovod.tensorflow")
    return horovod.launched() or bool(loaded and loaded.is_initialized())


def rank():
    """Index of this process among the ranks of the job, 0 in a single process."""
    return horovod.load().rank() if _horovod_is_running() else 0


def size():
    """How many ranks the job has, 1 in a single process."""
    return horovod.load().size() if _horovod_is_running() else 1


def expects_ranks(engine, strategy):
    """Whether `choose` will give the ranks of a job, or may in an elastic one.

    Waits for nobody, unlike `choose`.
    """
    if engine not in ("auto", "horovod") or strategy.num_replicas_in_sync > 1:
        return False
    loaded = sys.modules.get("horovod.tensorflow")
    running = bool(loaded and loaded.is_initialized() and loaded.size() > 1)
    return horovod.launched() or horovod.elastic() or running


def choose(engine, strategy):
    """The communicator for an engine's name.

    Args:
        engine: One of `ENGINES`; "auto" takes the ranks where a launcher started
            several, the replicas where the strategy has several, and otherwise
            this process alone.
        strategy: The `tf.distribute.Strategy` in whose scope the optimizer lives.

    Raises:
        ValueError: "auto" meets both ranks and replicas, or "strategy" meets no
            strategy.
        ImportError: Horovod is called for and not there.
    """
    if engine == "local":
        return LocalCommunicator()
    if engine == "horovod":
        return HorovodCommunicator()
    replicas = strategy.num_replicas_in_sync
    if engine == "strategy":
        if type(strategy).__name__ == "_DefaultDistributionStrategy":
            raise ValueError(
                "Received communicator='strategy', but the optimizer was made outside "
                "of any strategy. Make model and optimizer inside "
                "`with strategy.scope():`, or use communicator='auto'."
            )
        return StrategyCommunicator(strategy)
    ranks = size()
    if ranks > 1 and replicas > 1:
        raise ValueError(
            f"Received both {ranks} Horovod ranks and a strategy of {replicas} "
            "replicas. Start one Horovod rank for each device and drop the strategy, "
            "or drop horovodrun."
        )
    if replicas > 1:
        return StrategyCommunicator(strategy)
    return HorovodCommunicator() if ranks > 1 else LocalCommunicator()
