"""Facts about the notebook: its session's name, its functions, its kernel's last run."""

from __future__ import annotations

import functools
import inspect
import os

from IPython.core.interactiveshell import InteractiveShell

from snakepit_kernel.ids import check_name, own_run_id
from snakepit_kernel.paths import NOTEBOOK_VARIABLE
from snakepit_kernel.processes.identity import ProcessIdentity
from snakepit_kernel.processes.run_registry import Registry
from snakepit_kernel.sessions.notebooks import OwnSession, find_own_session, name_of_path
from snakepit_kernel.store.store import open_store

SESSION_VARIABLE = "SNAKEPIT_SESSION"
"""Environment variable that names the session, whatever the notebook's path is."""

_VSCODE_NAME = "__vsc_ipynb_file__"  # VS Code sets it in the notebook's namespace,
_PAPERMILL_NAMES = ("PAPERMILL_OUTPUT_PATH", "PAPERMILL_INPUT_PATH")  # and with --inject-paths


class NotebookSession:
    """Finds the session of a notebook: once, since its kernel does not change notebooks.

    Parameters
    ----------
    shell
        The notebook's shell.
    """

    def __init__(self, shell: InteractiveShell) -> None:
        self._shell = shell
        self._found: dict[str, OwnSession] = {}  # by the path that was told

    def find(self) -> OwnSession:
        """Return the notebook's session, which stays the same when its kernel restarts.

        It is the first of these that exists: the value of the kernel's ``--session`` or of
        `SESSION_VARIABLE`; that of the notebook's file, which Jupyter Server and VS Code tell; one
        that the path makes which papermill tells; one made of the kernel's connection file, which
        a restart keeps; for a plain IPython, one made of this process.

        Raises
        ------
        ValueError
            The given name is not valid for a session.
        StoreError
            The store of sessions cannot be read or written.
        """
        app = getattr(getattr(self._shell, "kernel", None), "parent", None)
        given = getattr(app, "notebook_session", "") or os.environ.get(SESSION_VARIABLE, "")
        if given:
            return OwnSession(name=check_name("session", given))
        connection = getattr(app, "abs_connection_file", "")
        names = self._shell.user_ns
        path = os.environ.get(NOTEBOOK_VARIABLE) or names.get(_VSCODE_NAME)
        if path:
            return self._find_by_file(str(path), connection)
        path = next(filter(None, map(names.get, _PAPERMILL_NAMES)), None)
        if path or connection:
            return OwnSession(name=name_of_path(_absolute(str(path)) if path else connection))
        identity = str(ProcessIdentity.of(os.getpid())).replace(":", "-")
        return OwnSession(name=f"ipython-{identity}")

    def _find_by_file(self, path: str, connection: str) -> OwnSession:
        found = self._found.get(path)
        if found is None:
            found = find_own_session(open_store(), _absolute(path), connection)
            self._found[path] = found
        return found


@functools.cache
def _absolute(path: str) -> str:
    """Return an absolute path, cached so that it stays the same when a cell changes directory."""
    return os.path.abspath(path)  # noqa: PTH100 - no more than text


def functions_of(shell: InteractiveShell) -> list[str]:
    """Return the names of the functions that the notebook has defined or imported."""
    hidden = shell.user_ns_hidden  # IPython's own names
    return [
        name
        for name, value in shell.user_ns.items()
        if inspect.isfunction(value) and not name.startswith("_") and name not in hidden
    ]


def last_run_summary() -> str | None:
    """Describe in one line the user's processes that the restart of this kernel had to end.

    Returns None if there were none. Kernels, guardians and shells of this package do not count.
    """
    run_id = own_run_id()
    last = Registry().ended_before(run_id) if run_id is not None else None
    if last is None:
        return None
    report = last.report.of_user()
    return report.summary(" of the last run") if report.count else None
