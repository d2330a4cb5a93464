"""Which checkpoints fit which job, and what of the user's own comes back unchanged."""

import enum
import warnings
from collections import OrderedDict

import keras
import numpy as np
import pytest
import tensorflow as tf

import gsnr_tf
from gsnr_tf.resilience import (
    CheckpointError,
    checkpoint,
    checkpoint_files,
    checkpoint_fit,
    checkpoint_read,
    names,
)
from gsnr_tf.resilience.client_state import plain

CONFIG = {
    "train_batch_size": 16,
    "gradient_accumulation_steps": 4,
    "optimizer": {"type": "GSNRAdam", "params": {"lr": 0.02}},
    "steps_per_print": None,
}
X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
Y = X[:, :1]


def initialize(model, **config):
    return gsnr_tf.initialize(
        model, {**CONFIG, **config}, "mse", training_data=(X, Y), run_eagerly=True
    )


def chain(*layers, dropout=False):
    """A model of layers from 4 to 4 features, and one that ends in one feature."""
    rest = [keras.layers.Dropout(0.3)] if dropout else []
    return keras.Sequential([keras.Input((4,)), *layers, *rest, keras.layers.Dense(1, name="end")])


def two_of_a_kind(first="a", second="b"):
    return chain(keras.layers.Dense(4, name=first), keras.layers.Dense(4, name=second))


def state(engine):
    variables = [*engine.model.variables, *engine.optimizer.variables]
    return [v.numpy() for v in variables]


def check_unchanged(engine, before):
    for one, other in zip(state(engine), before, strict=True):
        np.testing.assert_array_equal(one, other)


# ---- every bit
# -----------------------------------------------------------------------


def test_no_flipped_bit_is_read_as_something_else(tmp_path):
    """Each byte of the small files, and each 11th of the large ones, has a bit flipped."""
    engine = initialize(chain())
    engine.train_batch()
    engine.save_checkpoint(tmp_path, "a", {"epoch": 1, "best": 0.5})
    saved = state(engine)
    chance = np.random.default_rng(1)
    refused = 0
    for path in [tmp_path / "latest", *sorted((tmp_path / "a").iterdir())]:
        whole = path.read_bytes()
        for place in range(0, len(whole), 1 if len(whole) < 2000 else 11):
            data = bytearray(whole)
            data[place] ^= 1 << int(chance.integers(8))
            path.write_bytes(data)
            try:
                found = checkpoint_files.locate(tmp_path)
                stored = checkpoint_read.read(found)
                stored.close()
            except CheckpointError:
                refused += 1
                continue
            # A blank at the end of `latest`, say.
            engine.model.set_weights([w + 1 for w in engine.model.get_weights()])
            assert engine.load_checkpoint(tmp_path) == (
                str(tmp_path / "a"),
                {"epoch": 1, "best": 0.5},
            )
            check_unchanged(engine, saved)
        path.write_bytes(whole)
    assert refused > 500


# ---- what fits
# -----------------------------------------------------------------------


def test_swapped_layers_of_like_shape_are_refused(tmp_path):
    initialize(two_of_a_kind("a", "b")).save_checkpoint(tmp_path)
    other = initialize(two_of_a_kind("b", "a"))
    before = state(other)
    told = "where the checkpoint has sequential.*/a/kernel, the job has .*/b/kernel"
    with pytest.raises(CheckpointError, match=told):
        other.load_checkpoint(tmp_path)
    check_unchanged(other, before)


def test_numbers_that_a_process_gives_are_no_names(tmp_path):
    def unnamed():
        return chain(keras.layers.Dense(4), keras.layers.Dense(4), dropout=True)

    engine = initialize(unnamed())
    engine.save_checkpoint(tmp_path)
    # More than ten, so that numbers are not in the order of their digits.
    for _ in range(9):
        keras.layers.Dense(4)
    other = initialize(unnamed())
    assert other.model.variables[0].path != engine.model.variables[0].path
    other.load_checkpoint(tmp_path)
    check_unchanged(other, state(engine))


