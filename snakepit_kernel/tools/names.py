"""The names of each session in one IPython shell: which of them it shows."""

from __future__ import annotations

import operator
import sys
import types
from collections import defaultdict
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

_SHELLS = (
    "user_module",
    "user_ns",
    "user_ns_hidden",
    "ns_table",
    "_main_mod_cache",
    "history_manager",
    "execution_count",
    "last_execution_result",
    "last_execution_succeeded",
)
_HOOKS = ("_", "__", "___")
_LAST_ERROR = ("last_type", "last_value", "last_traceback", "last_exc")

_of_shell = attrgetter(*_SHELLS)
_of_hook = attrgetter(*_HOOKS)


class Names:
    """What a shell has of one session: namespace, history, counters, the last error.

    Parameters
    ----------
    shell
        The shell, which shows it.
    """

    def __init__(self, shell: InteractiveShell) -> None:
        self.keep(shell)

    def keep(self, shell: InteractiveShell) -> None:
        """Take it from the shell, which is to show something else."""
        self._of_shell = _of_shell(shell)
        self._of_hook = _of_hook(shell.displayhook)
        self._flags = shell.compile.flags  # what `from __future__ import` has set
        self._traceback = getattr(shell.InteractiveTB, "tb", None)
        self._error = {name: vars(sys).pop(name) for name in _LAST_ERROR if name in vars(sys)}

    def show(self, shell: InteractiveShell) -> None:
        """Have the shell show it."""
        for name, value, shown in zip(_SHELLS, self._of_shell, _of_shell(shell), strict=True):
            if value is not shown:
                setattr(shell, name, value)
        for name, value in zip(_HOOKS, self._of_hook, strict=True):
            setattr(shell.displayhook, name, value)
        shell.compile.flags = self._flags
        shell.InteractiveTB.tb = self._traceback
        vars(sys).update(self._error)
        shell.set_completer_frame()  # type: ignore[no-untyped-call]
        sys.modules["__main__"] = shell.user_module


class ShellNames:
    """Has the shell of a worker show the names of one session at a time.

    A session without names is shown an empty namespace, which becomes its own when it has put
    something there: sessions that only call tools cost nothing.

    Parameters
    ----------
    shell
        The shell. What it has now is that of anonymous work; each session begins with a copy.
    """

    def __init__(self, shell: InteractiveShell) -> None:
        self._shell = shell
        self._first = dict(shell.user_ns)  # with what the user's startup files have defined
        self._first_hidden = dict(shell.user_ns_hidden)
        self._flags = shell.compile.flags
        self._shown = Names(shell)
        self._known: dict[str | None, Names] = {None: self._shown}
        self._empty: Names | None = None
        self._empty_values: list[Any] = []

    def is_shown(self, session: str | None) -> bool:
        """Whether a session's names are shown, and nobody else's are mixed with them."""
        wanted = self._known.get(session, self._empty)
        return wanted is self._shown and not self._is_taken()

    def show(self, before: str | None, session: str | None) -> None:
        """Show a session's names, after those of another one."""
        if self._is_taken():
            self._known[before] = self._shown
            self._empty = None
        wanted = self._known.get(session, self._empty)
        if wanted is self._shown:
            return
        self._shown.keep(self._shell)
        if wanted is None:
            wanted = self._make_empty()
        else:
            wanted.show(self._shell)
        self._shown = wanted

    def forget(self, session: str) -> None:
        """Drop a session's names, which are not shown."""
        self._known.pop(session, None)

    def _is_taken(self) -> bool:
        """Whether something was put into the empty namespace."""
        if self._shown is not self._empty:
            return False
        shell, values = self._shell, self._shell.user_ns.values()
        return (
            shell.execution_count > 1
            or shell.last_execution_result is not None
            or len(values) != len(self._empty_values)
            or not all(map(operator.is_, values, self._empty_values))
        )

    def _make_empty(self) -> Names:
        """Have the shell show a namespace that nobody has used."""
        from IPython.core.history import HistoryManager

        shell = self._shell
        module = types.ModuleType("__main__", self._first.get("__doc__"))
        names = vars(module)
        names.update(self._first)
        history = shell.history_manager = HistoryManager(shell=shell, parent=shell)
        history.outputs = defaultdict(list)  # else IPython has one for all
        own = {
            "_ih": history.input_hist_parsed,
            "In": history.input_hist_parsed,
            "_oh": history.output_hist,
            "Out": history.output_hist,
            "_dh": history.dir_hist,
        }
        names.update(own)
        shell.user_module = module
        shell.user_ns = names
        shell.user_ns_hidden = {**self._first_hidden, **own}
        shell.ns_table = {**shell.ns_table, "user_global": names, "user_local": names}
        shell._main_mod_cache = {}  # noqa: SLF001 - as its own constructor does
        shell.execution_count = 1
        shell.last_execution_result = None
        shell.last_execution_succeeded = True
        hook = shell.displayhook
        hook._ = hook.__ = hook.___ = ""
        names.update(dict.fromkeys(_HOOKS, ""))
        shell.compile.flags = self._flags
        shell.InteractiveTB.tb = None
        shell.set_completer_frame()  # type: ignore[no-untyped-call]
        sys.modules["__main__"] = module
        self._empty = Names(shell)
        self._empty_values = list(names.values())
        return self._empty
