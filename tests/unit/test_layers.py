"""Few rows for many variables."""

from hypothesis import given, settings
from hypothesis import strategies as st

from gsnr_tf.monitor import layers

parts = st.lists(st.sampled_from(["a", "block", "kernel", "x"]), min_size=1, max_size=4)
paths = st.lists(parts.map("/".join), min_size=1, max_size=90)


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(paths, st.integers(1, 60))
def test_groups_are_few_and_hold_every_variable_once(paths, most):
    groups = layers.group(paths, most)
    assert len(groups) <= most
    assert [index for _, members in groups for index in members] == list(range(len(paths)))


def test_few_variables_stay_single():
    assert layers.group(["a/kernel", "a/bias"], 2) == [("a/kernel", [0]), ("a/bias", [1])]


def test_blocks_stay_together_before_the_model_does():
    paths = [f"encoder/block_{i}/{v}" for i in range(50) for v in ("kernel", "bias")]
    groups = layers.group(["table", *paths], 60)
    assert groups[0] == ("table", [0])
    assert groups[1] == ("encoder/block_0 (2)", [1, 2]) and len(groups) == 51


def test_names_without_parts_go_together_with_their_neighbours():
    groups = layers.group([f"dense_{i}" for i in range(300)], 60)
    assert len(groups) == 60 and groups[0] == ("dense_0 … dense_4 (5)", [0, 1, 2, 3, 4])


def test_long_labels_keep_both_ends():
    assert layers.short("encoder/block_12/attention/query/kernel", 20) == "encoder/b…ery/kernel"
    assert layers.short("bias", 20) == "bias"
