"""The flat vector of blocks that all variables share."""

import numpy as np
import pytest
import tensorflow as tf

from gsnr_tf.sharding.layout import BLOCK, FlatLayout

SHAPES = [(5, 3), (), (BLOCK,), (300, 2), (3,), (0, 4)]


@pytest.mark.parametrize("missing", [[], [1], [0, 3, 5], list(range(len(SHAPES)))])
def test_any_range_is_a_part_of_the_whole(missing):
    rng = np.random.default_rng(0)
    values = [tf.constant(rng.normal(size=shape)) for shape in SHAPES]
    layout = FlatLayout([tf.Variable(value) for value in values])
    given = [None if i in missing else value for i, value in enumerate(values)]
    flat = layout.pack(given).numpy()
    assert flat.shape == (layout.size,) == (len(layout.owner) * BLOCK,)
    for index, (found, value) in enumerate(zip(layout.unpack(flat), values)):
        np.testing.assert_array_equal(found, value * (index not in missing))
    for start in range(0, layout.size + 1, BLOCK // 2):
        for stop in range(start, layout.size + 1, BLOCK // 2):
            part = layout.pack_range(given, start, stop)
            np.testing.assert_array_equal(part, flat[start:stop])


def test_a_block_belongs_to_one_variable():
    layout = FlatLayout([tf.Variable(tf.ones(shape)) for shape in SHAPES])
    assert layout.dtype == tf.float32
    for index, shape in enumerate(SHAPES):
        start, size = layout.span(index)
        assert size == np.prod(shape)
        owners = set(layout.owner[start // BLOCK : -(-(start + size) // BLOCK)])
        assert owners <= {index}
