"""Saving and loading all state of an optimizer, in shapes that no worker's share changes."""

import warnings

import numpy as np
import tensorflow as tf

_STEPS, _WINDOW = "accumulation_steps", "window_{}"
_READ_BY_PYTHON = ("_accumulated", "_slots")


class WholeState:
    """What Keras stores of an optimizer, in terms of `full_state`.

    Stands before Keras' class in the order of base classes.
    """

    def full_state(self):
        """All state that means the same for any number of workers and micro-batches:
        variables, or what reads and is assigned like them; the count of calls is one."""
        return self.variables

    def window_state(self):
        """What this worker has accumulated since the last update, likewise."""
        return []

    def _trackable_children(self, save_type="checkpoint", **kwargs):
        """What TensorFlow saves: a SavedModel, which serves, can have no part of state
        that is read by calling Python."""
        children = super()._trackable_children(save_type, **kwargs)
        if save_type == "savedmodel":
            children = {k: v for k, v in children.items() if k not in _READ_BY_PYTHON}
        return children

    def save_own_variables(self, store):
        """Fills `store` for `Model.save`. No other rank need take part.

        In a single process, a window that has begun is saved as well. Of several ranks
        only one writes, and knows its own share alone, so that training goes on from the
        last update.
        """
        for index, variable in enumerate(self.full_state()):
            store[str(index)] = variable.numpy()
        store[_STEPS] = np.asarray(int(self.accumulation_steps), "int64")
        if self.window_state() and not self.at_window_start and self.is_alone:
            for index, variable in enumerate(self.window_state()):
                store[_WINDOW.format(index)] = variable.numpy()

    def load_own_variables(self, store):
        """Takes what `save_own_variables` stored, or warns that it does not fit."""
        state, saved = self.full_state(), _numbered(store)
        if _STEPS not in _names(store) and self.window_state():
            # Version 0.1 saved the window among the state, and its vectors behind it.
            state = self.all_state()
            saved = saved[: len(state)]
        if len(saved) != len(state):
            reason = "" if self.built else " It has not been built yet."
            warnings.warn(
                f"Skipping variable loading for optimizer '{self.name}', because it has "
                f"{len(state)} variables whereas the saved optimizer has "
                f"{len(saved)} variables.{reason}",
                stacklevel=2,
            )
            return
        for variable, value in zip(state, saved):
            variable.assign(value)
        self._load_window(store)

    def _load_window(self, store):
        """Goes on within a saved window, or begins a whole one."""
        now = int(self.accumulation_steps)
        before = int(np.asarray(store[_STEPS])) if _STEPS in _names(store) else now
        window = self.window_state()
        names = [_WINDOW.format(index) for index in range(len(window))]
        if before == now and self.is_alone and names and _names(store).issuperset(names):
            for variable, name in zip(window, names):
                variable.assign(store[name])
            return
        for variable in window:
            variable.assign(np.zeros(variable.shape))
        calls = self.count_of_calls
        calls.assign(int(calls.numpy()) // before * now)


def _names(store):
    """What a store of Keras holds, which has keys and is no dict."""
    return set(store.keys())


def _numbered(store):
    """The values of `full_state`, in order."""
    numbers = sorted(int(name) for name in _names(store) if str(name).isdigit())
    return [store[str(number)] for number in numbers]


class Unsaved:
    """A variable that no checkpoint has, Keras' or TensorFlow's.

    They find variables, and what holds them, among an optimizer's attributes.

    Args:
        value: Number, the first value.
        dtype: Of the variable.
        strategy: The `tf.distribute.Strategy` of the optimizer.
    """

    def __init__(self, value, dtype, strategy):
        first = tf.VariableAggregation.ONLY_FIRST_REPLICA
        with tf.init_scope(), strategy.scope():
            value = tf.constant(value, dtype)
            self.value = tf.Variable(value, trainable=False, aggregation=first)
