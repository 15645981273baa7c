"""Escaping of foreign text for terminals and pages.

Terminals execute escape sequences: they set titles, move the cursor, write into the shell's input.
Marks for the direction of writing make a line look like another one, and invisible characters hide
differences. All text that this package has not written itself is shown through `printable`: names
of kernels, command lines, texts of exceptions, the last output of a process.

The output of users' code in a cell is not changed, colours included.

The guardian loads this module, so it imports nothing.
"""

from __future__ import annotations

_SPACES = frozenset("\u00a0\u1680\u202f\u205f\u3000").union(map(chr, range(0x2000, 0x200B)))
"""Spaces other than the plain one. Python counts them as not printable; they are harmless."""

_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0").union(
    map(chr, range(0x180B, 0x1810)), map(chr, range(0xE0100, 0xE01F0))
)
"""Characters that Python counts as printable although they are invisible."""


def printable(text: str, *, lines: bool = False, limit: int | None = None) -> str:
    r"""Return a text with control and invisible characters replaced by escapes such as ``\x1b``.

    Parameters
    ----------
    text
        Any text. A result of this function is not changed by it.
    lines
        Keep line ends and tabs; without it, the text becomes one line.
    limit
        Maximum number of characters; a longer text ends in ``…``.
    """
    if limit is not None:
        text = text[: limit + 1]  # escaping does not make it shorter
    if not (text.isascii() and text.isprintable()):
        text = (
            text.replace("\r\n", "\n").translate(_IN_LINES) if lines else text.translate(_ON_A_LINE)
        )
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


class _Table(dict[int, str]):
    """The replacement of each character, by its code point; filled on demand."""

    def __missing__(self, number: int) -> str:
        character = chr(number)
        shown = character if _is_harmless(character) else ascii(character)[1:-1]
        if number < _CACHED_BELOW:
            self[number] = shown
        return shown


_CACHED_BELOW = 0x3000
"""Code points below this one are cached: more would only take memory."""

_ON_A_LINE = _Table()
_IN_LINES = _Table({ord(character): character for character in "\n\t"})


def _is_harmless(character: str) -> bool:
    if character.isprintable():  # no control, format or surrogate character
        return character not in _INVISIBLE
    return character in _SPACES


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number of things in words: "1 call", "2 calls", "3 processes".

    Parameters
    ----------
    number
        How many.
    one, many
        The noun; many things have an s more, if nothing else is given.
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """Return a duration in the largest unit that leaves a number of at least two."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def sendable(text: str) -> str:
    """Escape the surrogates of a text, which names of files may contain."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
