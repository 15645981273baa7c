"""``snakepit ps``, ``logs`` and ``kill``: the background processes of this user's sessions."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, TextIO

import click

from ..shells.of_session import find_process, processes
from ..shells.process import HEADINGS, NO_PROCESSES, NUMBERS, Process, signal_number
from ..shells.process_log import LogChunk
from .listing import Listing, print_listings


def show(*, as_json: bool) -> None:
    """Print the background processes of all kernels and scripts of this user."""
    found = processes()
    if as_json:
        click.echo(json.dumps([process_data(process) for process in found], indent=2))
    elif found:
        print_listings([process_listing(found)])
    else:
        click.echo(NO_PROCESSES)


def process_listing(found: Iterable[Process]) -> Listing:
    """Return the table of background processes."""
    return Listing(
        title="background processes",
        headings=HEADINGS,
        rows=[process.as_row() for process in found],
        numbers=NUMBERS,
        footer="snakepit logs ID shows what one has written; snakepit kill ID ends it",
    )


def process_data(process: Process) -> dict[str, Any]:
    """Return a process as JSON data."""
    return asdict(process.record)


def logs(name: str, *, follow: bool) -> None:
    """Print what a process has written, each stream to its own.

    Raises
    ------
    ProcessNotFound
        There is none of that id or name.
    """
    process = find_process(name)
    chunks: Iterable[LogChunk] = process.follow() if follow else process.logs().chunks
    targets: dict[str, TextIO] = {"stdout": sys.stdout, "stderr": sys.stderr}
    for chunk in chunks:
        target = targets[chunk.stream]
        target.flush()
        target.buffer.write(chunk.data)
        target.buffer.flush()


def kill(names: Iterable[str], *, signal: str, grace: float) -> int:
    """End processes and all that they have started; return the exit status of the command.

    Raises
    ------
    ProcessNotFound
        There is none of an id or name; nothing was ended.
    """
    try:
        signum = signal_number(signal)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    found = [find_process(name) for name in names]
    for process in found:
        process.kill(signal=signum, grace=grace)
        click.echo(f"{process.id} {process.as_row()[1]}: {process.status}")
    return int(any(process.is_running for process in found))
