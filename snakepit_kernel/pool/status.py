"""Status of a pool at one moment, and its display in a notebook or a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil

from ..printable import counted, duration, printable
from .html import shown, style

HEADINGS = ("worker", "pid", "state", "since", "calls", "memory", "running")

SHOWN_ENDS = 5
"""Ends of workers that are displayed; JSON has all."""

SHOWN_SESSIONS = 20
"""Sessions that are displayed; JSON has all."""

MAX_RUNNING = 100
"""Displayed characters of the name of what a worker runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """Counters of a pool since it was opened.

    Every submitted work item counts as exactly one of ``ok, error, cancelled, timeout,
    saturated, lost``, or still one of ``queued, running``; their sum is ``submitted``.

    Attributes
    ----------
    submitted
        Calls, cells and futures that were submitted.
    ok, error
        Ended with a value; with an exception of their own.
    cancelled
        Cancelled or interrupted by the caller.
    timeout
        Passed a deadline, in the queue or on a worker.
    saturated
        Refused because the queue was full.
    lost
        Their worker died, or was busy and they fail fast; or the pool was closed.
    queued, running
        Not ended yet.
    started, died, recycled
        Workers that were started; that died unexpectedly; that were replaced on purpose.
    retried
        Failed attempts that were repeated: their work is counted once, by its final outcome.
    """

    submitted: int = 0
    ok: int = 0
    error: int = 0
    cancelled: int = 0
    timeout: int = 0
    saturated: int = 0
    lost: int = 0
    queued: int = 0
    running: int = 0
    started: int = 0
    died: int = 0
    recycled: int = 0
    retried: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEnd:
    """How a worker of a pool ended while the pool went on.

    Attributes
    ----------
    at
        When, in seconds since the epoch.
    seconds
        How long it had lived.
    was_wanted
        Whether it ended unexpectedly; False for one that was replaced on purpose.
    reason
        Why, in words.
    """

    name: str
    pid: int | None
    at: float
    seconds: float
    calls: int
    was_wanted: bool
    reason: str

    @property
    def story(self) -> str:
        """How it ended, in one line."""
        kind = "died" if self.was_wanted else "was replaced"
        reason = printable(" ".join(self.reason.split()))
        calls = counted(self.calls, "call")
        return f"{kind} after {duration(self.seconds)} and {calls}: {reason}"

    @property
    def ago(self) -> str:
        """How long ago it ended."""
        return f"{duration(max(0.0, time.time() - self.at))} ago"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """Status of one worker.

    Attributes
    ----------
    tainted
        Why it gets no more work although it is alive, or None.
    seconds
        How long it has been in its state.
    memory_bytes
        Resident memory of its process, or None when it cannot be read.
    device
        The accelerators assigned to it alone, or None.
    """

    name: str
    pid: int | None
    state: str
    seconds: float
    calls: int
    memory_bytes: int | None
    running: str | None
    run_id: str
    tainted: str | None = None
    device: str | None = None

    def as_row(self, *, with_device: bool = False) -> tuple[str, ...]:
        """Return its row in a table under `HEADINGS`."""
        return (
            printable(self.name),
            "" if self.pid is None else str(self.pid),
            printable(self.state if self.tainted is None else f"{self.state}, tainted"),
            duration(self.seconds),
            str(self.calls),
            memory(self.memory_bytes),
            *([printable(self.device or "")] if with_device else []),
            printable(self.running or "", limit=MAX_RUNNING),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus:
    """Status of a pool and its workers; displays itself as a table.

    Attributes
    ----------
    problem
        Why the pool cannot replace a worker, or refuses work; None when there is no problem.
    ends
        The most recent ends of workers, the last one last.
    shells, processes
        Number of its sessions' open shells, and of their background processes that run.
    notebook
        Name of the notebook's file, if the owner is the kernel of one and was told.
    environment
        The requirements of the workers' environment in short; None when they have none.
    """

    name: str
    owner_pid: int
    adapter: str
    workers: list[WorkerStatus] = field(default_factory=list)
    stats: PoolStats = field(default_factory=PoolStats)
    sessions: list[str] = field(default_factory=list)
    problem: str | None = None
    ends: list[WorkerEnd] = field(default_factory=list)
    shells: int = 0
    processes: int = 0
    notebook: str | None = None
    environment: str | None = None

    def __setstate__(self, state: list[Any]) -> None:
        """Restore a pickle; one of an earlier version has not got the last fields."""
        for place, each in enumerate(fields(self)):
            value = state[place] if place < len(state) else each.default
            object.__setattr__(self, each.name, value)

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PoolStatus:
        """Restore a status from `as_json`; fields of a newer version are ignored."""
        workers = [_from_fields(WorkerStatus, worker) for worker in data["workers"]]
        stats = _from_fields(PoolStats, data["stats"])
        ends = [_from_fields(WorkerEnd, end) for end in data.get("ends", [])]
        return _from_fields(cls, {**data, "workers": workers, "stats": stats, "ends": ends})

    def __str__(self) -> str:
        rows = [self.headings, *self.rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.headings))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
        ends = [f"{end.name}, {end.ago}: {end.story}" for end in self.last_ends]
        return "\n".join([self.title, *(line.rstrip() for line in lines), self.footer, *ends])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return page(self)

    @property
    def memory_bytes(self) -> int:
        """Resident memory of all workers; shared memory counts once for each of them."""
        return sum(worker.memory_bytes or 0 for worker in self.workers)

    @property
    def last_ends(self) -> list[WorkerEnd]:
        """The ends that are displayed, the last one first."""
        return self.ends[: -SHOWN_ENDS - 1 : -1]

    @property
    def some_sessions(self) -> str:
        """The sessions that are displayed, and the number of the others."""
        more = len(self.sessions) - SHOWN_SESSIONS
        text = printable(", ".join(self.sessions[:SHOWN_SESSIONS]))
        return text if more <= 0 else f"{text} and {more} more"

    @property
    def beside_workers(self) -> str:
        """The numbers of shells and background processes; empty when there are none."""
        shells = [counted(self.shells, "shell")] if self.shells else []
        running = [counted(self.processes, "process", "processes")] if self.processes else []
        return ", ".join([*shells, *running])

    @property
    def headings(self) -> tuple[str, ...]:
        """Headings of its table: with the devices, if a worker has its own."""
        return (*HEADINGS[:-1], "device", HEADINGS[-1]) if self._has_devices else HEADINGS

    @property
    def _has_devices(self) -> bool:
        return any(worker.device is not None for worker in self.workers)

    def rows(self) -> list[tuple[str, ...]]:
        """Return the rows of its table."""
        return [worker.as_row(with_device=self._has_devices) for worker in self.workers]

    @property
    def title(self) -> str:
        """The line above its table."""
        return printable(f"pool {self.name} of {self._owner}: {', '.join(self._parts)}")

    @property
    def about(self) -> str:
        """The text next to its name in a notebook."""
        return printable(" · ".join([self._owner, *self._parts]))

    @property
    def _parts(self) -> list[str]:
        environment = [] if self.environment is None else [f"environment {self.environment}"]
        return [f"adapter {self.adapter}", *environment]

    @property
    def _owner(self) -> str:
        process = f"process {self.owner_pid}"
        return process if self.notebook is None else f"{self.notebook}, {process}"

    @property
    def footer(self) -> str:
        """The line below its table: counters, memory, sessions, and a problem if there is one."""
        stats = self.stats
        counts = [
            f"{count} {name}"
            for name, count in asdict(stats).items()
            if count and name not in {"submitted", "started"}
        ]
        text = counted(stats.submitted, "call") + (f": {', '.join(counts)}" if counts else "")
        if self.sessions:
            text += f"; sessions: {self.some_sessions}"
        if self.shells or self.processes:
            text += f"; {self.beside_workers}"
        if self.memory_bytes:
            text += f"; memory: {memory(self.memory_bytes)}"
        if self.problem:
            text += f"; problem: {printable(' '.join(self.problem.split()))}"
        return text


