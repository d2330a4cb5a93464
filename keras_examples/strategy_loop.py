"""A training loop of one's own under a tf.distribute strategy.

Several devices of one machine (logical CPUs stand in where there is no GPU):

    python keras_examples/strategy_loop.py --strategy mirrored --replicas 4

Several machines; on each of them, with its own TF_CONFIG:

    python keras_examples/strategy_loop.py --strategy multiworker

A TPU:

    python keras_examples/strategy_loop.py --strategy tpu --tpu NAME

It trains the DLRM of movielens_dlrm.py. `Model.fit` does not work under
MultiWorkerMirroredStrategy in Keras 3; this loop works under all three.

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


def make_step(strategy, model, optimizer, loss_of, auc):
    """One micro-batch on all replicas."""

    def step_of_replica(features, clicks):
        with tf.GradientTape() as tape:
            scores = model(features, training=True)
            # tf.distribute: gradients of replicas are added, so each loss is a share.
            # Keras' losses are divided by the replicas already; divide one of your own.
            loss = loss_of(clicks[:, None], scores)
        gradients = tape.gradient(loss, model.trainable_variables)
        # gsnr_tf: each replica's gradient is a sample, each micro-batch another one.
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        auc.update_state(clicks, scores)
        return loss

    @tf.function
    def step(batch):
        losses = strategy.run(step_of_replica, args=batch)
        return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    return step


def main(args):
    strategy = make_strategy(args)
    # tf.distribute: every process but the first keeps quiet.
    resolver = strategy.cluster_resolver
    chief = not (resolver and resolver.task_type == "worker" and resolver.task_id > 0)
    keras.utils.set_random_seed(0)
    data = movielens.load()

    micro_batch = args.batch_size // args.accumulation_steps
    batches = tf.data.Dataset.from_tensor_slices((data.train.features, data.train.clicks))
    batches = batches.shuffle(movielens.TRAIN, seed=0).batch(micro_batch, drop_remainder=True)
    batches = strategy.experimental_distribute_dataset(batches)

    with strategy.scope():
        model = build_model(data)
        optimizer = gsnr_tf.GSNRLamb(
            args.learning_rate, gradient_accumulation_steps=args.accumulation_steps
        )
        optimizer.build(model.trainable_variables)
        auc = keras.metrics.AUC(name="auc")
    step = make_step(strategy, model, optimizer, keras.losses.BinaryCrossentropy(), auc)

    if chief:
        print(
            f"{type(strategy).__name__}: {strategy.num_replicas_in_sync} replicas x "
            f"{args.accumulation_steps} micro-batches = {optimizer.samples} samples an update"
        )
    for epoch in range(args.epochs):
        auc.reset_state()
        losses = [float(step(batch)) for batch in batches]
        # tf.distribute: reading a metric adds up the replicas, so all workers do it.
        score = float(auc.result())
        if chief:
            print(
                f"epoch {epoch + 1}  loss {sum(losses) / len(losses):.4f}  "
                f"train AUC {score:.4f}  GSNR {float(optimizer.gsnr):.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main(ARGUMENTS)
