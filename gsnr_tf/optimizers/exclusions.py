"""Which variables a rule leaves alone: regular expressions against their paths."""

import re
import warnings


def path_of(variable):
    return getattr(variable, "path", variable.name)


def as_list(patterns):
    # Assigned to an optimizer, a list becomes a tracked one.
    return None if patterns is None else list(patterns)


def checked_patterns(argument, patterns):
    """The list of regular expressions, each checked to be one."""
    if patterns is None:
        return None
    if isinstance(patterns, str):
        raise ValueError(
            f"{argument} must be a list of regular expressions. Received the string "
            f"{patterns!r}; write [{patterns!r}]."
        )
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"{argument} has {pattern!r}, which is not a regular expression: {error}."
            ) from error
    return list(patterns)


def matched_paths(variables, patterns):
    """Paths of the variables; warns of each pattern that none of them has."""
    paths = [path_of(variable) for variable in variables]
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            warnings.warn(
                f"The regular expression {pattern!r} matches no variable. "
                f"The variables' paths are: {paths}",
                stacklevel=3,
            )
    return paths


def selected(variables, exclude, exclude_vectors=False):
    """For each variable, whether it is left after the exclusions."""
    if exclude is None:
        return [len(v.shape) > 1 or not exclude_vectors for v in variables]
    paths = matched_paths(variables, exclude)
    return [not any(re.search(p, path) for p in exclude) for path in paths]


class ExcludesFromDecay:
    """Keras' way to exclude variables from decay, by method, beside the constructor's."""

    # Excluded by a method, and therefore not in the config, as in Keras.
    _also_not_decayed = ()

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        """Excludes variables, besides those of the constructor's list.

        Args:
            var_list: Variables to exclude.
            var_names: Regular expressions, searched in `variable.path`.

        Raises:
            ValueError: The optimizer is already built.
        """
        if self.built:
            raise ValueError(
                "`exclude_from_weight_decay()` must be called before the optimizer is built."
            )
        exact = [f"^{re.escape(path_of(variable))}$" for variable in var_list or []]
        patterns = checked_patterns("var_names", var_names) or []
        self._also_not_decayed = [*self._also_not_decayed, *exact, *patterns]

    def _decayed(self, variables, exclude_vectors):
        """For each variable, whether decay applies."""
        by_list = selected(variables, self._not_decayed, exclude_vectors)
        by_call = selected(variables, self._also_not_decayed)
        return [one and other for one, other in zip(by_list, by_call)]
