"""Leaves the trace of a train step."""

import concurrent.futures

import keras
import tensorflow as tf


def outside_of_traces(fn, *args):
    """Calls `fn(*args)` eagerly, on the device in use, though a train step be traced.

    In a thread of its own, since tf.function notices variables that are made while it
    traces, also within `tf.init_scope`, and would trace the step once more.
    """
    with tf.init_scope():
        device = tf.zeros([]).device

    def call():
        with tf.device(device):
            return fn(*args)

    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        return executor.submit(call).result()


def build_outside_of_traces(optimizer, variables):
    """Builds an optimizer where Keras' `apply` would, and makes no trace of it.

    Keras builds in the first train step, which tf.function then has to trace twice. Under
    a distribution strategy Keras has built before the first step.

    Args:
        optimizer: One that is not built.
        variables: The model's trainable variables, in order.
    """

    def build():
        # Keras has the scope of a thread.
        with keras.name_scope(optimizer.name, caller=optimizer):
            optimizer.build(variables)

    if tf.executing_eagerly() or tf.distribute.has_strategy():
        build()
    else:
        outside_of_traces(build)
