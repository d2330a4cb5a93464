"""Kinds of arguments that several commands take, for `type=` of argparse."""

import argparse


def elements(text):
    """8M, 300k or 1000000 as a number."""
    factors = {"k": 10**3, "M": 10**6, "G": 10**9}
    factor = factors.get(text[-1:], 1)
    try:
        return int(float(text[:-1] if factor > 1 else text) * factor)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number such as 8M") from None


def positive(text):
    """A number above 0."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def delay(text):
    """A number of milliseconds, 0 or more."""
    return float(text) if float(text) == 0 else positive(text)


def ranks(text):
    """A number of ranks that one machine can hold."""
    number = int(text)
    if not 2 <= number <= 250:
        raise argparse.ArgumentTypeError(f"{text} is not from 2 to 250")
    return number


def whole(text):
    """A whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return number
