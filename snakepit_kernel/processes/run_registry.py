"""The registry of runs: a database of the runs on this machine, which outlives every process.

A run is *reserved* before its process is spawned, *activated* once it runs and *retired* when it
is verified gone, so at no moment can an owner die and leave a process that is not registered.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..ids import is_run_id
from ..loggers import get_logger
from ..paths import data_dir
from ..store.recovery import FAILURES
from ..store.run_database import RunDatabase, Statement
from .concurrency import Coalescer
from .end_report import EndReport
from .identity import ProcessIdentity
from .pid_scope import PidScope, Visibility, here
from .waiting import run_shielded

logger = get_logger(__name__)

_database = RunDatabase(logger)

REMEMBERED_RUNS = 200
"""Number of ended runs that stay in the registry, for people."""

MAX_BOOKED_WORKERS, MAX_BOOKED_BYTES = 1 << 20, 1 << 60
"""Largest values in a booking: more is damage."""

PID_MAX_LIMIT = 1 << 22
"""The highest pid that Linux can be configured to assign."""

MAX_TIMESTAMP = 1e11
"""Latest time in a row, in seconds since the epoch: later is damage."""

ELSEWHERE_SECONDS = 30 * 86400.0
"""Age at which a run of another host or container is removed: its end cannot be seen from here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One row of the registry.

    Attributes
    ----------
    run_id, parent
        The run, and the run that started it, if any.
    previous
        The run that this one replaced when a kernel was restarted, if any.
    label
        Name for people: that of a kernelspec or of a worker.
    scope
        Scope of its pids.
    owner, guardian, process
        Identities; the last two are None while the run is only reserved.
    started
        Seconds since the epoch.
    leftovers
        Files and directories that are removed with the run.
    """

    run_id: str
    parent: str | None
    previous: str | None
    label: str
    scope: PidScope
    owner: ProcessIdentity
    guardian: ProcessIdentity | None
    process: ProcessIdentity | None
    started: float
    leftovers: tuple[str, ...]

    @property
    def is_dead(self) -> bool:
        """Whether its owner and its guardian are certainly dead."""
        visibility = self.scope.visibility
        if visibility is Visibility.HERE:
            return not self.owner.is_alive() and not (self.guardian and self.guardian.is_alive())
        return visibility is Visibility.PAST

    @property
    def is_contradictory(self) -> bool:
        """Whether its row names an earlier boot, but its owner or guardian is alive.

        After a boot, a process hardly ever has the same pid and start time as one before: the row
        is damaged.
        """
        is_alive = self.owner.is_alive() or (self.guardian is not None and self.guardian.is_alive())
        return is_alive and self.scope.visibility is Visibility.PAST

    @property
    def is_elsewhere(self) -> bool:
        """Whether its processes are on another host or in another container."""
        return self.scope.visibility is Visibility.ELSEWHERE


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedRun:
    """A run that has ended.

    Attributes
    ----------
    run_id, previous, label, started
        As in `Run`.
    ended
        Seconds since the epoch.
    report
        Report of its end.
    """

    run_id: str
    previous: str | None
    label: str
    started: float
    ended: float
    report: EndReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Booking:
    """A pool's share of the machine.

    Attributes
    ----------
    name
        Unique name of the booking.
    pool
        Name of the pool.
    scope, owner
        The owner's scope and identity.
    workers, memory_bytes
        Number of workers, and the memory that they may take together; 0 for no limit.
    """

    name: str
    pool: str
    scope: PidScope
    owner: ProcessIdentity
    workers: int
    memory_bytes: int

    @property
    def is_over(self) -> bool:
        """Whether its owner is dead."""
        visibility = self.scope.visibility
        return visibility is Visibility.PAST or (
            visibility is Visibility.HERE and not self.owner.is_alive()
        )


class RegistryUnusable(OSError):
    """The registry of runs cannot be read or written; the text says why."""


class Registry:
    """The registry's database. It never prevents a start: without it one safety net is missing.

    Parameters
    ----------
    path
        SQLite file; by default ``runs.sqlite`` in the data directory.
    is_needed
        Whether the caller depends on it: an unusable registry raises `RegistryUnusable` then,
        instead of logging a warning.
    """

    def __init__(self, path: Path | None = None, *, is_needed: bool = False) -> None:
        self._path = path
        self._is_needed = is_needed
        self._warned = False

    @property
    def path(self) -> Path:
        """Return the path of the SQLite file."""
        return self._path if self._path is not None else data_dir() / "runs.sqlite"

    def reserve(
        self,
        run_id: str,
        *,
        label: str,
        parent: str | None = None,
        previous: str | None = None,
        leftovers: Sequence[str] = (),
    ) -> None:
        """Register a run that this process is about to start."""
        self._execute(_reservation(run_id, label, parent, previous, leftovers))

    async def areserve(
        self,
        run_id: str,
        *,
        label: str,
        parent: str | None = None,
        previous: str | None = None,
        leftovers: Sequence[str] = (),
    ) -> None:
        """Do the same; concurrent reservations of several tasks are one transaction.

        The file stays open until the run is retired: more transactions will follow.
        """
        statement = _reservation(run_id, label, parent, previous, leftovers)
        await run_shielded(_writes.ask(self, [statement]))  # or it could follow its retirement
        with contextlib.suppress(*FAILURES, OSError):  # without it, writing is only slower
            _database.connections.hold(self.path, run_id)

    def activate(
        self, run_id: str, guardian: ProcessIdentity, process: ProcessIdentity | None
    ) -> None:
        """Store the processes of a reserved run."""
        self._execute(_activation(run_id, guardian, process))

    async def aactivate(
        self, run_id: str, guardian: ProcessIdentity, process: ProcessIdentity | None
    ) -> None:
        """Do the same, in one transaction with other tasks."""
        await run_shielded(_writes.ask(self, [_activation(run_id, guardian, process)]))

    async def write(self, parts: Sequence[Sequence[Statement]]) -> None:
        """Execute statements in one transaction."""
        self._execute(*itertools.chain.from_iterable(parts))

    def assign(
        self, run_id: str, *, label: str, previous: str | None, leftovers: Sequence[str]
    ) -> None:
        """Store the assignment of a standby kernel's run."""
        update = "UPDATE runs SET label = ?, previous = ?, leftovers = ? WHERE run_id = ?"
        self._execute((update, (label, previous, json.dumps(list(leftovers)), run_id)))

    def retire(self, run_id: str, report: EndReport | None = None) -> None:
        """Remove a run that is verified gone; store the report of its end, if there is one."""
        self._execute(*_retirement(run_id, report))
        self._release_connection(run_id)

    async def aretire(self, run_id: str, report: EndReport | None = None) -> None:
        """Do the same, in one transaction with other tasks."""
        try:
            await run_shielded(_writes.ask(self, _retirement(run_id, report)))
        except asyncio.CancelledError:  # perhaps before it has begun: the loop itself is ending
            self._execute(*_retirement(run_id, report))
            raise
        finally:
            self._release_connection(run_id)

    def _release_connection(self, run_id: str) -> None:
        with contextlib.suppress(OSError):
            _database.connections.release(self.path, run_id)

    def runs(self) -> list[Run]:
        """Return every registered run, oldest first, without damaged rows."""
        rows = self._execute(
            "SELECT run_id, parent, previous, label, host, boot_id, pid_namespace, owner, guardian,"
            " process, started, leftovers FROM runs ORDER BY started"
        )
        runs = map(_read_run, rows)
        return [run for run in runs if run is not None]

    def ended_runs(self) -> list[EndedRun]:
        """Return the most recently ended runs, the latest first."""
        return self._read_ended("SELECT * FROM ended_runs ORDER BY ended DESC")

    def ended_before(self, run_id: str) -> EndedRun | None:
        """Return the run that a run replaced when its kernel was restarted."""
        select = (
            "SELECT * FROM ended_runs WHERE run_id = (SELECT previous FROM runs WHERE run_id = ?)"
        )
        return next(iter(self._read_ended(select, run_id)), None)

    # -- bookings ------------------------------------------------------------------------------

    def book(
        self, name: str, pool: str, most: int, *, bytes_each: int, cores: int, memory_bytes: int
    ) -> int:
        """Book workers for a pool of this process, within what other pools have left; at least one.

        Parameters
        ----------
        name
            Name of the booking.
        pool
            Name of the pool.
        most
            Maximum number of workers.
        bytes_each
            Memory that a worker may take; 0 for no limit.
        cores, memory_bytes
            Capacity of this machine.

        Returns
        -------
        int
            Number of workers booked; ``most`` when the registry cannot be used.
        """
        over = [(row,) for row, booking in self._all_bookings() if not booking or booking.is_over]
        owner, scope = ProcessIdentity.of(os.getpid()), here()
        share = (
            "min(?, ? - coalesce(sum(workers), 0),"
            " iif(?, (? - coalesce(sum(memory_bytes), 0)) / max(?, 1), ?))"
        )
        insert = (
            "INSERT INTO bookings SELECT ?, ?, ?, ?, ?, ?, max(1, booked), max(1, booked) * ?"  # noqa: S608 - constants
            f" FROM (SELECT {share} AS booked FROM bookings WHERE boot_id = ?)"
        )
        parameters = (
            *(
                name,
                pool,
                scope.written_host,
                scope.boot,
                scope.pid_namespace,
                str(owner),
                bytes_each,
            ),
            *(most, cores, bytes_each, memory_bytes, bytes_each, most, scope.boot),
        )
        rows = self._execute(
            *(("DELETE FROM bookings WHERE rowid = ?", each) for each in over),
            (insert, parameters),
            ("SELECT workers FROM bookings WHERE name = ?", (name,)),
        )
        return int(rows[0][0]) if rows else most

    def rebook(self, name: str, workers: int, memory_bytes: int) -> None:
        """Change a booking, regardless of other bookings."""
        update = "UPDATE bookings SET workers = ?, memory_bytes = ? WHERE name = ?"
        self._execute((update, (workers, memory_bytes, name)))

    def unbook(self, name: str) -> None:
        """Release a booking."""
        self._execute(("DELETE FROM bookings WHERE name = ?", (name,)))

    def bookings(self) -> list[Booking]:
        """Return the bookings of living pools on this machine."""
        return [
            booking
            for _, booking in self._all_bookings()
            if booking and not booking.is_over and booking.scope.boot == here().boot
        ]

    def _all_bookings(self) -> list[tuple[int, Booking | None]]:
        """Return row numbers and bookings; None stands for a damaged row."""
        rows = self._execute("SELECT rowid, * FROM bookings")
        return [(row[0], _read_booking(row[1:])) for row in rows]

    def _read_ended(self, select: str, *parameters: str) -> list[EndedRun]:
        ended = map(_read_ended_run, self._execute((select, parameters)))
        return [run for run in ended if run is not None]

    def _execute(self, *statements: Statement | str) -> list[Any]:
        """Execute statements in one transaction, and return the rows of the last.

        A corrupt file is rebuilt; an unusable one is logged once.
        """
        whole = [item if isinstance(item, tuple) else (item, ()) for item in statements]
        try:
            return _database.execute(self.path, whole)
        except (*FAILURES, OSError) as error:
            self._warn(error)
            return []

    def _warn(self, error: Exception) -> None:
        if self._is_needed:
            raise RegistryUnusable(f"the registry of runs cannot be used: {error}") from error
        if not self._warned:
            self._warned = True
            logger.warning(
                "the registry of runs cannot be used (%s): kernels start all the same, but what the"
                " death of a guardian leaves behind will not be found by the next start",
                error,
            )


