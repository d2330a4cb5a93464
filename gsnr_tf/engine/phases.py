"""Where the time of an update goes: `wall_clock_breakdown`.

    forward         from the call of the train step to the loss, input included
    backward        from the loss to the gradients
    communication   in collectives, waiting for slower ranks included
    update          the rest: statistics, rule, metrics

Clocks are read inside the graph, where a value is there, not where it is asked for.
What travels while gradients are still computed counts in both.
"""

import functools
import time

import tensorflow as tf

PHASES = ("forward", "backward", "communication", "update")


class PhaseTimer:
    """Times one model's train steps, from its making on.

    Make it before the train step is traced. It replaces `compute_loss` of the model and
    `apply` of its optimizer by timed ones, and observes its communicator.

    Args:
        model: A compiled `keras.Model` whose optimizer is built.
        communicator: The `Communicator` of that optimizer.
    """

    def __init__(self, model, communicator):
        # Reading a clock costs microseconds; keeping its value on the host costs a
        # copy.
        with tf.device("CPU"):
            clocks = [tf.Variable(0.0, dtype=tf.float64) for _ in range(4)]
        self._loss_there, self._gradients_there, self._waited, self._until = clocks
        model.compute_loss = self._timed_loss(model.compute_loss)
        model.optimizer.apply = self._timed_apply(model.optimizer.apply)
        communicator.observer = self._time_collective
        self.restart()

    def restart(self):
        """Begins a new update."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._waited.assign(0.0)

    def begin(self):
        """Before each micro-batch."""
        self._began, self._waited_before = time.time(), float(self._waited)

    def end(self):
        """After each micro-batch: adds its times to `seconds`."""
        loss, gradients = float(self._loss_there), float(self._gradients_there)
        waited = float(self._waited) - self._waited_before
        self.seconds["forward"] += loss - self._began
        self.seconds["backward"] += gradients - loss
        self.seconds["communication"] += waited
        self.seconds["update"] += max(time.time() - gradients - waited, 0.0)

    def told(self):
        """The times of the update, for a person."""
        return ", ".join(f"{p} {1e3 * s:.1f} ms" for p, s in self.seconds.items())

    def _timed_loss(self, compute_loss):
        @functools.wraps(compute_loss)
        def timed(*args, **kwargs):
            loss = compute_loss(*args, **kwargs)
            self._loss_there.assign(_clock_after(loss))
            return loss

        return timed

    def _timed_apply(self, apply):
        @functools.wraps(apply)
        def timed(grads, *args, **kwargs):
            there = [gradient for gradient in grads if gradient is not None]
            self._gradients_there.assign(_clock_after(*there))
            return apply(grads, *args, **kwargs)

        return timed

    def _time_collective(self, collective, tensor):
        began = _clock_after(tensor)
        with tf.control_dependencies([began]):
            tensor = tf.identity(tensor)
        result = collective(tensor)
        ended = _clock_after(result)
        # Of collectives side by side, the time that others have not counted.
        alone = ended - tf.maximum(began, self._until)
        self._waited.assign_add(tf.maximum(alone, 0.0))
        self._until.assign(tf.maximum(self._until, ended))
        return result


def _clock_after(*values):
    """Seconds since 1970 when all values are there, a float64 tensor."""
    with tf.control_dependencies(tf.nest.flatten(list(values), expand_composites=True)):
        return tf.timestamp()
