"""The Jupyter channels of a worker, which come up behind its lane.

A worker answers calls within milliseconds of its fork. The rest of the kernel takes longer, and is
built in parts when no call is there to be answered; or at once when a cell is to be run.
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

REST = 0.1
"""Seconds without a call before another part is built."""


class KernelBuilder:
    """Builds a kernel around a worker that already serves.

    Parameters
    ----------
    argv
        The kernel's arguments.
    loop
        The worker's main loop.
    rests
        Asked whether the worker has had nothing to do for some seconds.
    is_free
        Asked whether no call runs, not even one that awaits something.
    adopt
        Gets the kernel when it is complete.
    around
        Makes what each part is built within.
    """

    def __init__(
        self,
        argv: Sequence[str],
        loop: asyncio.AbstractEventLoop,
        *,
        rests: Callable[[float], bool],
        is_free: Callable[[], bool],
        adopt: Callable[[SnakepitKernel], None],
        around: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._argv = list(argv)
        self._loop = loop
        self._rests = rests
        self._is_free = is_free
        self._adopt = adopt
        self._around = around
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
        self._adopt(app.kernel)
        self._is_complete = True

    def build_soon(self) -> None:
        """Build them when the worker has time, and nobody else needs the machine."""
        self._loop.call_later(REST, self._build_part)

    def _build_part(self) -> None:
        if self._is_complete:
            return
        if not (self._rests(REST) and self._is_free() and self._idle_lock.try_acquire()):
            self._loop.call_later(POLL_INTERVAL, self._build_part)
            return
        with self._building():
            next(self._parts, None)
        if self._is_complete:
            self._idle_lock.release()
        else:
            self._loop.call_soon(self._build_part)

    def build_now(self) -> None:
        """Build what is missing, because somebody needs it.

        Raises
        ------
        BaseException
            What stood in the way, also at an earlier try: the user's own startup files, say.
        """
        if self._failure is not None:
            raise self._failure
        if self._is_building:
            return  # we are asked by what is being built
        with self._building():
            # Its tasks live on, and take the context along in which they are made: were it that of
            # a call, each cell would be taken for that call.
            contextvars.Context().run(self._build_rest)
        self._idle_lock.release()

    def _build_rest(self) -> None:
        for _ in self._parts:
            pass

    @contextlib.contextmanager
    def _building(self) -> Iterator[None]:
        """Let no interrupt come between: what is half built cannot be completed."""
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        self._is_building = True
        try:
            with self._around():
                yield
        except BaseException as error:
            self._failure = error
            raise
        finally:
            self._is_building = False
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def offer_shell(self, build_now: Callable[[], None]) -> None:
        """Let who asks for IPython's shell have it, from now on: it is built when it is missing.

        Parameters
        ----------
        build_now
            Called where a tool is running, in any thread.
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
            # IPython's `display` asks so whether there is more than print(). Others, who only want
            # to know where they are, do not have it built.
            asks = sys._getframe(1).f_globals.get("__name__", "")  # noqa: SLF001 - as warnings do
            if not self._is_complete and asks.startswith("IPython.") and call_of_here():
                build_now()
            return bool(is_initialized(cls))

        @functools.wraps(instance_of)
        def instance(cls: type[InteractiveShell], *args: Any, **kwargs: Any) -> Any:
            if not self._is_complete and call_of_here():  # else it would make one that is nobody's
                build_now()
            return instance_of(cls, *args, **kwargs)

        getipython.get_ipython = IPython.get_ipython = get_ipython
        InteractiveShell.initialized = classmethod(initialized)  # type: ignore[assignment,method-assign]
        InteractiveShell.instance = classmethod(instance)  # type: ignore[assignment,method-assign]

    @property
    def are_settled(self) -> bool:
        """Whether there is nothing to be built: all is there, or something stood in the way."""
        return self._is_complete or self._failure is not None

    def is_told_to_end(self) -> bool:
        """Whether the shell was told to end this process."""
        kernel = getattr(self._app, "kernel", None)
        return kernel is not None and bool(getattr(kernel.shell, "exit_now", False))

    def close(self) -> None:
        """Stop the threads that would be in the way of the exit hooks."""
        if self._app is not None:
            self._app.join_control_thread()
