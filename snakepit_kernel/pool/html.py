"""What all html of a pool has in common: its style, in the colours of the theme, and its texts."""

from __future__ import annotations

import functools
from html import escape
from importlib.resources import files

from ..printable import printable


@functools.cache
def style() -> str:
    """Return the style sheet of all that shows a pool."""
    return files(__package__).joinpath("pool.css").read_text(encoding="utf-8")


def shown(text: str) -> str:
    """Return a text of others as html shows it."""
    return escape(printable(text, lines=True))
