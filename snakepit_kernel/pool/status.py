"""Status of a pool at one moment, and its display in a notebook or a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil

from ..output.html import page, shown
from ..output.tables import Cell, Table
from ..printable import counted, duration, printable

HEADINGS = (
    *("worker", "pid", "state", "for", "done", "memory", "device", "running", "session"),
    "keeps",
)

NUMBERS = frozenset({"pid", "for", "done", "memory"})
"""The headings of columns that are aligned at the right."""


OUTCOMES = ("ok", "error", "cancelled", "timeout", "saturated", "lost")
"""The possible outcomes of a work item: the names of their counters."""

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


class RunningCall(NamedTuple):
    """A call or cell that a worker runs at one moment.

    Attributes
    ----------
    name
        The function or tool, or the first line of the cell.
    session
        Its session, if it has one.
    seconds
        How long it has run.
    """

    name: str
    session: str | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """A background cell or call of a notebook that runs.

    Attributes
    ----------
    title
        First line of the cell, or the call.
    started
        When it began, in seconds since the epoch.
    """

    number: int
    title: str
    started: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """Status of one worker.

    Attributes
    ----------
    tainted
        Why it gets no more work although it is alive, or None.
    seconds
        How long it has been in its state.
    calls
        Calls, cells and futures that it was given so far.
    memory_bytes
        Resident memory of its process, or None when it cannot be read.
    running
        What it runs now: the function or tool, or the first line of the cell. A worker with
        several threads runs several, with commas between them.
    device
        The accelerators assigned to it alone, or None.
    running_seconds
        How long it has run that; of several the longest time. None while it runs nothing.
    session
        The session of what it runs, if that has one; of several all, with commas between them.
    done
        Calls, cells and futures that it has completed, with a value or an exception of their own.
    kept
        Types of the values that stay in it for references of the notebook, or None.
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
    running_seconds: float | None = None
    session: str | None = None
    done: int = 0
    kept: str | None = None

    def __setstate__(self, state: list[Any]) -> None:
        """Restore a pickle; one of an earlier version has not got the last fields."""
        _restore(self, state)

    @property
    def since(self) -> float:
        """Seconds since it runs what it runs, or else since it is in its state."""
        return self.seconds if self.running_seconds is None else self.running_seconds

    def as_row(self, *, with_device: bool = False, with_session: bool = False) -> tuple[str, ...]:
        """Return the texts of its row in a table under `HEADINGS`."""
        left_out = {"device": not with_device, "session": not with_session, "keeps": not self.kept}
        cells = self.cells().items()
        return tuple(cell.text for heading, cell in cells if not left_out.get(heading, False))

    def cells(self) -> dict[str, Cell]:
        """Return its cells in a table, by their headings: all of `HEADINGS`."""
        is_tainted = self.tainted is not None
        state = Cell(
            text=printable(f"{self.state}, tainted" if is_tainted else self.state),
            title=self.tainted or "",
            state="tainted" if is_tainted else self.state,
        )
        texts = {
            "worker": printable(self.name),
            "pid": "" if self.pid is None else str(self.pid),
            "state": state.text,
            "for": duration(self.since),
            "done": f"{self.done:,}",
            "memory": memory(self.memory_bytes),
            "device": printable(self.device or ""),
            "running": printable(self.running or "", limit=MAX_RUNNING),
            "session": printable(self.session or "", limit=MAX_RUNNING),
            "keeps": printable(self.kept or "", limit=MAX_RUNNING),
        }
        cells = {heading: Cell(text=text) for heading, text in texts.items()}
        cells["keeps"] = Cell(text=texts["keeps"], title=self.kept or "")
        cells["running"] = Cell(text=texts["running"], title=self.running or "")
        return {**cells, "state": state}


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
    jobs
        The background cells and calls of the owner that run, in whichever of its pools.
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
    jobs: tuple[JobStatus, ...] = ()
    environment: str | None = None

    def __setstate__(self, state: list[Any]) -> None:
        """Restore a pickle; one of an earlier version has not got the last fields."""
        _restore(self, state)

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PoolStatus:
        """Restore a status from `as_json`; fields of a newer version are ignored."""
        workers = [_from_fields(WorkerStatus, worker) for worker in data["workers"]]
        stats = _from_fields(PoolStats, data["stats"])
        ends = [_from_fields(WorkerEnd, end) for end in data.get("ends", [])]
        jobs = tuple(_from_fields(JobStatus, job) for job in data.get("jobs", ()))
        lists = {"workers": workers, "stats": stats, "ends": ends, "jobs": jobs}
        return _from_fields(cls, {**data, **lists})

    def __str__(self) -> str:
        ends = [f"{end.name}, {end.ago}: {end.story}" for end in self.last_ends]
        return "\n".join([self.title, self.table().as_text(), self.footer, *ends])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return page_of(self)

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
        """Headings of its table: with devices, sessions and kept values, if a worker has any."""
        has = {
            "device": any(worker.device is not None for worker in self.workers),
            "session": any(worker.session is not None for worker in self.workers),
            "keeps": any(worker.kept is not None for worker in self.workers),
        }
        return tuple(heading for heading in HEADINGS if has.get(heading, True))

    def rows(self) -> list[tuple[str, ...]]:
        """Return the texts of the rows of its table."""
        return [tuple(cell.text for cell in row) for row in self._rows()]

    def table(self) -> Table:
        """Return the table of its workers."""
        return Table(headings=self.headings, rows=self._rows(), numbers=NUMBERS)

    def _rows(self) -> list[list[Cell]]:
        headings = self.headings
        return [
            [cells[heading] for heading in headings]
            for cells in (worker.cells() for worker in self.workers)
        ]

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
        if self.notebook is None:
            return f"process {self.owner_pid}"
        return f"{self.notebook} (process {self.owner_pid})"

    @property
    def footer(self) -> str:
        """The line below its table: counters, memory, sessions, and a problem if there is one."""
        stats = self.stats
        parts = [
            *([f"running: {stats.running:,}"] if stats.running else []),
            *([f"waiting: {stats.queued:,}"] if stats.queued else []),
            f"done: {ended(stats):,}{self._outcomes}",
            *(f"{name}: {count:,}" for name, count in _rare(stats)[1:] if count),
        ]
        if self.sessions:
            parts.append(f"sessions: {self.some_sessions}")
        if self.beside_workers:
            parts.append(self.beside_workers)
        if self.memory_bytes:
            parts.append(f"memory: {memory(self.memory_bytes)}")
        if self.problem:
            parts.append(f"problem: {printable(' '.join(self.problem.split()))}")
        return "; ".join(parts)

    @property
    def _outcomes(self) -> str:
        """How the work has ended, in parentheses; empty when all of it has ended well."""
        stats = asdict(self.stats)
        counts = [f"{stats[name]:,} {name}" for name in OUTCOMES if stats[name]]
        return f" ({', '.join(counts)})" if counts and stats["ok"] != ended(self.stats) else ""


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


