"""What the notebook is: its path names its session, its kernel's run knows the one before."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import re
from pathlib import PurePath

from IPython.core.interactiveshell import InteractiveShell

from snakepit_kernel.ids import check_name, own_run_id
from snakepit_kernel.processes.identity import ProcessIdentity
from snakepit_kernel.processes.run_registry import Registry

SESSION_VARIABLE = "SNAKEPIT_SESSION"
"""Environment variable that names the session, whatever the notebook's path is."""

_PATH_VARIABLE = "JPY_SESSION_NAME"  # jupyter_server puts the notebook's path there
_PATH_NAMES = (
    "__vsc_ipynb_file__",  # VS Code puts it among the notebook's variables,
    "PAPERMILL_OUTPUT_PATH",  # and papermill with --inject-paths
    "PAPERMILL_INPUT_PATH",
)


def notebook_session(shell: InteractiveShell) -> str:
    """Return the name of the notebook's session, the same again when its kernel has restarted.

    It is, the first that there is: what ``--session`` of the kernel or `SESSION_VARIABLE` say; a
    name made of the notebook's path, which Jupyter Server, VS Code and papermill tell; the kernel's
    connection file, which a restart keeps; for a plain IPython, this process.

    Raises
    ------
    ValueError
        What was given is no name of a session.
    """
    app = getattr(getattr(shell, "kernel", None), "parent", None)
    given = getattr(app, "notebook_session", "") or os.environ.get(SESSION_VARIABLE, "")
    if given:
        return check_name("session", given)
    named = (shell.user_ns.get(name) for name in _PATH_NAMES)
    path = os.environ.get(_PATH_VARIABLE) or next(filter(None, named), None)
    if path:
        return _name_of(_absolute(str(path)))
    connection = getattr(app, "abs_connection_file", "")
    if connection:
        return _name_of(connection)
    return f"ipython-{str(ProcessIdentity.of(os.getpid())).replace(':', '-')}"


@functools.cache
def _absolute(path: str) -> str:
    """Return a whole path, the same again when a cell has changed the directory."""
    return os.path.abspath(path)  # noqa: PTH100 - no more than text


def _name_of(path: str) -> str:
    """Make a name of a path: the file's own, and a digest, for others may be named like it."""
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", PurePath(path).stem).strip("-._") or "notebook"
    digest = hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{stem[:50]}-{digest}"


def functions_of(shell: InteractiveShell) -> list[str]:
    """Return the names of the functions that the notebook has defined or imported."""
    hidden = shell.user_ns_hidden  # what IPython itself has put there
    return [
        name
        for name, value in shell.user_ns.items()
        if inspect.isfunction(value) and not name.startswith("_") and name not in hidden
    ]


def last_run_summary() -> str | None:
    """Say in one line what was ended when this kernel was restarted; None when nothing was."""
    run_id = own_run_id()
    last = Registry().ended_before(run_id) if run_id is not None else None
    return (
        last.report.summary(" of the last run") if last is not None and last.report.count else None
    )
