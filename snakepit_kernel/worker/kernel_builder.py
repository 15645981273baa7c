"""Deferred construction of a worker's Jupyter kernel, after its lane serves calls.

A worker answers calls within milliseconds of its fork. The rest of the kernel takes longer, and is
built in steps while no call is waiting; or at once when a cell is to be run.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import IPython
from IPython.core import getipython

from ..processes.idle_lock import POLL_INTERVAL, IdleLock
from ..tools.context import call_of_here

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from ..kernel.app import SnakepitKernelApp
    from ..kernel.kernel import SnakepitKernel

IDLE_SECONDS = 0.1
"""Seconds without a call before the next part is built."""


class KernelBuilder:
    """Builds a kernel around a worker that already serves.

    Parameters
    ----------
    argv
        The kernel's arguments.
    loop
        The worker's main loop.
    is_idle
        Returns whether the worker has been idle for a number of seconds.
    is_free
        Returns whether no call runs, not even one that awaits something.
    on_complete
        Called with the kernel when it is complete.
    within
        Makes the context manager under which each part is built.
    """

    def __init__(
        self,
        argv: Sequence[str],
        loop: asyncio.AbstractEventLoop,
        *,
        is_idle: Callable[[float], bool],
        is_free: Callable[[], bool],
        on_complete: Callable[[SnakepitKernel], None],
        within: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._argv = list(argv)
        self._loop = loop
        self._is_idle = is_idle
        self._is_free = is_free
        self._on_complete = on_complete
        self._within = within
        self._app: SnakepitKernelApp | None = None
        self._parts = self._build()
        self._idle_lock = IdleLock()
        self._is_complete = False
        self._is_building = False
        self._failure: BaseException | None = None

    def _build(self) -> Iterator[str]:
        from ..kernel.app import SnakepitKernelApp

        app = self._app = SnakepitKernelApp.instance()
        yield "the application is there"
        yield from app.setup_steps(self._argv)
        assert app.kernel is not None
        app.kernel.start()
        self._on_complete(app.kernel)
        self._is_complete = True

    def build_soon(self) -> None:
        """Build the parts while the worker is idle and no other process needs the machine."""
        self._loop.call_later(IDLE_SECONDS, self._build_part)

    def _build_part(self) -> None:
        if self._is_complete:
            return
        if not (self._is_idle(IDLE_SECONDS) and self._is_free() and self._idle_lock.try_acquire()):
            self._loop.call_later(POLL_INTERVAL, self._build_part)
            return
        with self._building():
            next(self._parts, None)
        if self._is_complete:
            self._idle_lock.release()
        else:
            self._loop.call_soon(self._build_part)

    def build_now(self) -> None:
        """Build the missing parts, because they are needed.

        Raises
        ------
        BaseException
            What failed, also in an earlier attempt: a startup file of the user's, for example.
        """
        if self._failure is not None:
            raise self._failure
        if self._is_building:
            return  # called by the part that is being built
        with self._building():
            # The kernel's tasks keep the context in which they are made: if that were a call's,
            # each cell would be taken for that call.
            contextvars.Context().run(self._build_rest)
        self._idle_lock.release()

    def _build_rest(self) -> None:
        for _ in self._parts:
            pass

    @contextlib.contextmanager
    def _building(self) -> Iterator[None]:
        """Block interrupts meanwhile: a half-built part cannot be completed."""
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        self._is_building = True
        try:
            with self._within():
                yield
        except BaseException as error:
            self._failure = error
            raise
        finally:
            self._is_building = False
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def patch_shell_access(self, build_now: Callable[[], None]) -> None:
        """Patch IPython so that code that asks for its shell gets it: it is built on demand.

        Parameters
        ----------
        build_now
            Builds it, in the middle of a call, in any thread.
        """
        from IPython.core.interactiveshell import InteractiveShell

        shell_of = getipython.get_ipython
        is_initialized = InteractiveShell.initialized.__func__  # type: ignore[attr-defined]
        instance_of = InteractiveShell.instance.__func__  # type: ignore[attr-defined]

        def get_ipython() -> InteractiveShell | None:
            """Return the shell of this kernel."""
            if not self._is_complete:
                build_now()
            return shell_of()

        @functools.wraps(is_initialized)
        def initialized(cls: type[InteractiveShell]) -> bool:
            # IPython's `display` asks so whether there is more than print(). Other callers only
            # want to know where they run; for them it is not built.
            asks = sys._getframe(1).f_globals.get("__name__", "")  # noqa: SLF001 - as warnings do
            if not self._is_complete and asks.startswith("IPython.") and call_of_here():
                build_now()
            return bool(is_initialized(cls))

        @functools.wraps(instance_of)
        def instance(cls: type[InteractiveShell], *args: Any, **kwargs: Any) -> Any:
            if not self._is_complete and call_of_here():  # else IPython would make another one
                build_now()
            return instance_of(cls, *args, **kwargs)

        getipython.get_ipython = IPython.get_ipython = get_ipython
        InteractiveShell.initialized = classmethod(initialized)  # type: ignore[assignment,method-assign]
        InteractiveShell.instance = classmethod(instance)  # type: ignore[assignment,method-assign]

    @property
    def is_settled(self) -> bool:
        """Whether the building is over: complete or failed."""
        return self._is_complete or self._failure is not None

    def is_exit_requested(self) -> bool:
        """Whether the shell was asked to exit, as by ``exit()``."""
        kernel = getattr(self._app, "kernel", None)
        return kernel is not None and bool(getattr(kernel.shell, "exit_now", False))

    def close(self) -> None:
        """Stop the threads that would block the exit hooks."""
        if self._app is not None:
            self._app.join_control_thread()
