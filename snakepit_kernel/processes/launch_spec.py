"""What is launched: described once by the owner, for a template and for a guardian by ``exec``."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from ..ids import RUN_ID_OPTION, run_number
from ..paths import working_directory
from .identity import ProcessIdentity
from .tags import KEEP_VARIABLE, mark_of


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """A command, what its process inherits, and what its guardian must know.

    Attributes
    ----------
    command
        Program and arguments.
    run_id
        Run id of the new process; the caller has put it into ``env``.
    grace
        Seconds between SIGTERM and SIGKILL when the guardian ends the run by itself.
    env
        The whole environment. ``SNAKEPIT_KEEP`` is left out: a run itself is never kept.
    leftovers
        Files and directories that are removed with the run; the guardian does so when the owner is
        dead.
    report_file
        Where the guardian writes its report when the owner is dead.
    pass_fds
        File descriptors that the command inherits under the same numbers.
    independent
        The run outlives its owner.
    standby
        The process waits for an assignment. Only a template can start one.
    is_program
        The command is any program, and not a kernel of ours: a process that a template forks for it
        executes it, and any template will do.
    popen_arguments
        Other arguments of :class:`subprocess.Popen`: ``cwd``, ``stdout``, ``umask`` … Standard
        input is never the owner's unless that is asked for.
    """

    command: Sequence[str]
    run_id: str
    grace: float
    env: Mapping[str, str]
    leftovers: Sequence[str | Path] = ()
    report_file: str | Path | None = None
    pass_fds: Sequence[int] = ()
    independent: bool = False
    standby: bool = False
    is_program: bool = False
    popen_arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, command: Sequence[str], **arguments: Any) -> Self:
        """Return the specification of a command.

        Parameters
        ----------
        command
            Program and arguments.
        arguments
            Attributes of this class, and arguments of :class:`subprocess.Popen`.
        """
        own = {name: arguments.pop(name) for name in _NAMES & arguments.keys()}
        own["env"] = {name: value for name, value in own["env"].items() if name != KEEP_VARIABLE}
        if arguments.get("stdin") is None:
            arguments["stdin"] = subprocess.DEVNULL
        if arguments.get("cwd") is not None:
            arguments["cwd"] = os.fsdecode(arguments["cwd"])
        return cls(command=[*command], popen_arguments=arguments, **own)

    @property
    def cwd(self) -> str | None:
        """The working directory; None for the owner's."""
        return self.popen_arguments.get("cwd")

    def environment(self) -> dict[str, str]:
        """Return the environment of the process.

        ipykernel would watch its parent in a thread that wakes every second; 1 turns that off.
        """
        return {**self.env} if self.is_program else {**self.env, "JPY_PARENT_PID": "1"}

    def guardian_arguments(self, channel: int, *, reports_ready: bool) -> list[str]:
        """Return the arguments of its guardian, which `guardian.Options` parses.

        Parameters
        ----------
        channel
            File descriptor of the guardian's channel in the guardian.
        reports_ready
            Whether the command reports when it is ready.
        """
        return [
            f"{RUN_ID_OPTION}{self.run_id}",
            f"--mark={mark_of(run_number(self.run_id))}",
            f"--owner={ProcessIdentity.of(os.getpid())}",
            f"--channel={channel}",
            f"--grace={self.grace}",
            *(f"--pass-fd={descriptor}" for descriptor in self.pass_fds),
            *(f"--leftover={path}" for path in self.leftovers),
            *([f"--report={self.report_file}"] if self.report_file else []),
            *(["--independent"] if self.independent else []),
            *(["--ready"] if reports_ready else []),
            "--",
            *self.command,
        ]

    def process_attributes(self) -> dict[str, Any]:
        """Return what an executed process would inherit, as JSON data for a forked one."""
        umask = self.popen_arguments.get("umask", -1)
        return {
            "env": self.environment(),
            "cwd": working_directory() if self.cwd is None else self.cwd,
            "umask": umask if umask >= 0 else _umask(),
            "limits": _limits(),
        }


_NAMES = {each.name for each in fields(LaunchSpec)} - {"command", "popen_arguments"}


def _umask() -> int:
    with open("/proc/self/status", encoding="utf-8") as file:  # noqa: PTH123 - os.umask() sets it
        return int(next(line for line in file if line.startswith("Umask:")).split()[1], 8)


def _limits() -> list[tuple[int, int, int]]:
    """Return the resource limits of this process, except the one that carries the mark."""
    numbers = {value for name, value in vars(resource).items() if name.startswith("RLIMIT_")}
    return [(number, *resource.getrlimit(number)) for number in numbers - {resource.RLIMIT_RSS}]
