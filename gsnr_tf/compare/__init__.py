"""Base against GSNR, each tuned alike, on tasks of ours and of the user."""

from gsnr_tf.compare.task import Data, Split, Task, load_task

__all__ = ["Data", "Split", "Task", "load_task"]
