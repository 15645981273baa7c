"""Validation of users' settings."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any, overload


def check_count(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return a whole number between two bounds, or raise TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"{name} must be a whole number, not {value!r}{bytes_meant(name, value)}"
        raise TypeError(msg)
    if value < least or (most is not None and value > most):
        bounds = f"at least {least}" if most is None else f"between {least} and {most}"
        msg = f"{name} must be {bounds}, not {value}"
        raise ValueError(msg)
    return value


def check_seconds(name: str, value: Any, *, allow_zero: bool = False) -> float | None:
    """Return a duration as a float, None for no limit, or raise TypeError or ValueError."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{name} must be a number of seconds or None, not {value!r}"
        raise TypeError(msg)
    if value >= FOREVER:  # also infinity, and integers too large for a float
        return None
    if math.isnan(value) or value < 0 or (value == 0 and not allow_zero):
        msg = f"{name} must be {'zero or ' if allow_zero else ''}positive seconds, not {value}"
        raise ValueError(msg)
    return float(value)


def parse_bytes(text: str) -> int:
    """Return a size in bytes from a text such as ``500M`` or ``1.5G``, or raise ValueError."""
    number, unit = text[:-1], text[-1:].upper()
    if unit not in _BYTES:
        number, unit = text, ""
    try:
        return int(float(number) * _BYTES[unit])
    except (ValueError, OverflowError):
        msg = f"{text!r} is not a number of bytes, such as 500M or 2G"
        raise ValueError(msg) from None


def parse_seconds(text: str) -> float:
    """Return a duration from a text such as ``12h`` or ``30d``, or raise ValueError."""
    unit = _SECONDS.get(text[-1:].lower())
    try:
        return float(text if unit is None else text[:-1]) * (unit or 1.0)
    except ValueError:
        msg = f"{text!r} is not a time, such as 12h or 30d"
        raise ValueError(msg) from None


def bytes_meant(name: str, value: object) -> str:
    """Return the end of the error of a size that is a text, with the number that it means."""
    if not name.endswith("_bytes") or not isinstance(value, str):
        return ""
    try:
        return f", which is {parse_bytes(value)}"
    except ValueError:
        return ""


_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}

_BYTES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def check_priority(value: Any) -> int:
    """Return a priority, any whole number, or raise TypeError."""
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"priority must be a whole number, higher for what goes first, not {value!r}"
        raise TypeError(msg)
    return value


def check_flag(name: str, value: Any) -> bool:
    """Return a flag, or raise TypeError."""
    if not isinstance(value, bool):
        msg = f"{name} must be True or False, not {value!r}"
        raise TypeError(msg)
    return value


FOREVER = 1e9
"""Seconds, 31 years, from which on a duration means no limit: locks, sockets and clocks raise
`OverflowError` beyond their own limits."""


@overload
def bounded(seconds: None) -> None: ...
@overload
def bounded(seconds: float) -> float: ...
def bounded(seconds: float | None) -> float | None:
    """Return a duration limited to one that can be waited for; infinity and None are allowed."""
    if seconds is None:
        return None
    return FOREVER if seconds >= FOREVER else float(seconds)


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence with the names that the user may have meant."""
    names = sorted(known)
    if not names:
        return "; there are none"
    begun = [known_name for known_name in names if len(name) > 1 and known_name.startswith(name)]
    near = difflib.get_close_matches(name, names, n=3)
    near.sort(key=lambda known_name: sorted(known_name) != sorted(name))  # letters in another order
    if begun or near:
        near = [min(begun, key=len)] if begun else near
        return f"; did you mean {near[0]!r}?"
    listed = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"; there are: {listed}"
