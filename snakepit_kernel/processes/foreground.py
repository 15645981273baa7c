"""Foreground commands of a cell or call: those it waits for, which an interrupt ends as well.

Jupyter interrupts the whole process group of a kernel, and with it everything that the notebook has
left in the background. Ours interrupts the kernel alone. So the kernel itself has to know which
command the interrupted code is waiting for, and ends that command with all that it has started.

The usual functions that wait for a command are wrapped here so that they record it. Code that polls
a process now and then, or waits for one that an earlier cell has started, has no foreground command
in this sense.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any
from weakref import ref

from .identity import ProcessIdentity, all_children, living_descendants
from .tags import is_kept

INTERRUPT_PATIENCE = 1.0
"""Seconds that a command has to end after the first signal, which is SIGINT unless it ignores that;
then it gets SIGTERM."""

GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL, as at the end of a run."""

OWN_INTERRUPT_PATIENCE = 0.02
"""Seconds that code which interrupts its command itself has to do so first."""

POLL_INTERVAL = 0.02
"""Seconds between checks whether all are gone: the end of a grandchild is no event."""

_READERS = ("read", "readline", "readexactly", "readuntil")


class Foreground:
    """The foreground commands of one cell or call.

    Attributes
    ----------
    interrupts
        How often it was interrupted.
    is_unused
        Whether no code has looked it up yet: then the next call may reuse it.
    """

    def __init__(self) -> None:
        self.interrupts = 0
        self.is_unused = True
        self._thread = threading.get_ident()
        self._awaited: list[ProcessIdentity] = []
        self._before: set[int] | None = None  # our children before `awaiting_all`; later ones count
        self._interrupts_itself = False
        self._started: list[ProcessIdentity] | None = None

    @property
    def is_here(self) -> bool:
        """Whether this is the thread that it runs in."""
        return threading.get_ident() == self._thread

    @contextlib.contextmanager
    def awaiting(self, pid: int) -> Iterator[None]:
        """Mark a process as waited for inside the block."""
        identity = ProcessIdentity.of(pid)
        if identity is None:
            yield
            return
        try:
            self._awaited.append(identity)
            yield
        finally:
            with contextlib.suppress(ValueError):  # an interrupt came before it was added
                self._awaited.remove(identity)

    @contextlib.contextmanager
    def awaiting_started(self) -> Iterator[None]:
        """Mark every process that :mod:`subprocess` starts inside the block as waited for."""
        outer, self._started = self._started, []
        try:
            yield
        finally:
            for identity in self._started:
                with contextlib.suppress(ValueError):
                    self._awaited.remove(identity)
            self._started = outer

    def note_start(self, pid: int) -> None:
        """Record a process that was just started."""
        if self._started is not None and (identity := ProcessIdentity.of(pid)) is not None:
            self._started.append(identity)
            self._awaited.append(identity)

    @contextlib.contextmanager
    def awaiting_all(self, *, interrupts_itself: bool) -> Iterator[None]:
        """Mark every child that appears inside the block as waited for.

        Parameters
        ----------
        interrupts_itself
            Whether the code that starts them also interrupts them itself.
        """
        outer = self._before, self._interrupts_itself
        try:
            self._before = self._before or {c.pid for c in all_children().get(os.getpid(), ())}
            self._interrupts_itself = interrupts_itself
            yield
        finally:
            self._before, self._interrupts_itself = outer

    def end(self, pid: int) -> None:
        """Interrupt a process."""
        with self.awaiting(pid):
            self._interrupt()

    def interrupt(self) -> None:
        """Interrupt the foreground commands; a thread ends those that ignore it.

        Called by signal handlers.
        """
        self.interrupts += 1
        self.is_unused = False
        if self._awaited or self._before is not None:
            self._interrupt()

    def _interrupt(self) -> None:
        children = all_children()
        roots = {identity.pid: identity for identity in self._awaited}
        if self._before is not None:
            for child in children.get(os.getpid(), ()):
                if child.pid not in self._before:
                    roots[child.pid] = ProcessIdentity(child.pid, child.start_time)
        tree = {root for root in roots.values() if root.is_alive()}
        for root in list(tree):
            tree |= _below(root, children)
        tree = {identity for identity in tree if not is_kept(identity.pid)}
        if tree:
            self_interrupted = set(roots.values()) if self._interrupts_itself else set()
            threading.Thread(
                target=_end, args=(tree, self_interrupted), name="snakepit-interrupt"
            ).start()


