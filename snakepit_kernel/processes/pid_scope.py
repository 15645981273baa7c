"""The scope in which pids and start times are valid: one boot of a machine, in one namespace."""

from __future__ import annotations

import functools
import os
import socket
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from .identity import boot_id


class Visibility(Enum):
    """What this process can know about the processes of a scope."""

    HERE = "here"
    """It sees them, and their start times: same machine, boot, PID and time namespace."""
    PAST = "past"
    """They ended with an earlier boot of this machine."""
    ELSEWHERE = "elsewhere"
    """Another machine, container or clock that shares a directory with us: it cannot know."""


INITIAL_TIME_NAMESPACE = 0xEFFFFFFA
"""Number of the time namespace that a machine starts with; nearly all processes are in it."""

_TIME = "/time:"


@dataclass(frozen=True, slots=True, kw_only=True)
class PidScope:
    """A boot of a machine, and the namespaces in which a pid and a start time are valid.

    Attributes
    ----------
    host
        Host name and machine id. Machines that were cloned while they ran have the same boot.
    boot
        Id of the boot.
    pid_namespace
        Number of the PID namespace: containers have one each.
    time_namespace
        Number of the time namespace: `/proc` shows different start times in each.
    """

    host: str
    boot: str
    pid_namespace: int
    time_namespace: int = INITIAL_TIME_NAMESPACE

    @classmethod
    def read(cls, host: str, boot: str, pid_namespace: int) -> PidScope:
        """Read a stored scope, also one of a version without time namespaces.

        Raises
        ------
        ValueError
            It is damaged.
        """
        host, _, number = host.partition(_TIME)
        time_namespace = int(number) if number else INITIAL_TIME_NAMESPACE
        return cls(host=host, boot=boot, pid_namespace=pid_namespace, time_namespace=time_namespace)

    @property
    def written_host(self) -> str:
        """The host as it is stored, with the time namespace if it is not the initial one."""
        is_usual = self.time_namespace == INITIAL_TIME_NAMESPACE
        return self.host if is_usual else f"{self.host}{_TIME}{self.time_namespace}"

    @property
    def visibility(self) -> Visibility:
        """What this process can know about the processes of this scope."""
        own = here()
        if self == own:
            return Visibility.HERE
        is_over = self.host == own.host and self.boot != own.boot
        return Visibility.PAST if is_over else Visibility.ELSEWHERE

    def __str__(self) -> str:
        name = self.host.partition("/")[0]
        own = here()
        if self.boot != own.boot:
            return f"host {name}"
        if self.pid_namespace != own.pid_namespace:
            return f"another container on {name}"
        if self.time_namespace != own.time_namespace:
            return f"another time namespace on {name}"
        return f"host {name}"


@functools.cache
def here() -> PidScope:
    """Return the scope of this process."""
    return PidScope(
        host=_host(),
        boot=boot_id(),
        pid_namespace=pid_namespace_of("self"),
        time_namespace=_namespace("self", "time") or INITIAL_TIME_NAMESPACE,
    )


def sees_itself() -> bool:
    """Whether ``/proc`` shows the PID namespace of this process, and not the outer one.

    After ``unshare --pid`` alone it does not: its pids are those of the outer namespace.
    """
    try:
        return os.readlink("/proc/self") == str(os.getpid())  # noqa: PTH115
    except OSError:
        return False


def hides_processes() -> bool:
    """Whether ``/proc`` may hide processes of this user from this process (``hidepid``)."""
    options = _proc_options()
    how = options.get("hidepid", "0")
    if how in {"0", "off"} or _effective_capabilities() >> _CAP_SYS_PTRACE & 1:
        return False
    sees_all = int(options.get("gid", "0")) in {os.getegid(), *os.getgroups()}
    return not sees_all or how in {"4", "ptraceable"}


_CAP_SYS_PTRACE = 19


def _proc_options() -> dict[str, str]:
    """Return the options of the file system that is mounted at ``/proc``."""
    options = ""
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines():
        before, _, after = line.partition(" - ")
        if before.split(" ")[4] == "/proc":  # the last one is on top
            options = after.rpartition(" ")[2]
    return {name: value for name, _, value in (each.partition("=") for each in options.split(","))}


def _effective_capabilities() -> int:
    status = Path("/proc/self/status").read_text("utf-8", "replace")
    return int(status.partition("\nCapEff:")[2].split(None, 1)[0], 16)


def pid_namespace_of(pid: int | str) -> int:
    """Return the number of the PID namespace of a process, or 0 when it cannot be seen."""
    return _namespace(pid, "pid")


def _namespace(pid: int | str, kind: str) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino  # noqa: PTH116 - one call, for many
    except OSError:
        return 0


def _host() -> str:
    # Neither is enough: cloned machines share an id, containers often have none.
    try:
        machine = Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        machine = ""
    return f"{socket.gethostname()}/{machine}"
