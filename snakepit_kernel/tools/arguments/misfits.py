"""What is said of a value that does not fit: what was expected, what was given, and where in it."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Iterable
from typing import Any

Check = Callable[[Any], Any]
"""Returns the value, converted if need be, or raises `Misfit`."""


class Misfit(ValueError):
    """A value does not fit its annotation.

    Attributes
    ----------
    text
        What was expected, and what was given.
    path
        Where in the value: ``.name`` of a field, ``[0]`` of an item.
    """

    def __init__(self, text: str, path: str = "") -> None:
        super().__init__(text, path)
        self.text = text
        self.path = path

    def __str__(self) -> str:
        return f"{self.text} - at `${self.path}`" if self.path else self.text


class WrongType(Misfit):
    """A value is of another type altogether."""


def wrong_type(kind: Any, value: object) -> WrongType:
    """Say which type was expected, and which one was given."""
    return WrongType(f"Expected `{_named(kind)}`, got `{_named(type(value))}`")


def _named(kind: Any) -> str:
    """Return an annotation as its author wrote it, more or less."""
    text = inspect.formatannotation(kind)
    return text.replace("collections.abc.", "").replace("NoneType", "None")


def none_of(choices: Iterable[object], value: object) -> Misfit:
    """Say which values there are."""
    return Misfit(f"Expected one of {', '.join(map(repr, choices))}, got {reprlib.repr(value)}")


def fit_within(step: str, check: Check | None, value: Any) -> Any:
    """Check a part of a value; a misfit tells by ``step`` which part it is."""
    if check is None:
        return value
    try:
        return check(value)
    except Misfit as misfit:
        raise type(misfit)(misfit.text, step + misfit.path) from None


def built(build: Check, value: Any) -> Any:
    """Build an instance; what its class objects to is a misfit."""
    try:
        return build(value)
    except (ValueError, TypeError) as error:
        raise _objection(error) from None


def _objection(error: ValueError | TypeError) -> Misfit:
    """Tell an exception in one sentence; that of pydantic has several lines, and the paths."""
    if not callable(errors := getattr(error, "errors", None)):
        return Misfit(str(error))
    first, *others = errors(include_url=False)
    path = "".join(f".{step}" if isinstance(step, str) else f"[{step}]" for step in first["loc"])
    more = f" (and {len(others)} more)" if others else ""
    return Misfit(f"{first['msg']}, got {reprlib.repr(first['input'])}{more}", path)
