"""Per-session namespace, working directory and environment of a worker.

A worker has one of each. It switches them when a call or cell of another session begins, and leaves
them in place at its end, because the next one is likely to be of the same session. A coroutine call
is switched back after each wait. Tasks and threads that a call has started are not: they see the
session of whatever runs in the main thread.
"""

from __future__ import annotations

import contextlib
import operator
import os
import signal
import sys
import types
from collections import defaultdict
from collections.abc import Callable, Coroutine, Generator, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

_REMOVED = "a directory that was removed"


@dataclass(frozen=True, slots=True, eq=False)
class ProcessState:
    """A session's working directory, and its environment as bytes."""

    directory: str
    environment: dict[bytes, bytes]


class SessionIsolation:
    """Switches the process between sessions, in the main thread of a worker.

    Attributes
    ----------
    current
        The session whose state is in place; None for anonymous work.
    """

    def __init__(self) -> None:
        self.current: str | None = None
        self._namespaces: ShellNamespaces | None = None
        self._initial: ProcessState | None = None
        self._last_state: ProcessState | None = None  # at the last switch
        self._states: dict[str | None, ProcessState] = {}  # of sessions that have changed it
        self._notice = ""
        self._forgotten = 0

    def begin(self) -> None:
        """Make the present working directory and environment the initial ones of sessions.

        Not used where calls run in several threads: they share those of the process.
        """
        self._initial = self._last_state = ProcessState(os.getcwd(), dict(_environment()))  # noqa: PTH109 - much faster

    def attach_shell(self, shell: InteractiveShell) -> None:
        """Include the namespace of a shell that has been built."""
        self._namespaces = ShellNamespaces(shell)
        self._namespaces.show(None, self.current)

    def sessions_with(self, name: str) -> list[str | None]:
        """Return the sessions whose cells have defined a name, None for anonymous work."""
        return [] if self._namespaces is None else self._namespaces.sessions_with(name)

    # -- changing ------------------------------------------------------------------------------

    def switch_to(self, session: str | None) -> None:
        """Put the state of a session in place."""
        if session != self.current:
            self._switch(session)

    def _switch(self, session: str | None) -> None:
        left = self._snapshot()
        wanted = self._states.get(session, self._initial)
        names = self._namespaces
        if wanted is left and (names is None or names.is_shown(session)):
            self.current = session
            return
        # An interrupt is for the call: a half-made switch would be saved as a session's state.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            if left is not None and wanted is not None:
                self._last_state = self._apply(left, wanted, session)
            if names is not None:
                names.show(self.current, session)
            self.current = session
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _snapshot(self) -> ProcessState | None:
        """Return the current session's state, and save it if it has changed."""
        last = self._last_state
        if last is None:
            return None
        try:
            directory = os.getcwd()  # noqa: PTH109 - much faster
        except FileNotFoundError:
            directory = _REMOVED
        environment = _environment()
        if directory == last.directory and environment == last.environment:
            return last
        left = self._states[self.current] = ProcessState(directory, dict(environment))
        return left

    def _apply(self, left: ProcessState, wanted: ProcessState, session: str | None) -> ProcessState:
        """Change directory and environment; return the state that was reached."""
        if left.environment is not wanted.environment:
            _change_environment(left.environment, wanted.environment)
        if left.directory == wanted.directory:
            return wanted
        try:
            os.chdir(wanted.directory)
        except OSError as error:
            assert self._initial is not None
            home = self._initial.directory
            with contextlib.suppress(OSError):  # that is gone as well
                os.chdir(home)
            self._notice = (
                f"the working directory of session {session!r} cannot be entered any more"
                f" ({error}); it is {home!r} from now on"
            )
            wanted = self._states[session] = ProcessState(home, wanted.environment)
        return wanted

    def print_notice(self) -> None:
        """Print, to the running call or cell, what the last switch could not restore."""
        if self._notice:
            notice, self._notice = self._notice, ""
            sys.stderr.write(f"{notice}\n")

    def within(
        self, session: str | None, make: Callable[[], Coroutine[Any, Any, Any]]
    ) -> Coroutine[Any, Any, Any]:
        """Return a coroutine each step of which runs in a session's state."""
        return _awaited(_SessionSteps(self, session, make))

    # -- what concerns all ---------------------------------------------------------------------

    @contextlib.contextmanager
    def for_all_sessions(self) -> Iterator[None]:
        """Apply what is changed in this block to all sessions, starting from the initial state.

        To be used where no interrupt can occur.
        """
        left, initial = self._snapshot(), self._initial
        if left is None or initial is None:
            yield
            return
        self._apply(left, initial, None)
        try:
            yield
        finally:
            now = ProcessState(os.getcwd(), dict(_environment()))  # noqa: PTH109
            self._initial = now
            self._update_environments(initial.environment, now.environment)
            mine = self._states.get(self.current, now)
            self._last_state = self._apply(now, mine, self.current)

    def _update_environments(self, before: dict[bytes, bytes], after: dict[bytes, bytes]) -> None:
        """Apply the changes of the initial environment to those that sessions have."""
        changed = {key: value for key, value in after.items() if before.get(key) != value}
        gone = before.keys() - after.keys()
        for session, state in self._states.items():
            kept = {k: v for k, v in state.environment.items() if k not in gone}
            self._states[session] = ProcessState(state.directory, {**kept, **changed})

    def forget(self, session: str, number: int) -> None:
        """Drop a session's state; a repeated message, known by its number, changes nothing."""
        if number <= self._forgotten:
            return
        self._forgotten = number
        if self.current == session:
            self._switch(None)
        self._states.pop(session, None)
        if self._namespaces is not None:
            self._namespaces.forget(session)


