"""Settings that users give, checked."""

from __future__ import annotations

import math
from typing import Any, overload


def check_count(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return a whole number between two bounds; say what is wrong with a bad one."""
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"{name} must be a whole number, not {value!r}"
        raise TypeError(msg)
    if value < least or (most is not None and value > most):
        bounds = f"at least {least}" if most is None else f"between {least} and {most}"
        msg = f"{name} must be {bounds}, not {value}"
        raise ValueError(msg)
    return value


def check_seconds(name: str, value: Any, *, allow_zero: bool = False) -> float | None:
    """Return a duration as a float, or None for no limit; say what is wrong with a bad one."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{name} must be a number of seconds or None, not {value!r}"
        raise TypeError(msg)
    if value >= FOREVER:  # infinity, too, and integers that are no float any more
        return None
    if math.isnan(value) or value < 0 or (value == 0 and not allow_zero):
        msg = f"{name} must be {'zero or ' if allow_zero else ''}positive seconds, not {value}"
        raise ValueError(msg)
    return float(value)


def check_priority(value: Any) -> int:
    """Return a priority, any whole number; say what is wrong with a bad one."""
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"priority must be a whole number, higher for what goes first, not {value!r}"
        raise TypeError(msg)
    return value


def check_flag(name: str, value: Any) -> bool:
    """Return whether something is wanted; say what is wrong with a bad answer."""
    if not isinstance(value, bool):
        msg = f"{name} must be True or False, not {value!r}"
        raise TypeError(msg)
    return value


FOREVER = 1e9
"""Seconds, 31 years, from which on a duration is no limit: locks, sockets and clocks have theirs,
and raise `OverflowError` beyond."""


@overload
def bounded(seconds: None) -> None: ...
@overload
def bounded(seconds: float) -> float: ...
def bounded(seconds: float | None) -> float | None:
    """Return a duration that can be waited for: any number, infinity included, or None."""
    if seconds is None:
        return None
    return FOREVER if seconds >= FOREVER else float(seconds)
