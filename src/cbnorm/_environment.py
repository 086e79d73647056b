"""Numbers that the environment gives; below everything else, as the CPU and OpenMP are asked first."""

import os


def number_in_environment(name, low, high, environ=os.environ):
    """A whole number in a variable, None where it is not set or empty."""
    text = environ.get(name, "").strip()
    if not text:
        return None
    # Python reads no more than 4,300 digits, and other alphabets have digits too.
    if not (text.isascii() and text.isdecimal() and len(text.lstrip("0")) <= 20 and low <= int(text) <= high):
        raise ValueError(f"{name}: expected {low} to {high}, got {text[:100]!r}")
    return int(text)
