"""Module search path of a worker: that of its pool's owner, in the same order."""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
import types
from collections.abc import Sequence

from ..environments.marker import is_environment


class SearchPath:
    """Keeps ``sys.path`` equal to the owner's, plus the worker's own entries.

    Entries of its environment (``PYTHONPATH``), and those its code has put in front, stay in front;
    Python's own modules and packages, where they differ from the owner's, stay at the end.
    """

    def __init__(self) -> None:
        own = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib")})
        self._own = [entry for entry in sys.path if entry.startswith(own)]
        self._followed: list[str] = list(self._own)

    def follow(self, entries: Sequence[str]) -> None:
        """Adopt the owner's present entries."""
        wanted = list(entries)
        if "" not in wanted:  # a script has none; a worker searches where IPython does
            wanted.insert(_before_packages(wanted), "")
        if wanted == self._followed and sys.path == wanted:
            return
        before, after = self._added()
        kept = set(wanted)
        sys.path[:] = [
            *(entry for entry in before if entry not in kept),
            *wanted,
            *(entry for entry in after if entry not in kept),
            *(entry for entry in self._own if entry not in kept),
        ]
        self._followed = wanted
        importlib.invalidate_caches()

    def _added(self) -> tuple[list[str], list[str]]:
        """Return the entries that are not the owner's: those before the owner's, and the others."""
        followed = set(self._followed)
        is_followed = [entry in followed for entry in sys.path]
        first = is_followed.index(True) if True in is_followed else len(is_followed)
        after = [entry for entry in sys.path[first:] if entry not in followed]
        return sys.path[:first], after


def _before_packages(entries: Sequence[str]) -> int:
    """Return the index after Python's own modules, and before packages."""
    places = [
        number
        for number, entry in enumerate(entries)
        if os.path.basename(entry) in {"site-packages", "dist-packages"}  # noqa: PTH119
    ]
    return min(places, default=len(entries))


def add_import_advice(error: BaseException, worker: str) -> None:
    """Add advice to the error of a call that needs what a worker cannot import."""
    if isinstance(error, ModuleNotFoundError) and is_environment(sys.prefix):
        error.add_note(
            f"worker {worker} runs in the environment of its pool's requirements, and has found no "
            f"{error.name!r} there: add the package that has this module to the requirements. "
            "Packages of the notebook's own environment are not there; modules in folders of its "
            "sys.path are."
        )
    elif isinstance(error, ModuleNotFoundError):
        error.add_note(
            f"worker {worker} looks for modules where the notebook does (sys.path), and has found "
            f"no {error.name!r} there. What was imported from a folder that sys.path does not name "
            "any more, or exists in the notebook's memory alone, is not found: add the folder to "
            "sys.path, or have the module travel by value (cloudpickle.register_pickle_by_value)."
        )
    elif isinstance(error, AttributeError) and _is_missing_in_module(error):
        error.add_note(
            f"worker {worker} has the module as it was when it was imported there. If that was "
            "edited since, pool.reload() (%snakepit reload) imports it again; a pool with "
            "autoreload=True follows each change."
        )


def _is_missing_in_module(error: AttributeError) -> bool:
    """Whether a pickle names an attribute that a module in this process does not have."""
    return isinstance(error.obj, types.ModuleType) or str(error).startswith("Can't get attribute")
