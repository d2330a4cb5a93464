"""Several workers on one GPU learn what one process does."""

import keras
import numpy as np
import pytest
import tensorflow as tf

pytestmark = pytest.mark.filterwarnings("ignore:.*samples an update")


def train(steps, batch, rank=0, ranks=1, **arguments):
    """Weights of a small model with a table after six updates, and their devices.

    Batch i of a rank is part `rank` of global batch i.
    """
    import keras
    import numpy as np

    import gsnr_tf

    keras.utils.set_random_seed(0)
    table = keras.layers.Embedding(40, 3)
    model = keras.Sequential([table, keras.layers.Flatten(), keras.layers.Dense(1)])
    optimizer = gsnr_tf.GSNRLamb(
        0.05, estimator="robust", sparse="lazy", gradient_accumulation_steps=steps, **arguments
    )
    model.compile(optimizer, "mse", jit_compile=False)
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 40, (96, 2)), rng.normal(size=(96, 1)).astype("float32")
    rows = np.arange(96).reshape(-1, ranks, batch)[:, rank].reshape(-1)
    model.fit(x[rows], y[rows], batch, shuffle=False, verbose=0)
    return model.get_weights(), [weight.value.device for weight in model.weights]


def assert_alike(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_two_devices_cut_from_one_equal_one_process(device, two_devices):
    # NCCL refuses two replicas on one GPU.
    add_up = tf.distribute.ReductionToOneDevice()
    strategy = tf.distribute.MirroredStrategy(two_devices, add_up)
    with strategy.scope():
        together, _ = train(2, 8)
    keras.backend.clear_session()
    alone, _ = train(4, 4)
    assert_alike(together, alone)


def as_rank(sharding):
    import gsnr_tf

    return train(2, 4, gsnr_tf.rank(), gsnr_tf.size(), sharding=sharding)


@pytest.mark.parametrize("sharding", ["slices", "none"])
def test_two_ranks_on_one_gpu_equal_one_process(device, on_two_ranks, sharding):
    (first, places), (other, _) = on_two_ranks(as_rank, sharding)
    assert all(device.partition(":")[0] in place for place in places)
    for one, same in zip(first, other):
        np.testing.assert_array_equal(one, same)
    alone, _ = train(4, 4)
    assert_alike(first, alone)
