"""``snakepit status --watch``: the live pools and kernels, drawn anew each second."""

from __future__ import annotations

import math
import time

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from ..printable import printable
from ..processes.run_registry import Registry
from .status import NO_POOLS, all_listings, live_pools, live_runs, plain_console


def watch(interval: float) -> None:
    """Draw until Ctrl-C.

    Parameters
    ----------
    interval
        Seconds between two looks.

    Raises
    ------
    click.UsageError
        The output is no terminal.
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
        # On a screen of its own: what was on the terminal before is there again afterwards.
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(_drawn(registry), refresh=True)
                time.sleep(interval)  # pools are other processes', and tell nobody that they change
    except KeyboardInterrupt:
        pass


def _drawn(registry: Registry) -> RenderableType:
    pools, complaints = live_pools()
    parts: list[RenderableType] = [
        Text(f"{time.strftime('%H:%M:%S')}  Ctrl-C ends this", style="dim")
    ]
    parts += [Text(printable(complaint), style="red") for complaint in complaints]
    if not pools:
        parts.append(Text(NO_POOLS))
    parts += [listing.as_table() for listing in all_listings(pools, live_runs(registry))]
    return Group(*parts)