@pytest.mark.parametrize("named", [True, False])
def test_slots_of_other_weights_are_refused(tmp_path, named):
    def freezing(name):
        model = two_of_a_kind()
        model.get_layer(name).trainable = False
        return initialize(model)

    freezing("a").save_checkpoint(tmp_path)
    other = freezing("b")
    before = state(other)
    if named:
        told = "The optimizer's variables do not fit: .*_b_kernel_.*_a_kernel_"
        with pytest.raises(CheckpointError, match=told):
            other.load_checkpoint(tmp_path)
    else:
        # Slots that were kept in slices have no names.
        with checkpoint_read.read(checkpoint_files.locate(tmp_path)) as stored:
            stored.arrays["optimizer"] = [
                array._replace(name=f"optimizer/#{index}")
                for index, array in enumerate(stored.arrays["optimizer"])
            ]
            told = r"alone: \S*/b/kernel \(the checkpoint\), .*/a/kernel \(the job\)"
            with pytest.raises(CheckpointError, match=told):
                checkpoint_fit.match(other.model, stored)
    check_unchanged(other, before)


def test_another_dtype_is_refused(tmp_path):
    initialize(two_of_a_kind()).save_checkpoint(tmp_path)
    keras.config.set_dtype_policy("float64")
    with pytest.raises(CheckpointError, match="kernel is float32 in the .* float64 in"):
        initialize(two_of_a_kind()).load_checkpoint(tmp_path)


def test_another_number_of_random_layers_changes_nothing(tmp_path):
    initialize(chain(dropout=True)).save_checkpoint(tmp_path)
    other = initialize(chain())
    before = state(other)
    with pytest.raises(CheckpointError, match=r"seeds of the shapes \[\(2,\)\]"):
        other.load_checkpoint(tmp_path)
    check_unchanged(other, before)


@pytest.mark.parametrize(
    "given, same",
    [
        (["s/dense/k", "s/dense_1/k"], ["s_4/dense_9/k", "s_4/dense_10/k"]),
        (["dense_3/dense", "dense_5/dense_4"], ["dense_1/dense", "dense_7/dense_2"]),
        (["block_2/k"], ["block/k"]),
    ],
)
def test_only_the_order_of_numbers_counts(given, same):
    assert names.renumbered(given) == names.renumbered(same)


@pytest.mark.parametrize(
    "given, other",
    [
        (["dense/k", "dense_1/k"], ["dense_1/k", "dense/k"]),
        (["dense/k", "dense_1/k"], ["dense/k", "conv/k"]),
        (["dense/k", "dense/k"], ["dense/k", "dense_1/k"]),
        (["block_01/k", "block_1/k"], ["block_1/k", "block_01/k"]),
    ],
)
def test_what_is_in_another_order_has_other_names(given, other):
    assert names.renumbered(given) != names.renumbered(other)


def test_slots_are_named_after_weights():
    one = names.of_slots(
        ["adam/iteration", "adam/s_dense_kernel_m", "adam/s_dense_1_kernel_m", "variable"],
        ["s/dense/kernel", "s/dense_1/kernel"],
    )
    other = names.of_slots(
        [
            "adam_2/iteration",
            "adam_2/s_1_dense_4_kernel_m",
            "adam_2/s_1_dense_5_kernel_m",
            "variable_3",
        ],
        ["s_1/dense_4/kernel", "s_1/dense_5/kernel"],
    )
    assert one == other and len(set(one)) == 4


def test_ranks_that_read_different_checkpoints_of_one_tag_stop(tmp_path):
    engine = initialize(chain())
    engine.save_checkpoint(tmp_path, "a")
    before = state(engine)

    class Ranks:
        def __init__(self):
            self.calls = 0

        def gather(self, value):
            self.calls += 1
            # The name of the tag, then the digest of what it holds.
            strange = isinstance(value, str) and len(value) == 64
            return [value, "0" * 64 if strange else value]

    engine.train_batch()
    before = state(engine)
    with pytest.raises(CheckpointError, match="The ranks see different checkpoints"):
        checkpoint.load(tmp_path, "a", engine.model, Ranks())
    check_unchanged(engine, before)


# ---- what is wanted, and what holds
# --------------------------------------------------

WARMUP = {"type": "WarmupLR", "params": {"warmup_num_steps": 6}}


