"""Text of others, made safe for terminals and pages.

Terminals obey escape sequences: they set titles, move the cursor, answer into the shell's input.
Marks for the direction of writing make a line read as another one, and characters without a shape
hide what is there. All who show text that this package has not written itself show it by
`printable`: names of kernels, command lines, texts of exceptions, what a process wrote last.

What code of the user's prints in a cell is not changed: it is theirs, colours included.

The guardian loads this module, so it imports nothing.
"""

from __future__ import annotations

_SPACES = frozenset("\u00a0\u1680\u202f\u205f\u3000").union(map(chr, range(0x2000, 0x200B)))
"""Spaces that are no plain ones. Python counts them as not printable; they do no harm."""

_SHAPELESS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0").union(
    map(chr, range(0x180B, 0x1810)), map(chr, range(0xE0100, 0xE01F0))
)
"""What Python counts as printable although nobody sees it."""


def printable(text: str, *, lines: bool = False, limit: int | None = None) -> str:
    r"""Return a text with ``\x1b`` and the like in the place of what a terminal would obey or hide.

    Parameters
    ----------
    text
        Any text. One that this function gave is not changed by it.
    lines
        Leave line ends and tabs as they are; without it, the text becomes one line.
    limit
        Characters that it may have; what is longer ends in ``…``.
    """
    if limit is not None:
        text = text[: limit + 1]  # it does not become shorter
    if not (text.isascii() and text.isprintable()):
        text = (
            text.replace("\r\n", "\n").translate(_IN_LINES) if lines else text.translate(_ON_A_LINE)
        )
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


class _Table(dict[int, str]):
    """What stands for each character, by its number; made as they come."""

    def __missing__(self, number: int) -> str:
        character = chr(number)
        shown = character if _is_harmless(character) else ascii(character)[1:-1]
        if number < _OFTEN:
            self[number] = shown
        return shown


_OFTEN = 0x3000
"""Characters below this one are remembered: more would only take memory."""

_ON_A_LINE = _Table()
_IN_LINES = _Table({ord(character): character for character in "\n\t"})


def _is_harmless(character: str) -> bool:
    if character.isprintable():  # no control, no mark of format, no half of a surrogate pair
        return character not in _SHAPELESS
    return character in _SPACES
