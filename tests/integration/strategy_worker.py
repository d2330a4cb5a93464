"""A worker of MultiWorkerMirroredStrategy: what its training comes to, on one line."""

import json
import sys
from pathlib import Path

import tensorflow as tf

# Before anything else of TensorFlow.
STRATEGY = tf.distribute.MultiWorkerMirroredStrategy()
sys.path.insert(0, str(Path(__file__).parents[2]))

import gsnr_tf  # noqa: E402
from tests import strategy_training as training  # noqa: E402


def main(optimizer):
    with STRATEGY.scope():
        gsnr = optimizer == "gsnr"
        model = training.model(training.gsnr_optimizer(2) if gsnr else training.mean_optimizer())
    batches = training.batches()
    history = gsnr_tf.fit_in_strategy(
        model, batches, training.EPOCHS, validation_data=batches, verbose=0
    )
    print(json.dumps(training.result(model, history)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
