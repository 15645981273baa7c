"""A pool's status as html: for notebooks, in the colours of their theme."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from functools import partial
from html import escape
from importlib.resources import files

from ..printable import printable
from .status import PoolStats, PoolStatus, WorkerEnd, WorkerStatus, memory

_NUMBERS = frozenset({"pid", "calls", "memory"})


@functools.cache
def style() -> str:
    """Return the style sheet of all that shows a pool."""
    return files(__package__).joinpath("pool.css").read_text(encoding="utf-8")


def shown(text: str) -> str:
    """Return a text of others as html shows it."""
    return escape(printable(text, lines=True))


def page(pool: PoolStatus) -> str:
    """Return a status as html. All texts of the user's are escaped."""
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
    if pool.problem:
        parts.append(f'<div class="snakepit-problem">{shown(pool.problem)}</div>')
    return f'<div class="snakepit-pool">{"".join(parts)}</div>'


def tiles(pool: PoolStatus) -> list[tuple[str, str]]:
    """Return the numbers that stand above the table: what they count, and how they read."""
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
    """Return how many pieces of work ended neither well nor because their caller wished it."""
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
