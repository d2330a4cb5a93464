"""Train the DLRM of movielens_dlrm.py by the engine: the job is a JSON file.

    python keras_examples/movielens_engine.py
    gsnr-tf run --np 2 keras_examples/movielens_engine.py

Both read movielens_engine.json and make the same 8 samples of 2,000 examples in every
update, so that they print the same losses. Started again, it goes on where the last
checkpoint was; `gsnr-tf config check keras_examples/movielens_engine.json --np 2` says what
the file comes to.
"""

import argparse
import os
from pathlib import Path


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Train a DLRM on MovieLens clicks as a configuration file says.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--config", type=Path, default=Path(__file__).with_suffix(".json"))
    add("--epochs", type=int, default=10, help="passes over the 80,000 training rows")
    add("--seed", type=int, default=0, help="of the weights")
    add("--checkpoints", type=Path, default=Path("runs/movielens_engine"), help="folder")
    return parser.parse_args()


# Options are read before TensorFlow is imported, so that --help answers at once.
if __name__ == "__main__":
    ARGUMENTS = parse_arguments()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# ruff: noqa: E402
import keras
import movielens
from movielens_dlrm import build_model

import gsnr_tf


def main(args):
    keras.utils.set_random_seed(args.seed)
    data = movielens.load()
    engine = gsnr_tf.initialize(
        build_model(data),
        args.config,
        loss="binary_crossentropy",
        training_data=(data.train.features, data.train.clicks),
    )
    engine.load_checkpoint(args.checkpoints)
    updates = args.epochs * movielens.TRAIN // engine.train_batch_size()
    while engine.global_steps < updates:
        engine.train_batch()
        if engine.global_steps % 25 == 0 or engine.global_steps == updates:
            engine.save_checkpoint(args.checkpoints)
    if gsnr_tf.rank() == 0:
        test = data.test
        scores = engine.model.predict(test.features, batch_size=10_000, verbose=0)
        print(f"test AUC {movielens.auc(test.clicks, scores[:, 0]):.4f}", flush=True)


if __name__ == "__main__":
    main(ARGUMENTS)
