"""``snakepit status``: lists the live pools and runs of this user, from another shell."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from ..pool.monitoring.published_pools import PublishedPool, live_pools
from ..pool.resources.machine_budget import describe_machine
from ..pool.status import NUMBERS, PoolStatus
from ..printable import duration, printable
from ..processes.run_registry import Booking, EndedRun, Registry, Run
from ..processes.sweep import TaggedProcess, past_runs, tagged_processes
from ..shells.of_session import processes
from ..shells.process import Process
from .channel_checks import reached_by
from .listing import Listing, plain_console, print_listings
from .processes import process_data, process_listing

_RUN_HEADINGS = ("kernel", "run", "pid", "guardian", "state", "reached by", "age")
_ENDED_HEADINGS = ("kernel", "run", "lived", "ended", "what its end took")
_KEPT_HEADINGS = ("pid", "run", "command")

NO_POOLS = "no live pools"

SHOWN_ENDED = 20
"""Maximum number of ended runs in the table; JSON has all."""


def show(*, ended: bool = False, as_json: bool) -> None:
    """Print the live pools, the live runs, and the kept processes of earlier runs.

    Parameters
    ----------
    ended
        Also list ended runs.
    as_json
        Print it as JSON.

    Raises
    ------
    OSError
        The runtime directory cannot be used, or for ended runs the registry.
    """
    pools, problems = live_pools()
    for problem in problems:
        click.echo(printable(problem), err=True)
    registry = Registry(is_needed=ended)  # ended runs are only there
    runs, kept = live_runs(registry), _kept()
    running = [process for process in processes() if process.is_running]
    past = past_runs(registry) if ended else []
    if as_json:
        data = {
            "pools": [_pool_data(pool) for pool in pools],
            "runs": [_run_data(run) for run in runs],
            "processes": [process_data(process) for process in running],
            "kept": [_kept_data(process) for process in kept],
            "bookings": [_booking_data(booking) for booking in registry.bookings()],
        }
        if ended:
            data["ended"] = [_ended_data(run) for run in past]
        click.echo(json.dumps(data, indent=2))
        return
    listings = list(all_listings(pools, runs, running, kept, past))
    if not pools:
        click.echo(NO_POOLS)
    print_listings(listings)


def show_for_prometheus() -> None:
    """Print the metrics of the live pools in the text format of Prometheus."""
    from ..pool.monitoring.prometheus import exposition

    pools, problems = live_pools()
    for problem in problems:
        click.echo(printable(problem), err=True)
    click.echo(exposition(pool.refreshed() for pool in pools), nl=False)


def all_listings(
    pools: Sequence[PublishedPool],
    runs: Sequence[Run],
    running: Sequence[Process] = (),
    kept: Sequence[TaggedProcess] = (),
    past: Sequence[EndedRun] = (),
) -> Iterator[Listing]:
    """Return a table for each pool, and for each kind of runs and processes that exist."""
    yield from (pool_listing(pool.refreshed()) for pool in pools)
    if runs:
        yield run_listing(runs)
    if running:
        yield process_listing(running)
    if kept:
        yield kept_listing(kept)
    if past:
        yield ended_listing(past[:SHOWN_ENDED])


def live_runs(registry: Registry) -> list[Run]:
    """Return the runs that have not ended."""
    return [run for run in registry.runs() if not run.is_dead]


def _kept() -> list[TaggedProcess]:
    return [process for process in tagged_processes() if process.kept]


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
        "transport": reached_by(run),
        "started": run.started,
        "seconds": _age(run),
    }


def _kept_data(process: TaggedProcess) -> dict[str, Any]:
    return {
        "pid": process.identity.pid,
        "run_id": process.run_id,
        "command": process.command,
    }


def _booking_data(booking: Booking) -> dict[str, Any]:
    return {
        "pool": booking.pool,
        "owner_pid": booking.owner.pid,
        "workers": booking.workers,
        "memory_bytes": booking.memory_bytes,
    }


def _ended_data(run: EndedRun) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "label": run.label,
        "started": run.started,
        "ended": run.ended,
        "count": run.report.count,
        "verified": run.report.verified,
        "processes": [
            {"pid": item.pid, "signal": item.signal, "command": item.command}
            for item in run.report.ended
        ],
        "kept": [{"pid": item.pid, "command": item.command} for item in run.report.kept],
    }


# -- as tables -------------------------------------------------------------------------------------


def pool_listing(pool: PoolStatus) -> Listing:
    """Return the table of a pool."""
    ends = [f"{end.name}, {end.ago}: {end.story}" for end in pool.last_ends]
    return Listing(
        title=pool.title,
        headings=pool.headings,
        rows=pool.rows(),
        numbers=NUMBERS,
        footer=pool.footer,
        notes=ends,
    )


def run_listing(runs: Sequence[Run]) -> Listing:
    """Return the table of live runs."""
    rows = [
        (
            run.label,
            run.run_id,
            str(run.process.pid) if run.process else "",
            str(run.guardian.pid) if run.guardian else "",
            _state_of(run),
            reached_by(run),
            duration(_age(run)),
        )
        for run in runs
    ]
    return Listing(
        title="live runs",
        headings=_RUN_HEADINGS,
        rows=rows,
        numbers={"pid", "guardian", "age"},
        footer=describe_machine(),
    )


def kept_listing(processes: Sequence[TaggedProcess]) -> Listing:
    """Return the table of processes that are marked to outlive their runs."""
    rows = [(str(item.identity.pid), item.run_id, item.command[:80]) for item in processes]
    footer = "snakepit reap --kept ends those whose run is over"
    return Listing(
        title="kept on purpose",
        headings=_KEPT_HEADINGS,
        rows=rows,
        numbers={"pid"},
        footer=footer,
    )


def ended_listing(runs: Sequence[EndedRun]) -> Listing:
    """Return the table of ended runs and the reports of their ends."""
    rows = [
        (
            run.label,
            run.run_id,
            duration(run.ended - run.started),
            f"{duration(max(0.0, time.time() - run.ended))} ago",
            run.report.summary() + (f", kept {len(run.report.kept)}" if run.report.kept else ""),
        )
        for run in runs
    ]
    return Listing(title="ended runs", headings=_ENDED_HEADINGS, rows=rows)


def _state_of(run: Run) -> str:
    """Return whether a run's kernel starts, runs, or has ended while its owner still holds it."""
    if run.is_elsewhere:
        return f"on {run.scope}"
    if run.process is None:
        return "starting"
    return "running" if run.process.is_alive() else "ended"


