"""What workers take of the machine's memory, each with all that it has started."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import psutil

from ...processes.identity import all_children, living_descendants


@dataclass(frozen=True, slots=True)
class TreeMemory:
    """The memory of a process and of all below it.

    Attributes
    ----------
    total_bytes
        Memory that no other process shares (USS).
    processes
        How many they are.
    """

    total_bytes: int
    processes: int


def tree_memory(roots: Iterable[int], more_than: int = 0) -> dict[int, TreeMemory]:
    """Measure the trees below some processes.

    Parameters
    ----------
    roots
        Their pids; they are not counted themselves: guardians.
    more_than
        Bytes. Of a tree that takes no more even with what it shares nothing is told: what is shared
        is quickly read, what is not takes a while.

    Returns
    -------
    dict
        By the root's pid.
    """
    children = all_children()
    found = {}
    for root in roots:
        pids = [status.pid for status in living_descendants(root, children)]
        if sum(map(_resident, pids)) > more_than:
            found[root] = TreeMemory(sum(map(_own, pids)), len(pids))
    return found


def _resident(pid: int) -> int:
    try:
        process = psutil.Process(pid)
        resident: int = process.memory_info().rss
    except psutil.Error:
        return 0
    return resident


def _own(pid: int) -> int:
    try:
        memory = psutil.Process(pid).memory_full_info()
    except psutil.Error:
        return 0
    total: int = memory.uss
    return total
