"""``snakepit doctor``: the list of checks, and their report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import click

from .._version import __version__
from ..loggers import get_logger
from .channel_checks import check_channels
from .findings import Check, Finding, Level, problem
from .installation_checks import (
    check_accelerators,
    check_bash,
    check_forking,
    check_kernelspec,
    check_provisioner,
    check_servers,
    check_versions,
)
from .leftover_checks import (
    check_data_directory,
    check_leftovers,
    check_processes,
    check_registry,
    check_runtime_directory,
    check_store,
)
from .start_check import check_start

logger = get_logger(__name__)

CHECKS: dict[str, Check] = {
    "versions": check_versions,
    "forking": check_forking,
    "kernelspec": check_kernelspec,
    "provisioner": check_provisioner,
    "servers": check_servers,
    "runtime directory": check_runtime_directory,
    "data directory": check_data_directory,
    "registry": check_registry,
    "sessions": check_store,
    "processes": check_processes,
    "leftovers": check_leftovers,
    "channels": check_channels,
    "accelerators": check_accelerators,
    "bash": check_bash,
}

_COLOURS = {Level.OK: "green", Level.HINT: "yellow", Level.PROBLEM: "red"}


def examine(*, start: bool) -> Iterable[Finding]:
    """Run the checks one after the other.

    Parameters
    ----------
    start
        Whether to start a kernel as well.
    """
    checks = {**CHECKS, "start": check_start} if start else CHECKS
    for name, check in checks.items():
        yield from _run(name, check)


def show(findings: Iterable[Finding], *, as_json: bool) -> int:
    """Print findings, in text form as soon as each is made; return the exit status."""
    seen = []
    for finding in findings:
        seen.append(finding)
        if not as_json:
            click.echo(_line(finding))
    broken = any(finding.level is Level.PROBLEM for finding in seen)
    if as_json:
        click.echo(_as_json(seen, broken))
    return 1 if broken else 0


def _run(name: str, check: Check) -> Iterable[Finding]:
    try:
        yield from check()
    except Exception as error:  # a check that fails must not hide the others
        logger.debug("check %s failed", name, exc_info=True)
        yield problem(
            name,
            f"the check itself failed: {type(error).__name__}: {error}",
            "look whether the other findings explain it, else report this as a bug of snakepit",
        )


def _line(finding: Finding) -> str:
    level = click.style(f"{finding.level:<8}", fg=_COLOURS[finding.level])
    return f"{level} {finding.check}: {finding.line()}"


def _as_json(findings: Sequence[Finding], broken: bool) -> str:
    return json.dumps(
        {
            "version": __version__,
            "ok": not broken,
            "findings": [finding.as_json() for finding in findings],
        },
        indent=2,
    )