def trained(tmp_path, **config):
    engine = initialize(chain(dropout=True), **config)
    engine.train_batch()
    engine.train_batch()
    engine.save_checkpoint(tmp_path, "a", {"x": 1})
    return engine


@pytest.mark.parametrize(
    "config",
    [
        {"optimizer": {"type": "Nadam"}},
        {"fp16": {"enabled": True}},
        {"scheduler": WARMUP},
    ],
)
@pytest.mark.parametrize("option", ["load_module_only", "load_optimizer_states"])
def test_weights_go_into_a_job_with_another_optimizer(tmp_path, config, option):
    engine = trained(tmp_path)
    other = initialize(chain(dropout=True), **config)
    before = [v.numpy() for v in other.optimizer.variables]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        path, client_state = other.load_checkpoint(
            tmp_path, **{option: option == "load_module_only"}
        )
    assert path == f"{tmp_path}/a" and client_state == {"x": 1}
    for one, two in zip(engine.model.weights, other.model.weights, strict=True):
        if "seed" not in one.path or option != "load_module_only":
            np.testing.assert_array_equal(one.numpy(), two.numpy())
    for one, two in zip(before, other.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, two.numpy())
    samples = 0 if option == "load_module_only" else 32
    assert (other.global_steps, other.global_samples) == (0, samples)
    assert np.isfinite(other.train_batch())


@pytest.mark.parametrize("policy", ["bfloat16", "float64"])
def test_weights_alone_are_converted(tmp_path, policy):
    engine = trained(tmp_path)
    keras.config.set_dtype_policy(policy)
    other = initialize(chain(dropout=True), optimizer={"type": "Nadam"})
    with pytest.raises(CheckpointError, match="load_module_only=True takes its weights"):
        other.load_checkpoint(tmp_path)
    other.load_checkpoint(tmp_path, load_module_only=True)
    for one, two in zip(engine.model.weights, other.model.weights, strict=True):
        if "seed" not in one.path:
            assert two.dtype == policy
            converted = one.numpy().astype(two.numpy().dtype)
            np.testing.assert_array_equal(converted, two.numpy())


def test_a_constant_rate_is_the_checkpoints_and_this_is_told(tmp_path):
    engine = trained(tmp_path)
    engine.optimizer.learning_rate = 0.125
    engine.save_checkpoint(tmp_path, "b")
    other = initialize(chain(dropout=True))
    with pytest.warns(UserWarning, match="learning rate of 0.125; the job had 0.02"):
        other.load_checkpoint(tmp_path)
    assert other.get_lr() == [0.125] and other.global_steps == 2
    other.optimizer.learning_rate = 0.25
    other.load_checkpoint(tmp_path, load_lr_scheduler_states=False)
    assert other.get_lr() == [0.25] and other.global_steps == 2


@pytest.mark.parametrize("fp16", [False, True])
def test_a_schedule_may_be_added_or_removed_and_the_configuration_holds(tmp_path, fp16):
    both = {"fp16": {"enabled": fp16}}
    trained(tmp_path / "constant", **both)
    reference = trained(tmp_path / "schedule", scheduler=WARMUP, **both)
    added = initialize(chain(dropout=True), scheduler=WARMUP, **both)
    with pytest.warns(UserWarning, match="constant .* the job has a schedule: the job's"):
        added.load_checkpoint(tmp_path / "constant")
    assert added.global_steps == 2 and added.get_lr() == reference.get_lr()
    removed = initialize(chain(dropout=True), **both)
    with pytest.warns(UserWarning, match="schedule, the job has a constant learning"):
        removed.load_checkpoint(tmp_path / "schedule")
    assert removed.global_steps == 2 and removed.get_lr() == [pytest.approx(0.02)]
    assert np.isfinite(removed.train_batch())


