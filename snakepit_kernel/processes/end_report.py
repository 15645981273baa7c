"""What ending a run took: kept by the owner, written down for people."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..printable import printable

MAX_TOLD = 3
"""Commands that the one-line form names."""

MAX_NAME = 30
"""Characters of a command in the one-line form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedProcess:
    """A process that had to be ended because it outlived its kernel, or one that was kept.

    Attributes
    ----------
    pid, command
        The process.
    signal
        What ended it: ``SIGTERM`` or ``SIGKILL``; empty for one that was kept.
    """

    pid: int
    command: str
    signal: str = ""

    def __str__(self) -> str:
        how = " (killed)" if self.signal == "SIGKILL" else ""
        return _short(self.command) + how


@dataclass(slots=True, kw_only=True)
class EndReport:
    """What ending a run took.

    Attributes
    ----------
    verified
        Somebody saw that nothing is left: the guardian, or a search by the tag of the run.
    count
        Processes that had to be ended, the kernel not counted.
    ended
        The first of them by name.
    survivors
        One line for each process that does not die.
    kept
        Processes that were left alive because they are marked so, see `snakepit_kernel.keep`.
    """

    verified: bool = False
    count: int = 0
    ended: list[EndedProcess] = field(default_factory=list)
    survivors: list[str] = field(default_factory=list)
    kept: list[EndedProcess] = field(default_factory=list)

    def take(self, words: Sequence[str]) -> bool:
        """Take in one line of a guardian's report; say whether it was one."""
        match words:
            case ["ended", pid, name, command]:
                self.ended.append(EndedProcess(pid=int(pid), signal=name, command=command))
            case ["survivor", pid, state, command]:
                self.survivors.append(f"{pid} {state} {command}")
            case ["kept", pid, command]:
                self.kept.append(EndedProcess(pid=int(pid), command=command))
            case ["gone", count]:
                self.verified = True
                self.count = int(count)
                self.survivors.clear()
            case _:
                return False
        return True

    @classmethod
    def read(cls, text: str) -> EndReport:
        """Read what a guardian wrote down because nobody was left to be told."""
        report = cls()
        for line in text.splitlines():
            with contextlib.suppress(ValueError):
                report.take(line.split("\t"))
        return report

    def as_json(self) -> str:
        """Write it for the registry."""
        import msgspec  # a kernel imports this module, and does not need it

        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str) -> EndReport:
        """Read what `as_json` wrote; what cannot be read is an empty report."""
        import msgspec

        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, RecursionError):
            return cls()

    def told(self, whose: str = "") -> str:
        """Return how many processes were ended, and what they were, in a few words."""
        if not self.count:
            return "nothing had to be ended"
        names = Counter(str(item) for item in self.ended)
        told = [f"{n} x {name}" if n > 1 else name for name, n in names.most_common(MAX_TOLD)]
        if len(names) > MAX_TOLD or len(self.ended) < self.count:
            told.append("…")
        noun = "process" if self.count == 1 else "processes"
        return f"ended {self.count} {noun}{whose}: {', '.join(told)}"


def _short(command: str) -> str:
    program, *arguments = command.split(" ")
    text = " ".join([program.rpartition("/")[2], *arguments])
    return printable(text, limit=MAX_NAME)
