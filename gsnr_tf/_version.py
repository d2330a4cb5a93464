"""The version, in a file of its own: setup.py and the launcher read it as text."""

__version__ = "0.2.0"