def _age(run: Run) -> float:
    return max(0.0, time.time() - run.started)


def watch(interval: float) -> None:
    """Redraw the live pools and runs until Ctrl-C.

    Parameters
    ----------
    interval
        Seconds between two updates.

    Raises
    ------
    click.UsageError
        The output is not a terminal.
    """
    if not math.isfinite(interval):
        raise click.UsageError(f"--interval must be a number of seconds, not {interval:g}")
    console = plain_console()
    if not console.is_terminal:
        raise click.UsageError(
            "--watch draws on a terminal, and the output is none; leave it out, or take --json"
        )
    registry = Registry()
    try:
        # On the alternate screen: the terminal's former content is restored afterwards.
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(_render(registry), refresh=True)
                time.sleep(interval)  # pools are other processes', which signal no changes
    except KeyboardInterrupt:
        pass


def _render(registry: Registry) -> RenderableType:
    pools, problems = live_pools()
    parts: list[RenderableType] = [
        Text(f"{time.strftime('%H:%M:%S')}  Ctrl-C ends this", style="dim")
    ]
    parts += [Text(printable(problem), style="red") for problem in problems]
    if not pools:
        parts.append(Text(NO_POOLS))
    running = [process for process in processes() if process.is_running]
    parts += [listing.as_table() for listing in all_listings(pools, live_runs(registry), running)]
    return Group(*parts)
