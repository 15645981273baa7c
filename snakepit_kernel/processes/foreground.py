"""The commands that a cell or a call waits for: an interrupt is meant for them as well.

Jupyter interrupts the whole process group of a kernel, and with it all that the notebook has left
in the background. Ours interrupts the kernel alone. So the kernel itself has to know for which
command the interrupted code waits in that moment, and ends this, with all that it has started.

What waits says so: the usual ways to wait for a command are replaced here by such as note it. Code
that looks at a process now and then, or waits for one that an earlier cell has started, waits for
nothing in this sense.
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

HEEDING_PATIENCE = 1.0
"""Seconds that a command may take to end after SIGINT, if it does not ignore that; then it gets
SIGTERM."""

GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL, as when a run is ended."""

OWN_WAY = 0.02
"""Seconds in which code that interrupts its command itself may do so first."""

LOOK_INTERVAL = 0.02
"""Seconds between looks whether all are gone: the end of a grandchild is no event."""

_READERS = ("read", "readline", "readexactly", "readuntil")


class Foreground:
    """What one cell or call waits for.

    Attributes
    ----------
    interrupts
        How often it was interrupted.
    is_unused
        Whether nobody has asked for it: then the next call may have it.
    """

    def __init__(self) -> None:
        self.interrupts = 0
        self.is_unused = True
        self._thread = threading.get_ident()
        self._awaited: list[ProcessIdentity] = []
        self._before: set[int] | None = None  # our children when all later ones began to count
        self._has_own_way = False
        self._started: list[ProcessIdentity] | None = None

    @property
    def is_here(self) -> bool:
        """Whether this is the thread that it runs in."""
        return threading.get_ident() == self._thread

    @contextlib.contextmanager
    def awaiting(self, pid: int) -> Iterator[None]:
        """Note that a process is waited for."""
        identity = ProcessIdentity.of(pid)
        if identity is None:
            yield
            return
        try:
            self._awaited.append(identity)
            yield
        finally:
            with contextlib.suppress(ValueError):  # an interrupt came before it was noted
                self._awaited.remove(identity)

    @contextlib.contextmanager
    def awaiting_started(self) -> Iterator[None]:
        """Note that each process that is started here by :mod:`subprocess` is waited for."""
        outer, self._started = self._started, []
        try:
            yield
        finally:
            for identity in self._started:
                with contextlib.suppress(ValueError):
                    self._awaited.remove(identity)
            self._started = outer

    def note_start(self, pid: int) -> None:
        """Take in that a process was started."""
        if self._started is not None and (identity := ProcessIdentity.of(pid)) is not None:
            self._started.append(identity)
            self._awaited.append(identity)

    @contextlib.contextmanager
    def awaiting_all(self, *, has_own_way: bool) -> Iterator[None]:
        """Note that each process that is started from now on is waited for.

        Parameters
        ----------
        has_own_way
            Whether the code that starts them interrupts them itself as well.
        """
        outer = self._before, self._has_own_way
        try:
            self._before = self._before or {c.pid for c in all_children().get(os.getpid(), ())}
            self._has_own_way = has_own_way
            yield
        finally:
            self._before, self._has_own_way = outer

    def end(self, pid: int) -> None:
        """Interrupt a process."""
        with self.awaiting(pid):
            self._interrupt()

    def interrupt(self) -> None:
        """Interrupt what is waited for, and see to its end while the caller goes on.

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
            heads = set(roots.values()) if self._has_own_way else set()
            threading.Thread(target=_end, args=(tree, heads), name="snakepit-interrupt").start()


_foreground: ContextVar[Foreground | None] = ContextVar("snakepit_foreground", default=None)


def _work_here() -> Foreground | None:
    work = _foreground.get()
    if work is not None:
        work.is_unused = False
    return work


begin = _foreground.set
"""Let code of the current context belong to a cell or call."""

leave = _foreground.reset
"""Undo that, with what `begin` gave."""


def is_below(function: Callable[..., Any]) -> bool:
    """Whether a function has called, or awaits, what runs here; so a signal handler may ask."""
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


def _end(tree: set[ProcessIdentity], heads: set[ProcessIdentity]) -> None:
    """Interrupt processes, and end those of them that do not heed, with all below them.

    Parameters
    ----------
    tree
        The processes.
    heads
        Those among them that somebody else interrupts.
    """
    if heads:
        time.sleep(OWN_WAY)
    for identity in _parents_first(tree - heads):
        _strike(identity, signal.SIGTERM if _ignores_interrupts(identity.pid) else signal.SIGINT)
    for signum, patience in ((signal.SIGTERM, HEEDING_PATIENCE), (signal.SIGKILL, GRACE)):
        until = time.monotonic() + patience
        while tree := {identity for identity in tree if identity.is_alive()}:
            if time.monotonic() > until:
                break
            time.sleep(LOOK_INTERVAL)
        for identity in list(tree):
            tree |= _below(identity)
        for identity in _parents_first(tree):
            _strike(identity, signum)


def _parents_first(tree: set[ProcessIdentity]) -> list[ProcessIdentity]:
    """Return processes in the order in which they started.

    A shell whose command ends before the shell is struck itself would start its next command, and
    nobody would find that below a shell that has ended.
    """
    return sorted(tree, key=lambda identity: (identity.start_time, identity.pid))


def _strike(identity: ProcessIdentity, signum: int) -> None:
    with contextlib.suppress(PermissionError):  # a set-uid program of another user
        identity.signal(signum)
        identity.signal(signal.SIGCONT)


def _ignores_interrupts(pid: int) -> bool:
    """Whether a process ignores SIGINT, as shells make those ignore it that they put aside."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:  # noqa: PTH123
            content = file.read()
    except OSError:
        return False
    ignored = content.partition(b"SigIgn:")[2].split(None, 1)
    return bool(ignored) and bool(int(ignored[0], 16) >> (signal.SIGINT - 1) & 1)