_foreground: ContextVar[Foreground | None] = ContextVar("snakepit_foreground", default=None)


def _current() -> Foreground | None:
    foreground = _foreground.get()
    if foreground is not None:
        foreground.is_unused = False
    return foreground


begin = _foreground.set
"""Assign the code of the current context to a cell or call."""

leave = _foreground.reset
"""Undo `begin`, given its token."""


def is_below(function: Callable[..., Any]) -> bool:
    """Whether a function is on the stack of the caller, which may be a signal handler."""
    code = function.__code__
    frame = sys._getframe(1)  # noqa: SLF001 - its public twins read source files
    while frame.f_back is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back
    return False


def _below(root: ProcessIdentity, children: Any = None) -> set[ProcessIdentity]:
    return {
        ProcessIdentity(status.pid, status.start_time)
        for status in living_descendants(root.pid, children)
    }


def _end(tree: set[ProcessIdentity], self_interrupted: set[ProcessIdentity]) -> None:
    """Interrupt processes, then terminate those that ignore it and all their descendants.

    Parameters
    ----------
    tree
        The processes.
    self_interrupted
        Those among them that the code which started them interrupts.
    """
    if self_interrupted:
        time.sleep(OWN_INTERRUPT_PATIENCE)
    for identity in _parents_first(tree - self_interrupted):
        _send_signal(
            identity, signal.SIGTERM if _ignores_interrupts(identity.pid) else signal.SIGINT
        )
    for signum, patience in ((signal.SIGTERM, INTERRUPT_PATIENCE), (signal.SIGKILL, GRACE)):
        until = time.monotonic() + patience
        while tree := {identity for identity in tree if identity.is_alive()}:
            if time.monotonic() > until:
                break
            time.sleep(POLL_INTERVAL)
        for identity in list(tree):
            tree |= _below(identity)
        for identity in _parents_first(tree):
            _send_signal(identity, signum)


def _parents_first(tree: set[ProcessIdentity]) -> list[ProcessIdentity]:
    """Sort processes by start time.

    A shell whose command ends before the shell itself is signalled would start its next command,
    which could no longer be found below a shell that has ended.
    """
    return sorted(tree, key=lambda identity: (identity.start_time, identity.pid))


def _send_signal(identity: ProcessIdentity, signum: int) -> None:
    with contextlib.suppress(PermissionError):  # a set-uid program of another user
        identity.signal(signum)
        identity.signal(signal.SIGCONT)


def _ignores_interrupts(pid: int) -> bool:
    """Whether a process ignores SIGINT, as the background jobs of a shell do."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:  # noqa: PTH123
            content = file.read()
    except OSError:
        return False
    ignored = content.partition(b"SigIgn:")[2].split(None, 1)
    return bool(ignored) and bool(int(ignored[0], 16) >> (signal.SIGINT - 1) & 1)


# -- wrapped functions -----------------------------------------------------------------------------


def reraising_interrupts(
    function: Callable[..., Any], *, interrupts_itself: bool = False
) -> Callable[..., Any]:
    """Wrap a function that runs a command so that it raises KeyboardInterrupt when interrupted.

    IPython's own treat an interrupt as the command's alone, and go on, or raise another error.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        foreground = _current()
        if foreground is None or not foreground.is_here:
            return function(*args, **kwargs)
        before = foreground.interrupts
        try:
            with foreground.awaiting_all(interrupts_itself=interrupts_itself):
                value = function(*args, **kwargs)
        except Exception:
            if foreground.interrupts != before:
                raise KeyboardInterrupt from None
            raise
        if foreground.interrupts != before:
            raise KeyboardInterrupt
        return value

    return run


def install() -> None:
    """Wrap the usual functions that wait for a command, in this process."""
    if os.system is _system:
        return
    os.system = _system
    popen: Any = subprocess.Popen
    module: Any = subprocess
    module.run = _wrap_run(subprocess.run)
    module.call = _wrap_run(subprocess.call)
    popen.__init__ = _wrap_popen_init(popen.__init__)
    popen.wait = _wrap_wait(popen.wait)
    popen.communicate = _wrap_wait(popen.communicate)
    process: Any = asyncio.subprocess.Process
    process.__init__ = _wrap_async_init(process.__init__)
    process.wait = _wrap_async_wait(process.wait)


