"""How workers reach each other: one interface, one class for each engine."""

from typing import TYPE_CHECKING

from gsnr_tf._lazy import lazy_names

if TYPE_CHECKING:
    from gsnr_tf.comm.base import Communicator, RanksDiffer, native
    from gsnr_tf.comm.choice import ENGINES, choose, expects_ranks, rank, size

__all__ = [
    "ENGINES",
    "Communicator",
    "RanksDiffer",
    "choose",
    "expects_ranks",
    "native",
    "rank",
    "size",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "gsnr_tf.comm.base": ("Communicator", "RanksDiffer", "native"),
        "gsnr_tf.comm.choice": ("ENGINES", "choose", "expects_ranks", "rank", "size"),
    },
)
