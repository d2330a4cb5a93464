"""A rank for test_run.py that trains by collectives and fails, or waits, as told."""

import os
import signal
import sys
import time
import types

import horovod.tensorflow as hvd
import tensorflow as tf

kind, failing = sys.argv[1], int(sys.argv[2])
if "recorded" in sys.argv:
    import gsnr_tf  # records what nothing catches, and that it leaves

    gsnr_tf.rank()
hvd.init()
if kind == "waits":
    from gsnr_tf.comm import elastic

    def wait():
        hvd.allreduce(tf.ones(4), name="gradients")
        print(
            "asleep",
            os.environ["HOROVOD_GLOO_RENDEZVOUS_ADDR"],
            os.environ["HOROVOD_GLOO_RENDEZVOUS_PORT"],
            flush=True,
        )
        time.sleep(600)

    elastic.run(wait, types.SimpleNamespace(sync=lambda: None, restore=lambda: None))
for step in range(20):
    if step == 10 and hvd.rank() == failing:
        if kind == "raises":
            raise ValueError("a row is missing")
        if kind == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "leaves":
            sys.exit(0)
        if kind == "leaves a line open":
            os.write(1, b"no line feed")
            os._exit(3)
    hvd.allreduce(tf.ones(4), name="gradients")