class NoIsolation(SessionIsolation):
    """No isolation, for calls that run in several threads: they share the process's state."""

    def switch_to(self, session: str | None) -> None:
        """Change nothing."""

    def within(
        self,
        session: str | None,  # noqa: ARG002
        make: Callable[[], Coroutine[Any, Any, Any]],
    ) -> Coroutine[Any, Any, Any]:
        """Return the coroutine unchanged."""
        return make()


class _SessionSteps:
    """Awaitable that puts a session's state in place before each step of a coroutine."""

    __slots__ = ("_isolation", "_make", "_session")

    def __init__(
        self,
        isolation: SessionIsolation,
        session: str | None,
        make: Callable[[], Coroutine[Any, Any, Any]],
    ) -> None:
        self._isolation = isolation
        self._session = session
        self._make = make

    def __await__(self) -> Generator[Any, Any, Any]:
        switch_to, session = self._isolation.switch_to, self._session
        switch_to(session)
        steps: Any = self._make().__await__()
        step, value = steps.send, None
        while True:
            switch_to(session)
            try:
                awaited = step(value)
            except StopIteration as end:
                return end.value
            try:
                value = yield awaited
                step = steps.send
            except BaseException as error:  # noqa: BLE001 - passed on to the awaited coroutine
                value, step = error, steps.throw


async def _awaited(steps: _SessionSteps) -> Any:
    return await steps


def _environment() -> dict[bytes, bytes]:
    """Return the environment as `os.environ` holds it; decoding it would take 50 times longer."""
    return os.environ._data  # type: ignore[attr-defined, no-any-return] # noqa: SLF001


def _change_environment(left: dict[bytes, bytes], wanted: dict[bytes, bytes]) -> None:
    now = _environment()
    for key in left.keys() - wanted.keys():
        os.unsetenv(key)
        now.pop(key, None)
    for key, value in wanted.items():
        if left.get(key) != value:
            os.putenv(key, value)
            now[key] = value


