"""Decay as an argument of the optimizers: by patterns, and where it enters."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import gsnr_tf
from tests.problems import OPTIMIZERS, values

pytestmark = pytest.mark.filterwarnings("ignore:.*samples an update")
every = pytest.mark.parametrize("row", OPTIMIZERS.values(), ids=list(OPTIMIZERS))


def variables(*names):
    return [keras.Variable(np.ones((4, 3), "float32"), name=name) for name in names]


def update(optimizer, weights, gradient=0.0):
    for _ in range(optimizer.gradient_accumulation_steps):
        optimizer.apply_gradients([(tf.fill(v.shape, gradient), v) for v in weights])
    return values(weights)


@pytest.mark.parametrize("argument", ["l2", "weight_decay"])
def test_the_first_pattern_that_fits_holds(argument):
    weights = variables("user_table", "item_table", "kernel")
    decay = {"user": 0.5, "table": 0.25}
    optimizer = gsnr_tf.GSNRSGD(1.0, gradient_accumulation_steps=2, **{argument: decay})
    user, item, kernel = update(optimizer, weights)
    np.testing.assert_array_equal(user, np.full((4, 3), 0.5))
    np.testing.assert_array_equal(item, np.full((4, 3), 0.75))
    np.testing.assert_array_equal(kernel, np.ones((4, 3)))


def test_a_number_spares_what_is_excluded():
    weights = variables("kernel", "scale")
    optimizer = gsnr_tf.GSNRSGD(
        1.0, l2=0.5, exclude_from_weight_decay=["scale"], gradient_accumulation_steps=2
    )
    kernel, scale = update(optimizer, weights)
    assert np.all(kernel == 0.5) and np.all(scale == 1.0)


def test_gated_decay_is_whole_where_there_is_no_gradient_and_none_where_all_agree():
    arguments = {"l2": 0.5, "l2_form": "gated", "gradient_accumulation_steps": 2}
    untouched = update(gsnr_tf.GSNRSGD(1.0, **arguments), variables("kernel"))
    np.testing.assert_array_equal(untouched[0], np.full((4, 3), 0.5))
    agreed = update(gsnr_tf.GSNRSGD(1.0, **arguments), variables("kernel"), gradient=0.25)
    np.testing.assert_array_equal(agreed[0], np.full((4, 3), 0.75))


@every
def test_arguments_survive_saving(row):
    made = row.make(l2={"a": 0.5}, l2_form="gated", granularity="row", weight_decay={"b": 1.0})
    config = made.get_config()
    assert config["l2"] == {"a": 0.5} and type(config["l2"]) is dict
    assert type(made).from_config(config).get_config() == config


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"l2": -1.0}, "l2 must be a number of at least 0.*l2=-1.0"),
        ({"l2": {"a": "b"}}, "l2 must be a number of at least 0"),
        ({"weight_decay": {"(": 1.0}}, r"weight_decay has '\(', which is not a regular"),
        ({"l2_form": "within"}, r"l2_form must be one of \('inside', .*Received: 'within'"),
        ({"granularity": "table"}, "granularity must be one of .*Received: 'table'"),
    ],
)
@every
def test_what_makes_no_sense_is_refused(row, arguments, message):
    with pytest.raises(ValueError, match=message):
        row.make(**arguments)


def test_a_pattern_that_fits_nothing_is_told():
    optimizer = gsnr_tf.GSNRSGD(1.0, l2={"embedings": 0.1}, gradient_accumulation_steps=2)
    with pytest.warns(UserWarning, match="'embedings' matches no variable"):
        optimizer.build(variables("embeddings"))


def test_a_regularizer_in_a_layer_is_told_with_the_argument_that_replaces_it():
    table = keras.layers.Embedding(5, 3, embeddings_regularizer=keras.regularizers.L2(1e-4))
    table.build()
    optimizer = gsnr_tf.GSNRAdam(gradient_accumulation_steps=2)
    with pytest.warns(UserWarning, match=r"l2=\{'\^embedding.*embeddings\$': 0.0002\}"):
        optimizer.build(table.trainable_variables)


def test_as_an_argument_it_is_what_a_regularizer_does_to_plain_sgd():
    def trained(regularizer, **arguments):
        table = keras.layers.Embedding(
            6, 3, embeddings_initializer="ones", embeddings_regularizer=regularizer
        )
        model = keras.Sequential([keras.Input((2,), dtype="int32"), table])
        optimizer = gsnr_tf.GSNRSGD(0.5, gamma=1.0, gradient_accumulation_steps=2, **arguments)
        model.compile(optimizer, "mse")
        x = np.array([[0, 1], [2, 3], [0, 0], [4, 4]])
        model.fit(x, np.zeros((4, 2, 3)), batch_size=1, epochs=3, shuffle=False, verbose=0)
        return model.get_weights()[0]

    with pytest.warns(UserWarning, match="regularizer"):
        by_loss = trained(keras.regularizers.L2(0.05))
    by_argument = trained(None, l2={"embeddings": 0.1})
    np.testing.assert_allclose(by_argument, by_loss, rtol=1e-6)
