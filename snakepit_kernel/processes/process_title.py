"""The title in the process list of a process that was forked and never executed a program.

Its command line and environment, as other processes see them, are those of the process that was
once executed: bytes at the bottom of its stack. They are overwritten in place. The command line has
the form of programs that change their title, arguments between spaces; `ps` and `psutil` know it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from ..ids import RUN_ID_VARIABLE

ROOM = 2000
"""Bytes that a template reserves on its command line."""

ROOM_OPTION = "--room="

NO_RUN = "-" * 13
"""Placeholder for the run id of a template that belongs to no run; as long as a run id."""


def room() -> str:
    """Return the argument that reserves space for titles on the command line of a template."""
    return ROOM_OPTION + "." * ROOM


def set_title(command: Sequence[str], run_id: str) -> None:
    """Overwrite the visible command line, and the tag of a run in the visible environment.

    Does nothing where ``/proc/self/stat`` does not have their addresses.

    Parameters
    ----------
    command
        Program and arguments. What does not fit is cut off.
    run_id
        The run; an empty string leaves it as it is.
    """
    with open("/proc/self/stat", "rb") as file:  # noqa: PTH123
        fields = file.read().rpartition(b")")[2].split()
    # Fields 48 to 51 of proc(5); the third is the first here.
    arg_start, arg_end, env_start, env_end = map(int, fields[45:49])
    if not arg_start or not env_start:
        return
    size = arg_end - arg_start
    text = " ".join(command).encode("utf-8", "surrogateescape")[: size - 2]
    # A last byte other than NUL marks this as a title: arguments would end with NULs.
    ctypes.memmove(arg_start, text.ljust(size - 1, b"\0") + b".", size)
    tag = f"{RUN_ID_VARIABLE}=".encode()
    environment = ctypes.string_at(env_start, env_end - env_start)
    at = environment.find(tag) if run_id else -1
    if at >= 0 and (at == 0 or environment[at - 1] == 0):
        ctypes.memmove(env_start + at + len(tag), run_id.encode("ascii"), len(run_id))
