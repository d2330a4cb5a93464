"""Slices that go by host: four ranks on two hosts, which are this one by two names."""

import numpy as np
import pytest

# The first travels alone, the others share a bucket.
SHAPES = [(50, 30), (30,), (), (9, 7)]
EXAMPLES = [30, 10, 8, 24]


def trained(sharding, arguments, examples):
    """Weights and slots after three updates, k, and the report."""
    import keras
    import numpy as np
    import tensorflow as tf

    import gsnr_tf
    from gsnr_tf.comm import exchange_plan

    exchange_plan._MANY_ON_A_HOST = 2
    rank, rng = gsnr_tf.rank(), np.random.default_rng(1)
    variables = [keras.Variable(rng.normal(size=s), dtype="float32") for s in SHAPES]
    optimizer = gsnr_tf.GSNRLamb(
        0.1, weight_decay=0.01, sharding=sharding, bucket_bytes=5000, **arguments
    )
    optimizer.build(variables)

    @tf.function
    def step(*gradients):
        count = None if examples is None else examples[rank]
        optimizer.apply_gradients(zip(gradients, variables), examples=count)

    for update in range(3):
        for part in range(optimizer.gradient_accumulation_steps or 1):
            step(*[tf.constant(g, "float32") for g in gradients_of(rank, update, part)])
    weights = [v.numpy() for v in variables]
    slots = [view.numpy() for views in optimizer._slots.values() for view in views]
    return weights, slots, int(optimizer.samples), optimizer.sharding_report()


def gradients_of(rank, update, part=0):
    """Numbers whose means over a host are exact: two samples may differ by little."""
    import numpy as np

    common, own = np.random.default_rng(update), np.random.default_rng([update, part, rank])
    drawn = [common.normal(size=s) + own.normal(size=s) for s in SHAPES]
    return [np.round(16 * gradient) / 16 for gradient in drawn]


def alike(results, expected):
    for weights, slots, *_ in results:
        for found, value in zip([*weights, *slots], expected, strict=True):
            np.testing.assert_allclose(found, value, rtol=2e-5, atol=2e-6)
        for found, first in zip(weights, results[0][0]):
            np.testing.assert_array_equal(found, first)


pytestmark = pytest.mark.on_hosts(4, 2)


@pytest.mark.parametrize("steps, examples", [(None, None), (2, EXAMPLES)])
def test_the_update_is_that_of_whole_variables(on_ranks, steps, examples):
    arguments = {"gradient_accumulation_steps": steps}
    (weights, slots, _, _), *_ = on_ranks(4, trained, "none", arguments, examples, hosts=2)
    by_host = on_ranks(4, trained, "slices", arguments, examples, hosts=2)
    for *_, k, report in by_host:
        assert k == 4 * (steps or 1)
        assert report.startswith("4 ranks by way of 2 hosts")
    alike(by_host, [*weights, *slots])


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_a_host_may_be_a_sample(on_ranks, dtype):
    """As one process finds that accumulates the mean gradient of each host."""
    arguments = {"sample": "host", "communication_dtype": dtype}
    results = on_ranks(4, trained, "slices", arguments, EXAMPLES, hosts=2)
    for *_, k, report in results:
        assert k == 2
        assert report.startswith("4 ranks by way of 2 hosts, 2 buckets, k=2 samples")
    alike(results, two_hosts_alone(dtype))


def two_hosts_alone(dtype):
    import keras
    import tensorflow as tf

    import gsnr_tf

    rng = np.random.default_rng(1)
    variables = [keras.Variable(rng.normal(size=s), dtype="float32") for s in SHAPES]
    optimizer = gsnr_tf.GSNRLamb(
        0.1, weight_decay=0.01, communicator="local", gradient_accumulation_steps=2
    )
    optimizer.build(variables)
    for update in range(3):
        for ranks in ((0, 1), (2, 3)):
            weights = [EXAMPLES[rank] for rank in ranks]
            both = zip(*[gradients_of(rank, update) for rank in ranks])
            means = [np.average(np.stack(pair), 0, weights) for pair in both]
            sent = [tf.cast(tf.cast(tf.constant(g), dtype), "float32") for g in means]
            optimizer.apply_gradients(zip(sent, variables), examples=float(sum(weights)))
    slots = [slot.numpy() for slots in optimizer._slots.values() for slot in slots]
    return [*(v.numpy() for v in variables), *slots]