def _reservation(
    run_id: str,
    label: str,
    parent: str | None,
    previous: str | None,
    leftovers: Sequence[str],
) -> Statement:
    owner, scope = ProcessIdentity.of(os.getpid()), here()
    insert = (
        "INSERT INTO runs (run_id, parent, previous, label, host, boot_id, pid_namespace,"
        " owner, started, leftovers) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    )
    row = (
        *(run_id, parent, previous, label),
        *(scope.written_host, scope.boot, scope.pid_namespace),
        *(str(owner), time.time(), json.dumps(list(leftovers))),
    )
    return insert, row


def _activation(
    run_id: str, guardian: ProcessIdentity, process: ProcessIdentity | None
) -> Statement:
    update = "UPDATE runs SET guardian = ?, process = ? WHERE run_id = ?"
    return update, (str(guardian), str(process) if process else None, run_id)


def _retirement(run_id: str, report: EndReport | None) -> list[Statement]:
    statements: list[Statement] = [("DELETE FROM runs WHERE run_id = ?", (run_id,))]
    if report is not None:
        remember = (
            "INSERT OR REPLACE INTO ended_runs"
            " (run_id, previous, label, started, ended, report)"
            " SELECT run_id, previous, label, started, ?, ? FROM runs WHERE run_id = ?"
        )
        forget = (
            "DELETE FROM ended_runs WHERE run_id NOT IN"
            " (SELECT run_id FROM ended_runs ORDER BY ended DESC LIMIT ?)"
        )
        statements.insert(0, (remember, (time.time(), report.as_json(), run_id)))
        statements.append((forget, (REMEMBERED_RUNS,)))
    return statements


_writes: Coalescer[Registry, list[Statement], None] = Coalescer(Registry.write)


def _read_run(row: Sequence[Any]) -> Run | None:
    """Read a row; None when it is damaged. A run id becomes a path, so it must be one."""
    texts = (row[0], *row[3:6], row[7], row[11], *(item or "" for item in (*row[1:3], *row[8:10])))
    if not (_are_texts(*texts) and isinstance(row[6], int) and _is_timestamp(row[10])):
        return None
    run_id, parent, previous, label, host, boot_id, pid_namespace = row[:7]
    owner, guardian, process, started, leftovers = row[7:]
    try:
        paths = json.loads(leftovers)
        if not is_run_id(run_id) or not all(isinstance(path, str) for path in paths):
            return None
        return Run(
            run_id=run_id,
            parent=parent,
            previous=previous,
            label=label,
            scope=PidScope.read(host, boot_id, pid_namespace),
            owner=_read_identity(owner),
            guardian=_read_identity(guardian) if guardian else None,
            process=_read_identity(process) if process else None,
            started=started,
            leftovers=tuple(paths),
        )
    except (TypeError, ValueError, RecursionError):
        return None


def _read_ended_run(row: Sequence[Any]) -> EndedRun | None:
    run_id, previous, label, started, ended, report = row
    is_good = _are_texts(run_id, previous or "", label, report) and is_run_id(run_id)
    if not is_good or not _is_timestamp(started) or not _is_timestamp(ended):
        return None
    return EndedRun(
        run_id=run_id,
        previous=previous,
        label=label,
        started=started,
        ended=ended,
        report=EndReport.from_json(report),
    )


def _read_booking(row: Sequence[Any]) -> Booking | None:
    name, pool, host, boot, namespace, owner, workers, memory_bytes = row
    are_numbers = all(isinstance(item, int) for item in (namespace, workers, memory_bytes))
    if not are_numbers or not _are_texts(name, pool, host, boot, owner):
        return None
    if not (0 <= workers <= MAX_BOOKED_WORKERS and 0 <= memory_bytes <= MAX_BOOKED_BYTES):
        return None
    try:
        return Booking(
            name=name,
            pool=pool,
            scope=PidScope.read(host, boot, namespace),
            owner=_read_identity(owner),
            workers=workers,
            memory_bytes=memory_bytes,
        )
    except ValueError:
        return None


def _read_identity(text: str) -> ProcessIdentity:
    identity = ProcessIdentity.parse(text)
    if not (0 < identity.pid <= PID_MAX_LIMIT and 0 <= identity.start_time < 1 << 63):
        raise ValueError(text)
    return identity


def _are_texts(*values: object) -> bool:
    return all(isinstance(value, str) for value in values)


def _is_timestamp(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value) and 0.0 <= value < MAX_TIMESTAMP
