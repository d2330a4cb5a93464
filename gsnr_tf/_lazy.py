"""Packages whose names load when they are first used (PEP 562)."""

import importlib
import importlib.util
import sys


def lazy_names(package, homes):
    """Makes `__getattr__` and `__dir__` for a package's `__init__`.

    Subpackages and modules of the package are found by their own names.

    Args:
        package: String, the `__name__` of the package.
        homes: Dict from a module to the names that the package takes from it.

    Returns:
        The two functions.
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def __getattr__(name):
        if name in home_of:
            value = getattr(importlib.import_module(home_of[name]), name)
        elif name.isidentifier() and not name.startswith("_") and _is_inside(name):
            value = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    def _is_inside(name):
        return importlib.util.find_spec(f"{package}.{name}") is not None

    def __dir__():
        return sorted({*vars(sys.modules[package]), *home_of})

    return __getattr__, __dir__
