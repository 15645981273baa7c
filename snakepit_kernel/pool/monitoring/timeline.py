"""Timeline of a pool's calls: recorded in a ``with`` block, then shown or saved."""

from __future__ import annotations

import json
import math
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ... import telemetry
from ...files import write_file
from ...output.html import page, shown
from ...output.tables import Table
from ...printable import counted, duration, printable

LIMIT = 10_000
"""Default number of calls that a timeline keeps: the last ones."""

SHOWN_LINES = 20
"""Calls in the text form; the html page and the saved file have all."""

OVERLAP = 2e-3
"""Seconds of tolerated overlap: a worker may begin its next call before the end of the last is
recorded."""

NOTEBOOK = "notebook"
"""Track of host calls, which run in the notebook."""

_NUMBERS = ("at", "waited", "ran")
_HEADINGS = (*_NUMBERS, "kind", "tool", "worker", "session", "outcome")


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineCall:
    """One call, cell, stream, future or host call that has ended.

    Attributes
    ----------
    kind
        ``"call"``, ``"stream"``, ``"future"``, ``"cell"`` or ``"host_call"``.
    session, worker
        Session that it belongs to and worker that ran it; None for none. A host call's worker is
        the one that requested it.
    correlation_id
        Id of the outermost call that it was made for.
    queued_at, began_at, ended_at
        When it was submitted, was assigned to a worker (by its last attempt) and ended: seconds
        since 1970.
    outcome
        Name of the counter of `Pool.stats` that it increments.
    """

    kind: str
    tool: str
    session: str | None
    worker: str | None
    correlation_id: str
    queued_at: float
    began_at: float
    ended_at: float
    outcome: str

    @property
    def waited(self) -> float:
        """Seconds in the queue."""
        return self.began_at - self.queued_at

    @property
    def ran(self) -> float:
        """Seconds at a worker, or in the notebook for a host call."""
        return self.ended_at - self.began_at

    @property
    def track(self) -> str | None:
        """Where it ran: its worker, or the notebook; None if it never ran."""
        return NOTEBOOK if self.kind == "host_call" else self.worker


