"""What all tests share: a quiet TensorFlow on four logical CPUs, and Horovod ranks."""

import os

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


@pytest.fixture(autouse=True)
def fresh_keras():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    # Collecting garbage takes longer than most tests.
    keras.backend.clear_session(free_memory=False)
