"""The GPU tier: on one GPU, which is cut into two devices.

GSNR_TEST_DEVICE=CPU runs the same code on logical CPUs.
"""

import contextlib
import os
from pathlib import Path

import pytest
import tensorflow as tf

from tests.parallel.ranks import Ranks, send_by_value

HERE = Path(__file__).parent
KIND = os.environ.get("GSNR_TEST_DEVICE", "GPU")
GPUS = tf.config.list_physical_devices("GPU")
# Of each of the two, in MiB; what is left is for ranks.
MEMORY = 4096

if KIND == "GPU" and GPUS:
    # Too late where other tests have made TensorFlow begin.
    with contextlib.suppress(RuntimeError):
        halves = [tf.config.LogicalDeviceConfiguration(memory_limit=MEMORY) for _ in range(2)]
        tf.config.set_logical_device_configuration(GPUS[0], halves)


def missing():
    """Why the tier cannot run here, or `None`."""
    if KIND == "CPU" or GPUS:
        return None
    build = "" if tf.test.is_built_with_cuda() else ", a build without CUDA"
    return f"no GPU that TensorFlow sees (TensorFlow {tf.__version__}{build})"


def pytest_collection_modifyitems(items):
    reason = missing()
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.gpu)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def device():
    """The name of the device; products are not rounded to TF32 on it."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    yield f"{KIND}:0"
    tf.config.experimental.enable_tensor_float_32_execution(before)


@pytest.fixture
def two_devices():
    """Names of two devices."""
    if len(tf.config.list_logical_devices(KIND)) < 2:
        pytest.skip("the GPU was not cut in two before TensorFlow began: run tests/gpu alone")
    return [f"{KIND}:0", f"{KIND}:1"]


@pytest.fixture(scope="module")
def on_two_ranks(request):
    """`on_two_ranks(body, *args)`: what `body` returned on each of two ranks of one GPU."""
    from gsnr_tf.comm import horovod

    if KIND == "GPU" and "nccl" in horovod.built_with():
        pytest.skip("Horovod has NCCL, which refuses two ranks on one GPU")
    send_by_value(request.module.__name__)
    ranks = Ranks(2, {"TF_FORCE_GPU_ALLOW_GROWTH": "true"})
    yield ranks.run
    ranks.stop()
