"""What a session finds around it in a worker, and finds again: names, directory, environment.

A worker has one of each. It changes them when work of another session begins, and leaves them at
its end, because the next work is likely to be of the same session. Work that awaits finds its own
again after each wait. Tasks and threads that it has started beside itself do not: they find those
of whatever runs in the main thread.
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


if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


_REMOVED = "a directory that was removed"


@dataclass(frozen=True, slots=True, eq=False)
class ProcessState:
    """A working directory, and an environment as bytes."""

    directory: str
    environment: dict[bytes, bytes]


class SessionIsolation:
    """Changes what belongs to a session, in the main thread of a worker.

    Attributes
    ----------
    current
        The session that the surroundings are of; None for anonymous work.
    """

    def __init__(self) -> None:
        self.current: str | None = None
        self._names: ShellNames | None = None
        self._first: ProcessState | None = None
        self._here: ProcessState | None = None  # where the current session began
        self._places: dict[
            str | None, ProcessState
        ] = {}  # of sessions that are not where they began
        self._notice = ""
        self._forgotten = 0

    def begin(self) -> None:
        """Have sessions find the working directory and environment of this moment.

        Not where calls run in several threads: there they stay those of the process.
        """
        self._first = self._here = ProcessState(os.getcwd(), dict(_environment()))  # noqa: PTH109 - much faster

    def adopt(self, shell: InteractiveShell) -> None:
        """Take in the shell, when it is there."""
        self._names = ShellNames(shell)
        self._names.show(None, self.current)

    # -- changing ------------------------------------------------------------------------------

    def enter(self, session: str | None) -> None:
        """Go to a session's surroundings."""
        if session != self.current:
            self._change(session)

    def _change(self, session: str | None) -> None:
        left = self._look()
        wanted = self._places.get(session, self._first)
        names = self._names
        if wanted is left and (names is None or names.is_shown(session)):
            self.current = session
            return
        # An interrupt is for the call: what is half changed would be kept as somebody's own.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            if left is not None and wanted is not None:
                self._here = self._go(left, wanted, session)
            if names is not None:
                names.show(self.current, session)
            self.current = session
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def _look(self) -> ProcessState | None:
        """Return where the current session is, and keep that if it has changed."""
        here = self._here
        if here is None:
            return None
        try:
            directory = os.getcwd()  # noqa: PTH109 - much faster
        except FileNotFoundError:
            directory = _REMOVED
        environment = _environment()
        if directory == here.directory and environment == here.environment:
            return here
        left = self._places[self.current] = ProcessState(directory, dict(environment))
        return left

    def _go(self, left: ProcessState, wanted: ProcessState, session: str | None) -> ProcessState:
        """Change directory and environment; return where that has led."""
        if left.environment is not wanted.environment:
            _change_environment(left.environment, wanted.environment)
        if left.directory == wanted.directory:
            return wanted
        try:
            os.chdir(wanted.directory)
        except OSError as error:
            assert self._first is not None
            home = self._first.directory
            with contextlib.suppress(OSError):  # that is gone as well
                os.chdir(home)
            self._notice = (
                f"the working directory of session {session!r} cannot be entered any more"
                f" ({error}); it is {home!r} from now on"
            )
            wanted = self._places[session] = ProcessState(home, wanted.environment)
        return wanted

    def tell(self) -> None:
        """Tell the running call or cell what has changed without its doing."""
        if self._notice:
            notice, self._notice = self._notice, ""
            sys.stderr.write(f"{notice}\n")

    def within(
        self, session: str | None, make: Callable[[], Coroutine[Any, Any, Any]]
    ) -> Coroutine[Any, Any, Any]:
        """Return a coroutine that awaits in a session's surroundings, whoever runs in between."""
        return _awaited(_Steps(self, session, make))

    # -- what concerns all ---------------------------------------------------------------------

    @contextlib.contextmanager
    def for_all(self) -> Iterator[None]:
        """Go where the worker began, and let all sessions have what is changed there meanwhile.

        To be used where no interrupt comes.
        """
        left, first = self._look(), self._first
        if left is None or first is None:
            yield
            return
        self._go(left, first, None)
        try:
            yield
        finally:
            now = ProcessState(os.getcwd(), dict(_environment()))  # noqa: PTH109
            self._first = now
            self._renew(first.environment, now.environment)
            mine = self._places.get(self.current, now)
            self._here = self._go(now, mine, self.current)

    def _renew(self, before: dict[bytes, bytes], after: dict[bytes, bytes]) -> None:
        """Change the environments that sessions have in the way that one has changed."""
        news = {key: value for key, value in after.items() if before.get(key) != value}
        gone = before.keys() - after.keys()
        for session, place in self._places.items():
            kept = {k: v for k, v in place.environment.items() if k not in gone}
            self._places[session] = ProcessState(place.directory, {**kept, **news})

    def forget(self, session: str, number: int) -> None:
        """Drop what a session has here; a repetition of what was told before changes nothing."""
        if number <= self._forgotten:
            return
        self._forgotten = number
        if self.current == session:
            self._change(None)
        self._places.pop(session, None)
        if self._names is not None:
            self._names.forget(session)


class NoIsolation(SessionIsolation):
    """For calls that run in several threads: they share what the process has."""

    def enter(self, session: str | None) -> None:
        """Change nothing."""

    def within(
        self,
        session: str | None,  # noqa: ARG002
        make: Callable[[], Coroutine[Any, Any, Any]],
    ) -> Coroutine[Any, Any, Any]:
        """Return what is to be awaited as it is."""
        return make()


class _Steps:
    """Awaits something, and goes to a session's surroundings before each of its steps."""

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
        enter, session = self._isolation.enter, self._session
        enter(session)
        steps: Any = self._make().__await__()
        step, value = steps.send, None
        while True:
            enter(session)
            try:
                awaited = step(value)
            except StopIteration as end:
                return end.value
            try:
                value = yield awaited
                step = steps.send
            except BaseException as error:  # noqa: BLE001 - it is for whom we stand in front of
                value, step = error, steps.throw


async def _awaited(steps: _Steps) -> Any:
    return await steps


def _environment() -> dict[bytes, bytes]:
    """Return the environment as `os.environ` holds it; to decode it would take 50 times longer."""
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


class SessionNames:
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
        self._shown = SessionNames(shell)
        self._known: dict[str | None, SessionNames] = {None: self._shown}
        self._empty: SessionNames | None = None
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

    def _make_empty(self) -> SessionNames:
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
        self._empty = SessionNames(shell)
        self._empty_values = list(names.values())
        return self._empty
