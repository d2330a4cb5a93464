"""Base against GSNR, each tuned alike, on tasks of ours and of the user."""

from typing import TYPE_CHECKING

from gsnr_tf._lazy import lazy_names

if TYPE_CHECKING:
    from gsnr_tf.compare.task import Data, Split, Task, load_task

__all__ = ["Data", "Split", "Task", "load_task"]

# The command line asks for names of optimizers, and need not wait for TensorFlow.
__getattr__, __dir__ = lazy_names(
    __name__, {"gsnr_tf.compare.task": ("Data", "Split", "Task", "load_task")}
)
