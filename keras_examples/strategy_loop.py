"""Training under a tf.distribute strategy: on devices, on machines, or on a TPU.

Several devices of one machine (logical CPUs stand in where there is no GPU):

    python keras_examples/strategy_loop.py --strategy mirrored --replicas 4

Several machines; on each of them, with its own TF_CONFIG:

    python keras_examples/strategy_loop.py --strategy multiworker

A TPU:

    python keras_examples/strategy_loop.py --strategy tpu --tpu NAME

It trains the DLRM of movielens_dlrm.py. `Model.fit` does not work under
MultiWorkerMirroredStrategy in Keras 3; `gsnr_tf.fit_in_strategy` works under all three.

The first prints (TensorFlow's notices left out), and two workers with
`--accumulation-steps 4` learn the same:

    MirroredStrategy: 4 replicas x 2 micro-batches = 8 samples an update
    epoch 1  loss 0.6887  train AUC 0.5467  GSNR 1.5937
    epoch 2  loss 0.6853  train AUC 0.5667  GSNR 1.0878
    epoch 3  loss 0.6785  train AUC 0.6143  GSNR 0.4525
"""

import argparse
import os


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Train a DLRM on MovieLens by GSNR-LAMB under a tf.distribute strategy.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--strategy", choices=["mirrored", "multiworker", "tpu"], default="mirrored")
    add("--replicas", type=int, default=4, help="logical CPUs, where there is no GPU")
    add("--tpu", default="", help="name or address of the TPU")
    add("--batch-size", type=int, default=16_000, help="examples per update, over all replicas")
    add("--accumulation-steps", type=int, default=2, help="micro-batches per update")
    add("--epochs", type=int, default=3)
    add("--learning-rate", type=float, default=0.02)
    return parser.parse_args()


# Options are read before TensorFlow is imported, so that --help answers at once.
if __name__ == "__main__":
    ARGUMENTS = parse_arguments()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# ruff: noqa: E402
import keras
import movielens
import tensorflow as tf
from movielens_task import build_model

import gsnr_tf
from gsnr_tf.strategy import is_chief


def make_strategy(args):
    if args.strategy == "tpu":
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(args.tpu)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    if args.strategy == "multiworker":
        return tf.distribute.MultiWorkerMirroredStrategy()
    if not tf.config.list_physical_devices("GPU"):
        cpu = tf.config.list_physical_devices("CPU")[0]
        logical = [tf.config.LogicalDeviceConfiguration() for _ in range(args.replicas)]
        tf.config.set_logical_device_configuration(cpu, logical)
        return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(args.replicas)])
    return tf.distribute.MirroredStrategy()


def main(args):
    strategy = make_strategy(args)
    # tf.distribute: every process but the first keeps quiet.
    chief = is_chief(strategy)
    keras.utils.set_random_seed(0)
    data = movielens.load()
    # tf.distribute: all processes make the same batches, of which each takes its rows.
    targets = data.train.clicks[:, None]
    batches = tf.data.Dataset.from_tensor_slices((data.train.features, targets))
    micro_batch = args.batch_size // args.accumulation_steps
    batches = batches.shuffle(movielens.TRAIN, seed=0).batch(micro_batch, drop_remainder=True)

    with strategy.scope():
        model = build_model(data)
        # gsnr_tf: each replica's gradient is a sample, each micro-batch another one.
        optimizer = gsnr_tf.GSNRLamb(
            args.learning_rate, gradient_accumulation_steps=args.accumulation_steps
        )
        auc = keras.metrics.AUC(name="auc")
        # Keras divides the losses by the number of replicas: do not do it once more.
        model.compile(optimizer, keras.losses.BinaryCrossentropy(), metrics=[auc])

    def begin(logs):
        if chief:
            print(
                f"{type(strategy).__name__}: {strategy.num_replicas_in_sync} replicas x "
                f"{args.accumulation_steps} micro-batches = {optimizer.samples} samples an update"
            )

    def tell(epoch, logs):
        gsnr = float(optimizer.gsnr)
        if chief:
            print(
                f"epoch {epoch + 1}  loss {logs['loss']:.4f}  "
                f"train AUC {logs['auc']:.4f}  GSNR {gsnr:.4f}",
                flush=True,
            )

    gsnr_tf.fit_in_strategy(
        model,
        batches,
        epochs=args.epochs,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_train_begin=begin, on_epoch_end=tell)],
    )


if __name__ == "__main__":
    main(ARGUMENTS)