class Timeline:
    """Records and shows the calls of a pool that begin and end inside a ``with`` block.

    Parameters
    ----------
    pool
        Name of the pool.
    limit
        Number of calls to keep.
    """

    def __init__(self, pool: str, limit: int = LIMIT) -> None:
        self.pool = pool
        self._calls: deque[TimelineCall] = deque(maxlen=limit)
        self._count = 0
        self._lost_before = self._lost = 0
        self._subscription: telemetry.Subscription | None = None

    def __enter__(self) -> Self:
        self._lost_before = telemetry.dropped() - self._lost
        self._subscription = telemetry.subscribe(self._take)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._subscription is not None
        self._subscription.close()
        self._lost = telemetry.dropped() - self._lost_before
        self._subscription = None

    def _take(self, event: telemetry.Event) -> None:
        if event.name in {"call", "host_call"} and event.attributes.get("pool") == self.pool:
            self._count += 1
            self._calls.append(_call_of(event))

    @property
    def calls(self) -> list[TimelineCall]:
        """The calls that have ended so far, in the order in which they were submitted."""
        if self._subscription is not None:
            telemetry.flush()
        return sorted(self._calls, key=lambda call: call.queued_at)

    @property
    def dropped(self) -> int:
        """How many calls are missing: those beyond the limit, and events that were dropped.

        At most 1000 events of a name are delivered per second, see `telemetry.set_limit`.
        """
        lost = self._lost
        if self._subscription is not None:
            lost = telemetry.dropped() - self._lost_before
        return lost + self._count - len(self._calls)

    # -- showing -------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """A summary in one line."""
        calls = self.calls
        if not calls:
            text = f"pool {self.pool}: no calls"
        else:
            began, ended = span_of(calls)
            outcomes = Counter(call.outcome for call in calls)
            counts = ", ".join(f"{count} {name}" for name, count in outcomes.most_common())
            number = counted(len(calls), "call")
            text = f"pool {self.pool}: {number} in {seconds(ended - began)}: {counts}"
        return f"{text}; {self.dropped} more are missing" if self.dropped else text

    def __repr__(self) -> str:
        calls = self.calls
        if not calls:
            return self.title
        began, _ = span_of(calls)
        rows = [_row(call, began) for call in calls[:SHOWN_LINES]]
        table = Table(headings=_HEADINGS, rows=rows, numbers=_NUMBERS)
        more = len(calls) - SHOWN_LINES
        rest = [f"and {more} more"] if more > 0 else []
        return "\n".join([self.title, table.as_text(), *rest])

    def _repr_html_(self) -> str:
        return page_of(self.title, self.calls)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as a trace that https://ui.perfetto.dev and Chrome's ``about:tracing`` open.

        The file is private (mode 0600), or keeps the mode of the file that it replaces; a symbolic
        link is replaced.
        """
        trace = {"traceEvents": list(_trace(self.pool, self.calls)), "displayTimeUnit": "ms"}
        write_file(Path(path), json.dumps(trace))


def _call_of(event: telemetry.Event) -> TimelineCall:
    about: Mapping[str, Any] = event.attributes
    queued = event.time - event.seconds
    return TimelineCall(
        kind=about.get("kind", event.name),
        tool=about["tool"],
        session=about.get("session"),
        worker=about.get("worker"),
        correlation_id=about["correlation_id"],
        queued_at=queued,
        began_at=queued + about.get("queue_seconds", 0.0),
        ended_at=event.time,
        outcome=about["outcome"],
    )


def span_of(calls: Iterable[TimelineCall]) -> tuple[float, float]:
    """Return when the first of some calls was submitted, and when the last one ended."""
    calls = list(calls)
    return min(call.queued_at for call in calls), max(call.ended_at for call in calls)


def tracks(calls: Iterable[TimelineCall]) -> list[tuple[str, list[TimelineCall]]]:
    """Arrange calls in named tracks, in each of which they do not overlap.

    A worker has several tracks if it runs several calls at a time, or one inside another.
    """
    found: dict[str, list[list[TimelineCall]]] = {}
    for call in sorted(calls, key=lambda call: call.began_at):
        if call.track is None:
            continue
        rows = found.setdefault(call.track, [])
        for row in rows:
            if row[-1].ended_at <= call.began_at + OVERLAP:
                row.append(call)
                break
        else:
            rows.append([call])
    return [(name, row) for name in sorted(found) for row in found[name]]


def seconds(value: float) -> str:
    """Return a short time in the unit that reads best."""
    if value >= 120:
        return duration(value)
    if value >= 1:
        return f"{value:.1f} s"
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.0f} µs"


def _row(call: TimelineCall, began: float) -> tuple[str, ...]:
    return (
        seconds(call.queued_at - began),
        seconds(call.waited),
        seconds(call.ran),
        call.kind,
        *map(printable, (call.tool, call.worker or "", call.session or "", call.outcome)),
    )


def _trace(pool: str, calls: list[TimelineCall]) -> Iterable[dict[str, Any]]:
    """Yield events of Chrome's trace format: calls as spans on tracks, waits as async spans."""
    process = os.getpid()
    yield _named("process_name", f"pool {pool}", pid=process)
    for number, (name, row) in enumerate(tracks(calls), start=1):
        yield _named("thread_name", name, pid=process, tid=number)
        nexts = [call.began_at for call in row[1:]] + [math.inf]
        for call, next_began in zip(row, nexts, strict=True):
            ended = max(call.began_at, min(call.ended_at, next_began))
            yield {
                "ph": "X",
                "name": call.tool,
                "cat": call.kind,
                "pid": process,
                "tid": number,
                "ts": call.began_at * 1e6,
                "dur": (ended - call.began_at) * 1e6,
                "args": {
                    "outcome": call.outcome,
                    "session": call.session,
                    "worker": call.worker,
                    "correlation_id": call.correlation_id,
                },
            }
    for number, call in enumerate(calls):
        if call.waited > 0:
            wait = {"name": call.tool, "cat": "queue", "id": number, "pid": process, "tid": 0}
            yield {**wait, "ph": "b", "ts": call.queued_at * 1e6}
            yield {**wait, "ph": "e", "ts": call.began_at * 1e6}


def _named(kind: str, name: str, **where: int) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "args": {"name": name}, **where}


MAX_BARS = 2000
"""Most calls that are drawn, since each is an element in the browser."""

_WIDTH, _LABEL, _ROW, _TOP = 900, 130, 22, 20

_MAX_TICKS = 6

_MAX_NAME = 17
"""Characters of a track's name that fit before its bars."""

