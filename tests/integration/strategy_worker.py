"""A worker of MultiWorkerMirroredStrategy: what its trainings come to, one on a line."""

import json
import sys
from pathlib import Path

import tensorflow as tf

# Before anything else of TensorFlow.
STRATEGY = tf.distribute.MultiWorkerMirroredStrategy()
sys.path.insert(0, str(Path(__file__).parents[2]))

import gsnr_tf  # noqa: E402
from tests import strategy_training as training  # noqa: E402


def main():
    for optimizer in (training.mean_optimizer, lambda: training.gsnr_optimizer(2)):
        with STRATEGY.scope():
            model = training.model(optimizer())
        batches = training.batches()
        history = gsnr_tf.fit_in_strategy(
            model, batches, training.EPOCHS, validation_data=batches, verbose=0
        )
        print(json.dumps(training.result(model, history)), flush=True)


if __name__ == "__main__":
    main()
