"""Reports of how runs ended: which processes had to be ended, and which survived."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..printable import counted, printable

MAX_NAMED = 3
"""Commands that the one-line form names."""

MAX_NAME = 30
"""Characters of a command in the one-line form."""

UNKNOWN = "?"
"""Stands for the command of a process that was ending by itself when it was looked at."""

_OWN_COMMAND = re.compile(
    r"snakepit-(?:guardian|template)\s"
    r"|\S+ (?:-\S+ )*-m snakepit_kernel\.kernel\b"
    # Executed guardians and templates, see `bare_interpreter`.
    r"|\S+ -I -S -c import sys; package = sys\.modules\['snakepit_kernel"
    # The bash of a session's shell, as `shells.bash` starts it; what it runs is the user's.
    r"|(?:\S*/)?bash --noprofile --norc$"
    # A worker's kernel of any language, by the connection file in the folder of its run.
    r"|.*\s\S*/[a-z2-7]{13}/\S*/\d+\.\d+\.json\b"
    # Python starts that one with shared memory.
    r"|\S+ (?:-\S+ )*-c from multiprocessing\.resource_tracker import main"
)


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
        return _short(self.command) + (" (killed)" if self.was_killed else "")

    @property
    def was_killed(self) -> bool:
        """Whether it did not end by SIGTERM."""
        return self.signal == "SIGKILL"

    @property
    def is_the_users(self) -> bool:
        """Whether the user's code has started it, as far as its command tells."""
        return self.command != UNKNOWN and _OWN_COMMAND.match(self.command) is None


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

    def of_user(self) -> EndReport:
        """Return the report of the user's processes alone, without those of this package.

        A guardian lists the user's first. If it has listed others as well, those that it has only
        counted are not the user's.
        """
        ended = [item for item in self.ended if item.is_the_users]
        return replace(
            self,
            ended=ended,
            count=self.count if len(ended) == len(self.ended) else len(ended),
        )

    def summary(self, whose: str = "") -> str:
        """Return the number of ended processes and their commands, as a short phrase.

        Commands that had to be killed come first, then those of most processes.
        """
        if not self.count:
            return "nothing had to be ended"
        names = Counter(map(str, self.ended))
        killed = {str(item) for item in self.ended if item.was_killed}
        order = sorted(names.items(), key=lambda item: (item[0] not in killed, -item[1]))
        summary = [f"{n} x {name}" if n > 1 else name for name, n in order[:MAX_NAMED]]
        if len(names) > MAX_NAMED or len(self.ended) < self.count:
            summary.append("…")
        ended = counted(self.count, "process", "processes")
        return f"ended {ended}{whose}: {', '.join(summary)}"


def _short(command: str) -> str:
    program, *arguments = command.split(" ")
    text = " ".join([program.rpartition("/")[2], *arguments])
    return printable(text, limit=MAX_NAME)