def _restore(record: WorkerStatus | PoolStatus, state: list[Any]) -> None:
    """Set the fields of a pickled record; those that it has not got have their defaults."""
    for place, each in enumerate(fields(record)):
        value = state[place] if place < len(state) else each.default
        object.__setattr__(record, each.name, value)


def _from_fields(kind: type[T], data: dict[str, Any]) -> T:
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in data.items() if name in known})


def memory(size: int | None) -> str:
    """Return an amount of memory in MiB or GiB; an empty text for None."""
    if size is None:
        return ""
    return f"{size / 2**20:.0f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"


def page_of(pool: PoolStatus, note: str = "") -> str:
    """Return a status as html, with a note at its end. All texts of users are escaped."""
    parts = [_heading(pool), _tiles(tiles(pool)), pool.table().as_html(), _ends(pool.last_ends)]
    if pool.sessions:
        parts.append(_quiet(f"sessions: {pool.some_sessions}"))
    if pool.beside_workers:
        parts.append(_quiet(pool.beside_workers))
    if pool.problem:
        parts.append(f'<div class="snakepit-problem">{shown(pool.problem)}</div>')
    if note:
        parts.append(_quiet(note))
    return page(*parts)


def tiles(pool: PoolStatus) -> list[tuple[str, str]]:
    """Return the numbers above the table: their names and their values as text."""
    stats = pool.stats
    return [
        ("running", f"{stats.running:,}"),
        ("waiting", f"{stats.queued:,}"),
        ("done", f"{ended(stats):,}"),
        ("failed", f"{failed(stats):,}"),
        *((name, f"{count:,}") for name, count in _rare(stats) if count),
        ("memory", memory(pool.memory_bytes)),
    ]


def ended(stats: PoolStats) -> int:
    """Return the number of work items that have ended, in whatever way."""
    return stats.submitted - stats.queued - stats.running


def failed(stats: PoolStats) -> int:
    """Return the number of work items that ended neither in success nor by cancellation."""
    return stats.error + stats.timeout + stats.saturated + stats.lost


def _rare(stats: PoolStats) -> list[tuple[str, int]]:
    return [
        ("cancelled", stats.cancelled),
        ("retried", stats.retried),
        ("workers died", stats.died),
        ("workers replaced", stats.recycled),
    ]


def _heading(pool: PoolStatus) -> str:
    return (
        f'<div class="snakepit-title">pool {shown(pool.name)} '
        f'<span class="snakepit-quiet">{shown(pool.about)}</span></div>'
    )


def _quiet(text: str) -> str:
    return f'<div class="snakepit-quiet">{shown(text)}</div>'


def _tiles(numbers: Iterable[tuple[str, str]]) -> str:
    # The space is for pages that drop the style sheet, such as GitHub's.
    cells = "".join(
        f'<div class="snakepit-tile"><b>{value}</b> <span>{name}</span></div>'
        for name, value in numbers
    )
    return f'<div class="snakepit-tiles">{cells}</div>'


def _ends(ends: Iterable[WorkerEnd]) -> str:
    rows = "".join(
        f'<div class="snakepit-end"><span>{shown(end.name)}</span> '
        f'<span class="snakepit-quiet">{end.ago}</span> '
        f"<span{_class_of_end(end)}>{shown(end.story)}</span></div>"
        for end in ends
    )
    return f'<div class="snakepit-ends">{rows}</div>' if rows else ""


def _class_of_end(end: WorkerEnd) -> str:
    return ' class="snakepit-died"' if end.was_wanted else ""
