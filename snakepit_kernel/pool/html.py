"""Common parts of a pool's html: the style sheet, in the theme's colours, and escaped text."""

from __future__ import annotations

import functools
from html import escape
from importlib.resources import files

from ..printable import printable


@functools.cache
def style() -> str:
    """Return the style sheet of all html of pools."""
    return files(__package__).joinpath("pool.css").read_text(encoding="utf-8")


def shown(text: str) -> str:
    """Return an untrusted text as escaped, printable html."""
    return escape(printable(text, lines=True))
