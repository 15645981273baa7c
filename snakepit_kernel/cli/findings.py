"""Findings: the results of the checks of `snakepit doctor`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from ..printable import printable

LISTED = 3
"""Number of processes or files that a line of text names; JSON has them all."""


class Level(StrEnum):
    """Severity of a finding."""

    OK = "ok"
    HINT = "hint"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the doctor's report.

    Attributes
    ----------
    check
        Name of the check.
    level
        Severity; ``problem`` when something is broken.
    text
        What was found.
    advice
        What to do about it; empty when there is nothing to do.
    details
        Each process or file that the text counts.
    """

    check: str
    level: Level
    text: str
    advice: str = ""
    details: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return it as data for JSON."""
        return {**asdict(self), "details": list(self.details)}

    def line(self) -> str:
        """Return text and advice on one line."""
        text = f"{self.text}; {self.advice}" if self.advice else self.text
        return printable(" ".join(text.split()))


Check = Callable[[], Iterable[Finding]]


def ok(check: str, text: str) -> Finding:
    """Return the finding that everything is in order."""
    return Finding(check=check, level=Level.OK, text=text)


def hint(check: str, text: str, advice: str = "", details: Sequence[str] = ()) -> Finding:
    """Return a finding about something that works, or may work, but should be looked at."""
    return Finding(check=check, level=Level.HINT, text=text, advice=advice, details=tuple(details))


def problem(check: str, text: str, advice: str = "", details: Sequence[str] = ()) -> Finding:
    """Return a finding about something broken."""
    return Finding(
        check=check, level=Level.PROBLEM, text=text, advice=advice, details=tuple(details)
    )


def listing(items: Sequence[str]) -> str:
    """Name the first few items, and count the rest."""
    named = ", ".join(items[:LISTED])
    rest = len(items) - LISTED
    return f"{named} and {rest} more" if rest > 0 else named
