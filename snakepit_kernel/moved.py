"""Import hook for old module names, which pickles of earlier versions refer to."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

MOVED: Final = {
    "snakepit_kernel.attempts": "snakepit_kernel.call_details",
    "snakepit_kernel.pool.observing.timeline": "snakepit_kernel.pool.monitoring.timeline",
    "snakepit_kernel.pool.recovery.policies": "snakepit_kernel.pool.policies",
    "snakepit_kernel.pool.workers.limits": "snakepit_kernel.pool.resources.limits",
    "snakepit_kernel.processes.keeping": "snakepit_kernel.processes.keep",
    "snakepit_kernel.processes.report": "snakepit_kernel.processes.end_report",
    "snakepit_kernel.sessions.portable": "snakepit_kernel.sessions.exports",
}
"""The present name of each module that users' pickles may refer to."""

_FOLDERS: Final = {old.rpartition(".")[0] for old in MOVED}


class MovedModules:
    """Finder in `sys.meta_path` that finds moved modules by their old names, after all others.

    It derives from no class of `importlib.abc`: importing that takes longer than this package.
    """

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        """Return the spec of a moved module; None for every other one."""
        if name in MOVED or name in _FOLDERS:
            loader: Any = self
            return ModuleSpec(name, loader, is_package=name in _FOLDERS)
        return None

    def create_module(self, spec: ModuleSpec) -> None:
        """Let the import system create the module."""

    def exec_module(self, module: ModuleType) -> None:
        """Forward attributes of the module to the present one."""
        if module.__name__ in MOVED:
            present = importlib.import_module(MOVED[module.__name__])
            module.__getattr__ = partial(getattr, present)  # type: ignore[method-assign]


def find_moved_modules() -> None:
    """Make old names importable in this process."""
    sys.meta_path.append(MovedModules())
