"""Notebook widget that shows a pool live. Only this module imports anywidget."""

from __future__ import annotations

import contextlib
import contextvars
import math
import threading
import time
from dataclasses import asdict
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Protocol

import anywidget
import zmq
from traitlets import Bool, Dict

from ...printable import printable
from ..html import style
from ..status import MAX_RUNNING, failed

if TYPE_CHECKING:
    from ..status import PoolStatus, WorkerStatus

INTERVAL = 1.0
"""Seconds between two readings of the pool's status."""

MAX_WORKERS = 150
"""Most workers that are shown."""


class Watched(Protocol):
    """A pool, as far as the dashboard needs it."""

    @property
    def is_open(self) -> bool:
        """Whether it takes work."""

    def status(self) -> PoolStatus:
        """Return its present status."""


class Dashboard(anywidget.AnyWidget):
    """Live view of an open pool, in each place where it is displayed.

    A thread reads the pool's status about once a second while the widget is on a screen, and
    sends what has changed: an idle pool sends nothing, so that its notebook can still be
    culled. The thread ends with the pool, or by `close`.

    Parameters
    ----------
    pool
        The pool.

    Attributes
    ----------
    view
        The shown status as plain data, with the rate of ended calls per second.
    shown
        Whether it is visible; set by the browser.
    """

    _esm = files(__package__).joinpath("dashboard.js").read_text(encoding="utf-8")
    _css = style()

    view = Dict().tag(sync=True)
    shown = Bool(default_value=True).tag(sync=True)

    def __init__(self, pool: Watched) -> None:
        self._has_ended = threading.Event()
        self._ended_before, self._read_at = 0, -math.inf  # its first rate is 0
        super().__init__(view=self._read_view(pool))
        # Its messages belong to the cell that opened it, which ipykernel finds in the context.
        self._thread = threading.Thread(
            target=contextvars.copy_context().run,
            args=(self._run, pool),
            name=f"snakepit-dashboard-{self.view['name']}",
            daemon=True,
        )
        self._thread.start()

    def _run(self, pool: Watched) -> None:
        is_open = True
        while is_open and not self._has_ended.wait(INTERVAL):
            is_open = pool.is_open
            if is_open and not self.shown:
                continue
            view = self._read_view(pool)
            if _without_ages(view) != _without_ages(self.view):
                with contextlib.suppress(
                    zmq.ZMQError
                ):  # the kernel exits, and its channels are closed
                    self.view = view

    def _read_view(self, pool: Watched) -> dict[str, Any]:
        is_open = pool.is_open
        status = pool.status()
        ended, now = _ended(status), time.monotonic()
        rate = (ended - self._ended_before) / (now - self._read_at)
        self._ended_before, self._read_at = ended, now
        return {**_as_view(status), "is_open": is_open, "rate": round(rate, 1)}

    def close(self) -> None:
        """Stop updating, and end the thread."""
        self._has_ended.set()
        super().close()

    def __repr__(self) -> str:
        state = "live" if self._thread.is_alive() else "closed"
        return f"<dashboard of pool {self.view.get('name')!r}: {state}>"


def _ended(status: PoolStatus) -> int:
    return status.stats.submitted - status.stats.queued - status.stats.running


def _as_view(status: PoolStatus) -> dict[str, Any]:
    """Return a status with points in time instead of ages, which would change constantly."""
    return {
        "name": printable(status.name),
        "about": status.about,
        "headings": status.headings,
        "workers": [_worker(worker) for worker in status.workers[:MAX_WORKERS]],
        "stats": asdict(status.stats),
        "failed": failed(status.stats),
        "ends": [
            {"name": printable(end.name), "at": end.at, "story": end.story, "died": end.was_wanted}
            for end in status.last_ends
        ],
        "sessions": status.some_sessions,
        "beside": status.beside_workers,
        "problem": printable(status.problem or "", lines=True),
    }


def _worker(worker: WorkerStatus) -> dict[str, Any]:
    # Changes below a MiB are noise.
    memory = None if worker.memory_bytes is None else round(worker.memory_bytes / 2**20)
    return {
        "name": printable(worker.name),
        "pid": worker.pid,
        "state": worker.state,
        "tainted": worker.tainted and printable(worker.tainted),
        "since": time.time() - worker.seconds,
        "calls": worker.calls,
        "mebibytes": memory,
        "device": printable(worker.device or ""),
        "running": printable(worker.running or "", limit=MAX_RUNNING),
    }


def _without_ages(view: dict[str, Any]) -> dict[str, Any]:
    workers = [{**worker, "since": None} for worker in view["workers"]]
    return {**view, "workers": workers}
