"""``snakepit status``: the live pools and runs of this user, from another shell."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from ..paths import runtime_dir
from ..pool.status import HEADINGS, PoolStatus, duration
from ..processes.registry import Registry, Run
from .published import PublishedPool, UnreadablePool, pool_folders, read_pool

_RUN_HEADINGS = ("kernel", "run", "pid", "guardian", "state", "age")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A table, before it is known where it is shown."""

    title: str
    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    footer: str = ""

    def as_text(self) -> str:
        """Return it as plain lines, for pipes."""
        rows = [self.headings, *self.rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([self.title, *lines, *([self.footer] if self.footer else [])])

    def as_table(self) -> Table:
        """Return it as a table, for terminals."""
        table = Table(title=self.title, caption=self.footer or None, title_justify="left")
        table.caption_justify = "left"
        for heading in self.headings:
            table.add_column(heading, overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table


def show(*, as_json: bool) -> None:
    """Print the live pools, and below them the live runs.

    Raises
    ------
    PermissionError
        The runtime directory cannot be used.
    """
    pools = live_pools()
    runs = [run for run in Registry().runs() if not run.is_dead]
    if as_json:
        data = {"pools": [_pool_data(pool) for pool in pools], "runs": [_run_data(r) for r in runs]}
        click.echo(json.dumps(data, indent=2))
        return
    listings = [pool_listing(pool.refreshed()) for pool in pools]
    if runs:
        listings.append(run_listing(runs))
    if not pools:
        click.echo("no live pools")
    console = Console(markup=False, highlight=False, emoji=False)
    for listing in listings:
        if console.is_terminal:
            console.print(listing.as_table())
        else:
            click.echo(listing.as_text() + ("\n" if listing is not listings[-1] else ""))


def live_pools() -> list[PublishedPool]:
    """Return the pools whose owner lives, by name; complain about files that cannot be read."""
    found = []
    for folder in pool_folders(runtime_dir()):
        try:
            pool = read_pool(folder)
        except UnreadablePool as error:
            click.echo(str(error), err=True)
            continue
        if pool is not None and pool.is_live:
            found.append(pool)
    return sorted(found, key=lambda pool: (pool.status.name, pool.status.owner_pid))


# -- as JSON ---------------------------------------------------------------------------------------


def _pool_data(pool: PublishedPool) -> dict[str, Any]:
    return {**pool.refreshed().as_json(), "folder": str(pool.folder)}


def _run_data(run: Run) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "parent": run.parent,
        "label": run.label,
        "owner_pid": run.owner.pid,
        "guardian_pid": run.guardian.pid if run.guardian else None,
        "pid": run.process.pid if run.process else None,
        "state": _state_of(run),
        "started": run.started,
        "seconds": _age(run),
    }


# -- as tables -------------------------------------------------------------------------------------


def pool_listing(pool: PoolStatus) -> Listing:
    """Lay out a pool."""
    rows = [worker.as_row() for worker in pool.workers]
    return Listing(title=pool.title, headings=HEADINGS, rows=rows, footer=pool.footer)


def run_listing(runs: Sequence[Run]) -> Listing:
    """Lay out live runs."""
    rows = [
        (
            run.label,
            run.run_id,
            str(run.process.pid) if run.process else "",
            str(run.guardian.pid) if run.guardian else "",
            _state_of(run),
            duration(_age(run)),
        )
        for run in runs
    ]
    return Listing(title="live runs", headings=_RUN_HEADINGS, rows=rows)


def _state_of(run: Run) -> str:
    """Say whether a run's kernel starts, runs, or has ended while its owner still holds it."""
    if run.process is None:
        return "starting"
    return "running" if run.process.is_alive() else "ended"


def _age(run: Run) -> float:
    return max(0.0, time.time() - run.started)
