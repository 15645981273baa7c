"""Validation errors of tool arguments: what was expected, what was given, and where."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Iterable
from typing import Any, Self

Check = Callable[[Any], Any]
"""Returns the value, converted if need be, or raises `Mismatch`."""


class Mismatch(ValueError):
    """A value does not match its annotation.

    Attributes
    ----------
    text
        What was expected, and what was given.
    path
        Position in the value: ``.name`` for a field, ``[0]`` for an item.
    """

    def __init__(self, text: str, path: str = "") -> None:
        super().__init__(text, path)
        self.text = text
        self.path = path

    def __str__(self) -> str:
        return f"{self.text} - at `${self.path}`" if self.path else self.text

    def within(self, step: str) -> Self:
        """Return the same error for the value that contains this one."""
        return type(self)(self.text, step + self.path)


class WrongType(Mismatch):
    """A value is of a wrong type."""


def wrong_type(kind: Any, value: object) -> WrongType:
    """Return the error with the expected type and the given one."""
    return WrongType(f"Expected `{_name_of(kind)}`, got `{_name_of(type(value))}`")


def _name_of(kind: Any) -> str:
    """Format an annotation about as its author wrote it."""
    text = inspect.formatannotation(kind)
    return text.replace("collections.abc.", "").replace("NoneType", "None")


def not_one_of(choices: Iterable[object], value: object) -> Mismatch:
    """Return the error with the allowed values."""
    return Mismatch(f"Expected one of {', '.join(map(repr, choices))}, got {reprlib.repr(value)}")


def build(make: Check, value: Any) -> Any:
    """Build an instance; an error of its class becomes a mismatch."""
    try:
        return make(value)
    except (ValueError, TypeError) as error:
        raise _mismatch_of(error) from None


def _mismatch_of(error: ValueError | TypeError) -> Mismatch:
    """Summarise an exception in one sentence; pydantic's has several lines, and paths."""
    if not callable(errors := getattr(error, "errors", None)):
        return Mismatch(str(error))
    first, *others = errors(include_url=False)
    path = "".join(f".{step}" if isinstance(step, str) else f"[{step}]" for step in first["loc"])
    more = f" (and {len(others)} more)" if others else ""
    return Mismatch(f"{first['msg']}, got {reprlib.repr(first['input'])}{more}", path)