def status_path(folder: Path) -> Path:
    """Return the file in which a pool with this private folder publishes its status."""
    return folder / "pool.json"


def memory_of(pid: int | None) -> int | None:
    """Return the resident memory of a process in bytes, or None."""
    if pid is None:
        return None
    try:
        size: int = psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return None
    return size


T = TypeVar("T")


def _from_fields(kind: type[T], data: dict[str, Any]) -> T:
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in data.items() if name in known})


def memory(size: int | None) -> str:
    """Return an amount of memory in MiB or GiB; an empty text for None."""
    if size is None:
        return ""
    return f"{size / 2**20:.0f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"


_NUMBERS = frozenset({"pid", "calls", "memory"})


def page(pool: PoolStatus) -> str:
    """Return a status as html. All texts of users are escaped."""
    parts = [
        f"<style>{style()}</style>",
        _heading(pool),
        _tiles(tiles(pool)),
        _table(pool),
        _ends(pool.last_ends),
    ]
    if pool.sessions:
        names = shown(pool.some_sessions)
        parts.append(f'<div class="snakepit-quiet">sessions: {names}</div>')
    if pool.beside_workers:
        parts.append(f'<div class="snakepit-quiet">{pool.beside_workers}</div>')
    if pool.problem:
        parts.append(f'<div class="snakepit-problem">{shown(pool.problem)}</div>')
    return f'<div class="snakepit-pool">{"".join(parts)}</div>'


