"""The kernel class: IPython's, with its own handling of interrupts, forks and output."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import inspect
import io
import os
import signal
import sys
import threading
import types
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any

from ipykernel import zmqshell
from ipykernel.iostream import OutStream
from ipykernel.ipkernel import IPythonKernel
from IPython.core import interactiveshell
from tornado.ioloop import IOLoop

from ..ids import COMM_TYPES, SESSION_KEY
from ..processes import children, foreground, idle_lock
from ..processes.tags import parent_is_guardian
from ..tracebacks import hide_own_frames
from .interrupt_watch import InterruptWatch

QUITTING = (
    "This worker was told to end: the pool replaces it, and what it holds in memory is gone then."
)

_DEBUGGER_MODULE = "ipykernel.debugger"

INTERRUPT_INTERVAL = 0.05
"""Seconds before an unhandled interrupt is sent again; doubled each time."""


class SnakepitKernel(IPythonKernel):
    """An IPython kernel whose interrupts spare background children, and whose debugger is lazy.

    Attributes
    ----------
    accepts_interrupt
        Called at each SIGINT for a cell; False if it only repeats the last one.
    on_cell
        Called with the metadata of each cell before it runs.
    on_error
        Called with an exception of a cell before it is shown.
    check_input
        Called when code asks for input, with the name of the function and whether the front end
        answers; raises an error if it cannot be asked.
    """

    # In ipykernel a trait that imports the debugger to check the class.
    debugger_class: Any = None

    accepts_interrupt: Callable[[], bool] = staticmethod(lambda: True)
    on_cell: Callable[[dict[str, Any]], None] = staticmethod(lambda _: None)
    on_error: Callable[[BaseException | None], None] = staticmethod(lambda _: None)
    check_input: Callable[..., None] = staticmethod(lambda *_, **__: None)
    _on_quitting: Callable[[], None] | None = None

    def __init__(self, **kwargs: Any) -> None:
        with _debugger_not_imported():
            super().__init__(**kwargs)
        self._has_started = False
        self._interrupted_early = False
        self._code_runs = False
        self._was_cancelled = False
        self._requests = 0  # started in the main thread
        self._is_handling = False  # a request, in the main thread
        self._interrupts = 0  # received by our signal handlers
        self._interrupt_watch: InterruptWatch | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._foreground = foreground.Foreground()  # of the cell that runs
        foreground.install()
        # Set on the instance: libraries recognize Jupyter's shell by the name of its class.
        assert self.shell is not None
        self._run_code = self.shell.run_code
        self.shell.run_code = self._run_code_unless_interrupted
        self._show = self.shell.showtraceback
        self.shell.showtraceback = self._show_traceback
        self._run_nodes = self.shell.run_ast_nodes
        self.shell.run_ast_nodes = self._run_nodes_and_end_child
        _make_commands_interruptible(self.shell)
        for kind in COMM_TYPES:
            self.shell_handlers[kind] = partial(self._handle_comm, self.shell_handlers[kind])
        children.watch()
        os.register_at_fork(after_in_child=self._silence_child)
        self._debugger_wanted = asyncio.Event()

    def start(self) -> None:
        """Accept requests as soon as the main loop runs; a second call does nothing."""
        if not self._has_started:
            self._has_started = True
            self._loop = IOLoop.current().asyncio_loop  # type: ignore[attr-defined]
            super().start()

    # -- sessions ------------------------------------------------------------------------------

    def isolate_sessions(
        self,
        begin_cell: Callable[[str | None], None],
        within: Callable[[str | None, Callable[[], Coroutine[Any, Any, Any]]], Awaitable[Any]],
        current: Callable[[], str | None],
        session_of_comm: Callable[[dict[str, Any]], str | None],
    ) -> None:
        """Handle each request in the environment of the session that its metadata name.

        A request that names none, as those of an attached client, belongs to no session.

        Parameters
        ----------
        begin_cell
            Called with the session of each cell before it runs.
        within
            Returns a coroutine that awaits a function's coroutine in a session's environment.
        current
            Returns the session of the running code.
        session_of_comm
            Returns the session of a message to a comm.
        """

        def isolated(kind: str, handler: Callable[..., Any]) -> Callable[..., Awaitable[None]]:
            async def handle(stream: Any, ident: Any, parent: dict[str, Any]) -> None:
                if not _is_main_thread():  # a subshell
                    await _await_if_needed(handler(stream, ident, parent))
                    return
                metadata = parent.get("metadata", {})
                session = metadata.get(SESSION_KEY)
                is_comm = kind in COMM_TYPES
                if is_comm:
                    session = session_of_comm(parent)
                # A comm message of an attached client may come while a cell awaits something.
                if kind == "execute_request" or (is_comm and SESSION_KEY in metadata):
                    begin_cell(session)
                await within(session, lambda: _await_if_needed(handler(stream, ident, parent)))

            return handle

        self.shell_handlers = {
            kind: isolated(kind, handler) for kind, handler in self.shell_handlers.items()
        }
        shell = self.shell
        assert shell is not None
        run_cell = shell.run_cell_async

        @wraps(run_cell)
        def run_cell_async(*args: Any, **kwargs: Any) -> Awaitable[Any]:
            # ipykernel runs a cell that awaits in a task of its own.
            running = partial(run_cell, *args, **kwargs)
            return within(current(), running) if _is_main_thread() else running()

        shell.run_cell_async = run_cell_async

    # -- output --------------------------------------------------------------------------------

    def divert_output(
        self,
        take: Callable[[str, dict[str, Any], dict[str, Any], dict[str, Any], Sequence[Any]], bool],
    ) -> None:
        """Pass each output message to a function, in the thread that is about to send it.

        Parameters
        ----------
        take
            Called with the type of the message, the header of its parent, content, metadata and
            buffers. The message is not sent if it returns True.
        """
        session = self.session
        assert session is not None
        send = session.send
        channels = (self.iopub_socket, self.iopub_thread)

        @wraps(send)
        def send_unless_taken(  # noqa: PLR0917 - the signature of Session.send
            stream: Any,
            msg_or_type: Any,
            content: Any = None,
            parent: Any = None,
            ident: Any = None,
            buffers: Any = None,
            **rest: Any,
        ) -> Any:
            if any(stream is channel for channel in channels):
                whole = isinstance(msg_or_type, dict)
                message = msg_or_type if whole else {"msg_type": msg_or_type, "content": content}
                parent_message = message.get("parent_header") if whole else parent
                if take(
                    message["msg_type"],
                    (parent_message or {}).get("header", parent_message or {}),
                    message["content"] or {},
                    message.get("metadata") or rest.get("metadata") or {},
                    buffers or message.get("buffers") or (),
                ):
                    return None
            return send(stream, msg_or_type, content, parent, ident, buffers, **rest)

        session.send = send_unless_taken  # type: ignore[method-assign,assignment]

    # -- the debugger, imported when a client first asks for it --------------------------------

    @property
    def kernel_info(self) -> dict[str, Any]:
        """Describe the kernel, the debugger included, without importing that."""
        with _debugger_not_imported():
            info: dict[str, Any] = super().kernel_info
        features: list[str] = info["supported_features"]
        if "debugger" not in features and importlib.util.find_spec("debugpy") is not None:
            features.append("debugger")
        return info

    async def do_debug_request(self, msg: dict[str, Any]) -> dict[str, Any] | None:
        """Handle a debug request; the first one creates the debugger."""
        if not hasattr(self, "debugger"):
            from ipykernel.debugger import Debugger

            self.debugger = Debugger(
                self.log,
                self.debugpy_stream,
                self._publish_debug_event,
                self.debug_shell_socket,
                self.session,
                self._kernel_modules,
                self.debug_just_my_code,
                self.filter_internal_frames,
            )
            self._debugger_wanted.set()
        reply: dict[str, Any] | None = await super().do_debug_request(msg)
        return reply

    async def poll_stopped_queue(self) -> None:
        """Handle the debugger's stops, once there is one."""
        await self._debugger_wanted.wait()
        await super().poll_stopped_queue()

    # -- interrupts ----------------------------------------------------------------------------

    # ipykernel lets SIGINT raise at any point while it handles a request: before the cell runs, and
    # the client never gets a reply; in a callback of IPython, which swallows it; between two steps
    # of the loop, and the kernel ends. Here it raises only while the cell's own code runs. An
    # earlier interrupt is stored until then.

    def pre_handler_hook(self) -> None:
        """Store interrupts from now on, for the cell that is about to run."""
        self._interrupted_early = self._code_runs = self._was_cancelled = False
        self._requests += 1
        self._is_handling = True
        self.saved_sigint_handler = signal.signal(signal.SIGINT, self._keep_interrupt)

    def post_handler_hook(self) -> None:
        """Ignore interrupts from now on."""
        self._is_handling = False
        super().post_handler_hook()

    def watch_interrupts(self) -> None:
        """Watch from now on that each SIGINT is handled; called in the main thread."""
        if self.control_thread is not None:
            loop = self.control_thread.io_loop.asyncio_loop
            self._interrupt_watch = InterruptWatch(loop, self._is_handling_interrupts)

    def _is_handling_interrupts(self) -> bool:
        handler = signal.getsignal(signal.SIGINT)
        return self._is_handling and getattr(handler, "__module__", "") == __name__

    def _count_interrupt(self) -> None:
        self._interrupts += 1
        if self._interrupt_watch is not None:
            self._interrupt_watch.note_handled()

    def _keep_interrupt(self, *_: object) -> None:
        self._count_interrupt()
        self._interrupted_early |= self.accepts_interrupt()

    def _interrupt_cell(self, *_: object) -> None:
        self._count_interrupt()
        if not self.accepts_interrupt():
            return
        again, self._interrupted_early = self._interrupted_early, True
        if self._code_runs or again:  # again: the code before the cell's own may hang, too
            self._foreground.interrupt()
            raise KeyboardInterrupt

    async def _run_code_unless_interrupted(
        self, code: Any, result: Any = None, **kwargs: Any
    ) -> Any:
        if threading.current_thread() is threading.main_thread():
            first, self._code_runs = not self._code_runs, True
            if first and self._interrupted_early:
                raise KeyboardInterrupt
        has_failed = await self._run_code(code, result, **kwargs)
        if self._was_cancelled and isinstance(
            getattr(result, "error_in_exec", None), asyncio.CancelledError
        ):
            result.error_in_exec = KeyboardInterrupt()
        return has_failed

    def _show_traceback(self, *args: Any, **kwargs: Any) -> None:
        """Show an exception without our frames, such as those of the handlers of interrupts.

        The cancellation of an interrupted cell is shown as a KeyboardInterrupt.
        """
        error = sys.exception()
        self.on_error(error)
        if error is not None:
            hide_own_frames(error)
        if self._was_cancelled and isinstance(error, asyncio.CancelledError):
            interrupt = KeyboardInterrupt().with_traceback(error.__traceback__)
            for note in getattr(error, "__notes__", ()):
                interrupt.add_note(note)
            args = ((KeyboardInterrupt, interrupt, error.__traceback__),)
            kwargs.pop("exc_tuple", None)
        self._show(*args, **kwargs)

    async def do_execute(
        self, code: str, silent: bool, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Run a cell; an interrupt stops only its own code."""
        if threading.current_thread() is not threading.main_thread():  # a subshell has no signals
            return await self._execute(code, silent, *args, **kwargs)
        self.on_cell(kwargs.get("cell_meta") or {})
        previous = signal.signal(signal.SIGINT, self._interrupt_cell)
        idle_lock.begin_cell()
        self._foreground = foreground.Foreground()
        token = foreground.begin(self._foreground)
        try:
            return await self._execute(code, silent, *args, **kwargs)
        except KeyboardInterrupt:
            return self._interrupted_reply()
        finally:
            foreground.leave(token)
            idle_lock.end_cell()
            signal.signal(signal.SIGINT, previous)

    def _handle_comm(
        self, handle: Callable[..., Any], stream: Any, ident: Any, parent: dict[str, Any]
    ) -> Any:
        """Handle a message of the page to a widget; an interrupt stops the code that it calls."""
        if threading.current_thread() is not threading.main_thread():
            return handle(stream, ident, parent)
        self.on_cell(parent.get("metadata") or {})
        is_alone = not self._code_runs  # else a cell awaits something
        previous = signal.signal(signal.SIGINT, self._interrupt_cell)
        commands = foreground.Foreground()
        token = foreground.begin(commands)
        before, self._foreground = self._foreground, commands
        try:
            self._code_runs = True
            if is_alone and self._interrupted_early:
                raise KeyboardInterrupt
            return handle(stream, ident, parent)
        except KeyboardInterrupt:
            assert self.shell is not None
            self.shell.showtraceback()
            return None
        finally:
            self._code_runs = not is_alone
            self._foreground = before
            foreground.leave(token)
            signal.signal(signal.SIGINT, previous)

    # -- questions -----------------------------------------------------------------------------

    def raw_input(self, prompt: object = "") -> str:
        """Ask for a line, as ``input()`` does in a cell."""
        self.check_input("input", is_allowed=self._allow_stdin)
        line: str = super().raw_input(prompt)
        return line

    def getpass(self, prompt: str = "", stream: Any = None, *, echo_char: str | None = None) -> str:
        """Ask for a password, as ``getpass.getpass()`` does in a cell."""
        self.check_input("getpass", is_allowed=self._allow_stdin)
        options = {} if echo_char is None else {"echo_char": echo_char}
        line: str = super().getpass(prompt, stream, **options)
        return line

    async def _execute(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        reply: dict[str, Any] = await super().do_execute(*args, **kwargs)
        return reply

    def _interrupted_reply(self) -> dict[str, Any]:
        """Return the reply for a cell that was interrupted outside its own code."""
        error = {"ename": "KeyboardInterrupt", "evalue": "", "traceback": ["KeyboardInterrupt"]}
        self.send_response(self.iopub_socket, "error", error, ident=self._topic("error"))
        return {
            "status": "error",
            **error,
            "execution_count": self.execution_count,
            "user_expressions": {},
            "payload": [],
        }

    def _send_interrupt_children(self, delay: float = INTERRUPT_INTERVAL) -> None:
        """Interrupt this process alone; ipykernel would interrupt its process group.

        Python handles a signal before a system call, or when the call ends. The main thread
        releases the GIL to this one on its way into a call: a signal that is sent then wakes no
        thread, and must be sent again.
        """
        before = self._requests, self._interrupts
        os.kill(os.getpid(), signal.SIGINT)
        if self.control_thread is not None and self._is_handling:
            self.control_thread.io_loop.call_later(delay, self._interrupt_again, before, delay * 2)

    def _interrupt_again(self, before: tuple[int, int], delay: float) -> None:
        if self._is_handling and before == (self._requests, self._interrupts):
            self._send_interrupt_children(min(delay, 1.0))

    @contextlib.contextmanager
    def _cancel_on_sigint(self, future: asyncio.Future[Any]) -> Iterator[None]:
        """Cancel a cell's coroutine on SIGINT, at once.

        ipykernel schedules the cancellation in a way that does not wake a sleeping loop, so an
        interrupted ``await`` ends only when something else happens.
        """
        loop = asyncio.get_running_loop()

        def interrupt(*_: object) -> None:
            self._count_interrupt()
            if self.accepts_interrupt():
                self._foreground.interrupt()
                if foreground.is_below(interactiveshell.InteractiveShell.run_code):
                    raise KeyboardInterrupt  # a cancellation would only come at its next await
                self._was_cancelled = True
                loop.call_soon_threadsafe(future.cancel)

        previous = signal.signal(signal.SIGINT, interrupt)
        if self._interrupted_early:
            self._was_cancelled = True
            future.cancel()
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    # -- forks ---------------------------------------------------------------------------------

    # A child that a cell forks runs to the end of that cell, and ends there. Its output is sent by
    # its parent, as ipykernel does for those of multiprocessing.

    def _silence_child(self) -> None:
        """In a child: answer nothing and show no results."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, OutStream):
                # The parent sends what it has printed so far. One of its threads may have held the
                # lock.
                stream._buffer_lock = threading.RLock()  # noqa: SLF001
                stream._buffers = defaultdict(io.StringIO)  # noqa: SLF001
        shell = self.shell
        assert shell is not None
        if sys.displayhook is shell.displayhook:
            sys.displayhook = _show_nothing
        shell.custom_exceptions = ()
        shell.showtraceback = lambda *_, **__: children.end(sys.exception())
        if self._loop is not None:
            children.end_in(self._loop)

    async def _run_nodes_and_end_child(self, *args: Any, **kwargs: Any) -> Any:
        is_outermost = not _runs_in_cell.get()
        token = _runs_in_cell.set(True)
        try:
            return await self._run_nodes(*args, **kwargs)
        finally:
            _runs_in_cell.reset(token)
            if children.is_child and is_outermost:
                children.end(sys.exception())

    # -- the end of a worker -------------------------------------------------------------------

    def leave_end_to_owner(self, on_quitting: Callable[[], None]) -> None:
        """Notify the owner when code asks this kernel to exit, and run until the owner ends it.

        Otherwise it could be leased to another caller right before its end, whose work would be
        lost.
        """
        self._on_quitting = on_quitting
        shell = self.shell
        assert shell is not None
        shell.unobserve(type(shell)._update_exit_now, "exit_now")  # noqa: SLF001 - it stops the loop

        def quit_soon(change: Any) -> None:
            if change["new"]:
                shell.exit_now = False
                sys.stderr.write(f"{QUITTING}\n")
                on_quitting()

        shell.observe(quit_soon, "exit_now")

    async def shutdown_request(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        """Shut down; a worker notifies its owner instead, which ends it."""
        if self._on_quitting is None:
            await super().shutdown_request(stream, ident, parent)
            return
        assert self.session is not None
        content = {"status": "ok", "restart": parent["content"]["restart"]}
        self.session.send(stream, "shutdown_reply", content, parent, ident=ident)
        self._on_quitting()

    # -- shutdown ------------------------------------------------------------------------------

    async def _progressively_terminate_all_children(self) -> None:
        """Ask the guardian to end the children, without waiting for that.

        ipykernel waits for them, including its own zombies, for up to 14 seconds.
        """
        if parent_is_guardian():
            os.kill(os.getppid(), signal.SIGUSR2)
        else:
            await super()._progressively_terminate_all_children()


_runs_in_cell: ContextVar[bool] = ContextVar("runs_in_cell", default=False)


def _make_commands_interruptible(shell: Any) -> None:
    """Make an interrupted ``!command``, ``%%bash`` and similar raise KeyboardInterrupt."""
    for module, name in (
        (zmqshell, "system"),
        (interactiveshell, "getoutput"),
        (interactiveshell, "get_output_error_code"),
    ):
        function = getattr(module, name)
        if not hasattr(function, "__wrapped__"):
            setattr(module, name, foreground.reraising_interrupts(function))
    expand, run = shell.var_expand, foreground.reraising_interrupts(shell.system_raw)

    def system_raw(cmd: str) -> None:
        # It looks up variables in its caller's frame, which is ours.
        expanded = expand(cmd, depth=1)
        shell.var_expand = lambda text, **_: text
        try:
            run(expanded)
        finally:
            del shell.var_expand

    shell.system_raw = system_raw
    scripts = shell.magics_manager.registry["ScriptMagics"]
    own = scripts.shebang
    # It sends its signal through asyncio, which raises if the process has just ended.
    scripts.shebang = foreground.reraising_interrupts(own, interrupts_itself=True)
    for magics in shell.magics_manager.magics.values():
        for name, function in magics.items():
            if function == own:
                magics[name] = scripts.shebang


def _show_nothing(_: object) -> None:
    pass


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


async def _await_if_needed(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


@contextlib.contextmanager
def _debugger_not_imported() -> Iterator[None]:
    """Hide the debugger from ipykernel.

    It imports debugpy, 110 ms and 7 MiB, only to find out whether it can be imported.
    """
    if _DEBUGGER_MODULE in sys.modules:
        yield
        return
    stand_in = types.ModuleType(_DEBUGGER_MODULE)
    vars(stand_in)["_is_debugpy_available"] = False
    sys.modules[_DEBUGGER_MODULE] = stand_in
    try:
        yield
    finally:
        del sys.modules[_DEBUGGER_MODULE]
