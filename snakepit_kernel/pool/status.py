"""What a pool looks like at one moment: for people, in a notebook or a terminal."""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import psutil

HEADINGS = ("worker", "pid", "state", "since", "calls", "memory", "running")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """Counters of a pool since it was opened.

    Every piece of work that was asked for is exactly one of ``ok, error, cancelled, timeout,
    saturated, lost``, or still one of ``queued, running``; their sum is ``submitted``.

    Attributes
    ----------
    submitted
        Calls, cells and futures asked for.
    ok, error
        Ended with a value; with an exception of their own.
    cancelled
        Cancelled or interrupted by the caller.
    timeout
        Passed a deadline, in the queue or on a worker.
    saturated
        Refused because the queue was full.
    lost
        Their worker died, or was busy and not to be waited for; or the pool was closed.
    queued, running
        Not ended yet.
    started, died, recycled
        Workers that were started; that ended unasked; that were replaced on purpose.
    retried
        Attempts that failed and were made again: their work is counted once, by its end.
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
        Whether it ended unasked; false for one that was replaced on purpose.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """One worker.

    Attributes
    ----------
    tainted
        Why no more work goes to it while it lives on, or None.
    seconds
        How long it has been in its state.
    memory_bytes
        Resident memory of its process, or None when it cannot be read.
    device
        The accelerators that it alone sees, or None.
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
        memory = "" if self.memory_bytes is None else f"{self.memory_bytes / 2**20:.0f} MiB"
        return (
            self.name,
            "" if self.pid is None else str(self.pid),
            self.state,
            duration(self.seconds),
            str(self.calls),
            memory,
            *([self.device or ""] if with_device else []),
            self.running or "",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus:
    """A pool and its workers; shows itself as a table.

    Attributes
    ----------
    problem
        Why the pool cannot replace a worker, or None.
    ends
        How workers ended lately, the last one last.
    """

    name: str
    owner_pid: int
    adapter: str
    workers: list[WorkerStatus] = field(default_factory=list)
    stats: PoolStats = field(default_factory=PoolStats)
    sessions: list[str] = field(default_factory=list)
    problem: str | None = None
    ends: list[WorkerEnd] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PoolStatus:
        """Restore what `as_json` gave, also that of a newer version, which may say more."""
        workers = [_from_fields(WorkerStatus, worker) for worker in data["workers"]]
        stats = _from_fields(PoolStats, data["stats"])
        ends = [_from_fields(WorkerEnd, end) for end in data.get("ends", [])]
        return _from_fields(cls, {**data, "workers": workers, "stats": stats, "ends": ends})

    def __str__(self) -> str:
        rows = [self.headings, *self.rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.headings))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([self.title, *(line.rstrip() for line in lines), self.footer])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        cells = "".join(
            "<tr>"
            + "".join(f'<td style="text-align:left">{html.escape(c)}</td>' for c in row)
            + "</tr>"
            for row in self.rows()
        )
        headings = "".join(f'<th style="text-align:left">{name}</th>' for name in self.headings)
        return (
            f"<div><b>{html.escape(self.title)}</b>"
            f"<table><thead><tr>{headings}</tr></thead><tbody>{cells}</tbody></table>"
            f"<small>{html.escape(self.footer)}</small></div>"
        )

    @property
    def headings(self) -> tuple[str, ...]:
        """Those of its table: with the devices, if a worker has one of its own."""
        return (*HEADINGS[:-1], "device", HEADINGS[-1]) if self._has_devices else HEADINGS

    @property
    def _has_devices(self) -> bool:
        return any(worker.device is not None for worker in self.workers)

    def rows(self) -> list[tuple[str, ...]]:
        """Return those of its table."""
        return [worker.as_row(with_device=self._has_devices) for worker in self.workers]

    @property
    def title(self) -> str:
        """The line above its table."""
        return f"pool {self.name} of process {self.owner_pid}: adapter {self.adapter}"

    @property
    def footer(self) -> str:
        """The line below its table: counters, sessions, and a problem if there is one."""
        stats = self.stats
        counts = [
            f"{count} {name}"
            for name, count in asdict(stats).items()
            if count and name not in {"submitted", "started"}
        ]
        text = f"{stats.submitted} calls" + (f": {', '.join(counts)}" if counts else "")
        if self.sessions:
            text += f"; sessions: {', '.join(self.sessions)}"
        if self.problem:
            text += f"; problem: {' '.join(self.problem.split())}"
        return text


def status_path(folder: Path) -> Path:
    """Return the file in which a pool with this private folder publishes its status."""
    return folder / "pool.json"


def memory_of(pid: int | None) -> int | None:
    """Return the resident memory of a process in bytes, or None."""
    if pid is None:
        return None
    try:
        memory: int = psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return None
    return memory


T = TypeVar("T")


def _from_fields(kind: type[T], data: dict[str, Any]) -> T:
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in data.items() if name in known})


def duration(seconds: float) -> str:
    """Return a duration in the largest unit that leaves a number of at least two."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
