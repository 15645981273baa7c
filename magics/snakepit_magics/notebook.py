"""What the notebook is: its path names its session, its kernel's run knows the one before."""

from __future__ import annotations

import hashlib
import inspect
import os
import re
from pathlib import PurePath

from IPython.core.interactiveshell import InteractiveShell

from snakepit_kernel.ids import own_run_id
from snakepit_kernel.processes.registry import Registry

_PATH_VARIABLE = "JPY_SESSION_NAME"  # jupyter_server puts the notebook's path there
_VSCODE_NAME = "__vsc_ipynb_file__"  # VS Code puts it among the notebook's variables


def notebook_session(shell: InteractiveShell) -> str:
    """Return the name of the notebook's session: from its path where Jupyter tells, else ``main``.

    The name is made of the file's own, for people, and of a digest of the whole path, so that two
    notebooks of one name are two sessions.
    """
    path = os.environ.get(_PATH_VARIABLE) or shell.user_ns.get(_VSCODE_NAME)
    if not path:
        return "main"
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", PurePath(str(path)).stem).strip("-._") or "notebook"
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    return f"{stem[:50]}-{digest}"


def functions_of(shell: InteractiveShell) -> list[str]:
    """Return the names of the functions that the notebook has defined or imported."""
    hidden = shell.user_ns_hidden  # what IPython itself has put there
    return [
        name
        for name, value in shell.user_ns.items()
        if inspect.isfunction(value) and not name.startswith("_") and name not in hidden
    ]


def told_of_last_run() -> str | None:
    """Say in one line what was ended when this kernel was restarted; None when nothing was."""
    run_id = own_run_id()
    last = Registry().ended_before(run_id) if run_id is not None else None
    return last.report.told(" of the last run") if last is not None and last.report.count else None
