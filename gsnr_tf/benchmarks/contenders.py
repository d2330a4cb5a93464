"""The updates that are compared: the plain ones, and GSNR both ways of sharding.

Each is made by `make(rule, gradients, variables)` and returns the optimizer's state on
this rank in bytes and a compiled function that does one update.
"""

import argparse
import functools

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from gsnr_tf._small_models import is_small
from gsnr_tf.rules import registry
from gsnr_tf.rules.rule import Coefficients
from gsnr_tf.sharding.buckets import BucketLayout
from gsnr_tf.sharding.shard import Shard

RULES = registry.BY_NAME
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


def chosen(rule, dtypes, elements):
    """Name and maker of each contender; the first is what others are compared to."""
    if RULES[rule].keras:
        yield f"allreduce, Keras {rule}", keras_plain
    yield f"allreduce, fused {rule}", fused_plain
    yield "GSNR, sharding=none", functools.partial(gsnr, sharding="none")
    if is_small(elements, hvd.size()):
        yield "GSNR, all samples", gsnr
    for dtype in dtypes:
        name = "GSNR, slices" + ("" if dtype == "float32" else f", {dtype}")
        yield name, functools.partial(gsnr, sharding="slices", communication_dtype=dtype)


def _update(step):
    return tf.function(step, autograph=False)


def _bytes(variables):
    return sum(v.dtype.size * int(np.prod(v.shape)) for v in variables)


def keras_plain(rule, gradients, variables):
    """One grouped allreduce, then Keras' optimizer."""
    row = RULES[rule]
    optimizer = row.keras_class(_RATE, **row.arguments)
    optimizer.build(variables)

    def step():
        reduced = hvd.grouped_allreduce(gradients(), op=hvd.Average, name="bench.keras")
        optimizer.apply_gradients(zip(reduced, variables))

    return _bytes([v.value for v in optimizer.variables]), _update(step)


def fused_plain(rule, gradients, variables):
    """One allreduce, then the base rule as one XLA program over a flat vector."""
    row = RULES[rule]
    plain = row.optimizer_class(_RATE, **row.arguments).rule
    layout = BucketLayout(variables, bucket_bytes=2**40)
    (bucket,) = layout.buckets
    shard = Shard.whole(bucket)
    slots = {
        name: tf.Variable(tf.zeros(shard.shape), trainable=False)
        for name in plain.slots
        if name != "multiplier"
    }
    # As by default: vectors are left alone.
    adapts = [plain.adapts and len(shape) > 1 for shape in bucket.shapes]

    @functools.partial(tf.function, jit_compile=True, autograph=False)
    def rule_of_all(weights, total, t):
        gradient = tf.reshape(total, shard.shape) / hvd.size()
        theta = shard.cut(weights)
        at = Coefficients(_RATE, t, 0.0)
        old = {name: tf.convert_to_tensor(slot) for name, slot in slots.items()}
        u, moved = plain.direction(theta, gradient, 1.0, {**old, "multiplier": 1.0}, at)
        phi = 1.0
        if any(adapts):
            norms = tf.sqrt(shard.sums(theta * theta, u * u))
            trust = plain.trust(norms[:, 0], norms[:, 1], at)
            phi = shard.broadcast(tf.where(adapts, trust, tf.ones_like(trust)))
        theta, further = plain.descend(theta, u, phi, moved, at)
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
    row = RULES[rule]
    optimizer = row.optimizer_class(_RATE, **row.arguments, **arguments)
    optimizer.build(variables)
    optimizer.connect()

    def step():
        optimizer.apply_gradients(zip(gradients(), variables))

    return optimizer.state_bytes, _update(step)
