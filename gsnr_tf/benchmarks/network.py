"""Time and bytes of an update over a network, on each rank of a cluster.

`cluster` starts this on every host. Each contender of `step` is also run with collectives that
stay within the rank: its time is then what computing takes, on cores that the ranks of this
machine share.
"""

import contextlib
import functools
import json
import os
import sys
from unittest import mock

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf

from gsnr_tf.benchmarks import contenders, hosts, step
from gsnr_tf.optimizers.header import UpdateHeader

CONTENDERS = ("keras", "none", "slices")
_COUNTED_STEPS = 2


def _same(tensor, *_, **__):
    return tensor


def _own_part(tensor, splits, **_):
    """Alltoall that receives its own part from all it sends to."""
    start, rows = sum(splits[: hvd.rank()]), splits[hvd.rank()]
    others = np.count_nonzero(splits)
    received = tf.tile(tensor[start : start + rows], [others] + [1] * (tensor.shape.rank - 1))
    return received, tf.fill([hvd.size()], rows)


def _padded(tensor, name, **_):
    """Allgather that receives zeros from the others."""
    with tf.init_scope():
        rows = _allgather(tf.constant([tensor.shape[0]]), name=f"{name}.rows")
        others = int(sum(rows)) - tensor.shape[0]
    return tf.pad(tensor, [[0, others]] + [[0, 0]] * (tensor.shape.rank - 1))


_allgather = hvd.allgather
_STAND_INS = {
    "allreduce": _same,
    "grouped_allreduce": _same,
    "alltoall": _own_part,
    "allgather": _padded,
}


def _none(*_, **__):
    raise NotImplementedError("A contender uses a collective that has no stand-in here.")


def _agree(*_):
    return tf.constant(True)


@contextlib.contextmanager
def silence():
    """What is traced inside has collectives that stay within the rank."""
    others = (
        "grouped_allgather",
        "reducescatter",
        "grouped_reducescatter",
        "broadcast",
    )
    # Alone, a rank would find that the others tell it nothing.
    agrees = mock.patch.object(UpdateHeader, "check", new=_agree)
    with mock.patch.multiple(hvd, **_STAND_INS, **dict.fromkeys(others, _none)), agrees:
        yield


def _step(contender, rule, layers):
    variables = [keras.Variable(tf.random.normal(s), dtype="float32") for s in layers]
    gradients = [tf.Variable(tf.random.normal(s)) for s in layers]

    def given():
        return [tf.identity(gradient) for gradient in gradients]

    if contender == "keras":
        return contenders.keras_plain(rule, given, variables)[1]
    return contenders.gsnr(rule, given, variables, sharding=contender)[1]


@functools.lru_cache(maxsize=1)
def _steps(rule, elements, tensors):
    """A step of each contender, then the same with collectives within the rank."""
    layers = contenders.shapes(elements, tensors)
    networked = [_step(contender, rule, layers) for contender in CONTENDERS]
    local = [_step(contender, rule, layers) for contender in CONTENDERS]
    with silence():
        for step in local:
            step()
    return networked, local, sum(int(np.prod(shape)) for shape in layers)


def _meet():
    hvd.allreduce(tf.zeros([1]), name="bench.meet")


def _bytes_of(one_step):
    """Bytes `(on the wire, handed over)` that a host sends in a step: the mean."""
    one_step()
    _meet()
    before = np.array(hosts.sent())
    for _ in range(_COUNTED_STEPS):
        one_step()
    _meet()
    sent = tf.constant(np.array(hosts.sent()) - before, tf.float64)
    return hvd.allreduce(sent, op=hvd.Average, name="bench.sent").numpy() / _COUNTED_STEPS


def measure(rule, elements, tensors, rounds):
    """What `cluster` is answered: a dict with a row for each contender."""
    networked, local, exact = _steps(rule, elements, tensors)
    seconds = step.measure([*networked, *local], rounds)
    rows = []
    for index, contender in enumerate(CONTENDERS):
        wire, handed = _bytes_of(networked[index])
        rows.append(
            {
                "contender": contender,
                "seconds": float(np.median(seconds[index])),
                "ratio": float(np.median(seconds[index] / seconds[0])),
                "compute": float(np.median(seconds[len(CONTENDERS) + index])),
                "wire_bytes": float(wire),
                "handed_bytes": float(handed),
            }
        )
    return {
        "ranks": hvd.size(),
        "ranks_per_host": hvd.local_size(),
        "cores": len(os.sched_getaffinity(0)),
        "elements": exact,
        "tensors": tensors,
        "rule": rule,
        "rows": rows,
    }


def main():
    """Measures what each line of standard input asks for; rank 0 answers."""
    hvd.init()
    contenders.use_one_core()
    for line in sys.stdin:
        answer = measure(**json.loads(line))
        if hvd.rank() == 0:
            print(json.dumps(answer), flush=True)
    hvd.shutdown()


if __name__ == "__main__":
    main()
