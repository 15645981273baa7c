"""What keeps modules beside a notebook from standing in for ours and Python's."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence


def with_safe_path(command: Sequence[str]) -> list[str]:
    """Add ``-P``, so that Python does not put the working directory before its own modules."""
    position = command.index("-m")  # it may come after another program, such as env
    if {"-P", "-I"} & set(command[:position]):
        return list(command)
    return [*command[:position], "-P", *command[position:]]


def without_empty_entries(env: Mapping[str, str]) -> dict[str, str]:
    """Remove empty entries of ``PYTHONPATH``, which would do the same, mostly by accident."""
    found = env.get("PYTHONPATH", "")
    entries = [entry for entry in found.split(os.pathsep) if entry]
    return {**env, "PYTHONPATH": os.pathsep.join(entries)} if found else dict(env)
