"""The updates that are compared: the plain ones, and GSNR both ways of sharding.

Each is made by `make(rule, gradients, variables)` and returns the optimizer's state on
this rank in bytes and a compiled function that does one update.
"""

import argparse
import functools

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf

from gsnr_tf.optimizers import GSNRSGD, GSNRAdam, GSNRLamb, GSNRLars
from gsnr_tf.sharding.layout import Layout
from gsnr_tf.sharding.part import Part

# Keras' optimizer (it has no LARS), ours, and what both are told.
RULES = {
    "lamb": (keras.optimizers.Lamb, GSNRLamb, {}),
    "adam": (keras.optimizers.Adam, GSNRAdam, {}),
    "momentum": (keras.optimizers.SGD, GSNRSGD, {"momentum": 0.9}),
    "lars": (None, GSNRLars, {}),
}
_RATE = 1e-3


def shapes(elements, tensors):
    """Matrices and vectors in turn, as in dense layers, `elements` in all."""
    pairs = max(1, tensors // 2)
    side = max(1, int((elements / pairs) ** 0.5))
    return [shape for _ in range(pairs) for shape in ((side, side), (side,))]


def options():
    """The arguments that say what is compared."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rule", choices=RULES)
    parser.add_argument("--elements", type=int)
    parser.add_argument("--tensors", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--contender", type=int, help="which of `chosen`, if one alone")
    return parser


def use_one_core():
    """To be called first: more threads than cores would measure who gets them."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2)


def chosen(rule, dtypes):
    """Name and maker of each contender; the first is what others are compared to."""
    if RULES[rule][0]:
        yield f"allreduce, Keras {rule}", keras_plain
    yield f"allreduce, fused {rule}", fused_plain
    yield "GSNR, sharding=none", functools.partial(gsnr, sharding="none")
    for dtype in dtypes:
        name = "GSNR, slices" + ("" if dtype == "float32" else f", {dtype}")
        yield name, functools.partial(gsnr, communication_dtype=dtype)


def _update(step):
    return tf.function(step, autograph=False)


def _bytes(variables):
    return sum(v.dtype.size * int(np.prod(v.shape)) for v in variables)


def keras_plain(rule, gradients, variables):
    """One grouped allreduce, then Keras' optimizer."""
    make, _, arguments = RULES[rule]
    optimizer = make(_RATE, **arguments)
    optimizer.build(variables)

    def step():
        reduced = hvd.grouped_allreduce(
            gradients(), op=hvd.Average, name="bench.keras"
        )
        optimizer.apply_gradients(zip(reduced, variables))

    return _bytes([v.value for v in optimizer.variables]), _update(step)


def fused_plain(rule, gradients, variables):
    """One allreduce, then the base rule as one XLA program over a flat vector."""
    _, make, arguments = RULES[rule]
    optimizer = make(_RATE, **arguments)
    layout = Layout(variables, bucket_bytes=2**40)
    (bucket,) = layout.buckets
    part = Part(bucket, 0, bucket.blocks)
    optimizer.choose_variables(variables)
    slots = {
        name: tf.Variable(tf.zeros(part.shape), trainable=False)
        for name in optimizer.slots
        if name != "multiplier"
    }
    adapts = [optimizer.adapts(index) for index in bucket.indices]

    @functools.partial(tf.function, jit_compile=True, autograph=False)
    def rule_of_all(weights, total, t):
        gradient = tf.reshape(total, part.shape) / hvd.size()
        theta = part.cut(weights)
        told = optimizer.step_of(_RATE, t, 0.0)
        old = {name: tf.convert_to_tensor(slot) for name, slot in slots.items()}
        u, moved = optimizer.direction(
            theta, gradient, 1.0, {**old, "multiplier": 1.0}, told
        )
        phi = 1.0
        if any(adapts):
            norms = tf.sqrt(part.sums(theta * theta, u * u))
            trust = optimizer.trust(norms[:, 0], norms[:, 1], told)
            phi = part.spread(tf.where(adapts, trust, tf.ones_like(trust)))
        theta, further = optimizer.descend(theta, u, phi, moved, told)
        for name, slot in slots.items():
            slot.assign({**moved, **further}[name])
        return tf.reshape(theta, [-1])

    t = tf.Variable(0.0)

    def step():
        packed = bucket.pack(bucket.pick(gradients()))
        total = hvd.allreduce(packed, op=hvd.Sum, name="bench.fused")
        weights = [tf.convert_to_tensor(v) for v in bucket.pick(variables)]
        theta = bucket.unpack(rule_of_all(weights, total, t.assign_add(1.0)))
        for variable, value in zip(bucket.pick(variables), theta):
            variable.assign(value)

    return _bytes(slots.values()), _update(step)


def gsnr(rule, gradients, variables, **arguments):
    """GSNR, `sharding` and other arguments as given."""
    _, make, own = RULES[rule]
    optimizer = make(_RATE, **own, **arguments)
    optimizer.build(variables)
    optimizer.connect()

    def step():
        optimizer.apply_gradients(zip(gradients(), variables))

    return optimizer.state_bytes, _update(step)