def test_another_division_with_a_schedule_is_no_difference(tmp_path):
    trained(tmp_path, scheduler=WARMUP)
    other = initialize(chain(dropout=True), scheduler=WARMUP, gradient_accumulation_steps=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        other.load_checkpoint(tmp_path)


def test_a_schedule_cannot_be_parted_from_the_count_of_updates(tmp_path):
    engine = trained(tmp_path, scheduler=WARMUP)
    before = state(engine)
    with pytest.raises(CheckpointError, match="load_optimizer_states=False both begin"):
        engine.load_checkpoint(tmp_path, load_lr_scheduler_states=False)
    check_unchanged(engine, before)


def test_settings_are_the_jobs_and_a_difference_is_told(tmp_path):
    trained(tmp_path)
    params = {"lr": 0.02, "betas": [0.8, 0.999]}
    other = initialize(
        chain(dropout=True),
        optimizer={"type": "GSNRAdam", "params": params},
        # How the work is divided is no difference.
        gradient_accumulation_steps=8,
    )
    told = r"^The job's settings hold: beta_1=0.8 \(checkpoint: 0.9\).$"
    with pytest.warns(UserWarning, match=told):
        other.load_checkpoint(tmp_path)
    assert other.optimizer.beta_1 == 0.8


# ---- what is not finite
# --------------------------------------------------------------


def test_weights_that_are_not_finite_are_saved_with_a_word(tmp_path):
    engine = initialize(two_of_a_kind())
    kernel = engine.model.get_layer("b").kernel
    kernel.assign(tf.tensor_scatter_nd_update(kernel, [[0, 1]], [np.nan]))
    engine.model.get_layer("end").bias.assign([np.inf])
    told = "weights that are not finite: sequential.*/b/kernel and 1 more"
    with pytest.warns(UserWarning, match=told):
        engine.save_checkpoint(tmp_path)
    with pytest.warns(UserWarning, match=told):
        engine.load_checkpoint(tmp_path)
    with checkpoint_read.read(checkpoint_files.locate(tmp_path)) as stored:
        assert [name.split("/")[-2:] for name in stored.about["not_finite"]] == [
            ["b", "kernel"],
            ["end", "bias"],
        ]


def test_of_finite_weights_nothing_is_said(tmp_path):
    engine = initialize(chain())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        engine.save_checkpoint(tmp_path)
        engine.load_checkpoint(tmp_path)


# ---- the user's own
# ------------------------------------------------------------------


def test_scalars_of_numpy_are_welcome(tmp_path):
    given = {
        "best": np.float32(0.1),
        "epoch": np.int64(3),
        "done": np.bool_(True),
        "name": np.str_("x"),
        "losses": [np.float64(1.5), {"deep": [None, "ü", 2**70]}],
        "ordered": OrderedDict(a=1),
    }
    engine = initialize(chain())
    engine.save_checkpoint(tmp_path, client_state=given)
    found = engine.load_checkpoint(tmp_path)[1]
    assert found == given and type(found["epoch"]) is int
    assert found["best"] == float(np.float32(0.1))


def test_client_state_is_a_dict(tmp_path):
    with pytest.raises(CheckpointError, match="must be a dict. Received: list"):
        initialize(chain()).save_checkpoint(tmp_path, client_state=[1])


class Colour(enum.IntEnum):
    RED = 1


def itself():
    own = {}
    own["own"] = own
    return own


@pytest.mark.parametrize(
    "value, told",
    [
        ({"a": {1: 2}}, r"the key 1 of type int at client_state\['a'\]; keys must be"),
        ({"a": [0, (1, 2)]}, r"\(1, 2\) of type tuple at client_state\['a'\]\[1\]; it"),
        ({"a": {1}}, r"of type set at client_state\['a'\]; it would come back as"),
        ({"a": float("nan")}, r"nan of type float at .*; JSON has no such number"),
        ({"a": np.float32("inf")}, "inf of type float at .*; JSON has no such number"),
        ({"a": X}, r"of type ndarray at client_state\['a'\]; use value.tolist"),
        ({"a": tf.constant(1.0)}, r"at client_state\['a'\]; use float\(value\)"),
        ({"a": b"x"}, r"b'x' of type bytes at client_state\['a'\]; JSON holds"),
        ({"a": Colour.RED}, r"of type Colour at client_state\['a'\]; use int\(value\)"),
        ({"a": 10**5000}, r"client_state\['a'\]; it has too many digits"),
        ({"a": 1j}, r"1j of type complex"),
        (itself(), "nested too deeply, or contains itself"),
    ],
)
def test_what_json_would_change_is_refused_with_its_place(value, told):
    with pytest.raises(CheckpointError, match=told) as error:
        plain(value)
    assert len(str(error.value)) < 1000
