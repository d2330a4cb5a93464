"""Rows of tables that are touched are updated as the contract says, and no others."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import gsnr_tf
from gsnr_tf.sharding import replicated, row_kernels
from gsnr_tf.sharding.row_exchange import pack, unpack
from gsnr_tf.sharding.tables import Tables
from gsnr_tf.stats.sparse import merged_sparse
from tests.problems import OPTIMIZERS, ROWS, VARIANTS, assert_close, values, variant

pytestmark = pytest.mark.filterwarnings("ignore:.*samples an update")
K = 4
# Two tables of one width, one of another, what stands on them, and a table that no
# `Embedding` made.
SHAPES = {
    "a/embeddings": (23, 5),
    "b/embeddings": (9, 5),
    "c/embeddings": (31, 3),
    "kernel": (5, 4),
    "factors": (12, 2, 2),
}
TABLES = [name for name in SHAPES if name != "kernel"]


def is_table(name):
    return name in TABLES


class Samples:
    """The gradients of some updates: of tables, ids with repetitions and their rows."""

    def __init__(self, updates=3, k=K, seed=0):
        rng = np.random.default_rng(seed)
        self.weights = [rng.normal(size=s).astype("float32") for s in SHAPES.values()]
        self.updates = [[self.one(rng) for _ in range(k)] for _ in range(updates)]

    def one(self, rng):
        made = []
        for name, shape in SHAPES.items():
            if not is_table(name):
                made.append(rng.normal(1.0, 0.5, size=shape).astype("float32"))
                continue
            many = int(rng.integers(0, 9))
            ids = rng.integers(0, shape[0], many)
            made.append((ids, rng.normal(0.5, 1.0, [many, *shape[1:]]).astype("float32")))
        return made


def variables(samples, dtype):
    made = []
    for name, weight in zip(SHAPES, samples.weights):
        short = name.rsplit("/", 1)[-1]
        made.append(keras.Variable(weight.astype(dtype), dtype=dtype, name=short))
    return made


def gradient(part, variable):
    if not isinstance(part, tuple):
        return tf.convert_to_tensor(part, variable.dtype)
    ids, rows = part
    return tf.IndexedSlices(
        tf.constant(rows, variable.dtype), tf.constant(ids), tf.constant(variable.shape)
    )


def dense(part, shape):
    if not isinstance(part, tuple):
        return part.astype("float64")
    whole = np.zeros(shape)
    np.add.at(whole, part[0], part[1].astype("float64"))
    return whole


def feed(optimizer, made, samples):
    for sample in samples:
        gradients = [gradient(part, v) for part, v in zip(sample, made)]
        optimizer.apply_gradients(zip(gradients, made))


class Lazy:
    """A reference that is shown, of each table, the touched rows as if it had no others."""

    def __init__(self, reference):
        self.reference = reference

    def step(self, weights, samples):
        touched = []
        for index, (name, weight) in enumerate(zip(SHAPES, weights)):
            ids = [s[index][0] for s in samples] if is_table(name) else [np.arange(len(weight))]
            touched.append(np.unique(np.concatenate(ids)).astype(int))
        state = self.reference.state
        if state is None:
            state = [{s: np.zeros_like(w) for s in self.reference.slots} for w in weights]
        self.reference.state = [
            {s: slot[rows] for s, slot in slots.items()} for slots, rows in zip(state, touched)
        ]
        own = [
            [dense(p, w.shape)[rows] for p, w, rows in zip(one, weights, touched)]
            for one in samples
        ]
        short = [name.rsplit("/", 1)[-1] for name in SHAPES]
        found = self.reference.step([w[r] for w, r in zip(weights, touched)], own, paths=short)
        new = [w.copy() for w in weights]
        for w, rows, value in zip(new, touched, found):
            w[rows] = value
        for slots, rows, after in zip(state, touched, self.reference.state):
            for name, value in after.items():
                slots[name][rows] = value
        self.reference.state = state
        return new


def compare(row, dtype="float64", **more):
    samples = Samples()
    made = variables(samples, dtype)
    optimizer = row.make(gradient_accumulation_steps=K, sparse="lazy", **more)
    expected = Lazy(row.make_reference(**more))
    weights = [w.astype("float64") for w in samples.weights]
    rounding = {"float32": 2e-5, "float64": 1e-12}[dtype]
    for update in samples.updates:
        feed(optimizer, made, update)
        weights = expected.step(weights, update)
        for name, found, new in zip(SHAPES, values(made), weights):
            assert_close([found], [new], rounding, rounding * np.abs(new).max(), name)
        for slot, found in optimizer._slots.items():
            slots = [of[slot] for of in expected.reference.state]
            assert_close(values(found), slots, rounding, rounding, slot)
    return optimizer


@pytest.mark.smoke
@pytest.mark.parametrize("row", OPTIMIZERS)
def test_touched_rows(row):
    compare(OPTIMIZERS[row])


@pytest.mark.parametrize("row", ["nesterov", "adam decay", "lamb l2", "lars gated", "lamb all"])
def test_decays_act_on_touched_rows(row):
    compare(VARIANTS[row])


@pytest.mark.parametrize(
    "row", ["adam james_stein gated", "lamb robust outside", "sgd paper inside"]
)
def test_tables_that_are_judged_by_row(row):
    compare(ROWS[row])


@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_clipping(clip):
    compare(OPTIMIZERS["adam"], **{clip: 0.5})


@pytest.mark.parametrize("row", ["adam", "lamb robust", "nesterov"])
def test_compiled_for_a_few_rows_at_a_time(row, monkeypatch):
    monkeypatch.setattr(replicated, "_WORTH_COMPILING", 1)
    monkeypatch.setattr(row_kernels, "_ELEMENTS", 20)
    compare(VARIANTS[row])


def test_float32():
    compare(OPTIMIZERS["adam"], "float32")


def test_sgd_without_momentum_and_decay_is_what_it_is_with_dense_tables():
    samples = Samples()
    found = []
    for sparse in ("lazy", "dense"):
        made = variables(samples, "float64")
        optimizer = variant("sgd", global_clipnorm=0.5).make(
            gradient_accumulation_steps=K, sparse=sparse
        )
        for update in samples.updates:
            feed(optimizer, made, update)
        found.append(values(made))
        assert (optimizer.gradient_norm.numpy() > 0.5) and optimizer._layout.is_table == [
            sparse == "lazy" and is_table(name) for name in SHAPES
        ]
    assert_close(*found, 1e-12, 1e-12)


def test_variances_keep_their_digits_where_samples_nearly_agree():
    """Relative error below 1e-3 at |mean|/std = 1e3, also by unequal weights."""
    rng = np.random.default_rng(0)
    k, rows = 5, 200
    means = (1000 + rng.normal(size=(k, rows, 4))).astype("float32")
    weights = np.array([3.0, 1.0, 2.0, 7.0, 3.0], "float32")
    found = merged_sparse(
        tf.constant(np.tile(np.arange(rows), k)),
        tf.constant(means.reshape(-1, 4)),
        None,
        tf.constant(np.repeat(np.arange(k), rows)),
        tf.constant(weights),
    )
    share = (weights / weights.sum()).astype("float64")[:, None, None]
    mean = (share * means.astype("float64")).sum(axis=0)
    variance = (share * (means - mean) ** 2).sum(axis=0)
    np.testing.assert_allclose(found.m2 / found.weight, variance, rtol=1e-3)


def test_a_gradient_that_names_no_row_of_the_table_is_an_error_that_says_which():
    table = keras.Variable(np.zeros((4, 2), "float32"), name="embeddings")
    optimizer = gsnr_tf.GSNRSGD(0.1, gradient_accumulation_steps=2, sparse="lazy")
    optimizer.build([table])
    for bad in (4, -1):
        slices = tf.IndexedSlices(tf.ones([2, 2]), tf.constant([1, bad]), tf.constant([4, 2]))
        with pytest.raises(
            tf.errors.InvalidArgumentError,
            match=rf"embeddings, which has 4 rows, names row {bad}\.",
        ):
            optimizer.apply_gradients([(slices, table)])


def test_a_window_that_has_begun_goes_on_in_a_loaded_optimizer(tmp_path):
    inputs = np.arange(24).reshape(12, 2) % 7
    labels = np.linspace(0, 1, 12, dtype="float32")[:, None]

    def model():
        keras.utils.set_random_seed(1)
        made = keras.Sequential(
            [keras.layers.Embedding(7, 3), keras.layers.Flatten(), keras.layers.Dense(1)]
        )
        made.compile(gsnr_tf.GSNRAdam(0.1, gradient_accumulation_steps=4, sparse="lazy"), "mse")
        made.build((None, 2))
        return made

    def train(made, start, stop):
        made.fit(inputs[start:stop], labels[start:stop], 2, shuffle=False, verbose=0)

    whole = model()
    train(whole, 0, 12)
    part = model()
    train(part, 0, 6)
    assert part.optimizer.calls_in_window == 3
    part.save(tmp_path / "part.keras")
    loaded = keras.models.load_model(tmp_path / "part.keras")
    train(loaded, 6, 12)
    for one, other in zip(whole.get_weights(), loaded.get_weights()):
        np.testing.assert_array_equal(one, other)


def test_small_tables_are_dense_unless_asked_for():
    small, large = (keras.layers.Embedding(rows, 4) for rows in (100, 300_000))
    for layer in (small, large):
        layer.build()
    for sparse, expected in (("auto", [False, True]), ("lazy", [True] * 2), ("dense", [False] * 2)):
        optimizer = gsnr_tf.GSNRSGD(0.1, gradient_accumulation_steps=2, sparse=sparse)
        tables = [small.embeddings, large.embeddings]
        optimizer.build(tables)
        slices = tf.IndexedSlices(tf.ones([1, 4]), tf.constant([3]))
        optimizer.apply_gradients([(slices, table) for table in tables])
        assert optimizer._layout.is_table == expected


def test_a_table_of_which_all_rows_have_a_gradient_is_no_sparse_one():
    """A dense gradient of a variable that is called as a table is: its kind is settled by
    the gradient, and what was accumulated stays."""
    table = keras.Variable(np.ones((6, 2), "float32"), name="embeddings")
    optimizer = gsnr_tf.GSNRSGD(0.5, gamma=1.0, gradient_accumulation_steps=2, sparse="lazy")
    optimizer.build([table])
    assert optimizer._layout.is_table == [True]
    for _ in range(2):
        optimizer.apply_gradients([(tf.ones([6, 2]), table)])
    assert optimizer._layout.is_table == [False]
    np.testing.assert_allclose(table, np.full((6, 2), 0.5))


def test_one_matrix_as_table_and_as_weights():
    """Tied weights: the gradient of the lookup and of the product come as one."""
    table = keras.Variable(np.ones((6, 2), "float32"), name="embeddings")

    def trained(sparse):
        table.assign(np.linspace(0, 1, 12).reshape(6, 2))
        optimizer = gsnr_tf.GSNRAdam(0.1, gradient_accumulation_steps=2, sparse=sparse)
        optimizer.build([table])
        for ids in ([1, 2], [2, 3]):
            with tf.GradientTape() as tape:
                looked_up = tf.gather(table.value, ids)
                logits = tf.matmul(looked_up, table.value, transpose_b=True)
                loss = tf.reduce_sum(tf.square(logits))
            gradient = tape.gradient(loss, table.value)
            optimizer.apply_gradients([(gradient, table)])
        return table.numpy()

    np.testing.assert_allclose(trained("lazy"), trained("dense"), rtol=1e-6)


def test_xla_has_dense_tables():
    model = keras.Sequential(
        [keras.layers.Embedding(7, 3), keras.layers.Flatten(), keras.layers.Dense(1)]
    )
    optimizer = gsnr_tf.GSNRAdam(0.1, gradient_accumulation_steps=2, sparse="lazy")
    model.compile(optimizer, "mse", jit_compile=True)
    model.fit(np.arange(8).reshape(4, 2) % 7, np.ones([4, 1]), 1, verbose=0)
    assert optimizer._layout.is_table == [False] * 3
    assert int(optimizer.iterations) == 2


def test_what_is_recorded_is_that_of_a_dense_table_of_which_all_rows_are_touched():
    rng = np.random.default_rng(0)
    found = {}
    for sparse in ("lazy", "dense"):
        table = keras.Variable(np.ones((40, 3), "float32"), name="embeddings")
        optimizer = gsnr_tf.GSNRLamb(0.1, gradient_accumulation_steps=2, sparse=sparse)
        optimizer.watch(1)
        optimizer.build([table])
        rng = np.random.default_rng(0)
        for _ in range(4):
            rows = tf.constant(rng.normal(1, 1, (40, 3)), "float32")
            slices = tf.IndexedSlices(rows, tf.constant(rng.permutation(40)))
            optimizer.apply_gradients([(slices, table)])
        record = optimizer.watched()
        assert record.update == 2 and record.samples == 2
        found[sparse] = record.summary
    for one, other in zip(found["lazy"], found["dense"]):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_what_is_recorded_where_no_row_is_touched():
    table = keras.Variable(np.ones((40, 3), "float32"), name="embeddings")
    optimizer = gsnr_tf.GSNRAdam(0.1, gradient_accumulation_steps=2, sparse="lazy")
    optimizer.watch(1)
    optimizer.build([table])
    for _ in range(2):
        empty = tf.IndexedSlices(tf.zeros([0, 3]), tf.zeros([0], tf.int64))
        optimizer.apply_gradients([(empty, table)])
    assert all(np.isfinite(part).all() for part in optimizer.watched().summary)
    np.testing.assert_array_equal(table, np.ones((40, 3)))


@pytest.mark.parametrize("rows", [40, 3_000_000_000])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_ids_of_any_size_travel_with_rows_of_any_dtype(rows, dtype):
    """Above 2^31 as well, and also in two bytes."""
    shapes = [(rows, 2), (rows, 2)]
    tables = Tables([0, 1], shapes, tf.float32, tf.float32, by_row=False)
    ids = np.array([0, rows // 2, rows - 1])
    values = np.arange(6, dtype="float32").reshape(3, 2)
    slices = tf.IndexedSlices(tf.constant(values), tf.constant(ids, tf.int64))
    found = tables.pack([slices, slices])
    np.testing.assert_array_equal(found.keys, np.concatenate([ids, ids + rows]))
    sent = found._replace(values=tf.cast(found.values, dtype))
    came = unpack(pack(sent), tables)
    np.testing.assert_array_equal(came.keys, found.keys)
    np.testing.assert_array_equal(came.values, sent.values)
    for position, (_, own) in enumerate(tables.split(came.keys)):
        np.testing.assert_array_equal(own, ids)
        part = tables.of_table(position, came.values, tables.split(came.keys))
        np.testing.assert_array_equal(tf.cast(part.values, tf.float32), values)


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
def test_every_row_has_one_owner(shards):
    tables = Tables([0, 1, 2], [(5, 2), (1, 2), (11, 2)], tf.float32, tf.float32, by_row=False)
    assert sum(tables.owned(shard, shards) for shard in range(shards)) == tables.rows == 17
    for position, (rows, _) in enumerate(tables.shapes):
        found = np.concatenate(
            [np.arange(rows)[tables.own_rows(position, s, shards)] for s in range(shards)]
        )
        np.testing.assert_array_equal(np.sort(found), np.arange(rows))
        for shard in range(shards):
            keys = tables.offsets[position] + np.arange(rows)
            own = keys[keys % shards == shard]
            first, last = tables.own_range(position, shard, shards)
            np.testing.assert_array_equal(own // shards, np.arange(first, last))
            np.testing.assert_array_equal(keys[tables.own_rows(position, shard, shards)], own)


def test_a_row_that_is_not_finite_skips_the_update_and_is_named():
    fine = keras.Variable(np.ones((4, 2), "float32"), name="embeddings")
    with keras.name_scope("bad"):
        bad = keras.Variable(np.ones((6, 2), "float32"), name="embeddings")
    optimizer = gsnr_tf.GSNRAdam(
        0.1, gradient_accumulation_steps=2, sparse="lazy", max_consecutive_skips=2
    )
    optimizer.build([fine, bad])

    def update(value):
        for _ in range(2):
            slices = [tf.IndexedSlices(tf.fill([1, 2], v), tf.constant([3])) for v in (1.0, value)]
            optimizer.apply_gradients(zip(slices, [fine, bad]))

    update(float("nan"))
    assert int(optimizer.skipped_steps) == 1 and int(optimizer.iterations) == 0
    np.testing.assert_array_equal(fine, np.ones((4, 2)))
    update(1.0)
    assert float(fine[3, 0]) < 1 and int(optimizer.iterations) == 1
    update(float("inf"))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"gradient of bad/embeddings is not"):
        update(float("nan"))
