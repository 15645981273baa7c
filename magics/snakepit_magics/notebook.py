"""Facts about the notebook: its session's name, its functions, its kernel's last run."""

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

_PATH_VARIABLE = "JPY_SESSION_NAME"  # jupyter_server sets it to the notebook's path
_PATH_NAMES = (
    "__vsc_ipynb_file__",  # VS Code sets it in the notebook's namespace,
    "PAPERMILL_OUTPUT_PATH",  # and papermill with --inject-paths
    "PAPERMILL_INPUT_PATH",
)


def notebook_session(shell: InteractiveShell) -> str:
    """Return the name of the notebook's session, which stays the same when its kernel restarts.

    It is the first of these that exists: the value of the kernel's ``--session`` or of
    `SESSION_VARIABLE`; a name made of the notebook's path, which Jupyter Server, VS Code and
    papermill provide; one made of the kernel's connection file, which a restart keeps; for a plain
    IPython, one made of this process.

    Raises
    ------
    ValueError
        The given name is not valid for a session.
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
    """Return an absolute path, cached so that it stays the same when a cell changes directory."""
    return os.path.abspath(path)  # noqa: PTH100 - no more than text


def _name_of(path: str) -> str:
    """Make a session name of a path: the file's stem, and a digest to make it unique."""
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", PurePath(path).stem).strip("-._") or "notebook"
    digest = hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{stem[:50]}-{digest}"


def functions_of(shell: InteractiveShell) -> list[str]:
    """Return the names of the functions that the notebook has defined or imported."""
    hidden = shell.user_ns_hidden  # IPython's own names
    return [
        name
        for name, value in shell.user_ns.items()
        if inspect.isfunction(value) and not name.startswith("_") and name not in hidden
    ]


def last_run_summary() -> str | None:
    """Describe in one line what the restart of this kernel had to end; None if nothing."""
    run_id = own_run_id()
    last = Registry().ended_before(run_id) if run_id is not None else None
    return (
        last.report.summary(" of the last run") if last is not None and last.report.count else None
    )