def _system(command: Any) -> int:
    """Execute the command in a subshell."""
    # The C library's function ignores SIGINT while it waits: an interrupt would be lost.
    sys.audit("os.system", command)
    words: list[str | bytes] = ["sh", "-c", os.fsencode(command)]
    status = subprocess.call(words, executable="/bin/sh", close_fds=False, restore_signals=False)  # noqa: S603 - the user's own os.system
    return -status if status < 0 else status << 8


_system.__name__ = _system.__qualname__ = "system"
_system.__module__ = "os"


def _foreground_of(process: Any) -> Foreground | None:
    """Return the current cell or call if it has started a process itself."""
    foreground = _current()
    return (
        foreground
        if foreground is not None and process.__dict__.get("_snakepit_of") is foreground
        else None
    )


def _wrap_run(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        foreground = _current()
        if foreground is None or not foreground.is_here:
            return function(*args, **kwargs)
        with foreground.awaiting_started():
            return function(*args, **kwargs)

    return run


def _wrap_popen_init(function: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(function)
    def start(self: Any, *args: Any, **kwargs: Any) -> None:
        foreground = _current()
        try:
            function(self, *args, **kwargs)
        except KeyboardInterrupt:
            pid = self.__dict__.get("pid")
            if pid and foreground is not None and foreground.is_here:  # it runs, unknown to others
                foreground.end(pid)
            raise
        if foreground is not None and foreground.is_here:
            self._snakepit_of = foreground
            foreground.note_start(self.pid)
            for stream in (self.stdout, self.stderr):
                if stream is not None:
                    _wrap_reads(foreground, self.pid, stream)

    return start


def _wrap_reads(foreground: Foreground, pid: int, stream: Any) -> None:
    """Treat reading a command's output as waiting for that command."""
    raw = getattr(stream, "buffer", stream)
    raw = getattr(raw, "raw", raw)
    if type(raw) is not io.FileIO:
        return
    own = ref(raw)  # a weak reference: it is closed when nothing else refers to it

    def noting(method: Callable[..., Any]) -> Callable[..., Any]:
        def read(*args: Any) -> Any:
            if not foreground.is_here or _foreground.get() is not foreground:
                return method(own(), *args)
            with foreground.awaiting(pid):
                return method(own(), *args)

        return read

    # A buffered reader calls these, once for each buffer.
    for name in ("read", "readinto", "readall"):
        setattr(raw, name, noting(getattr(io.FileIO, name)))


def _wrap_wait(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
        foreground = _foreground_of(self)
        if foreground is None or not foreground.is_here or self.returncode is not None:
            return function(self, *args, **kwargs)
        with foreground.awaiting(self.pid):
            return function(self, *args, **kwargs)

    return wait


def _wrap_async_init(function: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(function)
    def start(self: Any, *args: Any, **kwargs: Any) -> None:
        function(self, *args, **kwargs)
        foreground = _current()
        if foreground is not None:
            self._snakepit_of = foreground
            for stream in (self.stdout, self.stderr):
                if stream is not None:
                    for name in _READERS:
                        method = getattr(type(stream), name)
                        setattr(
                            stream,
                            name,
                            _wrap_async_read(foreground, self.pid, ref(stream), method),
                        )

    return start


def _wrap_async_read(
    foreground: Foreground, pid: int, stream: Callable[[], Any], method: Callable[..., Any]
) -> Callable[..., Any]:
    @functools.wraps(method)
    async def read(*args: Any, **kwargs: Any) -> Any:
        own = stream()
        if _foreground.get() is not foreground:
            return await method(own, *args, **kwargs)
        with foreground.awaiting(pid):
            return await method(own, *args, **kwargs)

    return read


def _wrap_async_wait(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wait(self: Any) -> Any:
        foreground = _foreground_of(self)
        if foreground is None or self.returncode is not None:
            return await function(self)
        with foreground.awaiting(self.pid):
            return await function(self)

    return wait