_SHELL_FIELDS = (
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
_HOOK_FIELDS = ("_", "__", "___")
_LAST_ERROR = ("last_type", "last_value", "last_traceback", "last_exc")

_of_shell = attrgetter(*_SHELL_FIELDS)
_of_hook = attrgetter(*_HOOK_FIELDS)


class SessionNamespace:
    """A session's part of a shell: namespace, history, counters, the last error.

    Parameters
    ----------
    shell
        The shell, which has this session's part in place.
    """

    def __init__(self, shell: InteractiveShell) -> None:
        self.keep(shell)

    def has(self, name: str) -> bool:
        """Whether a name is defined in it."""
        return name in self._of_shell[_SHELL_FIELDS.index("user_ns")]

    def keep(self, shell: InteractiveShell) -> None:
        """Save it from the shell, before another session's is put in place."""
        self._of_shell = _of_shell(shell)
        self._of_hook = _of_hook(shell.displayhook)
        self._flags = shell.compile.flags  # what `from __future__ import` has set
        self._traceback = getattr(shell.InteractiveTB, "tb", None)
        self._error = {name: vars(sys).pop(name) for name in _LAST_ERROR if name in vars(sys)}

    def show(self, shell: InteractiveShell) -> None:
        """Put it in place in the shell."""
        for name, value, shown in zip(_SHELL_FIELDS, self._of_shell, _of_shell(shell), strict=True):
            if value is not shown:
                setattr(shell, name, value)
        for name, value in zip(_HOOK_FIELDS, self._of_hook, strict=True):
            setattr(shell.displayhook, name, value)
        shell.compile.flags = self._flags
        shell.InteractiveTB.tb = self._traceback
        vars(sys).update(self._error)
        shell.set_completer_frame()  # type: ignore[no-untyped-call]
        sys.modules["__main__"] = shell.user_module


class ShellNamespaces:
    """Switches a worker's shell between the namespaces of sessions.

    A session without names gets an empty namespace, which becomes its own when it has put something
    there: sessions that only call tools cost nothing.

    Parameters
    ----------
    shell
        The shell. Its present namespace is that of anonymous work; each session begins with a copy.
    """

    def __init__(self, shell: InteractiveShell) -> None:
        self._shell = shell
        self._initial = dict(shell.user_ns)  # with what the user's startup files have defined
        self._initial_hidden = dict(shell.user_ns_hidden)
        self._flags = shell.compile.flags
        self._shown = SessionNamespace(shell)
        self._known: dict[str | None, SessionNamespace] = {None: self._shown}
        self._empty: SessionNamespace | None = None
        self._empty_values: list[Any] = []

    def is_shown(self, session: str | None) -> bool:
        """Whether a session's namespace is in place, without names of another session in it."""
        wanted = self._known.get(session, self._empty)
        return wanted is self._shown and not self._is_empty_used()

    def show(self, before: str | None, session: str | None) -> None:
        """Put a session's namespace in place, after that of another one."""
        if self._is_empty_used():
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

    def sessions_with(self, name: str) -> list[str | None]:
        """Return the sessions in whose namespace a name is defined."""
        return [session for session, names in self._known.items() if names.has(name)]

    def forget(self, session: str) -> None:
        """Drop the namespace of a session, which is not in place."""
        self._known.pop(session, None)

    def _is_empty_used(self) -> bool:
        """Whether the empty namespace is in place and has been used."""
        if self._shown is not self._empty:
            return False
        shell, values = self._shell, self._shell.user_ns.values()
        return (
            shell.execution_count > 1
            or shell.last_execution_result is not None
            or len(values) != len(self._empty_values)
            or not all(map(operator.is_, values, self._empty_values))
        )

    def _make_empty(self) -> SessionNamespace:
        """Put a new, unused namespace in place."""
        from IPython.core.history import HistoryManager

        shell = self._shell
        module = types.ModuleType("__main__", self._initial.get("__doc__"))
        names = vars(module)
        names.update(self._initial)
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
        shell.user_ns_hidden = {**self._initial_hidden, **own}
        shell.ns_table = {**shell.ns_table, "user_global": names, "user_local": names}
        shell._main_mod_cache = {}  # noqa: SLF001 - as its own constructor does
        shell.execution_count = 1
        shell.last_execution_result = None
        shell.last_execution_succeeded = True
        hook = shell.displayhook
        hook._ = hook.__ = hook.___ = ""
        names.update(dict.fromkeys(_HOOK_FIELDS, ""))
        shell.compile.flags = self._flags
        shell.InteractiveTB.tb = None
        shell.set_completer_frame()  # type: ignore[no-untyped-call]
        sys.modules["__main__"] = module
        self._empty = SessionNamespace(shell)
        self._empty_values = list(names.values())
        return self._empty