_MIN_FAILED = 3.0
"""Width of the shortest call that failed: it must be seen among long ones."""

_FINE = {"ok", "cancelled"}

_LEGEND = (
    ("ok", "ended well"),
    ("failed", "failed"),
    ("cancelled", "cancelled"),
    ("wait", "waited in the queue"),
)


def page_of(title: str, calls: Sequence[TimelineCall]) -> str:
    """Return a timeline as html with an inline SVG. All texts of users are escaped."""
    drawn = calls[-MAX_BARS:]
    about = "" if len(drawn) == len(calls) else f" (the last {MAX_BARS} are drawn)"
    picture = _picture(drawn) if drawn else ""
    heading = (
        f'<div class="snakepit-title">{shown(title)}'
        f'<span class="snakepit-quiet">{about}</span></div>'
    )
    return page(heading, picture, _legend(drawn), kind="snakepit-timeline")


def _legend(calls: Sequence[TimelineCall]) -> str:
    """Return what the colours mean that are drawn."""
    if not calls:
        return ""
    there = {_outcome(call) for call in calls} | {"wait"}
    items = [
        f'<span data-outcome="{kind}"><i></i>{text}</span>'
        for kind, text in _LEGEND
        if kind in there
    ]
    return f'<div class="snakepit-legend">{"".join(items)}</div>'


def _outcome(call: TimelineCall) -> str:
    return call.outcome if call.outcome in _FINE else "failed"


def _picture(calls: Sequence[TimelineCall]) -> str:
    rows = tracks(calls)
    began, ended = span_of(calls)
    scale = (_WIDTH - _LABEL) / max(ended - began, 1e-6)
    height = _TOP + _ROW * len(rows)
    parts = [*_axis(began, ended, scale, height)]
    before = ""
    for number, (name, row) in enumerate(rows):
        y = _TOP + _ROW * number
        if name != before:
            parts.append(f'<text x="0" y="{y + 15}">{_label(name)}</text>')
            before = name
        parts += (_bar(call, began, scale, y) for call in row)
    return f'<svg viewBox="0 0 {_WIDTH} {height + 4}" role="img">{"".join(parts)}</svg>'


def _label(name: str) -> str:
    """Return the name of a track; a long one is cut, and whole when the pointer is on it."""
    if len(name) <= _MAX_NAME:
        return shown(name)
    return f"<title>{shown(name)}</title>{shown(name[: _MAX_NAME - 1])}…"


def _axis(began: float, ended: float, scale: float, height: float) -> Iterator[str]:
    for offset in ticks(ended - began):
        x = _LABEL + offset * scale
        anchor = "end" if x > _WIDTH - 40 else "start"
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 4}" y2="{height}"/>'
        yield f'<text class="snakepit-tick" x="{x:.1f}" y="12" text-anchor="{anchor}">'
        yield f"{seconds(offset) if offset else '0'}</text>"


def ticks(span: float) -> list[float]:
    """Return round numbers from 0 to a number, at most `_MAX_TICKS` and one."""
    if span <= 0:
        return [0.0]
    power = 10.0 ** math.floor(math.log10(span / _MAX_TICKS))
    step = next(power * n for n in (1, 2, 5, 10) if span / (power * n) <= _MAX_TICKS)
    return [step * n for n in range(int(span / step) + 1)]


def _bar(call: TimelineCall, began: float, scale: float, y: float) -> str:
    queued, x = (_LABEL + (at - began) * scale for at in (call.queued_at, call.began_at))
    outcome = _outcome(call)
    width = max(call.ran * scale, _MIN_FAILED if outcome == "failed" else 1.0)
    lines = [
        f"{call.kind} {call.tool}: {call.outcome}",
        f"waited {seconds(call.waited)}, ran {seconds(call.ran)}",
        *([f"session {call.session}"] if call.session else []),
        *([f"worker {call.worker}"] if call.worker else []),
        call.correlation_id,
    ]
    return (
        f'<g data-outcome="{outcome}"><title>{shown(chr(10).join(lines))}</title>'
        f'<rect class="snakepit-wait" x="{queued:.1f}" y="{y + 18}" '
        f'width="{max(x - queued, 0):.1f}" height="2"/>'
        f'<rect x="{x:.1f}" y="{y + 3}" width="{width:.1f}" height="14" rx="2"/></g>'
    )
