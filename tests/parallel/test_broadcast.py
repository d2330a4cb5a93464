"""`Communicator.broadcast` gives all ranks the bits of the root, whatever the dtype."""

import numpy as np
import pytest

NUMBERS = [
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e5m2", "int4", "uint4"),
]


def bits_of_root(dtypes, root):
    import numpy as np
    import tensorflow as tf

    import gsnr_tf
    from gsnr_tf import comm

    rng = np.random.default_rng(gsnr_tf.rank())
    variables = []
    for dtype in map(tf.as_dtype, dtypes):
        kind = np.dtype(dtype.as_numpy_dtype)
        if dtype.name.endswith("int4"):
            value = rng.integers(0, 8, (3, 2)).astype(kind)
        elif dtype == tf.bool:
            value = rng.integers(0, 2, (3, 2)).astype(bool)
        else:
            # Any bits at all, but NaN: float8 has several, which mean the same.
            value = rng.integers(0, 256, (3, 2, kind.itemsize), np.uint8).view(kind)[..., 0]
            value = np.where(value == value, value, np.zeros_like(value))
        variables += [tf.Variable(value), tf.Variable(value[0, 0])]
    before = [v.numpy() for v in variables]
    communicator = comm.choose("auto", tf.distribute.get_strategy())
    communicator.broadcast(variables, root)
    after = [v.numpy() for v in variables]
    return [[(v.dtype.name, v.shape, v.tobytes()) for v in w] for w in (before, after)]


@pytest.mark.parametrize("root", [0, 1])
def test_numbers_of_every_dtype_come_from_the_root_bit_for_bit(on_ranks, root):
    results = on_ranks(2, bits_of_root, NUMBERS, root)
    mine, others = results[root], results[1 - root]
    assert all(a != b for a, b in zip(mine[0][::2], others[0][::2])), "nothing to share"
    assert mine[1] == mine[0]
    assert others[1] == mine[0]


def strings_of_root():
    import tensorflow as tf

    import gsnr_tf
    from gsnr_tf import comm

    own = [[["a", b"\x00\xff"], ["", "Grüße"]], [["longer " * 50, "b"], ["c", "d"]]]
    strings = tf.Variable(own[gsnr_tf.rank()])
    scalar = tf.Variable(f"rank {gsnr_tf.rank()}")
    communicator = comm.choose("auto", tf.distribute.get_strategy())
    communicator.broadcast([strings, scalar], 1)
    first = strings.numpy().tolist()
    strings.assign(own[gsnr_tf.rank()])
    communicator.broadcast([strings, scalar], 0)
    return first, strings.numpy().tolist(), scalar.numpy()


def test_strings_come_from_the_root_though_their_lengths_differ(on_ranks):
    for by_1, by_0, scalar in on_ranks(2, strings_of_root):
        assert by_1 == [[b"longer " * 50, b"b"], [b"c", b"d"]]
        assert by_0 == [[b"a", b"\x00\xff"], [b"", "Grüße".encode()]]
        assert scalar == b"rank 1"


def unknown():
    import tensorflow as tf

    from gsnr_tf.comm import horovod

    try:
        horovod.broadcast(tf.constant(np.zeros(2), tf.as_dtype("float8_e5m2fnuz")), 0, "x")
    except TypeError as error:
        return str(error)


def test_a_dtype_that_cannot_be_sent_is_named(on_ranks):
    for message in on_ranks(2, unknown):
        assert "float8_e5m2fnuz cannot be sent" in message


def state_of_odd_dtypes():
    import keras
    import numpy as np

    import gsnr_tf

    rank = gsnr_tf.rank()

    class Counts(keras.layers.Layer):
        def build(self, shape):
            for dtype in ("uint32", "uint64", "complex64", "bool", "bfloat16", "float64"):
                variable = self.add_weight(
                    shape=(2,), dtype=dtype, trainable=False, name=dtype, autocast=False
                )
                variable.assign(np.array([rank, rank + 1]) % 3)
            self.exact = self.add_weight(
                shape=(), dtype="float64", trainable=False, name="third", autocast=False
            )
            self.exact.assign(np.float64(1 / 3) + rank * 2.0**-50)

        def call(self, inputs):
            return inputs

    model = keras.Sequential([keras.Input((2,)), Counts(), keras.layers.Dense(1)])
    model.compile(optimizer=gsnr_tf.GSNRSGD(0.1), loss="mse")
    x = np.ones((4, 2), "float32")
    callback = gsnr_tf.callbacks.BroadcastGlobalVariablesCallback(root_rank=1)
    model.fit(x, x[:, :1], verbose=0, callbacks=[callback])
    return [(v.path, str(v.dtype), v.numpy().tobytes()) for v in model.layers[0].variables]


def test_state_of_layers_is_shared_in_every_dtype(on_ranks):
    first, second = on_ranks(2, state_of_odd_dtypes)
    assert first == second
    assert first[-1][2] == np.float64(1 / 3 + 2.0**-50).tobytes()