# -- what waits ------------------------------------------------------------------------------------


def raising(function: Callable[..., Any], *, has_own_way: bool = False) -> Callable[..., Any]:
    """Make a function that runs a command for a cell end as other code does when interrupted.

    IPython's own take an interrupt for the command's alone, and go on, or raise something else.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        work = _work_here()
        if work is None or not work.is_here:
            return function(*args, **kwargs)
        before = work.interrupts
        try:
            with work.awaiting_all(has_own_way=has_own_way):
                value = function(*args, **kwargs)
        except Exception:
            if work.interrupts != before:
                raise KeyboardInterrupt from None
            raise
        if work.interrupts != before:
            raise KeyboardInterrupt
        return value

    return run


def install() -> None:
    """Have the usual ways to wait for a command note it, in this process."""
    if os.system is _system:
        return
    os.system = _system
    popen: Any = subprocess.Popen
    module: Any = subprocess
    module.run = _starting(subprocess.run)
    module.call = _starting(subprocess.call)
    popen.__init__ = _noting(popen.__init__)
    popen.wait = _waiting(popen.wait)
    popen.communicate = _waiting(popen.communicate)
    process: Any = asyncio.subprocess.Process
    process.__init__ = _noting_async(process.__init__)
    process.wait = _awaiting(process.wait)


def _system(command: Any) -> int:
    """Execute the command in a subshell."""
    # The function of the C library ignores SIGINT while it waits: nothing would be heard of one.
    sys.audit("os.system", command)
    words: list[str | bytes] = ["sh", "-c", os.fsencode(command)]
    status = subprocess.call(words, executable="/bin/sh", close_fds=False, restore_signals=False)  # noqa: S603 - the user's own os.system
    return -status if status < 0 else status << 8


_system.__name__ = _system.__qualname__ = "system"
_system.__module__ = "os"


def _own(process: Any) -> Foreground | None:
    """Return what waits here for a process, if it has started that itself."""
    work = _work_here()
    return work if work is not None and process.__dict__.get("_snakepit_of") is work else None


def _starting(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        work = _work_here()
        if work is None or not work.is_here:
            return function(*args, **kwargs)
        with work.awaiting_started():
            return function(*args, **kwargs)

    return run


def _noting(function: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(function)
    def start(self: Any, *args: Any, **kwargs: Any) -> None:
        work = _work_here()
        try:
            function(self, *args, **kwargs)
        except KeyboardInterrupt:
            pid = self.__dict__.get("pid")
            if pid and work is not None and work.is_here:  # it runs, and nobody knows it
                work.end(pid)
            raise
        if work is not None and work.is_here:
            self._snakepit_of = work
            work.note_start(self.pid)
            for stream in (self.stdout, self.stderr):
                if stream is not None:
                    _note_reads(work, self.pid, stream)

    return start


def _note_reads(work: Foreground, pid: int, stream: Any) -> None:
    """Let who reads what a command says wait for that command."""
    raw = getattr(stream, "buffer", stream)
    raw = getattr(raw, "raw", raw)
    if type(raw) is not io.FileIO:
        return
    own = ref(raw)  # not the thing itself: it is closed when nobody else has it

    def noting(method: Callable[..., Any]) -> Callable[..., Any]:
        def read(*args: Any) -> Any:
            if not work.is_here or _foreground.get() is not work:
                return method(own(), *args)
            with work.awaiting(pid):
                return method(own(), *args)

        return read

    # What is buffered calls these, once for each buffer.
    for name in ("read", "readinto", "readall"):
        setattr(raw, name, noting(getattr(io.FileIO, name)))


def _waiting(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
        work = _own(self)
        if work is None or not work.is_here or self.returncode is not None:
            return function(self, *args, **kwargs)
        with work.awaiting(self.pid):
            return function(self, *args, **kwargs)

    return wait


def _noting_async(function: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(function)
    def start(self: Any, *args: Any, **kwargs: Any) -> None:
        function(self, *args, **kwargs)
        work = _work_here()
        if work is not None:
            self._snakepit_of = work
            for stream in (self.stdout, self.stderr):
                if stream is not None:
                    for name in _READERS:
                        method = getattr(type(stream), name)
                        setattr(stream, name, _awaiting_reads(work, self.pid, ref(stream), method))

    return start


def _awaiting_reads(
    work: Foreground, pid: int, stream: Callable[[], Any], method: Callable[..., Any]
) -> Callable[..., Any]:
    @functools.wraps(method)
    async def read(*args: Any, **kwargs: Any) -> Any:
        own = stream()
        if _foreground.get() is not work:
            return await method(own, *args, **kwargs)
        with work.awaiting(pid):
            return await method(own, *args, **kwargs)

    return read


def _awaiting(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wait(self: Any) -> Any:
        work = _own(self)
        if work is None or self.returncode is not None:
            return await function(self)
        with work.awaiting(self.pid):
            return await function(self)

    return wait
