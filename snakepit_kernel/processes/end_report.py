"""Reports of how runs ended: which processes had to be ended, and which survived."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..printable import counted, printable

MAX_NAMED = 3
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
    """The outcome of ending a run.

    Attributes
    ----------
    verified
        The guardian, or a search by the run's tag, has seen that nothing is left.
    count
        Number of processes that had to be ended, without the kernel.
    ended
        The first of them.
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

    def add_line(self, words: Sequence[str]) -> bool:
        """Add one line of a guardian's report; return False if it is not one."""
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
        """Read the file that a guardian wrote because its owner was dead."""
        report = cls()
        for line in text.splitlines():
            with contextlib.suppress(ValueError):
                report.add_line(line.split("\t"))
        return report

    def as_json(self) -> str:
        """Return it as JSON, for the registry."""
        import msgspec  # a kernel imports this module, and does not need it

        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str) -> EndReport:
        """Read what `as_json` wrote; return an empty report for anything else."""
        import msgspec

        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, RecursionError):
            return cls()

    def summary(self, whose: str = "") -> str:
        """Return the number of ended processes and their commands, as a short phrase."""
        if not self.count:
            return "nothing had to be ended"
        names = Counter(str(item) for item in self.ended)
        summary = [f"{n} x {name}" if n > 1 else name for name, n in names.most_common(MAX_NAMED)]
        if len(names) > MAX_NAMED or len(self.ended) < self.count:
            summary.append("…")
        ended = counted(self.count, "process", "processes")
        return f"ended {ended}{whose}: {', '.join(summary)}"


def _short(command: str) -> str:
    program, *arguments = command.split(" ")
    text = " ".join([program.rpartition("/")[2], *arguments])
    return printable(text, limit=MAX_NAME)
