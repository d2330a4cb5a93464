"""The two decays of the field, for all variables or by patterns of their paths."""

import re
import warnings

import keras

from gsnr_tf.optimizers.exclusions import checked_patterns, matched_paths, path_of


def checked(argument, value):
    """A coefficient, or a dict of coefficients by regular expression, once it is valid.

    Args:
        argument: Name of the argument, for messages.
        value: Float, `None`, or dict.

    Raises:
        ValueError: A coefficient is negative or no number, a pattern no regular expression.
    """
    if value is None:
        return None
    by_pattern = value if isinstance(value, dict) else {"": value}
    checked_patterns(argument, list(by_pattern))
    for number in by_pattern.values():
        valid = isinstance(number, (int, float)) and not isinstance(number, bool)
        if not (valid and number >= 0):
            raise ValueError(
                f"{argument} must be a number of at least 0, None, or a dict of such "
                f"numbers by regular expression. Received: {argument}={value!r}"
            )
    return dict(value) if isinstance(value, dict) else value


def by_variable(value, variables, decayed):
    """The coefficient of each variable, a list of floats.

    Args:
        value: What `checked` returned. Of a dict the first pattern that is found in a
            variable's path holds; variables that none fits have 0.
        variables: The variables.
        decayed: For each whether it is decayed at all, where the value is one number.
    """
    if not isinstance(value, dict):
        return [float(value or 0.0) if decays else 0.0 for decays in decayed]
    return [_first(value, path) for path in matched_paths(variables, value)]


def _first(by_pattern, path):
    fitting = (v for pattern, v in by_pattern.items() if re.search(pattern, path))
    return float(next(fitting, 0.0))


def plain(value):
    """As `get_config` holds it: assigned to an optimizer, a dict becomes a tracked one."""
    return dict(value) if isinstance(value, dict) else value


def warn_of_regularizers(variables, optimizer):
    """Warns once of L2 that reaches the optimizer inside the gradient.

    Every sample has it alike, so that it looks like signal; and the gradient of a table
    becomes dense.

    Args:
        variables: The variables, of Keras.
        optimizer: Name of the optimizer's class.
    """
    found = {}
    for variable in variables:
        regularizer = getattr(variable, "regularizer", None)
        if isinstance(regularizer, (keras.regularizers.L2, keras.regularizers.L1L2)):
            strength = float(regularizer.l2)
            if strength:
                # The gradient of c·θ² is 2c·θ.
                found[f"^{re.escape(path_of(variable))}$"] = 2 * strength
    if found:
        warnings.warn(
            f"{optimizer} takes the L2 regularizer of these variables for signal, since "
            "every sample of the gradient has it alike. Remove it from the layers and "
            f"give the optimizer l2={found!r}.",
            stacklevel=3,
        )
