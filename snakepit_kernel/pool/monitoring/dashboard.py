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

from ...output.html import page, shown, style
from ...printable import printable
from ..status import MAX_RUNNING, ended, failed, page_of

if TYPE_CHECKING:
    from ..status import PoolStatus, WorkerStatus

INTERVAL = 1.0
"""Seconds between two readings of the pool's status."""

BEAT = 5.0
"""Most seconds between two updates while the pool works. A page that has heard nothing for some of
them says so; a pool that has nothing to do sends nothing."""

MAX_WORKERS = 150
"""Most workers that are shown."""


class Watched(Protocol):
    """A pool, as far as the dashboard needs it."""

    @property
    def is_open(self) -> bool:
        """Whether it takes work."""

    @property
    def is_restarting(self) -> bool:
        """Whether it is closed only until its new workers are ready."""

    def status(self) -> PoolStatus:
        """Return its present status."""


class Dashboard(anywidget.AnyWidget):
    """Live view of an open pool, in each place where it is displayed.

    A thread reads the pool's status about once a second while the widget is on a screen, and
    sends what has changed: an idle pool sends nothing, so that its notebook can still be
    culled. The thread ends with the pool, or by `close`.

    Where there are no widgets (a terminal, a saved notebook, GitHub), it is the status at the time
    of its display, as text or as html.

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
        self._pool = pool
        self._has_ended = threading.Event()
        self._ended_before, self._read_at = 0, -math.inf  # its first rate is 0
        super().__init__(view=self._read_view())
        # Its messages belong to the cell that opened it, which ipykernel finds in the context.
        self._thread = threading.Thread(
            target=contextvars.copy_context().run,
            args=(self._run,),
            name=f"snakepit-dashboard-{self.view['name']}",
            daemon=True,
        )
        self._thread.start()

    def _run(self) -> None:
        is_open = True
        while is_open and not self._has_ended.wait(INTERVAL):
            is_open = self._is_open
            if is_open and not self.shown:
                continue
            view = self._read_view()
            if not is_open:  # its workers are gone: the last that were seen are shown as such
                view = {**view, "workers": self.view["workers"], "headings": self.view["headings"]}
            if self._is_news(view):
                with contextlib.suppress(
                    zmq.ZMQError
                ):  # the kernel exits, and its channels are closed
                    self.view = view

    @property
    def _is_open(self) -> bool:
        # Asked again at the end: a restart may have been completed between the two questions.
        return self._pool.is_open or self._pool.is_restarting or self._pool.is_open

    def _is_news(self, view: dict[str, Any]) -> bool:
        """Whether the page is to be told of a view: it differs, or work goes on."""
        is_working = view["stats"]["queued"] or view["stats"]["running"]
        if is_working and view["at"] - self.view["at"] >= BEAT:
            return True
        return _without_times(view) != _without_times(self.view)

    def _read_view(self) -> dict[str, Any]:
        is_open = self._is_open
        status = self._pool.status()
        count, now = ended(status.stats), time.monotonic()
        rate = (count - self._ended_before) / (now - self._read_at)
        self._ended_before, self._read_at = count, now
        return {**_as_view(status), "is_open": is_open, "rate": round(rate, 1)}

    def close(self) -> None:
        """Stop updating, and end the thread."""
        self._has_ended.set()
        super().close()

    def __repr__(self) -> str:
        state = "live" if self._thread.is_alive() else "closed"
        return f"<dashboard of pool {self.view.get('name')!r}: {state}>"

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        bundle = super()._repr_mimebundle_(**options)
        if bundle is None:
            return None
        data, metadata = bundle
        data["text/plain"], data["text/html"] = self._snapshot()
        return data, metadata

    def _snapshot(self) -> tuple[str, str]:
        """Return the present status as text and as html, where there are no widgets."""
        status = self._pool.status()
        if not self._is_open:
            sentence = f"pool {printable(status.name)} is closed: {printable(status.problem or '')}"
            return sentence, page(f'<div class="snakepit-quiet">{shown(sentence)}</div>')
        return str(status), page_of(status, note=f"as of {time.strftime('%Y-%m-%d %H:%M:%S')}")


def _as_view(status: PoolStatus) -> dict[str, Any]:
    """Return a status with points in time instead of ages, which would change constantly."""
    return {
        "name": printable(status.name),
        "about": status.about,
        "headings": status.headings,
        "workers": [_worker(worker) for worker in status.workers[:MAX_WORKERS]],
        "stats": asdict(status.stats),
        "done": ended(status.stats),
        "failed": failed(status.stats),
        "ends": [
            {"name": printable(end.name), "at": end.at, "story": end.story, "died": end.was_wanted}
            for end in status.last_ends
        ],
        "sessions": status.some_sessions,
        "beside": status.beside_workers,
        "problem": printable(status.problem or "", lines=True),
        "at": time.time(),
        "beat": BEAT,
    }


def _worker(worker: WorkerStatus) -> dict[str, Any]:
    # Changes below a MiB are noise.
    memory = None if worker.memory_bytes is None else round(worker.memory_bytes / 2**20)
    return {
        "name": printable(worker.name),
        "pid": worker.pid,
        "state": worker.state,
        "tainted": worker.tainted and printable(worker.tainted),
        "since": time.time() - worker.since,
        "done": worker.done,
        "mebibytes": memory,
        "device": printable(worker.device or ""),
        "running": printable(worker.running or "", limit=MAX_RUNNING),
        "session": printable(worker.session or "", limit=MAX_RUNNING),
    }


def _without_times(view: dict[str, Any]) -> dict[str, Any]:
    workers = [{**worker, "since": None} for worker in view["workers"]]
    return {**view, "workers": workers, "at": None}
