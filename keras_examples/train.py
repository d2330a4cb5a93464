"""Trains a task by one optimizer, with `compile` and `fit`: what the task files run.

    python keras_examples/vision_task.py SmallCNN
    gsnr-tf run --np 2 keras_examples/vision_task.py SmallCNN --accumulation-steps 4

The first prints (TensorFlow's notices left out):

    SmallCNN, 105,866 parameters, gsnr-lamb at 0.01
    250 updates of 1,000 examples = 8 samples
     10%  loss 2.0746  validation accuracy 0.6498
     20%  loss 0.9345  validation accuracy 0.7487
    ...
    100%  loss 0.3672  validation accuracy 0.8670
    test accuracy 0.8609
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf

from gsnr_tf import DistributedOptimizer, GSNRAdam, GSNRLamb, rank, shard, size
from gsnr_tf.callbacks import BroadcastGlobalVariablesCallback, MetricAverageCallback
from gsnr_tf.schedules import WarmupCosine

OPTIMIZERS = {
    "gsnr-lamb": GSNRLamb,
    "gsnr-adam": GSNRAdam,
    "lamb": keras.optimizers.Lamb,
    "adam": keras.optimizers.Adam,
}


def parse_arguments(tasks):
    first = tasks[0]
    parser = argparse.ArgumentParser(
        description="Train " + " or ".join(task.__name__ for task in tasks) + " once.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("task", nargs="?", choices=[task.__name__ for task in tasks], default=first.__name__)
    add("--size", choices=list(first.sizes), default="default", help="of model and budget")
    add("--optimizer", choices=list(OPTIMIZERS), default="gsnr-lamb")
    add("--learning-rate", type=float, help="peak; by default a usual one of the task")
    add("--batch-size", type=int, default=1000, help="examples per update, over all ranks")
    add("--accumulation-steps", type=int, default=8, help="micro-batches per update on a rank")
    add("--epochs", type=float, help="by default the task's")
    add("--seed", type=int, default=0)
    return parser.parse_args()


def build_optimizer(args, schedule):
    steps = args.accumulation_steps if args.accumulation_steps > 1 else None
    optimizer = OPTIMIZERS[args.optimizer](schedule, gradient_accumulation_steps=steps)
    # Horovod: the GSNR optimizers reduce by themselves, those of Keras need this.
    return optimizer if args.optimizer.startswith("gsnr") else DistributedOptimizer(optimizer)


def training_batches(data, args):
    """Micro-batches without end; each epoch in an order of its own."""
    micro_batch = args.batch_size // args.accumulation_steps
    batches = tf.data.Dataset.from_tensor_slices(tuple(data.train))
    batches = batches.shuffle(data.train.rows, seed=args.seed).repeat()
    batches = batches.batch(micro_batch, drop_remainder=True)
    return shard(batches).prefetch(2)  # Horovod: each rank keeps its part.


def main(tasks):
    """Trains one of the given task classes, as the command line says."""
    args = parse_arguments(tasks)
    keras.utils.set_random_seed(args.seed)
    task = {task.__name__: task for task in tasks}[args.task](args.size)
    data, model = task.load(), task.build_model()
    updates = int((args.epochs or task.epochs) * data.train.rows) // args.batch_size
    if updates < 1 or args.batch_size % args.accumulation_steps:
        raise SystemExit(
            "--batch-size must be a multiple of --accumulation-steps and fit into the "
            f"epochs. Received: {args.batch_size} and {args.accumulation_steps}."
        )
    rate = args.learning_rate or task.learning_rates[args.optimizer.removeprefix("gsnr-")]
    schedule = WarmupCosine(rate, updates)
    model.compile(optimizer=build_optimizer(args, schedule), loss=task.loss)
    parts = min(10, updates)

    def tell(part, logs):
        if rank() == 0:  # Horovod: all ranks hold the same weights, one may score them.
            score = task.score(model, *data.validation)
            told = f"{(part + 1) / parts:4.0%}  loss {logs['loss']:.4f}"
            print(f"{told}  validation {task.metric} {score:.4f}", flush=True)

    if rank() == 0:
        k = size() * args.accumulation_steps
        print(f"{args.task}, {model.count_params():,} parameters, {args.optimizer} at {rate:g}")
        print(f"{updates} updates of {args.batch_size:,} examples = {k} samples", flush=True)
    model.fit(
        training_batches(data, args),
        epochs=parts,
        steps_per_epoch=updates // parts * args.accumulation_steps,
        shuffle=False,  # the dataset shuffles itself
        verbose=0,
        callbacks=[
            BroadcastGlobalVariablesCallback(root_rank=0),  # Horovod: equal weights.
            MetricAverageCallback(),  # Horovod: the loss of all ranks.
            keras.callbacks.LambdaCallback(on_epoch_end=tell),
        ],
    )
    if rank() == 0:
        print(f"test {task.metric} {task.score(model, *data.test):.4f}")
