"""Saving and loading all state of an optimizer, in shapes that no worker's share changes."""

import warnings


class WholeState:
    """What Keras stores of an optimizer, in terms of `whole_state`.

    Stands before Keras' class in the order of base classes.
    """

    def whole_state(self):
        """All state: variables, or what reads and is assigned like them."""
        return self.variables

    def save_own_variables(self, store):
        """Fills `store` for `Model.save`. With slices all ranks must call it."""
        for index, variable in enumerate(self.whole_state()):
            store[str(index)] = variable.numpy()

    def load_own_variables(self, store):
        """Takes what `save_own_variables` stored, or warns that it does not fit."""
        state = self.whole_state()
        if len(store.keys()) != len(state):
            reason = "" if self.built else " It has not been built yet."
            warnings.warn(
                f"Skipping variable loading for optimizer '{self.name}', because it has "
                f"{len(state)} variables whereas the saved optimizer has "
                f"{len(store.keys())} variables.{reason}",
                stacklevel=2,
            )
            return
        for index, variable in enumerate(state):
            variable.assign(store[str(index)])
