"""``snakepit reap``: ends processes that dead runs have left, and on request kept ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import click

from ..paths import DATA_VARIABLE
from ..printable import counted, printable
from ..processes.end_report import EndReport
from ..processes.run_registry import Registry, Run
from ..processes.sweep import Survey, TaggedProcess, end_processes, survey, sweep

MAX_LABEL = 80
"""Characters of a kernel's name in a line of text."""


def reap(*, grace: float, kept: bool, dry_run: bool, as_json: bool) -> int:
    """End the processes of dead runs, remove their files, and print a report.

    Parameters
    ----------
    grace
        Seconds between SIGTERM and SIGKILL.
    kept
        Also end processes that were kept on purpose and have outlived their run.
    dry_run
        Only print what would be ended.
    as_json
        Print the report as JSON.

    Returns
    -------
    int
        The exit status: 1 when something does not die, else 0.

    Raises
    ------
    OSError
        The registry, the data or the runtime directory cannot be used. Nothing was ended.
    """
    registry = Registry(is_needed=True)  # or an unreadable registry would mean "nothing to end"
    found = survey(registry)
    reports: dict[str, EndReport] = {}
    of_kept = EndReport(verified=True)
    if not dry_run:
        reports = asyncio.run(sweep(registry, grace))
        if kept and found.kept:
            of_kept = asyncio.run(end_processes(found.kept, grace)).report()
    if as_json:
        click.echo(json.dumps(_as_data(found, reports, of_kept, dry_run=dry_run), indent=2))
    else:
        for line in as_lines(found, reports, of_kept, dry_run=dry_run, kept=kept):
            click.echo(printable(line, lines=True))
    survivors = [
        *of_kept.survivors,
        *(line for item in reports.values() for line in item.survivors),
    ]
    return 1 if survivors else 0


def _as_data(
    found: Survey, reports: dict[str, EndReport], of_kept: EndReport, *, dry_run: bool
) -> dict[str, Any]:
    runs = []
    for run, processes in found.dead:
        report = reports.get(run.run_id, EndReport())
        runs.append(
            {
                "run_id": run.run_id,
                "label": run.label,
                "owner_pid": run.owner.pid,
                "processes": [_process(item) for item in processes],
                "ended": [_ended(item) for item in report.ended],
                "survivors": report.survivors,
            }
        )
    return {
        "dry_run": dry_run,
        "runs": runs,
        "kept": [_process(item) for item in found.kept],
        "kept_ended": [_ended(item) for item in of_kept.ended],
        "left_alone": {
            "live": [run.run_id for run in found.live],
            "elsewhere": [
                {"run_id": run.run_id, "place": str(run.scope)} for run in found.elsewhere
            ],
            "unknown": [_process(item) for items in found.unknown.values() for item in items],
            "unreadable": found.unreadable,
        },
    }


def _process(item: TaggedProcess) -> dict[str, Any]:
    return {"pid": item.identity.pid, "run_id": item.run_id, "command": item.command}


def _ended(item: Any) -> dict[str, Any]:
    return {"pid": item.pid, "signal": item.signal, "command": item.command}


def as_lines(
    found: Survey,
    reports: dict[str, EndReport],
    of_kept: EndReport,
    *,
    dry_run: bool,
    kept: bool,
) -> list[str]:
    """Return the report as text: what was found, ended and left alone, a line each."""
    lines = []
    for run, processes in found.dead:
        if dry_run:
            text = _listed(f"would end {_count(processes)}", processes)
        else:
            report = reports.get(run.run_id, EndReport())
            text = report.summary()
            text += "".join(f"\n  does not die: {printable(line)}" for line in report.survivors)
        lines.append(f"{_run_name(run)}, owner {run.owner.pid} died: {text}")
    if found.kept and kept:
        text = (
            _listed(f"would end {_count(found.kept)}", found.kept) if dry_run else of_kept.summary()
        )
        text += "".join(f"\n  does not die: {printable(line)}" for line in of_kept.survivors)
        lines.append(f"kept on purpose: {text}")
    elif found.kept:
        text = _listed(f"left {_count(found.kept)} alone", found.kept)
        lines.append(f"kept on purpose, {text}\n  end them: snakepit reap --kept")
    lines += [
        f"{_run_name(run)} is on {printable(str(run.scope))}, which shares this data directory: "
        f"left alone: whether it lives cannot be seen from here"
        for run in found.elsewhere
    ]
    for run_id, processes in found.unknown.items():
        text = _listed(f"left {_count(processes)} alone", processes)
        pids = " ".join(str(item.identity.pid) for item in processes)
        lines.append(
            f"run {run_id} is not registered here (another {DATA_VARIABLE}?), so it is unknown "
            f"whether its owner lives: {text}\n  if you do not need them: kill {pids}"
        )
    if found.unreadable:
        pids = " ".join(map(str, found.unreadable))
        lines.append(
            f"/proc hides {_counted(len(found.unreadable))} of yours (it is mounted with hidepid): "
            f"a run may have left them: {pids}\n  run this as root to be sure"
        )
    return lines or ["nothing to end"]


def _run_name(run: Run) -> str:
    return f"run {run.run_id} ({printable(run.label, limit=MAX_LABEL)})"


def _count(processes: Sequence[TaggedProcess]) -> str:
    return _counted(len(processes))


def _counted(number: int) -> str:
    return counted(number, "process", "processes")


def _listed(text: str, processes: Sequence[TaggedProcess]) -> str:
    return text + "".join(f"\n  {printable(str(item), limit=100)}" for item in processes)
