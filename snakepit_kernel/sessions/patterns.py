"""Regular expressions of strangers: which of them match every text in a short time.

`re` tries every way in which a text may match, and a pattern can be made so that there are as many
as one likes: ``(a+)+b`` needs minutes for 40 characters, and nothing can interrupt it. A pattern of
the user's own is the user's business. One in a file that somebody else may have written is used
only if it is seen from its form that it cannot take long, at the import and whenever it is used
later: at each place where there are two ways to go on, the next character says which one it is.
Where it does not, the ways multiply, and their number must be bounded by ``max_length``.

The form is what `re` itself makes of the pattern, so that both understand the same by it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

# Private, and there since Python 3.11. What it may say that is not known here is refused.
from re import _parser  # type: ignore[attr-defined]
from typing import Any, Final, NamedTuple

MAX_PATTERN: Final = 1000
"""Characters of a pattern."""

MAX_NESTING: Final = 50
"""Groups and repeats inside one another."""

MAX_STEPS: Final = 10_000_000
"""Steps that matching a text may take, about a second."""

_WIDE: Final = 1 << 12
"""Characters of a range that `re` looks at one by one where case does not matter."""

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
"""Letters that equal others beyond ASCII where case does not matter."""

MAX_MARKS: Final = 20
"""Places such as ``^`` and ``\\b`` that a pattern may name: none takes a character."""

Characters = frozenset[int]
"""Those of ASCII by their numbers, others by their kind; rather too many than too few."""


class Slow(ValueError):
    """A pattern may take long; the text says why."""


def check_speed(pattern: str, max_length: int | None = None) -> None:
    """Do nothing if a pattern matches every text in a short time.

    Parameters
    ----------
    pattern
        The pattern.
    max_length
        Characters that a text may have which it is tried with; None for any number.

    Raises
    ------
    Slow
        It may take long.
    re.error
        It is no regular expression.
    """
    if len(pattern) > MAX_PATTERN:
        msg = f"it has {len(pattern):,} characters, and may have {MAX_PATTERN:,}"
        raise Slow(msg)
    try:
        parsed = _parser.parse(pattern)
        steps = _Judge(parsed.state.flags, max_length).ways(parsed, frozenset({_END}))
    except (RecursionError, OverflowError) as error:
        msg = "it is nested too deeply"
        raise Slow(msg) from error
    if steps > 1 and (max_length is None or steps * (max_length + 1) > MAX_STEPS):
        msg = "a text can match it in too many ways; a smaller max_length bounds them"
        raise Slow(msg)


class _Begin(NamedTuple):
    """What a part of a pattern begins with."""

    characters: Characters
    may_be_empty: bool


class _Judge:
    """Counts the ways in which a text may be tried.

    Parameters
    ----------
    flags
        Of the pattern.
    max_length
        Characters that a text may have.
    """

    def __init__(self, flags: int, max_length: int | None) -> None:
        self._ignores_case = bool(flags & re.IGNORECASE)
        self._is_ascii = bool(flags & re.ASCII)
        self._marks = 0
        self._most = None if max_length is None else max_length + 1

    def ways(self, items: Sequence[tuple[Any, Any]], following: Characters, depth: int = 0) -> int:
        """Return in how many ways a sequence may be tried, with what may come behind it."""
        if depth > MAX_NESTING:
            raise RecursionError
        total = 1
        for number, item in enumerate(items):
            rest = self._begin_of(items[number + 1 :])
            behind = rest.characters | (following if rest.may_be_empty else frozenset())
            total *= self._ways_of(item, behind, depth + 1)
            if total > MAX_STEPS:
                msg = "a text can match it in too many ways"
                raise Slow(msg)
        return total

    def _ways_of(self, item: tuple[Any, Any], behind: Characters, depth: int) -> int:
        name, argument = str(item[0]), item[1]
        if name in {"LITERAL", "NOT_LITERAL", "ANY", "IN", "AT"}:
            self._begin_of_item(item)  # it says what is not known
            self._marks += name == "AT"
            if self._marks > MAX_MARKS:
                msg = f"it names more than {MAX_MARKS} places without characters"
                raise Slow(msg)
            return 1
        if name == "SUBPATTERN":
            return self.ways(self._body_of_group(argument), behind, depth)
        if name == "ATOMIC_GROUP":
            return self.ways(argument, behind, depth)
        if name == "BRANCH":
            return self._ways_of_branch(argument[1], behind, depth)
        if name in _REPEATS:
            least, most, body = argument
            return self._ways_of_repeat((least, most), body, behind, depth)
        raise Slow(_unknown(name))

    def _ways_of_branch(self, branches: Sequence[Any], behind: Characters, depth: int) -> int:
        seen: Characters = frozenset()
        is_clear, total = True, 0
        for branch in branches:
            begin = self._begin_of(branch)
            characters = begin.characters | (behind if begin.may_be_empty else frozenset())
            is_clear = is_clear and seen.isdisjoint(characters)
            seen |= characters
            ways = self.ways(branch, behind, depth)
            total = max(total, ways) if is_clear else total + ways
        return total

    def _ways_of_repeat(
        self, times: tuple[int, Any], body: Any, behind: Characters, depth: int
    ) -> int:
        least, most = times
        begin = self._begin_of(body)
        several = most is _parser.MAXREPEAT or most > 1
        if several and begin.may_be_empty:
            msg = "it repeats what may be empty"
            raise Slow(msg)
        inner = self.ways(body, (begin.characters | behind) if several else behind, depth)
        if several and inner > 1:
            msg = "it repeats what can be matched in several ways"
            raise Slow(msg)
        if least == most or begin.characters.isdisjoint(behind):
            return inner
        if most is _parser.MAXREPEAT:
            if self._most is None:
                msg = "a text can match it in too many ways; max_length bounds them"
                raise Slow(msg)
            return inner * self._most
        choices: int = most - least + 1
        return inner * (choices if self._most is None else min(choices, self._most))

    # -- what parts begin with -----------------------------------------------------------------

    def _begin_of(self, items: Iterable[tuple[Any, Any]]) -> _Begin:
        found: Characters = frozenset()
        for item in items:
            begin = self._begin_of_item(item)
            found |= begin.characters
            if not begin.may_be_empty:
                return _Begin(found, may_be_empty=False)
        return _Begin(found, may_be_empty=True)

    def _begin_of_item(self, item: tuple[Any, Any]) -> _Begin:
        name, argument = str(item[0]), item[1]
        if name == "AT":
            return _Begin(frozenset(), may_be_empty=True)
        if name == "SUBPATTERN":
            return self._begin_of(self._body_of_group(argument))
        if name == "ATOMIC_GROUP":
            return self._begin_of(argument)
        if name == "BRANCH":
            begins = [self._begin_of(branch) for branch in argument[1]]
            return _Begin(
                frozenset().union(*(begin.characters for begin in begins)),
                any(begin.may_be_empty for begin in begins),
            )
        if name in _REPEATS:
            least, _, body = argument
            begin = self._begin_of(body)
            return _Begin(begin.characters, begin.may_be_empty or least == 0)
        return _Begin(frozenset(self._characters(name, argument)), may_be_empty=False)

    def _body_of_group(self, argument: Any) -> Any:
        _, added, _, body = argument
        # For all of what follows: rather too many characters than too few.
        self._ignores_case = self._ignores_case or bool(added & re.IGNORECASE)
        self._is_ascii = self._is_ascii or bool(added & re.ASCII)
        return body

    def _characters(self, name: str, argument: Any) -> Iterator[int]:
        if name == "LITERAL":
            yield from self._like(argument)
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
                    found.update(self._like(argument))
                case "RANGE":
                    found.update(self._of_range(*argument))
                case "CATEGORY":
                    found.update(self._category(str(argument)))
                case name:
                    raise Slow(_unknown(name))
        return frozenset(found)

    def _all_but(self, items: Sequence[tuple[Any, Any]]) -> Characters:
        """Return all but what is certainly not in a set that is negated."""
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
        self._of_set(items)  # which says what takes long to compile
        return frozenset(left) | _BEYOND

    def _of_range(self, low: int, high: int) -> Iterator[int]:
        if self._ignores_case and high - low > _WIDE:
            msg = "it has a wide range of characters whose case does not matter"
            raise Slow(msg)
        for number in range(low, min(high, 127) + 1):
            yield from self._like(number)
        if high > 127:
            yield from _BEYOND
            if self._ignores_case:
                yield from _EQUAL_TO_OTHERS

    def _like(self, number: int) -> Iterator[int]:
        """Give a character, or its kind, and all that equal it where case does not matter."""
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
        if self._is_ascii:  # as others mean it, in a part of the pattern or in all of it
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
