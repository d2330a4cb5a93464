"""What all tests share: a quiet TensorFlow on four logical CPUs, and Horovod ranks."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# One thread each: the machine has two cores, and a test may have four ranks.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Compiling is most of what small updates cost, and need not make them fast.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import hypothesis
import keras
import pytest
import tensorflow as tf

# Machines that run tests are shared: how long an example takes says nothing. And what
# fails must fail again.
hypothesis.settings.register_profile("gsnr_tf", deadline=None, derandomize=True)
hypothesis.settings.load_profile("gsnr_tf")

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration() for _ in range(4)],
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """`--dist loadfile`, but for tests/parallel: its files go to two processes of pytest,
    half of them to each, since every process starts ranks of its own."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    files = sorted((Path(__file__).parent / "parallel").glob("test_*.py"))
    half = {f"parallel/{path.name}": f"parallel {n % 2}" for n, path in enumerate(files)}

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            path = super()._split_scope(nodeid)
            return half.get(path, path)

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def fresh_keras():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    # Collecting garbage takes longer than most tests.
    keras.backend.clear_session(free_memory=False)
