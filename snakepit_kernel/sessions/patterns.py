"""Protection against regular expressions that take exponential time (ReDoS).

`re` backtracks: it tries every way in which a text may match, and a pattern can have any number of
them: ``(a+)+b`` needs minutes for 40 characters, and cannot be interrupted. A user's own patterns
are not checked. A pattern in a file that somebody else may have written is used only if its
structure shows that it cannot take long, at the import and whenever it is used later: at each
choice between two ways to continue, the next character decides. Where it does not, the ways
multiply, and their number must be bounded by ``max_length``.

The structure is taken from `re`'s own parser, so that both interpret the pattern equally.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

# Private, and present since Python 3.11. Results that are unknown here are rejected.
from re import _parser  # type: ignore[attr-defined]
from typing import Any, Final, NamedTuple

MAX_PATTERN: Final = 1000
"""Characters of a pattern."""

MAX_NESTING: Final = 50
"""Nesting depth of groups and repeats."""

MAX_STEPS: Final = 10_000_000
"""Steps that matching a text may take, about a second."""

_WIDE: Final = 1 << 12
"""Size of a range above which compiling it with IGNORECASE, one character at a time, is slow."""

_ASCII: Final = frozenset(range(128))
_DIGIT, _LETTER, _SPACE, _OTHER, _END = range(-5, 0)
"""Kinds of characters beyond ASCII, and the end of the text."""

_BEYOND: Final = frozenset({_DIGIT, _LETTER, _SPACE, _OTHER})

_CATEGORIES: Final = {
    "CATEGORY_DIGIT": frozenset({*map(ord, "0123456789"), _DIGIT}),
    "CATEGORY_SPACE": frozenset({*(n for n in _ASCII if chr(n).isspace()), _SPACE}),
    "CATEGORY_WORD": frozenset(
        {*(n for n in _ASCII if chr(n).isalnum()), ord("_"), _DIGIT, _LETTER}
    ),
}
_SPACES_OF_ASCII: Final = frozenset(map(ord, " \t\n\r\f\v"))
_EQUAL_TO_OTHERS: Final = frozenset(map(ord, "ikIKsS"))
"""Letters that equal others beyond ASCII under IGNORECASE."""

MAX_ANCHORS: Final = 20
"""Anchors such as ``^`` and ``\\b`` that a pattern may have: they consume no character."""

Characters = frozenset[int]
"""A superset of the possible characters: ASCII ones by code, others by kind."""


class Slow(ValueError):
    """A pattern may take long; the text says why."""


def check_speed(pattern: str, max_length: int | None = None) -> None:
    """Check that a pattern matches every text in a short time.

    Parameters
    ----------
    pattern
        The pattern.
    max_length
        Maximum length of the texts that it is matched with; None for any.

    Raises
    ------
    Slow
        It may take long.
    re.error
        It is not a regular expression.
    """
    if len(pattern) > MAX_PATTERN:
        msg = f"it has {len(pattern):,} characters, and may have {MAX_PATTERN:,}"
        raise Slow(msg)
    try:
        parsed = _parser.parse(pattern)
        steps = _WayCounter(parsed.state.flags, max_length).ways(parsed, frozenset({_END}))
    except (RecursionError, OverflowError) as error:
        msg = "it is nested too deeply"
        raise Slow(msg) from error
    if steps > 1 and (max_length is None or steps * (max_length + 1) > MAX_STEPS):
        msg = "a text can match it in too many ways; a smaller max_length bounds them"
        raise Slow(msg)


class _First(NamedTuple):
    """The possible first characters of a part of a pattern."""

    characters: Characters
    may_be_empty: bool


class _WayCounter:
    """Counts the ways in which a pattern can match a text.

    Parameters
    ----------
    flags
        Flags of the pattern.
    max_length
        Maximum length of a text.
    """

    def __init__(self, flags: int, max_length: int | None) -> None:
        self._ignores_case = bool(flags & re.IGNORECASE)
        self._is_ascii = bool(flags & re.ASCII)
        self._anchors = 0
        self._most = None if max_length is None else max_length + 1

    def ways(self, items: Sequence[tuple[Any, Any]], following: Characters, depth: int = 0) -> int:
        """Return the number of ways in which a sequence can match, before certain characters."""
        if depth > MAX_NESTING:
            raise RecursionError
        total = 1
        for number, item in enumerate(items):
            rest = self._first_of(items[number + 1 :])
            after = rest.characters | (following if rest.may_be_empty else frozenset())
            total *= self._ways_of(item, after, depth + 1)
            if total > MAX_STEPS:
                msg = "a text can match it in too many ways"
                raise Slow(msg)
        return total

    def _ways_of(self, item: tuple[Any, Any], following: Characters, depth: int) -> int:
        name, argument = str(item[0]), item[1]
        if name in {"LITERAL", "NOT_LITERAL", "ANY", "IN", "AT"}:
            self._first_of_item(item)  # raises for unknown items
            self._anchors += name == "AT"
            if self._anchors > MAX_ANCHORS:
                msg = f"it names more than {MAX_ANCHORS} places without characters"
                raise Slow(msg)
            return 1
        if name == "SUBPATTERN":
            return self.ways(self._body_of_group(argument), following, depth)
        if name == "ATOMIC_GROUP":
            return self.ways(argument, following, depth)
        if name == "BRANCH":
            return self._ways_of_branch(argument[1], following, depth)
        if name in _REPEATS:
            least, most, body = argument
            return self._ways_of_repeat((least, most), body, following, depth)
        raise Slow(_unknown(name))

    def _ways_of_branch(self, branches: Sequence[Any], following: Characters, depth: int) -> int:
        seen: Characters = frozenset()
        is_disjoint, total = True, 0
        for branch in branches:
            first = self._first_of(branch)
            characters = first.characters | (following if first.may_be_empty else frozenset())
            is_disjoint = is_disjoint and seen.isdisjoint(characters)
            seen |= characters
            ways = self.ways(branch, following, depth)
            total = max(total, ways) if is_disjoint else total + ways
        return total

    def _ways_of_repeat(
        self, times: tuple[int, Any], body: Any, following: Characters, depth: int
    ) -> int:
        least, most = times
        first = self._first_of(body)
        several = most is _parser.MAXREPEAT or most > 1
        if several and first.may_be_empty:
            msg = "it repeats what may be empty"
            raise Slow(msg)
        inner = self.ways(body, (first.characters | following) if several else following, depth)
        if several and inner > 1:
            msg = "it repeats what can be matched in several ways"
            raise Slow(msg)
        if least == most or first.characters.isdisjoint(following):
            return inner
        if most is _parser.MAXREPEAT:
            if self._most is None:
                msg = "a text can match it in too many ways; max_length bounds them"
                raise Slow(msg)
            return inner * self._most
        choices: int = most - least + 1
        return inner * (choices if self._most is None else min(choices, self._most))

    # -- first characters ----------------------------------------------------------------------

    def _first_of(self, items: Iterable[tuple[Any, Any]]) -> _First:
        found: Characters = frozenset()
        for item in items:
            first = self._first_of_item(item)
            found |= first.characters
            if not first.may_be_empty:
                return _First(found, may_be_empty=False)
        return _First(found, may_be_empty=True)

    def _first_of_item(self, item: tuple[Any, Any]) -> _First:
        name, argument = str(item[0]), item[1]
        if name == "AT":
            return _First(frozenset(), may_be_empty=True)
        if name == "SUBPATTERN":
            return self._first_of(self._body_of_group(argument))
        if name == "ATOMIC_GROUP":
            return self._first_of(argument)
        if name == "BRANCH":
            firsts = [self._first_of(branch) for branch in argument[1]]
            return _First(
                frozenset().union(*(first.characters for first in firsts)),
                any(first.may_be_empty for first in firsts),
            )
        if name in _REPEATS:
            least, _, body = argument
            first = self._first_of(body)
            return _First(first.characters, first.may_be_empty or least == 0)
        return _First(frozenset(self._characters(name, argument)), may_be_empty=False)

    def _body_of_group(self, argument: Any) -> Any:
        _, added, _, body = argument
        # From here on, for all items: a superset of the characters is correct.
        self._ignores_case = self._ignores_case or bool(added & re.IGNORECASE)
        self._is_ascii = self._is_ascii or bool(added & re.ASCII)
        return body

    def _characters(self, name: str, argument: Any) -> Iterator[int]:
        if name == "LITERAL":
            yield from self._equal_to(argument)
        elif name == "NOT_LITERAL":
            yield from (_ASCII - {argument}) | _BEYOND
        elif name == "ANY":
            yield from _ASCII | _BEYOND
        elif name == "IN":
            yield from self._of_set(argument)
        else:
            raise Slow(_unknown(name))

    def _of_set(self, items: Sequence[tuple[Any, Any]]) -> Characters:
        found: set[int] = set()
        for kind, argument in items:
            match str(kind):
                case "NEGATE":
                    return self._all_but(items[1:])
                case "LITERAL":
                    found.update(self._equal_to(argument))
                case "RANGE":
                    found.update(self._of_range(*argument))
                case "CATEGORY":
                    found.update(self._category(str(argument)))
                case name:
                    raise Slow(_unknown(name))
        return frozenset(found)

    def _all_but(self, items: Sequence[tuple[Any, Any]]) -> Characters:
        """Return all characters except those that a negated set certainly excludes."""
        left = set(_ASCII)
        for kind, argument in items:
            match str(kind):
                case "LITERAL":
                    left.discard(argument)
                case "RANGE":
                    left.difference_update(range(argument[0], min(argument[1], 127) + 1))
                case "CATEGORY":
                    left -= self._category(str(argument))
                case name:
                    raise Slow(_unknown(name))
        self._of_set(items)  # raises for what takes long to compile
        return frozenset(left) | _BEYOND

    def _of_range(self, low: int, high: int) -> Iterator[int]:
        if self._ignores_case and high - low > _WIDE:
            msg = "it has a wide range of characters whose case does not matter"
            raise Slow(msg)
        for number in range(low, min(high, 127) + 1):
            yield from self._equal_to(number)
        if high > 127:
            yield from _BEYOND
            if self._ignores_case:
                yield from _EQUAL_TO_OTHERS

    def _equal_to(self, number: int) -> Iterator[int]:
        """Yield a character, or its kind, and those that equal it under IGNORECASE."""
        character = chr(number)
        yield number if number < 128 else _kind_of(character)
        if self._ignores_case:
            yield from (ord(c) for c in character.lower() + character.upper() if ord(c) < 128)
            if number > 127:
                yield from _BEYOND
                yield from _EQUAL_TO_OTHERS
            elif number in _EQUAL_TO_OTHERS:
                yield _LETTER

    def _category(self, name: str) -> Characters:
        if name in _CATEGORIES:
            return _CATEGORIES[name]
        opposite = name.replace("_NOT_", "_")
        if opposite not in _CATEGORIES:
            raise Slow(_unknown(name))
        if self._is_ascii:  # the meaning under ASCII, in a part of the pattern or all of it
            less = _SPACES_OF_ASCII if opposite == "CATEGORY_SPACE" else _CATEGORIES[opposite]
            return (_ASCII - less) | _BEYOND
        return (_ASCII | _BEYOND) - _CATEGORIES[opposite]


_REPEATS: Final = frozenset({"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"})


def _kind_of(character: str) -> int:
    if character.isdecimal():
        return _DIGIT
    if character.isalnum():
        return _LETTER
    return _SPACE if character.isspace() else _OTHER


def _unknown(name: str) -> str:
    words = name.lower().replace("_", " ").replace("groupref", "reference to a group")
    return f"it has a part whose time has no bound that is known here ({words})"
