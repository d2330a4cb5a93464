"""`fit` under any `tf.distribute.Strategy`: that of Keras 3 fails on several workers."""

import itertools

import keras
import tensorflow as tf

from gsnr_tf.comm import native
from gsnr_tf.optimizers.base import DistributedStep
from gsnr_tf.optimizers.inner import inner_optimizer
from gsnr_tf.strategy.dataset import distributed


def fit_in_strategy(
    model,
    dataset,
    epochs=1,
    *,
    validation_data=None,
    callbacks=None,
    steps_per_epoch=None,
    initial_epoch=0,
    verbose="auto",
):
    """Trains a compiled model as `model.fit` does, under the strategy that it was made in.

    For MultiWorkerMirroredStrategy, under which `fit` fails in Keras 3; it works under
    every strategy, and without one. It runs `model.train_step`, in which Keras divides
    losses and regularizers by the number of replicas: do not divide them once more.
    An update is that of one process with the whole batch: each replica's gradient weighs
    what its loss was divided by, so that the last batch may be uneven.

    All workers must call it alike. What `model.fit` takes and this does not:
    `steps_per_execution` and `jit_compile` of the model have no effect, and
    `model.stop_training` is heard at the end of an epoch, on all workers.

    Args:
        model: `keras.Model`, made and compiled inside `with strategy.scope():`, with a
            GSNR optimizer or `gsnr_tf.DistributedOptimizer`.
        dataset: `tf.data.Dataset` of global batches `(x, y)` or `(x, y, sample_weight)`,
            the same on all workers and in the same order: give `shuffle` a seed. Each
            replica gets its rows of a batch, as even as they go; a batch with fewer rows
            than there are replicas joins the one before. With
            `gradient_accumulation_steps`, a batch is a micro-batch of all replicas.
        epochs: Int, the epoch to end after.
        validation_data: The same as `dataset`, to evaluate on after each epoch.
        callbacks: List of `keras.callbacks.Callback`. In `on_train_batch_end` logs are
            the means over this worker's replicas, at the end of an epoch those of all.
        steps_per_epoch: Int, batches of an epoch, which goes on where the last one
            ended; left out, the whole dataset.
        initial_epoch: Int, the epoch to begin with.
        verbose: As for `fit`; the first worker alone prints.

    Returns:
        `keras.callbacks.History`: of each epoch, loss and metrics over all examples of all
        replicas, the same on all workers.

    Raises:
        TypeError: The optimizer would add up the replicas' gradients as if each had as
            many examples; or an element is no dense tensor.
        ValueError: The optimizer was made outside of the strategy, an element is no
            batch, or there is not one batch.

    Example:
        with tf.distribute.MultiWorkerMirroredStrategy().scope():
            model = build_model()
            model.compile(gsnr_tf.GSNRLamb(0.01, gradient_accumulation_steps=4), loss="mse")
        gsnr_tf.fit_in_strategy(model, dataset.shuffle(10_000, seed=1).batch(4096), epochs=3)
    """
    strategy = model.distribute_strategy
    _check_optimizer(model)
    with strategy.scope():
        batches = distributed(dataset, strategy)
        _build(model, dataset)
        train = _on_replicas(strategy, model.train_step)
        if validation_data is not None:
            test = _on_replicas(strategy, model.test_step)
            validation_batches = distributed(validation_data, strategy)
        wish = _on_replicas(strategy, tf.identity, tf.distribute.ReduceOp.SUM)
    verbose = verbose if is_chief(strategy) else 0
    told = keras.callbacks.CallbackList(
        callbacks,
        add_history=True,
        add_progbar=verbose != 0,
        verbose=1 if verbose == "auto" else verbose,
        epochs=epochs,
        steps=steps_per_epoch,
        model=model,
    )
    model.stop_training = False
    told.on_train_begin()
    logs = {}
    for epoch, data in zip(range(initial_epoch, epochs), _epochs(batches, steps_per_epoch)):
        model.reset_metrics()
        told.on_epoch_begin(epoch)
        _run(train, data, told.on_train_batch_begin, told.on_train_batch_end)
        logs = _results(model)
        if validation_data is not None:
            model.reset_metrics()
            told.on_test_begin()
            _run(test, validation_batches, told.on_test_batch_begin, told.on_test_batch_end)
            found = _results(model)
            told.on_test_end(found)
            logs |= {f"val_{name}": value for name, value in found.items()}
        told.on_epoch_end(epoch, logs)
        if float(wish(tf.constant(float(model.stop_training)))):
            break
    model.optimizer.finalize_variable_values(model.trainable_weights)
    told.on_train_end(logs)
    return model.history


def _check_optimizer(model):
    optimizer, strategy = inner_optimizer(model), model.distribute_strategy
    if not isinstance(optimizer, DistributedStep):
        raise TypeError(
            "fit_in_strategy needs an optimizer that weighs replicas by their examples. "
            f"Received: {type(optimizer).__name__}. Compile the model with a GSNR optimizer, "
            "or with gsnr_tf.DistributedOptimizer(optimizer)."
        )
    if not strategy.extended.variable_created_in_scope(native(optimizer.count_of_calls)):
        raise ValueError(
            f"The model was made in the scope of {type(strategy).__name__}, and its optimizer "
            "outside of it. Make both inside of `with strategy.scope():`."
        )


def _build(model, dataset):
    """Creates the variables of model, metrics and optimizer: in a replica it could not be
    done. Keras would read a batch for it, and fails on several workers."""
    model._symbolic_build(data_batch=dataset.element_spec)


def _on_replicas(strategy, step, reduction=tf.distribute.ReduceOp.MEAN):
    """A function of a batch that runs a step on all replicas and returns what it returned:
    the mean over this process' replicas, or the sum over all."""

    def reduced(value):
        if reduction is tf.distribute.ReduceOp.SUM:
            return strategy.reduce(reduction, value, axis=None)
        return tf.reduce_mean(tf.stack(strategy.experimental_local_results(value)), axis=0)

    @tf.function(autograph=False, reduce_retracing=True)
    def run(batch):
        return tf.nest.map_structure(reduced, strategy.run(step, args=(batch,)))

    return run


def _epochs(batches, steps):
    """Yields an iterable of batches for each epoch."""
    if steps is None:
        yield from itertools.repeat(batches)
    iterator = iter(batches)
    while True:
        yield itertools.islice(iterator, steps)


def _run(step, batches, begin, end):
    """Runs a step on each of some batches, and tells callbacks."""
    number = 0
    for number, batch in enumerate(batches, 1):
        begin(number - 1)
        end(number - 1, step(batch))
    if not number:
        raise ValueError("There is no batch left for this epoch: the dataset has ended.")


def _results(model):
    """Of all replicas of all workers, which must ask at one point."""
    found = model.get_metrics_result().items()
    found = {name: keras.ops.convert_to_numpy(value) for name, value in found}
    return {name: value if value.ndim else value.item() for name, value in found.items()}


def is_chief(strategy):
    """Whether this process is the one that prints and saves, of all workers."""
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type is None:
        return True
    first = "chief" if "chief" in resolver.cluster_spec().jobs else "worker"
    return (resolver.task_type, resolver.task_id) == (first, 0)
