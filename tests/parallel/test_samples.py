"""Where the samples come from makes no difference to the update."""

import numpy as np
import pytest

OPTIMIZERS = {
    "sgd": ("GSNRSGD", {"momentum": 0.9, "weight_decay": 0.01}),
    "adam": ("GSNRAdam", {"weight_decay": 0.01}),
    "robust": ("GSNRAdam", {"weight_decay": 0.01, "estimator": "robust"}),
    "lars": ("GSNRLars", {"weight_decay": 0.01}),
    "lamb": ("GSNRLamb", {"weight_decay": 0.01, "global_clipnorm": 1.0}),
}
SHAPES = [(5, 3), (3,), (), (2, 2, 4)]
UPDATES = 3


def samples(number):
    """`[update][sample][variable]`, with elements on which all samples agree."""
    rng = np.random.default_rng(7)
    made = []
    for _ in range(UPDATES):
        common = [rng.normal(size=shape) for shape in SHAPES]
        parts = [
            [(c + rng.normal(size=c.shape)).astype("float32") for c in common]
            for _ in range(number)
        ]
        for part in parts:
            part[0][1] = 0  # a row that no example touches
            part[0][2] = parts[0][0][2]  # a row on which all samples agree
        made.append(parts)
    return made


def train(name, arguments, own, steps):
    """Weights after each update, from one worker's samples `[update][sample]`."""
    import keras
    import numpy as np
    import tensorflow as tf

    import gsnr_tf

    rng = np.random.default_rng(1)
    shapes = [gradient.shape for gradient in own[0][0]]
    variables = [keras.Variable(rng.normal(size=shape)) for shape in shapes]
    optimizer = getattr(gsnr_tf, name)(
        0.1, gradient_accumulation_steps=steps, name="under_test", **arguments
    )
    optimizer.build(variables)
    apply = tf.function(lambda *g: optimizer.apply_gradients(zip(g, variables)))
    history = []
    for window in own:
        for sample in window:
            apply(*[tf.constant(gradient) for gradient in sample])
        history.append([v.numpy() for v in variables])
    return history, optimizer.samples, apply.experimental_get_tracing_count()


def train_part(name, arguments, data, steps):
    """What a rank does: takes its samples of each update, trains."""
    import gsnr_tf

    first = gsnr_tf.rank() * (steps or 1)
    own = [update[first : first + (steps or 1)] for update in data]
    return train(name, arguments, own, steps)


@pytest.mark.parametrize(
    "optimizer, ranks, steps",
    [
        *((name, 2, 3) for name in OPTIMIZERS),
        *(
            pytest.param(name, 3, None, marks=() if name == "lamb" else pytest.mark.slow)
            for name in OPTIMIZERS
        ),
    ],
)
def test_ranks_equal_one_process_that_holds_their_samples(on_ranks, optimizer, ranks, steps):
    name, arguments = OPTIMIZERS[optimizer]
    number = ranks * (steps or 1)
    data = samples(number)
    expected, _, _ = train(name, arguments, data, number)
    results = on_ranks(ranks, train_part, name, arguments, data, steps)
    for history, k, traces in results:
        assert k == number
        assert traces == 1
        for update, (weights, alone) in enumerate(zip(history, expected)):
            for weight, one in zip(weights, alone):
                np.testing.assert_allclose(
                    weight, one, rtol=2e-5, atol=2e-6, err_msg=f"update {update}"
                )
        for weights, first in zip(history[-1], results[0][0][-1]):
            np.testing.assert_array_equal(weights, first)


def unequal_parts(data, examples):
    import keras
    import tensorflow as tf

    import gsnr_tf

    variable = keras.Variable(tf.ones([4]))
    optimizer = gsnr_tf.GSNRSGD(0.1)
    rank = gsnr_tf.rank()
    optimizer.apply_gradients([(tf.constant(data[rank]), variable)], examples=examples[rank])
    return variable.numpy()


def test_parts_weigh_by_their_examples(on_ranks):
    """30 and 10 examples: as 4 equal samples of 10 would, three of them alike."""
    rng = np.random.default_rng(3)
    big, small = rng.normal(size=(2, 4)).astype("float32")
    weights = on_ranks(2, unequal_parts, [big, small], [30, 10])
    mean = (3 * big + small) / 4
    variance = (3 * (big - mean) ** 2 + (small - mean) ** 2) / 4
    r = mean**2 / variance
    expected = 1 - 0.1 * np.clip(r / r.mean(), 0.1, 1) * mean
    np.testing.assert_allclose(weights, [expected] * 2, rtol=1e-5)


def clip_after_reduction():
    import keras
    import tensorflow as tf

    import gsnr_tf

    rank = gsnr_tf.rank()
    variable = keras.Variable(tf.zeros([2]))
    optimizer = gsnr_tf.DistributedOptimizer(keras.optimizers.SGD(1.0, global_clipnorm=1.0))
    gradient = tf.constant([[10.0, 0.0], [-10.0, 0.5]][rank])
    optimizer.apply_gradients([(gradient, variable)])
    return variable.numpy(), float(optimizer.gradient_norm)


def test_clipping_acts_on_the_gradient_of_all_ranks(on_ranks):
    """Keras clips first: the two long gradients would lose their balance."""
    for weights, norm in on_ranks(2, clip_after_reduction):
        np.testing.assert_allclose(weights, [0.0, -0.25])
        assert norm == 0.25


def collectives(sharding, steps, tensors):
    """The operation and the last part of the name of each collective of a step."""
    import keras
    import tensorflow as tf

    import gsnr_tf

    variables = [keras.Variable(tf.ones([3, 2])) for _ in range(tensors)]
    optimizer = gsnr_tf.GSNRLamb(
        0.1, gradient_accumulation_steps=steps, sharding=sharding, name="o"
    )
    optimizer.build(variables)
    apply = tf.function(lambda *g: optimizer.apply_gradients(zip(g, variables)))
    graph = apply.get_concrete_function(*[tf.ones([3, 2])] * tensors).graph
    nodes = list(graph.as_graph_def().node)
    for function in graph.as_graph_def().library.function:
        nodes.extend(function.node_def)
    return sorted(
        (
            node.op,
            (node.attr["tensor_name"].s.decode() or node.name).rsplit(".", 1)[1],
        )
        for node in nodes
        if node.op.startswith("Horovod") and "Size" not in node.op
    )


# In branches that are only taken on the way to an error.
IN_AN_ERROR = [("HorovodAllreduce", "fingerprints"), ("HorovodAllreduce", "finite")]
WHOLE = [("HorovodAllreduce", "mean"), ("HorovodAllreduce", "m2")]
SLICES = [
    ("HorovodAllgather", "weights"),
    ("HorovodAllreduce", "norms"),
    ("HorovodAllreduce", "sums"),
    ("HorovodAlltoall", "mean"),
]
SMALL = [("HorovodAllgather", "samples")]


@pytest.mark.parametrize("tensors", [2, 40])
@pytest.mark.parametrize(
    "sharding, steps, expected",
    [
        ("none", None, WHOLE),
        ("none", 2, WHOLE),
        ("slices", None, SLICES),
        ("slices", 2, [*SLICES, ("HorovodAlltoall", "m2")]),
        ("auto", None, SMALL),
        ("auto", 2, SMALL),
    ],
)
def test_a_bucket_takes_as_many_collectives_whatever_is_in_it(
    on_ranks, sharding, steps, expected, tensors
):
    for found in on_ranks(2, collectives, sharding, steps, tensors):
        assert found == sorted([*expected, *IN_AN_ERROR])