def tiles(pool: PoolStatus) -> list[tuple[str, str]]:
    """Return the numbers above the table: their names and their values as text."""
    stats = pool.stats
    return [
        ("queued", f"{stats.queued:,}"),
        ("running", f"{stats.running:,}"),
        ("calls", f"{stats.submitted:,}"),
        ("failed", f"{failed(stats):,}"),
        *((name, f"{count:,}") for name, count in _rare(stats) if count),
        ("memory", memory(pool.memory_bytes)),
    ]


def failed(stats: PoolStats) -> int:
    """Return the number of work items that ended neither in success nor by cancellation."""
    return stats.error + stats.timeout + stats.saturated + stats.lost


def _rare(stats: PoolStats) -> list[tuple[str, int]]:
    return [
        ("cancelled", stats.cancelled),
        ("retried", stats.retried),
        ("died", stats.died),
        ("recycled", stats.recycled),
    ]


def _heading(pool: PoolStatus) -> str:
    return (
        f'<div class="snakepit-title">pool {shown(pool.name)} '
        f'<span class="snakepit-quiet">{shown(pool.about)}</span></div>'
    )


def _tiles(numbers: Iterable[tuple[str, str]]) -> str:
    cells = "".join(
        f'<div class="snakepit-tile"><b>{value}</b><span>{name}</span></div>'
        for name, value in numbers
    )
    return f'<div class="snakepit-tiles">{cells}</div>'


def _table(pool: PoolStatus) -> str:
    headings = "".join(f"<th{_class_of(name)}>{name}</th>" for name in pool.headings)
    rows = "".join(map(partial(_row, pool.headings), pool.workers, pool.rows()))
    return f"<table><thead><tr>{headings}</tr></thead><tbody>{rows}</tbody></table>"


def _row(headings: Sequence[str], worker: WorkerStatus, row: Sequence[str]) -> str:
    cells = dict(zip(headings, map(shown, row), strict=True))
    state = worker.state if worker.tainted is None else "tainted"
    why = f' title="{shown(worker.tainted)}"' if worker.tainted else ""
    cells["state"] = (
        f'<span class="snakepit-state" data-state="{shown(state)}"{why}>{cells["state"]}</span>'
    )
    columns = (f"<td{_class_of(name)}>{cell}</td>" for name, cell in cells.items())
    return f"<tr>{''.join(columns)}</tr>"


def _class_of(heading: str) -> str:
    return ' class="snakepit-number"' if heading in _NUMBERS else ""


def _ends(ends: Iterable[WorkerEnd]) -> str:
    rows = "".join(
        f'<div class="snakepit-end"><span>{shown(end.name)}</span>'
        f'<span class="snakepit-quiet">{end.ago}</span>'
        f"<span{_class_of_end(end)}>{shown(end.story)}</span></div>"
        for end in ends
    )
    return f'<div class="snakepit-ends">{rows}</div>' if rows else ""


def _class_of_end(end: WorkerEnd) -> str:
    return ' class="snakepit-died"' if end.was_wanted else ""
