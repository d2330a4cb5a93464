"""A GPU of its own for each rank of a host.

TensorFlow lets every process have all GPUs, and puts what it makes on the first: there the
ranks of a host would meet. Scripts that were written for Horovod choose one themselves, by
`tf.config.set_visible_devices`, and may still do so; this is for those that do not.
"""

import os
import warnings

import wrapt


def choose_when_tensorflow_loads():
    """Leaves each rank one GPU, now or as soon as TensorFlow is loaded, before it begins."""
    if int(os.environ.get("HOROVOD_LOCAL_SIZE", "1")) > 1:
        wrapt.register_post_import_hook(_choose, "tensorflow")


def _choose(tf):
    gpus = tf.config.list_physical_devices("GPU")
    if len(gpus) < 2 or tf.config.get_visible_devices("GPU") != gpus:
        return
    own = gpus[int(os.environ["HOROVOD_LOCAL_RANK"]) % len(gpus)]
    try:
        tf.config.set_visible_devices([own], "GPU")
    except RuntimeError:
        warnings.warn(
            f"This rank has all {len(gpus)} GPUs and uses the first, as the others do: "
            "TensorFlow had begun before gsnr_tf was imported. Import gsnr_tf first, or "
            "give the rank one GPU by tf.config.set_visible_devices.",
            stacklevel=2,
        )
