"""``snakepit env``: the environments of packages that pools of this user have made."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..environments.cache import Environment, EnvironmentCache
from ..environments.environment import acquire
from ..environments.requirements import Requirements
from ..pool.status import memory
from ..printable import counted, duration
from ..redaction import redacted
from .listing import Listing, print_listings

NO_ENVIRONMENTS = "no environments"

HEADINGS = ("environment", "requirements", "packages", "size", "used", "state")


def show(*, as_json: bool) -> None:
    """Print the environments, the one used last first."""
    cache = EnvironmentCache()
    found = [(each, cache.is_used(each.name)) for each in cache.all()]
    if as_json:
        click.echo(json.dumps([_data(each, is_used) for each, is_used in found], indent=2))
    elif not found:
        click.echo(NO_ENVIRONMENTS)
    else:
        listing = Listing(
            title="environments of pools with requirements",
            headings=HEADINGS,
            rows=[_row(each, is_used) for each, is_used in found],
            footer="snakepit env prune removes those that have not been used for 30 days",
        )
        print_listings([listing])


def _row(environment: Environment, is_used: bool) -> tuple[str, ...]:
    ago = duration(max(0.0, time.time() - environment.used))
    return (
        environment.name,
        str(environment),
        str(len(environment.resolution.packages)),
        memory(environment.size_bytes()),
        f"{ago} ago",
        "in use" if is_used else "",
    )


def _data(environment: Environment, is_used: bool) -> dict[str, Any]:
    return {
        "name": environment.name,
        "folder": str(environment.folder),
        "requirements": list(environment.resolution.requirements),
        "packages": [redacted(line) for line in environment.resolution.packages],
        "size_bytes": environment.size_bytes(),
        "used": environment.used,
        "in_use": is_used,
    }


def prune(seconds: float, *, dry_run: bool) -> None:
    """Remove environments that have not been used for so many seconds, and say which."""
    cache = EnvironmentCache()
    sizes = {each.name: each.size_bytes() for each in cache.all()}
    removed = 0
    freed = 0
    for each in cache.prune(seconds, dry_run=dry_run):
        name = each.environment.name
        if each.in_use:
            click.echo(f"{name} ({each.environment}) is in use, and stays")
            continue
        removed += 1
        freed += sizes.get(name, 0)
        click.echo(f"{name} ({each.environment}) {'would be' if dry_run else 'was'} removed")
    what = "would be removed" if dry_run else "removed"
    click.echo(f"{counted(removed, 'environment')} {what}, {memory(freed)}")


def make(texts: Sequence[str], files: Sequence[Path], *, upgrade: bool) -> None:
    """Make the environment of some requirements ahead, or resolve them anew.

    Raises
    ------
    ValueError
        They are wrong.
    EnvironmentFailed
        It cannot be made.
    """
    parts = [Requirements.of_list(texts), *map(Requirements.of_file, files)]
    lease = acquire(Requirements.together(parts), upgrade=upgrade)
    try:
        click.echo(str(lease.environment.folder))
    finally:
        lease.release()
