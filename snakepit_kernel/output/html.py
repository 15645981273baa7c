"""Common parts of all html: the style sheet, in the theme's colours, and escaped text."""

from __future__ import annotations

import functools
from html import escape

from ..printable import printable


@functools.cache
def style() -> str:
    """Return the style sheet of all html of this package."""
    from importlib.resources import files  # a kernel imports this module, and shows mostly no html

    return files(__package__).joinpath("style.css").read_text(encoding="utf-8")


def shown(text: str) -> str:
    """Return an untrusted text as escaped, printable html."""
    return escape(printable(text, lines=True))


def page(*parts: str, kind: str = "") -> str:
    """Return html that brings its style sheet along.

    Parameters
    ----------
    parts
        Its content.
    kind
        Further classes of its element.
    """
    classes = f"snakepit-pool {kind}".rstrip()
    return f'<div class="{classes}"><style>{style()}</style>{"".join(parts)}</div>'
