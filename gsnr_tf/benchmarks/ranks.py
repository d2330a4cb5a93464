"""What the statistics of many ranks cost, with no ranks: on samples that are made up.

One process holds the samples of a shard as they come from all ranks. Compiling and running
are told in seconds of the processor, which other work on the machine does not lengthen.
"""

import statistics
import time

import tensorflow as tf

from gsnr_tf.benchmarks.contenders import use_one_core
from gsnr_tf.rules.adam import Adam
from gsnr_tf.rules.settings import Settings, VariableSettings
from gsnr_tf.sharding.buckets import BucketLayout
from gsnr_tf.sharding.kernels import UpdateKernels
from gsnr_tf.sharding.shard import Shard

_TURNS = 7


def main(numbers, elements):
    """Prints a line for each number of ranks.

    Args:
        numbers: List of ints.
        elements: Int, of the shard.
    """
    use_one_core()
    # The first program pays for what all need.
    _measure(2, elements)
    print(f"a shard of {elements:,} elements")
    print(f"  {'ranks':>6} {'compile s':>10} {'run ms':>8} {'ns for each sample':>19}")
    for number in numbers:
        compiled, run = _measure(number, elements)
        each = 1e9 * run / (number * elements)
        print(f"  {number:>6,} {compiled:>10.2f} {1e3 * run:>8.1f} {each:>19.2f}", flush=True)


def _measure(number, elements):
    """Seconds of the processor to compile the statistics of so many ranks, and to run."""
    (bucket,) = BucketLayout([tf.Variable(tf.zeros([elements]))]).buckets
    shard = Shard.whole(bucket)
    kernels = UpdateKernels(Adam(), Settings(), [VariableSettings()], shard, compiled=True)
    given = tf.random.normal([number, elements]), None, tf.ones([number]), number
    seconds = []
    for _ in range(1 + _TURNS):
        start = time.process_time()
        kernels.statistics(*given)
        seconds.append(time.process_time() - start)
    run = statistics.median(seconds[1:])
    return seconds[0] - run, run
