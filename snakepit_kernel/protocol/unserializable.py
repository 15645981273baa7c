"""Marker that replaces a value, or a part of one, that cannot be pickled."""

from __future__ import annotations

import reprlib
import sys
from dataclasses import dataclass
from typing import Literal

from ..printable import printable
from ..redaction import redacted

Policy = Literal["type", "repr", "error"]

_MAX_TEXT = 200
_MAX_REPR_BYTES = 1 << 20
"""Size up to which the text of an object is taken; it may be as large as the object."""


@dataclass(frozen=True, slots=True)
class Unserializable:
    """Marker in place of a part of a value that could not be pickled.

    Attributes
    ----------
    type_name
        Module and name of the part's type.
    text
        Its repr, shortened and without secrets, if the pool's policy is ``"repr"``.
    """

    type_name: str
    text: str | None = None

    def __repr__(self) -> str:
        text = f"<Unserializable {self.type_name}{f': {self.text}' if self.text else ''}>"
        return printable(text, lines=True)

    def __reduce__(self) -> tuple[type, tuple[str, str | None]]:
        return Unserializable, (self.type_name, self.text)


def marker(value: object, policy: Policy) -> Unserializable:
    """Return the marker of a value."""
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    return Unserializable(name, _text_of(value) if policy == "repr" else None)


def _text_of(value: object) -> str:
    try:
        if sys.getsizeof(value) > _MAX_REPR_BYTES:
            return f"{sys.getsizeof(value):,} bytes"
        text = _shortener.repr(value)
    except Exception:  # noqa: BLE001 - __repr__ and __sizeof__ may do anything
        return "(its text cannot be shown)"
    return redacted(text)


_shortener = reprlib.Repr()
_shortener.maxother = _shortener.maxstring = _MAX_TEXT
